package meshproxy_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"

	"portcullis.dev/portcullis/tests/netlab"
)

// Envoy connects to whatever address a peer's packets carried. These tests are about where a peer, together with the pod's
// host, can lead it.

// ports that a peer tries at every address: one that the application serves everywhere, one that it serves on loopback
// alone, and an egress listener.
const (
	portApp, portInside, portEgress = 8080, 9000, 11001
	inside                          = "of inside"
)

// serveInside is an application's service for the pod itself, such as a debugging port.
func (p *pod) serveInside() *atomic.Int32 {
	p.t.Helper()
	reached := &atomic.Int32{}
	for _, addr := range []string{"127.0.0.1", "::1"} {
		l, err := p.Listen("tcp", net.JoinHostPort(addr, strconv.Itoa(portInside)))
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				reached.Add(1)
				io.WriteString(c, inside)
				c.Close()
			}
		}()
	}
	return reached
}

// must runs a command in h.
func must(t testing.TB, h *netlab.Host, name string, args ...string) string {
	t.Helper()
	out, err := h.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// nft loads rules in h.
func nft(t testing.TB, h *netlab.Host, rules string) {
	t.Helper()
	cmd := h.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s\n%s", err, out, rules)
	}
}

// detour is an address that peer can connect to, while what leaves peer is addressed to target, and sent to p's interface:
// the packets that a hostile host writes, with a whole TCP and TLS behind them.
func detour(t testing.TB, peer *netlab.Host, p *pod, target netip.Addr) netip.Addr {
	t.Helper()
	family, pod, decoy := "ip", p.IPv4, netip.MustParseAddr("10.201.0.1")
	if target.Is6() {
		family, pod, decoy = "ip6", p.IPv6, netip.MustParseAddr("fd00:201::1")
	}
	must(t, peer, "ip", "route", "add", decoy.String(), "via", pod.String(), "dev", "eth0")
	nft(t, peer, fmt.Sprintf(`
		table inet detour {
			chain out {
				type filter hook postrouting priority 300
				%[1]s daddr %[2]s %[1]s daddr set %[3]s
			}
		}
		# Whatever address the pod answers from, and before the peer's kernel can dislike it.
		table netdev detour {
			chain in {
				type filter hook ingress device "eth0" priority 0
				tcp sport { %[4]d, %[5]d, %[6]d } %[1]s saddr set %[2]s
			}
		}`, family, decoy, target, portApp, portInside, portEgress))
	return decoy
}

