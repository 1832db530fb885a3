package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

// tcpRows are what can be done with single segments, by someone who owns the cable, and what conntrack makes of it.
func tcpRows() []Row {
	var rows []Row
	for _, cookies := range []string{"0", "1", "2"} {
		r := Row{
			Name: "syncookies-" + cookies,
			MustNot: "with tcp_syncookies=" + cookies + " Envoy is killed between its SYN-ACK and the client's ACK, and the ACK with data " +
				"reaches the application that listens on the same port",
			Weakness: everythingComesIn,
			Run: func(l *Lab) {
				l.Sysctl("ipv4/tcp_syncookies", cookies)
				l.StartReady()
				// The application's listener counts as overflowed with 2, after a connection of Envoy's: it takes cookies.
				l.Works(MutualTLS(portApp))
				c := l.Craft(40000, portApp)
				if !c.SYN(patience) {
					l.Brokenf("Envoy did not answer a crafted SYN")
				}
				l.KillProxy()
				c.complete(silence)
				l.RemoveGuard()
				l.Control(crafted(40001, portApp))
			},
		}
		if cookies == "2" {
			r.Weakness = establishedIsEnough
		}
		rows = append(rows, r)
	}
	rows = append(rows, []Row{
		{
			Name: "ghost-of-a-connection",
			MustNot: "a peer lets the proxy close its connection and stays silent until even FIN_WAIT2 is over, and what it then sends " +
				"from the same port, established as conntrack has it, reaches the application",
			Weakness: establishedIsEnough,
			Run:      ghost,
		},
		{
			Name: "simultaneous-open",
			MustNot: "the pod once called out from a port and gave up; the one who never answered now sends a bare SYN from there, an answer as " +
				"conntrack has it, and reaches what listens on that port meanwhile",
			Weakness: bareSYNAnswers,
			Run:      simultaneousOpen,
		},
		{
			Name: "last-ack-to-another-listener",
			MustNot: "the ACK that ends a syncookie handshake with the proxy is led, by a foreign rule, to another transparent listener in the " +
				"pod, which takes the cookie for its own",
			Notices:  "that listener greets who comes",
			Control:  "without the guard it greets the same peer",
			Weakness: lastACKAnywhere,
			Run:      lastACKElsewhere,
		},
		{
			Name:     "answers-to-nothing",
			MustNot:  "segments that look like answers (SYN-ACK, ACK, data, FIN, RST) come in without a question and are themselves answered",
			Notices:  "the wire is watched for any segment that the pod sends back, resets too",
			Control:  "without the guard the same segments are answered with resets",
			Weakness: inAndOut,
			Run: func(l *Lab) {
				answered := Attempt{"a segment out of nowhere", func(l *Lab, wait Wait) string {
					for i, flags := range []byte{flagSYN | flagACK, flagACK, flagACK | flagPSH, flagFIN | flagACK, 0, flagFIN | flagPSH} {
						c := l.Craft(uint16(41000+i), portApp)
						c.ack = 77
						c.Send(flags, map[bool]string{true: "data"}[flags&flagPSH != 0])
						if p, ok := c.Answer(0, wait/4); ok {
							return fmt.Sprintf("an answer with flags %#x to one with flags %#x", p.Flags, flags)
						}
					}
					return ""
				}}
				l.Blocked(answered)
				l.Raise(namedPorts)
				l.Blocked(answered)
				l.RemoveGuard()
				l.Control(answered)
			},
		},
		{
			Name:     "opened-before-arming",
			MustNot:  "a connection that a peer had opened before the gate was closed goes on",
			Control:  "it does before the gate is closed",
			Weakness: everythingComesIn,
			Run:      func(l *Lab) { openedBefore(l, "0") },
		},
		{
			Name: "opened-before-arming-picked-up",
			MustNot: "a connection from before goes on because the application speaks on it and conntrack, with tcp_loose back at its " +
				"default, takes that for a connection of the guest",
			Control:  "it does before the gate is closed",
			Weakness: pickedUp,
			Run:      func(l *Lab) { openedBefore(l, "1") },
		},
		{
			Name:     "loopback-from-before-arming",
			MustNot:  "connections inside the pod are cut when the gate is closed",
			Notices:  "the application on the other end gets what is sent afterwards",
			Control:  "the same connection works before the gate is closed",
			Weakness: noLoopback,
			Run: func(l *Lab) {
				l.Open()
				c, err := dial(l.Pod.Host, "tcp", netip.AddrPortFrom(l.PodAddr(), portApp), patience)
				l.must(err)
				defer c.Close()
				exchange := Attempt{"a connection inside the pod", func(l *Lab, wait Wait) string { return l.reaches(c, l.App("tcp", portApp), wait) }}
				l.Control(exchange)
				l.Close()
				l.Sysctl("netfilter/nf_conntrack_tcp_loose", "1")
				l.Works(exchange)
				l.Raise(namedPorts)
				l.Works(exchange)
			},
		},
		{
			Name:     "proxy-ports-dialled",
			MustNot:  "a peer dials 15006 or 15007 itself and is answered",
			Notices:  "the TCP handshake would finish",
			Control:  "with Envoy alive and the table deleted it does",
			Weakness: proxyDialled,
			Enter:    func(l *Lab) { l.StartReady() },
			Run: func(l *Lab) {
				both := []Attempt{Handshake(guard.PortIngress), Handshake(guard.PortIngressNoClientAuth)}
				l.Blocked(both...)
				l.Stop("meshproxy")
				l.DeleteTable()
				for _, a := range both {
					l.Control(a)
				}
			},
		},
		{
			Name:     "admin-port-dialled",
			MustNot:  "a peer reads the proxy's admin view without a certificate of the mesh",
			Notices:  "it would get an HTTP answer",
			Control:  "a member of the mesh gets one through mutual TLS; everyone does once the port is named plaintext",
			Weakness: everythingComesIn,
			Enter:    func(l *Lab) { l.StartReady("--admin-port", fmt.Sprint(portAdmin)) },
			Run: func(l *Lab) {
				l.Blocked(adminView(nil))
				l.Works(adminView(l.proxy.client(true)))
				l.KillProxy()
				l.StartReady("--admin-port", fmt.Sprint(portAdmin), "--ingress", fmt.Sprintf("admin#%d#true", portAdmin))
				l.Control(adminView(nil))
			},
		},
		{
			Name: "address-moved-away",
			MustNot: "the pod's address is moved to another host while Envoy is stopped, and Envoy's connection to the application carries " +
				"the decrypted bytes there",
			Notices:  "that host accepts on the application's port; the wire is watched for the text and for a SYN",
			Control:  "with that one rule deleted, the same Envoy's SYN is seen on the wire",
			Weakness: decryptedLeaves,
			Run:      movedAway,
		},
		{
			Name: "address-of-loopback-moved-away",
			MustNot: "an address between two ends of a connection inside the pod is moved to another host, and what the application " +
				"answers follows it onto the wire",
			Control:  "without the guard it does",
			Weakness: insideLeaves,
			Run:      func(l *Lab) { movedInside(l, l.SpareAddr(), l.Close, func() { l.Raise(namedPorts) }) },
		},
		{
			Name: "address-of-loopback-moved-away-unmarked",
			MustNot: "the same, when a foreign rule has taken the mark from the connection by which the guard would know that it " +
				"began inside",
			Control: "without the guard it does",
			// By IPv4 the kernel itself finds no route for a source that is not its own.
			Families: []Family{IPv6},
			Weakness: insideLeaves,
			Run: func(l *Lab) {
				l.clearMarks()
				movedInside(l, l.PodAddr(), l.Close, func() { l.Raise(namedPorts) })
			},
		},
	}...)
	for i := range rows {
		rows[i].Group = "TCP, a segment at a time"
		if rows[i].Notices == "" {
			rows[i].Notices = "the application counts connections; the wire is watched for the pod's answers and secrets"
		}
		if rows[i].Control == "" {
			rows[i].Control = "without the guard the same segments make a connection with the application"
		}
	}
	return rows
}

