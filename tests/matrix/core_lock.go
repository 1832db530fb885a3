package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"

	"portcullis.dev/portcullis/guest/guard"
)

// lockRows are about the egress lock, which a pod may ask for: what the pod itself may send.
func lockRows() []Row {
	rows := []Row{
		{
			Name:     "egress-lock-starting",
			MustNot:  "plaintext leaves the pod while its mesh proxy is still being started",
			Weakness: lockOpen,
			Enter: func(l *Lab) {
				l.slowEnvoy()
				l.StartProxy("--envoy", "/shared/slow-envoy", "--egress-policy", "closed")
				l.Await("an Envoy that starts slowly", func() bool { return l.Runs("slow-envoy") })
			},
			Blocked: own,
			Works:   []Attempt{PodLoopback(portApp)},
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
	}
	for i := range rows {
		rows[i].Group = "The egress lock"
		rows[i].Notices = "applications and a name server outside count what reaches them; answers come back"
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

// movedInside is a connection inside the pod, from its first address to its second, the first of which moves away.
func movedInside(l *Lab) {
	thief := l.NewHost("thief")
	l.giveSecondAddress()
	app := l.App("tcp", portApp)
	for _, state := range []struct {
		name  string
		enter func()
	}{{"closed", l.Close}, {"mesh", func() { l.Raise(namedPorts) }}, {"open", l.RemoveGuard}} {
		state.enter()
		var c net.Conn
		l.must(l.Pod.Do(func() (err error) {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.PodAddr(), 0)), Timeout: patience}
			c, err = d.Dial("tcp", netip.AddrPortFrom(l.SpareAddr(), portApp).String())
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
			l.Blocked(answer)
		}
		l.moveAddress(thief, l.Pod.Host)
		app.hangUp()
		c.Close()
	}
}
