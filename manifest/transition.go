package manifest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"portcullis.dev/portcullis/pki"
)

// Signature is an owner's ECDSA signature (ASN.1) over SHA-256 of SignedMessage.
type Signature struct {
	// PublicKey is the owner key's SPKI.
	PublicKey []byte `json:"publicKey"`
	Signature []byte `json:"signature"`
}

// Transition is one manifest in its place in the history.
type Transition struct {
	Manifest *Manifest
	// Previous is the hash of the transition before, all zero for the first.
	Previous [32]byte
	// Hash names this transition, and through Previous all before it.
	Hash       [32]byte
	Signatures []Signature
}

// First is the transition to a Coordinator's first manifest. Where text lists owners they must have signed, so that
// nobody sets a manifest in another owner's name.
func First(text []byte, signatures []Signature) (*Transition, error) {
	return next(nil, text, signatures)
}

// Next is the transition from t to another manifest, which t's owners must have signed. It has t's seed-share owners: the
// seed was split among them, and stays.
func (t *Transition) Next(text []byte, signatures []Signature) (*Transition, error) {
	if t == nil {
		return nil, errors.New("a next transition needs one before it")
	}
	return next(t, text, signatures)
}

func next(current *Transition, text []byte, signatures []Signature) (*Transition, error) {
	m, err := Parse(text)
	if err != nil {
		return nil, err
	}
	t := &Transition{Manifest: m, Signatures: signatures}
	if current != nil {
		t.Previous = current.Hash
		if faults := m.changedSeedshares(current.Manifest); len(faults) > 0 {
			return nil, &Error{faults}
		}
	}
	t.Hash = TransitionHash(text, t.Previous)
	switch {
	case current != nil:
		err = VerifyOwners(current.Manifest, t.Hash, signatures)
	case len(m.WorkloadOwnerKeys) > 0:
		err = VerifyOwners(m, t.Hash, signatures)
	case len(signatures) > 0:
		err = &SignatureError{Reason: "there are signatures, but the manifest lists no WorkloadOwnerKeys"}
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Signers are the keys that signed t, as SPKI, each once. First and Next let nothing pass but owners' valid signatures.
func (t *Transition) Signers() [][]byte {
	var keys [][]byte
	for _, s := range t.Signatures {
		if !slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, s.PublicKey) }) {
			keys = append(keys, s.PublicKey)
		}
	}
	return keys
}

// TransitionBytes are what a transition is: SHA-256 of the manifest, then the previous transition's hash.
func TransitionBytes(manifestHash, previous [32]byte) [64]byte {
	var b [64]byte
	copy(b[:32], manifestHash[:])
	copy(b[32:], previous[:])
	return b
}

// TransitionHash is SHA-256 of the transition from previous (32 zero bytes: from nothing) to the manifest.
func TransitionHash(manifest []byte, previous [32]byte) [32]byte {
	b := TransitionBytes(sha256.Sum256(manifest), previous)
	return sha256.Sum256(b[:])
}

// SignedMessage is what an owner signs: readable text, so that a person with an offline key sees what it is, and
// `openssl dgst -sha256 -sign` makes the signature.
func SignedMessage(transitionHash [32]byte) []byte {
	return []byte("portcullis transition v1:" + hex.EncodeToString(transitionHash[:]))
}

// SignatureError says why the owners' signatures do not suffice.
type SignatureError struct{ Reason string }

func (e *SignatureError) Error() string { return "owners' signatures: " + e.Reason }

// ExitCode is that of a check whose answer is no.
func (*SignatureError) ExitCode() int { return 3 }

// Hint says how to sign.
func (*SignatureError) Hint() string {
	return "WorkloadOwnerKeys of the current manifest sign the new transition hash: portcullis sign"
}

// VerifyOwners checks that as many of m's owners as its threshold says signed the transition. A signature that is
// wrong, or made by a key that m does not list, is an error even when the others would suffice: it means that somebody
// is mistaken about what is being signed. The error is a *SignatureError.
func VerifyOwners(m *Manifest, transitionHash [32]byte, signatures []Signature) error {
	if m == nil || len(m.WorkloadOwnerKeys) == 0 || m.WorkloadOwnerThreshold < 1 {
		return &SignatureError{Reason: "the manifest lists no WorkloadOwnerKeys, so nobody may replace it"}
	}
	listed := make(map[string]*ecdsa.PublicKey, len(m.WorkloadOwnerKeys))
	for _, k := range m.WorkloadOwnerKeys {
		listed[k.spki] = k.key
	}
	digest := sha256.Sum256(SignedMessage(transitionHash))
	signed := make(map[string]bool)
	for i, s := range signatures {
		key, err := pki.ParseSPKI(s.PublicKey)
		if err != nil {
			return &SignatureError{Reason: fmt.Sprintf("signature %d: %v", i+1, err)}
		}
		if listed[string(s.PublicKey)] == nil {
			return &SignatureError{Reason: fmt.Sprintf("signature %d is by a key that WorkloadOwnerKeys does not list", i+1)}
		}
		if !ecdsa.VerifyASN1(key, digest[:], s.Signature) {
			return &SignatureError{Reason: fmt.Sprintf("signature %d does not verify over transition %x", i+1, transitionHash)}
		}
		signed[string(s.PublicKey)] = true
	}
	if len(signed) < m.WorkloadOwnerThreshold {
		return &SignatureError{Reason: fmt.Sprintf("transition %x is signed by %d of the %d keys that are needed",
			transitionHash, len(signed), m.WorkloadOwnerThreshold)}
	}
	return nil
}
