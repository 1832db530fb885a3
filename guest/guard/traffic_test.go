package guard_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

// How long to wait for an answer that must come, and how long for one that must not. In the lab an answer takes well under
// a millisecond once the first packets have found their way.
const (
	patience = 10 * time.Second
	silence  = time.Second
)

func wait(wanted bool) time.Duration {
	if wanted {
		return patience
	}
	return silence
}

// What peers try on a guest that serves all of these, and in which states they may get an answer. Every row is tried
// without a guard first, where it must pass, so that a broken lab does not look like a closed gate.
var attempts = []struct {
	name    string
	network string
	port    uint16
	passes  []guard.State
}{
	{"tcp to an application", "tcp", 8080, nil},
	{"tcp to a port without client certificate", "tcp", 8443, nil},
	{"tcp to a plaintext port", "tcp", 7890, []guard.State{guard.Mesh}},
	{"tcp to a port that is plaintext for udp", "tcp", 5353, nil},
	{"udp to an application", "udp", 8080, nil},
	{"udp to a plaintext port", "udp", 5353, []guard.State{guard.Mesh}},
	{"udp to a port that is plaintext for tcp", "udp", 7890, nil},
	{"tcp to the listener's port", "tcp", guard.PortIngress, nil},
	{"tcp to the other listener's port", "tcp", guard.PortIngressNoClientAuth, nil},
}

func TestOnlyNamedPortsAreReachable(t *testing.T) {
	t.Parallel()
	guest, peer := netlab.NewHost(t, "guest"), netlab.NewHost(t, "peer")
	for _, a := range attempts {
		serve(t, guest, a.network, a.port, "application")
	}
	ports := guard.Ports{PlaintextTCP: []uint16{7890}, PlaintextUDP: []uint16{5353}, NoClientAuth: []uint16{8443}}
	for _, s := range []struct {
		name  string
		state guard.State
		enter func(context.Context) error
	}{
		{"no guard", guard.Opened, func(context.Context) error { return nil }},
		{"armed", guard.Closed, guard.Arm},
		{"mesh", guard.Mesh, raise(ports)},
		{"closed", guard.Closed, guard.Close},
		{"mesh, locked", guard.Mesh, raiseLocked(guard.Lock{}, ports)}, // answers get out
		{"closed, locked", guard.Closed, guard.Lock{}.Close},
		{"open", guard.Opened, guard.Open},
	} {
		do(t, guest, s.enter)
		t.Run(s.name, func(t *testing.T) {
			var all sync.WaitGroup
			for _, a := range attempts {
				for _, ip := range guest.Addresses() {
					to := netip.AddrPortFrom(ip, a.port)
					want := s.state == guard.Opened
					for _, state := range a.passes {
						want = want || state == s.state
					}
					all.Go(func() {
						if got, err := ask(t.Context(), wait(want), peer, a.network, to); (got == "application") != want {
							t.Errorf("%s, %s: got %q (%v), want an answer: %t", a.name, to, got, err, want)
						}
					})
				}
			}
			all.Wait()
			if drops := inspect(t, guest).Drops(); (drops > 0) != (s.state != guard.Opened) {
				t.Errorf("the guard counted %d drops", drops)
			}
		})
	}
}

func TestGuestsOwnConnectionsWorkInEveryState(t *testing.T) {
	t.Parallel()
	guest, peer := netlab.NewHost(t, "guest"), netlab.NewHost(t, "peer")
	serve(t, peer, "tcp", 8080, "peer")
	serve(t, peer, "udp", 8080, "peer")
	do(t, guest, guard.Arm)

	// Those that begin in one state go on in the next.
	var old []net.Conn
	for _, network := range []string{"tcp", "udp"} {
		for _, ip := range peer.Addresses() {
			old = append(old, connect(t, guest, network, netip.AddrPortFrom(ip, 8080)))
		}
	}
	for i, enter := range []func(context.Context) error{
		func(context.Context) error { return nil }, raise(guard.Ports{}), raise(examplePorts), guard.Close, guard.Open,
	} {
		do(t, guest, enter)
		for _, c := range old {
			if got, err := exchange(c, patience); got != "peer" {
				t.Errorf("step %d: old connection to %s %s: got %q, %v", i, c.RemoteAddr().Network(), c.RemoteAddr(), got, err)
			}
			to := netip.MustParseAddrPort(c.RemoteAddr().String())
			if got, err := ask(t.Context(), patience, guest, c.RemoteAddr().Network(), to); got != "peer" {
				t.Errorf("step %d: new connection to %s %s: got %q, %v", i, c.RemoteAddr().Network(), to, got, err)
			}
		}
	}
}

func TestConnectionFromBeforeArmingIsCut(t *testing.T) {
	t.Parallel()
	guest, peer := netlab.NewHost(t, "guest"), netlab.NewHost(t, "peer")
	serve(t, guest, "tcp", 8080, "application")
	for _, ip := range guest.Addresses() {
		t.Run(ip.String(), func(t *testing.T) {
			c := connect(t, peer, "tcp", netip.AddrPortFrom(ip, 8080))
			if got, err := exchange(c, patience); got != "application" {
				t.Fatalf("without a guard: got %q, %v", got, err)
			}
			do(t, guest, guard.Arm)
			if got, err := exchange(c, silence); got != "" || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after Arm: got %q, %v; want silence", got, err)
			}
			if inspect(t, guest).Drops() == 0 {
				t.Error("the guard counted no drop")
			}
			do(t, guest, guard.Open)
		})
	}
}

