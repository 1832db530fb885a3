// Package kubernetes is a store.Store of ConfigMaps, which several Coordinators share.
//
// An object is one immutable ConfigMap, named by its kind and the SHA-256 of its content, or several where a ConfigMap is too
// small for it. The ConfigMap coordinator-latest is the one that changes, and only by its resourceVersion: the API server
// then lets one of several writers win. Objects are written and acknowledged first.
//
// The API server is the host's, so what it answers is believed no more than a disk: content is compared with the digest it
// is named by, and latest is signed (package coordinator). What is left to it is to lose or to withhold, and to show an old latest.
//
// An answer that is lost on its way says nothing: the change may have been made, or may still be made after the client gave
// up. So each commit has a name that its writer made at random, and the writer reads latest until it knows whether the
// commit is there.
package kubernetes

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"portcullis.dev/portcullis/coordinator/store"
)

const (
	prefix     = "coordinator-"
	nameLatest = prefix + "latest"

	keyData   = "data"
	keyChunks = "chunks"

	// A ConfigMap's values may have 1,048,576 bytes together, before base64.
	chunkSize = 768 << 10
	// maxChunks bounds an object: a manifest has at most 1 MiB.
	maxChunks = 16

	// settleTimeout is how long a writer whose answer was lost looks for its commit. An API server restarts in some seconds; the
	// Coordinator's own answer must come within 30.
	settleTimeout = 15 * time.Second
)

// labels are on every ConfigMap of the store, so that people find them.
var labels = map[string]string{"app.kubernetes.io/managed-by": "portcullis", "portcullis.dev/store": "coordinator"}

// Store keeps a history in the ConfigMaps of one namespace.
type Store struct {
	configMaps *configMaps
	namespace  string
	chunk      int // chunkSize but in tests: what was written with another one is read all the same
}

var _ store.Store = (*Store)(nil)

// Config says how the API server is reached, and the namespace that the Coordinator is in: by KUBECONFIG where that is set, for
// development, or else as Kubernetes tells every pod that has a service account.
func Config() (config *rest.Config, namespace string, err error) {
	if path := os.Getenv(clientcmd.RecommendedConfigPathEnvVar); path != "" {
		c := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: path}, &clientcmd.ConfigOverrides{})
		if config, err = c.ClientConfig(); err != nil {
			return nil, "", fmt.Errorf("read KUBECONFIG %s: %w", path, err)
		}
		namespace, _, err = c.Namespace()
		return config, namespace, err
	}
	if config, err = rest.InClusterConfig(); err != nil {
		return nil, "", fmt.Errorf("find the API server by the pod's service account: %w", err)
	}
	text, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
	if err != nil {
		return nil, "", fmt.Errorf("read the pod's namespace: %w", err)
	}
	return config, strings.TrimSpace(string(text)), nil
}

// Open makes a Store. It does not ask the API server anything yet.
func Open(config *rest.Config, namespace string) (*Store, error) {
	if namespace == "" {
		return nil, errors.New("open the store: a namespace is needed")
	}
	configMaps, err := newConfigMaps(config, namespace)
	if err != nil {
		return nil, fmt.Errorf("open the store in namespace %s: %w", namespace, err)
	}
	return &Store{configMaps: configMaps, namespace: namespace, chunk: chunkSize}, nil
}

// Object implements store.Store.
func (s *Store) Object(ctx context.Context, name store.Name) ([]byte, error) {
	if name.Kind.NamedByContent() {
		data, err := s.content(ctx, name.Kind, name.Hash)
		return data, s.explain(err, "read %s", name)
	}
	l, err := s.latest(ctx)
	if err != nil {
		return nil, s.explain(err, "read %s", name)
	}
	digest, ok := l.names[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, store.ErrNotFound)
	}
	data, err := s.content(ctx, name.Kind, digest)
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("%s is gone", objectName(name.Kind, digest)) // not ErrNotFound: latest says that there is one
	}
	return data, s.explain(err, "read %s", name)
}

// Latest implements store.Store.
func (s *Store) Latest(ctx context.Context) ([]byte, error) {
	l, err := s.latest(ctx)
	if err != nil {
		return nil, s.explain(err, "read latest")
	}
	if l.none() {
		return nil, fmt.Errorf("latest: %w", store.ErrNotFound)
	}
	return l.value, nil
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, objects []store.Object, old, new []byte) error {
	return s.explain(s.commit(ctx, objects, old, new), "commit")
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.configMaps.client.CloseIdleConnections()
	return nil
}

func (s *Store) explain(err error, what string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s in the ConfigMaps of namespace %s: %w", fmt.Sprintf(what, args...), s.namespace, err)
}

func (s *Store) commit(ctx context.Context, objects []store.Object, old, new []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(new) == 0 {
		return errors.New("latest would be empty")
	}
	for _, o := range objects { // their names are not asked for again
		if err := o.Name.Verify(o.Data); err != nil {
			return err
		}
	}
	current, err := s.latest(ctx)
	if err != nil {
		return err
	}
	if !current.is(old) {
		return store.ErrConflict
	}
	named := make(map[store.Name]digest)
	for _, o := range objects {
		content := digest(sha256.Sum256(o.Data))
		if !o.Name.Kind.NamedByContent() {
			named[o.Name] = content
		}
		if err := s.write(ctx, o.Name.Kind, content, o.Data); err != nil {
			return fmt.Errorf("write %s: %w", o.Name, err)
		}
	}
	return s.swap(ctx, current, current.next(new, named))
}

