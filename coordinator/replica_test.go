package coordinator_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/coordinator/store/storetest"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/tests/netlab"
)

// shared is a store in memory, for several replicas.
type shared struct {
	mutex   sync.Mutex
	objects map[store.Name][]byte
	latest  []byte
}

func newShared() *shared { return &shared{objects: make(map[store.Name][]byte)} }

func (s *shared) Object(_ context.Context, name store.Name) ([]byte, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	data, ok := s.objects[name]
	if !ok {
		return nil, store.ErrNotFound
	}
	return bytes.Clone(data), name.Verify(data)
}

func (s *shared) Latest(context.Context) ([]byte, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	switch {
	case s.latest == nil:
		return nil, store.ErrNotFound
	case len(s.latest) == 0:
		return nil, errors.New("latest is empty")
	}
	return bytes.Clone(s.latest), nil
}

func (s *shared) Commit(ctx context.Context, objects []store.Object, old, new []byte) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(new) == 0 || s.latest != nil && len(s.latest) == 0 {
		return errors.New("latest is or would be empty")
	}
	if (s.latest == nil) != (old == nil) || !bytes.Equal(s.latest, old) {
		return store.ErrConflict
	}
	for _, o := range objects {
		s.objects[o.Name] = bytes.Clone(o.Data)
	}
	s.latest = bytes.Clone(new)
	return nil
}

func (s *shared) Close() error { return nil }

// copy is what a host keeps of a store.
func (s *shared) copy() *shared {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return &shared{objects: maps.Clone(s.objects), latest: bytes.Clone(s.latest)}
}

func TestTheStoreOfTheseTestsIsAStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Subject {
		s := newShared()
		the := func() store.Store { return s }
		return storetest.Subject{
			Store: the, Reopen: the,
			ChangeObject: func(name store.Name, data []byte) { s.objects[name] = data },
			ChangeLatest: func(value []byte) { s.latest = append([]byte{}, value...) },
		}
	})
}

// view is a replica's way to a store, which the host owns.
type view struct {
	to       atomic.Pointer[shared]
	down     atomic.Bool
	commit   func() error // before a commit reaches the store
	answered func() error // after it did
}

var errDown = errors.New("no route to the store")

func (v *view) Object(ctx context.Context, name store.Name) ([]byte, error) {
	if v.down.Load() {
		return nil, errDown
	}
	return v.to.Load().Object(ctx, name)
}

func (v *view) Latest(ctx context.Context) ([]byte, error) {
	if v.down.Load() {
		return nil, errDown
	}
	return v.to.Load().Latest(ctx)
}

func (v *view) Commit(ctx context.Context, objects []store.Object, old, new []byte) error {
	if v.down.Load() {
		return errDown
	}
	if v.commit != nil {
		if err := v.commit(); err != nil {
			return err
		}
	}
	if err := v.to.Load().Commit(ctx, objects, old, new); err != nil {
		return err
	}
	if v.answered != nil {
		return v.answered()
	}
	return nil
}

func (v *view) Close() error { return nil }

// replicas are Coordinators on SEV-SNP that share a store, each with an address of its own on the loopback.
type replicas struct {
	store     *shared
	owner     *ecdsa.PrivateKey
	hardware  hardware
	running   []*replica
	mutex     sync.Mutex
	addresses []string // where peers are looked for
}

// peers are all addresses, a replica's own among them.
func (rs *replicas) peers(context.Context) ([]string, error) {
	rs.mutex.Lock()
	defer rs.mutex.Unlock()
	return slices.Clone(rs.addresses), nil
}

// move changes where a replica is looked for.
func (rs *replicas) move(i int, address string) (before string) {
	rs.mutex.Lock()
	defer rs.mutex.Unlock()
	before, rs.addresses[i] = rs.addresses[i], address
	return before
}

// replica is one process's life.
type replica struct {
	*fixture
	view *view
	stop func()
}

func newReplicas(t *testing.T, n int) *replicas {
	t.Helper()
	return newReplicasOn(t, "SNP", n)
}

