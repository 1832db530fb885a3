// Package docs checks that the documentation says what the programs do: its commands are run, its tables are compared with the
// code, its links are followed.
package docs

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"portcullis.dev/portcullis/tests/netlab"
)

// root is where the repository begins.
const root = "../../"

var update = flag.Bool("update", false, "write the generated pages anew")

// TestMain enters a network of this test's own: the TEE's socket and the Coordinator's port have fixed names.
func TestMain(m *testing.M) {
	netlab.Enter()
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

// built is the folder with what ships, and simtee, built as `make build` does.
var built string

func build(t *testing.T) string {
	t.Helper()
	if built != "" {
		return built
	}
	// What the programs are made of is read, so that Go's cache of tests notices what was changed.
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IsDir() && entry.Name() != "vendor" && entry.Name()[0] != '.' {
			sources(t, entry.Name())
		}
	}
	read(t, "go.mod")
	folder, err := os.MkdirTemp("", "docs")
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=",
		"-o", folder+"/", "./cmd/...", "./tests/simtee/cmd/simtee")
	command.Dir = root
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	built = folder
	return built
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(root + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pages are all pages for people, by their names from the root.
func pages(t *testing.T) (all []string) {
	t.Helper()
	for _, pattern := range []string{"*.md", "docs/*.md", "units/*.md"} {
		found, err := filepath.Glob(root + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			all = append(all, filepath.Clean(path[len(root):]))
		}
	}
	if len(all) < 20 {
		t.Fatal(fmt.Errorf("there are only %d pages", len(all)))
	}
	return all
}

// sources are the Go files below folders, without tests, by their names from the root.
func sources(t *testing.T, folders ...string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, folder := range folders {
		err := filepath.WalkDir(root+folder, func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			name := filepath.Clean(path[len(root):])
			all[name] = read(t, name)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}
