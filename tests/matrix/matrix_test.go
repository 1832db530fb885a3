package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/tests/netlab"
)

func TestMain(m *testing.M) {
	if role() {
		return
	}
	netlab.Enter()
	code := m.Run()
	os.RemoveAll(builtIn)
	os.Exit(code)
}

var builtIn string

// built are the real binaries, from this source.
var built = sync.OnceValues(func() (Programs, error) {
	var err error
	if builtIn, err = os.MkdirTemp("", "matrix"); err != nil {
		return Programs{}, err
	}
	build := exec.Command("go", "build", "-o", builtIn+"/",
		"portcullis.dev/portcullis/cmd/podvm-guard", "portcullis.dev/portcullis/cmd/meshproxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return Programs{}, fmt.Errorf("%w: %s", err, out)
	}
	return findPrograms(builtIn)
})

// `make matrix` tries every row, and so does `make ci`; this is the row that a race detector has something to find in.
func TestSwapStorm(t *testing.T) {
	programs, err := built()
	if err != nil {
		t.Fatal(err)
	}
	patience = time.Minute // other packages are tested at the same time
	for _, r := range table() {
		if r.Name != "swap-storm" {
			continue
		}
		for _, f := range r.families() {
			t.Run(string(f), func(t *testing.T) {
				result := runRow(t.Context(), programs, r, f, nil)
				for _, reason := range result.Reasons {
					t.Log(reason)
				}
				if result.Verdict != OK {
					t.Error(result.Verdict)
				}
			})
		}
	}
}

// All mutations take `make matrix MUTATE=1` some minutes. This shows that they can still be laid into package guard, and that
// the hunt finds what it should and misses what it should.
func TestMutationsAreNoticed(t *testing.T) {
	if testing.Short() {
		t.Skip("builds three programs")
	}
	dir := t.TempDir()
	if err := buildMutant(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		rows, mutation string
		code           int
	}{
		{"^squatted-by-root-without-mark$", "^" + marksDoNotMatter + "$", 0},
		{"^proxy-never-started$", "^mesh, input: without udp dport @plaintext_udp", 1}, // it never is in that state
	} {
		cmd := exec.CommandContext(t.Context(), dir+"/matrix", "--mutate", "--run", c.rows, "--mutation", c.mutation)
		cmd.Env = append(os.Environ(), mutantDir+"="+dir)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code {
			t.Errorf("matrix --mutate --run %s --mutation %s: exit code %d, want %d:\n%s", c.rows, c.mutation, code, c.code, out)
		}
	}
}

func TestRowsAreWellFormed(t *testing.T) {
	for _, fault := range check(table()) {
		t.Error(fault)
	}
}

// The threat model and the table name the same rows.
func TestThreatModelNamesEveryRow(t *testing.T) {
	text, err := os.ReadFile("../../docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 || strings.HasPrefix(cells[1], "---") || strings.TrimSpace(cells[3]) == "rows" {
			continue
		}
		names := regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(cells[len(cells)-2], -1)
		if len(names) == 0 {
			t.Errorf("no row shows this: %s", strings.TrimSpace(line))
		}
		for _, n := range names {
			named[n[1]] = true
		}
	}
	for _, r := range table() {
		if !named[r.Name] {
			t.Errorf("docs/threat-model.md does not name row %s", r.Name)
		}
		delete(named, r.Name)
	}
	for name := range named {
		t.Errorf("docs/threat-model.md names %q, which is no row", name)
	}
}
