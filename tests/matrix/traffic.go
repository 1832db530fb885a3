package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"portcullis.dev/portcullis/tests/netlab"
)

// A Wait is how long an attempt may take.
type Wait = time.Duration

// In the lab an answer takes a few milliseconds. What must come has plenty of time; what must not come is waited for long
// enough that a first packet may get lost or the machine be busy.
var (
	patience      = 10 * time.Second
	silence  Wait = 800 * time.Millisecond
)

// An App is an application: it greets with its secret whoever connects, and answers everything with it again. It runs in the
// network of the pod (or of another host), and stands for any server: one that speaks first, or one that only answers.
type App struct {
	Port   uint16
	Secret string
	// Named says that the configuration lets it speak in plaintext.
	Named bool

	network  string
	close    func()
	mu       sync.Mutex
	accepted []netip.AddrPort
	conns    []net.Conn
	received bytes.Buffer
}

// Say makes the application send its secret on every connection that it has, of its own accord.
func (a *App) Say() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		io.WriteString(c, a.Secret+"\n")
	}
}

// From is how many connections (or, for UDP, datagrams) the application got from a host, by its source address. Those that
// Envoy makes come from the pod itself.
func (a *App) From(h *netlab.Host) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, p := range a.accepted {
		if p.Addr() == h.IPv4 || p.Addr() == h.IPv6 {
			n++
		}
	}
	return n
}

// Took says whether the application took a connection from exactly there.
func (a *App) Took(peer netip.AddrPort) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(a.accepted, peer)
}

// Received says whether text reached the application.
func (a *App) Received(text string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return bytes.Contains(a.received.Bytes(), []byte(text))
}

// hangUp forgets all connections. They end when their other ends do.
func (a *App) hangUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		c.Close()
	}
	a.conns = nil
}

// newText is one that nothing has seen yet.
func newText() string { return "text-" + rand.Text() }

func (a *App) note(from net.Addr, data []byte) {
	ap, _ := netip.ParseAddrPort(from.String())
	a.mu.Lock()
	defer a.mu.Unlock()
	if data == nil || a.network == "udp" {
		a.accepted = append(a.accepted, netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port()))
	}
	a.received.Write(data)
}

// App is the application on a port of the pod; network is "tcp" or "udp".
func (l *Lab) App(network string, port uint16) *App {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.apps {
		if a.Port == port && a.network == network {
			return a
		}
	}
	panic(fmt.Sprintf("matrix: no application on %s port %d", network, port))
}

// Serve starts one more application in the pod.
func (l *Lab) Serve(network string, port uint16) *App {
	a := l.ServeOn(l.Pod.Host, network, "", port)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.apps = append(l.apps, a)
	return a
}

// ServeOn starts an application in the network of any host; address "" is every address.
func (l *Lab) ServeOn(h *netlab.Host, network, address string, port uint16) *App {
	a, err := serve(h, network, address, port)
	l.must(err)
	l.cleanup(a.close)
	return a
}

func newApp(network string, port uint16) *App {
	return &App{Port: port, Secret: "secret-" + rand.Text(), network: network}
}

func serve(h *netlab.Host, network, address string, port uint16) (*App, error) {
	a := newApp(network, port)
	at := net.JoinHostPort(address, strconv.Itoa(int(port)))
	if network == "udp" {
		c, err := h.ListenPacket(network, at)
		if err != nil {
			return nil, err
		}
		a.close = func() { c.Close() }
		go func() {
			b := make([]byte, 1500)
			for {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				a.note(from, b[:n])
				c.WriteTo([]byte(a.Secret), from)
			}
		}()
		return a, nil
	}
	ln, err := h.Listen(network, at)
	if err != nil {
		return nil, err
	}
	a.close = func() { ln.Close() }
	go a.serveTCP(ln)
	return a, nil
}