const portAdmin uint16 = 9901

// complete sends the last ACK of a handshake and data behind it, some times, and wants silence: no data, and nothing at the
// application. A reset is not a byte of an application; what is left of a dead listener may send one.
func (c *Conversation) complete(wait Wait) {
	l := c.lab
	for range 3 {
		c.Send(flagACK, "")
		c.Send(flagACK|flagPSH, "plaintext")
		if p, ok := l.Wire.Await(c.mark, wait/3, func(p Packet) bool {
			return p.From == c.To && p.To == c.From && (len(p.Payload) > 0 || p.Flags&flagSYN != 0)
		}); ok {
			l.Failf("an answer with flags %#x and %d bytes came back", p.Flags, len(p.Payload))
		}
	}
	if a := l.App("tcp", c.To.Port()); a.Took(c.From) || a.Received("plaintext") {
		l.Failf("the application took the connection")
	}
}

// crafted makes a whole connection by hand, and wants a byte of the application.
func crafted(from, to uint16) Attempt {
	return Attempt{"a crafted connection", func(l *Lab, wait Wait) string {
		return l.Craft(from, to).whole(wait)
	}}
}

// whole goes on from nothing to a byte of the application.
func (c *Conversation) whole(wait Wait) string {
	if !c.SYN(wait) {
		return ""
	}
	c.Send(flagACK, "")
	c.Send(flagACK|flagPSH, "plaintext")
	l := c.lab
	a := l.App("tcp", c.To.Port())
	if _, ok := l.Wire.Await(c.mark, wait, func(p Packet) bool {
		return p.From == c.To && p.To == c.From && strings.Contains(string(p.Payload), a.Secret)
	}); ok {
		return "the application's bytes"
	}
	return ""
}

