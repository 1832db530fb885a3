package main

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"portcullis.dev/portcullis/guest/guard"
)

// A Mutation is one way in which the guard's table is weaker than it should be. Every mutation must be noticed by a row, and
// every row must fail under the mutation that it names as its Weakness: a row that cannot fail proves nothing.
//
// Mutations are made in the source, not in the kernel, since a mesh proxy puts back what others change: for --mutate the
// command builds itself, podvm-guard and meshproxy once more with mutant/guard.go.txt laid into package guard.
type Mutation struct {
	Name  string
	Steps []Step
	// Quiet says why no traffic can notice it, where that is so: then another line of the table still stops the same packets.
	// Rows that look at the table or its counters must notice.
	Quiet string
	// Same says why it makes no difference at all, where that is so. It is not tried.
	Same string
}

// A Step is one change of a table. mutant/guard.go.txt knows what the words mean.
type Step struct {
	State string // "closed", "mesh", each with or without "locked " before it; "" for all
	Chain string // "" for all
	Do    string // delete-number, delete, forget (a condition), accept (policy), accept-first, established-first, ...
	Rule  int
	Text  string
}

// The weaknesses that rows name. Each stands for a mistake that somebody might make, or has made.
const (
	everythingComesIn   = "everything comes in"
	establishedIsEnough = "established is enough"
	bareSYNAnswers      = "a bare SYN counts as an answer"
	forwardOpen         = "everything is forwarded"
	marksDoNotMatter    = "the marks do not matter"
	decryptedLeaves     = "decrypted bytes may leave"
	inAndOut            = "everything comes in, and is answered"
	pickedUp            = "connections are picked up mid-stream"
	proxyDialled        = "the proxy's ports may be dialled"
	noAnswers           = "answers do not come in"
	dropsUncounted      = "drops are not counted"
	noLoopback          = "loopback is not let through"
	swallowsOthers      = "other tables are deleted, too"
	carelessComparison  = "tables are compared carelessly"
	policyAccepts       = "the policies accept"
	lastACKAnywhere     = "a last ACK may go to any listener"
	insideLeaves        = "what began on loopback may leave"
	lockOpen            = "the egress lock lets everything out"
)

func weaknesses() []Mutation {
	return append(packetWeaknesses(), []Mutation{
		{Name: everythingComesIn, Steps: []Step{
			{Chain: "input", Do: "accept-first"}, {Chain: "intercept", Do: "accept-first"},
		}},
		{Name: inAndOut, Steps: []Step{
			{Chain: "input", Do: "accept-first"}, {Chain: "intercept", Do: "accept-first"}, {Chain: "output", Do: "accept-first"},
		}},
		{Name: establishedIsEnough, Steps: []Step{
			{Chain: "input", Do: "established-first"}, {Chain: "intercept", Do: "established-first"},
		}},
		{Name: bareSYNAnswers, Steps: []Step{
			{Chain: "input", Do: "forget", Text: "tcp flags"}, {Chain: "intercept", Do: "forget", Text: "tcp flags"},
		}},
		{Name: forwardOpen, Steps: []Step{{Chain: "forward", Do: "accept-first"}, {Chain: "intercept", Do: "accept-first"}}},
		{Name: marksDoNotMatter, Steps: []Step{
			{Chain: "input", Do: "delete", Text: "socket mark !="}, {Chain: "input", Do: "forget", Text: "socket mark"},
		}},
		{Name: lastACKAnywhere, Steps: []Step{{Chain: "input", Do: "delete", Text: "socket mark !="}}},
		{Name: decryptedLeaves, Steps: []Step{{Chain: "output", Do: "delete", Text: "socket mark 0x00000052"}}},
		{Name: pickedUp, Steps: []Step{{Chain: "output", Do: "delete", Text: "fin,syn,rst,ack"}}},
		{Name: proxyDialled, Steps: []Step{{Chain: "intercept", Do: "delete", Text: "15006, 15007"}}},
		{Name: noAnswers, Steps: []Step{{Chain: "input", Do: "delete", Text: "ct direction reply"}}},
		{Name: noLoopback, Steps: []Step{{Do: "delete", Text: "iftype loopback"}}},
		{Name: insideLeaves, Steps: []Step{
			{Chain: "output", Do: "delete", Text: "ct mark 0x00000055 counter drop"}, {Chain: "output", Do: "delete", Text: "fib saddr type != local"},
		}},
		{Name: lockOpen, Steps: []Step{{State: "locked closed", Chain: "output", Do: "accept-first"}, {State: "locked mesh", Chain: "output", Do: "accept-first"}}},
		{
			Name:  policyAccepts,
			Steps: []Step{{Chain: "input", Do: "accept"}, {Chain: "forward", Do: "accept"}},
			Quiet: "the chains' last rules drop, too",
		},
		{Name: swallowsOthers, Steps: []Step{{Do: "delete-other-tables"}}},
		{Name: carelessComparison, Steps: []Step{{Do: "compare-carelessly"}}},
		{Name: dropsUncounted, Steps: []Step{{Do: "forget", Text: "counter"}}},
	}...)
}

