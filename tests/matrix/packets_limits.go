package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
)

const portProbe uint16 = 15021

func portsOf(tcp, udp []uint16) guard.Ports { return guard.Ports{PlaintextTCP: tcp, PlaintextUDP: udp} }

func limitRows() []Row {
	return grouped("Named ports, and a full table", slices.Concat(
		[]Row{
			{
				Name:    "plaintext-udp-names-only-those",
				MustNot: "naming UDP ports lets datagrams to others in, or TCP to the same numbers",
				Notices: "applications on the ports beside the named ones, and at both ends of the range of ports, count",
				Run:     func(l *Lab) { l.onlyNamed("udp") },
			},
			{
				Name:    "plaintext-tcp-names-only-those",
				MustNot: "naming TCP ports lets connections to others in, or datagrams to the same numbers",
				Notices: "applications on the ports beside the named ones, and at both ends of the range of ports, count",
				Run:     func(l *Lab) { l.onlyNamed("tcp") },
			},
			{
				Name:    "probe-port-not-asked-for",
				MustNot: fmt.Sprintf("port %d, where the kubelet's probes would come in, is open in a pod that did not ask for it", portProbe),
				Enter:   func(l *Lab) { l.StartReady(); l.Serve("tcp", portProbe) },
				Blocked: []Attempt{TCP(portProbe)},
			},
		},
		closedAndMesh(Row{
			Name:    "conntrack-table-full",
			MustNot: "with a full connection table, whether it is full of connections of the pod's own or not, something gets in untracked",
			Control: "with the same full table the same attempts succeed once the guard's table is deleted; nobody asks conntrack then",
			Enter:   func(l *Lab) { l.fillConntrack() },
			Blocked: fullTable,
			Run: func(l *Lab) {
				// Conntrack itself drops what it has no room for. What somebody tells it not to track is the guard's alone.
				l.nft("table inet loose { chain c { type filter hook prerouting priority -300; notrack; }; }")
				l.Blocked(in("not tracked", fullTable)...)
			},
		}),
	))
}

var fullTable = with(unnamed, []Attempt{Handshake(portApp), ping})

// onlyNamed names some ports of one protocol, and tries their neighbours and the other protocol.
func (l *Lab) onlyNamed(network string) {
	named := []uint16{1, 7000, 7001, 7003, 65535}
	beside := []uint16{2, 6999, 7002, 7004, 65534}
	other := map[string]string{"tcp": "udp", "udp": "tcp"}[network]
	ports := portsOf(named, nil)
	if network == "udp" {
		ports = portsOf(nil, named)
	}
	var in, out []Attempt
	try := map[string]func(uint16) Attempt{"tcp": TCP, "udp": UDP}
	for _, p := range named {
		l.Serve(network, p).Named = true
		l.Serve(other, p)
		in, out = append(in, try[network](p)), append(out, try[other](p))
	}
	for _, p := range beside {
		l.Serve(network, p)
		out = append(out, try[network](p))
	}
	l.Blocked(with(in, out)...)
	l.Raise(ports)
	l.Works(in...)
	l.Blocked(out...)
	l.RemoveGuard()
	for _, a := range with(in, out) {
		l.Control(a)
	}
}

// fillConntrack fills the pod's connection table with connections that count as assured, so that the kernel does not throw
// any out for a new one. The table's size is the whole machine's and only its own root may change it; how full it is counts
// for each network by itself.
func (l *Lab) fillConntrack() {
	const most = 1 << 20 // some 400 MB of the kernel's memory
	size, err := strconv.Atoi(strings.TrimSpace(l.InPod("cat /proc/sys/net/netfilter/nf_conntrack_max")))
	l.must(err)
	if size == 0 || size > most {
		l.Brokenf("net.netfilter.nf_conntrack_max is %d on this machine: to fill the table takes too much memory; as root outside, "+
			"set it to 262144", size)
	}
	l.must(l.Pod.Do(func() error { return fillConntrack(size) }))
	count := func() int {
		n, err := strconv.Atoi(strings.TrimSpace(l.InPod("cat /proc/sys/net/netfilter/nf_conntrack_count")))
		l.must(err)
		return n
	}
	if n := count(); n < size {
		l.Brokenf("the connection table has %d entries of %d after it was filled", n, size)
	}
	if PodUDP().Try(l, silence) != "" {
		l.Brokenf("the connection table is full, and yet the pod opened a new connection")
	}
}

// fillConntrack adds n connections between addresses that nobody has, by ctnetlink
// (linux/netfilter/nfnetlink_conntrack.h), in batches without acknowledgement.
func fillConntrack(n int) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	const perBatch = 500
	messages := make([]netlink.Message, 0, perBatch)
	for i := 0; i < n+perBatch; i++ {
		data, err := assuredConnection(i)
		if err != nil {
			return err
		}
		messages = append(messages, netlink.Message{
			Header: netlink.Header{
				Type:  unix.NFNL_SUBSYS_CTNETLINK << 8, // IPCTNL_MSG_CT_NEW
				Flags: netlink.Request | netlink.Create | netlink.Excl,
			},
			Data: append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, data...),
		})
		if len(messages) == perBatch {
			if _, err := c.SendMessages(messages); err != nil {
				return err
			}
			messages = messages[:0]
		}
	}
	return nil
}

// assuredConnection is the i-th UDP connection of the table's filling: 198.18.x.y (RFC 2544) to another there.
func assuredConnection(i int) ([]byte, error) {
	a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 16), byte(i >> 8)})
	b := netip.AddrFrom4([4]byte{198, 19, 0, 1})
	here, there := uint16(1000+i&0xff), uint16(4242)
	tuple := func(kind uint16, from, to netip.Addr, fromPort, toPort uint16) func(*netlink.AttributeEncoder) {
		return func(e *netlink.AttributeEncoder) {
			e.Nested(kind, func(e *netlink.AttributeEncoder) error { // CTA_TUPLE_ORIG, CTA_TUPLE_REPLY
				e.Nested(1, func(e *netlink.AttributeEncoder) error { // CTA_TUPLE_IP
					e.Bytes(1, from.AsSlice()) // CTA_IP_V4_SRC
					e.Bytes(2, to.AsSlice())   // CTA_IP_V4_DST
					return nil
				})
				e.Nested(2, func(e *netlink.AttributeEncoder) error { // CTA_TUPLE_PROTO
					e.Uint8(1, unix.IPPROTO_UDP) // CTA_PROTO_NUM
					e.Uint16(2, fromPort)        // CTA_PROTO_SRC_PORT
					e.Uint16(3, toPort)          // CTA_PROTO_DST_PORT
					return nil
				})
				return nil
			})
		}
	}
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	tuple(1, a, b, here, there)(e)
	tuple(2, b, a, there, here)(e)
	const seenReply, assured, confirmed = 1 << 1, 1 << 2, 1 << 3 // enum ip_conntrack_status
	e.Uint32(3, seenReply|assured|confirmed)                     // CTA_STATUS
	e.Uint32(7, 600)                                             // CTA_TIMEOUT, in seconds
	return e.Encode()
}
