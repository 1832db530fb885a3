package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestACommandRunsInACopy(t *testing.T) {
	src, vendor := t.TempDir(), t.TempDir()
	write(t, filepath.Join(src, "go.mod"), "module m\n")
	write(t, filepath.Join(vendor, "modules.txt"), "# none\n")
	seen := filepath.Join(t.TempDir(), "seen")
	// As a store's folders are.
	if err := os.Chmod(src, 0o555); err != nil {
		t.Fatal(err)
	}
	err := run([]string{"stage", src, "vendor=" + vendor, "--", "/bin/sh", "-c", `cat go.mod vendor/modules.txt >"$0"; echo touched >go.mod`, seen})
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, seen); got != "module m\n# none\n" {
		t.Errorf("the command saw %q", got)
	}
	if got := read(t, filepath.Join(src, "go.mod")); got != "module m\n" {
		t.Errorf("the sources are %q afterwards", got)
	}
}

func TestFailuresAreErrors(t *testing.T) {
	src := t.TempDir()
	for name, args := range map[string][]string{
		"nothing":              nil,
		"no command":           {"stage", src, "--"},
		"no end":               {"stage", src, "/bin/true"},
		"no sources":           {"stage", "--", "/bin/true"},
		"sources that are not": {"stage", src + "/none", "--", "/bin/true"},
		"a folder outside":     {"stage", src, "../vendor=" + src, "--", "/bin/true"},
		"a folder of nothing":  {"stage", src, "vendor", "--", "/bin/true"},
		"a command that fails": {"stage", src, "--", "/bin/false"},
		"text without a file":  {"write", filepath.Join(src, "file")},
		"another word":         {"unstage", src, "--", "/bin/true"},
	} {
		if run(args) == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTextIsWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := run([]string{"write", file, "ok"}); err != nil || read(t, file) != "ok" {
		t.Error(err)
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
