package guard

import "slices"

// The rulesets, in the order and the words of nft; nft.go makes the kernel's expressions of them.
// They are normative: a rule here that reads weaker than it could be is a hole, so each carries its reason.

// closed admits what the guest itself started, and nothing else.
func closed() table {
	return table{chains: []chain{
		baseChain("input", atInput, policyDrop,
			answers(),
			rule(counter(), drop()),
		),
		forward(),
		baseChain("output", atOutput, policyAccept,
			rule(oifLoopback(), accept()),
			noPickup(),
		),
	}}
}

// mesh sends every TCP connection that a peer opens to the mesh proxy's listeners, and admits to the guest's sockets
// only what these listeners received and what the configuration names as plaintext.
func mesh(p Ports) table {
	var (
		plaintextTCP = portSet("plaintext_tcp", p.PlaintextTCP)
		plaintextUDP = portSet("plaintext_udp", p.PlaintextUDP)
		noClientAuth = portSet("no_client_auth", p.NoClientAuth)
	)
	return table{
		sets: []set{plaintextTCP, plaintextUDP, noClientAuth},
		chains: []chain{
			// For TCP the gate is the end of this chain: nft's tproxy is not terminal while nothing listens.
			baseChain("intercept", atPrerouting, policyAccept,
				rule(iifLoopback(), accept()),
				// Whatever route_localnet says, no peer speaks to a service on 127/8.
				rule(ipDaddr127(), counter(), drop()),
				// The input chain decides.
				rule(l4protoNot(tcp), accept()),
				rule(tcpDport(in(plaintextTCP)), accept()),
				// Dialled directly, a listener would not know which port the peer meant.
				rule(tcpDport(oneOf(PortIngress, PortIngressNoClientAuth)), counter(), drop()),
				// Answers to the guest's own connections.
				rule(tcpFlagsNot(flagSYN, flagSYN|flagACK), ctDirection(reply), ctState(established), accept()),
				rule(tcpDport(in(noClientAuth)), tproxyTo(PortIngressNoClientAuth), counter(), accept()),
				rule(l4proto(tcp), tproxyTo(PortIngress), counter(), accept()),
				rule(counter(), drop()),
			),
			baseChain("input", atInput, policyDrop,
				answers(),
				rule(tcpDport(in(plaintextTCP)), accept()),
				rule(udpDport(in(plaintextUDP)), accept()),
				// A transparent socket with the wrong mark is a squatter's, or the listener that asks no certificate.
				rule(tcpDport(in(noClientAuth)), socketTransparent(), socketMark(MarkIngressNoClientAuth), accept()),
				rule(tcpDport(notIn(noClientAuth)), socketTransparent(), socketMark(MarkIngress), accept()),
				// Request and time-wait sockets carry no mark.
				rule(l4proto(tcp), socketTransparent(), ctState(established), accept()),
				rule(counter(), drop()),
			),
			forward(),
			baseChain("output", atOutput, policyAccept,
				rule(oifLoopback(), accept()),
				// Envoy's decrypted side never leaves the guest, even when the pod's address has moved away meanwhile.
				rule(metaMark(MarkDecrypted), counter(), drop()),
				noPickup(),
			),
		},
	}
}

// answers admits loopback, what belongs to the guest's own connections, and what IPv6 cannot live without.
// "ct state established" alone would admit a peer's connection too: every accepted one is established.
func answers() rules {
	return slices.Concat(
		rule(iifLoopback(), accept()),
		// Never a bare SYN: that would be a simultaneous open, which makes a peer's connection look like an answer.
		rule(tcpFlagsNot(flagSYN, flagSYN|flagACK), ctDirection(reply), ctState(established), accept()),
		rule(l4protoNot(tcp), ctDirection(reply), ctState(established), accept()),
		// Path MTU and unreachable, about connections that exist.
		rule(l4protoIn(icmp, icmpv6), ctState(related), accept()),
		rule(icmpv6TypeIn(mldListenerQuery, ndRouterAdvert, ndNeighborSolicit, ndNeighborAdvert), accept()),
	)
}

// forward: a guest is no router. Whatever is bridged or nested inside it is closed too.
func forward() chain {
	return baseChain("forward", atForward, policyDrop,
		rule(counter(), drop()),
	)
}

// noPickup refuses to continue a connection that conntrack has not seen from its SYN on, so that nothing older than
// the table, and nothing that a peer opened, turns into a connection of the guest by an answer to it.
func noPickup() rules {
	return rule(tcpFlagsNot(flagSYN, flagFIN|flagSYN|flagRST|flagACK), ctState(fresh), counter(), drop())
}
