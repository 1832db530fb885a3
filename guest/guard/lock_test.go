package guard_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

// wire hears every frame that reaches a network namespace.
type wire struct {
	mu     sync.Mutex
	frames [][]byte
}

// everywhere is the program's own namespace, which has the lab's switch: all frames cross it.
func everywhere(f func() error) error { return f() }

func listen(t *testing.T, in func(func() error) error) *wire {
	t.Helper()
	var fd int
	err := in(func() (err error) {
		everyProtocol := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(everyProtocol))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "wire")
	w := &wire{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			b := make([]byte, 4096)
			n, err := f.Read(b)
			if err != nil {
				return
			}
			w.mu.Lock()
			w.frames = append(w.frames, b[:n])
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() { f.Close(); <-done })
	return w
}

// saw waits for a text on the wire.
func (w *wire) saw(text string, wait time.Duration) bool {
	for deadline := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		for _, f := range w.frames {
			if bytes.Contains(f, []byte(text)) {
				w.mu.Unlock()
				return true
			}
		}
		w.mu.Unlock()
		if time.Now().After(deadline) {
			return false
		}
	}
}

// An envelope is a text, the mark of the socket that it is sent from, and how long that may take.
type envelope struct {
	mark int
	text string
	wait time.Duration
}

// escapes are the ways in which a workload could send a text to a peer. Each is seen on the wire when there is no guard.
var escapes = []struct {
	name string
	port uint16
	send func(t *testing.T, from *netlab.Host, to netip.AddrPort, e envelope)
}{
	{"tcp", 8080, overTCP},
	{"tcp to port 53", 53, overTCP},
	{"udp", 8080, overUDP},
	{"udp to port 53", 53, overUDP},
	{"udp in fragments", 8080, func(t *testing.T, from *netlab.Host, to netip.AddrPort, e envelope) {
		e.text = strings.Repeat("-", 3000) + e.text
		overUDP(t, from, to, e)
	}},
	{"echo request", 0, func(t *testing.T, from *netlab.Host, to netip.AddrPort, e envelope) {
		protocol, echo := unix.IPPROTO_ICMP, byte(8)
		if to.Addr().Is6() {
			protocol, echo = unix.IPPROTO_ICMPV6, 128 // its checksum is the kernel's affair
		}
		message := append([]byte{echo, 0, 0, 0, 0, 0, 0, 0}, e.text...)
		if to.Addr().Is4() {
			binary.BigEndian.PutUint16(message[2:], checksum(message))
		}
		overIP(t, from, to.Addr(), protocol, e.mark, message)
	}},
	{"a protocol of its own", 0, func(t *testing.T, from *netlab.Host, to netip.AddrPort, e envelope) {
		overIP(t, from, to.Addr(), 253, e.mark, []byte(e.text)) // for experiments (RFC 3692)
	}},
	{"sctp", 0, func(t *testing.T, from *netlab.Host, to netip.AddrPort, e envelope) {
		overIP(t, from, to.Addr(), unix.IPPROTO_SCTP, e.mark, []byte(e.text))
	}},
}

