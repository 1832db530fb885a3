package coordinator_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret/secrettest"
	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/simtee"
)

// The mesh of these tests: one measurement, four pods.
var (
	measurement = simtee.Measurement{1, 2, 3}
	coordPolicy = attestation.PolicyHash{0xc0}
	webPolicy   = attestation.PolicyHash{0x10}
	dbPolicy    = attestation.PolicyHash{0x20}
	barePolicy  = attestation.PolicyHash{0x30} // no SAN at all
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

// newManifest is the mesh's manifest, altered.
func newManifest(t *testing.T, alter ...func(*manifest.Manifest)) []byte {
	t.Helper()
	m := &manifest.Manifest{
		Policies: map[attestation.PolicyHash]manifest.Policy{
			coordPolicy: {SANs: sans(t, "coordinator"), Role: manifest.RoleCoordinator},
			webPolicy:   {SANs: sans(t, "web", "web.shop.svc", "10.1.2.3", "spiffe://shop.example/web")},
			dbPolicy:    {SANs: sans(t, "db"), WorkloadSecretID: "shop/db"},
			barePolicy:  {},
		},
		ReferenceValues: manifest.ReferenceValues{
			Simulated: []simulated.ReferenceValue{world(t).Reference(measurement)},
		},
	}
	for _, a := range alter {
		a(m)
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func sans(t *testing.T, texts ...string) []pki.SAN {
	t.Helper()
	var parsed []pki.SAN
	for _, text := range texts {
		san, err := pki.ParseSAN(text)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, san)
	}
	return parsed
}

func parse(t *testing.T, text []byte) *manifest.Manifest {
	t.Helper()
	m, err := manifest.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func jsonLog(l *netlab.Log) *slog.Logger { return slog.New(slog.NewJSONHandler(l, nil)) }

// last is the newest log entry with that message.
func last(t *testing.T, log *netlab.Log, message string) map[string]any {
	t.Helper()
	entries := log.Entries(message)
	if len(entries) == 0 {
		t.Fatalf("no log line says %q:\n%s", message, log)
	}
	return entries[len(entries)-1]
}

// fixture is a running Coordinator and how to talk to it.
type fixture struct {
	*api.Client
	coordinator *coordinator.Coordinator
	server      *httptest.Server
	log         *netlab.Log
	store       store.Store
}

type option func(*coordinator.Config)

func start(t *testing.T, options ...option) *fixture {
	t.Helper()
	f := &fixture{log: &netlab.Log{}}
	cfg := coordinator.Config{
		Issuer:            world(t).Machine(measurement, coordPolicy),
		AllowSimulatedTEE: true,
		Log:               jsonLog(f.log),
	}
	for _, o := range options {
		o(&cfg)
	}
	if cfg.Store == nil {
		cfg.Store = openStore(t, filepath.Join(t.TempDir(), "coordinator.db"))
	}
	f.store = cfg.Store
	var err error
	if f.coordinator, err = coordinator.New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	f.server = httptest.NewServer(described(t, f.coordinator.Handler(), func(answer []byte) {
		f.coordinator.Reveal(&secrets)
		keepsSecrets(t, "an answer", answer)
	}))
	t.Cleanup(func() {
		f.coordinator.Reveal(&secrets)
		metrics := httptest.NewRecorder()
		f.coordinator.Handler().ServeHTTP(metrics, httptest.NewRequest(http.MethodGet, api.PathMetrics, nil))
		keepsSecrets(t, "the log", []byte(f.log.String()))
		keepsSecrets(t, "the metrics", metrics.Body.Bytes())
	})
	t.Cleanup(f.server.Close)
	if f.Client, err = api.New(f.server.URL); err != nil {
		t.Fatal(err)
	}
	return f
}

func openStore(t *testing.T, path string) *store.Bolt {
	t.Helper()
	s, err := store.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		fileKeepsSecrets(t, path)
	})
	return s
}

// secrets is every secret that these tests ever made. None of them is in a log, an answer, the metrics, a store or an audit
// log of any test: whoever begins to write one somewhere fails the test that comes by there.
var secrets secrettest.Set

func keepsSecrets(t *testing.T, where string, text []byte) {
	t.Helper()
	for _, found := range secrets.Find(text) {
		t.Errorf("%s has %s", where, found)
	}
}

func fileKeepsSecrets(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	keepsSecrets(t, path, text)
}

// set sets a manifest after the latest, signed by owners.
func (f *fixture) set(t *testing.T, text []byte, owners ...*ecdsa.PrivateKey) (*api.SetResponse, error) {
	t.Helper()
	previous := f.latest(t)
	return f.Set(t.Context(), api.SetRequest{
		Manifest: text, Previous: previous[:],
		Signatures: sign(t, manifest.TransitionHash(text, previous), owners...),
	})
}

func (f *fixture) mustSet(t *testing.T, text []byte, owners ...*ecdsa.PrivateKey) *api.SetResponse {
	t.Helper()
	resp, err := f.set(t, text, owners...)
	if err != nil {
		t.Fatalf("set: %v\n%s", err, f.log)
	}
	return resp
}

func (f *fixture) latest(t *testing.T) [32]byte {
	t.Helper()
	resp, err := f.Attest(t.Context(), random(t, api.NonceSize))
	if err != nil {
		t.Fatal(err)
	}
	return resp.TransitionHash()
}

func sign(t *testing.T, transition [32]byte, owners ...*ecdsa.PrivateKey) []api.Signature {
	t.Helper()
	var signatures []api.Signature
	for _, key := range owners {
		digest := sha256.Sum256(manifest.SignedMessage(transition))
		signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		signatures = append(signatures, api.Signature{PublicKey: spki(t, &key.PublicKey), Signature: signature})
	}
	return signatures
}

func newKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secrets.AddKey("a key of an owner or a pod", key)
	return key
}

