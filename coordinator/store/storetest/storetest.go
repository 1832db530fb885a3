// Package storetest is what every store.Store must do, as tests.
package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"

	"portcullis.dev/portcullis/coordinator/store"
)

// Subject is a new store, and what a host can do to it.
type Subject struct {
	// Store is the store as it was opened last.
	Store func() store.Store
	// Reopen closes it and opens the same data again.
	Reopen func() store.Store
	// ChangeObject puts other data where an object is, and ChangeLatest another value in the place of latest, without the store's
	// leave.
	ChangeObject func(name store.Name, data []byte)
	ChangeLatest func(value []byte)
}

// Run runs the tests. Each calls open for a store of its own.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	object := func(text string) store.Object {
		return store.Object{Name: store.Name{Kind: store.Manifest, Hash: sha256.Sum256([]byte(text))}, Data: []byte(text)}
	}
	signatures := func(of store.Object, text string) store.Object {
		return store.Object{Name: store.Name{Kind: store.Signatures, Hash: of.Name.Hash}, Data: []byte(text)}
	}

	t.Run("EmptyStoreHasNothing", func(t *testing.T) {
		s := open(t).Store()
		if v, err := s.Latest(t.Context()); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Latest: %q, %v, want ErrNotFound", v, err)
		}
		wantNothing(t, s, object("a").Name)
		wantNothing(t, s, signatures(object("a"), "").Name)
	})

	t.Run("CommitIsReadBackAlsoAfterReopening", func(t *testing.T) {
		subject := open(t)
		s := subject.Store()
		big := object(string(bytes.Repeat([]byte("x"), 1<<20)))
		bigger := object(string(bytes.Repeat([]byte("0123456789abcdef"), 3<<15))) // 1.5 MiB
		long := signatures(object("a"), string(bytes.Repeat([]byte("y"), 1<<20+1)))
		commit(t, s, []store.Object{object("a"), big}, nil, "one")
		commit(t, s, []store.Object{object("b"), bigger, long}, []byte("one"), "two")
		check := func(s store.Store) {
			wantLatest(t, s, "two")
			for _, o := range []store.Object{object("a"), object("b"), big, bigger, long} {
				wantObject(t, s, o)
			}
		}
		check(s)
		check(subject.Reopen())
	})

	t.Run("KindsDoNotShareNames", func(t *testing.T) {
		s := open(t).Store()
		a := object("a")
		b := signatures(a, "other")
		commit(t, s, []store.Object{a, b}, nil, "one")
		wantObject(t, s, a)
		wantObject(t, s, b)
		wantNothing(t, s, store.Name{Kind: store.Shares, Hash: a.Name.Hash})
	})

	t.Run("ObjectsMayComeAgainAndBeReplaced", func(t *testing.T) {
		s := open(t).Store()
		a := object("a")
		commit(t, s, []store.Object{a, signatures(a, "first")}, nil, "one")
		commit(t, s, []store.Object{a, signatures(a, "second")}, []byte("one"), "two")
		wantObject(t, s, a)
		wantObject(t, s, signatures(a, "second"))
		commit(t, s, nil, []byte("two"), "three")
		wantObject(t, s, signatures(a, "second"))
	})

	t.Run("CommitWithAnotherOldConflicts", func(t *testing.T) {
		s := open(t).Store()
		wantConflict(t, s, []byte("one"), "two")
		wantConflict(t, s, []byte{}, "two")
		commit(t, s, nil, nil, "one")
		wantConflict(t, s, nil, "two")
		wantConflict(t, s, []byte("zero"), "two")
		wantConflict(t, s, []byte("on"), "two")
		wantLatest(t, s, "one")
	})

	t.Run("CommitThatConflictsReplacesNothing", func(t *testing.T) {
		s := open(t).Store()
		a := object("a")
		commit(t, s, []store.Object{signatures(a, "the winner's")}, nil, "one")
		err := s.Commit(t.Context(), []store.Object{signatures(a, "the loser's")}, nil, []byte("two"))
		if !errors.Is(err, store.ErrConflict) {
			t.Errorf("Commit: %v, want ErrConflict", err)
		}
		wantObject(t, s, signatures(a, "the winner's"))
	})

	t.Run("CommitOfNoLatestIsRefused", func(t *testing.T) {
		s := open(t).Store()
		commit(t, s, nil, nil, "one")
		for _, empty := range [][]byte{nil, {}} {
			if err := s.Commit(t.Context(), nil, []byte("one"), empty); err == nil || errors.Is(err, store.ErrConflict) {
				t.Errorf("Commit of an empty latest: %v, want a plain error", err)
			}
		}
		wantLatest(t, s, "one")
	})

	t.Run("CancelledCommitChangesNothing", func(t *testing.T) {
		s := open(t).Store()
		commit(t, s, nil, nil, "one")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Commit(ctx, nil, []byte("one"), []byte("two")); !errors.Is(err, context.Canceled) {
			t.Errorf("Commit: %v, want %v", err, context.Canceled)
		}
		wantLatest(t, s, "one")
	})

	t.Run("AnsweredValuesAreTheCallers", func(t *testing.T) {
		s := open(t).Store()
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
		wantObject(t, s, object("a"))
	})

	t.Run("ChangedObjectIsRefused", func(t *testing.T) {
		subject := open(t)
		big := object(string(bytes.Repeat([]byte("x"), 1<<20)))
		commit(t, subject.Store(), []store.Object{object("a"), big}, nil, "one")
		for _, o := range []store.Object{object("a"), big} {
			for _, other := range [][]byte{nil, []byte("b"), o.Data[:len(o.Data)-1], append(bytes.Clone(o.Data), 'x')} {
				subject.ChangeObject(o.Name, other)
				got, err := subject.Store().Object(t.Context(), o.Name)
				if err == nil || errors.Is(err, store.ErrNotFound) {
					t.Errorf("Object of %d bytes where %d are other: %d bytes, %v, want an error that is not ErrNotFound",
						len(o.Data), len(other), len(got), err)
				}
			}
			subject.ChangeObject(o.Name, o.Data)
			wantObject(t, subject.Store(), o)
		}
	})

	t.Run("EmptyLatestIsDamage", func(t *testing.T) {
		subject := open(t)
		commit(t, subject.Store(), nil, nil, "one")
		subject.ChangeLatest(nil)
		if v, err := subject.Store().Latest(t.Context()); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Latest: %q, %v, want an error that is not ErrNotFound", v, err)
		}
		for _, old := range [][]byte{nil, []byte("one")} {
			if err := subject.Store().Commit(t.Context(), nil, old, []byte("two")); err == nil {
				t.Errorf("Commit(%q) over an empty latest is accepted", old)
			}
		}
		subject.ChangeLatest([]byte("on"))
		wantLatest(t, subject.Store(), "on") // that it was cut short, its signature tells
	})

	t.Run("OneOfManyRacingCommitsWins", func(t *testing.T) {
		s := open(t).Store()
		a := object("a")
		const racers = 8
		// The second race is for the same value: also then, one has made it and the others have not.
		old := []byte(nil)
		for _, value := range []string{"racer %d", "the same%.0d"} {
			var wg sync.WaitGroup
			results := make([]error, racers)
			for i := range racers {
				wg.Go(func() {
					results[i] = s.Commit(t.Context(), []store.Object{a, signatures(a, fmt.Sprintf("racer %d's", i))}, old, fmt.Appendf(nil, value, i))
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
			old = fmt.Appendf(nil, value, winner)
			wantLatest(t, s, string(old))
			wantObject(t, s, signatures(a, fmt.Sprintf("racer %d's", winner)))
		}
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

func wantObject(t *testing.T, s store.Store, want store.Object) {
	t.Helper()
	got, err := s.Object(t.Context(), want.Name)
	if err != nil || !bytes.Equal(got, want.Data) {
		t.Errorf("Object(%s): %d bytes (%.20q), %v, want %d (%.20q)", want.Name, len(got), got, err, len(want.Data), want.Data)
	}
}

func wantNothing(t *testing.T, s store.Store, name store.Name) {
	t.Helper()
	if v, err := s.Object(t.Context(), name); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Object(%s): %.20q, %v, want ErrNotFound", name, v, err)
	}
}