// eachRule is the mutations that need no thought: every rule is left out once, and every chain lets everything through at
// its end once, as the tables of a sound pod name them.
func eachRule(programs Programs) ([]Mutation, error) {
	l, err := newLab(programs, IPv4, nil)
	if err != nil {
		return nil, err
	}
	defer l.close()
	var out []Mutation
	for _, state := range []struct {
		name  string
		enter func(context.Context) error
	}{
		{"closed", guard.Arm},
		{"mesh", func(ctx context.Context) error { return guard.Raise(ctx, namedPorts) }},
		{"locked closed", guard.Lock{DNS: true}.Arm},
		{"locked mesh", func(ctx context.Context) error { return guard.Lock{DNS: true}.Raise(ctx, namedPorts) }},
	} {
		if err := l.Pod.Do(func() error {
			ctx, cancel := l.ctx()
			defer cancel()
			return state.enter(ctx)
		}); err != nil {
			return nil, err
		}
		t, err := l.table()
		if err != nil || t == nil {
			return nil, fmt.Errorf("read the guard's table: %w", err)
		}
		for _, c := range t.chains {
			if strings.HasPrefix(state.name, "locked") && c.name != "output" {
				continue // as without the lock
			}
			for i, rule := range c.rules {
				m := Mutation{
					Name:  fmt.Sprintf("%s, %s: without %s", state.name, c.name, rule),
					Steps: []Step{{State: state.name, Chain: c.name, Do: "delete-number", Rule: i}},
				}
				if last := i == len(c.rules)-1; last && strings.HasSuffix(rule, "drop") && c.policy == "drop" {
					m.Quiet = "the chain's policy drops, too"
				} else if last && c.name == "intercept" {
					m.Quiet = "input admits no socket but the proxy's, too"
				}
				if state.name == "locked closed" && strings.HasPrefix(rule, "ct direction 1") {
					m.Same = "the state closed lets in nothing that could be answered"
				}
				out = append(out, m)
			}
			if c.policy == "drop" {
				out = append(out, Mutation{
					Name:  fmt.Sprintf("%s, %s: policy accept", state.name, c.name),
					Steps: []Step{{State: state.name, Chain: c.name, Do: "accept"}},
					Quiet: "the chain's last rule drops, too",
				}, Mutation{
					Name: fmt.Sprintf("%s, %s: policy accept, without the last rule", state.name, c.name),
					Steps: []Step{
						{State: state.name, Chain: c.name, Do: "accept"},
						{State: state.name, Chain: c.name, Do: "delete-number", Rule: len(c.rules) - 1},
					},
				})
			}
		}
	}
	return out, nil
}

func (m *Mutation) text() string {
	b, err := json.Marshal(m.Steps)
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(b)
}

//go:embed mutant/guard.go.txt
var mutantGuard []byte

// mutantDir says that this is the mutant build, and where it is.
const mutantDir = "MATRIX_MUTANT_DIR"

