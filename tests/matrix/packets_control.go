package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	vnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// controlMessageRows are about what must come in: without it, the pod's own connections or its addresses do not work.
func controlMessageRows() []Row {
	return grouped("ICMP, neighbours, routers, groups", slices.Concat(
		closedAndMesh(Row{
			Name:     "path-mtu",
			MustNot:  "\"fragmentation needed\" and \"packet too big\" about the pod's own connections do not get in, and large transfers hang",
			Notices:  "the pod sends half a megabyte to a host behind a link with a small MTU",
			Control:  "the same transfer hangs while a rule in the pod drops these messages, and works once the guard's table is deleted",
			Weakness: errorsStayOut,
			Run:      pathMTU,
		}),
		[]Row{{
			Name:     "own-connections-over-a-lossy-network",
			MustNot:  "the pod's own connections end because packets of them were lost",
			Notices:  "the pod sends two megabytes while one packet in forty is lost, in the states closed and mesh",
			Control:  "without the guard the same transfer works",
			Weakness: noAnswers,
			Run:      overALossyNetwork,
		}},
		closedAndMesh(Row{
			Name:    "errors-about-nothing",
			MustNot: "an ICMP error about a connection that does not exist gets in",
			Notices: "a raw socket in the pod waits for it",
			Blocked: []Attempt{errorAboutNothing},
		}),
		closedAndMesh(Row{
			Name:     "neighbour-discovery",
			MustNot:  "the pod does not answer who asks for its IPv6 address, or cannot find its own neighbours",
			Notices:  "a neighbour advertisement must be on the wire; with the neighbours forgotten, the pod's own connections must work",
			Control:  "without the guard the same question is answered",
			Families: []Family{IPv6},
			Weakness: neighboursStayOut,
			Run: func(l *Lab) {
				l.Works(solicitation)
				l.InPod("ip -6 neigh flush dev eth0; ip -6 neigh flush dev eth0 nud permanent")
				l.OnPeer("ip -6 neigh flush dev eth0")
				l.Works(PodTCP())
				l.RemoveGuard()
				l.Control(solicitation)
			},
		}),
		closedAndMesh(Row{
			Name:     "router-advertisement",
			MustNot:  "the pod does not hear routers, and so gets no address where the network gives them that way",
			Notices:  "the pod must make an address of the prefix in an advertisement",
			Control:  "without the guard it makes one of another prefix",
			Families: []Family{IPv6},
			Weakness: neighboursStayOut,
			Run: func(l *Lab) {
				l.Works(advertisement("fd00:138::"))
				l.RemoveGuard()
				l.Control(advertisement("fd00:139::"))
			},
		}),
		closedAndMesh(Row{
			Name: "multicast-listener-query",
			MustNot: "the pod does not answer multicast listener queries, so that a switch that listens to them (RFC 4541) stops " +
				"delivering neighbour solicitations",
			Notices:  "a listener report must be on the wire",
			Control:  "without the guard the same query is answered",
			Families: []Family{IPv6},
			Weakness: neighboursStayOut,
			Run: func(l *Lab) {
				l.Works(query)
				l.RemoveGuard()
				l.Control(query)
			},
		}),
		[]Row{{
			Name: "dhcpv6-stays-out",
			MustNot: "a DHCPv6 server's answer gets in unless the configuration names 546/udp (it answers a question that was sent to a " +
				"group, so conntrack knows no connection; Kata gives a podVM its addresses over vsock)",
			Notices:  "a client's socket waits for the answer",
			Control:  "with 546/udp named, and without the guard, it gets it",
			Families: []Family{IPv6},
			Run: func(l *Lab) {
				l.Serve("udp", 546)
				answer := Attempt{"a DHCPv6 server's answer", func(l *Lab, wait Wait) string {
					from := addrPort(l.PeerAddr(), 547)
					before := l.App("udp", 546).From(l.Peer)
					l.must(l.Wire.Inject(Datagram(from, addrPort(l.PodAddr(), 546), []byte{7, 1, 2, 3})))
					if awaitsFor(wait, func() bool { return l.App("udp", 546).From(l.Peer) > before }) {
						return "the answer in the pod"
					}
					return ""
				}}
				l.Blocked(answer)
				l.Raise(namedPorts)
				l.Blocked(answer)
				l.App("udp", 546).Named = true
				l.Raise(portsOf(nil, []uint16{546}))
				l.Control(answer)
				l.RemoveGuard()
				l.Control(answer)
			},
		}},
	))
}

