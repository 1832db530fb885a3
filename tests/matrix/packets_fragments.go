package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Datagram makes a UDP packet with a correct checksum.
func Datagram(from, to netip.AddrPort, payload []byte) []byte {
	h := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(h, from.Port())
	binary.BigEndian.PutUint16(h[2:], to.Port())
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(payload)))
	h = append(h, payload...)
	binary.BigEndian.PutUint16(h[6:], Checksum(from.Addr(), to.Addr(), unix.IPPROTO_UDP, h))
	return IP(from.Addr(), to.Addr(), unix.IPPROTO_UDP, h)
}

// Fragments cuts an IP packet without options into fragments of size octets, a multiple of 8.
func Fragments(packet []byte, id uint32, size int) [][]byte {
	header := 20
	if packet[0]>>4 == 6 {
		header = 40
	}
	body := packet[header:]
	var out [][]byte
	for offset := 0; offset < len(body); offset += size {
		end := min(offset+size, len(body))
		out = append(out, fragment(packet, id, offset, body[offset:end], end < len(body)))
	}
	return out
}

// fragment is one fragment of the packet whose header is given (RFC 791 section 3.2, RFC 8200 section 4.5).
func fragment(packet []byte, id uint32, offset int, part []byte, more bool) []byte {
	if packet[0]>>4 == 4 {
		from, to := netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
		f := IP(from, to, packet[9], part)
		binary.BigEndian.PutUint16(f[4:], uint16(id))
		field := uint16(offset / 8)
		if more {
			field |= 1 << 13
		}
		binary.BigEndian.PutUint16(f[6:], field)
		f[10], f[11] = 0, 0
		binary.BigEndian.PutUint16(f[10:], fold(sum(f[:20], 0)))
		return f
	}
	from, to := netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
	h := make([]byte, 8, 8+len(part))
	h[0] = packet[6]
	field := uint16(offset)
	if more {
		field |= 1
	}
	binary.BigEndian.PutUint16(h[2:], field)
	binary.BigEndian.PutUint32(h[4:], id)
	return IP(from, to, unix.IPPROTO_FRAGMENT, append(h, part...))
}

// A Disguise changes a packet into those that are really put on the cable. The zero value changes nothing.
type Disguise func(packet []byte) [][]byte

// inFragments are fragments of a size. IPv6 demands all headers in the first (RFC 7112), so there it has 24 octets at least.
func inFragments(size int) Disguise {
	var id uint32
	return func(packet []byte) [][]byte {
		id++
		if packet[0]>>4 == 6 {
			size = max(size, 24)
		}
		return Fragments(packet, 0x1000+id, size)
	}
}

// inject puts packets of this making on the pod's cable.
func (d Disguise) inject(l *Lab, packet []byte) {
	if d == nil {
		l.must(l.Wire.Inject(packet))
		return
	}
	for _, p := range d(packet) {
		l.must(l.Wire.Inject(p))
	}
}

// say makes a whole TCP connection by hand from a muted port of the peer, every segment of it disguised, and wants a byte of
// an application.
func (l *Lab) say(from uint16, to netip.AddrPort, a *App, d Disguise, wait Wait) string {
	c := l.Craft(from, to.Port())
	c.To = to
	send := func(flags byte, payload string) {
		c.mark = l.Wire.Mark()
		d.inject(l, Segment(c.From, c.To, flags, c.seq, c.ack, []byte(payload)))
	}
	send(flagSYN, "")
	if _, ok := c.Answer(flagSYN|flagACK, wait); !ok {
		if a.Took(c.From) {
			return "a place in the application's queue"
		}
		return ""
	}
	c.seq++
	send(flagACK, "")
	send(flagACK|flagPSH, "plaintext, long enough for several fragments")
	if _, ok := l.Wire.Await(c.mark, wait, func(p Packet) bool {
		return p.From == c.To && p.To == c.From && strings.Contains(string(p.Payload), a.Secret)
	}); ok {
		return "the application's bytes"
	}
	return ""
}

