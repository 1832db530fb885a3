package initializer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/pki"
)

// refused says that a Coordinator answered and that its answer is not to be believed.
type refused struct{ err error }

func (r *refused) Error() string { return r.err.Error() }
func (r *refused) Unwrap() error { return r.err }

// field is what was not acceptable: a field of the Coordinator's evidence, or a part of its answer.
func (r *refused) field() string {
	if e, ok := errors.AsType[*attestation.Rejected](r.err); ok {
		return e.Field
	}
	if e, ok := errors.AsType[*api.VerifyError](r.err); ok {
		return e.Check
	}
	return "answer"
}

// requester holds the keys of one certificate: the leaf's, and the one that its secret is sealed to.
type requester struct {
	key  *ecdsa.PrivateKey
	spki []byte
	hpke hpke.PrivateKey
}

func newRequester() (*requester, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the pod's key: %w", err)
	}
	spki, err := pki.SPKI(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	sealed, err := api.NewHPKEKey()
	if err != nil {
		return nil, fmt.Errorf("make an HPKE key: %w", err)
	}
	return &requester{key: key, spki: spki, hpke: sealed}, nil
}

// ask is the protocol: nonce, evidence over nonce and keys, proof that we hold the leaf's key, certificate. With a pin, the
// Coordinator shows evidence of its own, over its answer.
func (r *requester) ask(
	ctx context.Context, c Coordinator, issuer attestation.Issuer, pin *pinned, held *Credentials,
) (*Credentials, error) {
	nonce, err := c.Nonce(ctx)
	if err != nil {
		return nil, fmt.Errorf("get a nonce: %w", err)
	}
	request := api.CertificateRequest{
		Nonce: nonce, PublicKey: r.spki, HPKEKey: r.hpke.PublicKey().Bytes(), WantEvidence: pin != nil,
	}
	if held != nil {
		digest := sha256.Sum256(held.Chain.MeshCA.Raw)
		request.MeshCA = digest[:]
	}
	if request.Evidence, err = issuer.Issue(ctx, request.ReportData()); err != nil {
		return nil, fmt.Errorf("get evidence: %w", err)
	}
	if err := request.Sign(r.key); err != nil {
		return nil, err
	}
	answer, err := c.Certificate(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("get a certificate: %w", err)
	}
	credentials, err := r.verify(&request, answer, time.Now())
	if err != nil {
		return nil, &refused{err}
	}
	if pin == nil {
		return credentials, nil
	}
	if err := pin.verify(ctx, c, &request, answer); err != nil {
		if _, no := errors.AsType[*api.VerifyError](err); no {
			return nil, &refused{err}
		}
		return nil, err
	}
	return credentials, nil
}

// verify believes an answer as a whole or not at all.
func (r *requester) verify(
	request *api.CertificateRequest, answer *api.CertificateResponse, at time.Time,
) (*Credentials, error) {
	chain, err := pki.ParseChain(answer.Chain, answer.MeshCA, answer.RootCA)
	if err != nil {
		return nil, err
	}
	if err := chain.Verify(&r.key.PublicKey, at); err != nil {
		return nil, err
	}
	if len(answer.TransitionHash) != sha256.Size {
		return nil, fmt.Errorf("the transition hash is %d bytes long, want %d", len(answer.TransitionHash), sha256.Size)
	}
	trust, err := trustOf(chain, answer)
	if err != nil {
		return nil, err
	}
	if !chain.BelongsTo([sha256.Size]byte(answer.TransitionHash)) {
		return nil, fmt.Errorf("the mesh CA is not the one of transition %x", answer.TransitionHash)
	}
	// The secret is bound to nonce, key and all certificates: one that opens shows that they are of one answer.
	secret, err := answer.Open(request, r.hpke)
	if err != nil {
		return nil, err
	}
	return &Credentials{Chain: chain, Trust: trust.At(at), Key: r.key, Secret: secret}, nil
}

// trustOf is what an answer says about the manifest before, if the mesh certificate in it says the same.
func trustOf(chain *pki.Chain, answer *api.CertificateResponse) (*pki.Trust, error) {
	var predecessor *x509.Certificate
	if len(answer.Predecessor) > 0 {
		var err error
		if predecessor, err = x509.ParseCertificate(answer.Predecessor); err != nil {
			return nil, fmt.Errorf("parse the predecessor: %w", err)
		}
	}
	return pki.NewTrust(chain.MeshCA, chain.Leaf, predecessor)
}
