package guard

import "slices"

// The rulesets, in the order and the words of nft; nft.go makes the kernel's expressions of them.
// They are normative: a rule here that reads weaker than it could be is a hole, so each carries its reason.

const (
	notAdmitted    = "from outside, not admitted"
	notTheListener = "to a socket that is not the proxy's for this port"
	decrypted      = "decrypted, on its way out"
)

// closed admits what the guest itself started, and nothing else.
func closed(e egress) table {
	return table{chains: []chain{
		baseChain("input", atInput, policyDrop,
			answers(),
			rule(counter(notAdmitted), drop()),
		),
		forward(),
		output(e),
	}}
}

// mesh sends every TCP connection that a peer opens to the mesh proxy's listeners, and admits to the guest's sockets
// only what these listeners received and what the configuration names as plaintext. Where proxy is the number of a cgroup, the
// listeners are those of that cgroup: in the image's own services a mark is not all that the proxy is known by.
func mesh(p Ports, e egress, proxy uint64) table {
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
				rule(iifLoopback(), fibSaddrLocal(), accept()),
				// Whatever route_localnet says, no peer speaks to a service on 127/8.
				rule(ipDaddr127(), counter("from outside to 127.0.0.0/8"), drop()),
				// The input chain decides.
				rule(l4protoNot(tcp), accept()),
				rule(tcpDport(in(plaintextTCP)), accept()),
				// Dialled directly, a listener would not know which port the peer meant.
				rule(tcpDport(oneOf(PortIngress, PortIngressNoClientAuth)), counter("to a listener of the proxy itself"), drop()),
				// Answers to the guest's own connections.
				rule(tcpFlagsNot(flagSYN, flagSYN|flagACK), ctDirection(reply), ctState(established), accept()),
				rule(tcpDport(in(noClientAuth)), tproxyTo(PortIngressNoClientAuth), counter("to the proxy, without a client certificate"), accept()),
				rule(l4proto(tcp), tproxyTo(PortIngress), counter("to the proxy, for mutual TLS"), accept()),
				rule(counter("TCP, while no proxy listens"), drop()),
			),
			baseChain("input", atInput, policyDrop,
				answers(),
				rule(tcpDport(in(plaintextTCP)), accept()),
				rule(udpDport(in(plaintextUDP)), accept()),
				// A transparent socket with the wrong mark is a squatter's, or the listener that asks no certificate.
				listener(proxy, tcpDport(in(noClientAuth)), socketTransparent(), socketMark(MarkIngressNoClientAuth)),
				listener(proxy, tcpDport(notIn(noClientAuth)), socketTransparent(), socketMark(MarkIngress)),
				// The last ACK of a syncookie handshake looks established, and reaches whatever listens.
				rule(tcpDport(in(noClientAuth)), socketMarkNot(MarkIngressNoClientAuth), counter(notTheListener), drop()),
				rule(tcpDport(notIn(noClientAuth)), socketMarkNot(MarkIngress), counter(notTheListener), drop()),
				outsideOf(proxy),
				// Request and time-wait sockets carry no mark.
				rule(l4proto(tcp), socketTransparent(), ctState(established), accept()),
				rule(counter(notAdmitted), drop()),
			),
			forward(),
			// Envoy's decrypted side never leaves the guest, even when the pod's address has moved away meanwhile. By the
			// socket's mark: a packet's is changed by every CONNMARK or MARK rule on the way.
			output(e, rule(socketMark(MarkDecrypted), counter(decrypted), drop())),
		},
	}
}

// listener admits what the proxy's listener receives.
func listener(proxy uint64, pieces ...piece) rules {
	if proxy != 0 {
		pieces = append(pieces, socketCgroup(proxyCgroup, proxy))
	}
	return rule(append(pieces, accept())...)
}

