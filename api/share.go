package api

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// This file is the way of a seed share: sealed by the Coordinator to its owner when the seed is made, and by the owner to
// the Coordinator that needs it again.

// SealShare seals a share to its owner, in the name of the root CA that the seed makes.
func SealShare(
	share pki.Share, owner manifest.SeedshareOwner, firstTransition [32]byte, root *ecdsa.PrivateKey,
) (*SealedShare, error) {
	rootKey, err := pki.SPKI(&root.PublicKey)
	if err != nil {
		return nil, err
	}
	key, err := ParseHPKEKey(owner.HPKEKey.Raw())
	if err != nil {
		return nil, fmt.Errorf("parse the seed-share owner's HPKE key: %w", err)
	}
	s := &SealedShare{TransitionHash: firstTransition[:], Owner: owner.SigningKey.SPKI(), RootKey: rootKey}
	if s.Sealed, err = pki.Seal(key, LabelShare, s.aad(), share.Bytes); err != nil {
		return nil, fmt.Errorf("seal a seed share: %w", err)
	}
	digest := s.digest()
	if s.Signature, err = ecdsa.SignASN1(rand.Reader, root, digest[:]); err != nil {
		return nil, fmt.Errorf("sign a seed share: %w", err)
	}
	return s, nil
}

// Verify checks that the holder of s.RootKey made s. Whether that is the right root CA is the caller's knowledge.
func (s *SealedShare) Verify() error {
	key, err := pki.ParseSPKI(s.RootKey)
	if err != nil {
		return fmt.Errorf("root key of a seed share: %w", err)
	}
	if digest := s.digest(); !ecdsa.VerifyASN1(key, digest[:], s.Signature) {
		return fmt.Errorf("the seed share is not signed by the root CA's key")
	}
	return nil
}

// Open verifies s and returns the share, to its owner.
func (s *SealedShare) Open(key hpke.PrivateKey) (pki.Share, error) {
	if err := s.Verify(); err != nil {
		return pki.Share{}, err
	}
	plain, err := pki.Open(key, LabelShare, s.aad(), s.Sealed)
	if err != nil {
		return pki.Share{}, fmt.Errorf("open the seed share: %w", err)
	}
	return pki.ParseShare(plain.Reveal())
}

func (s *SealedShare) aad() []byte {
	b := attestation.NewReportData(LabelShare, s.TransitionHash, s.Owner, s.RootKey).Bytes()
	return b[:]
}

func (s *SealedShare) digest() [32]byte {
	b := attestation.NewReportData(LabelShare, s.TransitionHash, s.Owner, s.RootKey, s.Sealed).Bytes()
	return sha256.Sum256(b[:])
}

// NewRecoverRequest seals a share to the Coordinator that VerifyRecovery found good, and signs that with its owner's key.
func NewRecoverRequest(share pki.Share, owner crypto.Signer, to *Verified) (*RecoverRequest, error) {
	public, ok := owner.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the seed-share owner's key is a %T, want ECDSA", owner.Public())
	}
	spki, err := pki.SPKI(public)
	if err != nil {
		return nil, err
	}
	key, err := ParseHPKEKey(to.HPKEKey)
	if err != nil {
		return nil, fmt.Errorf("parse the Coordinator's HPKE key: %w", err)
	}
	r := &RecoverRequest{Nonce: to.RecoveryNonce, TransitionHash: to.TransitionHash[:], PublicKey: spki}
	if r.Share, err = pki.Seal(key, LabelRecover, r.aad(), share.Bytes); err != nil {
		return nil, fmt.Errorf("seal the seed share to the Coordinator: %w", err)
	}
	digest := r.digest(to.HPKEKey)
	if r.Signature, err = owner.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
		return nil, fmt.Errorf("sign the seed share: %w", err)
	}
	return r, nil
}

// VerifySignature says whether the holder of owner signed r, for the Coordinator whose raw HPKE key is given.
func (r *RecoverRequest) VerifySignature(owner *ecdsa.PublicKey, hpkeKey []byte) bool {
	digest := r.digest(hpkeKey)
	return ecdsa.VerifyASN1(owner, digest[:], r.Signature)
}

// Open returns the share, to the Coordinator.
func (r *RecoverRequest) Open(key hpke.PrivateKey) (pki.Share, error) {
	plain, err := pki.Open(key, LabelRecover, r.aad(), r.Share)
	if err != nil {
		return pki.Share{}, fmt.Errorf("open the seed share: %w", err)
	}
	return pki.ParseShare(plain.Reveal())
}

func (r *RecoverRequest) aad() []byte {
	b := attestation.NewReportData(LabelRecover, r.Nonce, r.TransitionHash, r.PublicKey).Bytes()
	return b[:]
}

func (r *RecoverRequest) digest(hpkeKey []byte) [32]byte {
	b := attestation.NewReportData(LabelRecover, r.Share, hpkeKey, r.Nonce, r.TransitionHash).Bytes()
	return sha256.Sum256(b[:])
}