func TestLockLetsOnlyMarkedSocketsOut(t *testing.T) {
	t.Parallel()
	guest, peer := netlab.NewHost(t, "guest"), netlab.NewHost(t, "peer")
	w := listen(t, peer.Do)
	for _, port := range []uint16{53, 8080} {
		serve(t, peer, "tcp", port, "peer")
		serve(t, peer, "udp", port, "peer")
	}
	type marks map[int]func(port uint16) bool
	free := marks{0: always, guard.MarkEgress: always, guard.MarkIngress: always}
	locked := marks{0: never, guard.MarkEgress: always, guard.MarkIngress: never, guard.MarkDecrypted: never}
	for _, s := range []struct {
		name  string
		enter func(context.Context) error
		marks marks
	}{
		{"no guard", func(context.Context) error { return nil }, free},
		{"closed", guard.Arm, free},
		{"closed, locked", guard.Lock{}.Arm, locked},
		{"mesh, locked", raiseLocked(guard.Lock{}, guard.Ports{}), locked},
		{"closed again, locked but for DNS", guard.Lock{DNS: true}.Close, marks{
			0: func(port uint16) bool { return port == 53 }, guard.MarkEgress: always, guard.MarkDecrypted: never,
		}},
		{"closed, the lock lifted", guard.Close, free},
	} {
		do(t, guest, s.enter)
		var all sync.WaitGroup
		for mark, escaping := range s.marks {
			for _, e := range escapes {
				for _, ip := range peer.Addresses() {
					all.Go(func() {
						text := fmt.Sprintf("[%s, mark %#x, %s, to %s]", s.name, mark, e.name, ip)
						want := escaping(e.port)
						e.send(t, guest, netip.AddrPortFrom(ip, e.port), envelope{mark, text, wait(want)})
						if got := w.saw(text, wait(want)); got != want {
							t.Errorf("%s: seen on the wire: %t, want %t", text, got, want)
						}
					})
				}
			}
		}
		all.Wait()
	}
}

func always(uint16) bool { return true }
func never(uint16) bool  { return false }

// Whatever rules say about a packet's mark or its connection's, the socket has none.
func TestForeignRulesDoNotOpenTheLock(t *testing.T) {
	t.Parallel()
	guest, peer := netlab.NewHost(t, "guest"), netlab.NewHost(t, "peer")
	w := listen(t, peer.Do)
	serve(t, peer, "udp", 8080, "peer")
	do(t, guest, inTurn(guard.Lock{}.Arm, raiseLocked(guard.Lock{}, guard.Ports{})))
	for i, rules := range []string{
		"type route hook output priority mangle; meta mark set 0x54 accept",
		"type filter hook output priority -1; meta mark set 0x54 ct mark set 0x54 accept",
		"type filter hook output priority -350; notrack accept",
		"type filter hook output priority -1; accept",
		"type filter hook output priority 1; accept",
	} {
		table := fmt.Sprintf("inet foreign%d", i)
		file := filepath.Join(t.TempDir(), "foreign.nft")
		chain, rule, _ := strings.Cut(rules, "; ")
		text := fmt.Sprintf("table %s { chain c { %s; policy accept; %s; }; }\n", table, chain, rule)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		nft(t, guest, "-f", file)
		var all sync.WaitGroup
		for _, ip := range peer.Addresses() {
			all.Go(func() {
				text := fmt.Sprintf("[%s to %s]", rules, ip)
				overUDP(t, guest, netip.AddrPortFrom(ip, 8080), envelope{text: text})
				if w.saw(text, silence) {
					t.Errorf("%s was seen on the wire", text)
				}
			})
		}
		all.Wait()
		nft(t, guest, "delete table "+table)
	}
}

// What the Initializer and the mesh proxy dial with, names included.
func TestDialerGetsOutOfALockedGuest(t *testing.T) {
	t.Parallel()
	guest, peer := netlab.NewHost(t, "guest"), netlab.NewHost(t, "peer")
	serve(t, peer, "tcp", 1313, "coordinator")
	serve(t, peer, "udp", 53, "dns")
	do(t, guest, guard.Lock{}.Arm)
	for _, ip := range peer.Addresses() {
		do(t, guest, func(ctx context.Context) error {
			c, err := guard.Dialer().DialContext(ctx, "tcp", netip.AddrPortFrom(ip, 1313).String())
			if err != nil {
				return err
			}
			defer c.Close()
			if got, err := exchange(c, patience); got != "coordinator" {
				t.Errorf("%s answers %q, %v", ip, got, err)
			}
			c, err = guard.Dialer().Resolver.Dial(ctx, "udp", netip.AddrPortFrom(ip, 53).String())
			if err != nil {
				return err
			}
			defer c.Close()
			if got, err := exchange(c, patience); got != "dns" {
				t.Errorf("DNS at %s answers %q, %v", ip, got, err)
			}
			return nil
		})
	}
}