// outsideOf drops what reaches a socket that has the proxy's mark, and was not admitted above: it is not in the proxy's cgroup. A
// workload with CAP_NET_RAW can mark a socket as Envoy's are marked; it cannot move it there. (That a cgroup is another one does
// not match for sockets of cgroups that are less deep.)
func outsideOf(proxy uint64) rules {
	if proxy == 0 {
		return nil
	}
	return slices.Concat(
		rule(l4proto(tcp), socketMark(MarkIngressNoClientAuth), counter(notTheListener), drop()),
		rule(l4proto(tcp), socketMark(MarkIngress), counter(notTheListener), drop()),
	)
}

// output is what leaves the guest: everything, or under the egress lock what Portcullis itself sends.
func output(e egress, more ...rules) chain {
	if !e.free {
		return lockedOutput(e)
	}
	return baseChain("output", atOutput, policyAccept,
		inside(),
		slices.Concat(more...),
		noPickup(),
	)
}

// lockedOutput names everything that may leave, because nobody can name what may not: where a workload's plaintext goes
// is decided by names, routes and addresses, and all of these are the host's.
func lockedOutput(e egress) chain {
	return baseChain("output", atOutput, policyDrop,
		inside(),
		// By the socket's mark, here and below: a packet's may have been set by a foreign rule on the way.
		rule(socketMark(MarkDecrypted), counter(decrypted), drop()),
		noPickup(),
		// Answers to what the input chain admitted. A connection of the guest's own, from before the lock, is no answer.
		rule(ctDirection(reply), ctState(established), accept()),
		// Envoy's connections to peers, and those of the Initializer to the Coordinator.
		rule(socketMark(MarkEgress), accept()),
		e.exceptions(),
		// IPv6 finds neither neighbour nor router without these. Sockets without CAP_NET_RAW cannot send them.
		rule(icmpv6TypeIn(
			mldListenerReport, mldListenerDone, ndRouterSolicit, ndNeighborSolicit, ndNeighborAdvert, mld2ListenerReport,
		), accept()),
		rule(counter("kept in by the egress lock"), drop()),
	)
}

// inside: what once went through loopback stays in the guest, either way. The address that it goes to may move to the wire,
// and then an application's answers to Envoy would follow it.
func inside() rules {
	return slices.Concat(
		rule(oifLoopback(), setCtMark(markInside), accept()),
		rule(ctMark(markInside), counter("of loopback, on its way out"), drop()),
		// A foreign rule may take that mark away; that the source is no more the guest's own, it cannot change.
		rule(l4proto(tcp), fibSaddrNotLocal(), counter("from an address that has moved away"), drop()),
	)
}

// exceptions are the parts of the lock that a pod or an image may differ in.
func (e egress) exceptions() rules {
	var out rules
	if e.agent != 0 {
		// It pulls images in the guest, for containers that start after the lock.
		out = append(out, rule(socketCgroup(agentCgroup, e.agent), accept())...)
	}
	if e.dns {
		out = append(out, rule(l4protoIn(tcp, udp), thDport(portDNS), accept())...)
	}
	return out
}

// answers admits loopback, what belongs to the guest's own connections, and what IPv6 cannot live without.
// "ct state established" alone would admit a peer's connection too: every accepted one is established.
func answers() rules {
	return slices.Concat(
		// With a source of the guest's own: a foreign rule may put a peer's packets on lo.
		rule(iifLoopback(), fibSaddrLocal(), accept()),
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
		rule(counter("routed or bridged through the guest"), drop()),
	)
}

// noPickup refuses to continue a connection that conntrack has not seen from its SYN on, so that nothing older than
// the table, and nothing that a peer opened, turns into a connection of the guest by an answer to it. Such a segment is
// new, or invalid where conntrack is forbidden to pick connections up.
func noPickup() rules {
	return rule(tcpFlagsNot(flagSYN, flagFIN|flagSYN|flagRST|flagACK), ctState(fresh|invalid),
		counter("TCP whose beginning was not seen"), drop())
}
