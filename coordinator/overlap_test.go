package coordinator_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

func succeededWithin(t *testing.T, d time.Duration) func(*manifest.Manifest) {
	t.Helper()
	overlap, err := manifest.NewOverlap(d)
	if err != nil {
		t.Fatal(err)
	}
	return func(m *manifest.Manifest) { m.Successors = &manifest.Successors{MaxOverlap: overlap} }
}

// after is what a pod of the mesh CA is told that came after it; nil for nothing.
func (f *fixture) after(t *testing.T, meshCA []byte) *x509.Certificate {
	t.Helper()
	der, err := f.Successor(t.Context(), sha256.Sum256(meshCA))
	if err != nil {
		t.Fatalf("%v\n%s", err, f.log)
	}
	if der == nil {
		return nil
	}
	cross, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cross
}

// accepts says whether a pod that trusts some CAs accepts what a peer hands out.
func accepts(chain *pki.Chain, at time.Time, trust ...*x509.Certificate) bool {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range trust {
		roots.AddCert(c)
	}
	intermediates.AddCert(chain.Intermediate)
	_, err := chain.Leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err == nil
}

func wantEnd(t *testing.T, what string, got time.Time, d time.Duration) {
	t.Helper()
	if want := time.Now().Add(d); got.After(want) || got.Before(want.Add(-5*time.Minute)) {
		t.Errorf("%s ends at %v, want %v from a moment ago", what, got, d)
	}
}

func TestPodsOfTwoManifestsAcceptEachOtherAsLongAsTheOutgoingOneSays(t *testing.T) {
	owner := newKey(t, elliptic.P256())
	f := start(t)
	set := func(text []byte) *pki.Chain {
		t.Helper()
		f.mustSet(t, text, owner)
		_, _, chain := f.certify(t, newPod(t, webPolicy))
		return chain
	}
	one := set(newManifest(t, ownedBy(t, 1, owner), succeededWithin(t, time.Hour)))
	if f.after(t, one.MeshCA.Raw) != nil || pki.NamesPredecessor(one.Leaf) {
		t.Error("the first manifest has another before or after it")
	}

	f.mustSet(t, newManifest(t, ownedBy(t, 1, owner), succeededWithin(t, 48*time.Hour)), owner)
	_, resp, two := f.certify(t, newPod(t, webPolicy))
	cross := f.after(t, one.MeshCA.Raw)
	if err := pki.VerifySuccessor(one.MeshCA, cross); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, "the first overlap", cross.NotAfter, time.Hour)
	predecessor, err := x509.ParseCertificate(resp.Predecessor)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := pki.NewTrust(two.MeshCA, two.Leaf, predecessor)
	if err != nil {
		t.Fatal(err)
	}
	if !trust.Predecessor.Equal(one.MeshCA) || !trust.PredecessorUntil.Equal(cross.NotAfter) {
		t.Errorf("new pods trust %v until %v, want the mesh CA before until %v", trust.Predecessor.Subject, trust.PredecessorUntil, cross.NotAfter)
	}
	now, over := time.Now(), time.Now().Add(time.Hour+time.Minute)
	for what, ok := range map[string]bool{
		"an old pod accepts a new one":          accepts(two, now, one.MeshCA, cross),
		"a new pod accepts an old one":          accepts(one, now, two.MeshCA, predecessor),
		"not without the cross-certificate":     !accepts(two, now, one.MeshCA),
		"not without the mesh CA before":        !accepts(one, now, two.MeshCA),
		"an old pod does not when it is over":   !accepts(two, over, one.MeshCA, cross),
		"nothing has come after the second yet": f.after(t, two.MeshCA.Raw) == nil,
	} {
		if !ok {
			t.Errorf("not so: %s", what)
		}
	}
	last(t, f.log, "pods of the manifest before and of this one accept each other for a while")
	if text := get(t, f.server.URL+api.PathMetrics); strings.Contains(text, "portcullis_overlap_until_seconds 0\n") {
		t.Error("the metric of the overlap is 0")
	}

	// The second one's 48 hours hold, not what the third says; and pods of the first do not accept the third.
	three := set(newManifest(t, ownedBy(t, 1, owner)))
	next := f.after(t, two.MeshCA.Raw)
	if err := pki.VerifySuccessor(two.MeshCA, next); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, "the second overlap", next.NotAfter, 48*time.Hour)
	if again := f.after(t, one.MeshCA.Raw); again == nil || !again.Equal(cross) {
		t.Error("pods of the first manifest are told something else than before")
	}
	if !accepts(three, now, two.MeshCA, next) || accepts(three, now, one.MeshCA, cross) {
		t.Error("pods of the second manifest accept the third, and those of the first do not: it is otherwise")
	}
	if pki.AllowsSuccessor(three.MeshCA) {
		t.Error("the third manifest allows no successor, and its mesh CA does")
	}

	// And its silence holds for the fourth.
	four := set(newManifest(t, ownedBy(t, 1, owner), succeededWithin(t, time.Hour)))
	if f.after(t, three.MeshCA.Raw) != nil || pki.NamesPredecessor(four.Leaf) {
		t.Error("a manifest without Successors has one")
	}
	if text := get(t, f.server.URL+api.PathMetrics); !strings.Contains(text, "portcullis_overlap_until_seconds 0\n") {
		t.Error("the metric of the overlap is not 0")
	}
}

