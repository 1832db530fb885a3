package coordinator_test

import (
	"crypto/elliptic"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/audit"
	"portcullis.dev/portcullis/manifest"
)

// audited gives a Coordinator an audit log.
func audited(t *testing.T, path string) (option, *audit.Log) {
	t.Helper()
	l, err := audit.Open(audit.Config{Path: path, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		fileKeepsSecrets(t, path)
	})
	return func(c *coordinator.Config) { c.Audit = l }, l
}

// events reads a log; heads are left out.
func events(t *testing.T, path string) (all []audit.Event) {
	t.Helper()
	if _, err := audit.Verify(path, audit.Expect{}, func(l *audit.Line) error {
		if _, head := l.Event.(*audit.HeadSigned); !head {
			all = append(all, l.Event)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func names(events []audit.Event) (names []string) {
	for _, e := range events {
		names = append(names, reflect.TypeOf(e).Elem().Name())
	}
	return names
}

func TestEveryDecisionIsInTheAuditLog(t *testing.T) {
	dir := t.TempDir()
	path, db := filepath.Join(dir, "audit.log"), filepath.Join(dir, "coordinator.db")
	owner := newKey(t, elliptic.P256())
	shareOwners := seedshareOwners(t, 2)
	option, log := audited(t, path)
	first := start(t, onStore(t, db), option)
	text := newManifest(t, ownedBy(t, 1, owner), sharedAmong(t, 2, shareOwners...))
	if _, err := first.set(t, text, newKey(t, elliptic.P256())); err == nil {
		t.Fatal("a stranger's manifest was set")
	}
	resp := first.mustSet(t, text, owner)
	shares := first.shares(t, text)
	req, _, chain := first.certify(t, newPod(t, webPolicy))
	unknown := newPod(t, [32]byte{0xee})
	_, err := first.Certificate(t.Context(), *unknown.request(t, first.freshNonce(t)))
	wantCode(t, err, api.CodeEvidenceRejected)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	transition := hex.EncodeToString(resp.TransitionHash)
	all := events(t, path)
	if want := []string{"Began", "Started", "Refused", "ManifestSet", "CertificateIssued", "Refused", "Stopped"}; !slices.Equal(names(all), want) {
		t.Fatalf("recorded %v, want %v", names(all), want)
	}
	if e := all[1].(*audit.Started); e.State != "no-manifest" || e.Transition != "" {
		t.Errorf("%+v", e)
	}
	if e := all[2].(*audit.Refused); e.Route != api.PathManifest || e.Code != "bad-signature" || e.Reason == "" || e.Remote == "" {
		t.Errorf("%+v", e)
	}
	if e := all[3].(*audit.ManifestSet); e.Generation != 1 || e.Transition != transition || e.Policies != 4 || len(e.Signers) != 1 {
		t.Errorf("%+v", e)
	}
	spki := hashOf(req.PublicKey)
	if e := all[4].(*audit.CertificateIssued); e.Serial != chain.Leaf.SerialNumber.Text(16) || e.PolicyHash != webPolicy.String() ||
		e.PublicKey != hex.EncodeToString(spki[:]) || !e.NotAfter.Equal(chain.Leaf.NotAfter) || e.Platform != "simulated" || e.Renewal {
		t.Errorf("%+v", e)
	}
	if e := all[5].(*audit.Refused); e.Field != "HOST_DATA" || e.ClaimedPolicyHash[:2] != "ee" || e.Code != "evidence-rejected" || e.Want == "" {
		t.Errorf("%+v", e)
	}
	// The root CA that the owners verified vouches for all of it.
	r, err := audit.Verify(path, audit.Expect{RootCA: chain.RootCA}, nil)
	if err != nil || len(r.Unproven) != 0 {
		t.Errorf("%+v, %v", r, err)
	}

	option, log = audited(t, path)
	f := restart(t, db, option)
	v := f.mustVerifyRecovery(t, text)
	for i, owner := range shareOwners {
		if _, err := f.Recover(t.Context(), *share(t, shares[i], owner, v)); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	all = events(t, path)[len(all):]
	if want := []string{"Started", "ShareTaken", "ShareTaken", "Recovered", "Stopped"}; !slices.Equal(names(all), want) {
		t.Fatalf("recorded %v, want %v", names(all), want)
	}
	if e := all[0].(*audit.Started); e.State != "needs-recovery" || e.Transition != transition {
		t.Errorf("%+v", e)
	}
	if e := all[2].(*audit.ShareTaken); e.Collected != 2 || e.Threshold != 2 || len(e.Owner) != 16 {
		t.Errorf("%+v", e)
	}
	if e := all[3].(*audit.Recovered); e.Generation != 1 || e.Transition != transition || e.Log != audit.Own {
		t.Errorf("%+v", e)
	}
	if r, err := audit.Verify(path, audit.Expect{RootCA: chain.RootCA}, nil); err != nil || len(r.Unproven) != 0 {
		t.Errorf("after the recovery %+v, %v", r, err)
	}
}

// What cannot be recorded does not happen: each way of it is refused, and changes nothing.
func TestNothingHappensThatTheAuditLogCannotHave(t *testing.T) {
	dir := t.TempDir()
	db := filepath.Join(dir, "coordinator.db")
	owners := seedshareOwners(t, 1)
	owner := newKey(t, elliptic.P256())
	text := newManifest(t, ownedBy(t, 1, owner), sharedAmong(t, 1, owners...))
	option, log := audited(t, filepath.Join(dir, "audit.log"))
	f := start(t, onStore(t, db), option)
	ready := func(f *fixture, want int) {
		t.Helper()
		resp, err := http.Get(f.server.URL + api.PathReady)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("ready: %d, want %d", resp.StatusCode, want)
		}
	}
	ready(f, 200)
	log.Close() // a log that takes no more lines
	ready(f, 503)
	_, err := f.set(t, text, owner)
	wantCode(t, err, api.CodeUnavailable)
	if f.latest(t) != [32]byte{} {
		t.Error("a manifest was set that is not recorded")
	}
	if m := get(t, f.server.URL+api.PathMetrics); !strings.Contains(m, "portcullis_audit_writable 0\n") ||
		!strings.Contains(m, "portcullis_audit_failures_total 1\n") {
		t.Errorf("metrics:\n%s", m)
	}

	option, log = audited(t, filepath.Join(dir, "audit.log"))
	f = start(t, onStore(t, filepath.Join(dir, "second.db")), option)
	f.mustSet(t, text, owner)
	shares := f.shares(t, text)
	p := newPod(t, webPolicy)
	f.certify(t, p) // the control
	log.Close()
	_, err = f.Certificate(t.Context(), *p.request(t, f.freshNonce(t)))
	refused := wantCode(t, err, api.CodeUnavailable)
	if !strings.Contains(refused.Detail, "audit log") || refused.RetryAfter <= 0 {
		t.Errorf("%+v", refused)
	}
	if n := len(f.log.Entries("certificate issued")); n != 1 {
		t.Errorf("%d certificates were issued", n)
	}
	// What was there before goes on being shown.
	if f.latest(t) == [32]byte{} {
		t.Error("the history is gone")
	}

	option, log = audited(t, filepath.Join(dir, "audit.log"))
	f = restart(t, filepath.Join(dir, "second.db"), option)
	log.Close()
	v := f.mustVerifyRecovery(t, text)
	_, err = f.Recover(t.Context(), *share(t, shares[0], owners[0], v))
	wantCode(t, err, api.CodeUnavailable)
	// The share was not taken, and may be given again.
	if resp, err := f.AttestRecovery(t.Context(), random(t, api.NonceSize)); err != nil || resp.Recovery.Collected != 0 {
		t.Errorf("%+v, %v", resp, err)
	}

	// And a Coordinator that cannot record its start does not start.
	option, log = audited(t, filepath.Join(dir, "audit.log"))
	log.Close()
	cfg := coordinator.Config{
		Store: openStore(t, filepath.Join(dir, "third.db")), Issuer: world(t).Machine(measurement, coordPolicy), Log: jsonLog(f.log),
	}
	option(&cfg)
	if _, err := coordinator.New(t.Context(), cfg); err == nil {
		t.Error("it started")
	}
}

func TestManifestThatTheStoreWouldNotHaveIsTakenBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	option, log := audited(t, path)
	text := newManifest(t)
	f := start(t, option, func(c *coordinator.Config) {
		c.Store = failing{openStore(t, filepath.Join(t.TempDir(), "coordinator.db"))}
	})
	if _, err := f.set(t, text); err == nil {
		t.Fatal("set")
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	all := events(t, path)
	if want := []string{"Began", "Started", "ManifestSet", "ManifestNotKept", "Stopped"}; !slices.Equal(names(all), want) {
		t.Fatalf("recorded %v, want %v", names(all), want)
	}
	hash := manifest.TransitionHash(text, [32]byte{})
	if e := all[3].(*audit.ManifestNotKept); e.Transition != hex.EncodeToString(hash[:]) || e.Reason == "" {
		t.Errorf("%+v", e)
	}
}

// An audit log of another Coordinator, or of the host's making, is found out when the seed is there.
func TestForeignAuditLogIsNamedAtTheRecovery(t *testing.T) {
	dir := t.TempDir()
	db, path := filepath.Join(dir, "coordinator.db"), filepath.Join(dir, "audit.log")
	owners := seedshareOwners(t, 1)
	text := newManifest(t, sharedAmong(t, 1, owners...))
	f := start(t, onStore(t, db))
	f.mustSet(t, text)
	shares := f.shares(t, text)
	option, log := audited(t, path)
	start(t, option).mustSet(t, newManifest(t))
	log.Close()
	option, log = audited(t, path)
	f = restart(t, db, option)
	v := f.mustVerifyRecovery(t, text)
	if _, err := f.Recover(t.Context(), *share(t, shares[0], owners[0], v)); err != nil {
		t.Fatal(err)
	}
	log.Close()
	all := events(t, path)
	if e, ok := all[len(all)-2].(*audit.Recovered); !ok || e.Log != audit.Foreign {
		t.Errorf("%+v", all[len(all)-2])
	}
	if !strings.Contains(f.log.String(), "the audit log's newest signed head is not this Coordinator's") {
		t.Errorf("the log does not say so:\n%s", f.log)
	}
}

// That the seed went to another replica is recorded before it goes, and it does not go where that cannot be recorded.
// A set is in the log once where the store had it at once, and again where it was taken back and turned up later.
func TestTheAuditLogSaysWhatBecameOfACommitWhoseAnswerIsLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	rs := newReplicas(t, 1)
	option, log := audited(t, path)
	r := rs.restart(t, 0, option)
	r.view.answered = func() error { return errors.New("the connection broke") }
	set, err := r.Set(t.Context(), rs.request(t, rs.manifest(t), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	r.view.answered = func() error {
		r.view.down.Store(true)
		return errors.New("the connection broke")
	}
	text := rs.manifest(t, validFor(t, 3))
	_, err = r.Set(t.Context(), rs.request(t, text, [32]byte(set.TransitionHash)))
	wantCode(t, err, api.CodeInternal)
	r.view.down.Store(false)
	next := manifest.TransitionHash(text, [32]byte(set.TransitionHash))
	r.at(t, next[:])
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{"Began", "Started", "ManifestSet", "ManifestSet", "ManifestNotKept", "ManifestSet", "Stopped"}
	if got := names(events(t, path)); !slices.Equal(got, want) {
		t.Errorf("recorded %v, want %v", got, want)
	}
}

func TestAReplicaThatWasGivenTheStateIsInTheAuditLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	rs := newReplicas(t, 1)
	option, log := audited(t, path)
	r := rs.restart(t, 0, option)
	set, err := r.Set(t.Context(), rs.request(t, rs.manifest(t), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	stranger := newAsker(t, snpMachine(t, measurement, webPolicy)).request(t, r.freshNonce(t), set.TransitionHash)
	r.refusedPeer(t, stranger, api.CodeEvidenceRejected)
	r.state(t, set.TransitionHash)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	all := events(t, path)
	if want := []string{"Began", "Started", "ManifestSet", "Refused", "StateGiven", "Stopped"}; !slices.Equal(names(all), want) {
		t.Fatalf("recorded %v, want %v", names(all), want)
	}
	if e := all[3].(*audit.Refused); e.Route != api.PathPeerState || e.ClaimedPolicyHash != webPolicy.String() {
		t.Errorf("%+v", e)
	}
	if e := all[4].(*audit.StateGiven); e.PolicyHash != coordPolicy.String() || e.Platform != "snp" || e.Generation != 1 ||
		e.Transition != hex.EncodeToString(set.TransitionHash) || len(e.HPKEKey) != 64 {
		t.Errorf("%+v", e)
	}
	req := newAsker(t, snpMachine(t, measurement, coordPolicy)).request(t, r.freshNonce(t), set.TransitionHash)
	r.refusedPeer(t, req, api.CodeUnavailable)
	if n := len(r.log.Entries("gave the state to another replica")); n != 1 {
		t.Errorf("the state was given %d times", n)
	}
}
