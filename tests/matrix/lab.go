package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/tests/netlab"
)

// A Lab is the little world of one row and one family: a switch of its own, a podVM whose guard was closed at boot, and a
// peer, which stands for everything hostile outside. Nothing in it is shared with another row, so rows run side by side and
// may use any address, flood the switch or spoof each other's packets.
//
// The methods that bring the guard into a state are in gate.go, the real mesh proxy is in proxy.go, applications and
// attempts are in traffic.go, crafted packets and the wire are in wire.go and tcp.go.
type Lab struct {
	Family Family
	Pod    *netlab.PodVM
	Peer   *netlab.Host
	// Wire has every packet that crossed the switch.
	Wire *Wire

	programs Programs
	room     *room
	mutation *Mutation
	podLog   *netlab.Log
	proxy    *Proxy // the last that was started

	squatters []*netlab.Container

	inner              *netlab.Host // behind a bridge in the pod, see forwarding
	innerTCP, innerUDP *App

	outsideTCP, outsideUDP, outsideTLS *App // on the peer

	mu         sync.Mutex
	cleanups   []func()
	closed     bool
	guarded    bool // a guard stands, since
	since      int  // this position on the wire
	apps       []*App
	failures   []string
	brokenness []string
	notes      []string
	controls   int
}

// Programs are the real binaries that a podVM's image carries.
type Programs struct {
	PodvmGuard, Meshproxy, Envoy string
}

// findPrograms looks in dir for what `make build` makes, and for Envoy where make fetches it to.
func findPrograms(dir string) (Programs, error) {
	p := Programs{filepath.Join(dir, "podvm-guard"), filepath.Join(dir, "meshproxy"), os.Getenv("PORTCULLIS_ENVOY")}
	if p.Envoy == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return p, err
		}
		p.Envoy = filepath.Join(cache, "portcullis/envoy-1.40.0/envoy")
	}
	var missing []error
	for _, path := range []string{p.PodvmGuard, p.Meshproxy, p.Envoy} {
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, fmt.Errorf("%w (make build makes the binaries, make envoy fetches Envoy)", err))
		}
	}
	return p, errors.Join(missing...)
}

func newLab(programs Programs, family Family, mutation *Mutation) (*Lab, error) {
	l := &Lab{Family: family, programs: programs, mutation: mutation, podLog: &netlab.Log{}}
	var err error
	if l.room, err = newRoom(); err != nil {
		return nil, err
	}
	l.cleanup(l.room.close)
	if err := l.furnish(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *Lab) furnish() (err error) {
	if err := l.room.do(func() (err error) { l.Wire, err = newWire(); return err }); err != nil {
		return err
	}
	l.cleanup(l.Wire.close)
	binaries := []string{l.programs.PodvmGuard, l.programs.Meshproxy, l.programs.Envoy}
	if l.mutation != nil {
		binaries = append(binaries, filepath.Join(os.Getenv(mutantDir), "mutation"))
	}
	err = l.room.do(func() (err error) {
		l.Pod, err = l.room.lab.Boot(netlab.BootSpec{
			Name:     "pod",
			Binaries: binaries,
			Boot:     [][]string{{"/opt/bin/podvm-guard", "close"}},
			Resolver: netlab.Resolver,
			Log:      l.podLog,
		})
		return err
	})
	if err != nil {
		return err
	}
	l.cleanup(l.Pod.PowerOff)
	if err := usable(l.Pod.Host, l.Pod.Addresses()...); err != nil {
		return err
	}
	if l.Peer, err = l.newHost("peer"); err != nil {
		return err
	}
	if err := l.Wire.aimAt(l); err != nil {
		return err
	}
	l.guarded, l.since = true, l.Wire.Mark()
	return l.serveApps()
}

func (l *Lab) newHost(name string) (h *netlab.Host, err error) {
	if err := l.room.do(func() error { h, err = l.room.lab.NewHost(name); return err }); err != nil {
		return nil, err
	}
	l.cleanup(func() { h.Close() })
	return h, usable(h, h.Addresses()...)
}

// usable waits until a host can send to its own addresses: the kernel adds IPv6's local routes a moment after the address, on
// a busy machine a long one.
func usable(h *netlab.Host, addresses ...netip.Addr) error {
	for _, a := range addresses {
		if !awaits(func() bool {
			c, err := dial(h, "udp", netip.AddrPortFrom(a, 9), patience)
			if err != nil {
				return false
			}
			c.Close()
			return true
		}) {
			return fmt.Errorf("address %s of %s does not become usable", a, h.Name)
		}
	}
	return nil
}

// NewHost puts one more host on the switch.
func (l *Lab) NewHost(name string) *netlab.Host {
	h, err := l.newHost(name)
	l.must(err)
	return h
}

// Plug gives the pod one more interface on the switch, without an address, and brings it up.
func (l *Lab) Plug(ifname string) {
	l.must(l.room.do(func() error { return l.Pod.Plug(ifname) }))
}

// InSwitch runs f on a thread in the network of the switch, which is the pod's default router. As in netlab's Host.Do, f
// must return its error, and call nothing that ends the row.
func (l *Lab) InSwitch(f func() error) { l.must(l.room.do(f)) }

// close ends everything in the lab.
func (l *Lab) close() {
	l.mu.Lock()
	cleanups := l.cleanups
	l.cleanups, l.closed = nil, true
	l.mu.Unlock()
	for i := len(cleanups) - 1; i >= 0; i-- {
		cleanups[i]()
	}
}

// cleanup calls f when the row is over, or at once when it is over already: it may have been interrupted.
func (l *Lab) cleanup(f func()) {
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.cleanups = append(l.cleanups, f)
	}
	l.mu.Unlock()
	if closed {
		f()
	}
}

