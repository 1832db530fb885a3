package initializer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/initializer"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/simtdx"
	"portcullis.dev/portcullis/tests/simtee"
)

// The mesh of these tests: one image, two pods, real formats of SEV-SNP.
var (
	measurement = simtee.Measurement{1}
	coordPolicy = attestation.PolicyHash{0xc0}
	webPolicy   = attestation.PolicyHash{0x10}
)

var newWorld = sync.OnceValues(func() (*simtee.World, error) { return simtee.New(simtee.PublishedKeys()) })

func world(t *testing.T) *simtee.World {
	t.Helper()
	w, err := newWorld()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// machine is a guest, with evidence of SEV-SNP.
func machine(t *testing.T, m simtee.Measurement, policy attestation.PolicyHash) *simtee.Machine {
	t.Helper()
	guest := world(t).Machine(m, policy)
	guest.Platform = attestation.SNP
	return guest
}

func newOwner(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// meshManifest admits the Coordinator and the pod, altered.
func meshManifest(t *testing.T, owners []*ecdsa.PrivateKey, alter ...func(*manifest.Manifest)) *manifest.Manifest {
	t.Helper()
	san, err := pki.ParseSAN("web")
	if err != nil {
		t.Fatal(err)
	}
	m := &manifest.Manifest{
		Policies: map[attestation.PolicyHash]manifest.Policy{
			coordPolicy: {Role: manifest.RoleCoordinator}, webPolicy: {SANs: []pki.SAN{san}, WorkloadSecretID: "web"},
		},
		ReferenceValues:        manifest.ReferenceValues{SNP: []snp.ReferenceValue{world(t).SNPReference(measurement)}},
		WorkloadOwnerThreshold: len(owners),
	}
	for _, key := range owners {
		owner, err := manifest.NewOwnerKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		m.WorkloadOwnerKeys = append(m.WorkloadOwnerKeys, owner)
	}
	for _, a := range alter {
		a(m)
	}
	return m
}

// startCoordinator starts a genuine Coordinator on a guest, without a manifest.
func startCoordinator(t *testing.T, guest attestation.Issuer) *api.Client {
	t.Helper()
	db, err := store.OpenBolt(filepath.Join(t.TempDir(), "coordinator.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	amd, err := collateral.New(collateral.Config{Transport: world(t).KDS()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { amd.Close() })
	c, err := coordinator.New(t.Context(), coordinator.Config{
		Store: db, Issuer: guest, Collateral: amd, SNPRoots: world(t).Roots(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(c.Handler())
	t.Cleanup(server.Close)
	client, err := api.New(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// set sets a manifest after whatever there is, signed.
func set(t *testing.T, c *api.Client, m *manifest.Manifest, signers ...*ecdsa.PrivateKey) {
	t.Helper()
	told, err := c.Attest(t.Context(), make([]byte, api.NonceSize))
	if err != nil {
		t.Fatal(err)
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	previous := told.TransitionHash()
	request := api.SetRequest{Manifest: text, Previous: previous[:]}
	digest := sha256.Sum256(manifest.SignedMessage(manifest.TransitionHash(text, previous)))
	for _, key := range signers {
		spki, err := pki.SPKI(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		request.Signatures = append(request.Signatures, manifest.Signature{PublicKey: spki, Signature: signature})
	}
	if _, err := c.Set(t.Context(), request); err != nil {
		t.Fatal(err)
	}
}

// way is the host's, between the pod and a Coordinator.
type way struct {
	to          *api.Client
	certificate func(context.Context, api.CertificateRequest) (*api.CertificateResponse, error)
	attest      func(*api.AttestResponse)
	honest      bool // from now on
}

func (w *way) Nonce(ctx context.Context) ([]byte, error) { return w.to.Nonce(ctx) }

func (w *way) Certificate(ctx context.Context, r api.CertificateRequest) (*api.CertificateResponse, error) {
	if w.certificate != nil && !w.honest {
		return w.certificate(ctx, r)
	}
	return w.to.Certificate(ctx, r)
}

func (w *way) Successor(ctx context.Context, meshCA [32]byte) ([]byte, error) {
	return w.to.Successor(ctx, meshCA)
}

func (w *way) Attest(ctx context.Context, nonce []byte) (*api.AttestResponse, error) {
	a, err := w.to.Attest(ctx, nonce)
	if err == nil && w.attest != nil && !w.honest {
		w.attest(a)
	}
	return a, err
}

// newPinnedPod is a pod that trusts the Coordinator of coordPolicy under manifests of these owners.
func newPinnedPod(t *testing.T, c initializer.Coordinator, owners []*ecdsa.PrivateKey) *pod {
	t.Helper()
	log := &netlab.Log{}
	return &pod{log: log, Config: initializer.Config{
		Dir:         t.TempDir(),
		Coordinator: c,
		Pin:         new(meshManifest(t, owners).Pin(coordPolicy)),
		Validation:  manifest.ValidatorOptions{Collateral: world(t).KDS(), SNPRoots: world(t).Roots()},
		Issuer:      func() (attestation.Issuer, error) { return machine(t, measurement, webPolicy), nil },
		OpenGuard:   func(context.Context) error { return errors.New("nobody asked to open the guard") },
		Log:         slog.New(slog.NewJSONHandler(log, nil)),
	}}
}

// runUntil runs the Initializer until the condition holds, by the real clock: a Coordinator has connections.
func (p *pod) runUntil(t *testing.T, until func() bool) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- initializer.Run(ctx, p.Config) }()
	for deadline := time.Now().Add(time.Minute); !until(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("nothing happened for a minute; the log:\n%s", p.log)
			break
		}
		select {
		case err := <-done:
			t.Fatalf("Run ended: %v; the log:\n%s", err, p.log)
		default:
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// mustRefuse sees the answer refused for that field, and nothing of it kept.
func (p *pod) mustRefuse(t *testing.T, field, fault string) {
	t.Helper()
	refused := p.logs("answer was refused")
	p.runUntil(t, func() bool { return refused() || p.ready() })
	for _, text := range []string{`"field":"` + field + `"`, fault} {
		if !strings.Contains(p.log.String(), text) {
			t.Errorf("the log does not say %q:\n%s", text, p.log)
		}
	}
	if entries := list(t, p.Dir); len(entries) != 0 {
		t.Errorf("the volume holds %q", entries)
	}
}

func TestAPinnedPodJoinsTheMeshOfItsOwners(t *testing.T) {
	owners := []*ecdsa.PrivateKey{newOwner(t), newOwner(t)}
	c := startCoordinator(t, machine(t, measurement, coordPolicy))
	set(t, c, meshManifest(t, owners), owners...)
	p := newPinnedPod(t, c, []*ecdsa.PrivateKey{owners[1], owners[0]}) // their order says nothing
	p.runUntil(t, p.ready)

	// A later manifest of the same owners is as good.
	validity, err := manifest.NewValidity(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	set(t, c, meshManifest(t, owners, func(m *manifest.Manifest) { m.CertificateValidity = validity }), owners...)
	p = newPinnedPod(t, c, owners)
	p.runUntil(t, p.ready)
}

// Without a pin nothing tells the owners' Coordinator from a genuine one that the host set up.
func TestAPodWithoutAPinJoinsAnyCoordinatorThatAnswers(t *testing.T) {
	host := newOwner(t)
	c := startCoordinator(t, machine(t, measurement, coordPolicy))
	set(t, c, meshManifest(t, []*ecdsa.PrivateKey{host}), host)
	p := newPinnedPod(t, c, []*ecdsa.PrivateKey{newOwner(t)})
	p.Pin = nil
	p.runUntil(t, p.ready)
}

// What a host may run in the place of the Coordinator: real ones, all of which certify the pod.
func TestAPinnedPodRefusesOtherCoordinators(t *testing.T) {
	owner, other, host := newOwner(t), newOwner(t), newOwner(t)
	type keys = []*ecdsa.PrivateKey
	genuine := machine(t, measurement, coordPolicy)
	simulated := world(t).Machine(measurement, coordPolicy)
	for name, tc := range map[string]struct {
		guest        attestation.Issuer
		set          func(t *testing.T, c *api.Client)
		field, fault string
	}{
		"a genuine one with the host's manifest": {genuine, func(t *testing.T, c *api.Client) {
			set(t, c, meshManifest(t, keys{host}), host)
		}, "workload owners", "in manifest 1 of 1 is"},
		"one with a manifest that nobody owns": {genuine, func(t *testing.T, c *api.Client) {
			set(t, c, meshManifest(t, nil))
		}, "workload owners", "in manifest 1 of 1 is 0000"},
		"one where one of two owners suffices": {genuine, func(t *testing.T, c *api.Client) {
			set(t, c, meshManifest(t, keys{owner, other}, func(m *manifest.Manifest) { m.WorkloadOwnerThreshold = 1 }), owner)
		}, "workload owners", "in manifest 1 of 1 is"},
		"one where the host is an owner, too": {genuine, func(t *testing.T, c *api.Client) {
			set(t, c, meshManifest(t, keys{owner, other, host}), owner, other, host)
		}, "workload owners", "in manifest 1 of 1 is"},
		"one whose history the host began, and made over to the owners": {genuine, func(t *testing.T, c *api.Client) {
			set(t, c, meshManifest(t, keys{host}), host)
			set(t, c, meshManifest(t, keys{owner, other}), host)
		}, "workload owners", "in manifest 1 of 2 is"},
		"one whose owners were the pinned ones": {genuine, func(t *testing.T, c *api.Client) {
			set(t, c, meshManifest(t, keys{owner, other}), owner, other)
			set(t, c, meshManifest(t, keys{host}), owner, other)
		}, "workload owners", "in manifest 2 of 2 is"},
		"one with another policy hash": {
			machine(t, measurement, attestation.PolicyHash{0xc1}), func(t *testing.T, c *api.Client) {
				set(t, c, meshManifest(t, keys{owner, other}), owner, other)
			}, "policy hash", "it is c100",
		},
		"one that the owners dismissed": {genuine, func(t *testing.T, c *api.Client) {
			set(t, c, meshManifest(t, keys{owner, other}, func(m *manifest.Manifest) {
				m.Policies[attestation.PolicyHash{0xc1}] = m.Policies[coordPolicy]
				m.Policies[coordPolicy] = manifest.Policy{}
			}), owner, other)
		}, "policy hash", "in the manifest in force"},
		"one of another image": {machine(t, simtee.Measurement{9}, coordPolicy), func(t *testing.T, c *api.Client) {
			set(t, c, meshManifest(t, keys{owner, other}), owner, other)
		}, "MEASUREMENT", "evidence rejected"},
		"one on a simulated TEE": {simulated, func(t *testing.T, c *api.Client) {
			set(t, c, meshManifest(t, keys{owner, other}), owner, other)
		}, "PLATFORM", "simulated"},
	} {
		t.Run(name, func(t *testing.T) {
			c := startCoordinator(t, tc.guest)
			tc.set(t, c)
			newPinnedPod(t, c, keys{owner, other}).mustRefuse(t, tc.field, tc.fault)
		})
	}
}

// What a host may make of the answers of two Coordinators, the owners' and one of its own, which both are genuine.
func TestAPinnedPodRefusesAnAnswerMadeOfSeveral(t *testing.T) {
	owner, host := newOwner(t), newOwner(t)
	owners := []*ecdsa.PrivateKey{owner}
	good := startCoordinator(t, machine(t, measurement, coordPolicy))
	set(t, good, meshManifest(t, owners), owner)
	set(t, good, meshManifest(t, owners), owner)
	bad := startCoordinator(t, machine(t, measurement, coordPolicy))
	set(t, bad, meshManifest(t, []*ecdsa.PrivateKey{host}), host)
	history := func(c *api.Client) []api.HistoryEntry {
		a, err := c.Attest(t.Context(), make([]byte, api.NonceSize))
		if err != nil {
			t.Fatal(err)
		}
		return a.History
	}
	// altered is an honest answer, altered.
	type answer = api.CertificateResponse
	altered := func(alter func(*answer)) func(context.Context, api.CertificateRequest) (*answer, error) {
		return func(ctx context.Context, r api.CertificateRequest) (*answer, error) {
			a, err := good.Certificate(ctx, r)
			if err == nil {
				alter(a)
			}
			return a, err
		}
	}
	var stolen *answer // one to another pod
	first := newPinnedPod(t, &way{to: good, certificate: func(ctx context.Context, r api.CertificateRequest) (*answer, error) {
		a, err := good.Certificate(ctx, r)
		stolen = a
		return a, err
	}}, owners)
	first.runUntil(t, first.ready)
	for name, tc := range map[string]struct {
		way          way
		field, fault string
	}{
		"no evidence": {way{certificate: altered(func(a *answer) { a.Evidence = nil })}, "evidence", "the answer has none"},
		"empty evidence": {
			way{certificate: altered(func(a *answer) { a.Evidence = new(attestation.Evidence) })}, "PLATFORM", "evidence rejected",
		},
		"evidence over an answer to another pod": {
			way{certificate: altered(func(a *answer) { a.Evidence = stolen.Evidence })}, "REPORT_DATA", "evidence rejected",
		},
		"evidence over another answer to the same request": {way{certificate: func(ctx context.Context, r api.CertificateRequest) (*answer, error) {
			first, err := good.Certificate(ctx, r)
			if err != nil {
				return nil, err
			}
			second, err := good.Certificate(ctx, r)
			if err == nil {
				second.Evidence = first.Evidence
			}
			return second, err
		}}, "REPORT_DATA", "evidence rejected"},
		"the host's certificates, with evidence of the owners' Coordinator": {
			way{to: bad, certificate: func(ctx context.Context, r api.CertificateRequest) (*answer, error) {
				a, err := bad.Certificate(ctx, r)
				if err == nil {
					a.Evidence = stolen.Evidence
				}
				return a, err
			}}, "REPORT_DATA", "evidence rejected",
		},
		"the host's certificates, under the owners' transition": {
			way{to: bad, certificate: func(ctx context.Context, r api.CertificateRequest) (*answer, error) {
				a, err := bad.Certificate(ctx, r)
				if err == nil {
					a.TransitionHash = stolen.TransitionHash
				}
				return a, err
			}}, "answer", "the mesh CA is not the one of transition",
		},
		"evidence over the history": {way{certificate: altered(func(a *answer) {
			told, err := good.Attest(t.Context(), make([]byte, api.NonceSize))
			if err != nil {
				t.Error(err)
				return
			}
			a.Evidence = &told.Evidence
		})}, "REPORT_DATA", "evidence rejected"},
		"the pod's own evidence": {way{certificate: func(ctx context.Context, r api.CertificateRequest) (*answer, error) {
			a, err := good.Certificate(ctx, r)
			if err == nil {
				a.Evidence = &r.Evidence
			}
			return a, err
		}}, "REPORT_DATA", "evidence rejected"},
		"the owners' history behind the host's Coordinator": {way{to: bad, attest: func(a *api.AttestResponse) {
			a.History = history(good)
		}}, "history", "it ends with transition"},
		"the host's history behind the owners' Coordinator": {way{attest: func(a *api.AttestResponse) {
			a.History = history(bad)
		}}, "history", "it ends with transition"},
		"the beginning of the history alone": {
			way{attest: func(a *api.AttestResponse) { a.History = a.History[:1] }},
			"history", "it ends with transition",
		},
		"the end of the history alone": {way{attest: func(a *api.AttestResponse) { a.History = a.History[1:] }}, "history", "manifest 1 of 1"},
		"no history":                   {way{attest: func(a *api.AttestResponse) { a.History = nil }}, "history", "it is empty"},
		"a history without signatures": {
			way{attest: func(a *api.AttestResponse) { a.History[1].Signatures = nil }},
			"history", "signed by 0 of the 1 keys",
		},
		// Its error would end the Initializer if it were taken for a mistake in our own configuration.
		"a history that is not JSON": {
			way{attest: func(a *api.AttestResponse) { a.History[0].Manifest = []byte("{") }},
			"history", "manifest 1 of 2",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &tc.way
			if w.to == nil {
				w.to = good
			}
			p := newPinnedPod(t, w, owners)
			p.mustRefuse(t, tc.field, tc.fault)

			// The host tires of it: the pod comes up, in the owners' mesh.
			w.to = good
			w.honest = true
			p.runUntil(t, p.ready)
		})
	}
}

// A mesh of both: the pod is a guest of SEV-SNP, the Coordinator one of TDX.
func TestACoordinatorOnTDXIsPinnedAlike(t *testing.T) {
	intel, err := simtdx.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	owner := newOwner(t)
	owners := []*ecdsa.PrivateKey{owner}
	reference := intel.Machine(coordPolicy).Reference()
	try := func(t *testing.T, guest *simtdx.Machine) *pod {
		c := startCoordinator(t, guest)
		set(t, c, meshManifest(t, owners, func(m *manifest.Manifest) { m.ReferenceValues.TDX = []tdx.ReferenceValue{reference} }), owner)
		p := newPinnedPod(t, c, owners)
		p.Pin.ReferenceValues = manifest.ReferenceValues{TDX: []tdx.ReferenceValue{reference}}
		p.Validation = manifest.ValidatorOptions{Collateral: intel, TDXRoots: []*x509.Certificate{intel.Root}}
		return p
	}
	t.Run("the pinned one", func(t *testing.T) {
		p := try(t, intel.Machine(coordPolicy))
		p.runUntil(t, p.ready)
	})
	t.Run("another image", func(t *testing.T) {
		guest := intel.Machine(coordPolicy)
		guest.TD.MRTD[0] ^= 1
		try(t, guest).mustRefuse(t, "MRTD", "evidence rejected")
	})
	t.Run("another policy hash", func(t *testing.T) {
		try(t, intel.Machine(attestation.PolicyHash{0xc1})).mustRefuse(t, "policy hash", "it is c100")
	})
}

// A vendor that is down is no reason to believe, and none to give up.
func TestAPinnedPodWaitsForTheVendor(t *testing.T) {
	owner := newOwner(t)
	owners := []*ecdsa.PrivateKey{owner}
	c := startCoordinator(t, machine(t, measurement, coordPolicy))
	set(t, c, meshManifest(t, owners), owner)
	p := newPinnedPod(t, c, owners)
	var up atomic.Bool
	kds := world(t).KDS()
	kds.Answer = func(_ context.Context, _ string, body []byte) ([]byte, error) {
		if !up.Load() {
			return nil, errors.New("no route to host")
		}
		return body, nil
	}
	p.Validation.Collateral = kds
	p.runUntil(t, p.logs("no certificate yet"))
	if log := p.log.String(); !strings.Contains(log, "no route to host") || strings.Contains(log, "refused") || p.ready() {
		t.Errorf("the vendor is down, and the log says:\n%s", log)
	}
	up.Store(true)
	p.runUntil(t, p.ready)
}

func TestAPinThatSaysNothingIsRefused(t *testing.T) {
	good := *newPinnedPod(t, newAuthority(t), []*ecdsa.PrivateKey{newOwner(t)}).Pin
	for name, alter := range map[string]func(*initializer.Config){
		"zero":                func(c *initializer.Config) { c.Pin = new(manifest.Pin) },
		"no policy hash":      func(c *initializer.Config) { c.Pin.PolicyHash = attestation.PolicyHash{} },
		"no reference values": func(c *initializer.Config) { c.Pin.ReferenceValues = manifest.ReferenceValues{} },
		"no workload owners":  func(c *initializer.Config) { c.Pin.WorkloadOwners = manifest.OwnersDigest{} },
		"no collateral":       func(c *initializer.Config) { c.Validation.Collateral = nil },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPinnedPod(t, newAuthority(t), nil)
			p.Pin = new(good)
			alter(&p.Config)
			ctx, stop := context.WithTimeout(t.Context(), time.Minute)
			defer stop()
			if err := initializer.Run(ctx, p.Config); err == nil || ctx.Err() != nil {
				t.Errorf("Run: %v, want a refusal at once", err)
			}
		})
	}
}
