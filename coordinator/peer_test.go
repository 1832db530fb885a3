package coordinator_test

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/hpke"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret"
	"portcullis.dev/portcullis/tests/simtee"
)

// asker is a replica that asks for the state as it should, where a test does not alter it.
type asker struct {
	issuer attestation.Issuer
	key    hpke.PrivateKey
}

func newAsker(t *testing.T, issuer attestation.Issuer) *asker {
	t.Helper()
	key, err := api.NewHPKEKey()
	if err != nil {
		t.Fatal(err)
	}
	secrets.AddHPKE("a replica's HPKE key", key)
	return &asker{issuer, key}
}

// snpMachine is a guest of SEV-SNP.
func snpMachine(t *testing.T, m simtee.Measurement, policy attestation.PolicyHash) *simtee.Machine {
	t.Helper()
	machine := world(t).Machine(m, policy)
	machine.Platform = attestation.SNP
	return machine
}

func (a *asker) request(t *testing.T, nonce, transition []byte) *api.PeerRequest {
	t.Helper()
	req := &api.PeerRequest{Nonce: nonce, TransitionHash: transition, HPKEKey: a.key.PublicKey().Bytes()}
	a.attest(t, req)
	return req
}

func (a *asker) attest(t *testing.T, req *api.PeerRequest) {
	t.Helper()
	var err error
	if req.Evidence, err = a.issuer.Issue(t.Context(), req.ReportData()); err != nil {
		t.Fatal(err)
	}
}

