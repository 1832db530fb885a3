package netlab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Wire listens to every frame that crosses the lab's switch, as a hostile network would.
type Wire struct {
	mu     sync.Mutex
	frames []frame
	fd     int
}

type frame struct {
	from, to netip.AddrPort
	payload  []byte
}

// maxFrames bounds what a Wire keeps. It is far above what a test sends; Saw panics rather than miss a frame.
const maxFrames = 1 << 18

// Tap starts listening.
func (l *Lab) Tap() (*Wire, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		return nil, fmt.Errorf("listen to the switch: %w", err)
	}
	// best effort: the default buffer holds some hundred frames, enough for what is read at once
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	w := &Wire{fd: fd}
	go w.listen()
	return w, nil
}

// Close stops listening.
func (w *Wire) Close() { unix.Close(w.fd) }

// Mark returns a position: what crosses the wire from now on.
func (w *Wire) Mark() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.frames)
}

// Forget drops what crossed the wire until now, and with it every position.
func (w *Wire) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frames = nil
}

// Sync returns when everything that crossed the wire before has been noted. from sends a datagram to say when that is.
func (w *Wire) Sync(ctx context.Context, from *Host) error {
	mark := w.Mark()
	nonce := rand.Text()
	c, err := from.ListenPacket("udp", netip.AddrPortFrom(from.IPv4, 0).String())
	if err != nil {
		return err
	}
	defer c.Close()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !w.Saw(mark, nonce) {
		if _, err := c.WriteTo([]byte(nonce), &net.UDPAddr{IP: Gateway4.AsSlice(), Port: 9}); err != nil {
			return fmt.Errorf("say where the wire stands: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the wire to be read: %w", ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// Saw says whether text went over the wire in clear since mark, within one packet.
func (w *Wire) Saw(mark int, text string) bool {
	for _, f := range w.since(mark) {
		if bytes.Contains(f.payload, []byte(text)) {
			return true
		}
	}
	return false
}

// SentTLS counts the packets since mark from one address to a TCP port of another that begin a TLS handshake record.
func (w *Wire) SentTLS(mark int, from, to netip.Addr, port uint16) int {
	n := 0
	for _, f := range w.since(mark) {
		if f.from.Addr() == from && f.to == netip.AddrPortFrom(to, port) && bytes.HasPrefix(f.payload, []byte{0x16, 0x03}) {
			n++
		}
	}
	return n
}

func (w *Wire) since(mark int) []frame {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.frames) >= maxFrames {
		panic("netlab: the wire has seen more frames than it can keep")
	}
	return w.frames[mark:len(w.frames):len(w.frames)]
}

func (w *Wire) listen() {
	buf := make([]byte, 1<<17)
	for {
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		// Each frame passes the switch's ports and the switch: once is enough.
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if f, ok := parse(buf[:n]); ok {
			w.mu.Lock()
			if len(w.frames) < maxFrames {
				w.frames = append(w.frames, f)
			}
			w.mu.Unlock()
		}
	}
}

// parse reads an IP packet without extension headers. The payload of anything but TCP and UDP is the whole packet.
func parse(b []byte) (frame, bool) {
	if len(b) < 40 {
		return frame{}, false
	}
	var src, dst netip.Addr
	var proto byte
	var rest []byte
	switch b[0] >> 4 {
	case 4:
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		end := min(int(binary.BigEndian.Uint16(b[2:])), len(b))
		proto, rest = b[9], b[min(int(b[0]&15)*4, end):end]
	case 6:
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		proto, rest = b[6], b[40:]
	default:
		return frame{}, false
	}
	f := frame{from: netip.AddrPortFrom(src, 0), to: netip.AddrPortFrom(dst, 0), payload: rest}
	offset := 0
	switch {
	case proto == unix.IPPROTO_TCP && len(rest) >= 20:
		offset = min(int(rest[12]>>4)*4, len(rest))
	case proto == unix.IPPROTO_UDP && len(rest) >= 8:
		offset = 8
	}
	if offset > 0 {
		f.from = netip.AddrPortFrom(src, binary.BigEndian.Uint16(rest))
		f.to = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(rest[2:]))
	}
	f.payload = bytes.Clone(rest[offset:])
	return f, true
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