func newReplicasOn(t *testing.T, platform string, n int) *replicas {
	t.Helper()
	rs := &replicas{
		store: newShared(), owner: newKey(t, elliptic.P256()), hardware: platforms(t)[platform], running: make([]*replica, n),
	}
	rs.addresses = slices.Repeat([]string{"127.0.0.1:0"}, n)
	for i := range n {
		rs.start(t, i)
	}
	return rs
}

// start begins the life of number i, at the address that it had before if nobody took that meanwhile.
func (rs *replicas) start(t *testing.T, i int, options ...option) *replica {
	t.Helper()
	cache, err := collateral.New(collateral.Config{Transport: rs.hardware.vendor})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close() })
	r := &replica{fixture: &fixture{log: &netlab.Log{}}, view: new(view)}
	r.view.to.Store(rs.store)
	listener, err := net.Listen("tcp", rs.move(i, "127.0.0.1:9"))
	if err != nil {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		t.Fatal(err)
	}
	rs.move(i, listener.Addr().String())
	cfg := coordinator.Config{
		Store: r.view, Issuer: rs.hardware.machine(coordPolicy), Collateral: cache, Log: jsonLog(r.log), Peers: rs.peers,
	}
	rs.hardware.roots(&cfg)
	for _, o := range options {
		o(&cfg)
	}
	r.store = cfg.Store
	if r.coordinator, err = coordinator.New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if r.Client, err = api.New(listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.coordinator.Serve(ctx, listener) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() {
		r.stop()
		r.coordinator.Reveal(&secrets)
		keepsSecrets(t, "a replica's log", []byte(r.log.String()))
	})
	rs.running[i] = r
	return r
}

// restart is a crash: what was in memory is gone.
func (rs *replicas) restart(t *testing.T, i int, options ...option) *replica {
	t.Helper()
	rs.running[i].stop()
	return rs.start(t, i, options...)
}

// manifest is one for SEV-SNP, of the owner of these replicas.
func (rs *replicas) manifest(t *testing.T, alter ...func(*manifest.Manifest)) []byte {
	t.Helper()
	return newManifest(t, append([]func(*manifest.Manifest){
		ownedBy(t, 1, rs.owner), func(m *manifest.Manifest) { m.ReferenceValues = rs.hardware.values },
	}, alter...)...)
}

func validFor(t *testing.T, hours int) func(*manifest.Manifest) {
	return func(m *manifest.Manifest) {
		var err error
		if m.CertificateValidity, err = manifest.NewValidity(time.Duration(hours) * time.Hour); err != nil {
			t.Fatal(err)
		}
	}
}

// request is for a manifest after previous, signed.
func (rs *replicas) request(t *testing.T, text []byte, previous [32]byte) api.SetRequest {
	t.Helper()
	return api.SetRequest{
		Manifest: text, Previous: previous[:], Signatures: sign(t, manifest.TransitionHash(text, previous), rs.owner),
	}
}

func snpPod(t *testing.T, policy attestation.PolicyHash) *pod {
	t.Helper()
	p := newPod(t, policy)
	p.machine.Platform = attestation.SNP
	return p
}

// eventually waits for a condition. The time is for a busy machine; a second or two is usual.
func eventually(t *testing.T, what string, logs *netlab.Log, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in a minute: %s\n%s", what, logs)
		}
	}
}