// tell sends the application a disguised datagram, and wants its answer on the wire.
func (l *Lab) tell(from uint16, to netip.AddrPort, a *App, d Disguise, wait Wait) string {
	mark := l.Wire.Mark()
	source := addrPort(l.PeerAddr(), from)
	d.inject(l, Datagram(source, to, []byte("plaintext, long enough for several fragments")))
	if _, ok := l.Wire.Await(mark, wait, func(p Packet) bool {
		return p.To == source && strings.Contains(string(p.Payload), a.Secret)
	}); ok {
		return "the application's answer"
	}
	if a.Took(source) {
		return "the application got the datagram"
	}
	return ""
}

// disguised is a crafted connection with, or datagram to, a port of the pod.
func disguised(what, network string, port uint16, d func() Disguise) Attempt {
	return Attempt{fmt.Sprintf("%s to port %d %s", network, port, what), func(l *Lab, wait Wait) string {
		to, from := addrPort(l.PodAddr(), port), l.freshPort()
		if network == "udp" {
			return l.tell(from, to, l.App(network, port), d(), wait)
		}
		return l.say(from, to, l.App(network, port), d(), wait)
	}}
}

func fragmentedTCP(port uint16, size int) Attempt {
	return disguised(fmt.Sprintf("in fragments of %d octets", size), "tcp", port, func() Disguise { return inFragments(size) })
}

func fragmentedUDP(port uint16, size int) Attempt {
	return disguised(fmt.Sprintf("in fragments of %d octets", size), "udp", port, func() Disguise { return inFragments(size) })
}

// freshPort is a port of the peer for one crafted conversation; none is used twice within a lab.
func (l *Lab) freshPort() uint16 { return uint16(50000 + freshPorts.Add(1)%10000) }

var freshPorts atomic.Uint32

// withHeaders lays what a router or a sender may put between the IP header and the rest: options in IPv4 (a router alert and
// no-operations, RFC 2113), in IPv6 hop-by-hop and destination options with padding, and a routing header that is done with
// (RFC 8200 sections 4.2 to 4.6).
func withHeaders(packet []byte) [][]byte {
	if packet[0]>>4 == 4 {
		options := []byte{148, 4, 0, 0, 1, 1, 1, 0}
		out := append(append(append([]byte{}, packet[:20]...), options...), packet[20:]...)
		out[0] = 0x47
		binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
		out[10], out[11] = 0, 0
		binary.BigEndian.PutUint16(out[10:], fold(sum(out[:28], 0)))
		return [][]byte{out}
	}
	padding := []byte{1, 4, 0, 0, 0, 0}
	hopByHop := append([]byte{unix.IPPROTO_ROUTING, 0}, padding...)
	routing := []byte{unix.IPPROTO_DSTOPTS, 0, 253, 0, 0, 0, 0, 0} // an experimental type, no segments left
	destination := append([]byte{packet[6], 0}, padding...)
	body := append(append(append(hopByHop, routing...), destination...), packet[40:]...)
	from, to := netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
	return [][]byte{IP(from, to, unix.IPPROTO_HOPOPTS, body)}
}

// rewriting sends a datagram to a named port whose second fragment overlaps the first, and would write another port into it.
func rewriting(from, to netip.AddrPort, other uint16) [][]byte {
	whole := Datagram(from, to, []byte("plaintext, long enough for several fragments"))
	header := 20
	if to.Addr().Is6() {
		header = 40
	}
	body := whole[header:]
	changed := append([]byte{}, body...)
	binary.BigEndian.PutUint16(changed[2:], other)
	changed[6], changed[7] = 0, 0
	binary.BigEndian.PutUint16(changed[6:], Checksum(from.Addr(), to.Addr(), unix.IPPROTO_UDP, changed))
	const id = 0x2222
	return [][]byte{
		fragment(whole, id, 0, body[:24], true),
		fragment(whole, id, 0, changed[:16], true), // the same place once more
		fragment(whole, id, 24, body[24:], false),
	}
}
