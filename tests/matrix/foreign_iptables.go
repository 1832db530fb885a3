package main

import (
	"fmt"
	"net"
	"strings"

	"portcullis.dev/portcullis/guest/guard"
)

// iptables speaks to the kernel in two ways: to tables of its own (legacy), and to nf_tables, in tables that stand beside the
// guard's. A container that brings either must not be able to open the gate by accident, nor a rule that was meant for
// another purpose.
type dialect string

const (
	legacy dialect = "legacy"
	viaNFT dialect = "nft"
)

// iptables loads rules in the syntax of iptables-save, of the lab's family.
func (l *Lab) iptables(d dialect, rules string) {
	tool := map[Family]string{IPv4: "iptables", IPv6: "ip6tables"}[l.Family] + "-" + string(d) + "-restore"
	l.InPod(tool+" <<'END'\n"+l.inFamily(rules)+"\nEND", tool)
}

// inFamily puts what is of the lab's family where rules say POD, PEER, LOOPBACK and FAMILY.
func (l *Lab) inFamily(rules string) string {
	loopback := map[Family]string{IPv4: "127.0.0.1", IPv6: "::1"}[l.Family]
	return strings.NewReplacer("POD", l.PodAddr().String(), "PEER", l.PeerAddr().String(), "LOOPBACK", loopback,
		"FAMILY", map[Family]string{IPv4: "ip", IPv6: "ip6"}[l.Family]).Replace(rules)
}

const portNobody uint16 = 1111 // nothing listens there; rules lead away from it

// Reaches connects to a port of the pod and wants the application on another, to which somebody's rules lead.
func Reaches(network string, port, app uint16) Attempt {
	return Attempt{fmt.Sprintf("%s to port %d, led to port %d", network, port, app), func(l *Lab, wait Wait) string {
		to := addrPort(l.PodAddr(), port)
		if network == "udp" {
			return l.AskUDP(l.Peer, to, l.App(network, app), wait)
		}
		return l.AskTCP(l.Peer, to, l.App(network, app), wait)
	}}
}

// strangers greets whoever is led to the listener that asks for no certificate, from a port that is behind mutual TLS.
var strangers = Attempt{"a connection to port 8080 of the listener that asks for no certificate", func(l *Lab, wait Wait) string {
	if l.reads(addrPort(l.PodAddr(), portApp), standInSecret, wait) {
		return "the listener's greeting"
	}
	return ""
}}

// iptablesRules are what the rows load, by their names.
var iptablesRules = []struct {
	name, mustNot, rules string
	attempts             []Attempt
	// harmless rules must not stop members of the mesh.
	harmless bool
	// settings are sysctls that belong to such rules in the field.
	settings []string
}{
	{
		name:    "nat-redirect",
		mustNot: "REDIRECT and DNAT in table nat lead a peer from another port to an application",
		rules: `*nat
-A PREROUTING -p tcp -m multiport --dports 1111,7890 -j REDIRECT --to-ports 8080
-A PREROUTING -p udp -m multiport --dports 1111,5353 -j REDIRECT --to-ports 8080
-A PREROUTING -p tcp --dport 1112 -j DNAT --to-destination :8443
-A OUTPUT -p tcp --dport 1111 -j REDIRECT --to-ports 8080
COMMIT`,
		attempts: []Attempt{
			Reaches("tcp", portNobody, portApp), Reaches("tcp", portPlaintext, portApp), Reaches("tcp", 1112, portNoClientAuth),
			Reaches("udp", portNobody, portApp), Reaches("udp", portPlaintextUDP, portApp),
		},
	},
	{
		name:    "mangle-accept",
		mustNot: "ACCEPT in every chain of table mangle lets a peer in",
		rules: `*mangle
-A PREROUTING -j ACCEPT
-A INPUT -j ACCEPT
-A FORWARD -j ACCEPT
-A OUTPUT -j ACCEPT
-A POSTROUTING -j ACCEPT
COMMIT`,
		attempts: unnamed, harmless: true,
	},
	{
		name:    "filter-accept",
		mustNot: "ACCEPT in every chain of the tables filter and security lets a peer in",
		rules: `*filter
-I INPUT -j ACCEPT
-I FORWARD -j ACCEPT
-I OUTPUT -j ACCEPT
COMMIT
*security
-I INPUT -j ACCEPT
-I FORWARD -j ACCEPT
-I OUTPUT -j ACCEPT
COMMIT`,
		attempts: unnamed, harmless: true,
	},
	{
		name:    "raw-notrack",
		mustNot: "packets that conntrack is told not to track pass",
		rules: `*raw
-A PREROUTING -j CT --notrack
-A OUTPUT -j CT --notrack
COMMIT`,
		attempts: unnamed,
	},
	{
		name:    "connmark",
		mustNot: "packets and connections that carry the marks of the proxy's sockets pass for the proxy's, also where sockets inherit them",
		rules: `*mangle
-A PREROUTING -j MARK --set-mark 0x51
-A PREROUTING -j CONNMARK --set-mark 0x51
-A INPUT -p tcp --dport 8443 -j MARK --set-mark 0x53
-A OUTPUT -j CONNMARK --restore-mark
COMMIT`,
		attempts: unnamed, harmless: true,
		settings: []string{"ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"},
	},
	{
		name:    "synproxy",
		mustNot: "SYNPROXY, which answers a peer's SYN itself and then connects over loopback, gets the peer to an application",
		rules: `*raw
-A PREROUTING -p tcp --syn -j CT --notrack
COMMIT
*filter
-A INPUT -p tcp -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1400
COMMIT`,
		attempts: unnamed,
	},
}