// awaitsFor repeats f until it is true, for no longer than wait.
func awaitsFor(wait Wait, f func() bool) bool {
	for deadline := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		if f() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// pathMTU sends to a host behind a link of 1,300 octets, with the switch as the router.
func pathMTU(l *Lab) {
	far := l.behindSmallLink()
	send := Attempt{"half a megabyte through a small link", func(l *Lab, wait Wait) string {
		l.InPod("ip route flush cache; ip -6 route flush cache")
		return l.upload(far, 500_000, wait)
	}}
	l.Works(send)
	l.nft("table inet deaf { chain c { type filter hook prerouting priority -300; icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }")
	if send.Try(l, 2*silence) != "" {
		l.Brokenf("half a megabyte went through a small link although no message came back")
	}
	l.InPod("nft delete table inet deaf")
	l.RemoveGuard()
	l.Control(send)
}

// behindSmallLink makes a host that is reached through the switch by a link of 1,300 octets, and serves there what counts what
// it is sent.
func (l *Lab) behindSmallLink() netip.AddrPort {
	const mtu = 1300
	far := l.NewHost("far")
	var ns netns.NsHandle
	l.must(far.Do(func() (err error) { ns, err = netns.Get(); return err }))
	defer ns.Close()
	near, remote, prefix := "10.138.0.1", netip.MustParseAddr("10.138.0.2"), 24
	if l.Family == IPv6 {
		near, remote, prefix = "fd00:140::1", netip.MustParseAddr("fd00:140::2"), 64
	}
	link := &vnetlink.Veth{
		LinkAttrs: vnetlink.LinkAttrs{Name: "small", MTU: mtu}, PeerName: "small0", PeerNamespace: vnetlink.NsFd(ns),
		PeerMTU: 1500, // else its own SYN-ACK would tell of the link
	}
	up := func(name, address string) error {
		a, err := vnetlink.ParseAddr(fmt.Sprintf("%s/%d", address, prefix))
		if err != nil {
			return err
		}
		if l.Family == IPv6 {
			a.Flags = unix.IFA_F_NODAD
		}
		found, err := vnetlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := vnetlink.AddrAdd(found, a); err != nil {
			return err
		}
		return vnetlink.LinkSetUp(found)
	}
	l.InSwitch(func() error {
		if err := vnetlink.LinkAdd(link); err != nil {
			return fmt.Errorf("add a small link: %w", err)
		}
		for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0); err != nil {
				return err
			}
		}
		return up("small", near)
	})
	l.must(far.Do(func() error { return up("small0", remote.String()) }))
	l.On(far, "ip route replace $1 via $2 dev small0", l.PodAddr().String(), near)
	ln, err := far.Listen("tcp", net.JoinHostPort(remote.String(), "9"))
	l.must(err)
	l.cleanup(func() { ln.Close() })
	go countOctets(ln)
	return addrPort(remote, 9)
}

// errorAboutNothing is a "port unreachable" about a datagram that the pod never sent.
var errorAboutNothing = Attempt{"an ICMP error about nothing", func(l *Lab, wait Wait) string {
	network := map[Family]string{IPv4: "ip4:icmp", IPv6: "ip6:ipv6-icmp"}[l.Family]
	var c net.PacketConn
	l.must(l.Pod.Do(func() (err error) { c, err = net.ListenPacket(network, l.PodAddr().String()); return err }))
	defer c.Close()
	port := l.freshPort()
	about := Datagram(addrPort(l.PodAddr(), port), addrPort(l.PeerAddr(), 7), []byte("never sent"))
	kind, code := byte(3), byte(3)
	if l.Family == IPv6 {
		kind, code = 1, 4
	}
	l.must(l.Wire.Inject(ICMP(l.PeerAddr(), l.PodAddr(), kind, code, make([]byte, 4), about)))
	c.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return ""
		}
		if strings.Contains(string(b[:n]), "never sent") {
			return "the error in the pod"
		}
	}
}}

// solicitation asks for the pod's link-layer address (RFC 4861 section 4.3).
var solicitation = Attempt{"a neighbour solicitation", func(l *Lab, wait Wait) string {
	group, pod := solicitedNode(l.PodAddr()), l.PodAddr().As16()
	// Who asks a group says where it can be answered (a source link-layer address option), or is not.
	question := append(append(pod[:], 1, 1), l.Wire.own...)
	return l.asks(ICMP(l.PeerAddr(), group, 135, 0, make([]byte, 4), question), 136, func(p Packet, _ []byte) bool { return p.From.Addr() == l.PodAddr() }, wait)
}}

