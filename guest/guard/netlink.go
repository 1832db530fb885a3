package guard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Netlink as nf_tables speaks it (linux/netlink.h, linux/netfilter/nfnetlink.h): messages of attributes, which may nest.
// The kernel works while it is told, so when a send returns, the answer is there. This is why a plain blocking socket does,
// and why it is quick: ten thousand set elements are written in one system call, and read in some dozen.

// A socket is for one goroutine, and belongs to the network namespace of the thread that opened it.
type socket struct {
	fd       int
	sequence uint32
	buffer   []byte
}

const (
	// The kernel puts as much into an answer as there is room for, up to 32 KiB (netlink_dump in net/netlink/af_netlink.c).
	answerSize = 64 << 10
	// A batch is one datagram: 5,000 ports must fit.
	batchSize = 8 << 20
	// No answer takes that long. It keeps a kernel that has none from holding the caller for ever.
	answerSeconds = 30
)

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netfilter netlink socket: %w", needs("CONFIG_NETFILTER_NETLINK", err))
	}
	s := &socket{fd: fd, buffer: make([]byte, answerSize)}
	// Past the limits of net.core, where root may; else as far as they go.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, batchSize) != nil {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, batchSize))
	}
	timeout := unix.Timeval{Sec: answerSeconds}
	err = errors.Join(err,
		os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))) // so that it has a port
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) close() {
	if s != nil {
		unix.Close(s.fd)
	}
}

// port tells this socket from all that are open in its network namespace.
func (s *socket) port() (uint32, error) {
	address, err := unix.Getsockname(s.fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	return address.(*unix.SockaddrNetlink).Pid, nil
}

// A message is one or more netlink messages, as they are sent. Each is begun, then filled.
type message struct {
	raw   []byte
	last  int // where the last one begins
	count uint32
}

// begin begins a message, with nfnetlink's header: family, version 0, resource 0.
func (m *message) begin(kind uint16, family byte, flags uint16) {
	m.end()
	m.last = len(m.raw)
	m.count++
	m.raw = binary.NativeEndian.AppendUint32(m.raw, 0) // the length, see end
	m.raw = binary.NativeEndian.AppendUint16(m.raw, kind)
	m.raw = binary.NativeEndian.AppendUint16(m.raw, unix.NLM_F_REQUEST|flags)
	m.raw = append(m.raw, make([]byte, 8)...) // sequence and port, see send
	m.raw = append(m.raw, family, unix.NFNETLINK_V0, 0, 0)
}

// end completes the message that was begun last.
func (m *message) end() {
	if m.count > 0 {
		binary.NativeEndian.PutUint32(m.raw[m.last:], uint32(len(m.raw)-m.last))
	}
}

// put adds an attribute.
func (m *message) put(kind uint16, value []byte) {
	m.raw = binary.NativeEndian.AppendUint16(m.raw, uint16(unix.SizeofNlAttr+len(value)))
	m.raw = binary.NativeEndian.AppendUint16(m.raw, kind)
	m.raw = append(m.raw, value...)
	m.raw = append(m.raw, make([]byte, align(len(value))-len(value))...)
}

func (m *message) putString(kind uint16, value string) { m.put(kind, append([]byte(value), 0)) }

// putNumber adds a number, in network order.
func (m *message) putNumber(kind uint16, value uint32) {
	m.put(kind, binary.BigEndian.AppendUint32(nil, value))
}

// nest adds an attribute that holds those which fill adds.
func (m *message) nest(kind uint16, fill func()) {
	begin := len(m.raw)
	m.put(unix.NLA_F_NESTED|kind, nil)
	fill()
	binary.NativeEndian.PutUint16(m.raw[begin:], uint16(len(m.raw)-begin))
}

// send numbers the messages and sends them in one datagram. The answers carry the numbers from first to last.
func (s *socket) send(m *message) (first, last uint32, err error) {
	m.end()
	first = s.sequence + 1
	for rest := m.raw; len(rest) > 0; rest = rest[binary.NativeEndian.Uint32(rest):] {
		s.sequence++
		binary.NativeEndian.PutUint32(rest[8:], s.sequence)
	}
	err = unix.Sendto(s.fd, m.raw, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	return first, s.sequence, os.NewSyscallError("sendto", err)
}

// An answer is one message from the kernel. Its data lasts until the next datagram.
type answer struct {
	kind, flags uint16
	sequence    uint32
	data        []byte
}

// errno is what an NLMSG_ERROR or NLMSG_DONE says. Zero is success.
func (a answer) errno() unix.Errno { return unix.Errno(-int32(binary.NativeEndian.Uint32(a.data))) }

// receive reads one datagram.
func (s *socket) receive() ([]answer, error) {
	n, _, flags, _, err := unix.Recvmsg(s.fd, s.buffer, nil, 0)
	switch {
	case errors.Is(err, unix.EINTR):
		return nil, nil
	case err != nil:
		return nil, os.NewSyscallError("recvmsg", err)
	case flags&unix.MSG_TRUNC != 0:
		return nil, fmt.Errorf("the kernel answered with more than %d bytes at once", len(s.buffer))
	}
	var out []answer
	for rest := s.buffer[:n]; len(rest) > 0; {
		if len(rest) < unix.NLMSG_HDRLEN+4 {
			return nil, fmt.Errorf("the kernel answered with %d bytes", len(rest))
		}
		length := int(binary.NativeEndian.Uint32(rest))
		if length < unix.NLMSG_HDRLEN+4 || length > len(rest) {
			return nil, fmt.Errorf("the kernel answered with a message of %d bytes in %d", length, len(rest))
		}
		out = append(out, answer{
			kind: binary.NativeEndian.Uint16(rest[4:]), flags: binary.NativeEndian.Uint16(rest[6:]),
			sequence: binary.NativeEndian.Uint32(rest[8:]), data: rest[unix.NLMSG_HDRLEN:length],
		})
		rest = rest[min(align(length), len(rest)):]
	}
	return out, nil
}

// ask sends a question and calls each with the attributes of every message of the answer.
func (s *socket) ask(question message, each func(attributes []byte) error) error {
	_, sequence, err := s.send(&question)
	if err != nil {
		return err
	}
	for {
		answers, err := s.receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			switch {
			case a.sequence != sequence:
			case a.kind == unix.NLMSG_ERROR || a.kind == unix.NLMSG_DONE:
				if errno := a.errno(); errno != 0 {
					return errno
				}
				return nil
			default:
				if err := each(a.data[4:]); err != nil {
					return err
				}
				if a.flags&unix.NLM_F_MULTI == 0 {
					return nil
				}
			}
		}
	}
}

// commit sends a batch, of which the last message but the closing one asks for an acknowledgement. The kernel reports
// every message that failed, in order, then acknowledges; or says at once, of the opening one, why it did nothing. The
// first failure is all there is to know: a bare errno.
func (s *socket) commit(batch message) error {
	first, last, err := s.send(&batch)
	if err != nil {
		return err
	}
	var failed error
	for {
		answers, err := s.receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			if a.kind != unix.NLMSG_ERROR || a.sequence-first > last-first {
				continue
			}
			if errno := a.errno(); errno != 0 && failed == nil {
				failed = errno
			}
			if a.sequence == first && failed != nil || a.sequence == last-1 {
				return failed
			}
		}
	}
}