func iptablesRows() []Row {
	var rows []Row
	for _, d := range []dialect{legacy, viaNFT} {
		for _, r := range iptablesRules {
			rows = append(rows, Row{
				Name:     fmt.Sprintf("iptables-%s-%s", r.name, d),
				MustNot:  r.mustNot,
				Weakness: everythingComesIn,
				Enter: func(l *Lab) {
					for _, s := range r.settings {
						l.Sysctl(s, "1")
					}
				},
				Run: throughStates(func(l *Lab) { l.iptables(d, r.rules) }, r.harmless, r.attempts...),
			})
		}
		rows = append(rows, Row{
			Name:     fmt.Sprintf("iptables-mangle-tproxy-%s", d),
			MustNot:  "TPROXY of all ports to 15007 in table mangle, before the guard's own or after, leads a peer past the client certificate",
			Weakness: marksDoNotMatter,
			Run: tproxyElsewhere(func(l *Lab) {
				l.iptables(d, "*mangle\n-A PREROUTING -i eth0 -p tcp -j TPROXY --on-port 15007 --tproxy-mark 0x53/0xff\nCOMMIT")
			}),
		}, Row{
			Name: fmt.Sprintf("iptables-nat-to-proxy-%s", d),
			MustNot: "REDIRECT and DNAT to 15007 in table nat lead a peer past the client certificate; ports that are led to the proxy's " +
				"can be used to dial it",
			Weakness: everythingComesIn,
			Run: tproxyElsewhere(func(l *Lab) {
				l.iptables(d, "*nat\n-A PREROUTING -i eth0 -p tcp --dport 8080 -j REDIRECT --to-ports 15007\nCOMMIT")
			}),
		})
	}
	for i := range rows {
		rows[i].Group = "Rules of others: iptables"
		if rows[i].Notices == "" {
			rows[i].Notices = "closed, with a living Envoy, and with a dead one: " + noticesApps
		}
		if rows[i].Control == "" {
			rows[i].Control = "with the same foreign rules, the same attempts get the secrets once the guard's table is deleted"
		}
	}
	return rows
}

// throughStates makes attempts closed, with a living Envoy and with a dead one. The foreign rules are loaded in between, so
// that the kernel calls them after the guard's of the same priority, and before them.
func throughStates(load func(*Lab), harmless bool, attempts ...Attempt) func(*Lab) {
	return func(l *Lab) {
		load(l)
		l.Blocked(in("closed, foreign rules last", attempts)...)
		l.Close()
		l.Blocked(in("closed, foreign rules first", attempts)...)
		l.StartReady()
		l.Blocked(in("with Envoy, foreign rules first", attempts)...)
		load(l)
		l.Blocked(in("with Envoy, foreign rules loaded again", attempts)...)
		if harmless {
			l.Works(MutualTLS(portApp), StrangersTLS(portNoClientAuth))
			l.Works(named...)
		}
		l.KillProxy()
		l.Blocked(in("Envoy dead", attempts)...)
		l.RemoveGuard()
		for _, a := range attempts { // one after the other, so that none lives on another's success
			l.Control(a)
		}
	}
}

// in says in which state attempts are made.
func in(state string, attempts []Attempt) []Attempt {
	out := make([]Attempt, len(attempts))
	for i, a := range attempts {
		out[i] = Attempt{state + ": " + a.Name, a.Try}
	}
	return out
}

// tproxyElsewhere is for rules that lead connections to the listener that asks for no certificate. Stand-ins with the marks of
// Envoy's listeners are there, of which only that one speaks; Envoy itself would refuse such a connection in the end, and hide
// what the guard does.
func tproxyElsewhere(load func(*Lab)) func(*Lab) {
	return func(l *Lab) {
		l.Raise(namedPorts)
		load(l)
		silent := l.standInSilently(guard.PortIngress, guard.MarkIngress)
		stop := l.standIn(guard.PortIngressNoClientAuth, guard.MarkIngressNoClientAuth)
		attempts := append([]Attempt{strangers}, unnamed[:1]...)
		l.Blocked(in("foreign rules last", attempts)...)
		l.Raise(namedPorts)
		l.Blocked(in("foreign rules first", attempts)...)
		stop()
		silent()
		l.StartReady()
		l.Blocked(StrangersTLS(portApp))
		l.KillProxy()
		l.RemoveGuard()
		stop = l.standIn(guard.PortIngressNoClientAuth, guard.MarkIngressNoClientAuth)
		l.Control(strangers)
		stop()
	}
}

// standInSilently is standIn with a listener that never accepts a connection.
func (l *Lab) standInSilently(port uint16, mark int) (stop func()) {
	var ln net.Listener
	l.must(l.Pod.Do(func() (err error) { ln, err = listenMarked(fmt.Sprint(port), true, mark); return err }))
	stop = func() { ln.Close() }
	l.cleanup(stop)
	return stop
}