// runMutant builds the programs with the mutations laid in, runs the new matrix with the same arguments, and returns its
// exit code.
func runMutant(ctx context.Context, args []string) int {
	dir, err := os.MkdirTemp("", "matrix-mutant")
	if err != nil {
		return failed(err)
	}
	defer os.RemoveAll(dir)
	if err := buildMutant(ctx, dir); err != nil {
		return failed(fmt.Errorf("build the mutant: %w", err))
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "matrix"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Env = append(os.Environ(), mutantDir+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(1, exit.ExitCode())
	}
	if err != nil {
		return failed(err)
	}
	return 0
}

func buildMutant(ctx context.Context, dir string) error {
	const module = "portcullis.dev/portcullis"
	out, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", module+"/guest/guard").Output()
	if err != nil {
		return fmt.Errorf("find package guard (run this in the source tree): %w", err)
	}
	source := strings.TrimSpace(string(out))
	files := map[string]string{"mutant.go": string(mutantGuard)}
	for _, f := range []struct{ file, from, to string }{
		{"ruleset.go", "func closed(", "func soundClosed("},
		{"ruleset.go", "func mesh(", "func soundMesh("},
		{"read.go", "func difference(", "func soundDifference("},
	} {
		if files[f.file] == "" {
			b, err := os.ReadFile(filepath.Join(source, f.file))
			if err != nil {
				return err
			}
			files[f.file] = string(b)
		}
		if strings.Count(files[f.file], f.from) != 1 {
			return fmt.Errorf("%s has no %q, which mutations replace", f.file, f.from)
		}
		files[f.file] = strings.Replace(files[f.file], f.from, f.to, 1)
	}
	replace := map[string]string{}
	for name, content := range files {
		replace[filepath.Join(source, name)] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-overlay", overlayFile, "-o", dir+"/",
		module+"/cmd/podvm-guard", module+"/cmd/meshproxy", module+"/tests/matrix")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// runMutations is --mutate, in the mutant build.
func runMutations(ctx context.Context, programs Programs, rows []Row, only *regexp.Regexp) int {
	began := time.Now()
	// Much of what must work does not, so waiting for it is most of the time here.
	patience = 5 * time.Second
	for _, r := range runAll(ctx, programs, rows, nil, nil) {
		if r.Verdict != OK && r.Verdict != Skipped {
			return failed(fmt.Errorf("row %s over %s is %s with the sound table, so it cannot judge a weaker one: %s",
				r.Row.Name, r.Family, r.Verdict, strings.Join(r.Reasons, "; ")))
		}
	}
	fmt.Printf("every row holds with the sound table (%.0f s)\n\nMUTATION\n    NOTICED BY\n", time.Since(began).Seconds())
	each, err := eachRule(programs)
	if err != nil {
		return failed(err)
	}
	h := newHunt(ctx, programs, rows)
	var survived, toothless []string
	count := 0
	for _, m := range append(weaknesses(), each...) {
		if !only.MatchString(m.Name) || ctx.Err() != nil {
			continue
		}
		if m.Same != "" {
			fmt.Printf("%s\n    makes no difference: %s\n", m.Name, m.Same)
			continue
		}
		count++
		noticed, missed := h.try(m)
		for _, r := range missed {
			toothless = append(toothless, fmt.Sprintf("%s under %q", r, m.Name))
		}
		names := strings.Join(noticed, ", ")
		if len(noticed) == 0 {
			survived = append(survived, m.Name)
			names = "NOBODY"
		}
		if m.Quiet != "" {
			names += " (not by traffic alone: " + m.Quiet + ")"
		}
		fmt.Printf("%s\n    %s\n", m.Name, names)
	}
	for _, s := range survived {
		fmt.Printf("\nSURVIVED: %s\n", s)
	}
	for _, t := range toothless {
		fmt.Printf("\nNOT SEEN TO FAIL: %s\n", t)
	}
	fmt.Printf("\n%d mutations, %d survived; %d rows did not fail under their weakness; %.0f s\n",
		count, len(survived), len(toothless), time.Since(began).Seconds())
	if len(survived)+len(toothless) > 0 || count == 0 || ctx.Err() != nil {
		return 1
	}
	return 0
}

// hunt tries mutations.
type hunt struct {
	ctx      context.Context
	programs Programs
	order    []Row // the most likely to notice something come first
}

func newHunt(ctx context.Context, programs Programs, rows []Row) *hunt {
	h := &hunt{ctx: ctx, programs: programs, order: slices.Clone(rows)}
	// A row whose weakness is its own looks at something special.
	share := map[string]int{}
	for _, r := range rows {
		share[r.Weakness]++
	}
	slices.SortStableFunc(h.order, func(a, b Row) int { return cmp.Compare(share[a.Weakness], share[b.Weakness]) })
	return h
}

// try runs the rows that name m as their weakness, all of which must fail; when there are none, the others until one fails.
func (h *hunt) try(m Mutation) (noticed, missed []string) {
	os.Setenv("MATRIX_MUTATION", m.text()) // for transitions that the matrix itself makes
	defer os.Unsetenv("MATRIX_MUTATION")
	file := filepath.Join(os.Getenv(mutantDir), "mutation") // for those of the pods
	if err := os.WriteFile(file, []byte(m.text()), 0o644); err != nil {
		return nil, []string{err.Error()}
	}
	defer os.Remove(file)
	own := slices.DeleteFunc(slices.Clone(h.order), func(r Row) bool { return r.Weakness != m.Name })
	if len(own) > 0 {
		return h.own(m, own)
	}
	ctx, enough := context.WithCancel(h.ctx)
	defer enough()
	rows := slices.DeleteFunc(slices.Clone(h.order), func(r Row) bool { return r.Static && m.Quiet == "" })
	runAll(ctx, h.programs, rows, &m, func(r Result) {
		if r.Verdict == Failed && !slices.Contains(noticed, r.Row.Name) {
			noticed = append(noticed, r.Row.Name)
			enough()
		}
	})
	// The next mutation is much like this one.
	slices.SortStableFunc(h.order, func(a, b Row) int {
		rank := func(r Row) int {
			if slices.Contains(noticed, r.Name) {
				return 0
			}
			return 1
		}
		return cmp.Compare(rank(a), rank(b))
	})
	return noticed, nil
}

// own runs the rows whose weakness m is. Those that did not fail are run once more with more time: on a busy machine what
// comes through a gap may come too late to be seen.
func (h *hunt) own(m Mutation, rows []Row) (noticed, missed []string) {
	defer func(wait Wait) { silence = wait }(silence)
	for range 2 {
		var again []Row
		missed = nil
		for _, r := range runAll(h.ctx, h.programs, rows, &m, nil) {
			switch {
			case r.Verdict == Failed:
				noticed = append(noticed, r.Row.Name)
			case r.Verdict != Skipped:
				missed = append(missed, fmt.Sprintf("%s over %s (%s)", r.Row.Name, r.Family, r.Verdict))
				again = append(again, r.Row)
			}
		}
		rows = slices.CompactFunc(again, func(a, b Row) bool { return a.Name == b.Name })
		if len(rows) == 0 {
			break
		}
		silence *= 5
	}
	slices.Sort(noticed)
	return slices.Compact(noticed), missed
}