func spki(t *testing.T, key *ecdsa.PublicKey) []byte {
	t.Helper()
	der, err := pki.SPKI(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// pod is an Initializer that does what it should, where a test does not alter it.
type pod struct {
	machine *simtee.Machine
	key     *ecdsa.PrivateKey
	hpkeKey hpke.PrivateKey
}

func newPod(t *testing.T, policy attestation.PolicyHash) *pod {
	t.Helper()
	p := forgottenPod(t, policy)
	secrets.AddKey("a pod's leaf key", p.key)
	secrets.AddHPKE("a pod's HPKE key", p.hpkeKey)
	return p
}

// forgottenPod is one whose keys nobody looks for, for tests that make very many.
func forgottenPod(t *testing.T, policy attestation.PolicyHash) *pod {
	t.Helper()
	hpkeKey, err := api.NewHPKEKey()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &pod{machine: world(t).Machine(measurement, policy), key: key, hpkeKey: hpkeKey}
}

func (p *pod) request(t *testing.T, nonce []byte) *api.CertificateRequest {
	t.Helper()
	req := &api.CertificateRequest{
		Nonce: nonce, PublicKey: spki(t, &p.key.PublicKey), HPKEKey: p.hpkeKey.PublicKey().Bytes(),
	}
	p.attest(t, req)
	return req
}

// attest makes evidence and proof over what req says by now.
func (p *pod) attest(t *testing.T, req *api.CertificateRequest) {
	t.Helper()
	var err error
	if req.Evidence, err = p.machine.Issue(t.Context(), req.ReportData()); err != nil {
		t.Fatal(err)
	}
	p.sign(t, req)
}

func (p *pod) sign(t *testing.T, req *api.CertificateRequest) {
	t.Helper()
	if err := req.Sign(p.key); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) freshNonce(t *testing.T) []byte {
	t.Helper()
	nonce, err := f.Nonce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return nonce
}

// certify is the whole exchange for a pod that is entitled to it.
func (f *fixture) certify(t *testing.T, p *pod) (*api.CertificateRequest, *api.CertificateResponse, *pki.Chain) {
	t.Helper()
	req := p.request(t, f.freshNonce(t))
	resp, err := f.Certificate(t.Context(), *req)
	if err != nil {
		t.Fatalf("certificate: %v\n%s", err, f.log)
	}
	chain, err := pki.ParseChain(resp.Chain, resp.MeshCA, resp.RootCA)
	if err != nil {
		t.Fatal(err)
	}
	if err := chain.Verify(&p.key.PublicKey, time.Now()); err != nil {
		t.Fatal(err)
	}
	return req, resp, chain
}

func wantCode(t *testing.T, err error, want api.Code) *api.Error {
	t.Helper()
	refused, ok := errors.AsType[*api.Error](err)
	if !ok {
		t.Fatalf("error %v, want the code %s", err, want)
	}
	if refused.Code != want {
		t.Fatalf("error %v, want the code %s", err, want)
	}
	return refused
}

func TestFreshCoordinatorAttestsItselfAndIssuesNothing(t *testing.T) {
	f := start(t)
	nonce := random(t, api.NonceSize)
	resp, err := f.Attest(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	trusted := parse(t, newManifest(t))
	v, err := api.VerifyBeforeSet(t.Context(), resp, nonce, trusted, manifest.ValidatorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(v.History) != 0 || v.RootCA != nil || v.MeshCA != nil || v.TransitionHash != [32]byte{} {
		t.Errorf("a fresh Coordinator has %+v", v)
	}
	if _, err := api.VerifyCoordinator(t.Context(), resp, nonce, trusted, manifest.ValidatorOptions{}); err == nil {
		t.Error("VerifyCoordinator accepted a Coordinator without a manifest")
	}
	_, err = f.Nonce(t.Context())
	if refused := wantCode(t, err, api.CodeNoManifest); refused.RetryAfter <= 0 {
		t.Errorf("no Retry-After with %v", refused)
	}
	_, err = f.Certificate(t.Context(), *newPod(t, webPolicy).request(t, make([]byte, 56)))
	wantCode(t, err, api.CodeNoManifest)
}

func TestSetThenVerifyThenCertificate(t *testing.T) {
	f := start(t)
	text := newManifest(t)
	set := f.mustSet(t, text)

	nonce := random(t, api.NonceSize)
	attested, err := f.Attest(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	v, err := api.VerifyCoordinator(t.Context(), attested, nonce, parse(t, text), manifest.ValidatorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantHash := manifest.TransitionHash(text, [32]byte{})
	if v.TransitionHash != wantHash || !bytes.Equal(set.TransitionHash, wantHash[:]) {
		t.Errorf("transition %x verified, %x set, want %x", v.TransitionHash, set.TransitionHash, wantHash)
	}
	if !bytes.Equal(v.MeshCA.Raw, set.MeshCA) || !bytes.Equal(v.RootCA.Raw, set.RootCA) {
		t.Error("set and attest name different CAs")
	}
	if v.Claims.PolicyHash != coordPolicy {
		t.Errorf("the Coordinator's policy is %s", v.Claims.PolicyHash)
	}

	p := newPod(t, webPolicy)
	req := p.request(t, f.freshNonce(t))
	req.WantEvidence = true
	resp, err := f.Certificate(t.Context(), *req)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseChain(resp.Chain, resp.MeshCA, resp.RootCA)
	if err != nil {
		t.Fatal(err)
	}
	if err := chain.Verify(&p.key.PublicKey, time.Now()); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(resp.MeshCA, set.MeshCA) || !bytes.Equal(resp.RootCA, set.RootCA) ||
		!bytes.Equal(resp.TransitionHash, wantHash[:]) {
		t.Error("the certificate is of another authority than the one that was set")
	}
	if got := chain.Leaf.DNSNames; !slices.Equal(got, []string{"web", "web.shop.svc"}) ||
		len(chain.Leaf.IPAddresses) != 1 || chain.Leaf.IPAddresses[0].String() != "10.1.2.3" ||
		len(chain.Leaf.URIs) != 1 || chain.Leaf.URIs[0].String() != "spiffe://shop.example/web" {
		t.Errorf("SANs %v %v %v", got, chain.Leaf.IPAddresses, chain.Leaf.URIs)
	}
	if lifetime := time.Until(chain.Leaf.NotAfter); lifetime > 720*time.Hour || lifetime < 719*time.Hour {
		t.Errorf("the certificate lives %v, want 720h", lifetime)
	}
	claims, err := pki.Claims(chain.Leaf)
	if err != nil || claims.PolicyHash != webPolicy || !bytes.Equal(claims.Measurement, measurement[:]) {
		t.Errorf("claims %+v, %v", claims, err)
	}
	if len(resp.WorkloadSecret) != 0 {
		t.Error("a pod without a WorkloadSecretID got a secret")
	}

	// The Coordinator's own evidence over the answer.
	validator, err := parse(t, text).Validator(manifest.ValidatorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	data, err := resp.ReportData(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Evidence == nil {
		t.Fatal("no evidence, though it was asked for")
	}
	if own, err := validator.Validate(t.Context(), *resp.Evidence, data); err != nil || own.PolicyHash != coordPolicy {
		t.Errorf("the answer's evidence: %+v, %v", own, err)
	}
	entry := last(t, f.log, "certificate issued")
	if entry["policyHash"] != webPolicy.String() {
		t.Errorf("log %v", entry)
	}
}

func TestPodWithoutAnySANAndCoordinatorPodGetCertificates(t *testing.T) {
	f := start(t)
	f.mustSet(t, newManifest(t))
	if _, _, chain := f.certify(t, newPod(t, barePolicy)); len(chain.Leaf.DNSNames)+len(chain.Leaf.IPAddresses)+len(chain.Leaf.URIs) != 0 {
		t.Errorf("the pod without SANs got some: %v", chain.Leaf.DNSNames)
	}
	if _, _, chain := f.certify(t, newPod(t, coordPolicy)); !slices.Equal(chain.Leaf.DNSNames, []string{"coordinator"}) {
		t.Errorf("SANs of the Coordinator's pod: %v", chain.Leaf.DNSNames)
	}
}

func TestCertificateValidityIsTheManifests(t *testing.T) {
	f := start(t)
	f.mustSet(t, newManifest(t, func(m *manifest.Manifest) {
		m.CertificateValidity, _ = manifest.NewValidity(2 * time.Hour)
	}))
	_, _, chain := f.certify(t, newPod(t, webPolicy))
	if lifetime := time.Until(chain.Leaf.NotAfter); lifetime > 2*time.Hour || lifetime < time.Hour {
		t.Errorf("the certificate lives %v, want 2h", lifetime)
	}
}

func TestWorkloadSecretIsSealedStableAndNeverLogged(t *testing.T) {
	owner := newKey(t, elliptic.P256())
	f := start(t)
	owned := ownedBy(t, 1, owner)
	f.mustSet(t, newManifest(t, owned), owner)

	open := func(p *pod) []byte {
		t.Helper()
		req, resp, _ := f.certify(t, p)
		s, err := resp.Open(req, p.hpkeKey)
		if err != nil {
			t.Fatal(err)
		}
		return s.Reveal()
	}
	first := open(newPod(t, dbPolicy))
	if len(first) != 32 {
		t.Fatalf("the workload secret has %d bytes", len(first))
	}
	// Another pod of the same policy, under the next manifest.
	f.mustSet(t, newManifest(t, owned, func(m *manifest.Manifest) { delete(m.Policies, barePolicy) }), owner)
	if again := open(newPod(t, dbPolicy)); !bytes.Equal(first, again) {
		t.Error("the workload secret changed with the manifest")
	}
	// Another ID, another secret.
	f.mustSet(t, newManifest(t, owned, func(m *manifest.Manifest) {
		m.Policies[dbPolicy] = manifest.Policy{WorkloadSecretID: "shop/db2"}
	}), owner)
	if other := open(newPod(t, dbPolicy)); bytes.Equal(first, other) {
		t.Error("two WorkloadSecretIDs have one secret")
	}

	// Nobody else opens it, and nothing else comes with it.
	p := newPod(t, dbPolicy)
	req, resp, _ := f.certify(t, p)
	if s, err := resp.Open(req, newPod(t, dbPolicy).hpkeKey); err == nil {
		t.Errorf("another key opened the secret (%d bytes)", s.Len())
	}
	_, other, _ := f.certify(t, newPod(t, webPolicy))
	spliced := *resp
	spliced.Chain = other.Chain
	if _, err := spliced.Open(req, p.hpkeKey); err == nil {
		t.Error("the secret opened beside another chain")
	}
	spliced = *resp
	spliced.MeshCA = resp.RootCA
	if _, err := spliced.Open(req, p.hpkeKey); err == nil {
		t.Error("the secret opened beside another mesh CA")
	}

	// The clean-up searches for it.
	if found := secrets.Find([]byte(hex.EncodeToString(first))); len(found) == 0 || !strings.HasPrefix(found[0], "the workload secret") {
		t.Errorf("nobody would find the workload secret: %v", found)
	}
}

func ownedBy(t *testing.T, threshold int, owners ...*ecdsa.PrivateKey) func(*manifest.Manifest) {
	t.Helper()
	return func(m *manifest.Manifest) {
		m.WorkloadOwnerKeys, m.WorkloadOwnerThreshold = nil, threshold
		for _, o := range owners {
			key, err := manifest.NewOwnerKey(&o.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			m.WorkloadOwnerKeys = append(m.WorkloadOwnerKeys, key)
		}
	}
}

func TestCertificateIsRefused(t *testing.T) {
	f, stranger := start(t), start(t)
	f.mustSet(t, newManifest(t))
	stranger.mustSet(t, newManifest(t))
	otherChip := *world(t) // its key is not the one that its certificate names
	otherChip.Keys.VCEK = newKey(t, elliptic.P384())

	tests := map[string]struct {
		pod   func(p *pod)
		alter func(p *pod, req *api.CertificateRequest)
		code  api.Code
		field string // of the evidence
	}{
		"wrong measurement": {
			pod:  func(p *pod) { p.machine.Measurement = simtee.Measurement{6, 6, 6} },
			code: api.CodeEvidenceRejected, field: "MEASUREMENT",
		},
		"unknown policy hash": {
			pod:  func(p *pod) { p.machine.HostData = [32]byte{0xee} },
			code: api.CodeEvidenceRejected, field: "HOST_DATA",
		},
		"no policy hash": {
			pod:  func(p *pod) { p.machine.HostData = [32]byte{} },
			code: api.CodeEvidenceRejected, field: "HOST_DATA",
		},
		"report signed by another chip": {
			pod:  func(p *pod) { p.machine.World = &otherChip },
			code: api.CodeEvidenceRejected, field: "SIGNATURE",
		},
		"no evidence": {
			alter: func(p *pod, req *api.CertificateRequest) {
				req.Evidence = attestation.Evidence{Report: []byte{}}
				p.sign(t, req)
			},
			code: api.CodeEvidenceRejected, field: "PLATFORM",
		},
		"evidence of a platform that the manifest does not trust": {
			alter: func(p *pod, req *api.CertificateRequest) {
				req.Evidence.Platform = attestation.SNP
				p.sign(t, req)
			},
			code: api.CodeEvidenceRejected, field: "PLATFORM",
		},
		"evidence replayed under a fresh nonce": {
			alter: func(p *pod, req *api.CertificateRequest) {
				req.Nonce = f.freshNonce(t)
				p.sign(t, req)
			},
			code: api.CodeEvidenceRejected, field: "REPORT_DATA",
		},
		"evidence over another leaf key": {
			alter: func(p *pod, req *api.CertificateRequest) {
				p.key = newKey(t, elliptic.P256())
				req.PublicKey = spki(t, &p.key.PublicKey)
				p.sign(t, req)
			},
			code: api.CodeEvidenceRejected, field: "REPORT_DATA",
		},
		"evidence over another HPKE key": {
			alter: func(p *pod, req *api.CertificateRequest) {
				req.HPKEKey = newPod(t, webPolicy).hpkeKey.PublicKey().Bytes()
				p.sign(t, req)
			},
			code: api.CodeEvidenceRejected, field: "REPORT_DATA",
		},
		"evidence made for attest": {
			alter: func(p *pod, req *api.CertificateRequest) {
				data := attestation.NewReportData(api.LabelAttest, req.Nonce, req.PublicKey, req.HPKEKey)
				var err error
				if req.Evidence, err = p.machine.Issue(t.Context(), data); err != nil {
					t.Fatal(err)
				}
				p.sign(t, req)
			},
			code: api.CodeEvidenceRejected, field: "REPORT_DATA",
		},
		"no nonce": {
			alter: func(p *pod, req *api.CertificateRequest) { req.Nonce = []byte{}; p.attest(t, req) },
			code:  api.CodeBadNonce,
		},
		"forged nonce": {
			alter: func(p *pod, req *api.CertificateRequest) { req.Nonce[0] ^= 1; p.attest(t, req) },
			code:  api.CodeBadNonce,
		},
		"nonce with a forged end": {
			alter: func(p *pod, req *api.CertificateRequest) { req.Nonce[len(req.Nonce)-1] ^= 1; p.attest(t, req) },
			code:  api.CodeBadNonce,
		},
		"nonce with something behind": {
			alter: func(p *pod, req *api.CertificateRequest) { req.Nonce = append(req.Nonce, 0); p.attest(t, req) },
			code:  api.CodeBadNonce,
		},
		"nonce of another Coordinator": {
			alter: func(p *pod, req *api.CertificateRequest) { req.Nonce = stranger.freshNonce(t); p.attest(t, req) },
			code:  api.CodeBadNonce,
		},
		"no proof": {
			alter: func(_ *pod, req *api.CertificateRequest) { req.Proof = []byte{} },
			code:  api.CodeBadSignature,
		},
		"proof by another key": {
			alter: func(_ *pod, req *api.CertificateRequest) { newPod(t, webPolicy).sign(t, req) },
			code:  api.CodeBadSignature,
		},
		"proof over other evidence": {
			alter: func(p *pod, req *api.CertificateRequest) {
				proof := req.Proof
				p.attest(t, req) // the report has a fresh report ID and signature
				req.Proof = proof
			},
			code: api.CodeBadSignature,
		},
		"leaf key on P-384": {
			alter: func(p *pod, req *api.CertificateRequest) {
				p.key = newKey(t, elliptic.P384())
				req.PublicKey = spki(t, &p.key.PublicKey)
				p.attest(t, req)
			},
			code: api.CodeBadRequest,
		},
		"no leaf key": {
			alter: func(p *pod, req *api.CertificateRequest) { req.PublicKey = nil; p.attest(t, req) },
			code:  api.CodeBadRequest,
		},
		"HPKE key cut short": {
			alter: func(p *pod, req *api.CertificateRequest) { req.HPKEKey = req.HPKEKey[1:]; p.attest(t, req) },
			code:  api.CodeBadRequest,
		},
		"renewal under another mesh CA": {
			alter: func(_ *pod, req *api.CertificateRequest) { req.MeshCA = make([]byte, 32) },
			code:  api.CodeGenerationChanged,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := newPod(t, webPolicy)
			if test.pod != nil {
				test.pod(p)
			}
			req := p.request(t, f.freshNonce(t))
			if test.alter != nil {
				test.alter(p, req)
			}
			resp, err := f.Certificate(t.Context(), *req)
			if err == nil {
				t.Fatalf("a certificate was issued: %x", resp.Chain)
			}
			refused := wantCode(t, err, test.code)
			entry := last(t, f.log, "certificate refused")
			if entry["code"] != string(test.code) {
				t.Errorf("log %v", entry)
			}
			if test.field == "" {
				return
			}
			if entry["field"] != test.field || entry["want"] == "" || entry["got"] == "" {
				t.Errorf("log %v, want the field %s", entry, test.field)
			}
			if len(req.Evidence.Report) > 0 && entry["claimedPolicyHash"] != hex.EncodeToString(p.machine.HostData[:]) {
				t.Errorf("log %v, want the claimed policy hash %x", entry, p.machine.HostData)
			}
			// The pod is told the field, and nothing of what the Coordinator wants or got.
			if !strings.Contains(refused.Detail, test.field) || strings.Contains(refused.Detail, measurement.String()) {
				t.Errorf("the pod is told %q", refused.Detail)
			}
		})
	}
	if strings.Contains(f.log.String(), "certificate issued") {
		t.Error("a certificate was issued after all")
	}
	metrics := get(t, f.server.URL+api.PathMetrics)
	for _, line := range []string{
		`portcullis_evidence_rejected_total{field="MEASUREMENT"} 1`,
		`portcullis_evidence_rejected_total{field="REPORT_DATA"} 4`,
		`portcullis_requests_total{outcome="bad-nonce",route="/v1/mesh/certificate"} 5`,
		`portcullis_certificates_issued_total{platform="simulated"} 0`,
		`portcullis_generation 1`,
		`portcullis_needs_recovery 0`,
	} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("/metrics lacks %s", line)
		}
	}
}

func TestRenewalUnderTheSameMeshCA(t *testing.T) {
	owner := newKey(t, elliptic.P256())
	f := start(t)
	f.mustSet(t, newManifest(t, ownedBy(t, 1, owner)), owner)
	p := newPod(t, webPolicy)
	_, resp, _ := f.certify(t, p)
	meshCA := sha256.Sum256(resp.MeshCA)

	renew := func() error {
		req := p.request(t, f.freshNonce(t))
		req.MeshCA = meshCA[:]
		_, err := f.Certificate(t.Context(), *req)
		return err
	}
	if err := renew(); err != nil {
		t.Errorf("renewal: %v", err)
	}
	f.mustSet(t, newManifest(t, ownedBy(t, 1, owner), func(m *manifest.Manifest) { delete(m.Policies, dbPolicy) }), owner)
	wantCode(t, renew(), api.CodeGenerationChanged)
}

func TestManifestThatDropsAPolicyDropsItsPods(t *testing.T) {
	owner := newKey(t, elliptic.P256())
	f := start(t)
	f.mustSet(t, newManifest(t, ownedBy(t, 1, owner)), owner)
	p := newPod(t, dbPolicy)
	nonce := f.freshNonce(t)
	_, _, before := f.certify(t, newPod(t, webPolicy))
	f.mustSet(t, newManifest(t, ownedBy(t, 1, owner), func(m *manifest.Manifest) { delete(m.Policies, dbPolicy) }), owner)

	_, err := f.Certificate(t.Context(), *p.request(t, nonce)) // a nonce outlives the manifest; the policy does not
	wantCode(t, err, api.CodeEvidenceRejected)

	// One mesh CA per manifest, one root CA for all.
	_, _, after := f.certify(t, newPod(t, webPolicy))
	mixed := pki.Chain{Leaf: after.Leaf, Intermediate: after.Intermediate, MeshCA: before.MeshCA, RootCA: before.RootCA}
	if mixed.Verify(after.Leaf.PublicKey.(*ecdsa.PublicKey), time.Now()) == nil {
		t.Error("the first manifest's mesh CA accepts a leaf of the second")
	}
	mixed.MeshCA = after.MeshCA
	if err := mixed.Verify(after.Leaf.PublicKey.(*ecdsa.PublicKey), time.Now()); err != nil {
		t.Errorf("the root CA of the first manifest refuses a leaf of the second: %v", err)
	}
}

func TestOwnersSignManifests(t *testing.T) {
	alice, bob, carol, mallory := newKey(t, elliptic.P256()), newKey(t, elliptic.P384()), newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	twoOfThree := newManifest(t, ownedBy(t, 2, alice, bob, carol))
	next := newManifest(t, ownedBy(t, 1, mallory))
	f := start(t)

	_, err := f.set(t, twoOfThree)
	wantCode(t, err, api.CodeBadSignature)
	_, err = f.set(t, twoOfThree, alice)
	wantCode(t, err, api.CodeBadSignature)
	first := f.mustSet(t, twoOfThree, alice, bob)

	refused := map[string][]*ecdsa.PrivateKey{
		"nobody":                                {},
		"one of two":                            {carol},
		"one owner twice":                       {carol, carol},
		"the next manifest's owner":             {mallory},
		"an owner and a stranger":               {carol, mallory},
		"enough owners and a stranger as well":  {alice, carol, mallory},
		"the next manifest's owner, many times": {mallory, mallory, mallory},
	}
	for name, signers := range refused {
		t.Run(name, func(t *testing.T) {
			_, err := f.set(t, next, signers...)
			wantCode(t, err, api.CodeBadSignature)
			if entry := last(t, f.log, "manifest refused"); entry["code"] != string(api.CodeBadSignature) {
				t.Errorf("log %v", entry)
			}
		})
	}
	previous := [32]byte(first.TransitionHash)
	t.Run("signatures over another manifest", func(t *testing.T) {
		_, err := f.Set(t.Context(), api.SetRequest{
			Manifest: next, Previous: previous[:],
			Signatures: sign(t, manifest.TransitionHash(twoOfThree, previous), alice, bob),
		})
		wantCode(t, err, api.CodeBadSignature)
	})
	t.Run("signatures over the manifest in another history", func(t *testing.T) {
		_, err := f.Set(t.Context(), api.SetRequest{
			Manifest: next, Previous: previous[:],
			Signatures: sign(t, manifest.TransitionHash(next, [32]byte{}), alice, bob),
		})
		wantCode(t, err, api.CodeBadSignature)
	})
	if f.latest(t) != previous {
		t.Error("a refused manifest changed the history")
	}
	f.mustSet(t, next, bob, carol)
	if entry := last(t, f.log, "manifest set"); entry["generation"] != 2.0 || entry["signatures"] != 2.0 {
		t.Errorf("log %v", entry)
	}
}

func TestManifestWithoutOwnersIsTheLast(t *testing.T) {
	f := start(t)
	f.mustSet(t, newManifest(t))
	owner := newKey(t, elliptic.P256())
	for name, signers := range map[string][]*ecdsa.PrivateKey{"unsigned": {}, "signed": {owner}} {
		t.Run(name, func(t *testing.T) {
			_, err := f.set(t, newManifest(t, ownedBy(t, 1, owner)), signers...)
			wantCode(t, err, api.CodeBadSignature)
		})
	}
}

func TestFirstManifestWithoutOwnersTakesNoSignatures(t *testing.T) {
	f := start(t)
	_, err := f.set(t, newManifest(t), newKey(t, elliptic.P256()))
	wantCode(t, err, api.CodeBadSignature)
}

func TestSetOntoAnotherThanTheLatestConflicts(t *testing.T) {
	owner := newKey(t, elliptic.P256())
	f := start(t)
	text := newManifest(t, ownedBy(t, 1, owner))
	set := func(previous []byte) error {
		var hash [32]byte
		copy(hash[:], previous)
		_, err := f.Set(t.Context(), api.SetRequest{
			Manifest: text, Previous: previous, Signatures: sign(t, manifest.TransitionHash(text, hash), owner),
		})
		return err
	}
	wantCode(t, set(bytes.Repeat([]byte{1}, 32)), api.CodeConflict)
	wantCode(t, set(nil), api.CodeBadRequest)
	if err := set(make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, set(make([]byte, 32)), api.CodeConflict)
	wantCode(t, set(bytes.Repeat([]byte{1}, 32)), api.CodeConflict)
}

func TestOneOfManyRacingSetsWins(t *testing.T) {
	owner := newKey(t, elliptic.P256())
	f := start(t)
	const racers = 6
	var wg sync.WaitGroup
	results := make([]error, racers)
	for i := range racers {
		text := newManifest(t, ownedBy(t, 1, owner), func(m *manifest.Manifest) {
			m.CertificateValidity, _ = manifest.NewValidity(time.Duration(i+1) * time.Hour)
		})
		request := api.SetRequest{
			Manifest: text, Previous: make([]byte, 32),
			Signatures: sign(t, manifest.TransitionHash(text, [32]byte{}), owner),
		}
		wg.Go(func() { _, results[i] = f.Set(context.Background(), request) })
	}
	wg.Wait()
	winners := 0
	for _, err := range results {
		if err == nil {
			winners++
			continue
		}
		wantCode(t, err, api.CodeConflict)
	}
	if winners != 1 {
		t.Errorf("%d of %d sets won", winners, racers)
	}
}

func TestMalformedManifestIsRefusedWithEveryFault(t *testing.T) {
	f := start(t)
	text := bytes.Replace(newManifest(t), []byte(`"ReferenceValues"`), []byte(`"referenceValues"`), 1)
	text = bytes.Replace(text, []byte(`"db"`), []byte(`"D B"`), 1)
	_, err := f.set(t, text)
	refused := wantCode(t, err, api.CodeBadManifest)
	if len(refused.Faults) != 3 || !strings.Contains(refused.Faults[0], "did you mean ReferenceValues") &&
		!strings.Contains(refused.Faults[1], "did you mean ReferenceValues") {
		t.Errorf("faults:\n%s", strings.Join(refused.Faults, "\n"))
	}
}

func TestSimulatedReferenceValuesNeedTheOperatorsLeave(t *testing.T) {
	f := start(t, func(c *coordinator.Config) { c.AllowSimulatedTEE = false })
	_, err := f.set(t, newManifest(t))
	refused := wantCode(t, err, api.CodeBadManifest)
	if len(refused.Faults) != 1 || !strings.Contains(refused.Faults[0], "--allow-simulated-tee") {
		t.Errorf("faults %q", refused.Faults)
	}
}

func TestRestartedCoordinatorNeedsRecovery(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	s, err := store.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	first := start(t, func(c *coordinator.Config) { c.Store = s })
	first.mustSet(t, newManifest(t))
	nonce := first.freshNonce(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	f := start(t, func(c *coordinator.Config) { c.Store = openStore(t, path) })
	calls := map[string]func() error{
		"attest": func() error { _, err := f.Attest(t.Context(), random(t, api.NonceSize)); return err },
		"set": func() error {
			_, err := f.Set(t.Context(), api.SetRequest{Manifest: newManifest(t), Previous: make([]byte, 32)})
			return err
		},
		"nonce": func() error { _, err := f.Nonce(t.Context()); return err },
		"certificate": func() error {
			_, err := f.Certificate(t.Context(), *newPod(t, webPolicy).request(t, nonce))
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) { wantCode(t, call(), api.CodeNeedsRecovery) })
	}
	for path, want := range map[string]int{api.PathHealth: 200, api.PathReady: 503} {
		resp, err := http.Get(f.server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s answers %d, want %d", path, resp.StatusCode, want)
		}
	}
}

func TestStoreKeepsTheHistoryUnderItsHashes(t *testing.T) {
	owner := newKey(t, elliptic.P256())
	f := start(t)
	texts := [][]byte{
		newManifest(t, ownedBy(t, 1, owner)),
		newManifest(t, ownedBy(t, 1, owner), func(m *manifest.Manifest) { delete(m.Policies, dbPolicy) }),
	}
	var previous [32]byte
	for _, text := range texts {
		set := f.mustSet(t, text, owner)
		manifestHash := sha256.Sum256(text)
		kept, err := f.store.Object(t.Context(), store.Name{Kind: store.Manifest, Hash: manifestHash})
		if err != nil || !bytes.Equal(kept, text) {
			t.Errorf("the manifest in the store: %v", err)
		}
		hash := [32]byte(set.TransitionHash)
		transition, err := f.store.Object(t.Context(), store.Name{Kind: store.Transition, Hash: hash})
		if err != nil || !bytes.Equal(transition, append(manifestHash[:], previous[:]...)) || sha256.Sum256(transition) != hash {
			t.Errorf("the transition in the store: %x, %v", transition, err)
		}
		var signatures []manifest.Signature
		encoded, err := f.store.Object(t.Context(), store.Name{Kind: store.Signatures, Hash: hash})
		if err != nil || json.Unmarshal(encoded, &signatures) != nil ||
			manifest.VerifyOwners(parse(t, text), hash, signatures) != nil {
			t.Errorf("the signatures in the store: %s, %v", encoded, err)
		}
		latest, err := f.store.Latest(t.Context())
		if err != nil || !bytes.Contains(latest, []byte(base64.StdEncoding.EncodeToString(hash[:]))) {
			t.Errorf("latest: %s, %v", latest, err)
		}
		previous = hash
	}
}

// failing is a store that keeps nothing.
type failing struct{ store.Store }

func (failing) Commit(context.Context, []store.Object, []byte, []byte) error {
	return errors.New("disk /dev/secret-name is full")
}

func TestSetThatCannotBeKeptChangesNothingAndTellsNothing(t *testing.T) {
	f := start(t, func(c *coordinator.Config) {
		c.Store = failing{openStore(t, filepath.Join(t.TempDir(), "coordinator.db"))}
	})
	_, err := f.set(t, newManifest(t))
	refused := wantCode(t, err, api.CodeInternal)
	if strings.Contains(refused.Error(), "secret-name") {
		t.Errorf("the client is told %v", refused)
	}
	if entry := last(t, f.log, "manifest refused"); !strings.Contains(entry["reason"].(string), "disk /dev/secret-name is full") {
		t.Errorf("log %v", entry)
	}
	_, err = f.Nonce(t.Context())
	wantCode(t, err, api.CodeNoManifest)
}

// slowDisk is a store whose commits wait once it is told to.
type slowDisk struct {
	store.Store
	slow            atomic.Bool
	waiting, finish chan struct{}
}

func (s *slowDisk) Commit(ctx context.Context, objects []store.Object, old, new []byte) error {
	if s.slow.Load() {
		s.waiting <- struct{}{}
		<-s.finish
	}
	return s.Store.Commit(ctx, objects, old, new)
}

// A slow disk delays who sets a manifest, and nobody else: until it is kept, the manifest before is the active one.
func TestPodsAreServedWhileASetWaitsForTheDisk(t *testing.T) {
	disk := &slowDisk{
		Store:   openStore(t, filepath.Join(t.TempDir(), "coordinator.db")),
		waiting: make(chan struct{}), finish: make(chan struct{}),
	}
	f := start(t, func(c *coordinator.Config) { c.Store = disk })
	owner := newKey(t, elliptic.P256())
	f.mustSet(t, newManifest(t, ownedBy(t, 1, owner)), owner)
	disk.slow.Store(true)
	next := newManifest(t, ownedBy(t, 1, owner), func(m *manifest.Manifest) { delete(m.Policies, webPolicy) })
	answered := make(chan error, 1)
	go func() {
		_, err := f.set(t, next, owner)
		answered <- err
	}()
	<-disk.waiting
	for range 3 {
		f.certify(t, newPod(t, webPolicy))
	}
	select {
	case err := <-answered:
		t.Errorf("the set was answered before it was kept: %v", err)
	default:
	}
	close(disk.finish)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	p := newPod(t, webPolicy)
	_, err := f.Certificate(t.Context(), *p.request(t, f.freshNonce(t)))
	wantCode(t, err, api.CodeEvidenceRejected)
}

// overtaken is a store that another writer got to first.
type overtaken struct{ store.Store }

func (overtaken) Commit(context.Context, []store.Object, []byte, []byte) error {
	return store.ErrConflict
}

func TestSetThatAnotherReplicaOvertookConflicts(t *testing.T) {
	f := start(t, func(c *coordinator.Config) {
		c.Store = overtaken{openStore(t, filepath.Join(t.TempDir(), "coordinator.db"))}
	})
	_, err := f.set(t, newManifest(t))
	wantCode(t, err, api.CodeConflict)
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestVerifyFindsTamperedAnswers(t *testing.T) {
	alice, mallory := newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	f := start(t)
	first := newManifest(t, ownedBy(t, 1, alice))
	latest := newManifest(t, ownedBy(t, 1, alice), func(m *manifest.Manifest) { delete(m.Policies, dbPolicy) })
	f.mustSet(t, first, alice)
	f.mustSet(t, latest, alice)
	trusted := parse(t, latest)
	nonce := random(t, api.NonceSize)
	honest, err := f.Attest(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.VerifyCoordinator(t.Context(), honest, nonce, trusted, manifest.ValidatorOptions{}); err != nil {
		t.Fatal(err)
	}
	// reissue is what no host can do, evidence of a Coordinator over an altered answer: so that the checks behind the
	// evidence are seen to work too.
	reissue := func(machine *simtee.Machine) func(*api.AttestResponse) {
		return func(r *api.AttestResponse) {
			data, err := r.ReportData(nonce)
			if err != nil {
				t.Fatal(err)
			}
			if r.Evidence, err = machine.Issue(t.Context(), data); err != nil {
				t.Fatal(err)
			}
		}
	}
	coordinatorMachine := world(t).Machine(measurement, coordPolicy)
	tests := map[string]struct {
		alter func(*api.AttestResponse)
		after func(*api.AttestResponse)
		check string
	}{
		"nothing":              {},
		"re-issued, unaltered": {after: reissue(coordinatorMachine)},
		"a pod's evidence":     {after: reissue(world(t).Machine(measurement, webPolicy)), check: "policy hash"},
		"another image's evidence": {
			after: reissue(world(t).Machine(simtee.Measurement{9}, coordPolicy)), check: "evidence",
		},
		"another root CA": {alter: func(r *api.AttestResponse) { r.RootCA = r.MeshCA }, check: "evidence"},
		"no root CA":      {alter: func(r *api.AttestResponse) { r.RootCA = nil }, check: "answer"},
		"another mesh CA": {alter: func(r *api.AttestResponse) { r.MeshCA = r.RootCA }, check: "evidence"},
		"another HPKE key": {
			alter: func(r *api.AttestResponse) { r.HPKEKey = newPod(t, webPolicy).hpkeKey.PublicKey().Bytes() }, check: "evidence",
		},
		"a manifest altered by one byte": {
			alter: func(r *api.AttestResponse) {
				r.History[0].Manifest = append(bytes.Clone(r.History[0].Manifest), '\n')
			},
			check: "evidence",
		},
		"the latest manifest left out":       {alter: func(r *api.AttestResponse) { r.History = r.History[:1] }, check: "evidence"},
		"the first manifest left out":        {alter: func(r *api.AttestResponse) { r.History = r.History[1:] }, check: "evidence"},
		"no history, no CAs":                 {alter: func(r *api.AttestResponse) { r.History, r.RootCA, r.MeshCA = nil, nil, nil }, check: "evidence"},
		"no history":                         {alter: func(r *api.AttestResponse) { r.History = nil }, check: "answer"},
		"a signature left out":               {alter: func(r *api.AttestResponse) { r.History[1].Signatures = nil }, check: "history"},
		"the first signature left out":       {alter: func(r *api.AttestResponse) { r.History[0].Signatures = nil }, check: "history"},
		"a signature of another transition":  {alter: func(r *api.AttestResponse) { r.History[1].Signatures = r.History[0].Signatures }, check: "history"},
		"a manifest altered, evidence fresh": {alter: func(r *api.AttestResponse) { r.History[0].Manifest = newManifest(t, ownedBy(t, 1, mallory)) }, after: reissue(coordinatorMachine), check: "history"},
		"history ends early, evidence fresh": {alter: func(r *api.AttestResponse) { r.History = r.History[:1] }, after: reissue(coordinatorMachine), check: "active manifest"},
		"fresh Coordinator": {
			alter: func(r *api.AttestResponse) { r.History, r.RootCA, r.MeshCA = nil, nil, nil },
			after: reissue(coordinatorMachine), check: "active manifest",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			resp := *honest
			resp.History = slices.Clone(honest.History)
			if test.alter != nil {
				test.alter(&resp)
			}
			if test.after != nil {
				test.after(&resp)
			}
			_, err := api.VerifyCoordinator(t.Context(), &resp, nonce, trusted, manifest.ValidatorOptions{})
			if test.check == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			refused, ok := errors.AsType[*api.VerifyError](err)
			if !ok || refused.Check != test.check {
				t.Fatalf("VerifyCoordinator: %v, want the check %q to fail", err, test.check)
			}
		})
	}
	t.Run("an answer to another nonce", func(t *testing.T) {
		if _, err := api.VerifyCoordinator(t.Context(), honest, random(t, api.NonceSize), trusted, manifest.ValidatorOptions{}); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("another trusted manifest", func(t *testing.T) {
		_, err := api.VerifyCoordinator(t.Context(), honest, nonce, parse(t, first), manifest.ValidatorOptions{})
		if refused, ok := errors.AsType[*api.VerifyError](err); !ok || refused.Check != "active manifest" {
			t.Errorf("VerifyCoordinator: %v", err)
		}
		if _, err := api.VerifyBeforeSet(t.Context(), honest, nonce, parse(t, first), manifest.ValidatorOptions{}); err != nil {
			t.Errorf("VerifyBeforeSet: %v", err)
		}
	})
	t.Run("nil", func(t *testing.T) {
		for name, err := range map[string]error{
			"answer":   second(api.VerifyCoordinator(t.Context(), nil, nonce, trusted, manifest.ValidatorOptions{})),
			"manifest": second(api.VerifyCoordinator(t.Context(), honest, nonce, nil, manifest.ValidatorOptions{})),
			"zero":     second(api.VerifyCoordinator(t.Context(), honest, nonce, &manifest.Manifest{}, manifest.ValidatorOptions{})),
			"empty":    second(api.VerifyCoordinator(t.Context(), &api.AttestResponse{}, nonce, trusted, manifest.ValidatorOptions{})),
		} {
			if err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestConfigWithoutAPartIsRefused(t *testing.T) {
	whole := coordinator.Config{
		Store:  openStore(t, filepath.Join(t.TempDir(), "coordinator.db")),
		Issuer: world(t).Machine(measurement, coordPolicy),
		Log:    slog.New(slog.DiscardHandler),
	}
	if _, err := coordinator.New(t.Context(), whole); err != nil {
		t.Fatal(err)
	}
	parts := map[string]func(*coordinator.Config){
		"store":  func(c *coordinator.Config) { c.Store = nil },
		"issuer": func(c *coordinator.Config) { c.Issuer = nil },
		"log":    func(c *coordinator.Config) { c.Log = nil },
	}
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		cfg := whole
		parts[name](&cfg)
		if _, err := coordinator.New(t.Context(), cfg); err == nil {
			t.Errorf("made a Coordinator without %s", name)
		}
	}
}
