package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	portLocal  uint16 = 8091 // a service on loopback only
	portEgress uint16 = 8092 // where an egress listener of the proxy would be
)

var egressAddr = netip.MustParseAddr("127.137.0.1")

func loopbackRows() []Row {
	var attempts4 []Attempt
	local4 := netip.MustParseAddr("127.0.0.1")
	for _, network := range []string{"tcp", "udp"} {
		attempts4 = append(attempts4, atLoopback(network, local4, portLocal), atLoopback(network, local4, portApp))
	}
	attempts4 = append(attempts4, atLoopback("tcp", egressAddr, portEgress))
	named4 := []Attempt{atLoopback("tcp", local4, portPlaintext), atLoopback("udp", local4, portPlaintextUDP)}
	return grouped("Loopback addresses and sysctls", slices.Concat(
		closedAndMesh(Row{
			Name: "loopback-address-from-the-wire",
			MustNot: "packets from the wire to 127.0.0.0/8, which route_localnet lets in, reach services that listen on loopback only, the " +
				"proxy's egress listeners, or a named port there",
			Notices:  "the pod's answers would be on the wire, from 127.0.0.1",
			Families: []Family{IPv4},
			Weakness: everythingComesIn,
			Enter:    func(l *Lab) { l.serveLocal(); l.routeLocalnet() },
			Blocked:  with(attempts4, named4),
		}),
		closedAndMesh(Row{
			Name: "loopback-address-by-source-route",
			MustNot: "a packet to the pod whose route (an IPv4 option, an IPv6 segment routing header) goes on to loopback reaches services " +
				"there; for IPv6 to an address of lo, since to ::1 the kernel itself knows no route from outside",
			Notices:  "the services count; the pod's answers would be on the wire",
			Weakness: everythingComesIn,
			Enter: func(l *Lab) {
				l.serveLocal()
				l.routeLocalnet()
				l.On(l.Pod.Host, "ip addr add $1 dev lo nodad", onLoopback[IPv6].String())
				for _, s := range []string{
					"ipv4/conf/all/accept_source_route", "ipv4/conf/eth0/accept_source_route",
					"ipv6/conf/all/seg6_enabled", "ipv6/conf/eth0/seg6_enabled",
				} {
					l.Sysctl(s, "1")
				}
			},
			Blocked: []Attempt{sourceRouted(onLoopback)},
		}),
		[]Row{
			{
				Name:     "loopback-address-of-ipv6-from-the-wire",
				MustNot:  "a packet from the wire to ::1, or one that says it comes from there, reaches anything",
				Notices:  "the application counts; the pod's answers would be on the wire",
				Control:  "the kernel itself drops these packets, so the same packets to the pod's own address show that they arrive",
				Families: []Family{IPv6},
				Run: func(l *Lab) {
					l.serveLocal()
					l.Sysctl("ipv6/conf/all/seg6_enabled", "1")
					l.Sysctl("ipv6/conf/eth0/seg6_enabled", "1")
					attempts := []Attempt{
						atLoopback("udp", netip.IPv6Loopback(), portLocal), atLoopback("tcp", netip.IPv6Loopback(), portLocal),
						fromLoopback(portApp), sourceRouted(map[Family]netip.Addr{IPv6: netip.IPv6Loopback()}),
					}
					l.Blocked(attempts...)
					l.Raise(namedPorts)
					l.Blocked(attempts...)
					l.Blocked(atPod("udp"), atPod("tcp"))
					l.RemoveGuard()
					l.Control(atPod("udp"))
					l.Control(atPod("tcp"))
				},
			},
			{
				Name:     "sysctls-of-tproxy",
				MustNot:  "with any of src_valid_mark {0,1}, rp_filter {0,1,2}, route_localnet {0,1} a peer gets past Envoy, or a member of the mesh does not get in",
				Notices:  "all twelve: " + noticesApps,
				Control:  "in all twelve, the same attempts get the secrets once the guard's table is deleted",
				Families: []Family{IPv4},
				Run:      sysctlsOfTproxy,
			},
			{
				Name:    "sysctls-of-sockets",
				MustNot: "with early demultiplexing off, or accepted sockets that inherit marks, a peer gets past Envoy, or a member does not get in",
				Run: func(l *Lab) {
					l.StartReady()
					for _, s := range []string{
						"ip_early_demux 0", "tcp_early_demux 0", "udp_early_demux 0", "tcp_fwmark_accept 1", "fwmark_reflect 1",
						"ip_nonlocal_bind 1", "tcp_l3mdev_accept 1", "tcp_syncookies 2",
					} {
						var name, value string
						fmt.Sscan(s, &name, &value)
						l.SysctlIfThere("ipv4/"+name, value)
					}
					l.Sysctl("ipv6/ip_nonlocal_bind", "1")
					l.Blocked(unnamed...)
					l.Works(MutualTLS(portApp), StrangersTLS(portNoClientAuth))
					l.KillProxy()
					l.Blocked(unnamed...)
					l.RemoveGuard()
					for _, a := range unnamed {
						l.Control(a)
					}
				},
			},
		},
	))
}