// A connection of a workload that was there before the lock ends with it; a marked one goes on, as does one on loopback.
func TestLockCutsWhatWasOpen(t *testing.T) {
	t.Parallel()
	guest, peer := netlab.NewHost(t, "guest"), netlab.NewHost(t, "peer")
	type open struct {
		net.Conn
		answer string
	}
	var all []open
	add := func(from, to *netlab.Host, ip netip.Addr, mark int, answer string) {
		for _, network := range []string{"tcp", "udp"} {
			all = append(all, open{dialMarked(t, from, network, netip.AddrPortFrom(ip, 8080), mark), answer})
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		serve(t, peer, network, 8080, "peer")
		serve(t, guest, network, 8080, "guest")
	}
	do(t, guest, guard.Arm)
	for _, ip := range peer.Addresses() {
		add(guest, peer, ip, 0, "")
		add(guest, peer, ip, guard.MarkEgress, "peer")
	}
	for _, ip := range append(guest.Addresses(), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()) {
		awaitLocal(t, guest, ip)
		add(guest, guest, ip, 0, "guest")
	}
	for _, c := range all {
		if got, err := exchange(c, patience); got == "" {
			t.Fatalf("before the lock %s %s does not answer: %v", c.RemoteAddr().Network(), c.RemoteAddr(), err)
		}
	}
	for name, enter := range map[string]func(context.Context) error{
		"closed": guard.Lock{}.Close, "mesh": raiseLocked(guard.Lock{}, guard.Ports{}),
	} {
		do(t, guest, enter)
		var each sync.WaitGroup
		for _, c := range all {
			each.Go(func() {
				if got, err := exchange(c, wait(c.answer != "")); got != c.answer {
					t.Errorf("%s, locked: %s %s answers %q (%v), want %q",
						name, c.RemoteAddr().Network(), c.RemoteAddr(), got, err, c.answer)
				}
			})
		}
		each.Wait()
	}
}

// Both ends of this connection are in the guest, and half of its packets are answers; then its address is the host's, and
// they would go to the wire. The client is an application, or Envoy.
func TestLoopbackStaysInsideWhenTheAddressMoves(t *testing.T) {
	t.Parallel()
	ports := guard.Ports{}
	for _, c := range []struct {
		name  string
		enter func(context.Context) error
		seen  bool
	}{
		{"no guard", func(context.Context) error { return nil }, true},
		{"closed", guard.Arm, false},
		{"mesh", inTurn(guard.Arm, raise(ports)), false},
		{"mesh, locked", inTurn(guard.Arm, raiseLocked(guard.Lock{}, ports)), false},
	} {
		for _, mark := range []int{0, guard.MarkDecrypted} {
			w := listen(t, everywhere)
			guest := netlab.NewHost(t, "guest")
			do(t, guest, c.enter)
			l, err := guest.Listen("tcp", netip.AddrPortFrom(guest.IPv6, 8080).String())
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			accepted := make(chan net.Conn, 1)
			go func() {
				if c, err := l.Accept(); err == nil {
					accepted <- c
				}
			}()
			awaitLocal(t, guest, guest.IPv6)
			client := dialMarked(t, guest, "tcp", netip.AddrPortFrom(guest.IPv6, 8080), mark)
			server := <-accepted
			defer server.Close()
			for _, args := range [][]string{
				{"address", "delete", guest.IPv6.String() + "/64", "dev", "eth0"},
				{"address", "add", "fd00:137::ffff/64", "dev", "eth0", "nodad"},
				// Somebody has the address now: the guest's packets find a neighbour.
				{"neighbour", "replace", guest.IPv6.String(), "lladdr", "02:00:00:00:00:01", "dev", "eth0"},
			} {
				if out, err := guest.Command("ip", args...).CombinedOutput(); err != nil {
					t.Fatalf("ip %v: %v: %s", args, err, out)
				}
			}
			texts := []string{fmt.Sprintf("[%s, mark %#x, question]", c.name, mark), fmt.Sprintf("[%s, mark %#x, answer]", c.name, mark)}
			fmt.Fprint(client, texts[0])
			fmt.Fprint(server, texts[1])
			for _, text := range texts {
				if got := w.saw(text, wait(c.seen)); got != c.seen {
					t.Errorf("%s was seen on the wire: %t, want %t", text, got, c.seen)
				}
			}
		}
	}
}

// awaitLocal waits until the kernel has noticed that an address of a new interface is its own.
func awaitLocal(t *testing.T, h *netlab.Host, ip netip.Addr) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		out, err := h.Command("ip", "route", "get", ip.String()).CombinedOutput()
		if err == nil && strings.HasPrefix(string(out), "local ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not an address of %s: %v: %s", ip, h.Name, err, out)
		}
	}
}

