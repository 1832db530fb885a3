package api_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"testing"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret"
)

// tuple is DESIGN's H, written a second time: SHA-512 over each part's length (u64, big-endian) and bytes.
func tuple(parts ...string) [64]byte {
	var b []byte
	for _, p := range parts {
		b = binary.BigEndian.AppendUint64(b, uint64(len(p)))
		b = append(b, p...)
	}
	return sha512.Sum512(b)
}

func TestReportDataBindsWhatTheProtocolSays(t *testing.T) {
	req := &api.CertificateRequest{Nonce: []byte("nonce"), PublicKey: []byte("spki"), HPKEKey: []byte("hpke")}
	if got, want := req.ReportData().Bytes(), tuple("portcullis mesh v1", "nonce", "spki", "hpke"); got != want {
		t.Errorf("request: %x, want %x", got, want)
	}
	answer := &api.CertificateResponse{
		Chain: [][]byte{[]byte("leaf"), []byte("intermediate")}, MeshCA: []byte("mesh"), RootCA: []byte("root"),
		TransitionHash: []byte("transition"),
	}
	data, err := answer.ReportData(req)
	if err != nil {
		t.Fatal(err)
	}
	want := tuple("portcullis answer v1", "nonce", "spki", "leaf", "intermediate", "mesh", "root", "transition")
	if data.Bytes() != want {
		t.Errorf("answer: %x, want %x", data.Bytes(), want)
	}
	answer.Chain = answer.Chain[:1]
	if _, err := answer.ReportData(req); err == nil {
		t.Error("an answer without an intermediate has report data")
	}
	nonce := make([]byte, api.NonceSize)
	fresh := &api.AttestResponse{HPKEKey: []byte("hpke")}
	if data, err = fresh.ReportData(nonce); err != nil {
		t.Fatal(err)
	}
	if want := tuple("portcullis attest v1", string(nonce), "", "", "", "hpke"); data.Bytes() != want {
		t.Errorf("fresh Coordinator: %x, want %x", data.Bytes(), want)
	}
	if _, err := fresh.ReportData(nonce[1:]); err == nil {
		t.Error("a short nonce has report data")
	}
}

func TestProofIsByTheKeyOverEverything(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	whole := api.CertificateRequest{
		Nonce: []byte("nonce"), PublicKey: []byte("spki"), HPKEKey: []byte("hpke"),
		Evidence: attestation.Evidence{Platform: attestation.Simulated, Report: []byte("report"), Certificates: []byte("table")},
	}
	if err := whole.Sign(key); err != nil {
		t.Fatal(err)
	}
	if !whole.VerifyProof(&key.PublicKey) {
		t.Fatal("the proof does not verify")
	}
	for name, alter := range map[string]func(*api.CertificateRequest){
		"nonce":        func(r *api.CertificateRequest) { r.Nonce = []byte("other") },
		"SPKI":         func(r *api.CertificateRequest) { r.PublicKey = []byte("other") },
		"HPKE key":     func(r *api.CertificateRequest) { r.HPKEKey = []byte("other") },
		"platform":     func(r *api.CertificateRequest) { r.Evidence.Platform = attestation.SNP },
		"report":       func(r *api.CertificateRequest) { r.Evidence.Report = []byte("other") },
		"certificates": func(r *api.CertificateRequest) { r.Evidence.Certificates = nil },
		"moved border": func(r *api.CertificateRequest) { r.Nonce, r.PublicKey = []byte("nonces"), []byte("pki") },
		"no proof":     func(r *api.CertificateRequest) { r.Proof = nil },
	} {
		altered := whole
		alter(&altered)
		if altered.VerifyProof(&key.PublicKey) {
			t.Errorf("the proof verifies with another %s", name)
		}
	}
}

