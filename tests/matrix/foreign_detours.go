package main

import (
	"fmt"

	"portcullis.dev/portcullis/guest/guard"
)

// detourRows are about rules that take a packet another way than the guard looks at: over loopback, to another listener, or
// without its mark.
func detourRows() []Row {
	rows := []Row{
		{
			Name:     "foreign-tproxy-of-last-ack",
			MustNot:  "only the ACK that ends a syncookie handshake is led to 15007, and opens a connection there that 15006 began",
			Weakness: everythingComesIn,
			Run:      tproxyOfLastACK,
		},
		{
			Name:     "foreign-mark-cleared-address-moved",
			MustNot:  "a rule that clears marks just before the guard looks lets the decrypted bytes follow the pod's address to another host",
			Notices:  "that host accepts on the application's port; the wire is watched for the text and for a SYN",
			Control:  "with that one rule of the guard deleted, the same Envoy's SYN is seen on the wire",
			Weakness: decryptedLeaves,
			Enter: func(l *Lab) {
				l.nft("table inet clear { chain c { type route hook output priority -1; meta mark set 0; }; }")
			},
			Run: movedAway,
		},
		{
			Name:     "foreign-duplicate-to-loopback",
			MustNot:  "a copy of each packet, sent to loopback, counts as the pod's own",
			Weakness: everythingComesIn,
			Run: throughStates(func(l *Lab) {
				l.nft(`table FAMILY copy
delete table FAMILY copy
table FAMILY copy {
	chain c { type filter hook prerouting priority -310; iif eth0 meta l4proto { tcp, udp } dup to LOOPBACK device lo; }
}`)
			}, false, unnamed...),
		},
		{
			Name:     "foreign-forward-to-loopback",
			MustNot:  "packets that are moved from eth0 to loopback before any hook of IP count as the pod's own",
			Weakness: everythingComesIn,
			Run: throughStates(func(l *Lab) {
				l.nft(`table netdev move
delete table netdev move
table netdev move {
	chain c {
		type filter hook ingress device "eth0" priority 0;
		meta l4proto { tcp, udp } ether daddr set 00:00:00:00:00:00 fwd to "lo";
	}
}`)
			}, false, unnamed...),
		},
	}
	for _, d := range []dialect{legacy, viaNFT} {
		rows = append(rows, Row{
			Name:     fmt.Sprintf("iptables-tee-%s", d),
			MustNot:  "a copy of each packet, sent to loopback by TEE, counts as the pod's own",
			Weakness: everythingComesIn,
			Run: throughStates(func(l *Lab) {
				l.iptables(d, `*mangle
-A PREROUTING -i eth0 -p tcp -j TEE --gateway LOOPBACK
-A PREROUTING -i eth0 -p udp -j TEE --gateway LOOPBACK
COMMIT`)
			}, false, unnamed...),
		}, Row{
			Name: fmt.Sprintf("iptables-connmark-address-moved-%s", d),
			MustNot: "CONNMARK --restore-mark in OUTPUT takes Envoy's mark from its packets, and the decrypted bytes follow the pod's address " +
				"to another host",
			Notices:  "that host accepts on the application's port; the wire is watched for the text and for a SYN",
			Control:  "with that one rule of the guard deleted, the same Envoy's SYN is seen on the wire",
			Weakness: decryptedLeaves,
			Enter:    func(l *Lab) { l.iptables(d, "*mangle\n-A OUTPUT -j CONNMARK --restore-mark\nCOMMIT") },
			Run:      movedAway,
		})
	}
	for i := range rows {
		rows[i].Group = "Rules of others: detours"
		if rows[i].Notices == "" {
			rows[i].Notices = "closed, with a living Envoy, and with a dead one: " + noticesApps
		}
		if rows[i].Control == "" {
			rows[i].Control = "with the same foreign rules, the same attempts get the secrets once the guard's table is deleted"
		}
	}
	return rows
}

// tproxyOfLastACK leads everything but a SYN to the listener that asks for no certificate, with syncookies for everyone: the
// kernel then makes a connection of any ACK with the right number, for whichever listener the packet was led to.
func tproxyOfLastACK(l *Lab) {
	l.Sysctl("ipv4/tcp_syncookies", "2")
	l.Raise(namedPorts)
	l.nft(`table inet acks { chain c {
	type filter hook prerouting priority -140; meta iiftype != loopback tcp flags & syn == 0 meta mark set 0x53 tproxy to :15007;
}; }`)
	silent := l.standInSilently(guard.PortIngress, guard.MarkIngress)
	stop := l.standIn(guard.PortIngressNoClientAuth, guard.MarkIngressNoClientAuth)
	// Without cookies of its own in the last minute, a listener believes in none (tcp_synq_no_recent_overflow). A peer can see
	// to that by itself.
	recently := Attempt{"a connection to a port that asks for no certificate", func(l *Lab, wait Wait) string {
		if l.reads(addrPort(l.PodAddr(), portNoClientAuth), standInSecret, wait) {
			return "a greeting"
		}
		return ""
	}}
	l.Works(recently)
	l.Blocked(strangers)
	stop()
	silent()
	l.StartReady()
	l.Blocked(StrangersTLS(portApp))
	l.KillProxy()
	stop = l.standIn(guard.PortIngressNoClientAuth, guard.MarkIngressNoClientAuth)
	l.Works(recently)
	l.RemoveGuard()
	l.Control(strangers)
	stop()
}