// cgroups shows the guard a tree of cgroups that has one of a service, and returns the tree's root.
func cgroups(t *testing.T, service string) (root string) {
	t.Helper()
	root = t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Skipf("SKIPPED: this needs root on the machine, to mount cgroup2 and make cgroups: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	if err := os.MkdirAll(filepath.Join(root, service), 0o755); err != nil {
		t.Skipf("SKIPPED: this needs root on the machine, to make cgroups: %v", err)
	}
	t.Cleanup(func() {
		os.Remove(filepath.Join(root, service))
		os.Remove(filepath.Join(root, filepath.Dir(service)))
	})
	guard.SetCgroupRoot(t, root)
	return root
}

// Where the mesh proxy is a service of the image, the right mark is not enough: a workload with CAP_NET_RAW could set it.
func TestMeshAdmitsTheProxysCgroupAlone(t *testing.T) {
	const proxy = "system.slice/podvm-meshproxy.service"
	root := cgroups(t, proxy)
	enter := func(cgroup string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, cgroup, "cgroup.procs"), []byte(fmt.Sprint(os.Getpid())), 0o600); err != nil {
			t.Skipf("SKIPPED: this needs root on the machine, to move processes between cgroups: %v", err)
		}
	}
	home, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, path, _ := strings.Cut(string(home), "0::")
	path, _, _ = strings.Cut(path, "\n")
	for _, tc := range []struct {
		name, cgroup string
		reached      bool
	}{
		{"a workload's socket with Envoy's mark", path, false},
		{"Envoy's socket", proxy, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			guest, peer := netlab.NewHost(t, "guest"), netlab.NewHost(t, "peer")
			enter(tc.cgroup)
			t.Cleanup(func() { enter(path) })
			transparent(t, guest, guard.PortIngress, guard.MarkIngress, "the listener")
			do(t, guest, guard.Arm)
			do(t, guest, func(ctx context.Context) error { return guard.Raise(ctx, guard.Ports{}) })
			if got := inspect(t, guest); got.State != guard.Mesh {
				t.Errorf("state %s (%s)", got.State, got.Difference)
			}
			for _, ip := range guest.Addresses() {
				said, err := ask(t.Context(), wait(tc.reached), peer, "tcp", netip.AddrPortFrom(ip, 8080))
				if reached := strings.Contains(said, "the listener"); reached != tc.reached {
					t.Errorf("%s: %q, %v", ip, said, err)
				}
			}
		})
	}
}

