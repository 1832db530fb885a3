package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"k8s.io/client-go/rest"
)

const (
	// requestTimeout bounds one request. An API server that is up answers in milliseconds.
	requestTimeout = 10 * time.Second
	// maxAnswer bounds what one answer may bring into memory: a ConfigMap holds at most 1 MiB, which base64 makes a third more.
	maxAnswer = 4 << 20
	// fieldManager is what the API server notes as the author of a change.
	fieldManager = "portcullis-coordinator"
)

// configMap is a ConfigMap, as far as the store cares. (The API's own types would make the binary larger by all others.)
type configMap struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metadata          `json:"metadata"`
	Immutable  bool              `json:"immutable,omitempty"`
	Data       map[string]string `json:"data,omitempty"`
	BinaryData map[string][]byte `json:"binaryData,omitempty"`
}

type metadata struct {
	Name            string            `json:"name"`
	UID             string            `json:"uid,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
}

// configMaps are the ConfigMaps of one namespace: three verbs over client-go's transport, which knows how to authenticate
// and to read a token anew that kubelet rotates. There are no retries in it: what an error means, the store knows.
type configMaps struct {
	client *http.Client
	url    *url.URL
}

func newConfigMaps(config *rest.Config, namespace string) (*configMaps, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	// The transport would show the token to whomever an answer points at. An API server points nowhere.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	server, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	return &configMaps{client: client, url: server.JoinPath("api/v1/namespaces", namespace, "configmaps")}, nil
}

// refusal is an answer that says no.
type refusal struct {
	code    int
	message string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("the API server answers %d: %.300q", r.code, r.message)
}

func isRefusal(err error, code int) bool {
	r, ok := errors.AsType[*refusal](err)
	return ok && r.code == code
}

// certain says whether an error of a write tells that nothing was written. Without an answer nobody knows; a server's own
// failure (5xx) may come after the write, and says nothing either.
func certain(err error) bool {
	r, ok := errors.AsType[*refusal](err)
	return ok && r.code >= 400 && r.code < 500
}

func (c *configMaps) get(ctx context.Context, name string) (*configMap, error) {
	return c.do(ctx, http.MethodGet, c.url.JoinPath(name), nil)
}

func (c *configMaps) create(ctx context.Context, cm *configMap) error {
	_, err := c.do(ctx, http.MethodPost, c.url, cm)
	return err
}

// update replaces the ConfigMap of that version. Without one the API server would let the last writer win, silently.
func (c *configMaps) update(ctx context.Context, cm *configMap) error {
	if cm.Metadata.ResourceVersion == "" || cm.Metadata.UID == "" {
		return fmt.Errorf("update ConfigMap %s: the version that is to be replaced is not known", cm.Metadata.Name)
	}
	_, err := c.do(ctx, http.MethodPut, c.url.JoinPath(cm.Metadata.Name), cm)
	return err
}

func (c *configMaps) do(ctx context.Context, method string, to *url.URL, send *configMap) (*configMap, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	name := to.Path
	var body io.Reader
	if send != nil {
		send.APIVersion, send.Kind = "v1", "ConfigMap"
		name = send.Metadata.Name
		text, err := json.Marshal(send)
		if err != nil {
			return nil, fmt.Errorf("encode ConfigMap %s: %w", name, err)
		}
		body = bytes.NewReader(text)
		to = to.JoinPath() // a copy
		to.RawQuery = url.Values{"fieldManager": {fieldManager}, "fieldValidation": {"Strict"}}.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, to.String(), body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the API server: %w", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(http.MaxBytesReader(nil, answer.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the API server's answer to %s %s: %w", method, name, err)
	}
	if answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusCreated {
		var status struct{ Message string }
		if json.Unmarshal(text, &status) != nil || status.Message == "" {
			status.Message = http.StatusText(answer.StatusCode)
		}
		return nil, fmt.Errorf("%s %s: %w", method, name, &refusal{answer.StatusCode, status.Message})
	}
	got := new(configMap)
	if err := json.Unmarshal(text, got); err != nil {
		return nil, fmt.Errorf("read the API server's answer to %s %s: %w", method, name, err)
	}
	return got, nil
}
