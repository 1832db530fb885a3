package api

import (
	"crypto/hpke"
	"crypto/sha256"
	"fmt"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret"
)

// This file is the way of a Coordinator's state to another replica of it. HPKE alone says nothing about the sender, and
// evidence alone keeps no secret, so there are both, in both directions: the giver judges who asks before it gives, and
// who asked judges the giver before it believes.

// PeerRequest asks a Coordinator that serves for what it has, on behalf of another replica.
type PeerRequest struct {
	// Nonce is the giver's (PathNonce).
	Nonce []byte `json:"nonce"`
	// TransitionHash is the latest in the requester's store. A giver that knows another one gives nothing.
	TransitionHash []byte `json:"transitionHash"`
	// HPKEKey is the requester's MLKEM768X25519 public key, raw. It is made for this request and forgotten with it: so an
	// answer fits no other request, and what was recorded on the way cannot be read when a later generation's memory leaks.
	HPKEKey []byte `json:"hpkeKey"`
	// Evidence is over NewReportData(LabelPeer, nonce, transition hash, HPKE key).
	Evidence attestation.Evidence `json:"evidence"`
}

// PeerResponse carries the state.
type PeerResponse struct {
	// Sealed is sealed to HPKEKey: encapsulated key || ciphertext, info LabelPeerState,
	// AAD NewReportData(LabelPeerState, nonce, transition hash, HPKE key).
	Sealed []byte `json:"sealed"`
	// Evidence is over NewReportData(LabelPeerAnswer, nonce, HPKE key, SHA-256(sealed), transition hash): anybody could seal
	// something to the requester.
	Evidence attestation.Evidence `json:"evidence"`
}

// ReportData is what the requester's evidence is made over.
func (r *PeerRequest) ReportData() attestation.ReportData {
	return attestation.NewReportData(LabelPeer, r.Nonce, r.TransitionHash, r.HPKEKey)
}

// ReportData is what the giver's evidence in the answer to r is made over.
func (a *PeerResponse) ReportData(r *PeerRequest) attestation.ReportData {
	sealed := sha256.Sum256(a.Sealed)
	return attestation.NewReportData(LabelPeerAnswer, r.Nonce, r.HPKEKey, sealed[:], r.TransitionHash)
}

// Seal fills a.Sealed, for who made r.
func (a *PeerResponse) Seal(r *PeerRequest, state secret.Bytes) error {
	key, err := ParseHPKEKey(r.HPKEKey)
	if err != nil {
		return fmt.Errorf("parse the replica's HPKE key: %w", err)
	}
	if a.Sealed, err = pki.Seal(key, LabelPeerState, r.stateAAD(), state); err != nil {
		return fmt.Errorf("seal the state to the replica: %w", err)
	}
	return nil
}

// Open returns the state, to who made r. Whose it is, the evidence says.
func (a *PeerResponse) Open(r *PeerRequest, key hpke.PrivateKey) (secret.Bytes, error) {
	state, err := pki.Open(key, LabelPeerState, r.stateAAD(), a.Sealed)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("open the peer's state: %w", err)
	}
	return state, nil
}

func (r *PeerRequest) stateAAD() []byte {
	b := attestation.NewReportData(LabelPeerState, r.Nonce, r.TransitionHash, r.HPKEKey).Bytes()
	return b[:]
}