func TestWithoutSuccessorsManifestsDoNotOverlap(t *testing.T) {
	owner := newKey(t, elliptic.P256())
	f := start(t)
	f.mustSet(t, newManifest(t, ownedBy(t, 1, owner)), owner)
	_, _, one := f.certify(t, newPod(t, webPolicy))
	// The new one's word is about the one after it.
	f.mustSet(t, newManifest(t, ownedBy(t, 1, owner), succeededWithin(t, time.Hour)), owner)
	_, resp, two := f.certify(t, newPod(t, webPolicy))
	if f.after(t, one.MeshCA.Raw) != nil {
		t.Error("a manifest without Successors has one")
	}
	if resp.Predecessor != nil || pki.NamesPredecessor(two.Leaf) {
		t.Error("new pods are told of a predecessor")
	}
	if pki.AllowsSuccessor(one.MeshCA) || !pki.AllowsSuccessor(two.MeshCA) {
		t.Errorf("path lengths %d and %d, want 0 and 1", one.MeshCA.MaxPathLen, two.MeshCA.MaxPathLen)
	}
}

func TestWhoAsksForASuccessor(t *testing.T) {
	f := start(t)
	_, err := f.Successor(t.Context(), [32]byte{1})
	wantCode(t, err, api.CodeNoManifest)
	f.mustSet(t, newManifest(t))
	if der, err := f.Successor(t.Context(), [32]byte{1}); err != nil || der != nil {
		t.Errorf("of a mesh CA that never was: %x, %v", der, err)
	}
	for name, body := range map[string]string{
		"no digest": `{}`, "half a digest": `{"meshCa":"AAAAAAAAAAAAAAAAAAAAAA=="}`, "another field": `{"nonce":"AAAA"}`,
	} {
		resp, err := http.Post(f.server.URL+api.PathSuccessor, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: status %d, want 400", name, resp.StatusCode)
		}
	}
}

// losing is a store that another writer gets to first, once it is told to be.
type losing struct {
	store.Store
	lose *atomic.Bool
}

func (l losing) Commit(ctx context.Context, objects []store.Object, old, new []byte) error {
	if l.lose.Load() {
		return store.ErrConflict
	}
	return l.Store.Commit(ctx, objects, old, new)
}

func TestASetThatIsNotKeptHandsNothingOver(t *testing.T) {
	owner := newKey(t, elliptic.P256())
	lose := new(atomic.Bool)
	f := start(t, func(c *coordinator.Config) {
		c.Store = losing{openStore(t, filepath.Join(t.TempDir(), "coordinator.db")), lose}
	})
	f.mustSet(t, newManifest(t, ownedBy(t, 1, owner), succeededWithin(t, time.Hour)), owner)
	_, _, one := f.certify(t, newPod(t, webPolicy))
	lose.Store(true)
	_, err := f.set(t, newManifest(t, ownedBy(t, 1, owner)), owner)
	wantCode(t, err, api.CodeConflict)
	if f.after(t, one.MeshCA.Raw) != nil {
		t.Error("pods are told of a manifest that was not set")
	}
}