func ghost(l *Lab) {
	const port = 42000
	l.Sysctl("ipv4/tcp_fin_timeout", "1")
	l.Raise(namedPorts)
	stop := l.standIn(guard.PortIngress, guard.MarkIngress)
	var c net.Conn
	l.must(l.Peer.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}, Timeout: patience}
		c, err = d.Dial("tcp", netip.AddrPortFrom(l.PodAddr(), portApp).String())
		return err
	}))
	defer c.Close()
	if b, err := io.ReadAll(c); string(b) != standInSecret {
		l.Brokenf("the stand-in said %q, %v", b, err) // and has closed: this end is in CLOSE_WAIT, and says nothing more
	}
	stop()
	l.Await("the end of FIN_WAIT2", func() bool { return !l.podKnows(port) })
	// Conntrack still knows the connection, and it is established there.
	out := l.InPod("cat /proc/net/nf_conntrack 2>/dev/null || true")
	if out != "" && !strings.Contains(out, fmt.Sprint("sport=", port)) {
		l.Brokenf("conntrack has forgotten the connection:\n%s", out)
	}
	again := Attempt{"the ghost", func(l *Lab, wait Wait) string {
		ghost := l.Craft(port, portApp)
		ghost.seq = 0x70000000 // far from what the kernel of the peer last used
		ghost.ack = 1
		ghost.Send(flagACK|flagPSH, "plaintext")
		if p, ok := ghost.Answer(0, wait/3); ok && p.Flags&flagRST == 0 {
			return fmt.Sprintf("an answer with flags %#x to data", p.Flags)
		}
		for range 2 { // conntrack drops what it takes for a duplicate, once
			if got := ghost.whole(wait / 3); got != "" {
				return got
			}
		}
		return ""
	}}
	l.BlockedLong(again)
	l.Lower()
	l.BlockedLong(again)
	l.RemoveGuard()
	l.Control(again)
}

// podKnows says whether the pod has a TCP socket, in any state, with a peer's port.
func (l *Lab) podKnows(peer uint16) bool {
	found := false
	l.must(l.Pod.Do(func() error {
		for _, table := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line) // sl local_address rem_address
				found = found || len(f) > 2 && strings.HasSuffix(f[2], fmt.Sprintf(":%04X", peer))
			}
		}
		return nil
	}))
	return found
}

func simultaneousOpen(l *Lab) {
	abandoned := func(podPort, peerPort uint16) Attempt {
		l.Mute(peerPort)
		l.must(l.Pod.Do(func() error {
			d := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(podPort)}, Timeout: silence / 4}
			if c, err := d.Dial("tcp", netip.AddrPortFrom(l.PeerAddr(), peerPort).String()); err == nil {
				c.Close()
				return fmt.Errorf("a mute port answered")
			}
			return nil
		}))
		l.Serve("tcp", podPort)
		return Attempt{fmt.Sprintf("a bare SYN to abandoned port %d", podPort), func(l *Lab, wait Wait) string {
			got := l.Craft(peerPort, podPort).whole(wait)
			if got == "" && l.podKnows(peerPort) {
				return "a half-open connection in the pod, whose SYN-ACK was stopped"
			}
			return got
		}}
	}
	inClosed := abandoned(45001, 9101)
	l.Blocked(inClosed)
	l.Raise(namedPorts)
	inMesh := abandoned(45002, 9102)
	l.Blocked(inMesh)
	l.RemoveGuard()
	l.Control(inClosed)
	l.Control(inMesh)
}

