package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

func protocolRows() []Row {
	rows := slices.Concat(
		closedAndMesh(Row{
			Name:    "icmp-echo",
			MustNot: "the pod answers a ping",
			Notices: "an echo reply would be on the wire",
			Blocked: []Attempt{ping},
		}),
		closedAndMesh(Row{
			Name: "raw-protocols",
			MustNot: "packets of other IP protocols (IP in IP, GRE, ESP, AH, SCTP, UDP-Lite and others) reach a raw socket in the pod, which " +
				"stands for whatever speaks them",
			Notices: "raw sockets in the pod, one for each protocol, wait for a text",
			Blocked: rawProtocols(),
		}),
		closedAndMesh(Row{
			Name:    "fragments",
			MustNot: "a TCP connection or a datagram in fragments, the first of which has no room for the TCP flags, gets in",
			Blocked: []Attempt{
				fragmentedTCP(portApp, 8), fragmentedTCP(portApp, 24), fragmentedUDP(portApp, 8), fragmentedUDP(portApp, 32),
			},
		}),
		[]Row{{
			Name:    "overlapping-fragments",
			MustNot: "a second fragment writes another port over the named one that the guard saw in the first",
			Notices: "the application on the other port counts datagrams, and the named one must not be led astray either",
			Control: "without the guard, the same datagram to that port in fragments that do not overlap arrives",
			Enter:   func(l *Lab) { l.Raise(namedPorts) },
			Run: func(l *Lab) {
				l.Works(fragmentedUDP(portPlaintextUDP, 16))
				l.Blocked(Attempt{"overlapping fragments", func(l *Lab, wait Wait) string {
					from, to := addrPort(l.PeerAddr(), l.freshPort()), addrPort(l.PodAddr(), portPlaintextUDP)
					return l.tell(from.Port(), to, l.App("udp", portApp), func([]byte) [][]byte { return rewriting(from, to, portApp) }, wait)
				}}, fragmentedUDP(portApp, 16))
				l.RemoveGuard()
				l.Control(fragmentedUDP(portApp, 16))
			},
		}},
		closedAndMesh(Row{
			Name:    "headers-between",
			MustNot: "options between the IP header and TCP or UDP hide a port from the guard",
			Notices: noticesApps + "; a named port must be found behind them, too",
			Blocked: []Attempt{
				disguised("behind other headers", "tcp", portApp, func() Disguise { return withHeaders }),
				disguised("behind other headers", "udp", portApp, func() Disguise { return withHeaders }),
			},
			Run: func(l *Lab) {
				if l.Stage() == "mesh" {
					l.Works(disguised("behind other headers", "tcp", portPlaintext, func() Disguise { return withHeaders }),
						disguised("behind other headers", "udp", portPlaintextUDP, func() Disguise { return withHeaders }))
				}
			},
		}),
		closedAndMesh(Row{
			Name:     "mapped-addresses",
			MustNot:  "an application that listens on an IPv4-mapped IPv6 address is reached, or one is by a packet that carries such addresses",
			Families: []Family{IPv4},
			Enter: func(l *Lab) {
				l.serveMapped(8090)
				l.On(l.Pod.Host, "ip -6 addr add ::ffff:$1/128 dev eth0 nodad", l.Pod.IPv4.String())
			},
			Blocked: []Attempt{toMapped(8090), mappedOnTheWire},
		}),
		closedAndMesh(Row{
			Name:    "multicast-and-broadcast",
			MustNot: "a datagram to a group that an application joined, or to everyone, reaches it",
			Notices: "the application counts datagrams from the peer",
			Enter:   func(l *Lab) { l.serveGroup() },
			Blocked: []Attempt{toMany("a group", group, portGroup), toMany("everyone", everyone, portApp)},
		}),
	)
	return grouped("Packets that are no plain TCP or UDP", rows)
}

// ping sends echo requests and wants a reply.
var ping = Attempt{"a ping", func(l *Lab, wait Wait) string {
	mark := l.Wire.Mark()
	id := l.freshPort()
	l.must(l.Wire.Inject(ICMP(l.PeerAddr(), l.PodAddr(), icmpEchoRequest(l.Family), 0, binary.BigEndian.AppendUint32(nil, uint32(id)<<16|1), []byte("ping"))))
	protocol, reply := byte(unix.IPPROTO_ICMP), byte(0)
	if l.Family == IPv6 {
		protocol, reply = unix.IPPROTO_ICMPV6, 129
	}
	if _, ok := l.Wire.Await(mark, wait, func(p Packet) bool {
		return p.Protocol == protocol && p.From.Addr() == l.PodAddr() && len(p.Payload) >= 8 && p.Payload[0] == reply &&
			binary.BigEndian.Uint16(p.Payload[4:]) == id
	}); ok {
		return "a reply"
	}
	return ""
}}

func icmpEchoRequest(f Family) byte { return map[Family]byte{IPv4: 8, IPv6: 128}[f] }

