package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	vnetlink "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Wire hears every packet that crosses the lab's switch, and puts packets on the pod's cable as a hostile host would:
// whatever source and destination they carry, without asking any kernel's routes.
type Wire struct {
	conn *os.File // an AF_PACKET socket in the network of the switch

	mu      sync.Mutex
	packets []Packet
	changed chan struct{} // closed and replaced when packets grows

	port        int              // the switch's port that the pod's eth0 is plugged into
	podMAC, own net.HardwareAddr // eth0 of the pod, and the switch
}

// A Packet is an IP packet. Ports, flags and numbers are there for TCP and UDP without IPv6 extension headers, and not in
// fragments but the first.
type Packet struct {
	From, To netip.AddrPort
	Protocol byte
	Flags    byte // TCP
	Seq, Ack uint32
	Payload  []byte // of TCP or UDP; of any other protocol all behind the IP header
}

// maxPackets bounds what a Wire keeps; a row that floods its switch asks for less, or fails.
const maxPackets = 1 << 20

func newWire() (*Wire, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		return nil, fmt.Errorf("listen to the switch: %w", err)
	}
	// Best effort: FORCE needs real root. What a full buffer loses, only a packet that leaked could have been.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	w := &Wire{conn: os.NewFile(uintptr(fd), "wire"), changed: make(chan struct{})}
	go w.listen()
	return w, nil
}

// aimAt finds the pod's cable.
func (w *Wire) aimAt(l *Lab) error {
	var inPod vnetlink.Link
	err := l.Pod.Do(func() (err error) { inPod, err = vnetlink.LinkByName("eth0"); return err })
	if err != nil {
		return err
	}
	w.podMAC, w.port = inPod.Attrs().HardwareAddr, inPod.Attrs().ParentIndex
	return l.room.do(func() error {
		own, err := vnetlink.LinkByName("switch")
		if err == nil {
			w.own = own.Attrs().HardwareAddr
		}
		return err
	})
}

func (w *Wire) close() { w.conn.Close() }

// Inject puts an IP packet on the pod's cable.
func (w *Wire) Inject(packet []byte) error {
	to := &unix.SockaddrLinklayer{Ifindex: w.port, Halen: 6, Protocol: htons(unix.ETH_P_IP)}
	if packet[0]>>4 == 6 {
		to.Protocol = htons(unix.ETH_P_IPV6)
	}
	copy(to.Addr[:], w.podMAC)
	raw, err := w.conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), packet, 0, to)
		return !errors.Is(sent, unix.EAGAIN)
	})
	return errors.Join(err, sent)
}

// Mark is a position: what crosses the wire from now on.
func (w *Wire) Mark() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.packets)
}

// Since returns the packets from a position on.
func (w *Wire) Since(mark int) []Packet {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.packets[mark:len(w.packets):len(w.packets)]
}

// Await waits for a packet from a position on, up to wait.
func (w *Wire) Await(mark int, wait Wait, want func(Packet) bool) (Packet, bool) {
	deadline := time.After(wait)
	for {
		w.mu.Lock()
		news, changed := w.packets[mark:], w.changed
		w.mu.Unlock()
		for _, p := range news {
			if want(p) {
				return p, true
			}
		}
		mark += len(news)
		select {
		case <-changed:
		case <-deadline:
			return Packet{}, false
		}
	}
}

// Saw says whether text went over the wire in clear from a position on, within one packet.
func (w *Wire) Saw(mark int, text string) bool {
	for _, p := range w.Since(mark) {
		if bytes.Contains(p.Payload, []byte(text)) {
			return true
		}
	}
	return false
}

func (w *Wire) listen() {
	raw, err := w.conn.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1<<17)
	for {
		var n int
		var from unix.Sockaddr
		var received error
		err := raw.Read(func(fd uintptr) bool {
			n, from, received = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(received, unix.EAGAIN)
		})
		if err != nil {
			return // closed
		}
		// Each packet passes a port of the switch and perhaps the switch itself: on its way in is once.
		if ll, ok := from.(*unix.SockaddrLinklayer); received != nil || !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if p, ok := parsePacket(buf[:n]); ok {
			w.mu.Lock()
			if len(w.packets) < maxPackets {
				w.packets = append(w.packets, p)
			}
			close(w.changed)
			w.changed = make(chan struct{})
			w.mu.Unlock()
		}
	}
}

func parsePacket(b []byte) (Packet, bool) {
	if len(b) < 20 || b[0]>>4 == 6 && len(b) < 40 {
		return Packet{}, false
	}
	var p Packet
	var src, dst netip.Addr
	var rest []byte
	first := true
	switch b[0] >> 4 {
	case 4:
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		end := min(int(binary.BigEndian.Uint16(b[2:])), len(b))
		p.Protocol, rest = b[9], b[min(int(b[0]&15)*4, end):end]
		first = binary.BigEndian.Uint16(b[6:])&0x1fff == 0
	case 6:
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		p.Protocol, rest = b[6], b[40:]
	default:
		return Packet{}, false
	}
	offset, sport, dport := 0, uint16(0), uint16(0)
	switch {
	case p.Protocol == unix.IPPROTO_TCP && len(rest) >= 20 && first:
		offset = min(int(rest[12]>>4)*4, len(rest))
		p.Seq, p.Ack, p.Flags = binary.BigEndian.Uint32(rest[4:]), binary.BigEndian.Uint32(rest[8:]), rest[13]
	case p.Protocol == unix.IPPROTO_UDP && len(rest) >= 8 && first:
		offset = 8
	}
	if offset > 0 {
		sport, dport = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	}
	p.From, p.To = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	p.Payload = bytes.Clone(rest[offset:])
	return p, true
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// IP makes an IP packet of either family around a payload, with a correct header checksum. For IPv6, protocol is the next
// header. Checksums inside the payload are the caller's, see Checksum.
func IP(from, to netip.Addr, protocol byte, payload []byte) []byte {
	if from.Is4() {
		h := make([]byte, 20, 20+len(payload))
		h[0], h[8], h[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
		copy(h[12:], from.AsSlice())
		copy(h[16:], to.AsSlice())
		binary.BigEndian.PutUint16(h[10:], fold(sum(h, 0)))
		return append(h, payload...)
	}
	h := make([]byte, 40, 40+len(payload))
	h[0], h[6], h[7] = 0x60, protocol, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], from.AsSlice())
	copy(h[24:], to.AsSlice())
	return append(h, payload...)
}

// Checksum is what TCP, UDP and ICMPv6 carry: over a pseudo header and the segment, whose checksum field must be zero.
func Checksum(from, to netip.Addr, protocol byte, segment []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(segment)))
	pseudo = append(pseudo, 0, 0, 0, protocol)
	return fold(sum(segment, sum(pseudo, 0)))
}

func sum(b []byte, s uint32) uint32 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}