// lastACKElsewhere has another transparent proxy in the pod, as some CNIs bring, with a rule that leads it everything but SYNs.
func lastACKElsewhere(l *Lab) {
	const other = 7777
	l.Sysctl("ipv4/tcp_syncookies", "2")
	l.Raise(namedPorts)
	l.standInSilently(guard.PortIngress, guard.MarkIngress)
	l.standInSilently(guard.PortIngressNoClientAuth, guard.MarkIngressNoClientAuth)
	l.standIn(other, 0)
	l.InPod(fmt.Sprintf(`nft -f - <<END
table inet acks {
	chain c {
		type filter hook prerouting priority -140;
		meta iiftype != loopback tcp flags & syn == 0 tproxy to :%d;
	}
}
END`, other))
	// A listener that has sent no cookies in the last minute believes in none (tcp_synq_no_recent_overflow).
	c, err := dial(l.Pod.Host, "tcp", netip.AddrPortFrom(l.PodAddr(), other), patience)
	l.must(err)
	c.Close()
	led := func(port uint16) Attempt {
		return Attempt{fmt.Sprintf("a last ACK to port %d", port), func(l *Lab, wait Wait) string {
			if l.reads(netip.AddrPortFrom(l.PodAddr(), port), standInSecret, wait) {
				return "another listener's greeting"
			}
			return ""
		}}
	}
	l.Blocked(led(portApp), led(portNoClientAuth))
	l.RemoveGuard()
	l.Control(led(portApp))
	l.Control(led(portNoClientAuth))
}

func openedBefore(l *Lab, loose string) {
	l.Open()
	c, err := dial(l.Peer, "tcp", netip.AddrPortFrom(l.PodAddr(), portApp), patience)
	l.must(err)
	defer c.Close()
	app := l.App("tcp", portApp)
	goesOn := Attempt{"the old connection", func(l *Lab, wait Wait) string {
		mark := l.Wire.Mark()
		app.Say() // the application speaks first, so that what comes then looks like an answer
		if _, ok := l.Wire.Await(mark, wait/2, func(p Packet) bool { return strings.Contains(string(p.Payload), app.Secret) }); ok {
			return "the application's bytes"
		}
		return l.reaches(c, app, wait/2)
	}}
	l.Control(goesOn)
	l.Close()
	l.Sysctl("netfilter/nf_conntrack_tcp_loose", loose)
	l.Blocked(goesOn)
	l.Raise(namedPorts)
	l.Sysctl("netfilter/nf_conntrack_tcp_loose", loose)
	l.Blocked(goesOn)
}

// adminView asks for /stats, over TLS when config is given, and wants an HTTP answer.
func adminView(config *tls.Config) Attempt {
	return Attempt{"the admin view", func(l *Lab, wait Wait) string {
		c, err := dial(l.Peer, "tcp", netip.AddrPortFrom(l.PodAddr(), portAdmin), wait)
		if err != nil {
			return ""
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(wait))
		if config != nil {
			c = tls.Client(c, config)
		}
		io.WriteString(c, "GET /stats HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")
		b := make([]byte, 8)
		io.ReadFull(c, b)
		if string(b) == "HTTP/1.1" {
			return "an HTTP answer"
		}
		return ""
	}}
}

