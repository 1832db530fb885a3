package generate_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"portcullis.dev/portcullis/generate"
)

func TestWriteReplacesAndMakes(t *testing.T) {
	folder := t.TempDir()
	old, made, link := filepath.Join(folder, "old"), filepath.Join(folder, "made"), filepath.Join(folder, "link")
	write(t, old, "before", 0o640)
	if err := os.Symlink("old", link); err != nil {
		t.Fatal(err)
	}
	if err := generate.Write([]generate.Output{
		{Path: link, Data: []byte("after"), Mode: 0o600}, {Path: made, Data: []byte("key"), Mode: 0o600, Exclusive: true},
	}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct {
		text string
		mode fs.FileMode
	}{old: {"after", 0o640}, made: {"key", 0o600}} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(read(t, path)); got != want.text || info.Mode().Perm() != want.mode {
			t.Errorf("%s has %q, mode %v, want %q, %v", path, got, info.Mode(), want.text, want.mode)
		}
	}
	if target, err := os.Readlink(link); err != nil || target != "old" {
		t.Errorf("the link is gone: %v", err)
	}
	wantNames(t, folder, "link", "made", "old")
}

func TestWriteIsAllOrNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		last func(folder string) generate.Output
		want error
	}{
		{"no such folder", func(folder string) generate.Output {
			return generate.Output{Path: filepath.Join(folder, "missing", "x")}
		}, fs.ErrNotExist},
		{"a key that is there", func(folder string) generate.Output {
			return generate.Output{Path: filepath.Join(folder, "key"), Exclusive: true}
		}, fs.ErrExist},
		{"a folder in its place", func(folder string) generate.Output {
			return generate.Output{Path: filepath.Join(folder, "folder")}
		}, nil},
		// Nothing is there when the first key is staged, so only the link at the end fails: what was renamed is undone.
		{"a key that appears meanwhile", func(folder string) generate.Output {
			return generate.Output{Path: filepath.Join(folder, "made"), Exclusive: true}
		}, fs.ErrExist},
	} {
		t.Run(c.name, func(t *testing.T) {
			folder := t.TempDir()
			write(t, filepath.Join(folder, "old"), "before", 0o644)
			write(t, filepath.Join(folder, "key"), "secret", 0o600)
			if err := os.Mkdir(filepath.Join(folder, "folder"), 0o755); err != nil {
				t.Fatal(err)
			}
			err := generate.Write([]generate.Output{
				{Path: filepath.Join(folder, "old"), Data: []byte("after"), Mode: 0o644},
				{Path: filepath.Join(folder, "made"), Data: []byte("made"), Mode: 0o644},
				c.last(folder),
			})
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if got := string(read(t, filepath.Join(folder, "old"))); got != "before" {
				t.Errorf("the first file has %q", got)
			}
			if got := string(read(t, filepath.Join(folder, "key"))); got != "secret" {
				t.Errorf("the key has %q", got)
			}
			wantNames(t, folder, "folder", "key", "old")
		})
	}
}

func wantNames(t *testing.T, folder string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("the folder has %q, want %q", got, want)
	}
}

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