// A table that knows the proxy by its marks alone is not the one that belongs where the proxy has a cgroup.
func TestMeshWithoutTheProxysCgroupIsForeign(t *testing.T) {
	root := cgroups(t, "system.slice/podvm-meshproxy.service")
	guest := netlab.NewHost(t, "guest")
	do(t, guest, guard.Arm)
	guard.SetCgroupRoot(t, "/proc")
	do(t, guest, func(ctx context.Context) error { return guard.Raise(ctx, guard.Ports{}) })
	if got := inspect(t, guest); got.State != guard.Mesh {
		t.Errorf("where there is no such cgroup: state %s (%s)", got.State, got.Difference)
	}
	guard.SetCgroupRoot(t, root)
	if got := inspect(t, guest); got.State != guard.Foreign {
		t.Errorf("where there is one: state %s, want foreign", got.State)
	}
}

// kata-agent pulls images in the guest, in the cgroup that systemd gave it.
func TestLockAdmitsTheAgentsCgroup(t *testing.T) {
	const agent = "system.slice/kata-agent.service"
	root := cgroups(t, agent)
	guest, peer := netlab.NewHost(t, "guest"), netlab.NewHost(t, "peer")
	serve(t, peer, "tcp", 443, "registry")
	do(t, guest, guard.Lock{}.Arm)
	if got := inspect(t, guest); got.State != guard.Closed || !got.Egress.Agent {
		t.Errorf("state %s with %+v (%s), want closed and the agent admitted", got.State, got.Egress, got.Difference)
	}
	for _, ip := range peer.Addresses() {
		pull := func(script string) error {
			cmd := guest.Command("sh", "-c", script, "sh", filepath.Join(root, agent, "cgroup.procs"),
				filepath.Join(root, "cgroup.procs"), fmt.Sprintf("/dev/tcp/%s/443", ip))
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}
		const connect = `timeout 1 bash -c 'exec 3<>"$0" && echo >&3 && read -t 1 line <&3' "$3"`
		if err := pull(`echo $$ > "$1" && ` + connect); err != nil {
			t.Errorf("kata-agent cannot pull from %s: %v", ip, err)
		}
		err := pull(`echo $$ > "$2" && ` + connect)
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Errorf("a workload can pull from %s: %v", ip, err)
		}
	}
	// A guest in which another cgroup has that number is not this one.
	guard.SetCgroupRoot(t, "/proc")
	if got := inspect(t, guest); got.State != guard.Foreign {
		t.Errorf("with an unknown cgroup admitted: state %s, want foreign", got.State)
	}
}

func overTCP(t *testing.T, from *netlab.Host, to netip.AddrPort, e envelope) {
	ctx, cancel := context.WithTimeout(t.Context(), e.wait)
	defer cancel()
	c, err := marked(ctx, from, "tcp", to, e.mark)
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprintln(c, e.text)
	c.SetReadDeadline(time.Now().Add(e.wait))
	c.Read(make([]byte, 1)) // closing at once could reset the connection before the text is sent
}

func overUDP(t *testing.T, from *netlab.Host, to netip.AddrPort, e envelope) {
	c, err := marked(t.Context(), from, "udp", to, e.mark)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	fmt.Fprintln(c, e.text) // fails when the guard drops it
}

func overIP(t *testing.T, from *netlab.Host, to netip.Addr, protocol, mark int, message []byte) {
	do(t, from, func(context.Context) error {
		var address unix.Sockaddr = &unix.SockaddrInet6{Addr: to.As16()}
		family := unix.AF_INET6
		if to.Is4() {
			address, family = &unix.SockaddrInet4{Addr: to.As4()}, unix.AF_INET
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW, protocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			return err
		}
		if err := unix.Sendto(fd, message, 0, address); err != nil && err != unix.EPERM {
			return err
		}
		return nil
	})
}

func dialMarked(t *testing.T, from *netlab.Host, network string, to netip.AddrPort, mark int) net.Conn {
	t.Helper()
	c, err := marked(t.Context(), from, network, to, mark)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func marked(ctx context.Context, from *netlab.Host, network string, to netip.AddrPort, mark int) (c net.Conn, err error) {
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
		}), err)
	}}
	err = from.Do(func() error {
		c, err = dialer.DialContext(ctx, network, to.String())
		return err
	})
	return c, err
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b)-1; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
