// Package image_test keeps what the scripts of this folder read in agreement with the rest of the repository. The image itself
// is built and booted by make test-image.
package image_test

import (
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

type entry struct{ set, mode, to, from string }

// entries reads files.txt as install/ does.
func entries(t *testing.T) []entry {
	t.Helper()
	var entries []entry
	for line := range strings.Lines(read(t, "files.txt")) {
		if f := strings.Fields(line); len(f) >= 4 && f[0] != "#" {
			entries = append(entries, entry{f[0], f[1], f[2], strings.Join(f[3:], " ")})
		}
	}
	if len(entries) == 0 {
		t.Fatal("files.txt lists nothing")
	}
	return entries
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEveryListedFileHasASource(t *testing.T) {
	listed := map[string]bool{}
	for _, e := range entries(t) {
		if listed[e.to] {
			t.Errorf("%s is listed twice", e.to)
		}
		listed[e.to] = true
	}
	for _, e := range entries(t) {
		target, link := strings.CutPrefix(e.from, "-> ")
		program, built := strings.CutPrefix(e.from, "bin/")
		switch {
		case link:
			if !listed[path.Join(path.Dir(e.to), target)] {
				t.Errorf("%s points to %s, which is not in the image", e.to, target)
			}
		case strings.HasPrefix(e.from, "$"):
		default:
			source := filepath.Join("..", e.from)
			if built {
				source = filepath.Join("..", "cmd", program)
			}
			if _, err := os.Stat(source); err != nil {
				t.Errorf("%s: %v", e.to, err)
			}
		}
	}
}

// contents.txt is what the build compares with; it is written by UPDATE_LOCKS=1.
func TestEveryListedFileIsAmongTheContents(t *testing.T) {
	contents := read(t, "contents.txt")
	for _, e := range entries(t) {
		if e.set == "coordinator" {
			continue // another machine's
		}
		line := strings.TrimPrefix(e.mode, "0") + " root:root f " + e.to + "\n"
		if target, link := strings.CutPrefix(e.from, "-> "); link {
			line = "777 root:root l " + e.to + " " + target + "\n"
		}
		if !strings.Contains(contents, "\n"+line) {
			t.Errorf("image/contents.txt has no line %q: UPDATE_LOCKS=1 make image", line)
		}
	}
}

// A unit that is written and not baked in protects nothing.
func TestEveryUnitIsInTheImage(t *testing.T) {
	sources := map[string]bool{}
	for _, e := range entries(t) {
		sources[e.from] = true
	}
	err := fs.WalkDir(os.DirFS(".."), "units", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "peerpods" || d.Name() == "testdata") {
			return fs.SkipDir // another kind of podVM; files of others
		}
		if !d.IsDir() && !slices.Contains([]string{".go", ".md"}, path.Ext(name)) {
			if !sources[name] {
				t.Errorf("%s is not in image/files.txt", name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The extension holds nothing outside /usr, which it could not.
func TestTheExtensionHoldsUsrAlone(t *testing.T) {
	for _, e := range entries(t) {
		if e.set == "guard" && !strings.HasPrefix(e.to, "/usr/") {
			t.Error(e.to)
		}
	}
}

func TestTheDefaultPolicyAllowsNothing(t *testing.T) {
	policy := read(t, "tree/etc/kata-opa/default-policy.rego")
	values := regexp.MustCompile(`(?m)^default (\w+) := (\w+)$`).FindAllStringSubmatch(policy, -1)
	if len(values) < 40 {
		t.Errorf("it names %d requests", len(values))
	}
	nothing := regexp.MustCompile(`^(#.*|package agent_policy|default \w+ := false|)\n$`)
	for line := range strings.Lines(policy) {
		if !nothing.MatchString(line) {
			t.Errorf("%q", line)
		}
	}
}

// The locks pin what the lists name, and nothing else.
func TestLocksAreOfTheLists(t *testing.T) {
	names := func(file, pattern string) []string {
		set := map[string]bool{}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(read(t, file), -1) {
			set[m[1]] = true
		}
		return slices.Sorted(maps.Keys(set))
	}
	same := func(list string, locked []string) {
		if want := names(list, `(?m)^([a-z0-9.+-]+)$`); len(want) == 0 || !slices.Equal(want, locked) {
			t.Errorf("%s names %q, its lock %q", list, want, locked)
		}
	}
	same("tools.txt", names("tools.lock", `(?m)^([a-z0-9.+-]+) \S+$`))
	locked := names("packages.lock", `(?m)^[0-9a-f]{64}  ([a-z0-9.+-]+)_[^_ ]+_(?:amd64|all)\.deb$`)
	for i, name := range locked {
		if strings.HasPrefix(name, "linux-image-") {
			locked[i] = "linux-image-cloud-amd64" // the list has the kernel of the day
		}
	}
	slices.Sort(locked)
	same("packages.txt", locked)
}
