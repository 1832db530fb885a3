package cluster

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakeGo builds a file that says what was built, and counts. It fails where a file says so, as a build that is stopped does.
const fakeGo = `#!/bin/sh
echo build >> "$COUNT"
while [ $# -gt 1 ]; do
	if [ "$1" = -o ]; then out=$2; fi
	shift
done
echo example.com/package >&2
echo half > "$out"
if [ -e "$COUNT.fail" ] && [ "$(wc -l < "$COUNT")" -ge 2 ]; then echo "no space left" >&2; exit 1; fi
echo "$1" > "$out"
`

// The binaries are built once for the same pins, all or none of them are there, and what older pins left goes.
func TestBinariesAreBuiltOnceAndAllOrNone(t *testing.T) {
	bin, cache := t.TempDir(), t.TempDir()
	count := filepath.Join(bin, "count")
	if err := os.WriteFile(filepath.Join(bin, "go"), []byte(fakeGo), 0o755); err != nil {
		t.Fatal(err)
	}
	build := func() (stdout, stderr string, err error) {
		cmd := exec.Command("../../tools/cluster.sh", cache)
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "COUNT="+count)
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		err = cmd.Run()
		return strings.TrimSpace(out.String()), errs.String(), err
	}
	entries := func() (names []string) {
		found, err := filepath.Glob(cache + "/cluster-*")
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	builds := func() int {
		text, _ := os.ReadFile(count)
		return strings.Count(string(text), "\n")
	}
	if err := os.Mkdir(filepath.Join(cache, "cluster-0000"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(count+".fail", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if stdout, stderr, err := build(); err == nil || stdout != "" || !strings.Contains(stderr, "no space left") {
		t.Errorf("a build that fails: %q, %q, %v", stdout, stderr, err)
	}
	for _, e := range entries() {
		if e != filepath.Join(cache, "cluster-0000") && !strings.HasSuffix(e, ".building") {
			t.Errorf("a build that failed left %s", e)
		}
	}
	if err := os.Remove(count + ".fail"); err != nil {
		t.Fatal(err)
	}
	before := builds()
	dir, stderr, err := build()
	if err != nil || builds() != before+3 {
		t.Fatalf("build: %v, %d builds, %s", err, builds()-before, stderr)
	}
	t.Setenv("XDG_CACHE_HOME", filepath.Dir(cache))
	if want, err := cached(); err != nil || filepath.Base(want) != filepath.Base(dir) {
		t.Errorf("it is in %s, and tests look in %s, %v", dir, want, err)
	}
	if found := entries(); len(found) != 1 || found[0] != dir {
		t.Errorf("what is left is %q, want %s alone", found, dir)
	}
	for name, want := range map[string]string{
		"etcd": "go.etcd.io/etcd/server/v3\n", "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver\n", "kubectl": "k8s.io/kubernetes/cmd/kubectl\n",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want)
		}
	}
	if again, stderr, err := build(); err != nil || again != dir || builds() != before+3 || !strings.Contains(stderr, "nothing to build") {
		t.Errorf("again: %q, %v, %d builds, %s", again, err, builds()-before, stderr)
	}
}
