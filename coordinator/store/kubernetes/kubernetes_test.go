package kubernetes

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/coordinator/store/storetest"
	"portcullis.dev/portcullis/deploy"
	"portcullis.dev/portcullis/tests/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }

// account makes a namespace in which everything is deployed that coordinator-yaml prints, and answers what the Coordinator's pods
// are allowed there and nothing more.
func account(t *testing.T, c *cluster.Cluster) (config *rest.Config, namespace string) {
	t.Helper()
	namespace = c.Namespace(t)
	var yaml bytes.Buffer
	err := deploy.Coordinator{
		Image: "example.com/coordinator@sha256:" + strings.Repeat("0", 64), RuntimeClass: "kata-qemu-snp",
		Replicas: 3, Store: deploy.StoreKubernetes,
	}.Write(&yaml)
	if err != nil {
		t.Fatal(err)
	}
	c.MustKubectl(t, yaml.String(), "-n", namespace, "apply", "-f", "-")
	return c.ServiceAccount(t, namespace, "coordinator"), namespace
}

func open(t *testing.T, config *rest.Config, namespace string) *Store {
	t.Helper()
	s, err := Open(config, namespace)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// host is whoever may change everything.
type host struct {
	t *testing.T
	*Store
}

func hostOf(t *testing.T, c *cluster.Cluster, namespace string) host {
	return host{t, open(t, c.Admin(), namespace)}
}

func (h host) remove(name string) {
	h.t.Helper()
	if _, err := h.configMaps.do(h.t.Context(), http.MethodDelete, h.configMaps.url.JoinPath(name), nil); err != nil && !isRefusal(err, 404) {
		h.t.Fatal(err)
	}
}

// put makes a ConfigMap, whatever was there.
func (h host) put(cm *configMap) {
	h.t.Helper()
	h.remove(cm.Metadata.Name)
	cm.Metadata.UID, cm.Metadata.ResourceVersion = "", ""
	if err := h.configMaps.create(h.t.Context(), cm); err != nil {
		h.t.Fatal(err)
	}
}

func (h host) find(name string) *configMap {
	h.t.Helper()
	cm, err := h.configMaps.get(h.t.Context(), name)
	if err != nil {
		h.t.Fatal(err)
	}
	return cm
}

func (h host) changeObject(name store.Name, data []byte) {
	h.t.Helper()
	for i := range maxChunks {
		h.remove(chunkName(name.Kind, name.Hash, i))
	}
	if err := h.write(h.t.Context(), name.Kind, name.Hash, data); err != nil {
		h.t.Fatal(err)
	}
}

// It runs with the rights of the Coordinator's service account.
func TestKubernetesIsAStore(t *testing.T) {
	c := cluster.Shared(t)
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		config, namespace := account(t, c)
		s := open(t, config, namespace)
		h := hostOf(t, c, namespace)
		return storetest.Subject{
			Store: func() store.Store { return s },
			Reopen: func() store.Store {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = open(t, config, namespace)
				return s
			},
			ChangeObject: h.changeObject,
			ChangeLatest: func(value []byte) {
				cm := h.find(nameLatest)
				cm.BinaryData[keyValue] = value
				if value == nil {
					cm.BinaryData[keyValue] = []byte{}
				}
				if err := h.configMaps.update(t.Context(), cm); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// Whatever the host makes of the store, it is an error, and not ErrNotFound where there was something.
func TestDamageIsNotTakenForNothing(t *testing.T) {
	c := cluster.Shared(t)
	config, namespace := account(t, c)
	s, h := open(t, config, namespace), hostOf(t, c, namespace)
	s.chunk = 1000
	o := manifestOf(bytes.Repeat([]byte("0123456789abcdef"), 150)) // 3 chunks
	signatures := store.Object{Name: store.Name{Kind: store.Signatures, Hash: o.Name.Hash}, Data: []byte("signed")}
	if err := s.Commit(t.Context(), []store.Object{o, signatures}, nil, []byte("one")); err != nil {
		t.Fatal(err)
	}
	intact := func() error {
		_, err := s.Object(t.Context(), o.Name)
		_, err2 := s.Object(t.Context(), signatures.Name)
		_, err3 := s.Latest(t.Context())
		return errors.Join(err, err2, err3)
	}
	if err := intact(); err != nil {
		t.Fatal(err)
	}
	head, tail := objectName(o.Name.Kind, o.Name.Hash), chunkName(o.Name.Kind, o.Name.Hash, 2)
	signed := objectName(store.Signatures, hashOf(signatures.Data))
	set := func(key, value string) func(*configMap) {
		return func(cm *configMap) { cm.Data[key] = value }
	}
	for name, test := range map[string]struct {
		configMap string
		change    func(*configMap) // nil removes it
		want      string
	}{
		"a chunk gone":               {tail, nil, "404"},
		"a chunk cut short":          {tail, func(cm *configMap) { cm.BinaryData[keyData] = cm.BinaryData[keyData][:5] }, "something else"},
		"a chunk fewer":              {head, set(keyChunks, "2"), "something else"},
		"a chunk more":               {head, set(keyChunks, "4"), "404"},
		"no chunks":                  {head, set(keyChunks, "0"), `"0" chunks`},
		"a million chunks":           {head, set(keyChunks, "1000000"), `"1000000" chunks`},
		"chunks unknown":             {head, func(cm *configMap) { cm.Data = nil }, `"" chunks`},
		"signatures gone":            {signed, nil, "is gone"},
		"signatures changed":         {signed, func(cm *configMap) { cm.BinaryData[keyData] = []byte("forged") }, "something else"},
		"latest without its value":   {nameLatest, func(cm *configMap) { cm.BinaryData = nil }, "no latest"},
		"latest without its commits": {nameLatest, func(cm *configMap) { delete(cm.Data, keyCommits); cm.Data["x"] = "" }, "no commits"},
		"latest without its names":   {nameLatest, func(cm *configMap) { delete(cm.Data, keyNames); cm.Data["x"] = "" }, "no names"},
		"latest with something else": {nameLatest, set("more", "x"), "other keys"},
		"latest with half a name":    {nameLatest, func(cm *configMap) { cm.Data[keyNames] = cm.Data[keyNames][:100] }, "names have a line"},
		"latest with a long name":    {nameLatest, func(cm *configMap) { cm.Data[keyNames] += "0" }, "names have a line"},
		"latest with capitals":       {nameLatest, func(cm *configMap) { cm.Data[keyNames] = strings.ToUpper(cm.Data[keyNames]) }, "names have a line"},
		"latest with a name twice":   {nameLatest, func(cm *configMap) { cm.Data[keyNames] += "\n" + cm.Data[keyNames] }, "twice"},
		"latest with an empty line":  {nameLatest, func(cm *configMap) { cm.Data[keyNames] = "\n" + cm.Data[keyNames] }, "names have a line"},
		"latest that names a nothing": {nameLatest, func(cm *configMap) {
			cm.Data[keyNames] = cm.Data[keyNames][:len(cm.Data[keyNames])-64] + strings.Repeat("0", 64)
		}, "is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			before, changed := h.find(test.configMap), h.find(test.configMap)
			defer func() {
				h.put(before)
				if err := intact(); err != nil {
					t.Errorf("after it was put back: %v", err)
				}
			}()
			if test.change == nil {
				h.remove(test.configMap)
			} else {
				test.change(changed)
				h.put(changed)
			}
			err := intact()
			if err == nil || errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("read: %v, want %q and not ErrNotFound", err, test.want)
			}
		})
	}
}

// A ConfigMap that has the name of an object and another content is not taken for it.
func TestCommitOverAForeignObjectIsRefused(t *testing.T) {
	c := cluster.Shared(t)
	config, namespace := account(t, c)
	s, h := open(t, config, namespace), hostOf(t, c, namespace)
	o := manifestOf([]byte("a"))
	h.changeObject(o.Name, []byte("b"))
	err := s.Commit(t.Context(), []store.Object{o}, nil, []byte("one"))
	if err == nil || errors.Is(err, store.ErrConflict) || !strings.Contains(err.Error(), "holds something else") {
		t.Errorf("Commit: %v, want that it holds something else", err)
	}
	if _, err := s.Latest(t.Context()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Latest: %v, want ErrNotFound", err)
	}
	wrong := manifestOf([]byte("c"))
	wrong.Data = []byte("d")
	if err := s.Commit(t.Context(), []store.Object{wrong}, nil, []byte("one")); err == nil {
		t.Error("an object that is not what its name says is written")
	}
	large := manifestOf(make([]byte, maxChunks*chunkSize+1))
	if err := s.Commit(t.Context(), []store.Object{large}, nil, []byte("one")); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("Commit of an object that is too large: %v", err)
	}
}

// The service account may do what the store needs, and nothing else.
func TestRoleIsNoWiderThanNeeded(t *testing.T) {
	c := cluster.Shared(t)
	config, namespace := account(t, c)
	elsewhere := c.Namespace(t)
	s := open(t, config, namespace)
	o := manifestOf([]byte("a"))
	if err := s.Commit(t.Context(), []store.Object{o}, nil, []byte("one")); err != nil {
		t.Fatal(err)
	}
	api := s.configMaps
	object, err := api.get(t.Context(), objectName(o.Name.Kind, o.Name.Hash))
	if err != nil {
		t.Fatal(err)
	}
	for what, do := range map[string]func(context.Context) error{
		"change an object": func(ctx context.Context) error { return api.update(ctx, object) },
		"list": func(ctx context.Context) error {
			_, err := api.do(ctx, http.MethodGet, api.url, nil)
			return err
		},
		"delete latest": func(ctx context.Context) error {
			_, err := api.do(ctx, http.MethodDelete, api.url.JoinPath(nameLatest), nil)
			return err
		},
		"read a secret": func(ctx context.Context) error {
			_, err := api.do(ctx, http.MethodGet, api.url.JoinPath("../secrets/x"), nil)
			return err
		},
		"read another namespace": func(ctx context.Context) error {
			_, err := open(t, config, elsewhere).Latest(ctx)
			return err
		},
	} {
		if err := do(t.Context()); !isRefusal(err, http.StatusForbidden) {
			t.Errorf("%s: %v, want 403", what, err)
		}
	}
	// Nor may it do without what it has.
	c.MustKubectl(t, "", "-n", namespace, "delete", "rolebinding", "coordinator")
	if v, err := s.Latest(t.Context()); !isRefusal(err, http.StatusForbidden) || errors.Is(err, store.ErrNotFound) {
		t.Errorf("Latest without the role: %q, %v, want 403", v, err)
	}
}

func TestUpdateWithoutAVersionIsNeverSent(t *testing.T) {
	var asked int
	s := open(t, &rest.Config{Host: "http://127.0.0.1:1", WrapTransport: func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(*http.Request) (*http.Response, error) { asked++; return nil, io.EOF })
	}}, "test")
	for _, m := range []metadata{{Name: "a"}, {Name: "a", UID: "u"}, {Name: "a", ResourceVersion: "1"}} {
		if err := s.configMaps.update(t.Context(), &configMap{Metadata: m}); err == nil || asked > 0 {
			t.Errorf("update of %+v: %v, %d requests, want an error and none", m, err, asked)
		}
	}
}