func TestPeersReachThePodsOwnAddressesOnly(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	p, far, neighbour := newPod(t, "web"), netlab.NewHost(t, "far"), netlab.NewHost(t, "neighbour")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.serveFirst(portApp)
	reachedInside := p.serveInside()
	// The pod's way out, which a peer must not take.
	exit, err := far.Listen("tcp", far.IPv4.String()+":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer exit.Close()
	var left atomic.Int32
	go func() {
		for {
			c, err := exit.Accept()
			if err != nil {
				return
			}
			left.Add(1)
			c.Close()
		}
	}()
	// As careless as a guest can be.
	for _, setting := range []string{"all/route_localnet=1", "eth0/route_localnet=1", "all/rp_filter=0", "eth0/rp_filter=0"} {
		file, value, _ := strings.Cut(setting, "=")
		if err := p.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/"+file, []byte(value), 0) }); err != nil {
			t.Fatal(err)
		}
	}
	p.startReady("--egress", fmt.Sprintf("exit#127.137.0.1:%d#%s:8080#any", portEgress, far.IPv4))
	config := m.client(m.issue(time.Hour, "api"))

	// Who has been given an address, and answers on it, is the pod itself. What else there is belongs to nobody, to
	// loopback, or to many.
	targets := []struct {
		address string
		own     bool // where the host has given it to the pod
		peer    *netlab.Host
		decoy   netip.Addr
	}{
		{address: "10.202.0.7", own: true},
		{address: "fd00:202::7", own: true},
		{address: "169.254.9.9", own: true}, // link-local
		{address: "240.0.0.7", own: true},   // reserved
		{address: "64:ff9b::7f00:1", own: true},
		{address: "::127.0.0.1", own: true}, // IPv4-compatible (RFC 4291, 2.5.5.1): an address like any other
		{address: "fe80::9"},                // Envoy knows no interface to it
		{address: "127.0.0.1"},
		{address: "127.0.0.9"},
		{address: "127.137.0.1"},
		{address: "127.255.255.255"},
		{address: "0.0.0.0"},
		{address: "0.0.0.5"},
		{address: "::1"},
		{address: "::"},
		{address: "::ffff:127.0.0.1"},
		{address: "::ffff:0.0.0.0"},
		{address: "::ffff:" + p.IPv4.String()},
		{address: "10.137.0.255"}, // broadcast
		{address: "255.255.255.255"},
		{address: "224.0.0.1"}, // multicast
		{address: "239.1.1.1"},
		{address: "ff02::1"},
		{address: neighbour.IPv4.String(), own: true},
		{address: neighbour.IPv6.String(), own: true},
	}
	for i := range targets {
		target := &targets[i]
		target.peer = netlab.NewHost(t, fmt.Sprintf("peer%d", i))
		target.decoy = detour(t, target.peer, p, netip.MustParseAddr(target.address))
	}
	// try says what the peers got of each target, on all ports.
	try := func() map[string][]string {
		var mu sync.Mutex
		var wg sync.WaitGroup
		all := map[string][]string{}
		for _, target := range targets {
			for _, port := range []uint16{portApp, portInside, portEgress} {
				wg.Go(func() {
					got, _, _ := overTLSIn(target.peer, netip.AddrPortFrom(target.decoy, port), config, 3*time.Second)
					mu.Lock()
					defer mu.Unlock()
					if got != "" {
						all[target.address] = append(all[target.address], got)
					}
				})
			}
		}
		wg.Wait()
		return all
	}
	for _, addr := range p.Addresses() { // the control
		if got, err := speakFirst(far, p.at(addr, portApp), config, ""); got != greeting {
			t.Fatalf("%s answers %q, %v", addr, got, err)
		}
	}
	// The host's doing, as far as the kernel allows it.
	host := func(command func(netip.Addr) []string) {
		for _, target := range targets {
			args := command(netip.MustParseAddr(target.address))
			if out, err := p.Command("ip", args...).CombinedOutput(); err != nil {
				t.Logf("the kernel on ip %s: %s", strings.Join(args, " "), out)
			}
		}
	}
	address := func(do string, more ...string) func(netip.Addr) []string {
		return func(a netip.Addr) []string {
			return append([]string{"addr", do, netip.PrefixFrom(a, a.BitLen()).String(), "dev", "eth0"}, more...)
		}
	}
	route := func(do string) func(netip.Addr) []string {
		return func(a netip.Addr) []string { return []string{"route", do, "local", a.String(), "dev", "lo"} }
	}
	for _, step := range []struct {
		name          string
		before, after func(netip.Addr) []string
	}{
		{"addressed to others", nil, nil},
		{"with the addresses on the pod's interface", address("add", "nodad"), address("del")},
		{"with routes that make the addresses local", route("add"), route("del")},
	} {
		if step.before != nil {
			host(step.before)
		}
		got := try()
		for _, target := range targets {
			var want []string
			if target.own && step.before != nil {
				want = []string{greeting}
			}
			if !slices.Equal(got[target.address], want) {
				t.Errorf("%s, %s: got %q, want %q", step.name, target.address, got[target.address], want)
			}
		}
		if step.after != nil {
			host(step.after)
		}
	}
	if n := reachedInside.Load(); n != 0 {
		t.Errorf("peers reached what the pod keeps to itself %d times", n)
	}
	if n := left.Load(); n != 0 {
		t.Errorf("peers left through the pod's egress %d times", n)
	}
}

