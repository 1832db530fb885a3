package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"

	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/tests/cluster"
)

var errCut = errors.New("the connection was cut")

// network is the way to the API server, on which something happens to one request of a Commit.
type network struct {
	mutex sync.Mutex
	news  sync.Cond // of seen and over
	over  bool
	seen  []string // method and name of what was asked since arm
	at    int      // the request that something happens to, from 1
	what  func(deliver func() (*http.Response, error)) (*http.Response, error)
	inner http.RoundTripper
}

// throughNetwork is the configuration of a client whose requests pass a network.
func throughNetwork(config *rest.Config) (*rest.Config, *network) {
	n := new(network)
	n.news.L = &n.mutex
	config = rest.CopyConfig(config)
	config.Wrap(func(inner http.RoundTripper) http.RoundTripper {
		n.inner = inner
		return n
	})
	return config, n
}

// arm makes something happen to the request number at from now on.
func (n *network) arm(at int, what func(deliver func() (*http.Response, error)) (*http.Response, error)) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.seen, n.at, n.what, n.over = nil, at, what, false
}

// await waits until so many requests were seen, or end is called.
func (n *network) await(requests int) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	for len(n.seen) < requests && !n.over {
		n.news.Wait()
	}
}

func (n *network) end() {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.over = true
	n.news.Broadcast()
}