func (a *App) serveTCP(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		a.note(c.RemoteAddr(), nil)
		a.mu.Lock()
		a.conns = append(a.conns, c)
		a.mu.Unlock()
		go func() {
			defer c.Close()
			io.WriteString(c, a.Secret+"\n")
			b := make([]byte, 4096)
			for {
				n, err := c.Read(b)
				if n > 0 {
					a.note(c.RemoteAddr(), b[:n])
					io.WriteString(c, a.Secret+"\n")
				}
				if err != nil {
					return
				}
			}
		}()
	}
}

// serveApps starts what every lab has: applications in the pod, others on the peer for the pod to call, and a name server.
func (l *Lab) serveApps() error {
	for _, s := range []struct {
		network string
		port    uint16
		named   bool
	}{
		{"tcp", portApp, false},
		{"udp", portApp, false},
		{"tcp", portNoClientAuth, false},
		{"tcp", portPlaintext, true},
		{"udp", portPlaintextUDP, true},
	} {
		a, err := serve(l.Pod.Host, s.network, "", s.port)
		if err != nil {
			return err
		}
		a.Named = s.named
		l.cleanup(a.close)
		l.apps = append(l.apps, a)
	}
	var err error
	if l.outsideTCP, err = serve(l.Peer, "tcp", "", portOutside); err != nil {
		return err
	}
	l.cleanup(l.outsideTCP.close)
	if l.outsideUDP, err = serve(l.Peer, "udp", "", portOutside); err != nil {
		return err
	}
	l.cleanup(l.outsideUDP.close)
	return l.room.do(func() error {
		dns, err := l.room.lab.ServeDNS()
		if err != nil {
			return err
		}
		l.cleanup(dns.Close)
		dns.Set("outside", l.Peer.IPv4, l.Peer.IPv6)
		return nil
	})
}

// TCP connects from the peer to a port of the pod in plaintext, sends a line and wants a byte of the application.
func TCP(port uint16) Attempt {
	return Attempt{fmt.Sprintf("plain TCP to port %d", port), func(l *Lab, wait Wait) string {
		return l.AskTCP(l.Peer, netip.AddrPortFrom(l.PodAddr(), port), l.App("tcp", port), wait)
	}}
}

// UDP sends the application on a port of the pod a datagram from the peer, and wants its answer.
func UDP(port uint16) Attempt {
	return Attempt{fmt.Sprintf("UDP to port %d", port), func(l *Lab, wait Wait) string {
		return l.AskUDP(l.Peer, netip.AddrPortFrom(l.PodAddr(), port), l.App("udp", port), wait)
	}}
}

// At makes the attempts TCP and UDP at another address than the pod's first.
func At(address func(*Lab) netip.Addr, network string, port uint16) Attempt {
	return Attempt{fmt.Sprintf("%s to port %d of another address", network, port), func(l *Lab, wait Wait) string {
		to := netip.AddrPortFrom(address(l), port)
		if network == "udp" {
			return l.AskUDP(l.Peer, to, l.App(network, port), wait)
		}
		return l.AskTCP(l.Peer, to, l.App(network, port), wait)
	}}
}

// MutualTLS connects as a member of the mesh from the peer to a port of the pod, and wants a byte of the application.
func MutualTLS(port uint16) Attempt {
	return Attempt{fmt.Sprintf("mutual TLS to port %d", port), func(l *Lab, wait Wait) string {
		return l.AskTLS(l.Peer, netip.AddrPortFrom(l.PodAddr(), port), l.App("tcp", port), l.proxy.client(true), wait)
	}}
}

// StrangersTLS is MutualTLS without a certificate.
func StrangersTLS(port uint16) Attempt {
	return Attempt{fmt.Sprintf("TLS without a certificate to port %d", port), func(l *Lab, wait Wait) string {
		return l.AskTLS(l.Peer, netip.AddrPortFrom(l.PodAddr(), port), l.App("tcp", port), l.proxy.client(false), wait)
	}}
}

// Handshake connects from the peer to a port of the pod, and wants the TCP handshake to finish, whatever then comes.
func Handshake(port uint16) Attempt {
	return Attempt{fmt.Sprintf("TCP handshake with port %d", port), func(l *Lab, wait Wait) string {
		c, err := dial(l.Peer, "tcp", netip.AddrPortFrom(l.PodAddr(), port), wait)
		if err != nil {
			return ""
		}
		c.Close()
		return "a finished handshake"
	}}
}

