package initializer_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/initializer"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// succeed sets the next manifest, which overlaps with the one in force, and does what a Coordinator does from then on.
func (a *authority) succeed(n byte, overlap time.Duration) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.mesh
	a.setManifest(n)
	if err := a.mesh.Succeed(old, overlap, time.Now()); err != nil {
		a.t.Fatal(err)
	}
	cross := a.mesh.Before.Cross
	a.after = func(meshCA [32]byte) ([]byte, error) {
		if meshCA == sha256.Sum256(old.Certificate.Raw) && time.Now().Before(cross.NotAfter) {
			return cross.Raw, nil
		}
		return nil, nil
	}
}

// overlapping is inBubble with manifests that allow the next one.
func overlapping(t *testing.T, f func(*testing.T, *authority, *pod)) {
	t.Helper()
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		a.successors = true
		a.setManifest(1)
		f(t, a, p)
	})
}

// runTo runs the Initializer until a time.
func (p *pod) runTo(t *testing.T, at time.Time) {
	t.Helper()
	p.runBy(t, time.Until(at), func() bool { return !time.Now().Before(at) })
}

// asksAfter is how often somebody asked what came after.
func (a *authority) asksAfter() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.followed)
}

// trusts says whether the trust file holds exactly these.
func (p *pod) trusts(certificates ...*x509.Certificate) bool {
	text, err := os.ReadFile(filepath.Join(p.Dir, "tls-config/mesh-ca.pem"))
	return err == nil && bytes.Equal(text, pki.EncodeCertificates(certificates...))
}

// files are the contents of all that applications find.
func files(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, pattern := range []string{"tls-config/*", "secrets/*"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			content, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s %x\n", name, sha256.Sum256(content))
		}
	}
	return b.String()
}

func TestANewPodAcceptsTheManifestBeforeUntilThatIsOver(t *testing.T) {
	overlapping(t, func(t *testing.T, a *authority, p *pod) {
		old := a.mesh.Certificate
		a.succeed(2, time.Hour)
		over := time.Now().Add(time.Hour)
		p.runTo(t, over.Add(-2*time.Second))
		if !p.trusts(a.mesh.Certificate, old) {
			t.Fatalf("the trust file is not the own mesh CA, then that of before; the log:\n%s", p.log)
		}
		p.runTo(t, over.Add(2*time.Second))
		if !p.trusts(a.mesh.Certificate) || !p.logs("the time is over")() {
			t.Errorf("the overlap is over, and the trust file is as before; the log:\n%s", p.log)
		}
		if a.asked() != 1 {
			t.Errorf("%d certificates were asked for, want one", a.asked())
		}
	})
}

// Whatever happened to the Initializer meanwhile.
func TestAtItsStartAnInitializerDropsWhatIsOver(t *testing.T) {
	overlapping(t, func(t *testing.T, a *authority, p *pod) {
		old := a.mesh.Certificate
		a.succeed(2, time.Hour)
		p.run(t, p.ready)
		if !p.trusts(a.mesh.Certificate, old) {
			t.Fatal("the mesh CA of before is not accepted")
		}
		time.Sleep(2 * time.Hour)
		a.errs = []error{errors.New("nobody answers"), errors.New("nobody answers")}
		p.run(t, func() bool { return p.trusts(a.mesh.Certificate) })
	})
}

func TestARenewalWithinTheOverlapKeepsThePredecessorAndOneAfterItDoesNot(t *testing.T) {
	overlapping(t, func(t *testing.T, a *authority, p *pod) {
		a.validity = 20 * time.Minute
		old := a.mesh.Certificate
		a.succeed(2, time.Hour)
		over := time.Now().Add(time.Hour)
		p.runBy(t, 5*time.Second, func() bool { return a.asked() == 3 && p.ready() })
		if time.Now().After(over) || !p.trusts(a.mesh.Certificate, old) {
			t.Fatal("a renewal lost the predecessor")
		}
		asked := a.asked()
		p.runBy(t, 5*time.Second, func() bool { return a.asked() > asked && time.Now().After(over.Add(10*time.Minute)) })
		if !p.trusts(a.mesh.Certificate) {
			t.Error("a renewal after the overlap kept the predecessor")
		}
	})
}