// A peer's connection that a state admitted is not an answer to anything in the next one, though conntrack knows it.
func TestPeersConnectionEndsWithTheStateThatAdmittedIt(t *testing.T) {
	t.Parallel()
	guest, peer := netlab.NewHost(t, "guest"), netlab.NewHost(t, "peer")
	serve(t, guest, "tcp", 7890, "application")
	serve(t, guest, "udp", 5353, "application")
	do(t, guest, guard.Arm)
	for name, leave := range map[string]func(context.Context) error{"close": guard.Close, "raise without the port": raise(guard.Ports{})} {
		t.Run(name, func(t *testing.T) {
			do(t, guest, raise(guard.Ports{PlaintextTCP: []uint16{7890}, PlaintextUDP: []uint16{5353}}))
			var open []net.Conn
			for _, ip := range guest.Addresses() {
				open = append(open, connect(t, peer, "tcp", netip.AddrPortFrom(ip, 7890)), connect(t, peer, "udp", netip.AddrPortFrom(ip, 5353)))
			}
			for _, c := range open {
				if got, err := exchange(c, patience); got != "application" {
					t.Fatalf("plaintext port %s: got %q, %v", c.RemoteAddr(), got, err)
				}
			}
			do(t, guest, leave)
			var all sync.WaitGroup
			for _, c := range open {
				all.Go(func() {
					if got, err := exchange(c, silence); got != "" || !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("%s %s: got %q, %v; want silence", c.RemoteAddr().Network(), c.RemoteAddr(), got, err)
					}
				})
			}
			all.Wait()
		})
	}
}

// The mesh state hands every connection of a peer to the listener that is meant for it, whatever port was dialled, and
// to no other socket: not to the application, not to a listener without the mark.
func TestMeshStateInterceptsForMarkedListenersOnly(t *testing.T) {
	t.Parallel()
	guest, peer := netlab.NewHost(t, "guest"), netlab.NewHost(t, "peer")
	serve(t, guest, "tcp", 8080, "application")
	serve(t, guest, "tcp", 8443, "application")
	do(t, guest, guard.Arm)
	ports := guard.Ports{NoClientAuth: []uint16{8443}}
	unlocked, locked := raise(ports), raiseLocked(guard.Lock{}, ports)
	for _, c := range []struct {
		name                  string
		enter                 func(context.Context) error
		ingress, noClientAuth int // marks of the two listeners
		want8080, want8443    string
	}{
		{"the proxy's marks", unlocked, guard.MarkIngress, guard.MarkIngressNoClientAuth, "ingress", "noClientAuth"},
		{"no marks", unlocked, 0, 0, "", ""},
		{"each with the other's mark", unlocked, guard.MarkIngressNoClientAuth, guard.MarkIngress, "", ""},
		{"the proxy's marks, locked", locked, guard.MarkIngress, guard.MarkIngressNoClientAuth, "ingress", "noClientAuth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			do(t, guest, c.enter)
			transparent(t, guest, guard.PortIngress, c.ingress, "ingress")
			transparent(t, guest, guard.PortIngressNoClientAuth, c.noClientAuth, "noClientAuth")
			var all sync.WaitGroup
			for _, ip := range guest.Addresses() {
				for port, want := range map[uint16]string{
					8080: c.want8080, 9999: c.want8080, 8443: c.want8443,
					guard.PortIngress: "", guard.PortIngressNoClientAuth: "", // never dialled directly
				} {
					all.Go(func() {
						if got, err := ask(t.Context(), wait(want != ""), peer, "tcp", netip.AddrPortFrom(ip, port)); got != want {
							t.Errorf("%s port %d: answered by %q (%v), want %q", ip, port, got, err, want)
						}
					})
				}
			}
			all.Wait()
		})
	}
}

// ask sends one line to an address and returns what it is answered with; "" when nothing comes in time.
func ask(ctx context.Context, wait time.Duration, from *netlab.Host, network string, to netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	c, err := from.Dial(ctx, network, to.String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	return exchange(c, wait)
}

// connect must succeed; the connection is closed when the test ends.
func connect(t *testing.T, from *netlab.Host, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := from.Dial(ctx, network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func exchange(c net.Conn, wait time.Duration) (string, error) {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	return strings.TrimSpace(string(b[:n])), err
}

// serve answers whatever comes to the port, by IPv4 and IPv6, with its name.
func serve(t *testing.T, h *netlab.Host, network string, port uint16, name string) {
	t.Helper()
	address := fmt.Sprintf(":%d", port)
	if network == "udp" {
		c, err := h.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			b := make([]byte, 100)
			for {
				_, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				c.WriteTo([]byte(name), from)
			}
		}()
		return
	}
	l, err := h.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	answer(t, l, name)
}

// transparent serves as Envoy does: with IP_TRANSPARENT, and with a mark that is set before the socket is bound.
func transparent(t *testing.T, h *netlab.Host, port uint16, mark int, name string) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark),
			)
		}), err)
	}}
	var l net.Listener
	do(t, h, func(ctx context.Context) (err error) {
		l, err = config.Listen(ctx, "tcp", fmt.Sprintf("[::]:%d", port))
		return err
	})
	answer(t, l, name)
}

func answer(t *testing.T, l net.Listener, name string) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 100)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
					fmt.Fprintln(c, name)
				}
			}()
		}
	}()
}