// Neither a redirection nor an endless answer gets further than it should.
func TestHostileAnswersAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		answer func(*http.Request) *http.Response
		want   string
	}{
		"redirection": {func(r *http.Request) *http.Response {
			if r.URL.Host == "elsewhere.example" {
				t.Error("the request went elsewhere, with the token")
			}
			return answer(307, http.Header{"Location": {"http://elsewhere.example/"}}, strings.NewReader(""))
		}, "307"},
		"endless": {func(*http.Request) *http.Response {
			return answer(200, nil, io.LimitReader(spaces{}, 1<<40))
		}, "too large"},
		"not JSON": {func(*http.Request) *http.Response { return answer(200, nil, strings.NewReader("<html>")) }, "invalid character"},
		"nothing":  {func(*http.Request) *http.Response { return answer(200, nil, strings.NewReader("{}")) }, "does not tell its version"},
		"a refusal that cannot be read": {func(*http.Request) *http.Response {
			return answer(502, nil, strings.NewReader("<html>"))
		}, `502: "Bad Gateway"`},
	} {
		s := open(t, &rest.Config{Host: "http://127.0.0.1:1", WrapTransport: func(http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				a := test.answer(r)
				a.Request = r
				return a, nil
			})
		}}, "test")
		if v, err := s.Latest(t.Context()); err == nil || errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %q, %v, want %q", name, v, err, test.want)
		}
	}
}

func TestOpenWantsANamespace(t *testing.T) {
	if _, err := Open(&rest.Config{Host: "http://127.0.0.1:1"}, ""); err == nil {
		t.Error("a store without a namespace is opened")
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func answer(code int, header http.Header, body io.Reader) *http.Response {
	if header == nil {
		header = make(http.Header)
	}
	return &http.Response{
		StatusCode: code, Status: strconv.Itoa(code), Header: header, Body: io.NopCloser(body), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
}

func hashOf(data []byte) digest { return sha256.Sum256(data) }

func manifestOf(data []byte) store.Object {
	return store.Object{Name: store.Name{Kind: store.Manifest, Hash: hashOf(data)}, Data: data}
}