func TestAnOldPodLearnsOfTheNextManifest(t *testing.T) {
	overlapping(t, func(t *testing.T, a *authority, p *pod) {
		a.secretID = "shop"
		p.run(t, p.ready)
		held, err := initializer.Load(p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		old := a.mesh.Certificate
		a.followed = nil
		began := time.Now()
		p.runBy(t, 10*time.Minute, func() bool { return time.Since(began) > time.Hour })
		if n := len(a.followed); n < 30 || n > 61 {
			t.Errorf("in an hour it asked %d times for a new manifest, want once in one to two minutes", n)
		}
		a.succeed(2, time.Hour)
		cross := a.mesh.Before.Cross
		over := time.Now().Add(time.Hour)
		began = time.Now()
		p.runBy(t, 5*time.Second, func() bool { return p.trusts(old, cross) })
		if d := time.Since(began); d > 2*time.Minute {
			t.Errorf("it took %v to learn of the new manifest", d)
		}
		got, err := initializer.Load(p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Key.Equal(held.Key) || !got.Chain.Leaf.Equal(held.Chain.Leaf) || !got.Secret.Equal(held.Secret) {
			t.Error("the credentials themselves changed")
		}
		if got.Changed.IsZero() || !p.logs("roll it out again")() {
			t.Error("it is not said that the pod must be rolled out again")
		}
		asked := len(a.followed)
		p.runTo(t, over.Add(-2*time.Second))
		if !p.trusts(old, cross) {
			t.Error("before the overlap is over, the successor is not accepted any more")
		}
		if n := len(a.followed); n != asked {
			t.Errorf("it knows the successor, and asked %d times more", n-asked)
		}
		p.runTo(t, over.Add(2*time.Second))
		if !p.trusts(old) {
			t.Error("the overlap is over, and the successor is still accepted")
		}
	})
}

// A renewal, which may come in between as long as the Coordinator renews, leaves the successor where it is.
func TestARenewalKeepsTheSuccessor(t *testing.T) {
	overlapping(t, func(t *testing.T, a *authority, p *pod) {
		a.validity = 20 * time.Minute
		p.run(t, p.ready)
		first := a.mesh
		answer := a.answer
		a.succeed(2, 10*time.Hour)
		cross := a.mesh.Before.Cross
		a.mesh, a.answer = first, answer // which goes on renewing
		p.runBy(t, 5*time.Second, func() bool { return p.trusts(first.Certificate, cross) })
		asked := a.asked()
		p.runBy(t, 5*time.Second, func() bool { return a.asked() == asked+2 })
		if !p.trusts(first.Certificate, cross) {
			t.Error("a renewal lost the successor")
		}
	})
}

func TestWithoutSuccessorsAPodAsksForNone(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		began := time.Now()
		p.runBy(t, time.Minute, func() bool { return time.Since(began) > 3*time.Hour })
		if n := len(a.followed); n != 0 {
			t.Errorf("it asked %d times", n)
		}
	})
}

