package main

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const list = `# a comment

one 0755 /usr/sbin/program bin/program
one 0644 /usr/lib/x.service units/x.service
one 0777 /usr/lib/wants/x.service -> ../x.service
two 0640 /usr/lib/envoy $ENVOY
`

func TestSetsAreLaidOut(t *testing.T) {
	repo := repository(t, list)
	envoy := filepath.Join(repo, "other")
	write(t, envoy, "envoy")
	for name, test := range map[string]struct {
		in   inputs
		want map[string]string
	}{
		"a set": {inputs{sets: []string{"one"}}, map[string]string{
			"usr/sbin/program": "-rwxr-xr-x bin/program", "usr/lib/x.service": "-rw-r--r-- units/x.service", "usr/lib/wants/x.service": "-> ../x.service",
		}},
		"what comes from a folder": {inputs{sets: []string{"one", "two"}, only: "units"}, map[string]string{
			"usr/lib/x.service": "-rw-r--r-- units/x.service", "usr/lib/wants/x.service": "-> ../x.service",
		}},
		"what is elsewhere": {inputs{sets: []string{"two"}, envoy: envoy}, map[string]string{"usr/lib/envoy": "-rw-r----- envoy"}},
	} {
		t.Run(name, func(t *testing.T) {
			defer syscall.Umask(syscall.Umask(0o077))
			root := t.TempDir()
			test.in.repo = repo
			if err := install(test.in, root); err != nil {
				t.Fatal(err)
			}
			if got := tree(t, root); !maps.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestFaultsAreErrors(t *testing.T) {
	for want, test := range map[string]struct {
		list string
		in   inputs
	}{
		"line 2":          {"\none 0644 /usr/file", inputs{sets: []string{"one"}}},
		"line 1":          {"one 0644 usr/file units/x.service", inputs{sets: []string{"one"}}},
		"octal":           {"one 0999 /usr/file units/x.service", inputs{sets: []string{"one"}}},
		"absolute":        {"one 0644 /usr/../file units/x.service", inputs{sets: []string{"one"}}},
		"nothing of":      {list, inputs{sets: []string{"three"}}},
		"no such file":    {list, inputs{sets: []string{"two"}}},
		"is no file":      {"one 0644 /usr/file units", inputs{sets: []string{"one"}}},
		"units/y.service": {"one 0644 /usr/file units/y.service", inputs{sets: []string{"one"}}},
	} {
		test.in.repo = repository(t, test.list)
		if err := install(test.in, t.TempDir()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func repository(t *testing.T, list string) string {
	repo := t.TempDir()
	for file, text := range map[string]string{"image/files.txt": list, "bin/program": "bin/program", "units/x.service": "units/x.service"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(repo, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(repo, file), text)
	}
	return repo
}

// tree gives each file's mode and content, and each link's target.
func tree(t *testing.T, root string) map[string]string {
	got := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.Type() == fs.ModeSymlink {
			target, err := os.Readlink(path)
			got[name] = "-> " + target
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		got[name] = info.Mode().String() + " " + string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