// The kernel and the guard let no packet in that is addressed to loopback. Where a rule in the guest redirects the pod's own
// connections to Envoy, the addresses do arrive, and Envoy refuses them by itself.
func TestEnvoyItselfDoesNotConnectToLoopback(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	reached := p.serveInside()
	p.serveFirst(8081)
	nft(t, p.Host, fmt.Sprintf(`
		table inet foreign {
			chain output {
				type nat hook output priority -100
				meta mark 0x52 accept # Envoy's own
				fib daddr type local tcp dport %d redirect to :15006
				fib daddr type local tcp dport 8081 redirect to :15007
			}
		}`, portInside))
	p.startReady("--ingress", "web#8081#false")
	config := m.client(m.issue(time.Hour, "api"))
	addresses := []string{"127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1"}
	for _, addr := range addresses {
		for _, port := range []uint16{portInside, 8081} {
			if got, _, _ := overTLS(p.Host, netip.AddrPortFrom(netip.MustParseAddr(addr), port), config); got != "" {
				t.Errorf("%s port %d: got %q", addr, port, got)
			}
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("loopback was reached %d times", n)
	}
	// The control: without that line of Envoy's, it is.
	p.patch(func(b *bootstrapv3.Bootstrap) {
		for _, l := range b.StaticResources.Listeners {
			list := l.FilterChainMatcher.GetMatcherList()
			if len(list.Matchers) != 2 {
				t.Fatalf("a listener chooses by %d rules, want 2", len(list.Matchers))
			}
			list.Matchers = list.Matchers[:1]
		}
	})
	for _, addr := range addresses[:1] {
		for port, want := range map[uint16]string{portInside: inside, 8081: greeting} {
			if got, _, err := overTLS(p.Host, netip.AddrPortFrom(netip.MustParseAddr(addr), port), config); got != want {
				t.Errorf("the control: %s port %d: got %q, %v", addr, port, got, err)
			}
		}
	}
}

func TestTheProxysOwnPortsAreNobodys(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	apps := map[uint16]*app{}
	for port := uint16(14999); port <= 15100; port++ {
		if port != 15006 && port != 15007 {
			apps[port] = p.serveFirst(int(port))
		}
	}
	p.startReady("--ingress", "web#8080#false", "--egress", "exit#127.137.0.1:11001#exit:8080")
	config := m.client(m.issue(time.Hour, "api"))
	for _, addr := range p.Addresses() {
		for _, port := range []uint16{14999, 15100} { // the controls
			if got, err := speakFirst(peer, p.at(addr, port), config, ""); got != greeting {
				t.Errorf("%s port %d: got %q (%v), want %q", addr, port, got, err, greeting)
			}
		}
		var wg sync.WaitGroup
		for port := uint16(15000); port < 15100; port++ {
			wg.Go(func() {
				if got, _, _ := overTLS(peer, p.at(addr, port), config); got != "" {
					t.Errorf("%s port %d: got %q", addr, port, got)
				}
			})
		}
		wg.Wait()
	}
	for port := uint16(15000); port < 15100; port++ {
		if a := apps[port]; a != nil && a.accepted.Load() != 0 {
			t.Errorf("port %d saw %d connections", port, a.accepted.Load())
		}
	}
	// And there is no other socket of Envoy's: the admin interface is a pipe.
	var open []string
	for line := range strings.Lines(must(t, p.Host, "ss", "-Hltunp")) {
		if fields := strings.Fields(line); strings.Contains(line, fmt.Sprintf("pid=%d,", p.envoy())) {
			open = append(open, fields[0]+" "+fields[4])
		}
	}
	slices.Sort(open)
	if want := []string{"tcp *:15006", "tcp *:15007", "tcp 127.137.0.1:11001"}; !slices.Equal(open, want) {
		t.Errorf("Envoy listens on %q, want %q", open, want)
	}
}