// What a host may answer to an old pod.
func TestAnOldPodBelievesItsMeshCAAlone(t *testing.T) {
	type cross = func(t *testing.T, a, other *authority) []byte
	for name, answer := range map[string]cross{
		"garbage": func(*testing.T, *authority, *authority) []byte { return []byte("no") },
		"another Coordinator's cross-certificate": func(_ *testing.T, _, other *authority) []byte {
			other.succeed(2, time.Hour)
			return other.mesh.Before.Cross.Raw
		},
		"another Coordinator's mesh CA": func(_ *testing.T, _, other *authority) []byte { return other.mesh.Certificate.Raw },
		"its own mesh CA":               func(_ *testing.T, a, _ *authority) []byte { return a.mesh.Certificate.Raw },
		"its own intermediate CA":       func(_ *testing.T, a, _ *authority) []byte { return a.mesh.Intermediate.Raw },
		"the successor's mesh CA": func(_ *testing.T, a, _ *authority) []byte {
			first := a.mesh
			a.succeed(2, time.Hour)
			der := a.mesh.Certificate.Raw
			a.mesh = first
			return der
		},
		"the cross-certificate when it is over": func(t *testing.T, a, _ *authority) []byte {
			first := a.mesh
			a.succeed(2, time.Minute)
			der := a.mesh.Before.Cross.Raw
			a.mesh = first
			time.Sleep(time.Minute)
			return der
		},
		"what came after the successor": func(_ *testing.T, a, _ *authority) []byte {
			first := a.mesh
			a.succeed(2, time.Hour)
			a.succeed(3, time.Hour)
			der := a.mesh.Before.Cross.Raw
			a.mesh = first
			return der
		},
	} {
		t.Run(name, func(t *testing.T) {
			overlapping(t, func(t *testing.T, a *authority, p *pod) {
				p.run(t, p.ready)
				other := newAuthority(t)
				other.successors = true
				other.setManifest(1)
				der := answer(t, a, other)
				before := snapshot(t, p.Dir)
				a.after = func([32]byte) ([]byte, error) { return der, nil }
				a.followed = nil
				p.runBy(t, 5*time.Second, func() bool { return a.asksAfter() > 3 })
				if snapshot(t, p.Dir) != before {
					t.Errorf("it was believed; the log:\n%s", p.log)
				}
				if n := strings.Count(p.log.String(), "it is not known whether there is a new manifest"); n != 1 {
					t.Errorf("it complained %d times, want once", n)
				}
			})
		})
	}
}

func TestWhileNobodyAnswersAnOldPodKeepsAsking(t *testing.T) {
	overlapping(t, func(t *testing.T, a *authority, p *pod) {
		p.run(t, p.ready)
		old := a.mesh.Certificate
		a.succeed(2, time.Hour)
		honest, cross := a.after, a.mesh.Before.Cross
		a.followed = nil
		a.after = func(meshCA [32]byte) ([]byte, error) {
			if len(a.followed) < 5 {
				return nil, errors.New("nobody answers")
			}
			return honest(meshCA)
		}
		p.runBy(t, 5*time.Second, func() bool { return p.trusts(old, cross) })
	})
}

// What a host may make of an answer that has a predecessor, or has none. The pod's own mesh CA signed for it.
func TestAPredecessorIsBelievedWithTheWholeAnswerOrNotAtAll(t *testing.T) {
	for name, tc := range map[string]struct {
		overlaps bool
		spoil    func(a *api.CertificateResponse, stranger []byte)
		fault    string
	}{
		"a predecessor put in":            {false, func(a *api.CertificateResponse, stranger []byte) { a.Predecessor = stranger }, "names none"},
		"another in its place":            {true, func(a *api.CertificateResponse, stranger []byte) { a.Predecessor = stranger }, "which the mesh certificate names"},
		"the own mesh CA in its place":    {true, func(a *api.CertificateResponse, _ []byte) { a.Predecessor = a.MeshCA }, "which the mesh certificate names"},
		"the predecessor taken out":       {true, func(a *api.CertificateResponse, _ []byte) { a.Predecessor = nil }, "there is none"},
		"garbage in its place":            {true, func(a *api.CertificateResponse, _ []byte) { a.Predecessor = []byte("no") }, "parse the predecessor"},
		"something behind it":             {true, func(a *api.CertificateResponse, _ []byte) { a.Predecessor = append(a.Predecessor, 0) }, "predecessor"},
		"the root CA of all in its place": {true, func(a *api.CertificateResponse, _ []byte) { a.Predecessor = a.RootCA }, "which the mesh certificate names"},
	} {
		t.Run(name, func(t *testing.T) {
			overlapping(t, func(t *testing.T, a *authority, p *pod) {
				if tc.overlaps {
					a.succeed(2, time.Hour)
				}
				other := newAuthority(t)
				other.successors = true
				other.setManifest(1)
				a.spoil = func(_ *api.CertificateRequest, answer *api.CertificateResponse) {
					answer.Predecessor = bytes.Clone(answer.Predecessor)
					tc.spoil(answer, other.mesh.Certificate.Raw)
				}
				p.run(t, p.logs("answer was refused"))
				if !p.logs(tc.fault)() || len(list(t, p.Dir)) != 0 {
					t.Errorf("the volume holds %q; the log:\n%s", list(t, p.Dir), p.log)
				}
			})
		})
	}
}

