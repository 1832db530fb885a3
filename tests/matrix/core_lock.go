package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
)

// lockRows are about the egress lock, which a pod may ask for: what the pod itself may send.
func lockRows() []Row {
	rows := []Row{
		{
			Name:     "egress-lock-starting",
			MustNot:  "plaintext leaves the pod while its mesh proxy is still being started",
			Weakness: lockOpen,
			Enter:    func(l *Lab) { l.startHalfway("--egress-policy", "closed") },
			Blocked:  own,
			Works:    []Attempt{PodLoopback(portApp)},
		},
		{
			Name: "egress-lock-live",
			MustNot: "anything leaves the pod but Envoy's connections to egress entries and answers to what was let in; or these do " +
				"not work",
			Weakness: lockOpen,
			Enter:    (*Lab).startLocked,
			Blocked:  own,
			Works: with(named, []Attempt{
				MutualTLS(portApp), StrangersTLS(portNoClientAuth), PodLoopback(portApp), throughEgress,
			}),
		},
		{
			Name:     "egress-lock-proxy-killed",
			MustNot:  "the lock goes with the mesh proxy",
			Weakness: lockOpen,
			Enter:    func(l *Lab) { l.startLocked(); l.KillProxy() },
			Blocked:  own,
			Works:    with(named, []Attempt{PodLoopback(portApp)}),
		},
		{
			Name:     "egress-lock-but-for-dns",
			MustNot:  "the lock that admits DNS admits more than port 53, or not even that",
			Weakness: lockOpen,
			Enter:    func(l *Lab) { l.StartReady("--egress-policy", "closed,dns") },
			Blocked:  []Attempt{PodTCP(), PodUDP()},
			Works:    []Attempt{PodDNS()},
		},
		{
			Name:     "egress-lock-old-connections",
			MustNot:  "a connection that the pod opened before the lock goes on",
			Control:  "it does before the lock",
			Weakness: lockOpen,
			Run: func(l *Lab) {
				var olds []Attempt
				for _, network := range []string{"tcp", "udp"} {
					c, err := dial(l.Pod.Host, network, netip.AddrPortFrom(l.PeerAddr(), portOutside), patience)
					l.must(err)
					defer c.Close()
					app := map[string]*App{"tcp": l.outsideTCP, "udp": l.outsideUDP}[network]
					olds = append(olds, Attempt{"an old connection, " + network, func(l *Lab, wait Wait) string {
						return l.reaches(c, app, wait)
					}})
				}
				for _, o := range olds {
					l.Control(o)
				}
				l.StartReady("--egress-policy", "closed")
				l.Blocked(olds...)
			},
		},
		{
			Name:     "egress-lock-address-moved",
			MustNot:  "under the lock, an application's answer follows an address of a connection inside the pod onto the wire",
			Notices:  "the wire is watched for the application's secret",
			Control:  "without the guard it does",
			Weakness: insideLeaves,
			Run: func(l *Lab) {
				movedInside(l, l.SpareAddr(), l.CloseLocked, func() { l.RaiseLocked(namedPorts) })
			},
		},
		{
			Name:     "egress-lock-address-moved-unmarked",
			MustNot:  "the same, when a foreign rule has taken the mark from the connection",
			Notices:  "the wire is watched for the application's secret",
			Control:  "without the guard it does",
			Families: []Family{IPv6}, // by IPv4 the kernel itself finds no route for a source that is not its own
			Weakness: insideLeaves,
			Run: func(l *Lab) {
				l.clearMarks()
				movedInside(l, l.PodAddr(), l.CloseLocked, func() { l.RaiseLocked(namedPorts) })
			},
		},
		{
			Name:     "egress-lock-drops-are-counted",
			MustNot:  "the lock keeps something in, by any of its rules, that podvm-guard status does not tell of",
			Notices:  "the counter of each dropping rule before and after a packet for it",
			Weakness: dropsUncounted,
			Run: func(l *Lab) {
				for _, enter := range []func(){l.CloseLocked, func() { l.RaiseLocked(namedPorts) }} {
					enter()
					l.counted("locked", "output", "0x00000052", l.sendDecrypted)
					l.counted("locked", "output", "fin,syn,rst,ack", l.oldAnswer)
					l.counted("locked", "output", "counter drop", func() { l.Blocked(PodUDP()) })
				}
				l.RemoveGuard()
				l.Control(PodUDP())
			},
		},
		{
			Name:     "egress-lock-in-both-states",
			MustNot:  "one of the two states lets more out than the other, or stops what both must let out",
			Weakness: lockOpen,
			Run: func(l *Lab) {
				for _, enter := range []func(){l.CloseLocked, func() { l.RaiseLocked(namedPorts) }} {
					enter()
					l.Blocked(PodTCP(), PodUDP())
					l.Works(PodDNS(), PodLoopback(portApp), markedTCP)
				}
				l.Works(named...)
				l.RemoveGuard()
				l.Control(PodTCP())
				l.Control(PodUDP())
			},
		},
	}
	for i := range rows {
		rows[i].Group = "The egress lock"
		if rows[i].Notices == "" {
			rows[i].Notices = "applications and a name server outside count what reaches them; answers come back"
		}
		if rows[i].Control == "" {
			rows[i].Control = "the same leaves the pod once the guard's table is deleted"
		}
	}
	return rows
}

