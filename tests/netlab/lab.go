package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Lab is a switch that Hosts are plugged into. Its own end, Gateway4 and Gateway6, is in the program's own network.
type Lab struct {
	bridge *netlink.Bridge

	mu   sync.Mutex
	next int
}

// The lab's networks. The switch itself is number 1; hosts count from 2.
var (
	Gateway4 = netip.MustParseAddr("10.137.0.1")
	Gateway6 = netip.MustParseAddr("fd00:137::1")
)

// New makes the switch. The program must have called Enter.
func New() (*Lab, error) {
	if os.Getpid() != 1 {
		return nil, errors.New("netlab: this program has not entered the lab; call netlab.Enter or netlab.Main first")
	}
	// A bridge without an address of its own takes the lowest of its ports', and so changes it as hosts come and go:
	// those who know it by the old one would talk to nobody until they notice.
	mac := net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	l := &Lab{bridge: &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch", HardwareAddr: mac}}, next: 2}
	if err := netlink.LinkAdd(l.bridge); err != nil {
		return nil, fmt.Errorf("add bridge: %w", err)
	}
	if err := addAddresses(l.bridge, Gateway4, Gateway6); err != nil {
		return nil, err
	}
	return l, linkUp("switch")
}

// Host is a network namespace that is plugged into a Lab.
type Host struct {
	Name       string
	IPv4, IPv6 netip.Addr

	lab    *Lab
	number int
	ns     netns.NsHandle
}

// testLab is the one lab of a test program.
var testLab = sync.OnceValues(New)

// Boot is Lab.Boot in the test program's lab, for tests of boots that fail.
func Boot(spec BootSpec) (*PodVM, error) {
	l, err := testLab()
	if err != nil {
		return nil, err
	}
	return l.Boot(spec)
}

// Tap is Lab.Tap in the test program's lab.
func Tap(t testing.TB) *Wire {
	t.Helper()
	l, err := testLab()
	if err != nil {
		t.Fatal(err)
	}
	w, err := l.Tap()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// NewPodVM boots a podVM for a test; it is off when the test ends.
func NewPodVM(t testing.TB, spec BootSpec) *PodVM {
	t.Helper()
	vm, err := Boot(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.PowerOff)
	return vm
}

// NewHost makes a host for a test; it is gone when the test ends. name is 1 to 10 characters long.
func NewHost(t testing.TB, name string) *Host {
	t.Helper()
	l, err := testLab()
	if err != nil {
		t.Fatal(err)
	}
	h, err := l.NewHost(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// NewHost makes a network namespace with loopback up and plugs it in, as interface eth0.
func (l *Lab) NewHost(name string) (*Host, error) {
	var ns netns.NsHandle
	err := onOwnThread(func() (err error) {
		ns, err = netns.New()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace for %s: %w", name, err)
	}
	h := l.host(name, ns)
	if err := h.Do(func() error { return linkUp("lo") }); err != nil {
		return nil, err
	}
	return h, h.Plug("eth0")
}

func (l *Lab) host(name string, ns netns.NsHandle) *Host {
	l.mu.Lock()
	n := l.next
	l.next++
	l.mu.Unlock()
	return &Host{Name: name, lab: l, number: n, ns: ns, IPv4: numbered(Gateway4, n), IPv6: numbered(Gateway6, n)}
}

// Plug adds an interface to h and joins it to the switch. The first one carries h's addresses and default routes.
func (h *Host) Plug(ifname string) error {
	peer := fmt.Sprintf("%s.%d", ifname, h.number)
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: peer, MasterIndex: h.lab.bridge.Index},
		PeerName:      ifname,
		PeerNamespace: netlink.NsFd(h.ns),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("plug %s of %s in: %w", ifname, h.Name, err)
	}
	if err := linkUp(peer); err != nil {
		return err
	}
	return h.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		if ifname == "eth0" {
			if err := addAddresses(link, h.IPv4, h.IPv6); err != nil {
				return err
			}
		}
		if err := linkUp(ifname); err != nil || ifname != "eth0" {
			return err
		}
		for _, gw := range []netip.Addr{Gateway4, Gateway6} {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("default route of %s: %w", h.Name, err)
			}
		}
		return nil
	})
}

// Addresses are IPv4 and IPv6, in that order.
func (h *Host) Addresses() []netip.Addr { return []netip.Addr{h.IPv4, h.IPv6} }

// Do runs f on a thread inside h's network namespace. A socket stays in the namespace that it was made in, and a process in
// the one that it was started in, so f may return them. Goroutines that f starts are outside.
func (h *Host) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(h.ns); err != nil {
			return fmt.Errorf("enter network of %s: %w", h.Name, err)
		}
		return f()
	})
}

// Dial connects from h. address must be an IP address and port: names would be resolved outside.
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = h.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens in h. address must be an IP address (or empty) and a port.
func (h *Host) Listen(network, address string) (l net.Listener, err error) {
	err = h.Do(func() error {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket is Listen for datagrams.
func (h *Host) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = h.Do(func() error {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

// Command is exec.Command inside h's network namespace, sharing everything else with the program. It dies with the lab.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), h.ns), name}, args...)...)
}

// Close unplugs h. Processes that are still in its network keep that network until they end.
func (h *Host) Close() error { return h.ns.Close() }

// onOwnThread runs f on an operating-system thread whose network namespace f may change. The thread ends with f: it is
// locked to a goroutine that returns without unlocking, so no other goroutine ever runs in f's namespace.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

func addAddresses(link netlink.Link, v4, v6 netip.Addr) error {
	for _, a := range []*netlink.Addr{
		{IPNet: &net.IPNet{IP: v4.AsSlice(), Mask: net.CIDRMask(24, 32)}},
		// no duplicate address detection: the address is usable at once
		{IPNet: &net.IPNet{IP: v6.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD},
	} {
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a.IP, link.Attrs().Name, err)
		}
	}
	return nil
}

// numbered is base's network with n as the last number.
func numbered(base netip.Addr, n int) netip.Addr {
	b := base.AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}
