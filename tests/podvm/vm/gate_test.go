package vm_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"portcullis.dev/portcullis/tests/podvm/kata"
	"portcullis.dev/portcullis/tests/podvm/order"
	"portcullis.dev/portcullis/tests/podvm/vm"
)

// What is knocked at: a workload's port, the mesh proxy's own, one of the Coordinator's and of ssh, and datagrams.
var doors = []vm.Door{
	{Transport: "tcp", Port: 22},
	{Transport: "tcp", Port: 1313},
	{Transport: "tcp", Port: workloadPort},
	{Transport: "tcp", Port: 15006},
	{Transport: "tcp", Port: 15007},
	{Transport: "tcp", Port: 15021},
	{Transport: "udp", Port: 53},
}

const workloadPort = 8080

// check prints the times of a boot and compares them.
func check(t *testing.T, e kata.Evidence) {
	t.Helper()
	faults, times := order.Faults(e)
	t.Log(times)
	for _, f := range faults {
		t.Error(f)
	}
}

// knock watches a machine from now on.
func knock(t *testing.T, m *vm.Machine, doors ...vm.Door) *vm.Watch {
	t.Helper()
	lab, err := theLab()
	if err != nil {
		t.Fatal(err)
	}
	w := vm.Knocking(lab.knocker, m.Addresses(), doors...)
	t.Cleanup(func() { w.Stop() })
	return w
}

// dropped returns when the guard has dropped what was knocked: the packets came as far as the gate.
func (g *guest) dropped(t *testing.T, ctx context.Context, more uint64) kata.Evidence {
	t.Helper()
	var e kata.Evidence
	until(t, ctx, func() error {
		if e = g.show(t); e.Guard.Drops < more {
			return fmt.Errorf("the guard has dropped %d packets, want %d", e.Guard.Drops, more)
		}
		return nil
	})
	t.Logf("guard %s, %d packets dropped", e.Guard.State, e.Guard.Drops)
	return e
}

// The gate is down before the agent starts, and from power-on to the end nobody gets an answer of any kind.
func TestGateIsDownBeforeTheAgent(t *testing.T) {
	for n := range 3 {
		for _, way := range []vm.Way{vm.Direct, vm.UKI}[:min(2, 3-n)] {
			t.Run(fmt.Sprintf("boot%d/%s", n+1, way), func(t *testing.T) {
				m := start(t, vm.Spec{Image: image(t, "plain"), Way: way})
				w := knock(t, m, doors...)
				g := greet(t, m)
				t.Logf("%s: the agent opened its port %.1f s after power-on", vm.Accelerator(), m.AgentStarted().Sub(m.Began).Seconds())
				check(t, g.show(t, order.Units()...))
				g.configure(t, m.Jack)
				ctx := within(t, time.Minute)
				neighbours(t, ctx, m.Addresses())
				g.dropped(t, ctx, uint64(2*len(doors)))
				knocks := w.Stop()
				t.Log(knocks)
				if a := knocks.Answered(); len(a) > 0 {
					t.Errorf("%d knocks were answered, the first at %s: %s", len(a), a[0].Door, a[0].Saw)
				}
				if len(knocks.Timeouts()) == 0 {
					t.Error("no knock ever reached the machine")
				}
			})
		}
	}
}

// The control: with a guard that lets in, the same knocks at the same image are answered. A dead network is no closed gate.
func TestKnocksReachAnOpenGuest(t *testing.T) {
	m := start(t, vm.Spec{Image: image(t, "accepting"), Way: vm.Direct})
	w := knock(t, m, doors...)
	g := greet(t, m)
	g.configure(t, m.Jack)
	if err := g.agent.Run(t.Context(), "workload", nil, "/usr/bin/kata-agent", "serve", "8080", "hello"); err != nil {
		t.Fatal(err)
	}
	second, err := m.PlugNIC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g.configure(t, second)
	ctx := within(t, time.Minute)
	lab, err := theLab()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range append(m.Addresses(), second.Addresses()...) {
		until(t, ctx, func() error {
			conn, err := lab.knocker.Dial(ctx, "tcp", netip.AddrPortFrom(a, workloadPort).String())
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	until(t, ctx, func() error {
		for _, a := range m.Addresses() {
			if !w.Answered(a, vm.Door{Transport: "tcp", Port: workloadPort}) {
				return fmt.Errorf("no knock at %s was answered, and nothing stops any", a)
			}
		}
		return nil
	})
	t.Log(w.Stop())
}

// A NIC that is plugged in later, and given addresses, is behind the same gate.
func TestSecondNICIsGuarded(t *testing.T) {
	g := boot(t, vm.Spec{Image: image(t, "plain"), Way: vm.Direct})
	g.configure(t, g.Jack)
	second, err := g.PlugNIC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lab, err := theLab()
	if err != nil {
		t.Fatal(err)
	}
	before := g.show(t).Guard.Drops
	w := vm.Knocking(lab.knocker, second.Addresses(), doors...)
	t.Cleanup(func() { w.Stop() })
	g.configure(t, second)
	ctx := within(t, time.Minute)
	neighbours(t, ctx, second.Addresses())
	g.dropped(t, ctx, before+uint64(2*len(doors)))
	knocks := w.Stop()
	t.Log(knocks)
	if a := knocks.Answered(); len(a) > 0 {
		t.Errorf("%d knocks at the second NIC were answered, the first at %s: %s", len(a), a[0].Door, a[0].Saw)
	}
}

// A guard that fails leaves no podVM: the agent never starts, and the machine switches itself off.
func TestBrokenGuardPowersOff(t *testing.T) {
	m := start(t, vm.Spec{Image: image(t, "broken"), Way: vm.Direct})
	w := knock(t, m, doors...)
	refused(t, m, vm.PoweredOff)
	t.Logf("\n%s", mentions(m, "podvm-guard", "Power down"))
	if a := w.Stop().Answered(); len(a) > 0 {
		t.Errorf("%d knocks were answered", len(a))
	}
}

// refused waits for a machine that must end by itself before its agent starts.
func refused(t *testing.T, m *vm.Machine, want vm.Ending) {
	t.Helper()
	got, err := m.Wait(within(t, bootTime))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %.1f s after power-on", got, time.Since(m.Began).Seconds())
	if got != want {
		t.Errorf("the machine ended: %s, want %s\n%s", got, want, m.LastOfConsole(20))
	}
	if at := m.AgentStarted(); !at.IsZero() {
		t.Errorf("the agent started %.1f s after power-on", at.Sub(m.Began).Seconds())
	}
}
