// Package storetest is what every store.Store must do, as tests.
package storetest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"

	"portcullis.dev/portcullis/coordinator/store"
)

// Opener opens a store. Reopen closes it and opens the same data again; an Opener of a test makes new data.
type Opener func(t *testing.T) (s store.Store, reopen func() store.Store)

// Run runs the tests.
func Run(t *testing.T, open Opener) {
	object := func(text string) store.Object {
		return store.Object{Name: store.Name{Kind: store.Manifest, Hash: sha256.Sum256([]byte(text))}, Data: []byte(text)}
	}

	t.Run("EmptyStoreHasNothing", func(t *testing.T) {
		s, _ := open(t)
		if v, err := s.Latest(t.Context()); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Latest: %q, %v, want ErrNotFound", v, err)
		}
		if v, err := s.Object(t.Context(), object("a").Name); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Object: %q, %v, want ErrNotFound", v, err)
		}
	})

	t.Run("CommitIsReadBackAlsoAfterReopening", func(t *testing.T) {
		s, reopen := open(t)
		big := object(string(bytes.Repeat([]byte("x"), 1<<20)))
		commit(t, s, []store.Object{object("a"), big}, nil, "one")
		commit(t, s, []store.Object{object("b")}, []byte("one"), "two")
		check := func(s store.Store) {
			wantLatest(t, s, "two")
			for _, o := range []store.Object{object("a"), object("b"), big} {
				got, err := s.Object(t.Context(), o.Name)
				if err != nil || !bytes.Equal(got, o.Data) {
					t.Errorf("Object(%s): %d bytes, %v, want %d bytes", o.Name, len(got), err, len(o.Data))
				}
			}
		}
		check(s)
		check(reopen())
	})

	t.Run("KindsDoNotShareNames", func(t *testing.T) {
		s, _ := open(t)
		a := object("a")
		b := store.Object{Name: store.Name{Kind: store.Signatures, Hash: a.Name.Hash}, Data: []byte("other")}
		commit(t, s, []store.Object{a, b}, nil, "one")
		if got, err := s.Object(t.Context(), a.Name); err != nil || string(got) != "a" {
			t.Errorf("Object: %q, %v, want a", got, err)
		}
	})

	t.Run("CommitWithAnotherOldConflicts", func(t *testing.T) {
		s, _ := open(t)
		wantConflict(t, s, []byte("one"), "two")
		wantConflict(t, s, []byte{}, "two")
		commit(t, s, nil, nil, "one")
		wantConflict(t, s, nil, "two")
		wantConflict(t, s, []byte("zero"), "two")
		wantConflict(t, s, []byte("on"), "two")
		wantLatest(t, s, "one")
	})

	t.Run("AnsweredValuesAreTheCallers", func(t *testing.T) {
		s, _ := open(t)
		commit(t, s, []store.Object{object("a")}, nil, "one")
		latest, err := s.Latest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		latest[0] = 'X'
		data, err := s.Object(t.Context(), object("a").Name)
		if err != nil {
			t.Fatal(err)
		}
		data[0] = 'X'
		wantLatest(t, s, "one")
		if got, err := s.Object(t.Context(), object("a").Name); err != nil || string(got) != "a" {
			t.Errorf("Object: %q, %v, want a", got, err)
		}
	})

	t.Run("OneOfManyRacingCommitsWins", func(t *testing.T) {
		s, _ := open(t)
		commit(t, s, nil, nil, "start")
		const racers = 8
		var wg sync.WaitGroup
		results := make([]error, racers)
		for i := range racers {
			wg.Go(func() {
				results[i] = s.Commit(t.Context(), nil, []byte("start"), fmt.Appendf(nil, "racer %d", i))
			})
		}
		wg.Wait()
		winner := -1
		for i, err := range results {
			switch {
			case err == nil && winner < 0:
				winner = i
			case err == nil:
				t.Errorf("racers %d and %d both won", winner, i)
			case !errors.Is(err, store.ErrConflict):
				t.Errorf("racer %d: %v, want ErrConflict", i, err)
			}
		}
		if winner < 0 {
			t.Fatal("nobody won")
		}
		wantLatest(t, s, fmt.Sprintf("racer %d", winner))
	})
}

func commit(t *testing.T, s store.Store, objects []store.Object, old []byte, new string) {
	t.Helper()
	if err := s.Commit(t.Context(), objects, old, []byte(new)); err != nil {
		t.Fatalf("Commit(%q -> %q): %v", old, new, err)
	}
}

func wantConflict(t *testing.T, s store.Store, old []byte, new string) {
	t.Helper()
	if err := s.Commit(t.Context(), nil, old, []byte(new)); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Commit(%q -> %q): %v, want ErrConflict", old, new, err)
	}
}

func wantLatest(t *testing.T, s store.Store, want string) {
	t.Helper()
	if got, err := s.Latest(t.Context()); err != nil || string(got) != want {
		t.Errorf("Latest: %q, %v, want %q", got, err, want)
	}
}