// solicitedNode is the group that who has an address must listen to (RFC 4291 section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// query asks who listens to which group (RFC 3810 section 5.1), behind a router alert as it must be.
var query = Attempt{"a multicast listener query", func(l *Lab, wait Wait) string {
	router := netip.MustParseAddr("fe80::1")
	everyone := everyone[IPv6]
	m := []byte{130, 0, 0, 0, 0, 1, 0, 0} // answer within a millisecond
	m = append(append(m, make([]byte, 16)...), 2, 125, 0, 0)
	binary.BigEndian.PutUint16(m[2:], Checksum(router, everyone, unix.IPPROTO_ICMPV6, m))
	alert := []byte{unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0}
	packet := IP(router, everyone, unix.IPPROTO_HOPOPTS, append(alert, m...))
	packet[7] = 1
	// Whoever joins a group reports that without being asked, as a change; an answer tells the state (RFC 3810 section 5.2.12).
	// A pod whose link-local address is still tentative answers from ::, so the group says who it is.
	own := solicitedNode(l.PodAddr())
	return l.asks(packet, 143, func(_ Packet, m []byte) bool {
		return len(m) > 8 && (m[8] == 1 || m[8] == 2) && bytes.Contains(m, own.AsSlice())
	}, wait)
}}

// asks injects a packet, again and again, and wants an ICMPv6 message of a kind for which right is true.
func (l *Lab) asks(packet []byte, kind byte, right func(p Packet, message []byte) bool, wait Wait) string {
	mark := l.Wire.Mark()
	const again = 200 * time.Millisecond
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); {
		l.must(l.Wire.Inject(packet))
		if _, ok := l.Wire.Await(mark, again, func(p Packet) bool {
			body := p.Payload
			if p.Protocol == unix.IPPROTO_HOPOPTS && len(body) > 8 {
				body = body[8:]
			} else if p.Protocol != unix.IPPROTO_ICMPV6 {
				return false
			}
			return len(body) > 0 && body[0] == kind && right(p, body)
		}); ok {
			return "an answer"
		}
	}
	return ""
}

// advertisement is a router that says which prefix is on the link (RFC 4861 section 4.2, RFC 4862 section 5.5.3).
func advertisement(prefix string) Attempt {
	return Attempt{"a router advertisement", func(l *Lab, wait Wait) string {
		p := netip.MustParseAddr(prefix).As16()
		body := make([]byte, 8) // reachable time, retransmission timer
		option := []byte{3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0}
		body = append(append(body, option...), p[:]...)
		l.must(l.Wire.Inject(ICMP(netip.MustParseAddr("fe80::1"), everyone[IPv6], 134, 0, []byte{64, 0, 0, 0}, body)))
		if awaitsFor(wait, func() bool {
			return strings.Contains(l.InPod("ip -6 addr show dev eth0"), strings.TrimSuffix(prefix, "::")+":")
		}) {
			return "an address of its prefix"
		}
		return ""
	}}
}

// countOctets answers each connection with the number of octets that it was sent.
func countOctets(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			n, _ := io.Copy(io.Discard, c)
			fmt.Fprintf(c, "got %d octets", n)
		}()
	}
}

// upload sends octets from the pod to where countOctets is, and returns the answer.
func (l *Lab) upload(to netip.AddrPort, octets int, wait Wait) string {
	c, err := dial(l.Pod.Host, "tcp", to, wait)
	if err != nil {
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	c.Write(make([]byte, octets))
	c.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(c)
	return string(b)
}

// overALossyNetwork loses packets of the pod's own connections, both ways. What conntrack makes of the gaps and of what is
// sent again must not count as TCP whose beginning was not seen.
func overALossyNetwork(l *Lab) {
	const octets = 2 << 20
	ln, err := l.Peer.Listen("tcp", net.JoinHostPort(l.PeerAddr().String(), "9"))
	l.must(err)
	l.cleanup(func() { ln.Close() })
	go countOctets(ln)
	send := Attempt{"two megabytes over a lossy network", func(l *Lab, wait Wait) string {
		if got := l.upload(addrPort(l.PeerAddr(), 9), octets, wait); got == fmt.Sprintf("got %d octets", octets) {
			return got
		}
		return ""
	}}
	const lossy = `nft -f - <<END
table inet lossy {
	chain i { type filter hook prerouting priority -500; tcp dport 9 numgen random mod 40 == 0 drop; }
	chain o { type filter hook output priority -500; tcp sport 9 numgen random mod 40 == 0 drop; }
}
END`
	l.OnPeer(lossy)
	for _, enter := range []func(){l.Close, func() { l.Raise(namedPorts) }} {
		enter()
		l.Works(send)
	}
	l.RemoveGuard()
	l.Control(send)
}
