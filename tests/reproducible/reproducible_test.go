// Package reproducible shows that a binary's bytes depend on the sources and the Go release alone.
package reproducible

import (
	"crypto/sha256"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// The two folders differ in everything that a path can be: depth, length, name.
func TestEveryBinaryIsTheSameFromAnotherFolder(t *testing.T) {
	commands, err := filepath.Glob("../../cmd/*/main.go")
	if err != nil || len(commands) == 0 {
		t.Fatalf("no commands found: %v", err)
	}
	var targets []string
	for _, c := range commands {
		targets = append(targets, "bin/"+filepath.Base(filepath.Dir(c)))
	}
	here := filepath.Join(t.TempDir(), "a")
	there := filepath.Join(t.TempDir(), "another/place with/a-longer-name")
	for _, dir := range []string{here, there} {
		copyTree(t, "../..", dir)
		cmd := exec.Command("make", append([]string{"--no-print-directory"}, targets...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make in %s: %v\n%s", dir, err, out)
		}
	}
	for _, target := range targets {
		if a, b := digest(t, filepath.Join(here, target)), digest(t, filepath.Join(there, target)); a != b {
			t.Errorf("%s differs between two folders: %x and %x", target, a, b)
		}
	}
}

// copyTree copies what a build needs: sources, not what a build or a checkout left.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains([]string{".git", "bin", "vendor", "demo"}, rel) {
				return fs.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o755)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func digest(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}
