package coordinator

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/manifest/strictjson"
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

// parseLatest reads what encodeLatest wrote. Whose signature it is, is not checked here.
func parseLatest(text []byte) (hash [32]byte, signature []byte, err error) {
	var l latest
	if err := strictjson.Unmarshal(text, &l); err != nil {
		return hash, nil, fmt.Errorf("read latest: %w", err)
	}
	if len(l.TransitionHash) != len(hash) {
		return hash, nil, fmt.Errorf("read latest: a transition hash of %d bytes, want %d", len(l.TransitionHash), len(hash))
	}
	return [32]byte(l.TransitionHash), l.Signature, nil
}

// signedLatest says whether the seed that key comes from belongs to a Coordinator that reached the transition.
func signedLatest(transitionHash [32]byte, signature []byte, key *ecdsa.PublicKey) bool {
	message := latestMessage(transitionHash)
	return ecdsa.VerifyASN1(key, message[:], signature)
}

// readHistory walks back from the transition hash to the first manifest. Every object is what its name says; whether the
// owners signed each step, the caller checks.
func readHistory(ctx context.Context, s store.Store, hash [32]byte) ([]api.HistoryEntry, error) {
	var entries []api.HistoryEntry
	for size := 0; hash != [32]byte{}; {
		transition, err := contentOf(ctx, s, store.Name{Kind: store.Transition, Hash: hash})
		if err != nil {
			return nil, err
		}
		if len(transition) != 64 {
			return nil, fmt.Errorf("transition %x is %d bytes long, want 64", hash, len(transition))
		}
		var e api.HistoryEntry
		if e.Manifest, err = contentOf(ctx, s, store.Name{Kind: store.Manifest, Hash: [32]byte(transition[:32])}); err != nil {
			return nil, err
		}
		if size += len(e.Manifest); size > maxHistory {
			return nil, fmt.Errorf("the history is larger than %d bytes", maxHistory)
		}
		if err := readJSON(ctx, s, store.Name{Kind: store.Signatures, Hash: hash}, &e.Signatures); err != nil {
			return nil, err
		}
		entries = append(entries, e)
		hash = [32]byte(transition[32:])
	}
	slices.Reverse(entries)
	return entries, nil
}

// contentOf reads an object that is named by its own hash.
func contentOf(ctx context.Context, s store.Store, name store.Name) ([]byte, error) {
	data, err := s.Object(ctx, name)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(data) != name.Hash {
		return nil, fmt.Errorf("%s holds something else", name)
	}
	return data, nil
}

// readJSON reads an object into a value; one that is not there leaves the value as it is.
func readJSON(ctx context.Context, s store.Store, name store.Name, into any) error {
	text, err := s.Object(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := strictjson.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// objects is what the store keeps of a transition, and of the seed where the transition is the first.
func objects(t *manifest.Transition, shares []api.SealedShare) ([]store.Object, error) {
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
	if t.Previous == [32]byte{} && len(shares) > 0 {
		sealed, err := json.Marshal(shares)
		if err != nil {
			return nil, fmt.Errorf("encode the seed shares: %w", err)
		}
		kept = append(kept, store.Object{Name: store.Name{Kind: store.Shares, Hash: t.Hash}, Data: sealed})
	}
	return kept, nil
}
