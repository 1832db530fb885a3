package api

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret"
)

// This file is what both ends of a message compute: what evidence is made over, what the leaf key signs, and what the
// workload secret is sealed with.

// NewHPKEKey makes a key pair to receive sealed messages with. key.PublicKey().Bytes() is what travels.
func NewHPKEKey() (hpke.PrivateKey, error) { return pki.NewHPKEKey() }

// ParseHPKEKey reads a raw public key of the protocol's KEM.
func ParseHPKEKey(b []byte) (hpke.PublicKey, error) { return pki.ParseHPKEKey(b) }

// ReportData is what the Coordinator's evidence in r is made over, given the nonce that was sent. It is an error when
// r's parts cannot be the parts of one answer.
func (r *AttestResponse) ReportData(nonce []byte) (attestation.ReportData, error) {
	if len(nonce) != NonceSize {
		return attestation.ReportData{}, fmt.Errorf("nonce is %d bytes long, want %d", len(nonce), NonceSize)
	}
	if r.Recovery != nil {
		if len(r.History) == 0 || len(r.RootCA) > 0 || len(r.MeshCA) > 0 {
			return attestation.ReportData{}, errors.New("a Coordinator that needs recovery has a history, and no CAs yet")
		}
		transition := r.TransitionHash()
		return attestation.NewReportData(LabelNeedsRecovery, nonce, r.Recovery.Nonce, transition[:], r.HPKEKey), nil
	}
	if len(r.History) == 0 {
		if len(r.RootCA) > 0 || len(r.MeshCA) > 0 {
			return attestation.ReportData{}, errors.New("CAs without a history")
		}
		return attestation.NewReportData(LabelAttest, nonce, nil, nil, nil, r.HPKEKey), nil
	}
	root, err := x509.ParseCertificate(r.RootCA)
	if err != nil {
		return attestation.ReportData{}, fmt.Errorf("parse the root CA: %w", err)
	}
	spki := sha256.Sum256(root.RawSubjectPublicKeyInfo)
	mesh := sha256.Sum256(r.MeshCA)
	transition := r.TransitionHash()
	return attestation.NewReportData(LabelAttest, nonce, spki[:], mesh[:], transition[:], r.HPKEKey), nil
}

// TransitionHash is the hash of the last transition in r's history, computed from the manifests themselves. It is 32
// zero bytes when the history is empty.
func (r *AttestResponse) TransitionHash() (latest [32]byte) {
	for _, e := range r.History {
		latest = manifest.TransitionHash(e.Manifest, latest)
	}
	return latest
}

// ReportData is what the requester's evidence is made over.
func (r *CertificateRequest) ReportData() attestation.ReportData {
	return attestation.NewReportData(LabelMesh, r.Nonce, r.PublicKey, r.HPKEKey)
}

// Sign fills r.Proof, with the key whose SPKI r.PublicKey is. Everything else in r must be there before.
func (r *CertificateRequest) Sign(key crypto.Signer) error {
	digest := r.proofDigest()
	proof, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return fmt.Errorf("sign the proof of possession: %w", err)
	}
	r.Proof = proof
	return nil
}

// VerifyProof says whether the holder of key signed r.
func (r *CertificateRequest) VerifyProof(key *ecdsa.PublicKey) bool {
	digest := r.proofDigest()
	return ecdsa.VerifyASN1(key, digest[:], r.Proof)
}

func (r *CertificateRequest) proofDigest() [32]byte {
	evidence := r.Evidence.Digest()
	data := attestation.NewReportData(LabelProof, r.Nonce, r.PublicKey, r.HPKEKey, evidence[:]).Bytes()
	return sha256.Sum256(data[:])
}

// ReportData is what the Coordinator's evidence in the answer to r is made over.
func (a *CertificateResponse) ReportData(r *CertificateRequest) (attestation.ReportData, error) {
	if len(a.Chain) != 2 {
		return attestation.ReportData{}, fmt.Errorf("the chain has %d certificates, want leaf and intermediate", len(a.Chain))
	}
	return attestation.NewReportData(LabelAnswer,
		r.Nonce, r.PublicKey, a.Chain[0], a.Chain[1], a.MeshCA, a.RootCA, a.TransitionHash), nil
}

// Seal fills a.WorkloadSecret: s, readable only by the holder of r's HPKE key and only together with the chain and the
// CAs that a already carries.
func (a *CertificateResponse) Seal(r *CertificateRequest, s secret.Bytes) error {
	key, err := ParseHPKEKey(r.HPKEKey)
	if err != nil {
		return fmt.Errorf("parse the requester's HPKE key: %w", err)
	}
	aad, err := a.secretAAD(r)
	if err != nil {
		return err
	}
	if a.WorkloadSecret, err = pki.Seal(key, LabelSecret, aad, s); err != nil {
		return fmt.Errorf("seal the workload secret: %w", err)
	}
	return nil
}

// Open returns the workload secret of the answer to r. The zero Bytes when the policy has none. When it does not open,
// the whole answer must be thrown away: somebody put it together from several.
func (a *CertificateResponse) Open(r *CertificateRequest, key hpke.PrivateKey) (secret.Bytes, error) {
	if len(a.WorkloadSecret) == 0 {
		return secret.Bytes{}, nil
	}
	aad, err := a.secretAAD(r)
	if err != nil {
		return secret.Bytes{}, err
	}
	plain, err := pki.Open(key, LabelSecret, aad, a.WorkloadSecret)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("open the workload secret with this answer's chain and CAs: %w", err)
	}
	return plain, nil
}

func (a *CertificateResponse) secretAAD(r *CertificateRequest) ([]byte, error) {
	if len(a.Chain) != 2 {
		return nil, fmt.Errorf("the chain has %d certificates, want leaf and intermediate", len(a.Chain))
	}
	data := attestation.NewReportData(LabelSecret,
		r.Nonce, r.PublicKey, a.Chain[0], a.Chain[1], a.MeshCA, a.RootCA).Bytes()
	return data[:], nil
}
