package meshproxy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy"
	"portcullis.dev/portcullis/meshproxy/config"
)

// recordingGuard remembers what was asked of it.
type recordingGuard struct {
	raise func() error // what Raise answers

	mu     sync.Mutex
	state  guard.State
	calls  []string
	ports  guard.Ports
	others chan guard.Change // what Watch tells
}

func (g *recordingGuard) change(state guard.State, call string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state = state
	g.calls = append(g.calls, call)
	return nil
}

func (g *recordingGuard) Inspect(context.Context) (guard.Status, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return guard.Status{State: g.state, Ports: g.ports}, nil
}

func (g *recordingGuard) Watch(ctx context.Context, f func(guard.Change)) error {
	for {
		select {
		case c := <-g.others:
			f(c)
		case <-ctx.Done():
			return nil
		}
	}
}

func (g *recordingGuard) Arm(context.Context) error   { return g.change(guard.Closed, "arm") }
func (g *recordingGuard) Close(context.Context) error { return g.change(guard.Closed, "close") }
func (g *recordingGuard) Open(context.Context) error  { return g.change(guard.Opened, "open") }

func (g *recordingGuard) Raise(_ context.Context, ports guard.Ports) error {
	g.mu.Lock()
	g.ports = ports
	g.mu.Unlock()
	if err := g.raise(); err != nil {
		g.change(guard.Closed, "raise failed")
		return err
	}
	return g.change(guard.Mesh, "raise")
}

func (g *recordingGuard) setPorts(p guard.Ports) (before guard.Ports) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before, g.ports = g.ports, p
	return before
}

func (g *recordingGuard) seen() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.calls)
}

// inProcess is a configuration for Run in this process, in the lab's own network.
func inProcess(t *testing.T, g meshproxy.Guard, ingress string) meshproxy.Config {
	t.Helper()
	mesh, err := config.Parse(ingress, "", "", "")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/run", "own")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m := newMesh(t)
	m.write(dir, m.issue(time.Hour, "web"))
	return meshproxy.Config{
		Mesh: mesh, Envoy: envoyProgram(t), EnvoyUser: envoyUser, Credentials: dir, RunDir: dir + "/run", Guard: g,
	}
}

// These use the ports of the lab's own network one after the other, so they are not parallel.

func TestTheGateIsLiftedOnlyForAnEnvoyThatListens(t *testing.T) {
	g := &recordingGuard{state: guard.Mesh} // as a proxy that was killed leaves it
	cfg := inProcess(t, g, "web#8080#false##metrics#7890#true##dns#53/udp#true")
	g.raise = func() error {
		if err := meshproxy.Ready(t.Context(), cfg.RunDir); err == nil {
			t.Error("ready before the gate was lifted")
		}
		for _, port := range []string{"15006", "15007"} {
			for _, host := range []string{"127.0.0.1", "::1"} {
				c, err := net.Dial("tcp", net.JoinHostPort(host, port))
				if err != nil {
					t.Errorf("the gate is lifted although: %v", err)
					continue
				}
				c.Close()
			}
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- meshproxy.Run(ctx, cfg) }()
	await(t, "ready", func() error { return meshproxy.Ready(ctx, cfg.RunDir) })

	g.change(guard.Foreign, "somebody else's rules")
	if err := meshproxy.Ready(ctx, cfg.RunDir); err == nil || err.Error() != "not ready: the guard is foreign, want mesh" {
		t.Errorf("with somebody else's rules: %v", err)
	}
	g.change(guard.Mesh, "raise")
	if err := meshproxy.Ready(ctx, cfg.RunDir); err != nil {
		t.Errorf("with the guard back: %v", err)
	}
	own := g.setPorts(guard.Ports{PlaintextTCP: []uint16{7890, 8080}})
	g.change(guard.Mesh, "other ports")
	if err := meshproxy.Ready(ctx, cfg.RunDir); err == nil || !strings.Contains(err.Error(), "other ports than configured: plaintext TCP 7890, 8080, want") {
		t.Errorf("with another port open: %v", err)
	}
	g.setPorts(own)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	want := []string{"close", "raise", "somebody else's rules", "raise", "other ports", "close"}
	if got := g.seen(); !slices.Equal(got, want) {
		t.Errorf("the guard was asked to %v, want %v", got, want)
	}
	wantPorts := guard.Ports{PlaintextTCP: []uint16{7890}, PlaintextUDP: []uint16{53}, NoClientAuth: []uint16{8080}}
	if fmt.Sprint(g.ports) != fmt.Sprint(wantPorts) {
		t.Errorf("the guard was told %v, want %v", g.ports, wantPorts)
	}
	if err := meshproxy.Ready(t.Context(), cfg.RunDir); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("after the end: %v", err)
	}
}

func TestAGateThatCannotBeLiftedEndsTheProxy(t *testing.T) {
	refusal := errors.New("the kernel lacks CONFIG_NFT_TPROXY")
	g := &recordingGuard{state: guard.Closed, raise: func() error { return refusal }}
	err := meshproxy.Run(t.Context(), inProcess(t, g, ""))
	if !errors.Is(err, refusal) {
		t.Errorf("got %v, want %v", err, refusal)
	}
	if got := g.seen(); got[len(got)-1] != "close" {
		t.Errorf("the guard was asked to %v, and not to close at the end", got)
	}
	if c, err := net.Dial("tcp", "127.0.0.1:15006"); err == nil {
		c.Close()
		t.Error("Envoy still listens")
	}
}

func TestClosedAndDisabledNeverRaise(t *testing.T) {
	for ingress, want := range map[string][]string{"CLOSED": {"close"}, "DISABLED": {"open"}} {
		g := &recordingGuard{state: guard.Closed}
		cfg := inProcess(t, g, ingress)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- meshproxy.Run(ctx, cfg) }()
		await(t, "ready", func() error { return meshproxy.Ready(ctx, cfg.RunDir) })
		if c, err := net.Dial("tcp", "127.0.0.1:15006"); err == nil {
			c.Close()
			t.Errorf("%s: there is an ingress listener", ingress)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := g.seen(); !slices.Equal(got, want) {
			t.Errorf("%s: the guard was asked to %v, want %v", ingress, got, want)
		}
	}
}

func TestNothingIsDoneForAnIncompleteConfiguration(t *testing.T) {
	g := &recordingGuard{}
	whole := inProcess(t, g, "")
	withoutMesh, asRoot := whole, whole
	withoutMesh.Mesh, asRoot.EnvoyUser = nil, 0
	for name, cfg := range map[string]meshproxy.Config{"no mesh": withoutMesh, "Envoy as root": asRoot, "zero": {}} {
		if err := meshproxy.Run(t.Context(), cfg); err == nil {
			t.Errorf("%s: Run returns no error", name)
		}
	}
	if got := g.seen(); got != nil {
		t.Errorf("the guard was asked to %v", got)
	}
}
