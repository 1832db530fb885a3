package main

import (
	"fmt"
	"strings"
)

// nft loads rules in nft's own syntax, and replaces those of the same table.
func (l *Lab) nft(rules string) { l.InPod("nft -f - <<'END'\n" + l.inFamily(rules) + "\nEND") }

// priorities are around every priority that the kernel and nft have a name for, and the first and the last that there are.
// The guard's own are -150 and 0.
var priorities = []int{
	-1 << 31, -450, -400, -399, -310, -300, -225, -200, -199, -151, -150, -149, -101, -100, -99, -1, 0, 1, 50, 99, 100, 101, 225, 300,
	1<<31 - 1,
}

// everywhere is a table of a family with one chain for each hook and priority, all with the same rules.
func everywhere(family, kind string, hooks []string, rules string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s every-%s\ndelete table %[1]s every-%[2]s\ntable %[1]s every-%[2]s {\n", family, kind)
	for _, hook := range hooks {
		device := ""
		if hook == "ingress" || hook == "egress" {
			device = ` device "eth0"`
		}
		for i, p := range priorities {
			if kind == "nat" && p <= -200 {
				continue // the kernel has none before conntrack
			}
			fmt.Fprintf(&b, "chain %s%d { type %s hook %[1]s%[4]s priority %d; %[6]s; }\n", hook, i, kind, device, p, rules)
		}
	}
	b.WriteString("}\n")
	return b.String()
}

var ipHooks = []string{"prerouting", "input", "forward", "output", "postrouting"}

func nftRows() []Row {
	acceptAll := everywhere("ip", "filter", ipHooks, "accept") + everywhere("ip6", "filter", ipHooks, "accept") +
		everywhere("inet", "filter", ipHooks, "accept") + everywhere("inet", "route", []string{"output"}, "accept") +
		everywhere("netdev", "filter", []string{"ingress", "egress"}, "accept") + everywhere("arp", "filter", []string{"input", "output"}, "accept")
	redirectAll := "meta l4proto { tcp, udp } th dport { 1111, 5353, 7890 } redirect to :8080"
	marks := "meta mark set 0x51; tcp dport 8443 meta mark set 0x53"
	rows := []Row{
		{
			Name:     "foreign-accept-everywhere",
			MustNot:  "a table of each family that accepts at every hook and at every priority lets a peer in",
			Weakness: everythingComesIn,
			Run:      throughStates(func(l *Lab) { l.nft(acceptAll) }, true, unnamed...),
		},
		{
			Name:     "foreign-nat-everywhere",
			MustNot:  "redirects in nat chains of every priority lead a peer from another port to an application",
			Weakness: everythingComesIn,
			Run: throughStates(func(l *Lab) {
				l.nft(everywhere("inet", "nat", []string{"prerouting", "output"}, redirectAll))
			}, false, Reaches("tcp", portNobody, portApp), Reaches("tcp", portPlaintext, portApp),
				Reaches("udp", portNobody, portApp), Reaches("udp", portPlaintextUDP, portApp)),
		},
		{
			Name:     "foreign-tproxy-everywhere",
			MustNot:  "tproxy to 15007 at every priority, before the guard's own and after, leads a peer past the client certificate",
			Weakness: marksDoNotMatter,
			Run: tproxyElsewhere(func(l *Lab) {
				l.nft(everywhere("inet", "filter", []string{"prerouting"},
					"meta iiftype != loopback meta l4proto tcp meta mark set 0x53 tproxy to :15007"))
			}),
		},
		{
			Name:     "foreign-mark-everywhere",
			MustNot:  "packets and connections that carry the proxy's marks from every hook on pass for the proxy's",
			Weakness: everythingComesIn,
			Enter: func(l *Lab) {
				for _, s := range []string{"ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"} {
					l.Sysctl(s, "1")
				}
			},
			Run: throughStates(func(l *Lab) {
				l.nft(everywhere("inet", "filter", []string{"prerouting", "input"}, marks+"; ct mark set 0x51"))
			}, true, unnamed...),
		},
		{
			Name:     "foreign-zones",
			MustNot:  "conntrack zones that differ by direction make a peer's packets look like answers",
			Weakness: everythingComesIn,
			Run: throughStates(func(l *Lab) {
				l.nft(`table inet zones
delete table inet zones
table inet zones {
	chain in { type filter hook prerouting priority raw; ct zone set 7; }
	chain out { type filter hook output priority raw; ct original zone set 8; }
}`)
			}, false, unnamed...),
		},
		{
			Name:     "foreign-notrack-before-defragmentation",
			MustNot:  "fragments that conntrack is told to leave alone before it puts them together pass one by one",
			Notices:  "the applications count; the wire is watched for their secrets",
			Weakness: everythingComesIn,
			Run: throughStates(func(l *Lab) {
				l.nft(`table inet early
delete table inet early
table inet early {
	chain in { type filter hook prerouting priority -500; notrack; }
	chain out { type filter hook output priority -500; notrack; }
}`)
			}, false, fragmentedTCP(portApp, 24), fragmentedUDP(portApp, 16), TCP(portApp), UDP(portApp)),
		},
		{
			Name:     "foreign-synproxy",
			MustNot:  "synproxy, which answers a peer's SYN itself and then connects over loopback, gets the peer to an application",
			Weakness: everythingComesIn,
			Run: throughStates(func(l *Lab) {
				l.nft(`table inet shield
delete table inet shield
table inet shield {
	chain pre { type filter hook prerouting priority raw; tcp flags syn notrack; }
	chain in {
		type filter hook input priority -1;
		ct state { invalid, untracked } synproxy mss 1400 wscale 7 timestamp sack-perm;
	}
}`)
			}, false, unnamed...),
		},
		{
			Name:     "foreign-change-of-ours-is-seen",
			MustNot:  "somebody flushes, deletes or weakens the guard's table while it is looked at, and podvm-guard verify is content",
			Notices:  "podvm-guard verify runs all the time while nft flushes, deletes and replaces; when a change is done, it must say no",
			Control:  "it says yes before",
			Weakness: carelessComparison,
			Run:      changeIsSeen,
		},
	}
	for i := range rows {
		rows[i].Group = "Rules of others: nft"
		if rows[i].Notices == "" {
			rows[i].Notices = "closed, with a living Envoy, and with a dead one: " + noticesApps
		}
		if rows[i].Control == "" {
			rows[i].Control = "with the same foreign rules, the same attempts get the secrets once the guard's table is deleted"
		}
	}
	return rows
}

// changeIsSeen changes the table in every coarse way, in each state, also while verify reads it.
func changeIsSeen(l *Lab) {
	verify := func() int {
		code, _ := exits(l.Pod.Command("/opt/bin/podvm-guard", "verify"))
		return code
	}
	for _, state := range []struct {
		name  string
		enter func()
	}{{"closed", l.Close}, {"mesh", func() { l.Close(); l.Raise(namedPorts) }}} {
		for _, change := range []string{
			"flush table inet podvm_guard", "delete table inet podvm_guard", "flush ruleset", "flush chain inet podvm_guard input",
			"table inet podvm_guard { flags dormant; }",
			"delete table inet podvm_guard; table inet podvm_guard { chain input { type filter hook input priority 0; policy accept; }; }",
			"delete table inet podvm_guard; table ip podvm_guard { chain input { type filter hook input priority 0; policy drop; }; }",
		} {
			state.enter()
			l.Control(Attempt{"podvm-guard verify of " + state.name, func(*Lab, Wait) string {
				return map[int]string{0: "exit code 0"}[verify()]
			}})
			// The change comes while verify runs again and again. From the moment that nft has returned, it must say no.
			changed := make(chan error, 1)
			go func() {
				out, err := l.Pod.Command("nft", change).CombinedOutput()
				if err != nil {
					err = fmt.Errorf("nft %q: %w: %s", change, err, out)
				}
				changed <- err
			}()
			for done := false; !done; {
				select {
				case err := <-changed:
					l.must(err)
					done = true
				default:
				}
				if code := verify(); code != 0 && code != 3 {
					l.Failf("%s: while nft %q is at work, podvm-guard verify exits with %d", state.name, change, code)
				} else if done && code != 3 {
					l.Failf("%s: after nft %q podvm-guard verify exits with %d, want 3", state.name, change, code)
				}
			}
		}
	}
}