// movedAway has a member of the mesh finish its handshake with a stopped Envoy, and moves the pod's address before Envoy
// goes on: it then connects to where the peer meant to go, and that is another host now.
func movedAway(l *Lab) {
	const text = "decrypted-text"
	thief := l.NewHost("thief")
	try := func(wait Wait) string {
		mark := l.Wire.Mark()
		member := l.halfway(l.proxy.client(true))
		l.Stop("envoy")
		member.finish(text)
		l.moveAddress(l.Pod.Host, thief)
		stolen := l.ServeOn(thief, "tcp", "", portApp)
		l.Signal("envoy", syscall.SIGCONT)
		// Envoy connects from an address of its own choice to the one that it thinks is the pod's.
		_, sent := l.Wire.Await(mark, wait, func(p Packet) bool {
			return p.Protocol == unix.IPPROTO_TCP && p.To == netip.AddrPortFrom(l.PodAddr(), portApp) && p.Flags&(flagSYN|flagACK) == flagSYN &&
				p.From.Addr() != l.PeerAddr()
		})
		member.Close()
		stolen.close()
		l.moveAddress(thief, l.Pod.Host)
		switch {
		case stolen.Received(text):
			return "the decrypted text at another host"
		case l.Wire.Saw(mark, text):
			return "the decrypted text on the wire"
		case sent:
			return "a SYN of Envoy's to another host"
		}
		return ""
	}
	l.giveSecondAddress()
	l.StartReady()
	l.Works(MutualTLS(portApp))
	l.Blocked(Attempt{"Envoy's connection to the application", func(_ *Lab, wait Wait) string { return try(wait) }})
	l.Works(MutualTLS(portApp))
	// The control keeps the rules that bring the peer to Envoy, and leaves out the one that this row is about. The mesh proxy,
	// which would put it back, is stopped.
	l.Stop("meshproxy")
	l.InPod(`set -- $(nft -a list chain inet podvm_guard output | sed -n 's/.*mark 0x0*52 .*# handle //p')
[ $# -eq 0 ] || nft delete rule inet podvm_guard output handle "$1"`)
	l.Control(Attempt{"Envoy's connection to the application", func(_ *Lab, wait Wait) string { return try(wait / 4) }})
}

// giveSecondAddress gives the pod an address that stays, so that it can still send when the first is gone.
func (l *Lab) giveSecondAddress() {
	l.Sysctl("ipv4/conf/eth0/promote_secondaries", "1")
	l.addAddress(l.Pod.Host, "eth0", l.SpareAddr())
}

// moveAddress takes the pod's first address from one host and gives it to another; both have told everyone.
func (l *Lab) moveAddress(from, to *netlab.Host) {
	prefix := fmt.Sprintf("%s/%d", l.PodAddr(), l.prefixLength())
	l.On(from, "ip addr del $1 dev eth0", prefix)
	l.On(to, "ip addr add $1 dev eth0 nodad", prefix)
	l.must(usable(to, l.PodAddr()))
	l.On(from, "ip neigh flush dev eth0")
	l.OnPeer("ip neigh flush dev eth0")
}

func (l *Lab) prefixLength() int {
	if l.Family == IPv4 {
		return 24
	}
	return 64
}

func (l *Lab) addAddress(h *netlab.Host, ifname string, a netip.Addr) {
	l.On(h, "ip addr add $1 dev $2 $3", fmt.Sprintf("%s/%d", a, l.prefixLength()), ifname, map[Family]string{IPv6: "nodad"}[l.Family])
	l.must(usable(h, a))
}

// halfway is a TLS client whose second flight is held back.
type halfway struct {
	*tls.Conn
	held *heldConn
	lab  *Lab
	done chan error
}

type heldConn struct {
	net.Conn
	writes  int
	waiting chan struct{} // closed when the second flight is ready
	release chan struct{}
}

func (h *heldConn) Write(b []byte) (int, error) {
	h.writes++
	if h.writes == 2 {
		close(h.waiting)
		<-h.release
	}
	return h.Conn.Write(b)
}

func (l *Lab) halfway(config *tls.Config) *halfway {
	raw, err := dial(l.Peer, "tcp", netip.AddrPortFrom(l.PodAddr(), portApp), patience)
	l.must(err)
	held := &heldConn{Conn: raw, waiting: make(chan struct{}), release: make(chan struct{})}
	h := &halfway{tls.Client(held, config), held, l, make(chan error, 1)}
	go func() { h.done <- h.HandshakeContext(context.Background()) }()
	select {
	case <-held.waiting:
	case err := <-h.done:
		l.Brokenf("TLS handshake: %v", err)
	case <-time.After(patience):
		l.Brokenf("no second flight of the TLS handshake")
	}
	return h
}

// finish sends the rest of the handshake and a text, and waits until the pod's kernel has acknowledged them.
func (h *halfway) finish(text string) {
	close(h.held.release)
	h.lab.must(<-h.done)
	io.WriteString(h, text)
	raw, err := h.held.Conn.(*net.TCPConn).SyscallConn()
	h.lab.must(err)
	h.lab.Await("the kernel's acknowledgement", func() bool {
		unsent := 1
		raw.Control(func(fd uintptr) { unsent, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		return unsent == 0
	})
}