// swap replaces current by next, which follows it.
func (s *Store) swap(ctx context.Context, current, next *latest) error {
	err := s.replace(ctx, current, next)
	if err == nil {
		return nil
	}
	// A caller that went away no longer wants this commit, but the answer should still be right where that is to be had.
	settling, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		now, readErr := s.latest(settling)
		switch {
		case readErr != nil: // away; look again
		case now.made(next):
			return nil
		case !now.same(current):
			return store.ErrConflict
		case ctx.Err() != nil, certain(err) && !isRefusal(err, http.StatusConflict) && !isRefusal(err, http.StatusTooManyRequests):
			return err // and latest is as it was
		default:
			// As it was so far. To ask again is safe, since it takes the version just read, and the first request, wherever it is
			// now, takes an earlier one or the same: one of the two can succeed.
			if err = s.replace(settling, now, next); err == nil {
				return nil
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-settling.Done():
			timer.Stop()
			return fmt.Errorf("change latest: nobody can tell whether it was changed: %w", err)
		case <-timer.C:
		}
	}
}

// made says whether the commit that made next is in l's past.
func (l *latest) made(next *latest) bool {
	for _, c := range l.commits {
		if c == next.commits[0] {
			return true
		}
	}
	return false
}

// replace asks for one change of latest.
func (s *Store) replace(ctx context.Context, current, next *latest) error {
	next.version, next.uid = current.version, current.uid
	if current.none() {
		return s.configMaps.create(ctx, next.configMap())
	}
	return s.configMaps.update(ctx, next.configMap())
}

func (s *Store) latest(ctx context.Context) (*latest, error) {
	cm, err := s.configMaps.get(ctx, nameLatest)
	if isRefusal(err, http.StatusNotFound) {
		return new(latest), nil
	}
	if err != nil {
		return nil, err
	}
	l, err := parseLatest(cm)
	if err != nil {
		return nil, fmt.Errorf("ConfigMap %s is damaged: %w", nameLatest, err)
	}
	return l, nil
}

func objectName(kind store.Kind, content digest) string {
	return prefix + string(kind) + "-" + hex.EncodeToString(content[:])
}

func chunkName(kind store.Kind, content digest, i int) string {
	if i == 0 {
		return objectName(kind, content)
	}
	return objectName(kind, content) + "-" + strconv.Itoa(i)
}

// write keeps one object. Its first chunk is written last: where that is, the others are.
func (s *Store) write(ctx context.Context, kind store.Kind, content digest, data []byte) error {
	chunks := max(1, (len(data)+s.chunk-1)/s.chunk)
	if chunks > maxChunks {
		return fmt.Errorf("%d bytes, and a store keeps objects of %d at most", len(data), maxChunks*s.chunk)
	}
	for i := chunks - 1; i >= 0; i-- {
		chunk := &configMap{
			Metadata:   metadata{Name: chunkName(kind, content, i), Labels: labels},
			Immutable:  true,
			BinaryData: map[string][]byte{keyData: data[i*s.chunk : min(len(data), (i+1)*s.chunk)]},
			Data:       map[string]string{keyChunks: strconv.Itoa(chunks)},
		}
		if err := s.writeChunk(ctx, chunk); err != nil {
			return err
		}
	}
	return nil
}

// writeChunk finds what it would write there already where an earlier commit failed, or a manifest comes back.
func (s *Store) writeChunk(ctx context.Context, chunk *configMap) error {
	err := s.configMaps.create(ctx, chunk)
	if !isRefusal(err, http.StatusConflict) {
		return err
	}
	there, err := s.configMaps.get(ctx, chunk.Metadata.Name)
	if err != nil {
		return err
	}
	if !bytes.Equal(there.BinaryData[keyData], chunk.BinaryData[keyData]) || there.Data[keyChunks] != chunk.Data[keyChunks] {
		return fmt.Errorf("ConfigMap %s holds something else", chunk.Metadata.Name)
	}
	return nil
}

// content reads an object by its digest.
func (s *Store) content(ctx context.Context, kind store.Kind, content digest) ([]byte, error) {
	var data []byte
	for i, chunks := 0, 1; i < chunks; i++ {
		name := chunkName(kind, content, i)
		cm, err := s.configMaps.get(ctx, name)
		switch {
		case isRefusal(err, http.StatusNotFound) && i == 0:
			return nil, store.ErrNotFound
		case err != nil:
			return nil, err
		case i == 0:
			if chunks, err = strconv.Atoi(cm.Data[keyChunks]); err != nil || chunks < 1 || chunks > maxChunks {
				return nil, fmt.Errorf("ConfigMap %s has %.20q chunks, want 1 to %d", name, cm.Data[keyChunks], maxChunks)
			}
		}
		data = append(data, cm.BinaryData[keyData]...)
	}
	if sha256.Sum256(data) != content {
		return nil, fmt.Errorf("ConfigMap %s holds something else than its name says", objectName(kind, content))
	}
	return data, nil
}