// align rounds up to the next multiple of four, at which netlink puts headers and attributes.
func align(n int) int { return (n + 3) &^ 3 }

// attributes are a message's or a nest's, by type. nftables sends numbers in network order. They last as long as
// their answer.
type attributes map[uint16][]byte

func (a attributes) str(t uint16) string { return string(bytes.TrimRight(a[t], "\x00")) }

func (a attributes) u32(t uint16) uint32 { return u32(a[t]) }

func u32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func (a attributes) u64(t uint16) uint64 {
	if len(a[t]) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(a[t])
}

func decodeAttributes(raw []byte) (attributes, error) {
	out := attributes{}
	err := eachAttribute(raw, func(t uint16, b []byte) error {
		out[t] = b
		return nil
	})
	return out, err
}

func eachAttribute(raw []byte, each func(t uint16, b []byte) error) error {
	for len(raw) > 0 {
		if len(raw) < unix.SizeofNlAttr {
			return fmt.Errorf("%d bytes after the last attribute", len(raw))
		}
		length := int(binary.NativeEndian.Uint16(raw))
		if length < unix.SizeofNlAttr || length > len(raw) {
			return fmt.Errorf("an attribute of %d bytes in the %d that are left", length, len(raw))
		}
		t := binary.NativeEndian.Uint16(raw[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if err := each(t, raw[unix.SizeofNlAttr:length]); err != nil {
			return err
		}
		raw = raw[min(align(length), len(raw)):]
	}
	return nil
}