// health asks a route that tells the state.
func (r *replica) health(t *testing.T, path string) (status int, state, detail string) {
	t.Helper()
	resp, err := http.Get(r.Client.String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var said struct {
		api.Health
		Code string
	}
	if err := json.Unmarshal(body, &said); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return resp.StatusCode, said.State + said.Code, said.Detail
}

func (r *replica) await(t *testing.T, state string) {
	t.Helper()
	eventually(t, "the state "+state, r.log, func() bool {
		_, got, _ := r.health(t, api.PathHealth)
		return got == state
	})
}

// at waits until the replica serves a transition.
func (r *replica) at(t *testing.T, transition []byte) {
	t.Helper()
	eventually(t, "another transition", r.log, func() bool {
		resp, err := r.Attest(t.Context(), random(t, api.NonceSize))
		if err != nil {
			return false
		}
		hash := resp.TransitionHash()
		return bytes.Equal(hash[:], transition)
	})
}

func (r *replica) says(t *testing.T, message string) map[string]any {
	t.Helper()
	eventually(t, "the log line "+message, r.log, func() bool { return len(r.log.Entries(message)) > 0 })
	return last(t, r.log, message)
}

func (r *replica) metric(t *testing.T, line string) {
	t.Helper()
	if text := get(t, r.Client.String()+api.PathMetrics); !strings.Contains(text, line+"\n") {
		t.Errorf("/metrics lacks %s", line)
	}
}

// Three replicas are one authority, as long as one of them lives.
func TestReplicasAreOneAuthorityWhileOneOfThemLives(t *testing.T) {
	rs := newReplicas(t, 3)
	set, err := rs.running[0].Set(t.Context(), rs.request(t, rs.manifest(t), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs.running {
		r.at(t, set.TransitionHash)
	}

	// From here on some replica issues a certificate at any moment, of the mesh CA that is in force. While a manifest is new,
	// the one of before is still in force where it has not arrived.
	var authorities atomic.Pointer[[][]byte]
	authorities.Store(&[][]byte{set.MeshCA})
	watched, stopWatching := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer stopWatching()
	rounds := 0
	watching.Go(func() {
		p := snpPod(t, webPolicy)
		for watched.Err() == nil {
			before := *authorities.Load()
			var failures []error
			addresses, _ := rs.peers(watched)
			issued := slices.ContainsFunc(addresses, func(address string) bool {
				c, err := api.New(address)
				if err != nil {
					t.Error(err)
					return false
				}
				nonce, err := c.Nonce(watched)
				if err == nil {
					var resp *api.CertificateResponse
					if resp, err = c.Certificate(watched, *p.request(t, nonce)); err == nil {
						if !slices.ContainsFunc(slices.Concat(before, *authorities.Load()), func(ca []byte) bool { return bytes.Equal(ca, resp.MeshCA) }) {
							t.Error("a certificate is of a mesh CA that is not in force")
						}
						return true
					}
				}
				failures = append(failures, err)
				return false
			})
			if !issued && watched.Err() == nil {
				t.Errorf("nobody issues certificates: %v", errors.Join(failures...))
				return
			}
			rounds++
		}
	})

	// One root CA, to the byte, one mesh CA, one secret; a nonce of one is good at the others.
	var secrets []string
	for i, r := range rs.running {
		p := snpPod(t, dbPolicy)
		req := p.request(t, rs.running[(i+1)%3].freshNonce(t))
		resp, err := r.Certificate(t.Context(), *req)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(resp.MeshCA, set.MeshCA) || !bytes.Equal(resp.RootCA, set.RootCA) {
			t.Errorf("replica %d is another authority", i)
		}
		secret, err := resp.Open(req, p.hpkeKey)
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, string(secret.Reveal()))
	}
	if secrets[0] != secrets[1] || secrets[1] != secrets[2] || len(secrets[0]) != 32 {
		t.Error("the replicas hand out different workload secrets")
	}

	// A manifest that is set at one reaches the others, and their pods' renewals find out.
	next, err := rs.running[2].Set(t.Context(), rs.request(t, rs.manifest(t, validFor(t, 24)), [32]byte(set.TransitionHash)))
	if err != nil {
		t.Fatal(err)
	}
	authorities.Store(&[][]byte{set.MeshCA, next.MeshCA})
	for _, r := range rs.running {
		r.at(t, next.TransitionHash)
	}
	authorities.Store(&[][]byte{next.MeshCA})

	// Two of three die and come back, each time others.
	for _, dead := range [][]int{{0, 1}, {1, 2}, {2, 0}} {
		for _, i := range dead {
			rs.running[i].stop()
		}
		for _, i := range dead {
			began := time.Now()
			r := rs.start(t, i)
			if _, state, _ := r.health(t, api.PathHealth); state == "no-manifest" {
				t.Error("a restarted replica says that it were fresh")
			}
			r.at(t, next.TransitionHash)
			took := time.Since(began)
			t.Logf("replica %d served again %v after its restart", i, took.Round(time.Millisecond))
			if took > 10*time.Second {
				t.Errorf("replica %d took %v", i, took)
			}
			_, resp, _ := r.certify(t, snpPod(t, webPolicy))
			if !bytes.Equal(resp.MeshCA, next.MeshCA) || !bytes.Equal(resp.RootCA, next.RootCA) {
				t.Errorf("replica %d came back as another authority", i)
			}
			last(t, r.log, "recovered from a peer")
		}
	}
	stopWatching()
	watching.Wait()
	t.Logf("%d certificates meanwhile, and never none", rounds)
	rs.running[0].metric(t, `portcullis_state{state="active"} 1`)
	rs.running[0].metric(t, `portcullis_state{state="needs-recovery"} 0`)
	rs.running[0].metric(t, `portcullis_peers_asked_total{outcome="ok"} 1`)
}

func TestReplicasOnTDXRecoverFromEachOther(t *testing.T) {
	t.Parallel()
	rs := newReplicasOn(t, "TDX", 2)
	set, err := rs.running[0].Set(t.Context(), rs.request(t, rs.manifest(t), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{1, 0} {
		r := rs.restart(t, i)
		r.at(t, set.TransitionHash)
		resp, err := r.Attest(t.Context(), random(t, api.NonceSize))
		if err != nil || !bytes.Equal(resp.MeshCA, set.MeshCA) {
			t.Errorf("replica %d is another authority: %v", i, err)
		}
	}
	// Another image under the same policy is none of them.
	rs.running[1].stop()
	stranger := rs.hardware
	r := rs.start(t, 1, func(c *coordinator.Config) { c.Issuer = stranger.stranger })
	eventually(t, "the refusal", r.log, func() bool { return len(r.log.Entries("no state from this peer")) > 1 })
	if field := rs.running[0].says(t, "peer refused")["field"]; field != stranger.field {
		t.Errorf("field %v, want %s", field, stranger.field)
	}
}

// Whoever loses a race is told so, whether the two are fresh or not.
func TestOneOfTwoReplicasRacingWithSetWins(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 2)
	var previous [32]byte
	for round := range 4 {
		var wg sync.WaitGroup
		answers, errs := make([]*api.SetResponse, 2), make([]error, 2)
		for i, r := range rs.running {
			request := rs.request(t, rs.manifest(t, validFor(t, 2+2*round+i)), previous)
			wg.Go(func() { answers[i], errs[i] = r.Set(t.Context(), request) })
		}
		wg.Wait()
		winner := slices.Index(errs, nil)
		if winner < 0 {
			t.Fatalf("nobody won: %v", errs)
		}
		wantCode(t, errs[1-winner], api.CodeConflict)
		previous = [32]byte(answers[winner].TransitionHash)
		for _, r := range rs.running {
			r.at(t, answers[winner].TransitionHash)
			_, resp, _ := r.certify(t, snpPod(t, webPolicy))
			if !bytes.Equal(resp.MeshCA, answers[winner].MeshCA) {
				t.Error("the loser has another mesh CA")
			}
		}
	}
}

// The losers of a race that was over before they looked are told the same, not to wait.
func TestSetAtAReplicaThatWasOvertaken(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 2)
	nobody := func(c *coordinator.Config) { c.Peers = nil }
	late := rs.restart(t, 1, nobody)
	first, err := rs.running[0].Set(t.Context(), rs.request(t, rs.manifest(t), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	text := rs.manifest(t, validFor(t, 7))
	_, err = late.Set(t.Context(), rs.request(t, text, [32]byte{}))
	wantCode(t, err, api.CodeConflict)
	_, err = late.Set(t.Context(), rs.request(t, text, [32]byte(first.TransitionHash)))
	wantCode(t, err, api.CodeNeedsPeer)
}

// A replica that another one overtook certifies nobody under the manifest that is over, nor says that it were in force.
func TestOvertakenReplicaStopsServing(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 2)
	owners := seedshareOwners(t, 1)
	shareOwners := sharedAmong(t, 1, owners...)
	text := rs.manifest(t, shareOwners)
	first, err := rs.running[0].Set(t.Context(), rs.request(t, text, [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	rs.running[1].at(t, first.TransitionHash)
	lonely := rs.restart(t, 0)
	lonely.at(t, first.TransitionHash)
	// From here on number 1 alone knows what it makes, and nobody can ask it.
	hidden := rs.move(1, "127.0.0.1:9")
	next, err := rs.running[1].Set(t.Context(), rs.request(t, rs.manifest(t, shareOwners, validFor(t, 5)), [32]byte(first.TransitionHash)))
	if err != nil {
		t.Fatal(err)
	}
	req := snpPod(t, webPolicy).request(t, rs.running[1].freshNonce(t))
	lonely.await(t, "needs-peer")
	for name, err := range map[string]error{
		"attest":      second(lonely.Attest(t.Context(), random(t, api.NonceSize))),
		"nonce":       second(lonely.Nonce(t.Context())),
		"certificate": second(lonely.Certificate(t.Context(), *req)),
		"set":         second(lonely.Set(t.Context(), rs.request(t, text, [32]byte(next.TransitionHash)))),
		"peer":        second(lonely.PeerState(t.Context(), api.PeerRequest{Nonce: req.Nonce, TransitionHash: first.TransitionHash, HPKEKey: req.HPKEKey, Evidence: req.Evidence})),
	} {
		if refused := wantCode(t, err, api.CodeNeedsPeer); !refused.Temporary() || refused.RetryAfter <= 0 {
			t.Errorf("%s: %v is not to be asked again", name, refused)
		}
	}
	if status, code, _ := lonely.health(t, api.PathReady); status != http.StatusServiceUnavailable || code != "needs-peer" {
		t.Errorf("/readyz: %d %s", status, code)
	}
	lonely.metric(t, `portcullis_state{state="needs-peer"} 1`)
	eventually(t, "a peer that does not answer", lonely.log, func() bool {
		return slices.ContainsFunc(lonely.log.Entries("no state from this peer"), func(e map[string]any) bool {
			return e["outcome"] == "unreachable" && e["peer"] == "127.0.0.1:9"
		})
	})
	rs.move(1, hidden)
	lonely.at(t, next.TransitionHash)
}

// Where nobody is left who knows the newest manifest's mesh CA, its seed-share owners make another one, and whoever
// comes back follows them.
func TestOwnersRecoverAnOvertakenReplica(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 2)
	owners := seedshareOwners(t, 1)
	shareOwners := sharedAmong(t, 1, owners...)
	first, err := rs.running[0].Set(t.Context(), rs.request(t, rs.manifest(t, shareOwners), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	rs.running[1].at(t, first.TransitionHash)
	alone := rs.restart(t, 0, func(c *coordinator.Config) { // it asks nobody after this once
		ask := c.Peers
		var asked atomic.Bool
		c.Peers = func(ctx context.Context) ([]string, error) {
			if asked.Swap(true) {
				return nil, errors.New("no such host")
			}
			return ask(ctx)
		}
	})
	alone.at(t, first.TransitionHash)
	latest := rs.manifest(t, shareOwners, validFor(t, 5))
	next, err := rs.running[1].Set(t.Context(), rs.request(t, latest, [32]byte(first.TransitionHash)))
	if err != nil {
		t.Fatal(err)
	}
	sealed := rs.sealed(t, rs.running[1])
	rs.running[1].stop()
	alone.await(t, "needs-peer")
	v := rs.verifyRecovery(t, alone, latest)
	got, err := alone.Recover(t.Context(), *share(t, sealed[0], owners[0], v))
	if err != nil || !got.Recovered {
		t.Fatalf("%+v, %v\n%s", got, err, alone.log)
	}
	_, resp, _ := alone.certify(t, snpPod(t, webPolicy))
	if bytes.Equal(resp.MeshCA, next.MeshCA) || !bytes.Equal(resp.TransitionHash, next.TransitionHash) {
		t.Error("the recovered replica has the mesh CA of the dead one, or another manifest")
	}
	back := rs.start(t, 1)
	back.at(t, next.TransitionHash)
	if _, theirs, _ := back.certify(t, snpPod(t, webPolicy)); !bytes.Equal(theirs.MeshCA, resp.MeshCA) {
		t.Error("there are two mesh CAs")
	}
}

// sealed are the seed's shares as a replica shows them.
func (rs *replicas) sealed(t *testing.T, r *replica) []api.SealedShare {
	t.Helper()
	resp, err := r.Attest(t.Context(), random(t, api.NonceSize))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Shares
}

// trust is what verifying takes besides a manifest.
func (rs *replicas) trust(t *testing.T) manifest.ValidatorOptions {
	t.Helper()
	cache, err := collateral.New(collateral.Config{Transport: rs.hardware.vendor})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close() })
	trust := rs.hardware.trust
	trust.Collateral = cache
	return trust
}

func (rs *replicas) verifyRecovery(t *testing.T, r *replica, text []byte) *api.Verified {
	t.Helper()
	nonce := random(t, api.NonceSize)
	resp, err := r.AttestRecovery(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	v, err := api.VerifyRecovery(t.Context(), resp, nonce, parse(t, text), rs.trust(t))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// All replicas died, and owners recover two of them at the same moment: one of them makes the mesh CA, and the other takes it
// over, whichever way the race goes.
func TestOwnersWhoRecoverTwoReplicasAtOnceMakeOneMeshCA(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]struct {
		late bool
		want []api.Code
	}{
		"as it comes":         {want: []api.Code{"", api.CodeConflict, api.CodeNoRecovery, api.CodeBadNonce}},
		"both signed already": {late: true, want: []api.Code{api.CodeConflict}},
	} {
		t.Run(name, func(t *testing.T) {
			rs := newReplicas(t, 2)
			owners := seedshareOwners(t, 1)
			text := rs.manifest(t, sharedAmong(t, 1, owners...))
			set, err := rs.running[0].Set(t.Context(), rs.request(t, text, [32]byte{}))
			if err != nil {
				t.Fatal(err)
			}
			sealed := rs.sealed(t, rs.running[0])
			for _, r := range rs.running {
				r.stop()
			}
			committed, committing := make(chan struct{}), make(chan struct{})
			for i := range rs.running {
				r := rs.start(t, i)
				if options.late && i == 1 {
					r.view.commit = sync.OnceValue(func() error {
						close(committing)
						<-committed
						return nil
					})
				}
			}
			requests := make([]*api.RecoverRequest, 2)
			for i, r := range rs.running {
				requests[i] = share(t, sealed[0], owners[0], rs.verifyRecovery(t, r, text))
			}
			answers, errs := make([]*api.RecoverResponse, 2), make([]error, 2)
			var wg sync.WaitGroup
			for _, i := range []int{1, 0} {
				wg.Go(func() { answers[i], errs[i] = rs.running[i].Recover(t.Context(), *requests[i]) })
				if options.late && i == 1 {
					<-committing
				}
				if options.late && i == 0 {
					wg.Go(func() {
						rs.running[0].says(t, "recovered")
						close(committed)
					})
				}
			}
			wg.Wait()
			won := 0
			for i, answer := range answers {
				if errs[i] == nil && answer.Recovered {
					won++
				}
			}
			if won != 1 {
				t.Fatalf("%d replicas say that their owner recovered them: %v", won, errs)
			}
			for _, err := range errs {
				if refused, ok := errors.AsType[*api.Error](err); ok && !slices.Contains(options.want, refused.Code) {
					t.Errorf("the other owner is told %v", refused)
				}
			}
			var authorities [][]byte
			for _, r := range rs.running {
				r.at(t, set.TransitionHash)
				_, resp, _ := r.certify(t, snpPod(t, webPolicy))
				authorities = append(authorities, resp.MeshCA)
			}
			if !bytes.Equal(authorities[0], authorities[1]) || bytes.Equal(authorities[0], set.MeshCA) {
				t.Error("there are two mesh CAs, or the one of before")
			}
		})
	}
}

// The store did what it was asked for, and the answer was lost: the owner who set the manifest is told that it is in force.
func TestCommitWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 1)
	r := rs.running[0]
	r.view.answered = func() error { return errors.New("the connection broke") }
	set, err := r.Set(t.Context(), rs.request(t, rs.manifest(t), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	r.at(t, set.TransitionHash)

	// The store is away for longer than the owner waits. What it did is found when it is back.
	text := rs.manifest(t, validFor(t, 3))
	r.view.answered = func() error {
		r.view.down.Store(true)
		return errors.New("the connection broke")
	}
	_, err = r.Set(t.Context(), rs.request(t, text, [32]byte(set.TransitionHash)))
	wantCode(t, err, api.CodeInternal)
	_, resp, _ := r.certify(t, snpPod(t, webPolicy)) // nobody is left waiting
	if !bytes.Equal(resp.MeshCA, set.MeshCA) {
		t.Error("certified by a mesh CA that the store may not name")
	}
	_, err = r.Set(t.Context(), rs.request(t, text, [32]byte(set.TransitionHash)))
	wantCode(t, err, api.CodeUnavailable)
	r.says(t, "cannot follow the store; what is served stays as it is")
	r.view.down.Store(false)
	next := manifest.TransitionHash(text, [32]byte(set.TransitionHash))
	r.at(t, next[:])
	r.says(t, "a change that the store did not confirm has arrived there")
	r.certify(t, snpPod(t, webPolicy))
}

// Without its store a replica serves what it knows, and takes no manifest.
func TestReplicaWithoutItsStoreGoesOnServing(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 2)
	set, err := rs.running[0].Set(t.Context(), rs.request(t, rs.manifest(t), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	r := rs.running[1]
	r.at(t, set.TransitionHash)
	r.view.down.Store(true)
	r.says(t, "cannot follow the store; what is served stays as it is")
	r.certify(t, snpPod(t, webPolicy))
	_, err = r.Set(t.Context(), rs.request(t, rs.manifest(t, validFor(t, 3)), [32]byte(set.TransitionHash)))
	wantCode(t, err, api.CodeUnavailable)
	if status, state, _ := r.health(t, api.PathReady); status != http.StatusOK || state != "active" {
		t.Errorf("/readyz: %d %s", status, state)
	}
}

// What a mesh CA signed for the next one before its key was forgotten is handed on with the state: any replica answers the pods of
// before, and has the new ones accept them.
func TestReplicasShareTheOverlapOfTwoManifests(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 2)
	within := succeededWithin(t, time.Hour)
	first, err := rs.running[0].Set(t.Context(), rs.request(t, rs.manifest(t, within), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	rs.running[1].at(t, first.TransitionHash)
	next, err := rs.running[1].Set(t.Context(), rs.request(t, rs.manifest(t, within, validFor(t, 5)), [32]byte(first.TransitionHash)))
	if err != nil {
		t.Fatal(err)
	}
	made, err := rs.running[1].Successor(t.Context(), hashOf(first.MeshCA))
	if err != nil || len(made) == 0 {
		t.Fatalf("no cross-certificate where the manifest was set: %v", err)
	}
	see := func(r *replica) {
		t.Helper()
		r.at(t, next.TransitionHash)
		if got, err := r.Successor(t.Context(), hashOf(first.MeshCA)); err != nil || !bytes.Equal(got, made) {
			t.Errorf("a replica has another cross-certificate, or none: %v", err)
		}
		if _, resp, _ := r.certify(t, snpPod(t, webPolicy)); !bytes.Equal(resp.Predecessor, first.MeshCA) {
			t.Error("a replica has its pods accept no pods of the manifest before")
		}
	}
	see(rs.running[0])
	rs.running[1].stop()
	see(rs.start(t, 1))
}
