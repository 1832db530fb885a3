package coordinator

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
)

// latest is the store's one mutable value: the latest transition's hash, signed by the transaction key. Whoever holds
// the seed can tell by it that this history is one that the seed's Coordinator made. That it is the newest such history
// nobody can tell from the store.
type latest struct {
	TransitionHash []byte `json:"transitionHash"`
	// Signature is ECDSA (ASN.1) over SHA-256 of latestMessage.
	Signature []byte `json:"signature"`
}

func latestMessage(transitionHash [32]byte) [32]byte {
	return sha256.Sum256(append([]byte("portcullis latest v1:"), transitionHash[:]...))
}

func encodeLatest(transitionHash [32]byte, key *ecdsa.PrivateKey) ([]byte, error) {
	message := latestMessage(transitionHash)
	signature, err := ecdsa.SignASN1(rand.Reader, key, message[:])
	if err != nil {
		return nil, fmt.Errorf("sign the latest transition: %w", err)
	}
	return json.Marshal(latest{TransitionHash: transitionHash[:], Signature: signature})
}

// objects is what the store keeps of a transition.
func objects(t *manifest.Transition) ([]store.Object, error) {
	manifestHash := t.Manifest.Hash()
	transition := manifest.TransitionBytes(manifestHash, t.Previous)
	kept := []store.Object{
		{Name: store.Name{Kind: store.Manifest, Hash: manifestHash}, Data: t.Manifest.Text()},
		{Name: store.Name{Kind: store.Transition, Hash: t.Hash}, Data: transition[:]},
	}
	if len(t.Signatures) > 0 {
		signatures, err := json.Marshal(t.Signatures)
		if err != nil {
			return nil, fmt.Errorf("encode the owners' signatures: %w", err)
		}
		kept = append(kept, store.Object{Name: store.Name{Kind: store.Signatures, Hash: t.Hash}, Data: signatures})
	}
	return kept, nil
}