// state is what a replica gives to another one, in clear: a test has a coordinator's evidence, which no host has.
func (r *replica) state(t *testing.T, transition []byte) secret.Bytes {
	t.Helper()
	a := newAsker(t, snpMachine(t, measurement, coordPolicy))
	req := a.request(t, r.freshNonce(t), transition)
	resp, err := r.PeerState(t.Context(), *req)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.log)
	}
	state, err := resp.Open(req, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// refusedPeer is a request for the state that must fail. It returns what the giver's log says.
func (r *replica) refusedPeer(t *testing.T, req *api.PeerRequest, code api.Code) map[string]any {
	t.Helper()
	resp, err := r.PeerState(t.Context(), *req)
	if err == nil {
		t.Fatalf("the state was given: %d bytes", len(resp.Sealed))
	}
	wantCode(t, err, code)
	entry := last(t, r.log, "peer refused")
	if entry["code"] != string(code) {
		t.Errorf("log %v", entry)
	}
	return entry
}

// refusedEvidence is refusedPeer for evidence with a field that is not acceptable.
func (r *replica) refusedEvidence(t *testing.T, issuer attestation.Issuer, transition []byte, field string) {
	t.Helper()
	req := newAsker(t, issuer).request(t, r.freshNonce(t), transition)
	if entry := r.refusedPeer(t, req, api.CodeEvidenceRejected); entry["field"] != field {
		t.Errorf("log %v, want the field %s", entry, field)
	}
	if len(r.log.Entries("gave the state to another replica")) > 0 {
		t.Error("the log says that the state was given")
	}
}

// active is one replica with its first manifest.
func active(t *testing.T, alter ...func(*manifest.Manifest)) (*replicas, *replica, *api.SetResponse) {
	t.Helper()
	rs := newReplicas(t, 1)
	set, err := rs.running[0].Set(t.Context(), rs.request(t, rs.manifest(t, alter...), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	return rs, rs.running[0], set
}

func TestPeerWithAnotherMeasurement(t *testing.T) {
	t.Parallel()
	_, r, set := active(t)
	r.refusedEvidence(t, snpMachine(t, simtee.Measurement{6, 6, 6}, coordPolicy), set.TransitionHash, "MEASUREMENT")
	r.state(t, set.TransitionHash) // all else was right
}

// The manifest is of real platforms: evidence that no hardware made does not count, under the very root, measurement and
// policy that it wants.
func TestPeerWithSimulatedEvidence(t *testing.T) {
	t.Parallel()
	_, r, set := active(t)
	r.refusedEvidence(t, world(t).Machine(measurement, coordPolicy), set.TransitionHash, "PLATFORM")
	r.state(t, set.TransitionHash)
}

func TestPeerNotACoordinator(t *testing.T) {
	t.Parallel()
	_, r, set := active(t)
	for _, policy := range []attestation.PolicyHash{webPolicy, dbPolicy, barePolicy, {0x99}} {
		r.refusedEvidence(t, snpMachine(t, measurement, policy), set.TransitionHash, "HOST_DATA")
	}
	r.metric(t, `portcullis_evidence_rejected_total{field="HOST_DATA"} 4`)
	r.metric(t, `portcullis_requests_total{outcome="evidence-rejected",route="/v1/peer/state"} 4`)
	r.state(t, set.TransitionHash)
}

func TestPeerRequestsThatAreRefused(t *testing.T) {
	t.Parallel()
	_, r, set := active(t)
	_, stranger, _ := active(t)
	genuine := snpMachine(t, measurement, coordPolicy)
	for name, test := range map[string]struct {
		alter func(a *asker, req *api.PeerRequest)
		code  api.Code
		field string
	}{
		"without a nonce": {func(a *asker, req *api.PeerRequest) { req.Nonce = []byte{}; a.attest(t, req) }, api.CodeBadNonce, ""},
		"nonce of another Coordinator": {
			func(a *asker, req *api.PeerRequest) { req.Nonce = stranger.freshNonce(t); a.attest(t, req) }, api.CodeBadNonce, "",
		},
		"evidence replayed under a fresh nonce": {
			func(_ *asker, req *api.PeerRequest) { req.Nonce = r.freshNonce(t) }, api.CodeEvidenceRejected, "REPORT_DATA",
		},
		"evidence over another HPKE key": {
			func(_ *asker, req *api.PeerRequest) { req.HPKEKey = newAsker(t, genuine).key.PublicKey().Bytes() },
			api.CodeEvidenceRejected, "REPORT_DATA",
		},
		"evidence of a pod's request": {
			func(a *asker, req *api.PeerRequest) {
				var err error
				if req.Evidence, err = a.issuer.Issue(t.Context(), attestation.NewReportData(api.LabelMesh, req.Nonce, req.TransitionHash, req.HPKEKey)); err != nil {
					t.Fatal(err)
				}
			}, api.CodeEvidenceRejected, "REPORT_DATA",
		},
		"without evidence": {
			func(_ *asker, req *api.PeerRequest) { req.Evidence = attestation.Evidence{Report: []byte{}} },
			api.CodeEvidenceRejected, "PLATFORM",
		},
		"HPKE key cut short": {func(a *asker, req *api.PeerRequest) { req.HPKEKey = req.HPKEKey[1:]; a.attest(t, req) }, api.CodeBadRequest, ""},
		"of another transition": {
			func(a *asker, req *api.PeerRequest) { req.TransitionHash = random(t, 32); a.attest(t, req) }, api.CodeConflict, "",
		},
		"of no transition": {func(a *asker, req *api.PeerRequest) { req.TransitionHash = []byte{}; a.attest(t, req) }, api.CodeConflict, ""},
		"of the transition from nothing": {
			func(a *asker, req *api.PeerRequest) { req.TransitionHash = make([]byte, 32); a.attest(t, req) }, api.CodeConflict, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAsker(t, genuine)
			req := a.request(t, r.freshNonce(t), set.TransitionHash)
			test.alter(a, req)
			if entry := r.refusedPeer(t, req, test.code); test.field != "" && entry["field"] != test.field {
				t.Errorf("log %v, want the field %s", entry, test.field)
			}
		})
	}
	fresh := newReplicas(t, 1).running[0]
	_, err := fresh.PeerState(t.Context(), *newAsker(t, genuine).request(t, r.freshNonce(t), set.TransitionHash))
	wantCode(t, err, api.CodeNoManifest)
	r.state(t, set.TransitionHash)
}

// The host puts an old store under a replica that restarts. Nobody tells it the seed: who serves knows a newer manifest.
func TestPeerRollback(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 2)
	knows := rs.running[0]
	first, err := knows.Set(t.Context(), rs.request(t, rs.manifest(t), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	rs.running[1].at(t, first.TransitionHash)
	old := rs.store.copy()
	next, err := knows.Set(t.Context(), rs.request(t, rs.manifest(t, func(m *manifest.Manifest) { delete(m.Policies, dbPolicy) }), [32]byte(first.TransitionHash)))
	if err != nil {
		t.Fatal(err)
	}
	rs.running[1].at(t, next.TransitionHash)

	given := len(knows.log.Entries("gave the state to another replica"))
	back := new(view)
	back.to.Store(old)
	r := rs.restart(t, 1, func(c *coordinator.Config) { c.Store = back })
	eventually(t, "the peer's refusal", r.log, func() bool {
		return slices.ContainsFunc(r.log.Entries("no state from this peer"), func(e map[string]any) bool {
			return e["outcome"] == string(api.CodeConflict) && strings.Contains(fmt.Sprint(e["reason"]), "was the store rolled back?")
		})
	})
	if _, state, _ := r.health(t, api.PathReady); state != "needs-recovery" {
		t.Errorf("the state is %s", state)
	}
	if reason := fmt.Sprint(knows.says(t, "peer refused")["reason"]); !strings.Contains(reason, hex.EncodeToString(first.TransitionHash)) {
		t.Errorf("the giver's log does not name the old transition: %s", reason)
	}
	if given == 0 || len(knows.log.Entries("gave the state to another replica")) != given {
		t.Errorf("the state was given:\n%s", knows.log)
	}
	r.metric(t, `portcullis_state{state="needs-recovery"} 1`)

	// The host tires of it. What the store says is followed as long as nothing else is known.
	back.to.Store(rs.store)
	r.at(t, next.TransitionHash)
}

// The same with a replica that runs: it knows what it knows, keeps it, and takes and gives nothing on a store like that.
func TestRunningReplicaDoesNotGoBackWithItsStore(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 2)
	owners := seedshareOwners(t, 1)
	shareOwners := sharedAmong(t, 1, owners...)
	text := rs.manifest(t, shareOwners)
	r := rs.running[0]
	first, err := r.Set(t.Context(), rs.request(t, text, [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	rs.running[1].stop()
	old := rs.store.copy()
	next, err := r.Set(t.Context(), rs.request(t, rs.manifest(t, shareOwners, validFor(t, 5)), [32]byte(first.TransitionHash)))
	if err != nil {
		t.Fatal(err)
	}
	third := rs.manifest(t, shareOwners, validFor(t, 6))
	// A store of the host's choosing, with the owner's history and a seed of another Coordinator.
	foreign := newReplicas(t, 1)
	foreign.owner = rs.owner
	if _, err := foreign.running[0].Set(t.Context(), rs.request(t, text, [32]byte{})); err != nil {
		t.Fatal(err)
	}
	// The same transition with the mesh CA of another recovery: what only the count of changes tells.
	again := old.copy()
	for name, test := range map[string]struct {
		store  *shared
		reason string
	}{
		"an old one":                {old, "it was rolled back: its latest is change 1"},
		"an empty one":              {newShared(), "it is empty"},
		"another seed's":            {foreign.store, "not signed with this Coordinator's transaction key"},
		"one that is no store":      {&shared{latest: []byte("{}")}, "read latest"},
		"one with an altered count": {&shared{latest: alteredLatest(t, again.latest, func(l map[string]any) { l["sequence"] = 9 })}, "not signed"},
		"one with another mesh CA":  {&shared{latest: alteredLatest(t, rs.store.latest, func(l map[string]any) { l["meshCa"] = make([]byte, 32) })}, "not signed"},
	} {
		t.Run(name, func(t *testing.T) {
			r.view.to.Store(test.store)
			eventually(t, "the state split-history", r.log, func() bool {
				status, state, detail := r.health(t, api.PathReady)
				return status == http.StatusOK && state == "split-history" && strings.Contains(detail, test.reason)
			})
			entry := last(t, r.log, "the store contradicts this Coordinator, which keeps what it has and takes no manifest")
			if entry["level"] != "ERROR" || !strings.Contains(fmt.Sprint(entry["reason"]), test.reason) {
				t.Errorf("log %v", entry)
			}
			r.metric(t, `portcullis_state{state="split-history"} 1`)
			_, resp, _ := r.certify(t, snpPod(t, webPolicy))
			if !bytes.Equal(resp.MeshCA, next.MeshCA) {
				t.Error("it certifies by another mesh CA")
			}
			_, err := r.Set(t.Context(), rs.request(t, third, [32]byte(next.TransitionHash)))
			wantCode(t, err, api.CodeSplitHistory)
			a := newAsker(t, snpMachine(t, measurement, coordPolicy))
			r.refusedPeer(t, a.request(t, r.freshNonce(t), next.TransitionHash), api.CodeSplitHistory)

			r.view.to.Store(rs.store)
			r.await(t, "active")
			r.state(t, next.TransitionHash)
		})
	}
	if _, err := r.Set(t.Context(), rs.request(t, third, [32]byte(next.TransitionHash))); err != nil {
		t.Errorf("set after all that: %v", err)
	}
}

// Owners recovered a manifest's authority twice. A store with the first of the two mesh CAs is an old one, too.
func TestRecoveryThatAnotherFollowedIsOver(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 1)
	owners := seedshareOwners(t, 1)
	text := rs.manifest(t, sharedAmong(t, 1, owners...))
	set, err := rs.running[0].Set(t.Context(), rs.request(t, text, [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	sealed := rs.sealed(t, rs.running[0])
	var old *shared
	for range 2 {
		old = rs.store.copy()
		r := rs.restart(t, 0)
		if _, err := r.Recover(t.Context(), *share(t, sealed[0], owners[0], rs.verifyRecovery(t, r, text))); err != nil {
			t.Fatal(err)
		}
	}
	r := rs.running[0]
	r.view.to.Store(old)
	r.await(t, "split-history")
	if _, _, detail := r.health(t, api.PathReady); !strings.Contains(detail, "it was rolled back: its latest is change 2") {
		t.Errorf("detail %q", detail)
	}
	// The transition is the same, so that alone the store tells who gives that it is not the latest.
	a := newAsker(t, snpMachine(t, measurement, coordPolicy))
	r.refusedPeer(t, a.request(t, r.freshNonce(t), set.TransitionHash), api.CodeSplitHistory)
}

// One owner signed two manifests to follow the first, and the host has one half of the replicas see the one and the
// other half the other. Both are genuine; they never mix, and neither half believes the other's store.
func TestPeerSplitHistory(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 3)
	first, err := rs.running[0].Set(t.Context(), rs.request(t, rs.manifest(t), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs.running {
		r.at(t, first.TransitionHash)
	}
	a, b := rs.running[0], rs.running[1]
	rs.running[2].stop()
	other := rs.store.copy()
	b.view.to.Store(other)
	set := func(r *replica, text []byte, previous []byte) *api.SetResponse {
		t.Helper()
		resp, err := r.Set(t.Context(), rs.request(t, text, [32]byte(previous)))
		if err != nil {
			t.Fatalf("%v\n%s", err, r.log)
		}
		return resp
	}
	ofA := set(a, rs.manifest(t, validFor(t, 2)), first.TransitionHash)
	ofB := set(b, rs.manifest(t, validFor(t, 3)), first.TransitionHash)

	// Who restarts on one half's store gets it from that half, and nothing from the other.
	addressOfB := rs.move(1, "127.0.0.1:9")
	onOther := new(view)
	onOther.to.Store(other)
	r := rs.start(t, 2, func(c *coordinator.Config) { c.Store = onOther })
	eventually(t, "the refusal of the other half", r.log, func() bool {
		return slices.ContainsFunc(r.log.Entries("no state from this peer"), func(e map[string]any) bool {
			return e["outcome"] == string(api.CodeConflict)
		})
	})
	rs.move(1, addressOfB)
	r.at(t, ofB.TransitionHash)

	// The other half's store is no successor of what one knows, however long it is.
	a.view.to.Store(other)
	a.await(t, "split-history")
	if _, _, detail := a.health(t, api.PathReady); !strings.Contains(detail, "it was split: its change 2") {
		t.Errorf("detail %q", detail)
	}
	longer := set(b, rs.manifest(t, validFor(t, 4)), ofB.TransitionHash)
	eventually(t, "the longer history is refused", a.log, func() bool {
		_, _, detail := a.health(t, api.PathReady)
		return strings.Contains(detail, "does not contain "+hex.EncodeToString(ofA.TransitionHash))
	})
	_, resp, _ := a.certify(t, snpPod(t, webPolicy))
	if !bytes.Equal(resp.MeshCA, ofA.MeshCA) {
		t.Error("a replica went over to the other history")
	}
	_, err = a.Set(t.Context(), rs.request(t, rs.manifest(t, validFor(t, 5)), [32]byte(ofA.TransitionHash)))
	wantCode(t, err, api.CodeSplitHistory)
	a.refusedPeer(t, newAsker(t, snpMachine(t, measurement, coordPolicy)).request(t, a.freshNonce(t), longer.TransitionHash), api.CodeConflict)
	a.refusedPeer(t, newAsker(t, snpMachine(t, measurement, coordPolicy)).request(t, a.freshNonce(t), ofA.TransitionHash), api.CodeSplitHistory)
}

// Manifests change who is a coordinator, and what its image is. Only the newest one counts, at either end.
func TestPeerUnderAnOlderManifest(t *testing.T) {
	t.Parallel()
	dismissed := attestation.PolicyHash{0xc1}
	withBoth := func(m *manifest.Manifest) { m.Policies[dismissed] = manifest.Policy{Role: manifest.RoleCoordinator} }
	demoted := func(m *manifest.Manifest) { m.Policies[dismissed] = manifest.Policy{} }
	for name, alter := range map[string]func(*manifest.Manifest){"gone": func(*manifest.Manifest) {}, "a pod like others": demoted} {
		t.Run(name, func(t *testing.T) {
			rs, r, first := active(t, withBoth)
			former := snpMachine(t, measurement, dismissed)
			ask := func(transition []byte) *api.PeerRequest {
				return newAsker(t, former).request(t, r.freshNonce(t), transition)
			}
			if _, err := r.PeerState(t.Context(), *ask(first.TransitionHash)); err != nil {
				t.Fatalf("%v\n%s", err, r.log)
			}
			next, err := r.Set(t.Context(), rs.request(t, rs.manifest(t, alter), [32]byte(first.TransitionHash)))
			if err != nil {
				t.Fatal(err)
			}
			r.refusedPeer(t, ask(first.TransitionHash), api.CodeConflict)
			if entry := r.refusedPeer(t, ask(next.TransitionHash), api.CodeEvidenceRejected); entry["field"] != "HOST_DATA" {
				t.Errorf("log %v", entry)
			}
		})
	}
	t.Run("the giver", func(t *testing.T) {
		// Its store stands still, while others go on.
		rs := newReplicas(t, 2)
		first, err := rs.running[0].Set(t.Context(), rs.request(t, rs.manifest(t), [32]byte{}))
		if err != nil {
			t.Fatal(err)
		}
		rs.running[1].at(t, first.TransitionHash)
		stale := rs.running[0]
		stale.view.to.Store(rs.store.copy())
		next, err := rs.running[1].Set(t.Context(), rs.request(t, rs.manifest(t, validFor(t, 5)), [32]byte(first.TransitionHash)))
		if err != nil {
			t.Fatal(err)
		}
		a := newAsker(t, snpMachine(t, measurement, coordPolicy))
		stale.refusedPeer(t, a.request(t, stale.freshNonce(t), next.TransitionHash), api.CodeConflict)
		// When it sees its store again, it gives nothing that is over, also where it was asked for exactly that.
		stale.view.to.Store(rs.store)
		if _, err := stale.PeerState(t.Context(), *a.request(t, rs.running[1].freshNonce(t), first.TransitionHash)); err == nil {
			t.Error("the state of the manifest before was given")
		}
		stale.at(t, next.TransitionHash)
	})
}

// hostsPeer is what a host puts where a replica looks for peers. Nonces come from a real one.
type hostsPeer struct {
	*httptest.Server
	answer func(*api.PeerRequest) *api.PeerResponse

	mutex sync.Mutex
	seen  []byte // all that went over the network
}

func newHostsPeer(t *testing.T, real *replica, answer func(*api.PeerRequest) *api.PeerResponse) *hostsPeer {
	t.Helper()
	h := &hostsPeer{answer: answer}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		var resp any
		switch r.URL.Path {
		case api.PathNonce:
			nonce, err := real.Nonce(r.Context())
			if err != nil {
				http.Error(w, "", http.StatusServiceUnavailable)
				return
			}
			resp = api.NonceResponse{Nonce: nonce}
		case api.PathPeerState:
			req := new(api.PeerRequest)
			if json.Unmarshal(body, req) != nil {
				return
			}
			answer := h.answer(req)
			if answer == nil {
				http.Error(w, "", http.StatusServiceUnavailable)
				return
			}
			resp = answer
		}
		text, _ := json.Marshal(resp)
		h.mutex.Lock()
		h.seen = append(append(h.seen, body...), text...)
		h.mutex.Unlock()
		_, _ = w.Write(text)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hostsPeer) address() string { return strings.TrimPrefix(h.URL, "http://") }

// asksOnly has a replica see one address.
func asksOnly(address string) option {
	return func(c *coordinator.Config) {
		c.Peers = func(context.Context) ([]string, error) { return []string{address}, nil }
	}
}

// refuses waits until the replica says why it takes nothing from its peer, and sees that it did not.
func (r *replica) refuses(t *testing.T, outcome, field, reason string) {
	t.Helper()
	eventually(t, "the refusal: "+outcome, r.log, func() bool {
		return slices.ContainsFunc(r.log.Entries("no state from this peer"), func(e map[string]any) bool {
			return e["outcome"] == outcome && (field == "" || e["field"] == field) && strings.Contains(fmt.Sprint(e["reason"]), reason)
		})
	})
	if _, state, _ := r.health(t, api.PathHealth); state != "needs-recovery" {
		t.Errorf("it is %s", state)
	}
	r.metric(t, `portcullis_state{state="active"} 0`)
}

// The host keeps an answer that a replica got, and gives it to the next one. Its nonce would still be good.
func TestPeerAnswerReplayed(t *testing.T) {
	t.Parallel()
	rs, real, set := active(t)
	var recorded *api.PeerResponse
	var once sync.Once
	h := newHostsPeer(t, real, func(req *api.PeerRequest) *api.PeerResponse {
		once.Do(func() {
			var err error
			if recorded, err = real.PeerState(t.Context(), *req); err != nil {
				t.Error(err)
			}
		})
		return recorded
	})
	genuine := rs.startAnother(t, asksOnly(h.address()))
	genuine.at(t, set.TransitionHash) // the recorded answer is good, once
	r := rs.startAnother(t, asksOnly(h.address()))
	r.refuses(t, "evidence-of-peer-rejected", "REPORT_DATA", "")
}

// startAnother starts one more replica.
func (rs *replicas) startAnother(t *testing.T, options ...option) *replica {
	t.Helper()
	rs.mutex.Lock()
	rs.addresses = append(rs.addresses, "127.0.0.1:0")
	rs.mutex.Unlock()
	rs.running = append(rs.running, nil)
	return rs.start(t, len(rs.running)-1, options...)
}

// forge seals a state to who asks, as anybody can who has one, with evidence by issuer.
func forge(t *testing.T, state secret.Bytes, issuer attestation.Issuer) func(*api.PeerRequest) *api.PeerResponse {
	return func(req *api.PeerRequest) *api.PeerResponse {
		resp := new(api.PeerResponse)
		if err := resp.Seal(req, state); err != nil {
			t.Error(err)
			return nil
		}
		if issuer == nil {
			return resp
		}
		evidence, err := issuer.Issue(context.Background(), resp.ReportData(req))
		if err != nil {
			t.Error(err)
			return nil
		}
		resp.Evidence = evidence
		return resp
	}
}

// The host knows a seed and a mesh CA, and the store fits both: it copied the owners' history, and signed latest itself. All
// that it has not is a coordinator's evidence over this answer.
func TestPeerAnswerUnsigned(t *testing.T) {
	t.Parallel()
	rs, real, set := active(t)
	state := real.state(t, set.TransitionHash)
	genuine := snpMachine(t, measurement, coordPolicy)
	for name, test := range map[string]struct {
		answer         func(*api.PeerRequest) *api.PeerResponse
		outcome, field string
	}{
		"no evidence":               {forge(t, state, nil), "evidence-of-peer-rejected", "PLATFORM"},
		"a pod's evidence":          {forge(t, state, snpMachine(t, measurement, webPolicy)), "evidence-of-peer-rejected", "HOST_DATA"},
		"evidence of no policy":     {forge(t, state, snpMachine(t, measurement, attestation.PolicyHash{0x99})), "evidence-of-peer-rejected", "HOST_DATA"},
		"evidence of another image": {forge(t, state, snpMachine(t, simtee.Measurement{9}, coordPolicy)), "evidence-of-peer-rejected", "MEASUREMENT"},
		"simulated evidence":        {forge(t, state, world(t).Machine(measurement, coordPolicy)), "evidence-of-peer-rejected", "PLATFORM"},
		"the requester's own": {func(req *api.PeerRequest) *api.PeerResponse {
			resp := forge(t, state, nil)(req)
			resp.Evidence = req.Evidence
			return resp
		}, "evidence-of-peer-rejected", "REPORT_DATA"},
		"evidence for something else": {altered(forge(t, state, nil), genuine, func(req *api.PeerRequest, _ *api.PeerResponse) attestation.ReportData { return req.ReportData() }), "evidence-of-peer-rejected", "REPORT_DATA"},
		"evidence over another state": {
			altered(forge(t, state, nil), genuine, func(req *api.PeerRequest, _ *api.PeerResponse) attestation.ReportData {
				return forge(t, state, nil)(req).ReportData(req)
			}), "evidence-of-peer-rejected", "REPORT_DATA",
		},
		"evidence over another nonce": {
			altered(forge(t, state, nil), genuine, func(req *api.PeerRequest, resp *api.PeerResponse) attestation.ReportData {
				other := *req
				other.Nonce = random(t, len(req.Nonce))
				return resp.ReportData(&other)
			}), "evidence-of-peer-rejected", "REPORT_DATA",
		},
		"evidence over another transition": {
			altered(forge(t, state, nil), genuine, func(req *api.PeerRequest, resp *api.PeerResponse) attestation.ReportData {
				other := *req
				other.TransitionHash = random(t, 32)
				return resp.ReportData(&other)
			}), "evidence-of-peer-rejected", "REPORT_DATA",
		},
		"nothing at all": {func(*api.PeerRequest) *api.PeerResponse { return &api.PeerResponse{Sealed: []byte{}} }, "evidence-of-peer-rejected", "PLATFORM"},
		"a refusal":      {func(*api.PeerRequest) *api.PeerResponse { return nil }, "other", ""},
	} {
		t.Run(name, func(t *testing.T) {
			rs.startAnother(t, asksOnly(newHostsPeer(t, real, test.answer).address())).refuses(t, test.outcome, test.field, "")
		})
	}
	// The same with the evidence that is wanted, to see that nothing else was in the way.
	rs.startAnother(t, asksOnly(newHostsPeer(t, real, forge(t, state, genuine)).address())).at(t, set.TransitionHash)
}

// altered is an answer with evidence over something else.
func altered(
	answer func(*api.PeerRequest) *api.PeerResponse, issuer attestation.Issuer,
	over func(*api.PeerRequest, *api.PeerResponse) attestation.ReportData,
) func(*api.PeerRequest) *api.PeerResponse {
	return func(req *api.PeerRequest) *api.PeerResponse {
		resp := answer(req)
		evidence, err := issuer.Issue(context.Background(), over(req, resp))
		if err != nil {
			return nil
		}
		resp.Evidence = evidence
		return resp
	}
}

// A peer whose evidence is good is still believed nothing that does not fit the store's latest and the seed: a coordinator of
// another history is genuine, too.
func TestPeerStatesThatAreRefused(t *testing.T) {
	t.Parallel()
	rs, real, set := active(t)
	_, stranger, strangers := active(t)
	state := real.state(t, set.TransitionHash)
	foreign := stranger.state(t, strangers.TransitionHash)
	with := func(alter func(own, other map[string][]byte)) secret.Bytes {
		var own, other map[string][]byte
		if err := errors.Join(json.Unmarshal(state.Reveal(), &own), json.Unmarshal(foreign.Reveal(), &other)); err != nil {
			t.Fatal(err)
		}
		alter(own, other)
		text, err := json.Marshal(own)
		if err != nil {
			t.Fatal(err)
		}
		return secret.New(text)
	}
	take := func(field string) secret.Bytes {
		return with(func(own, other map[string][]byte) { own[field] = other[field] })
	}
	for name, test := range map[string]struct {
		state  secret.Bytes
		reason string
	}{
		"another Coordinator's": {foreign, "did not sign the store's latest"},
		"another seed":          {take("seed"), "did not sign the store's latest"},
		"no seed":               {with(func(own, _ map[string][]byte) { delete(own, "seed") }), "a seed of 0 bytes"},
		"a seed of zeros":       {with(func(own, _ map[string][]byte) { clear(own["seed"]) }), "all zero"},
		"another mesh CA":       {take("meshCa"), "which the store's latest names"},
		"another key":           {take("meshKey"), "the key is not that of the mesh CA"},
		"no key":                {with(func(own, _ map[string][]byte) { own["meshKey"] = []byte{} }), "not an ECDSA P-256 key"},
		"a key of zeros":        {with(func(own, _ map[string][]byte) { clear(own["meshKey"]) }), "not an ECDSA P-256 key"},
		"another intermediate":  {take("intermediate"), "the key is not that of the intermediate CA"},
		"the mesh CA as the intermediate": {
			with(func(own, _ map[string][]byte) { own["intermediate"] = own["meshCa"] }), "who signed the intermediate CA",
		},
		"another root CA":             {take("rootCa"), "the root CA is not of the seed"},
		"no root CA":                  {with(func(own, _ map[string][]byte) { own["rootCa"] = []byte{} }), "parse the root CA"},
		"the intermediate as root CA": {with(func(own, _ map[string][]byte) { own["rootCa"] = own["intermediate"] }), "the root CA is not of the seed"},
		"something more":              {with(func(own, _ map[string][]byte) { own["more"] = []byte{1} }), "the state is malformed"},
		"not JSON":                    {secret.New([]byte("state")), "the state is malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHostsPeer(t, real, forge(t, test.state, snpMachine(t, measurement, coordPolicy)))
			rs.startAnother(t, asksOnly(h.address())).refuses(t, "state-of-peer-refused", "", test.reason)
		})
	}
	t.Run("sealed to another key", func(t *testing.T) {
		h := newHostsPeer(t, real, func(req *api.PeerRequest) *api.PeerResponse {
			other := *req
			other.HPKEKey = newAsker(t, nil).key.PublicKey().Bytes()
			resp := forge(t, state, nil)(&other)
			return altered(func(*api.PeerRequest) *api.PeerResponse { return resp }, snpMachine(t, measurement, coordPolicy),
				func(*api.PeerRequest, *api.PeerResponse) attestation.ReportData { return resp.ReportData(req) })(req)
		})
		rs.startAnother(t, asksOnly(h.address())).refuses(t, "state-of-peer-refused", "", "open the peer's state")
	})
}

// A store and a seed of the host's choosing, below a replica that restarts beside one that serves: the genuine one gives
// nothing, since the history is not the one that it has, and its answer would not fit the host's latest.
func TestPeerOnAStoreOfTheHostsChoosing(t *testing.T) {
	t.Parallel()
	rs, real, _ := active(t)
	hosts := newReplicas(t, 1)
	hosts.owner = newKey(t, elliptic.P256())
	if _, err := hosts.running[0].Set(t.Context(), hosts.request(t, hosts.manifest(t), [32]byte{})); err != nil {
		t.Fatal(err)
	}
	below := new(view)
	below.to.Store(hosts.store.copy())
	r := rs.startAnother(t, func(c *coordinator.Config) { c.Store = below })
	r.refuses(t, string(api.CodeConflict), "", "was the store rolled back?")

	// With the owners' very manifest, which is public, under a seed that the host had made elsewhere.
	copied := newReplicas(t, 1)
	copied.owner = rs.owner
	same, err := copied.running[0].Set(t.Context(), rs.request(t, rs.manifest(t), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	real.at(t, same.TransitionHash)
	below.to.Store(copied.store.copy())
	r.refuses(t, "state-of-peer-refused", "", "did not sign the store's latest")
}

// A host begins the history of a genuine Coordinator, with a manifest in which a guest of its own is a coordinator, and so
// learns the seed. Then it signs the history over to the owner's manifest, byte for byte. Whoever verifies that one sees
// who began.
func TestHostsFirstManifestUpdatedToTheOwners(t *testing.T) {
	t.Parallel()
	rs := newReplicas(t, 1)
	r, alice, host := rs.running[0], rs.owner, newKey(t, elliptic.P256())
	leaky := attestation.PolicyHash{0x66}
	rs.owner = host
	first, err := r.Set(t.Context(), rs.request(t, rs.manifest(t, func(m *manifest.Manifest) {
		m.Policies[leaky] = manifest.Policy{Role: manifest.RoleCoordinator}
	}), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	a := newAsker(t, snpMachine(t, measurement, leaky))
	req := a.request(t, r.freshNonce(t), first.TransitionHash)
	resp, err := r.PeerState(t.Context(), *req)
	if err != nil {
		t.Fatal(err)
	}
	learnt, err := resp.Open(req, a.key)
	if err != nil {
		t.Fatal(err)
	}
	rs.owner = alice
	text := rs.manifest(t)
	rs.owner = host
	next, err := r.Set(t.Context(), rs.request(t, text, [32]byte(first.TransitionHash)))
	if err != nil {
		t.Fatal(err)
	}
	var known, now map[string][]byte
	if err := errors.Join(json.Unmarshal(learnt.Reveal(), &known), json.Unmarshal(r.state(t, next.TransitionHash).Reveal(), &now)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(known["seed"], now["seed"]) || bytes.Equal(known["meshKey"], now["meshKey"]) {
		t.Fatal("the host has not learnt the seed, or learnt the mesh CA's key too")
	}

	nonce := random(t, api.NonceSize)
	attested, err := r.Attest(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	trusted, trust := parse(t, text), rs.trust(t)
	for what, err := range map[string]error{
		"verify":     second(api.VerifyCoordinator(t.Context(), attested, nonce, trusted, trust)),
		"before set": second(api.VerifyBeforeSet(t.Context(), attested, nonce, trusted, trust)),
		"verify with other former owners": second(api.FormerOwners{{1}, {}, trusted.OwnersDigest()}.
			VerifyCoordinator(t.Context(), attested, nonce, trusted, trust)),
	} {
		if refused, ok := errors.AsType[*api.VerifyError](err); !ok || refused.Check != api.CheckOwners ||
			!strings.Contains(refused.Error(), "manifest 1 of 2 has others") {
			t.Errorf("%s: %v", what, err)
		}
	}
	history, err := api.VerifyHistory(attested.History)
	if err != nil {
		t.Fatal(err)
	}
	if err := (&manifest.Pin{WorkloadOwners: trusted.OwnersDigest()}).CheckOwners(history); err == nil {
		t.Error("a pin to the owners admits it")
	}
	// Who knows the former owners says so.
	former := api.FormerOwners{parse(t, attested.History[0].Manifest).OwnersDigest()}
	if _, err := former.VerifyCoordinator(t.Context(), attested, nonce, trusted, trust); err != nil {
		t.Errorf("with the former owners: %v", err)
	}
}

// While a peer's answer is on its way the manifest is replaced. What the answer holds is over before it is used.
func TestStateThatIsOverWhenItArrivesIsNotUsed(t *testing.T) {
	t.Parallel()
	rs, real, first := active(t)
	var once sync.Once
	h := newHostsPeer(t, real, func(req *api.PeerRequest) *api.PeerResponse {
		resp, err := real.PeerState(context.Background(), *req)
		if err != nil {
			return nil
		}
		once.Do(func() {
			if _, err := real.Set(context.Background(), rs.request(t, rs.manifest(t, validFor(t, 9)), [32]byte(first.TransitionHash))); err != nil {
				t.Error(err)
			}
		})
		return resp
	})
	r := rs.startAnother(t, asksOnly(h.address()))
	if got := r.says(t, "recovered from a peer"); got["generation"] != 2.0 || got["transition"] == hex.EncodeToString(first.TransitionHash) {
		t.Errorf("log %v", got)
	}
}

// What goes over the network, into the logs and into the store is nothing that a host can use.
func TestNoStateIsSeenOnTheWay(t *testing.T) {
	t.Parallel()
	rs, real, set := active(t)
	h := newHostsPeer(t, real, nil)
	h.answer = func(req *api.PeerRequest) *api.PeerResponse {
		resp, err := real.PeerState(context.Background(), *req)
		if err != nil {
			return nil
		}
		return resp
	}
	r := rs.startAnother(t, asksOnly(h.address()))
	r.at(t, set.TransitionHash)
	var state map[string][]byte
	if err := json.Unmarshal(real.state(t, set.TransitionHash).Reveal(), &state); err != nil {
		t.Fatal(err)
	}
	seed, err := pki.ParseSeed(state["seed"])
	if err != nil {
		t.Fatal(err)
	}
	root, err := seed.RootKey().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	h.mutex.Lock()
	defer h.mutex.Unlock()
	places := map[string]string{"network": string(h.seen), "giver's log": real.log.String(), "receiver's log": r.log.String(), "store": fmt.Sprint(rs.store.objects, rs.store.latest)}
	if !strings.Contains(places["network"], base64.StdEncoding.EncodeToString(set.TransitionHash)) {
		t.Fatal("nothing was seen of the network")
	}
	for what, s := range map[string][]byte{"seed": state["seed"], "mesh key": state["meshKey"], "root key": root} {
		for where, text := range places {
			for _, form := range []string{string(s), hex.EncodeToString(s), base64.StdEncoding.EncodeToString(s)[:40], base64.RawURLEncoding.EncodeToString(s)[:40], strings.Trim(fmt.Sprint(s[:8]), "[]")} {
				if strings.Contains(text, form) {
					t.Errorf("the %s is in the %s", what, where)
				}
			}
		}
	}
}

func TestPeersAreLookedUpByName(t *testing.T) {
	for name, want := range map[string]string{
		"127.0.0.1": "127.0.0.1:1313", "127.0.0.1:99": "127.0.0.1:99", "[::1]:99": "[::1]:99", "localhost:7": "127.0.0.1:7",
	} {
		look, err := coordinator.PeersAt(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := look(t.Context()); err != nil || !slices.Contains(got, want) {
			t.Errorf("%s: %q, %v, want %s", name, got, err, want)
		}
	}
	for _, name := range []string{"", ":1313", "host:", "host:0", "host:65536", "host:http", "::1", "[::1]", "http://host", "host:1:2"} {
		if _, err := coordinator.PeersAt(name); err == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
	look, err := coordinator.PeersAt("portcullis.invalid")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := look(t.Context()); err == nil {
		t.Error("a name that does not exist has addresses")
	} else if _, ok := errors.AsType[*net.DNSError](err); !ok {
		t.Errorf("look up: %v", err)
	}
}
