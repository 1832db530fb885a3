package collateral_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"portcullis.dev/portcullis/attestation/collateral"
)

// onlyFile is the one document of a folder.
func onlyFile(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the folder has %q, %v; want one file", files, err)
	}
	return files[0]
}

func TestAFolderOutlivesTheProcess(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "deep", "folder")
	get(t, w.cache(dir), tcbInfo)
	w.setDown(true)
	w.pass(10 * time.Minute)
	header, body, err := w.cache(dir).Get(t.Context(), tcbInfo)
	if err != nil || string(body) != `{"tcbInfo":{}}` || len(header) != 1 {
		t.Errorf("got %v, %s, %v", header, body, err)
	}
	if w.logged("does not answer") > 0 {
		t.Error("the vendor was asked for what is fresh on disk")
	}
	w.pass(5 * time.Hour)
	get(t, w.cache(dir), tcbInfo) // old, and nothing better can be had
	if w.logged("does not answer") != 1 {
		t.Error("the vendor was not asked for what is old")
	}
}

// One process may fetch for another, which has no way out.
func TestAFolderThatIsFilledMeanwhileIsSeen(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	serving := w.cache(dir)
	w.setDown(true)
	refused(t, serving, qe, "unreachable")
	w.setDown(false)
	if err := w.cache(dir).Refresh(t.Context(), []string{qe}); err != nil {
		t.Fatal(err)
	}
	w.setDown(true)
	get(t, serving, qe)
}

func TestAFileThatIsNotWholeIsRefused(t *testing.T) {
	checksummed := func(content string) []byte {
		sum := sha256.Sum256([]byte(content))
		return []byte(hex.EncodeToString(sum[:]) + "\n" + content)
	}
	rewrite := func(change func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, name string) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, change(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	replace := func(make func(name string) error) func(*testing.T, string) {
		return func(t *testing.T, name string) {
			if err := errors.Join(os.Remove(name), make(name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, name string)
		fault string
	}{
		{"empty", rewrite(func([]byte) []byte { return nil }), "checksum"},
		{"half", rewrite(func(b []byte) []byte { return b[:len(b)/2] }), "checksum"},
		{"one byte less", rewrite(func(b []byte) []byte { return b[:len(b)-1] }), "checksum"},
		{"one bit", rewrite(func(b []byte) []byte { b[len(b)-10] ^= 1; return b }), "checksum"},
		{"foreign", rewrite(func([]byte) []byte { return []byte(`{"url":"x"}`) }), "checksum"},
		{"not JSON", rewrite(func([]byte) []byte { return checksummed("x") }), "invalid character"},
		{"another document's", rewrite(func(b []byte) []byte {
			return checksummed(strings.Replace(string(b[65:]), qe, crl, 1))
		}), "it is about"},
		{"another kind of document", rewrite(func([]byte) []byte {
			return checksummed(`{"url":"` + qe + `","fetched":"2026-11-25T12:00:00Z","header":{},"body":"AAAA"}`)
		}), "not JSON"},
		{"too long", rewrite(func([]byte) []byte { return bytes.Repeat([]byte{'0'}, 5<<20) }), "longer than"},
		{"pipe", replace(func(name string) error { return syscall.Mkfifo(name, 0o600) }), "not a regular file"},
		{"folder", replace(func(name string) error { return os.Mkdir(name, 0o700) }), "not a regular file"},
		{"link out of the folder", replace(func(name string) error { return os.Symlink("/etc/passwd", name) }), "escapes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			dir := t.TempDir()
			get(t, w.cache(dir), qe)
			tc.spoil(t, onlyFile(t, dir))
			w.setDown(true)
			refused(t, w.cache(dir), qe, "unreachable")
			if w.logged(tc.fault) == 0 || w.logged("is refused") == 0 {
				t.Errorf("the log does not say %q:\n%s", tc.fault, w.log.String())
			}
			if tc.name == "folder" {
				return // it stays in the way
			}
			w.setDown(false)
			c := w.cache(dir)
			get(t, c, qe)
			w.setDown(true)
			get(t, w.cache(dir), qe) // it was written anew
		})
	}
}

func TestAFileFromTheFutureIsOld(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	get(t, w.cache(dir), qe)
	w.pass(-1000 * time.Hour)
	c := w.cache(dir)
	get(t, c, qe)
	get(t, c, qe)
	if n := w.fetched(qe); n != 2 {
		t.Errorf("fetched %d times, want anew, and once", n)
	}
}

func TestAFolderIsBounded(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	past := time.Now().Add(-48 * time.Hour)
	for i := range 4100 {
		name := filepath.Join(dir, hex.EncodeToString([]byte{byte(i), byte(i >> 8)})+".collateral")
		if i == 0 {
			name = filepath.Join(dir, ".new-left behind")
		}
		if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Chtimes(name, past, past)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Since(w.now))
	c := w.cache(dir)
	get(t, c, qe)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 4096+1 { // and the file that is none of ours
		t.Errorf("the folder has %d files, %v; want 4097", len(files), err)
	}
	if _, err := os.Stat(filepath.Join(dir, "README")); err != nil {
		t.Error("a file that is none of ours was removed")
	}
}

func TestAFolderThatCannotBeIsAnError(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := collateral.New(collateral.Config{Dir: name}); err == nil || !strings.Contains(err.Error(), "folder") {
		t.Errorf("got %v", err)
	}
}

func TestADiskThatFailsCostsTheDiskAlone(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "folder")
	c := w.cache(dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	get(t, c, qe)
	if w.logged("not kept on disk") != 1 {
		t.Errorf("the log does not say so:\n%s", w.log.String())
	}
	if err := c.Refresh(t.Context(), []string{qe}); err == nil {
		t.Error("what was to be kept on disk was not, and Refresh did not say so")
	}
}