func TestSealedSecretOpensOnlyInItsAnswer(t *testing.T) {
	key, err := api.NewHPKEKey()
	if err != nil {
		t.Fatal(err)
	}
	req := &api.CertificateRequest{Nonce: []byte("nonce"), PublicKey: []byte("spki"), HPKEKey: key.PublicKey().Bytes()}
	whole := api.CertificateResponse{
		Chain: [][]byte{[]byte("leaf"), []byte("intermediate")}, MeshCA: []byte("mesh"), RootCA: []byte("root"),
	}
	if s, err := whole.Open(req, key); err != nil || s.Len() != 0 {
		t.Errorf("an answer without a secret: %d bytes, %v", s.Len(), err)
	}
	if err := whole.Seal(req, secret.New([]byte("a workload secret"))); err != nil {
		t.Fatal(err)
	}
	if s, err := whole.Open(req, key); err != nil || string(s.Reveal()) != "a workload secret" {
		t.Fatalf("Open: %v", err)
	}
	for name, alter := range map[string]func(*api.CertificateRequest, *api.CertificateResponse){
		"nonce":        func(r *api.CertificateRequest, _ *api.CertificateResponse) { r.Nonce = []byte("other") },
		"SPKI":         func(r *api.CertificateRequest, _ *api.CertificateResponse) { r.PublicKey = []byte("other") },
		"leaf":         func(_ *api.CertificateRequest, a *api.CertificateResponse) { a.Chain = [][]byte{{}, a.Chain[1]} },
		"intermediate": func(_ *api.CertificateRequest, a *api.CertificateResponse) { a.Chain = [][]byte{a.Chain[0], {}} },
		"mesh CA":      func(_ *api.CertificateRequest, a *api.CertificateResponse) { a.MeshCA = []byte("other") },
		"root CA":      func(_ *api.CertificateRequest, a *api.CertificateResponse) { a.RootCA = []byte("other") },
		"longer chain": func(_ *api.CertificateRequest, a *api.CertificateResponse) { a.Chain = append(a.Chain, nil) },
		"cut secret": func(_ *api.CertificateRequest, a *api.CertificateResponse) {
			a.WorkloadSecret = a.WorkloadSecret[:1120]
		},
		"short secret": func(_ *api.CertificateRequest, a *api.CertificateResponse) { a.WorkloadSecret = []byte{1} },
		"longer secret": func(_ *api.CertificateRequest, a *api.CertificateResponse) {
			a.WorkloadSecret = append(a.WorkloadSecret, 0)
		},
	} {
		r, a := *req, whole
		alter(&r, &a)
		if _, err := a.Open(&r, key); err == nil {
			t.Errorf("the secret opens with another %s", name)
		}
	}
	other, err := api.NewHPKEKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := whole.Open(req, other); err == nil {
		t.Error("the secret opens with another key")
	}
}

func TestRecoveryBindsWhatTheProtocolSays(t *testing.T) {
	nonce := bytes.Repeat([]byte{7}, api.NonceSize)
	text := []byte("a manifest")
	transition := manifest.TransitionHash(text, [32]byte{})
	recovering := &api.AttestResponse{
		HPKEKey: []byte("hpke"), History: []api.HistoryEntry{{Manifest: text}}, Recovery: &api.Recovery{Nonce: []byte("its nonce")},
	}
	data, err := recovering.ReportData(nonce)
	if err != nil {
		t.Fatal(err)
	}
	if want := tuple("portcullis needs recovery v1", string(nonce), "its nonce", string(transition[:]), "hpke"); data.Bytes() != want {
		t.Errorf("evidence: %x, want %x", data.Bytes(), want)
	}
	recovering.RootCA = []byte("root")
	if _, err := recovering.ReportData(nonce); err == nil {
		t.Error("a Coordinator that needs recovery has a root CA")
	}
	if _, err := (&api.AttestResponse{Recovery: &api.Recovery{}}).ReportData(nonce); err == nil {
		t.Error("a Coordinator without a history needs recovery")
	}

	owner, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	req := &api.RecoverRequest{Nonce: nonce, TransitionHash: transition[:], Share: []byte("share")}
	signed := tuple("portcullis recover v1", "share", "hpke", string(nonce), string(transition[:]))
	digest := sha256.Sum256(signed[:])
	if req.Signature, err = ecdsa.SignASN1(rand.Reader, owner, digest[:]); err != nil {
		t.Fatal(err)
	}
	if !req.VerifySignature(&owner.PublicKey, []byte("hpke")) {
		t.Error("the owner's signature over what the protocol says is refused")
	}
	if req.VerifySignature(&owner.PublicKey, []byte("hpkf")) {
		t.Error("the owner's signature is taken by another Coordinator")
	}

	root, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rootKey, err := pki.SPKI(&root.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	share := &api.SealedShare{TransitionHash: transition[:], Owner: []byte("owner"), RootKey: rootKey, Sealed: []byte("sealed")}
	signed = tuple("portcullis seed share v1", string(transition[:]), "owner", string(rootKey), "sealed")
	digest = sha256.Sum256(signed[:])
	if share.Signature, err = ecdsa.SignASN1(rand.Reader, root, digest[:]); err != nil {
		t.Fatal(err)
	}
	if err := share.Verify(); err != nil {
		t.Error(err)
	}
}
