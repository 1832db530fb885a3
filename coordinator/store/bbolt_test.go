package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/coordinator/store/storetest"
)

// committerEnv makes the test binary a process that commits in an endless loop, for a test that kills it.
const committerEnv = "PORTCULLIS_TEST_COMMIT_TO"

func TestMain(m *testing.M) {
	if path := os.Getenv(committerEnv); path != "" {
		fmt.Fprintln(os.Stderr, commitForEver(path))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestBoltIsAStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		path := filepath.Join(t.TempDir(), "new", "coordinator.db")
		s := open(t, path)
		reopen := func() store.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, path)
			return s
		}
		damage := func(bucket, key string, value []byte) {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), value) })
			if err := errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
			s = open(t, path)
		}
		return storetest.Subject{
			Store:  func() store.Store { return s },
			Reopen: reopen,
			ChangeObject: func(name store.Name, data []byte) {
				damage("objects", name.String(), data)
			},
			ChangeLatest: func(value []byte) { damage("latest", "latest", value) },
		}
	})
}

func TestStoreFileIsPrivateAndHeldByOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	open(t, path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the store: %v, %v, want 0600", info.Mode(), err)
	}
	if _, err := store.OpenBolt(path); err == nil || !strings.Contains(err.Error(), "another process holds it") {
		t.Errorf("OpenBolt of a store that is open: %v", err)
	}
}

func TestOpenBoltRefusesAForeignFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("not a database\n"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := store.OpenBolt(path); err == nil {
		s.Close()
		t.Error("OpenBolt took a text file for a store")
	}
}

// bbolt believes what it maps. Whatever the host makes of the file, opening it or reading from it is an error and not the end
// of the process; or else the file is as good as it was.
func TestADamagedFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	s := open(t, path)
	o, big := objectOf(1), store.Object{Name: objectOf(2).Name, Data: bytes.Repeat([]byte("x"), 20_000)}
	if err := s.Commit(t.Context(), []store.Object{o, big}, nil, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tried, refused := 0, 0
	try := func(what string, damaged []byte) {
		t.Helper()
		tried++
		path := filepath.Join(t.TempDir(), "damaged.db")
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := store.OpenBolt(path)
		if err != nil {
			refused++
			return
		}
		defer s.Close()
		_, err = s.Latest(t.Context())
		for _, o := range []store.Object{o, big} {
			got, readErr := s.Object(t.Context(), o.Name)
			if readErr == nil && !bytes.Equal(got, o.Data) {
				t.Logf("%s: another object is read; whoever reads it compares its hash", what)
			}
			err = errors.Join(err, readErr)
		}
		if err != nil {
			refused++
		}
	}
	page := os.Getpagesize()
	for at := 0; at < len(whole); at += page {
		if at > 0 { // an empty file is a new store
			try("truncated", whole[:at])
		}
		damaged := bytes.Clone(whole)
		copy(damaged[at:], make([]byte, page))
		try("zeroed", damaged)
		for i := at; i < at+page; i += 8 {
			damaged[i] ^= 0xff
		}
		try("garbage", damaged)
	}
	if refused < 10 {
		t.Errorf("%d of %d damaged files were refused", refused, tried)
	}
	t.Logf("%d of %d damaged files were refused", refused, tried)
}

// A committer announces n on its standard output after Commit(n) returned. It is killed at a random point. Then latest
// must be the last n that was announced or the one after it, with its object.
func TestKilledCommitLeavesOldOrNew(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "coordinator.db")
	last := 0
	for range 5 {
		committer := exec.CommandContext(t.Context(), self)
		committer.Env = append(os.Environ(), committerEnv+"="+path)
		committer.Stderr = os.Stderr
		stdout, err := committer.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := committer.Start(); err != nil {
			t.Fatal(err)
		}
		var announced bytes.Buffer
		for chunk := make([]byte, 64); bytes.Count(announced.Bytes(), []byte("\n")) < 3; {
			n, err := stdout.Read(chunk)
			if err != nil {
				t.Fatalf("the committer ended by itself: %v", err)
			}
			announced.Write(chunk[:n])
		}
		if err := committer.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := announced.ReadFrom(stdout); err != nil {
			t.Fatal(err)
		}
		_ = committer.Wait() // killed, as wanted

		lines := strings.Split(announced.String(), "\n")
		answered, err := strconv.Atoi(lines[len(lines)-2]) // the last complete line
		if err != nil || answered <= last {
			t.Fatalf("the committer announced %q after %d", lines, last)
		}
		s, err := store.OpenBolt(path)
		if err != nil {
			t.Fatal(err)
		}
		latest, err := s.Latest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(string(latest))
		if err != nil || (n != answered && n != answered+1) {
			t.Errorf("latest is %q, %v after %d was answered", latest, err, answered)
		}
		if data, err := s.Object(t.Context(), objectOf(n).Name); err != nil || string(data) != string(latest) {
			t.Errorf("the object of latest %d: %q, %v", n, data, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		last = n
	}
}

func commitForEver(path string) error {
	ctx := context.Background()
	s, err := store.OpenBolt(path)
	if err != nil {
		return err
	}
	n, old := 0, []byte(nil)
	switch latest, err := s.Latest(ctx); {
	case err == nil:
		if n, err = strconv.Atoi(string(latest)); err != nil {
			return err
		}
		old = latest
	case !errors.Is(err, store.ErrNotFound):
		return err
	}
	for {
		n++
		o := objectOf(n)
		if err := s.Commit(ctx, []store.Object{o}, old, o.Data); err != nil {
			return err
		}
		fmt.Println(n)
		old = o.Data
	}
}

func objectOf(n int) store.Object {
	return store.Object{
		Name: store.Name{Kind: store.Signatures, Hash: [32]byte{byte(n), byte(n >> 8), byte(n >> 16)}},
		Data: strconv.AppendInt(nil, int64(n), 10),
	}
}

func open(t *testing.T, path string) store.Store {
	t.Helper()
	s, err := store.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
