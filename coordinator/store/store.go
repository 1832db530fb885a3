// Package store keeps a Coordinator's history.
//
// A store lies on the host's disk or in the host's cluster, so it is trusted with nothing. What it holds is public. Its integrity is checked by
// who reads it: objects are named by their content's hash, and the one thing that changes, latest, is signed. Its
// freshness cannot be had from it at all. What a store does promise is order: an object that latest leads to is durable
// before latest leads to it, and latest changes from one value to the next only for the writer that knew the one before.
package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// The errors that callers branch on.
var (
	// ErrNotFound says that there is no such object, or no latest yet.
	ErrNotFound = errors.New("not found in the store")
	// ErrConflict says that latest is not what the caller thought: somebody else changed it.
	ErrConflict = errors.New("the store's latest transition was changed by somebody else")
)

// Kind is a kind of object.
type Kind string

// The kinds.
const (
	Manifest   Kind = "manifest"   // named by SHA-256 of itself
	Transition Kind = "transition" // named by SHA-256 of itself
	Signatures Kind = "signatures" // the owners' signatures of a transition, named by its hash
	Shares     Kind = "shares"     // the sealed shares of the seed, named by the first transition's hash
)

// NamedByContent says whether the hash in the name of such an object is SHA-256 of its content.
func (k Kind) NamedByContent() bool { return k == Manifest || k == Transition }

// Name is where an object is kept. Its text is manifest/<64 hexadecimal digits>, and so on.
type Name struct {
	Kind Kind
	Hash [32]byte
}

func (n Name) String() string { return string(n.Kind) + "/" + hex.EncodeToString(n.Hash[:]) }

// Verify says whether data can be what is named: whether it has the hash, for an object that is named by its content.
func (n Name) Verify(data []byte) error {
	if n.Kind.NamedByContent() && sha256.Sum256(data) != n.Hash {
		return fmt.Errorf("%s holds something else", n)
	}
	return nil
}

// Object is what a Name names.
type Object struct {
	Name Name
	Data []byte
}

// Store keeps objects and latest. All methods may be called at the same time.
type Store interface {
	// Object returns the object of that name, or ErrNotFound. One that is named by its content has been compared with its name.
	Object(ctx context.Context, name Name) ([]byte, error)
	// Latest returns the latest value of the last Commit, or ErrNotFound before the first. ErrNotFound is never the answer of a
	// store that is away, or damaged: a Coordinator takes it for leave to begin anew.
	Latest(ctx context.Context) ([]byte, error)
	// Commit keeps objects, then changes latest from old to new; old is nil when there is none yet. It returns nil when
	// all of that is durable, and ErrConflict when latest was not old; then latest is unchanged. After a crash or any
	// other error latest is either old or new. Objects of a Commit that failed may stay behind; nothing leads to them, and they
	// take no other object's place. An object that is there already is replaced; new is not empty.
	Commit(ctx context.Context, objects []Object, old, new []byte) error
	// Close releases the store.
	Close() error
}