// A Coordinator that was restarted has another mesh CA, which nothing was signed for: there is no overlap then.
func TestAfterARecoveryThereIsNoOverlap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	first := start(t, onStore(t, path))
	owner, keeper := newKey(t, elliptic.P256()), seedshareOwners(t, 1)
	alter := []func(*manifest.Manifest){ownedBy(t, 1, owner), sharedAmong(t, 1, keeper...), succeededWithin(t, time.Hour)}
	first.mustSet(t, newManifest(t, alter...), owner)
	_, _, one := first.certify(t, newPod(t, webPolicy))
	text := newManifest(t, append(alter, func(m *manifest.Manifest) { delete(m.Policies, dbPolicy) })...)
	first.mustSet(t, text, owner)
	_, _, two := first.certify(t, newPod(t, webPolicy))

	f := restart(t, path)
	_, err := f.Successor(t.Context(), sha256.Sum256(one.MeshCA.Raw))
	wantCode(t, err, api.CodeNeedsRecovery)
	v := f.mustVerifyRecovery(t, text)
	if _, err := f.Recover(t.Context(), *share(t, first.shares(t, text)[0], keeper[0], v)); err != nil {
		t.Fatal(err)
	}
	_, resp, recovered := f.certify(t, newPod(t, webPolicy))
	if resp.Predecessor != nil || pki.NamesPredecessor(recovered.Leaf) {
		t.Error("a recovered Coordinator tells of a predecessor")
	}
	if !pki.AllowsSuccessor(recovered.MeshCA) {
		t.Error("the manifest allows successors, and the mesh CA after a recovery does not")
	}
	for name, mesh := range map[string]*x509.Certificate{"first": one.MeshCA, "second": two.MeshCA} {
		if f.after(t, mesh.Raw) != nil {
			t.Errorf("pods of the %s manifest of before are told of a successor", name)
		}
	}
	// From here on it is as ever.
	f.mustSet(t, newManifest(t, alter...), owner)
	if cross := f.after(t, recovered.MeshCA.Raw); pki.VerifySuccessor(recovered.MeshCA, cross) != nil {
		t.Error("the next manifest does not overlap with the recovered one")
	}
}

// Who reads in a manifest that it allows no successors pins a mesh CA that cannot have any, whatever a Coordinator says.
func TestVerifyWantsThePathLengthOfTheManifest(t *testing.T) {
	for name, allowed := range map[string]bool{"successors": true, "none": false} {
		t.Run(name, func(t *testing.T) {
			f := start(t)
			var alter []func(*manifest.Manifest)
			if allowed {
				alter = append(alter, succeededWithin(t, time.Hour))
			}
			text := newManifest(t, alter...)
			f.mustSet(t, text)
			nonce := random(t, api.NonceSize)
			resp, err := f.Attest(t.Context(), nonce)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := api.VerifyCoordinator(t.Context(), resp, nonce, parse(t, text), manifest.ValidatorOptions{}); err != nil {
				t.Fatal(err)
			}
			resp.MeshCA = otherMeshCA(t, !allowed)
			data, err := resp.ReportData(nonce)
			if err != nil {
				t.Fatal(err)
			}
			if resp.Evidence, err = world(t).Machine(measurement, coordPolicy).Issue(t.Context(), data); err != nil {
				t.Fatal(err)
			}
			_, err = api.VerifyCoordinator(t.Context(), resp, nonce, parse(t, text), manifest.ValidatorOptions{})
			if err == nil || !strings.Contains(err.Error(), "successors: its path length is") {
				t.Errorf("VerifyCoordinator: %v", err)
			}
		})
	}
}

func otherMeshCA(t *testing.T, successors bool) []byte {
	t.Helper()
	seed := newSeed(t)
	root, err := pki.NewRootCA(seed.RootKey(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	make := map[bool]func(*x509.Certificate, *ecdsa.PrivateKey, [32]byte, time.Time) (*pki.MeshCA, error){
		false: pki.NewMeshCA, true: pki.NewMeshCAWithSuccessors,
	}
	mesh, err := make[successors](root, seed.RootKey(), [32]byte{1}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(mesh.Certificate.Raw)
}
