package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
)

// The ports that the lab's applications listen on, and what the mesh state says of them: 8080 is behind mutual TLS, the
// others are named. Every lab has these applications; see Lab.App.
const (
	portApp          uint16 = 8080 // TCP and UDP
	portNoClientAuth uint16 = 8443
	portPlaintext    uint16 = 7890
	portPlaintextUDP uint16 = 5353

	portOutside uint16 = 9000 // of applications on the peer
)

// namedPorts is the mesh state's configuration in most rows; meshIngress says the same to the mesh proxy.
var namedPorts = guard.Ports{
	PlaintextTCP: []uint16{portPlaintext}, PlaintextUDP: []uint16{portPlaintextUDP}, NoClientAuth: []uint16{portNoClientAuth},
}

const meshIngress = "open#8443#false##metrics#7890#true##dns#5353/udp#true"

// Close runs the real `podvm-guard close`, which arms the gate from whatever was there.
func (l *Lab) Close() {
	l.InPod("/opt/bin/podvm-guard close")
	l.guards(true)
}

// Raise brings the guard into the state mesh by package guard, with no proxy behind it.
func (l *Lab) Raise(ports guard.Ports) {
	l.transition(func() error {
		ctx, cancel := l.ctx()
		defer cancel()
		return guard.Raise(ctx, ports)
	})
}

// CloseLocked is Close with the egress lock that admits DNS, by package guard.
func (l *Lab) CloseLocked() {
	l.transition(func() error {
		ctx, cancel := l.ctx()
		defer cancel()
		return guard.Lock{DNS: true}.Arm(ctx)
	})
}

// RaiseLocked is Raise with the lock.
func (l *Lab) RaiseLocked(ports guard.Ports) {
	l.transition(func() error {
		ctx, cancel := l.ctx()
		defer cancel()
		return guard.Lock{DNS: true}.Raise(ctx, ports)
	})
}

// Lower closes the gate as the mesh proxy does: connections of the guest go on.
func (l *Lab) Lower() {
	l.transition(func() error {
		ctx, cancel := l.ctx()
		defer cancel()
		return guard.Close(ctx)
	})
}

// Open removes the table by package guard, as the Initializer's argument --no-mesh does.
func (l *Lab) Open() {
	l.guards(false)
	l.transition(func() error {
		ctx, cancel := l.ctx()
		defer cancel()
		return guard.Open(ctx)
	})
}

func (l *Lab) transition(f func() error) {
	l.must(l.Pod.Do(f))
}

// guards notes that a guard begins or ends to stand. While one stands, no application's secret goes over the wire in clear.
func (l *Lab) guards(now bool) {
	if !now {
		l.checkWire()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if now && !l.guarded {
		l.since = l.Wire.Mark()
	}
	l.guarded = now
}

func (l *Lab) checkWire() {
	l.mu.Lock()
	guarded, since, apps := l.guarded, l.since, slices.Clone(l.apps)
	l.mu.Unlock()
	for _, a := range apps {
		if guarded && !a.Named && l.Wire.Saw(since, a.Secret) {
			l.Failf("the secret of the application on %s port %d went over the wire in clear", a.network, a.Port)
		}
	}
}

// RemoveGuard is for controls: it kills every mesh proxy and deletes the table, and nothing else.
func (l *Lab) RemoveGuard() {
	l.KillProxy()
	l.DeleteTable()
}

// DeleteTable only deletes the table, for controls that need a living Envoy. Stop the mesh proxy first, since watching over
// the table is its duty.
func (l *Lab) DeleteTable() {
	l.guards(false)
	l.must(l.Pod.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.DelTable(&nftables.Table{Name: "podvm_guard", Family: nftables.TableFamilyINet})
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete the guard's table for a control: %w", err)
		}
		return nil
	}))
}

// Blocked makes attempts, which must come to nothing.
func (l *Lab) Blocked(attempts ...Attempt) { l.blockedFor(silence, attempts) }

