package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// TCP flags.
const (
	flagFIN byte = 1 << iota
	flagSYN
	flagRST
	flagPSH
	flagACK
)

// Segment makes a TCP packet with a correct checksum. Options may be nil; a SYN carries a maximum segment size of its own.
func Segment(from, to netip.AddrPort, flags byte, seq, ack uint32, payload []byte) []byte {
	var options []byte
	if flags&flagSYN != 0 {
		options = []byte{2, 4, 1300 >> 8, 1300 & 0xff}
	}
	h := make([]byte, 20, 24+len(payload))
	binary.BigEndian.PutUint16(h, from.Port())
	binary.BigEndian.PutUint16(h[2:], to.Port())
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], ack)
	h[12], h[13] = byte((20+len(options))/4)<<4, flags
	binary.BigEndian.PutUint16(h[14:], 64240) // window
	h = append(append(h, options...), payload...)
	binary.BigEndian.PutUint16(h[16:], Checksum(from.Addr(), to.Addr(), unix.IPPROTO_TCP, h))
	return IP(from.Addr(), to.Addr(), unix.IPPROTO_TCP, h)
}

// Mute takes a TCP port of the peer from the peer's kernel: it neither hears nor says anything there any more, so that a
// crafted connection is not answered with resets, and a real one falls silent.
func (l *Lab) Mute(port uint16) {
	l.OnPeer(`nft -f - <<END
table inet mute {
	chain in { type filter hook input priority 0; }
	chain out { type filter hook output priority 0; }
}
add rule inet mute in tcp dport $1 drop
add rule inet mute out tcp sport $1 drop
END`, fmt.Sprint(port))
}

// A Conversation is a TCP connection from the peer's address to the pod that is made by hand, a segment at a time, by the
// one who owns the cable.
type Conversation struct {
	From, To netip.AddrPort

	lab      *Lab
	seq, ack uint32
	mark     int
}

// Craft begins a conversation between a port of the peer, which is muted, and a port of the pod. Nothing is sent yet.
func (l *Lab) Craft(from, to uint16) *Conversation {
	l.Mute(from)
	return &Conversation{
		From: netip.AddrPortFrom(l.PeerAddr(), from), To: netip.AddrPortFrom(l.PodAddr(), to),
		lab: l, seq: 1000, mark: l.Wire.Mark(),
	}
}

// Send sends a segment with the next sequence numbers.
func (c *Conversation) Send(flags byte, payload string) {
	c.mark = c.lab.Wire.Mark()
	c.lab.must(c.lab.Wire.Inject(Segment(c.From, c.To, flags, c.seq, c.ack, []byte(payload))))
	c.seq += uint32(len(payload))
	if flags&(flagSYN|flagFIN) != 0 {
		c.seq++
	}
}

// Answer waits for a segment of the pod, since the last Send, that has all of flags; its data is then acknowledged by what
// is sent next.
func (c *Conversation) Answer(flags byte, wait Wait) (Packet, bool) {
	p, ok := c.lab.Wire.Await(c.mark, wait, func(p Packet) bool {
		return p.Protocol == unix.IPPROTO_TCP && p.From == c.To && p.To == c.From && p.Flags&flags == flags
	})
	if ok {
		c.ack = p.Seq + uint32(len(p.Payload))
		if p.Flags&(flagSYN|flagFIN) != 0 {
			c.ack++
		}
	}
	return p, ok
}

// SYN sends one and wants a SYN-ACK.
func (c *Conversation) SYN(wait Wait) bool {
	c.Send(flagSYN, "")
	_, ok := c.Answer(flagSYN|flagACK, wait)
	return ok
}