// serveLocal starts services on loopback only, for both families' rows. The pod then also knows its neighbour, the peer: asked
// for in the name of a loopback address, the peer would not answer.
func (l *Lab) serveLocal() {
	l.Works(PodTCP())
	loopback := map[Family]string{IPv4: "127.0.0.1", IPv6: "::1"}[l.Family]
	for _, a := range []*App{
		l.ServeOn(l.Pod.Host, "tcp", loopback, portLocal),
		l.ServeOn(l.Pod.Host, "udp", loopback, portLocal),
		l.ServeOn(l.Pod.Host, "tcp", egressAddr.String(), portEgress),
	} {
		l.mu.Lock()
		l.apps = append(l.apps, a)
		l.mu.Unlock()
	}
}

func (l *Lab) routeLocalnet() {
	l.Sysctl("ipv4/conf/all/route_localnet", "1")
	l.Sysctl("ipv4/conf/eth0/route_localnet", "1")
}

// atLoopback puts packets to a loopback address on the pod's cable.
func atLoopback(network string, address netip.Addr, port uint16) Attempt {
	return Attempt{fmt.Sprintf("%s to %s", network, addrPort(address, port)), func(l *Lab, wait Wait) string {
		if network == "udp" {
			return l.tell(l.freshPort(), addrPort(address, port), l.App("udp", port), nil, wait)
		}
		return l.say(l.freshPort(), addrPort(address, port), l.App("tcp", port), nil, wait)
	}}
}

// atPod puts the same packets on the cable, to the pod's own address.
func atPod(network string) Attempt {
	return Attempt{"the same " + network + " to the pod's own address", func(l *Lab, wait Wait) string {
		return atLoopback(network, l.PodAddr(), portApp).Try(l, wait)
	}}
}

// fromLoopback is a datagram to the pod that says it comes from loopback.
func fromLoopback(port uint16) Attempt {
	return Attempt{"a datagram with loopback's source address", func(l *Lab, wait Wait) string {
		from := addrPort(netip.IPv6Loopback(), l.freshPort())
		l.must(l.Wire.Inject(Datagram(from, addrPort(l.PodAddr(), port), []byte("plaintext"))))
		if awaitsFor(wait, func() bool { return l.App("udp", port).Took(from) }) {
			return "the application got it"
		}
		return ""
	}}
}

// onLoopback is an address of the interface lo that is no address of eth0.
var onLoopback = map[Family]netip.Addr{IPv4: netip.MustParseAddr("127.0.0.1"), IPv6: netip.MustParseAddr("fd00:141::1")}

// sourceRouted sends a datagram to the pod's address that is then to go on to another of its own.
func sourceRouted(on map[Family]netip.Addr) Attempt {
	return Attempt{"a datagram to loopback by way of the pod", func(l *Lab, wait Wait) string {
		by := func(packet []byte) [][]byte { return [][]byte{sourceRoute(packet, l.PodAddr())} }
		return l.tell(l.freshPort(), addrPort(on[l.Family], portApp), l.App("udp", portApp), by, wait)
	}}
}

// sourceRoute makes of a packet to its destination one that goes to via first: by a loose source route (RFC 791 section 3.1),
// or a segment routing header (RFC 8754 section 2).
func sourceRoute(packet []byte, via netip.Addr) []byte {
	if packet[0]>>4 == 4 {
		option := append([]byte{131, 7, 4}, packet[16:20]...)
		option = append(option, 0)
		out := append(append(append([]byte{}, packet[:20]...), option...), packet[20:]...)
		out[0] = 0x47
		copy(out[16:], via.AsSlice())
		binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
		out[10], out[11] = 0, 0
		binary.BigEndian.PutUint16(out[10:], fold(sum(out[:28], 0)))
		return out
	}
	// Segments are in reverse order; one is left, the last.
	header := []byte{packet[6], 4, 4, 1, 1, 0, 0, 0}
	header = append(append(header, packet[24:40]...), via.AsSlice()...)
	from := netip.AddrFrom16([16]byte(packet[8:24]))
	return IP(from, via, unix.IPPROTO_ROUTING, append(header, packet[40:]...))
}

func sysctlsOfTproxy(l *Lab) {
	l.StartReady()
	each := func(f func()) {
		for _, mark := range []string{"0", "1"} {
			for _, filter := range []string{"0", "1", "2"} {
				for _, localnet := range []string{"0", "1"} {
					for _, where := range []string{"all", "eth0"} {
						l.Sysctl("ipv4/conf/"+where+"/src_valid_mark", mark)
						l.Sysctl("ipv4/conf/"+where+"/rp_filter", filter)
						l.Sysctl("ipv4/conf/"+where+"/route_localnet", localnet)
					}
					f()
				}
			}
		}
	}
	attempts := with(unnamed, []Attempt{atLoopback("tcp", netip.MustParseAddr("127.0.0.1"), portPlaintext)})
	each(func() {
		l.Works(MutualTLS(portApp), StrangersTLS(portNoClientAuth))
		l.Blocked(attempts...)
	})
	l.RemoveGuard()
	each(func() {
		for _, a := range unnamed {
			l.Control(a)
		}
	})
}

// SysctlIfThere sets what some kernels are built without.
func (l *Lab) SysctlIfThere(name, value string) {
	l.InPod(`f=/proc/sys/net/$1; [ -e "$f" ] || exit 0; echo "$2" > "$f"`, name, value)
}