// PodTCP connects from the pod to an application on the peer.
func PodTCP() Attempt {
	return Attempt{"the pod's own TCP", func(l *Lab, wait Wait) string {
		return l.AskTCP(l.Pod.Host, netip.AddrPortFrom(l.PeerAddr(), portOutside), l.outsideTCP, wait)
	}}
}

// PodLoopback connects inside the pod, over loopback, to an application there: at loopback's address and at eth0's.
func PodLoopback(port uint16) Attempt {
	return Attempt{fmt.Sprintf("loopback to port %d", port), func(l *Lab, wait Wait) string {
		loopback := netip.MustParseAddr("127.0.0.1")
		if l.Family == IPv6 {
			loopback = netip.IPv6Loopback()
		}
		for _, addr := range []netip.Addr{loopback, l.PodAddr()} {
			if l.AskTCP(l.Pod.Host, netip.AddrPortFrom(addr, port), l.App("tcp", port), wait) == "" {
				return ""
			}
		}
		return "the application's bytes"
	}}
}

// PodUDP asks an application on the peer from the pod.
func PodUDP() Attempt {
	return Attempt{"the pod's own UDP", func(l *Lab, wait Wait) string {
		return l.AskUDP(l.Pod.Host, netip.AddrPortFrom(l.PeerAddr(), portOutside), l.outsideUDP, wait)
	}}
}

// PodDNS asks the switch's name server from the pod, as its containers' resolvers do.
func PodDNS() Attempt {
	return Attempt{"the pod's own DNS", func(l *Lab, wait Wait) string {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return l.Pod.Dial(ctx, "udp", netip.AddrPortFrom(l.GatewayAddr(), 53).String())
		}}
		found, err := resolver.LookupNetIP(ctx, "ip", "outside.default.svc.cluster.local.")
		if err != nil || len(found) == 0 {
			return ""
		}
		return "an address"
	}}
}

// AskTCP connects from a host to the application a at an address. What it returns is a byte that came back, or that the
// application took the connection; "" is neither.
func (l *Lab) AskTCP(from *netlab.Host, to netip.AddrPort, a *App, wait Wait) string {
	before := a.From(from)
	deadline := time.Now().Add(wait)
	c, err := dial(from, "tcp", to, wait)
	if err == nil {
		defer c.Close()
		c.SetDeadline(deadline)
		fmt.Fprintf(c, "hello\n")
		if got := readSecret(c, a); got != "" {
			return got
		}
	}
	if a.From(from) > before {
		return "the application took the connection"
	}
	return ""
}

// AskUDP is AskTCP for datagrams, which are repeated.
func (l *Lab) AskUDP(from *netlab.Host, to netip.AddrPort, a *App, wait Wait) string {
	before := a.From(from)
	c, err := dial(from, "udp", to, wait)
	if err != nil {
		return ""
	}
	defer c.Close()
	b := make([]byte, 1500)
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); <-again.C {
		c.Write([]byte("hello\n"))
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := c.Read(b); err == nil && bytes.Contains(b[:n], []byte(a.Secret)) {
			return "the application's answer"
		}
	}
	if a.From(from) > before {
		return "the application got the datagram"
	}
	return ""
}

// AskTLS is AskTCP within TLS.
func (l *Lab) AskTLS(from *netlab.Host, to netip.AddrPort, a *App, config *tls.Config, wait Wait) string {
	c, err := dial(from, "tcp", to, wait)
	if err != nil {
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	t := tls.Client(c, config)
	fmt.Fprintf(t, "hello\n")
	return readSecret(t, a)
}

func readSecret(c net.Conn, a *App) string {
	var got bytes.Buffer
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		got.Write(b[:n])
		if bytes.Contains(got.Bytes(), []byte(a.Secret)) {
			return "the application's bytes"
		}
		if err != nil {
			return ""
		}
	}
}

func dial(from *netlab.Host, network string, to netip.AddrPort, wait Wait) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	return from.Dial(ctx, network, to.String())
}