// BlockedLong is Blocked for attempts of several steps, or that take the kernel several tries: a gap in the gate must have
// the time to show.
func (l *Lab) BlockedLong(attempts ...Attempt) { l.blockedFor(4*silence, attempts) }

func (l *Lab) blockedFor(wait Wait, attempts []Attempt) {
	var all sync.WaitGroup
	for _, a := range attempts {
		all.Go(func() {
			if got := a.Try(l, wait); got != "" {
				l.Failf("%s got %s", a.Name, got)
			}
		})
	}
	all.Wait()
}

// Works makes attempts, which must succeed.
func (l *Lab) Works(attempts ...Attempt) {
	var all sync.WaitGroup
	for _, a := range attempts {
		all.Go(func() {
			if a.Try(l, patience) == "" {
				l.Failf("%s does not work", a.Name)
			}
		})
	}
	all.Wait()
}

// Control makes an attempt that must succeed, without the guard (call RemoveGuard) or with whatever else opens the way.
// Unlike what must work, it may take a second try: it shows what the lab can show, and a connection may meet what is left of
// another with the same addresses and ports.
func (l *Lab) Control(a Attempt) {
	got := a.Try(l, patience)
	for try := 1; got == "" && try < 3; try++ {
		got = a.Try(l, patience)
	}
	l.mu.Lock()
	l.controls++
	l.mu.Unlock()
	if got == "" {
		l.Brokenf("control: %s came to nothing without the guard", a.Name)
	}
}

// Stage is which of the guard's tables is there, by its chains alone: rows must not depend on the guard's own comparison,
// which notices every mutation.
func (l *Lab) Stage() guard.State {
	t, err := l.table()
	l.must(err)
	switch {
	case t == nil:
		return guard.Opened
	case t.chain("intercept") != nil:
		return guard.Mesh
	default:
		return guard.Closed
	}
}

// AwaitStage waits for a transition that another process makes.
func (l *Lab) AwaitStage(want guard.State) {
	l.Await(fmt.Sprintf("the guard's state %s", want), func() bool { return l.Stage() == want })
}

// liveTable is the guard's table as nft prints it.
type liveTable struct{ chains []*liveChain }

type liveChain struct {
	name, policy string
	rules        []string
}

func (t *liveTable) chain(name string) *liveChain {
	if t == nil {
		return nil
	}
	for _, c := range t.chains {
		if c.name == name {
			return c
		}
	}
	return nil
}

// table is nil when there is none.
func (l *Lab) table() (*liveTable, error) {
	cmd := l.Pod.Host.Command("nft", "-n", "list", "table", "inet", "podvm_guard")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if strings.Contains(string(exit.Stderr), "No such file or directory") {
			return nil, nil
		}
		return nil, fmt.Errorf("nft list table: %w: %s", err, exit.Stderr)
	}
	if err != nil {
		return nil, err
	}
	return parseTable(string(out)), nil
}

func parseTable(text string) *liveTable {
	t := &liveTable{}
	var in *liveChain
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		name, isChain := strings.CutPrefix(line, "chain ")
		switch {
		case isChain:
			in = &liveChain{name: strings.TrimSuffix(name, " {")}
			t.chains = append(t.chains, in)
		case in == nil || line == "":
		case line == "}":
			in = nil
		case strings.HasPrefix(line, "type filter hook "):
			_, policy, _ := strings.Cut(line, "policy ")
			in.policy = strings.TrimSuffix(policy, ";")
		default:
			in.rules = append(in.rules, withoutCounts(line))
		}
	}
	return t
}

// withoutCounts is a rule as it is written, not what it has counted.
func withoutCounts(rule string) string {
	before, after, ok := strings.Cut(rule, "counter packets ")
	if !ok {
		return rule
	}
	fields := strings.SplitN(after, " ", 4) // N bytes N rest
	rest := ""
	if len(fields) == 4 {
		rest = " " + fields[3]
	}
	return before + "counter" + rest
}