const portOutsideTLS uint16 = 9443

// startLocked starts the mesh proxy with the lock and an egress entry that leads to a member of the mesh on the peer.
func (l *Lab) startLocked() {
	l.StartReady("--egress-policy", "closed", "--egress",
		fmt.Sprintf("peer#127.137.0.1:8081#%s#member", netip.AddrPortFrom(l.PeerAddr(), portOutsideTLS)))
	ln, err := l.Peer.Listen("tcp", fmt.Sprintf(":%d", portOutsideTLS))
	l.must(err)
	l.cleanup(func() { ln.Close() })
	l.outsideTLS = newApp("tcp", portOutsideTLS)
	go l.outsideTLS.serveTCP(tls.NewListener(ln, &tls.Config{
		Certificates: []tls.Certificate{l.proxy.member}, ClientCAs: l.proxy.trust, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13,
	}))
}

// throughEgress calls the egress entry on loopback, as a workload does.
var throughEgress = Attempt{"a call through Envoy's egress listener", func(l *Lab, wait Wait) string {
	return l.AskTCP(l.Pod.Host, netip.MustParseAddrPort("127.137.0.1:8081"), l.outsideTLS, wait)
}}

// reaches sends a text that an application knows nothing of yet, and wants it there.
func (l *Lab) reaches(c net.Conn, app *App, wait Wait) string {
	text := newText()
	io.WriteString(c, text)
	if within(wait, func() bool { return app.Received(text) }) {
		return "the text at the application"
	}
	return ""
}

// movedInside is a connection inside the pod, from its first address to another or the same, the first of which moves away.
func movedInside(l *Lab, to netip.Addr, enterClosed, enterMesh func()) {
	thief := l.NewHost("thief")
	l.giveSecondAddress()
	// A socket keeps the route it has, here loopback's, until it has sent something again in vain, as often as this.
	l.Sysctl("ipv4/tcp_retries1", "1")
	app := l.App("tcp", portApp)
	for _, state := range []struct {
		name  string
		enter func()
	}{{"closed", enterClosed}, {"mesh", enterMesh}, {"open", l.RemoveGuard}} {
		state.enter()
		var c net.Conn
		l.must(l.Pod.Do(func() (err error) {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.PodAddr(), 0)), Timeout: patience}
			c, err = d.Dial("tcp", netip.AddrPortFrom(to, portApp).String())
			return err
		}))
		answer := Attempt{"an answer of the application, to an address that has moved away", func(l *Lab, wait Wait) string {
			mark := l.Wire.Mark()
			app.Say()
			if _, ok := l.Wire.Await(mark, wait, func(p Packet) bool { return strings.Contains(string(p.Payload), app.Secret) }); ok {
				return "the application's bytes"
			}
			return ""
		}}
		l.Works(Attempt{"a connection inside the pod", func(l *Lab, wait Wait) string { return l.reaches(c, app, wait) }})
		l.moveAddress(l.Pod.Host, thief)
		if state.name == string(guard.Opened) {
			l.Control(answer)
		} else {
			l.BlockedLong(answer)
		}
		l.moveAddress(thief, l.Pod.Host)
		app.hangUp()
		c.Close()
	}
}

// clearMarks adds a foreign rule that takes every mark from every connection, before the guard's output chain looks.
func (l *Lab) clearMarks() {
	l.InPod(`nft -f - <<END
table inet clears {
	chain out { type filter hook output priority -10; ct mark set 0; }
}
END`)
}

// marked is a dialer whose sockets carry a mark.
func marked(mark int) net.Dialer {
	return net.Dialer{Timeout: patience, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
		}), err)
	}}
}

// markedTCP connects to the peer's application as Envoy's egress side does.
var markedTCP = Attempt{"TCP with Envoy's egress mark", func(l *Lab, _ Wait) string {
	before := l.outsideTCP.From(l.Pod.Host)
	d := marked(guard.MarkEgress)
	l.must(l.Pod.Do(func() error {
		c, err := d.Dial("tcp", netip.AddrPortFrom(l.PeerAddr(), portOutside).String())
		if err == nil {
			c.Close()
		}
		return nil // seen below
	}))
	if within(silence, func() bool { return l.outsideTCP.From(l.Pod.Host) > before }) {
		return "the application took the connection"
	}
	return ""
}}

// sendDecrypted sends a datagram out of the pod from a socket with the mark of Envoy's decrypted side.
func (l *Lab) sendDecrypted() {
	d := marked(guard.MarkDecrypted)
	l.must(l.Pod.Do(func() error {
		c, err := d.Dial("udp", netip.AddrPortFrom(l.PeerAddr(), portOutside).String())
		if err != nil {
			return err
		}
		defer c.Close()
		c.Write([]byte("decrypted")) // fails at once where it is dropped
		return nil
	}))
}