// ICMP makes an ICMP or ICMPv6 packet, as the addresses are. rest is the second word of the header.
func ICMP(from, to netip.Addr, kind, code byte, rest, payload []byte) []byte {
	m := append(append([]byte{kind, code, 0, 0}, rest...), payload...)
	if from.Is4() {
		binary.BigEndian.PutUint16(m[2:], fold(sum(m, 0)))
		return IP(from, to, unix.IPPROTO_ICMP, m)
	}
	binary.BigEndian.PutUint16(m[2:], Checksum(from, to, unix.IPPROTO_ICMPV6, m))
	packet := IP(from, to, unix.IPPROTO_ICMPV6, m)
	packet[7] = 255 // neighbour discovery insists (RFC 4861)
	return packet
}

// rawProtocols is an attempt for each protocol number that somebody may speak. IPv6 has headers of its own in between.
func rawProtocols() []Attempt {
	var out []Attempt
	for _, protocol := range []byte{
		2, 3, unix.IPPROTO_IPIP, 33, unix.IPPROTO_IPV6, 46, unix.IPPROTO_GRE, unix.IPPROTO_ESP, unix.IPPROTO_AH, 89, 103, 112,
		unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE, 253, 255,
	} {
		out = append(out, Attempt{fmt.Sprintf("IP protocol %d", protocol), func(l *Lab, wait Wait) string {
			if l.Family == IPv6 && protocol == unix.IPPROTO_AH {
				return l.raw(unix.IPPROTO_ESP, wait) // there it is an extension header
			}
			return l.raw(protocol, wait)
		}})
	}
	return out
}

// raw sends a packet of a protocol to a raw socket in the pod.
func (l *Lab) raw(protocol byte, wait Wait) string {
	network := map[Family]string{IPv4: "ip4", IPv6: "ip6"}[l.Family]
	var c net.PacketConn
	l.must(l.Pod.Do(func() (err error) {
		c, err = net.ListenPacket(fmt.Sprintf("%s:%d", network, protocol), l.PodAddr().String())
		return err
	}))
	defer c.Close()
	text := []byte(fmt.Sprintf("a text of protocol %d", protocol))
	l.must(l.Wire.Inject(IP(l.PeerAddr(), l.PodAddr(), protocol, text)))
	c.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return ""
		}
		if bytes.Contains(b[:n], text) {
			return "the text in the pod"
		}
	}
}

// serveMapped starts an application on a socket of IPv6 that is bound to the pod's IPv4 address in its mapped form.
func (l *Lab) serveMapped(port uint16) {
	a := &App{Port: port, Secret: "secret-of-a-mapped-socket", network: "tcp"}
	var ln net.Listener
	l.must(l.Pod.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "mapped")
		defer f.Close()
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0),
			unix.Bind(fd, &unix.SockaddrInet6{Port: int(port), Addr: l.Pod.IPv4.As16()}),
			unix.Listen(fd, 16),
		)
		if err != nil {
			return err
		}
		ln, err = net.FileListener(f)
		return err
	}))
	l.cleanup(func() { ln.Close() })
	go a.serveTCP(ln)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.apps = append(l.apps, a)
}

func toMapped(port uint16) Attempt {
	return Attempt{"TCP to a socket on a mapped address", func(l *Lab, wait Wait) string {
		return l.AskTCP(l.Peer, addrPort(l.Pod.IPv4, port), l.App("tcp", port), wait)
	}}
}

// mappedOnTheWire is an IPv6 packet to the mapped form of the pod's IPv4 address, which the pod has as an IPv6 address, too.
// Linux takes such datagrams, and no TCP.
var mappedOnTheWire = Attempt{"a datagram to a mapped address in an IPv6 packet", func(l *Lab, wait Wait) string {
	from := addrPort(l.Peer.IPv6, l.freshPort())
	l.must(l.Wire.Inject(Datagram(from, addrPort(netip.AddrFrom16(l.Pod.IPv4.As16()), portApp), []byte("plaintext"))))
	if awaitsFor(wait, func() bool { return l.App("udp", portApp).Took(from) }) {
		return "the application got it"
	}
	return ""
}}

// A group that nobody else uses, and everyone's address.
var (
	group    = map[Family]netip.Addr{IPv4: netip.MustParseAddr("239.137.0.1"), IPv6: netip.MustParseAddr("ff05::137")}
	everyone = map[Family]netip.Addr{IPv4: netip.MustParseAddr("10.137.0.255"), IPv6: netip.MustParseAddr("ff02::1")}
)

const portGroup uint16 = 8093

// serveGroup starts an application that has joined the group.
func (l *Lab) serveGroup() {
	a := &App{Port: portGroup, Secret: "secret-of-a-group", network: "udp"}
	var c *net.UDPConn
	l.must(l.Pod.Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		network := map[Family]string{IPv4: "udp4", IPv6: "udp6"}[l.Family]
		c, err = net.ListenMulticastUDP(network, ifi, &net.UDPAddr{IP: group[l.Family].AsSlice(), Port: int(portGroup)})
		return err
	}))
	l.cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			a.note(from, b[:n])
		}
	}()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.apps = append(l.apps, a)
}

func toMany(what string, address map[Family]netip.Addr, port uint16) Attempt {
	return Attempt{"a datagram to " + what, func(l *Lab, wait Wait) string {
		source := addrPort(l.PeerAddr(), l.freshPort())
		l.must(l.Wire.Inject(Datagram(source, addrPort(address[l.Family], port), []byte("plaintext"))))
		if awaitsFor(wait, func() bool { return l.App("udp", port).Took(source) }) {
			return "the application got it"
		}
		return ""
	}}
}
