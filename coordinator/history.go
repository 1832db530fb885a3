package coordinator

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/manifest/strictjson"
)

// latest is the store's one mutable value, signed by the transaction key. Whoever holds the seed can tell by it that this
// history is one that the seed's Coordinators made, which mesh CA they gave its last manifest, and which of two such
// values is the later one. That it is the newest of all nobody can tell from the store.
type latest struct {
	transition [32]byte
	meshCA     [32]byte // SHA-256 of the one mesh CA of that transition
	// sequence counts the changes of latest, from 1: a recovery gives a transition another mesh CA, so that the transition's
	// place in the history does not say which of two values is the older one.
	sequence  uint64
	signature []byte // ECDSA (ASN.1) over SHA-256 of message
	text      []byte // as the store has it
}

// wireLatest is latest as it is kept.
type wireLatest struct {
	TransitionHash []byte `json:"transitionHash"`
	MeshCA         []byte `json:"meshCa"`
	Sequence       uint64 `json:"sequence"`
	Signature      []byte `json:"signature"`
}

// message is what is signed; every part has one length.
func (l *latest) message() [32]byte {
	m := []byte("portcullis latest v2:")
	m = append(append(m, l.transition[:]...), l.meshCA[:]...)
	return sha256.Sum256(binary.BigEndian.AppendUint64(m, l.sequence))
}

// newLatest signs what the store is to say.
func newLatest(transition, meshCA [32]byte, sequence uint64, key *ecdsa.PrivateKey) (*latest, error) {
	l := &latest{transition: transition, meshCA: meshCA, sequence: sequence}
	message := l.message()
	var err error
	if l.signature, err = ecdsa.SignASN1(rand.Reader, key, message[:]); err != nil {
		return nil, fmt.Errorf("sign the latest transition: %w", err)
	}
	l.text, err = json.Marshal(wireLatest{
		TransitionHash: transition[:], MeshCA: meshCA[:], Sequence: sequence, Signature: l.signature,
	})
	return l, err
}

// parseLatest reads what newLatest made. Whose signature it is, is not checked here.
func parseLatest(text []byte) (*latest, error) {
	var w wireLatest
	if err := strictjson.Unmarshal(text, &w); err != nil {
		return nil, fmt.Errorf("read latest: %w", err)
	}
	l := &latest{sequence: w.Sequence, signature: w.Signature, text: text}
	for _, hash := range []struct {
		name string
		got  []byte
		to   *[32]byte
	}{{"transition", w.TransitionHash, &l.transition}, {"mesh CA", w.MeshCA, &l.meshCA}} {
		if len(hash.got) != len(hash.to) {
			return nil, fmt.Errorf("read latest: a %s hash of %d bytes, want %d", hash.name, len(hash.got), len(hash.to))
		}
		*hash.to = [32]byte(hash.got)
	}
	if l.sequence == 0 {
		return nil, errors.New("read latest: the sequence is 0, want 1 or more")
	}
	return l, nil
}

// signedBy says whether the seed that key comes from belongs to a Coordinator that came this far.
func (l *latest) signedBy(key *ecdsa.PublicKey) bool {
	message := l.message()
	return ecdsa.VerifyASN1(key, message[:], l.signature)
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