// asked is what was asked since.
func (n *network) asked() []string {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	return slices.Clone(n.seen)
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	n.mutex.Lock()
	n.seen = append(n.seen, r.Method+" "+r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
	n.news.Broadcast()
	hit := len(n.seen) == n.at
	what := n.what
	n.mutex.Unlock()
	// What is delivered outlives a client that does not wait.
	r = r.Clone(context.WithoutCancel(r.Context()))
	deliver := func() (*http.Response, error) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
		defer cancel()
		resp, err := n.inner.RoundTrip(r.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return resp, err
	}
	if hit {
		return what(deliver)
	}
	return deliver()
}

// The ways in which a request fails while the API server lives.
func cutBefore(func() (*http.Response, error)) (*http.Response, error) { return nil, errCut }

func cutAfter(deliver func() (*http.Response, error)) (*http.Response, error) {
	if _, err := deliver(); err != nil {
		return nil, err
	}
	return nil, errCut
}

func gatewayTimeout(deliver func() (*http.Response, error)) (*http.Response, error) {
	if _, err := deliver(); err != nil {
		return nil, err
	}
	return answer(http.StatusGatewayTimeout, nil, strings.NewReader("timeout")), nil
}

// objectsOf are the objects of commit n: as many as a transition has.
func objectsOf(n int) []store.Object {
	manifest := manifestOf(fmt.Appendf(bytes.Repeat([]byte("m"), 1000), "%d", n))
	transition := fmt.Appendf(nil, "transition %d", n)
	hash := hashOf(transition)
	return []store.Object{
		manifest,
		{Name: store.Name{Kind: store.Transition, Hash: hash}, Data: transition},
		{Name: store.Name{Kind: store.Signatures, Hash: hash}, Data: fmt.Appendf(nil, "signatures %d", n)},
	}
}

// wantState checks that the store is at old or at new, and at new if that was answered, and that it can go on from there.
func wantState(t *testing.T, s *Store, answered error, old, new []byte, objects []store.Object) []byte {
	t.Helper()
	if errors.Is(answered, store.ErrConflict) {
		t.Fatal("a conflict was answered, and there is no other writer")
	}
	latest, err := s.Latest(t.Context())
	if errors.Is(err, store.ErrNotFound) && old == nil {
		latest, err = nil, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects { // also before latest leads there, an object is whole or is not there
		if data, err := s.Object(t.Context(), o.Name); !errors.Is(err, store.ErrNotFound) && (err != nil || !bytes.Equal(data, o.Data)) {
			t.Errorf("%s: %.20q, %v, want it or ErrNotFound", o.Name, data, err)
		}
	}
	switch {
	case bytes.Equal(latest, new):
		for _, o := range objects {
			if data, err := s.Object(t.Context(), o.Name); err != nil || !bytes.Equal(data, o.Data) {
				t.Errorf("%s, which latest leads to: %.20q, %v", o.Name, data, err)
			}
		}
	case !bytes.Equal(latest, old):
		t.Fatalf("latest is %q, want %q or %q", latest, old, new)
	case answered == nil:
		t.Fatalf("%q was answered, and latest is %q", new, latest)
	}
	return latest
}

// steps counts the requests of a Commit, so that something can happen to each.
func steps(t *testing.T, s *Store, n *network) int {
	t.Helper()
	n.arm(0, nil)
	if err := s.Commit(t.Context(), objectsOf(0), nil, []byte("0")); err != nil {
		t.Fatal(err)
	}
	asked := n.asked()
	if last := asked[len(asked)-1]; asked[0] != "GET coordinator-latest" || last != "POST configmaps" || len(asked) < 5 {
		t.Fatalf("a Commit asked for %q", asked)
	}
	return len(asked)
}

// Each request of a Commit fails once before the API server has it and once after. Only before latest is asked for does it stop
// the Commit; then the same Commit, made again, finds what the first one left.
func TestEachCutLeavesOldOrNew(t *testing.T) {
	c := cluster.Shared(t)
	for _, first := range []bool{true, false} {
		for name, fault := range map[string]func(func() (*http.Response, error)) (*http.Response, error){
			"before": cutBefore, "after": cutAfter, "5xx after": gatewayTimeout,
		} {
			t.Run(fmt.Sprintf("first %v, cut %s", first, name), func(t *testing.T) {
				config, namespace := account(t, c)
				config, n := throughNetwork(config)
				s := open(t, config, namespace)
				s.chunk = 400 // a manifest is three ConfigMaps
				last := steps(t, s, n)
				old := []byte("0")
				for at := 1; at <= last; at++ {
					if first {
						hostOf(t, c, namespace).remove(nameLatest)
						old = nil
					}
					new, objects := fmt.Appendf(nil, "%d", at), objectsOf(at)
					n.arm(at, fault)
					err := s.Commit(t.Context(), objects, old, new)
					asked := n.asked()
					if len(asked) < at {
						t.Fatalf("nothing happened at %d: %q", at, asked)
					}
					if at == last && err != nil {
						t.Errorf("what became of latest was to be found out: %v", err)
					}
					if at < last && err == nil {
						t.Errorf("the failure of %q went by", asked[at-1])
					}
					n.arm(0, nil)
					latest := wantState(t, s, err, old, new, objects)
					if !bytes.Equal(latest, new) {
						if err := s.Commit(t.Context(), objects, old, new); err != nil {
							t.Fatalf("the same again after %q: %v", asked, err)
						}
						wantState(t, s, nil, old, new, objects)
					}
					old = new
				}
			})
		}
	}
}

// A request that the network keeps for a while and then delivers changes latest once, or comes too late; whichever it is, what
// was answered is so.
func TestRequestDeliveredLate(t *testing.T) {
	c := cluster.Shared(t)
	for _, wait := range []int{0, 1, 2, 3} { // how many other requests pass it
		t.Run(fmt.Sprintf("after %d others", wait), func(t *testing.T) {
			config, namespace := account(t, c)
			config, n := throughNetwork(config)
			s := open(t, config, namespace)
			if err := s.Commit(t.Context(), nil, nil, []byte("old")); err != nil {
				t.Fatal(err)
			}
			var delivered sync.WaitGroup
			n.arm(2, func(deliver func() (*http.Response, error)) (*http.Response, error) {
				sent := len(n.asked())
				delivered.Go(func() {
					n.await(sent + wait)
					_, _ = deliver()
				})
				return nil, errCut
			})
			err := s.Commit(t.Context(), nil, []byte("old"), []byte("new"))
			n.end()
			delivered.Wait()
			if asked := n.asked(); asked[1] != "PUT coordinator-latest" {
				t.Fatalf("a Commit without objects asked for %q", asked)
			}
			if err != nil {
				t.Errorf("Commit: %v", err)
			}
			wantState(t, s, err, []byte("old"), []byte("new"), nil)
			l, err := s.latest(t.Context())
			if err != nil || len(l.commits) != 2 {
				t.Errorf("%d commits, %v, want 2", len(l.commits), err)
			}
		})
	}
}

// The answer to A's change is lost, or its request is; B commits before A looks. A's answer is what became of A's own commit.
func TestLostAnswerUnderAnothersCommit(t *testing.T) {
	c := cluster.Shared(t)
	for name, test := range map[string]struct {
		fault   func(func() (*http.Response, error)) (*http.Response, error)
		others  int
		current string
		want    error
	}{
		"A's was made, and one after it":     {cutAfter, 1, "A", nil},
		"A's was made, and many after it":    {cutAfter, maxCommits - 1, "A", nil},
		"A's was not, and B's was":           {cutBefore, 1, "old", store.ErrConflict},
		"A's was not, and many others' were": {cutBefore, 3, "old", store.ErrConflict},
	} {
		t.Run(name, func(t *testing.T) {
			config, namespace := account(t, c)
			a, n := throughNetwork(config)
			sa, sb := open(t, a, namespace), open(t, config, namespace)
			if err := sa.Commit(t.Context(), nil, nil, []byte("old")); err != nil {
				t.Fatal(err)
			}
			var others error
			n.arm(2, func(deliver func() (*http.Response, error)) (*http.Response, error) {
				resp, err := test.fault(deliver)
				current := test.current
				for i := range test.others {
					next := fmt.Sprintf("B %d", i)
					others = errors.Join(others, sb.Commit(context.Background(), nil, []byte(current), []byte(next)))
					current = next
				}
				return resp, err
			})
			err := sa.Commit(t.Context(), nil, []byte("old"), []byte("A"))
			if others != nil {
				t.Fatalf("the others' commits: %v", others)
			}
			if !errors.Is(err, test.want) || test.want == nil && err != nil {
				t.Errorf("A's Commit: %v, want %v", err, test.want)
			}
			latest, err := sa.Latest(t.Context())
			if want := fmt.Sprintf("B %d", test.others-1); err != nil || string(latest) != want {
				t.Errorf("latest is %q, %v, want %q", latest, err, want)
			}
		})
	}
}

// Two who read the same latest and then write: one wins, and what it wrote is there, also where it has the same name as the other's.
func TestOneOfTwoRacingClientsWins(t *testing.T) {
	c := cluster.Shared(t)
	for _, first := range []bool{true, false} {
		config, namespace := account(t, c)
		a, n := throughNetwork(config)
		sa, sb := open(t, a, namespace), open(t, config, namespace)
		old := []byte(nil)
		if !first {
			old = []byte("old")
			if err := sa.Commit(t.Context(), nil, nil, old); err != nil {
				t.Fatal(err)
			}
		}
		shares := func(whose string) []store.Object {
			return []store.Object{{Name: store.Name{Kind: store.Shares}, Data: []byte(whose)}}
		}
		var errB error
		n.arm(3, func(deliver func() (*http.Response, error)) (*http.Response, error) { // 1 reads latest, 2 writes the shares
			errB = sb.Commit(context.Background(), shares("B's"), old, []byte("B"))
			return deliver()
		})
		if err := sa.Commit(t.Context(), shares("A's"), old, []byte("A")); !errors.Is(err, store.ErrConflict) {
			t.Errorf("first %v: A, who was overtaken: %v, want ErrConflict", first, err)
		}
		if errB != nil {
			t.Errorf("first %v: B: %v", first, errB)
		}
		if latest, err := sa.Latest(t.Context()); err != nil || string(latest) != "B" {
			t.Errorf("latest is %q, %v", latest, err)
		}
		if data, err := sa.Object(t.Context(), shares("")[0].Name); err != nil || string(data) != "B's" {
			t.Errorf("the shares are %q, %v, want the winner's", data, err)
		}
	}
}

// Somebody who changes only what surrounds latest (an annotation, say) has not changed it.
func TestTouchedLatestIsNoConflict(t *testing.T) {
	c := cluster.Shared(t)
	config, namespace := account(t, c)
	config, n := throughNetwork(config)
	s := open(t, config, namespace)
	if err := s.Commit(t.Context(), nil, nil, []byte("old")); err != nil {
		t.Fatal(err)
	}
	n.arm(2, func(deliver func() (*http.Response, error)) (*http.Response, error) {
		c.MustKubectl(t, "", "-n", namespace, "annotate", "configmap", nameLatest, "touched=yes")
		return deliver()
	})
	if err := s.Commit(t.Context(), nil, []byte("old"), []byte("new")); err != nil {
		t.Errorf("Commit: %v", err)
	}
	wantState(t, s, nil, []byte("old"), []byte("new"), nil)
	// One that is made immutable is refused, and not for ever asked for.
	c.MustKubectl(t, "", "-n", namespace, "patch", "configmap", nameLatest, "--type=merge", "-p", `{"immutable":true}`)
	if err := s.Commit(t.Context(), nil, []byte("new"), []byte("newer")); !isRefusal(err, 422) || errors.Is(err, store.ErrConflict) ||
		strings.Contains(err.Error(), "nobody can tell") {
		t.Errorf("Commit over an immutable latest: %v, want 422", err)
	}
}

// A caller that goes away while latest is asked for is not told that all is well when it is not, nor the other way round.
func TestCallerGoesAwayDuringTheSwap(t *testing.T) {
	c := cluster.Shared(t)
	for name, test := range map[string]struct {
		fault func(func() (*http.Response, error)) (*http.Response, error)
		made  bool
	}{"after it": {cutAfter, true}, "before it": {cutBefore, false}} {
		config, namespace := account(t, c)
		config, n := throughNetwork(config)
		s := open(t, config, namespace)
		if err := s.Commit(t.Context(), nil, nil, []byte("old")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		n.arm(2, func(deliver func() (*http.Response, error)) (*http.Response, error) {
			defer cancel()
			return test.fault(deliver)
		})
		err := s.Commit(ctx, nil, []byte("old"), []byte("new"))
		if (err == nil) != test.made || errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
		latest, err := s.Latest(t.Context())
		if want := map[bool]string{true: "new", false: "old"}[test.made]; err != nil || string(latest) != want {
			t.Errorf("%s: latest is %q, %v, want %q", name, latest, err, want)
		}
	}
}

// The API server, or etcd beneath it, is killed at every step of a Commit, before and after it does what is asked, and
// comes back. The store is the old or the new state, what was answered is there, and the Commit can be made again.
func TestKilledAPIServerLeavesOldOrNew(t *testing.T) {
	c := cluster.Shared(t)
	config, namespace := account(t, c)
	config, n := throughNetwork(config)
	s := open(t, config, namespace)
	last := steps(t, s, n)
	old, commit := []byte("0"), 0
	killAt := func(at int, after bool, what string, kill func()) {
		t.Helper()
		commit++
		new, objects := fmt.Appendf(nil, "%d", commit), objectsOf(commit)
		restarted := make(chan error, 1)
		n.arm(at, func(deliver func() (*http.Response, error)) (*http.Response, error) {
			var resp *http.Response
			var err error
			if after {
				resp, err = deliver()
			}
			kill()
			go func() { restarted <- c.Restart() }()
			if !after {
				resp, err = deliver()
			}
			if after && err == nil {
				err = errCut // it did not come through any more
				resp = nil
			}
			return resp, err
		})
		answered := s.Commit(t.Context(), objects, old, new)
		asked := n.asked()
		n.arm(0, nil)
		if len(asked) < at {
			t.Fatalf("nothing was killed at %d: %q", at, asked)
		}
		if err := <-restarted; err != nil {
			t.Fatal(err)
		}
		latest := wantState(t, s, answered, old, new, objects)
		t.Logf("%s killed at %d of %d (%s), after it was done: %v: answered %v, latest %q (was %q)", what, at, last, asked[at-1], after, answered, latest, old)
		if !bytes.Equal(latest, new) {
			if err := s.Commit(t.Context(), objects, old, new); err != nil {
				t.Fatalf("the same again: %v", err)
			}
			wantState(t, s, nil, old, new, objects)
		}
		old = new
	}
	for at := 1; at <= last; at++ {
		killAt(at, false, "API server", c.KillAPIServer)
		killAt(at, true, "API server", c.KillAPIServer)
	}
	killAt(last, false, "etcd", c.KillEtcd)
	killAt(last, true, "etcd", c.KillEtcd)
}

// An API server that is away is no empty store.
func TestAPIServerAwayIsNotNotFound(t *testing.T) {
	c := cluster.Shared(t)
	config, namespace := account(t, c)
	s := open(t, config, namespace)
	o := objectsOf(1)
	if err := s.Commit(t.Context(), o, nil, []byte("old")); err != nil {
		t.Fatal(err)
	}
	c.KillAPIServer()
	_, latestErr := s.Latest(t.Context())
	_, objectErr := s.Object(t.Context(), o[0].Name)
	_, namedErr := s.Object(t.Context(), o[2].Name)
	commitErr := s.Commit(t.Context(), nil, []byte("old"), []byte("new"))
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"Latest": latestErr, "Object": objectErr, "named Object": namedErr, "Commit": commitErr} {
		if err == nil || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) {
			t.Errorf("%s while the API server is away: %v, want a plain error", what, err)
		}
	}
	wantState(t, s, commitErr, []byte("old"), []byte("new"), nil)
}

// A failure to settle in time is said to be one.
func TestUnknownOutcomeIsSaidToBeUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := roundTripper(func(*http.Request) (*http.Response, error) { return nil, errCut })
		s := open(t, &rest.Config{Host: "http://127.0.0.1:1", WrapTransport: func(http.RoundTripper) http.RoundTripper { return dead }}, "test")
		start := time.Now()
		old := &latest{version: "1", uid: "u", value: []byte("old")}
		err := s.swap(t.Context(), old, old.next([]byte("new"), nil))
		if err == nil || !strings.Contains(err.Error(), "nobody can tell") || errors.Is(err, store.ErrConflict) {
			t.Errorf("swap: %v", err)
		}
		if took := time.Since(start); took != settleTimeout {
			t.Errorf("it took %v, want %v", took, settleTimeout)
		}
	})
}
