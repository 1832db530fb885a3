package main

import (
	"fmt"
	"net"
	"net/netip"

	vnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// interfaceRows are about what the host may add to a podVM while it runs.
func interfaceRows() []Row {
	atSpare := []Attempt{At((*Lab).SpareAddr, "tcp", portApp), At((*Lab).SpareAddr, "udp", portApp)}
	// inBothStates tries in the state of Enter, then in the mesh state.
	inBothStates := func(l *Lab) {
		l.Raise(namedPorts)
		l.Blocked(atSpare...)
	}
	rows := []Row{
		{
			Name:    "second-interface-added",
			MustNot: "a second interface, added after the gate was closed, lets a peer in",
			Enter: func(l *Lab) {
				l.Plug("eth1")
				l.addAddress(l.Pod.Host, "eth1", l.SpareAddr())
			},
		},
		{
			Name:    "second-interface-renamed",
			MustNot: "an interface that is renamed, to what sounds like loopback, lets a peer in",
			Enter: func(l *Lab) {
				l.Plug("eth1")
				l.InPod("ip link set eth1 down; ip link set eth1 name lo0; ip link set lo0 up")
				l.addAddress(l.Pod.Host, "lo0", l.SpareAddr())
			},
		},
		{
			Name:    "second-interface-moved-in",
			MustNot: "an interface that was made, addressed and brought up elsewhere is moved into the pod and lets a peer in",
			Enter: func(l *Lab) {
				l.moveIn("eth7")
				l.InPod("ip link set eth7 up")
				l.addAddress(l.Pod.Host, "eth7", l.SpareAddr())
			},
		},
		{
			Name:    "address-added-later",
			MustNot: "an address that the pod gets later lets a peer in",
			Enter:   func(l *Lab) { l.addAddress(l.Pod.Host, "eth0", l.SpareAddr()) },
		},
	}
	for i := range rows {
		rows[i].Blocked, rows[i].Run, rows[i].Weakness = atSpare, inBothStates, everythingComesIn
		rows[i].Notices = "peers try at the new address, closed and mesh; " + noticesApps
		rows[i].Control = controlDirect
	}
	rows = append(rows, Row{
		Name:     "forwarded-to-nested-bridge",
		MustNot:  "the pod forwards, and a peer reaches a container behind a bridge in the pod, or that container a peer",
		Notices:  "the nested application counts; closed and mesh",
		Control:  "the same traffic passes through the pod once the guard's table is deleted",
		Weakness: forwardOpen,
		Enter:    (*Lab).forwarding,
		Blocked:  []Attempt{throughPod("tcp"), throughPod("udp"), fromNested},
		Run: func(l *Lab) {
			l.Raise(namedPorts)
			l.Blocked(throughPod("tcp"), throughPod("udp"), fromNested)
		},
	})
	for i := range rows {
		rows[i].Group = "Interfaces, addresses, forwarding"
	}
	return rows
}

// moveIn makes an interface on the switch, brings it up there, and moves it into the pod.
func (l *Lab) moveIn(name string) {
	var pod netns.NsHandle
	l.must(l.Pod.Do(func() (err error) { pod, err = netns.Get(); return err }))
	defer pod.Close()
	l.InSwitch(func() error {
		bridge, err := vnetlink.LinkByName("switch")
		if err != nil {
			return err
		}
		veth := &vnetlink.Veth{LinkAttrs: vnetlink.LinkAttrs{Name: name + ".x", MasterIndex: bridge.Attrs().Index}, PeerName: name}
		if err := vnetlink.LinkAdd(veth); err != nil {
			return err
		}
		if err := vnetlink.LinkSetUp(veth); err != nil {
			return err
		}
		end, err := vnetlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := vnetlink.LinkSetUp(end); err != nil {
			return err
		}
		return vnetlink.LinkSetNsFd(end, int(pod))
	})
}

// The nested network: the pod's bridge has number 1, the container behind it number 2.
func (l *Lab) nested(n byte) netip.Addr {
	if l.Family == IPv4 {
		return netip.AddrFrom4([4]byte{10, 88, 0, n})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x00, 3: 0x88, 15: n})
}

// forwarding puts a container behind a bridge in the pod, lets the pod forward, and tells the peer the way.
func (l *Lab) forwarding() {
	l.inner = l.NewHost("inner")
	var ns netns.NsHandle
	l.must(l.inner.Do(func() (err error) { ns, err = netns.Get(); return err }))
	defer ns.Close()
	l.On(l.inner, "ip link del eth0")
	l.must(l.Pod.Do(func() error {
		bridge := &vnetlink.Bridge{LinkAttrs: vnetlink.LinkAttrs{Name: "cni0"}}
		if err := vnetlink.LinkAdd(bridge); err != nil {
			return err
		}
		veth := &vnetlink.Veth{
			LinkAttrs: vnetlink.LinkAttrs{Name: "nest0", MasterIndex: bridge.Index},
			PeerName:  "up0", PeerNamespace: vnetlink.NsFd(ns),
		}
		if err := vnetlink.LinkAdd(veth); err != nil {
			return err
		}
		if err := vnetlink.LinkSetUp(veth); err != nil {
			return err
		}
		return vnetlink.LinkSetUp(bridge)
	}))
	l.On(l.inner, "ip link set up0 up")
	l.addAddress(l.Pod.Host, "cni0", l.nested(1))
	l.addAddress(l.inner, "up0", l.nested(2))
	l.On(l.inner, "ip route add default via $1", l.nested(1).String())
	network := fmt.Sprintf("%s/%d", l.nested(0), l.prefixLength())
	l.OnPeer("ip route add $1 via $2", network, l.PodAddr().String())
	if l.Family == IPv4 {
		l.Sysctl("ipv4/ip_forward", "1")
	} else {
		l.Sysctl("ipv6/conf/all/forwarding", "1")
	}
	l.innerTCP = l.ServeOn(l.inner, "tcp", "", portApp)
	l.innerUDP = l.ServeOn(l.inner, "udp", "", portApp)
}

// throughPod connects from the peer to the nested container.
func throughPod(network string) Attempt {
	return Attempt{network + " through the pod", func(l *Lab, wait Wait) string {
		to := netip.AddrPortFrom(l.nested(2), portApp)
		if network == "udp" {
			return l.AskUDP(l.Peer, to, l.innerUDP, wait)
		}
		return l.AskTCP(l.Peer, to, l.innerTCP, wait)
	}}
}

// fromNested connects from the nested container to the peer.
var fromNested = Attempt{"the nested container's own TCP", func(l *Lab, wait Wait) string {
	c, err := dial(l.inner, "tcp", netip.AddrPortFrom(l.PeerAddr(), portOutside), wait)
	if err != nil {
		return ""
	}
	defer c.Close()
	return "a finished handshake with " + net.JoinHostPort(l.PeerAddr().String(), fmt.Sprint(portOutside))
}}