func TestStatusSaysWhetherThePodIsToBeRolledOutAgain(t *testing.T) {
	overlapping(t, func(t *testing.T, a *authority, p *pod) {
		if _, err := initializer.ReadStatus(p.Dir, time.Now()); err == nil {
			t.Error("an empty volume has a status")
		}
		first := a.mesh.Certificate
		a.succeed(2, time.Hour)
		p.run(t, p.ready)
		status := func() *initializer.Status {
			t.Helper()
			s, err := initializer.ReadStatus(p.Dir, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		digest := sha256.Sum256(a.mesh.Certificate.Raw)
		s := status()
		if s.RollOut || !s.Successors || s.MeshCA != fmt.Sprintf("%x", digest) || !slices.Equal(s.SANs, []string{"web"}) ||
			s.PredecessorUntil.IsZero() || !s.SuccessorUntil.IsZero() || !s.Renewal.Before(s.NotAfter) {
			t.Errorf("status %+v", s)
		}
		for _, text := range []string{"the credentials are good", "web", "manifest before", "will be accepted for a while"} {
			if !strings.Contains(s.String(), text) {
				t.Errorf("the status does not say %q:\n%s", text, s)
			}
		}
		if p.trusts(first) {
			t.Error("the status changed the volume")
		}
		a.succeed(3, 30*time.Minute)
		p.runBy(t, 5*time.Second, func() bool { return status().RollOut })
		s = status()
		if s.ChangedSince.IsZero() || !s.SuccessorUntil.Equal(a.mesh.Before.Until()) {
			t.Errorf("status %+v", s)
		}
		for _, text := range []string{"roll this pod out again before " + s.NotAfter.Format(time.RFC3339), "none, known since", "next manifest"} {
			if !strings.Contains(s.String(), text) {
				t.Errorf("the status does not say %q:\n%s", text, s)
			}
		}
		// When the overlap is over it is still so.
		time.Sleep(time.Hour)
		if s := status(); !s.RollOut || !s.SuccessorUntil.IsZero() || !strings.Contains(s.String(), "its pods are not accepted") {
			t.Errorf("status %+v\n%s", s, s)
		}
		text, err := json.Marshal(status())
		if err != nil || !strings.Contains(string(text), `"rollOut":true`) || strings.Contains(string(text), "successorUntil") {
			t.Errorf("JSON %s, %v", text, err)
		}
		if _, err := initializer.ReadStatus(p.Dir, time.Now().Add(40*24*time.Hour)); err == nil {
			t.Error("an expired certificate is good")
		}
	})
}

// A host that leads a renewal to another Coordinator gets nothing of it onto the volume.
func TestAPinnedPodIsRenewedByItsOwnersAlone(t *testing.T) {
	owner, host := newOwner(t), newOwner(t)
	good, bad := startCoordinator(t, machine(t, measurement, coordPolicy)), startCoordinator(t, machine(t, measurement, coordPolicy))
	short := shortest(t)
	set(t, good, meshManifest(t, []*ecdsa.PrivateKey{owner}, short), owner)
	set(t, bad, meshManifest(t, []*ecdsa.PrivateKey{host}, short), host)
	w := &way{to: good}
	p := newPinnedPod(t, w, []*ecdsa.PrivateKey{owner})
	p.runUntil(t, p.ready)
	before := files(t, p.Dir)

	// The host's Coordinator must not see which mesh CA the pod holds, or it would not answer.
	w.to, w.certificate = bad, forgetful(bad)
	refused := p.logs("answer was refused")
	p.runUntil(t, func() bool { return refused() || files(t, p.Dir) != before })
	if !p.logs(`"field":"workload owners"`)() {
		t.Errorf("it is not said why; the log:\n%s", p.log)
	}
	// As it is, that one says that the manifest has changed: the pod marks it, and keeps what it has.
	w.certificate = nil
	p.runUntil(t, p.logs("roll it out again"))
	if files(t, p.Dir) != before {
		t.Fatal("the credentials changed")
	}
	// Another Coordinator of the same owners is another mesh, too.
	twin := startCoordinator(t, machine(t, measurement, coordPolicy))
	set(t, twin, meshManifest(t, []*ecdsa.PrivateKey{owner}, short), owner)
	w.to, w.certificate = twin, forgetful(twin)
	p.runUntil(t, p.logs("its mesh CA is not the one that this pod holds"))
	if files(t, p.Dir) != before {
		t.Fatal("the credentials changed")
	}
	w.to, w.certificate = good, nil
	p.runUntil(t, func() bool { return files(t, p.Dir) != before })
	if c, err := initializer.Load(p.Dir); err != nil || !c.Changed.IsZero() {
		t.Errorf("it is renewed, and marked all the same: %v", err)
	}
}

// forgetful is a way to a Coordinator on which requests lose the mesh CA that the pod holds. No signature covers it.
func forgetful(c *api.Client) func(context.Context, api.CertificateRequest) (*api.CertificateResponse, error) {
	return func(ctx context.Context, r api.CertificateRequest) (*api.CertificateResponse, error) {
		r.MeshCA = nil
		return c.Certificate(ctx, r)
	}
}

// shortest makes certificates that are renewed at every start: they live a minute, and are backdated.
func shortest(t *testing.T) func(*manifest.Manifest) {
	t.Helper()
	validity, err := manifest.NewValidity(manifest.MinValidity)
	if err != nil {
		t.Fatal(err)
	}
	return func(m *manifest.Manifest) { m.CertificateValidity = validity }
}

// With real Coordinators: pods with a pin and without, before and after a new manifest.
func TestManifestsOverlapFromTheCoordinatorToTheTrustFile(t *testing.T) {
	owner := newOwner(t)
	overlap, err := manifest.NewOverlap(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c := startCoordinator(t, machine(t, measurement, coordPolicy))
	set(t, c, meshManifest(t, []*ecdsa.PrivateKey{owner}, func(m *manifest.Manifest) {
		m.Successors = &manifest.Successors{MaxOverlap: overlap}
	}), owner)
	var old, young [2]*pod
	start := func(pods *[2]*pod) {
		for i := range pods {
			pods[i] = newPinnedPod(t, c, []*ecdsa.PrivateKey{owner})
		}
		pods[1].Pin = nil
		for _, p := range pods {
			p.runUntil(t, p.ready)
		}
	}
	start(&old)
	set(t, c, meshManifest(t, []*ecdsa.PrivateKey{owner}), owner)
	start(&young)
	for _, p := range old {
		p.runUntil(t, p.logs("there is a new manifest"))
	}
	load := func(p *pod) *initializer.Credentials {
		t.Helper()
		c, err := initializer.Load(p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for i := range old {
		before, after := load(old[i]), load(young[i])
		if !old[i].trusts(before.Chain.MeshCA, before.Trust.Successor) || !young[i].trusts(after.Chain.MeshCA, before.Chain.MeshCA) {
			t.Errorf("pods %d trust something else", i)
		}
		for name, pair := range map[string][2]*initializer.Credentials{"old to young": {before, after}, "young to old": {after, before}} {
			client, server := pair[0], pair[1]
			roots := x509.NewCertPool()
			for _, c := range []*x509.Certificate{server.Trust.MeshCA, server.Trust.Predecessor, server.Trust.Successor} {
				if c != nil {
					roots.AddCert(c)
				}
			}
			intermediates := x509.NewCertPool()
			intermediates.AddCert(client.Chain.Intermediate)
			if _, err := client.Chain.Leaf.Verify(x509.VerifyOptions{
				Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			}); err != nil {
				t.Errorf("pods %d, %s: %v", i, name, err)
			}
		}
	}
}