// Address is h's address in the lab's family.
func (l *Lab) Address(h *netlab.Host) netip.Addr {
	if l.Family == IPv4 {
		return h.IPv4
	}
	return h.IPv6
}

// PodAddr is the pod's address in the lab's family.
func (l *Lab) PodAddr() netip.Addr { return l.Address(l.Pod.Host) }

// PeerAddr is the peer's.
func (l *Lab) PeerAddr() netip.Addr { return l.Address(l.Peer) }

// GatewayAddr is the switch's own.
func (l *Lab) GatewayAddr() netip.Addr {
	if l.Family == IPv4 {
		return netlab.Gateway4
	}
	return netlab.Gateway6
}

// SpareAddr is an address of the lab's network that nobody has.
func (l *Lab) SpareAddr() netip.Addr {
	if l.Family == IPv4 {
		return netip.MustParseAddr("10.137.0.200")
	}
	return netip.MustParseAddr("fd00:137::c8")
}

// InPod runs a shell script in the podVM, outside any container, as root; what it prints is returned. args are "$1" and on.
func (l *Lab) InPod(script string, args ...string) string {
	return l.output(l.Pod.Command("sh", append([]string{"-ec", script, "sh"}, args...)...))
}

// OnPeer runs a shell script in the peer's network.
func (l *Lab) OnPeer(script string, args ...string) string { return l.On(l.Peer, script, args...) }

// On runs a shell script in the network of a host.
func (l *Lab) On(h *netlab.Host, script string, args ...string) string {
	return l.output(h.Command("sh", append([]string{"-ec", script, "sh"}, args...)...))
}

func (l *Lab) output(cmd *exec.Cmd) string {
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		l.Brokenf("%s: %v: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(errors.Bytes()))
	}
	return string(out)
}

// Sysctl sets a sysctl of the pod's network, by its path below /proc/sys/net.
func (l *Lab) Sysctl(name, value string) {
	l.must(l.Pod.Do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }))
}

// Failf says that the gate, or what must work beside it, is not as it must be. The row goes on.
func (l *Lab) Failf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, fmt.Sprintf(format, args...))
}

// Notef keeps a figure for the report.
func (l *Lab) Notef(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notes = append(l.notes, fmt.Sprintf(format, args...))
}

// Fatalf is Failf, and ends the row.
func (l *Lab) Fatalf(format string, args ...any) {
	l.Failf(format, args...)
	runtime.Goexit()
}

// Brokenf says that the lab does not work, so that nothing is known about the gate, and ends the row.
func (l *Lab) Brokenf(format string, args ...any) {
	l.mu.Lock()
	l.brokenness = append(l.brokenness, fmt.Sprintf(format, args...))
	l.mu.Unlock()
	runtime.Goexit()
}

func (l *Lab) must(err error) {
	if err != nil {
		l.Brokenf("%v", err)
	}
}

// Await repeats f until it is true; when it never is, the lab is broken. It is for what must happen for the row to have a
// meaning, such as a process being gone. What the gate must do is for Failf.
func (l *Lab) Await(what string, f func() bool) {
	if !awaits(f) {
		l.Brokenf("waited in vain for %s; the pod's log:\n%s", what, l.podLog)
	}
}

func awaits(f func() bool) bool { return within(patience, f) }

// within repeats f until it is true, and says whether that was in time.
func within(wait Wait, f func() bool) bool {
	for deadline := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		if f() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// ctx bounds every call into the kernel.
func (l *Lab) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// room is a network namespace with a thread in it, and a switch of netlab's there. netlab itself has one switch per network
// namespace, of some 250 hosts; this gives each row its own.
type room struct {
	lab    *netlab.Lab
	jobs   chan func()
	closed chan struct{}
}

func newRoom() (*room, error) {
	r := &room{jobs: make(chan func()), closed: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			r.lab, err = netlab.New()
		}
		started <- err
		for {
			select {
			case job := <-r.jobs:
				job()
			case <-r.closed:
				return
			}
		}
	}()
	if err := <-started; err != nil {
		r.close()
		return nil, fmt.Errorf("make a switch: %w", err)
	}
	return r, nil
}

func (r *room) do(f func() error) error {
	done := make(chan error, 1)
	select {
	case r.jobs <- func() { done <- f() }:
		return <-done
	case <-r.closed:
		return errors.New("the lab is closed")
	}
}

func (r *room) close() { close(r.closed) }
