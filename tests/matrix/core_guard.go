package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
)

// guardRows are about the table itself: how it is changed, and what it leaves alone.
func guardRows() []Row {
	rows := []Row{
		{
			Name:     "swap-storm",
			MustNot:  "while the states follow one another a thousand times and more, one SYN or datagram falls between two tables",
			Notices:  "peers connect and send all the time; the application counts, and the wire is watched for its secret",
			Weakness: everythingComesIn,
			Run: func(l *Lab) {
				l.standIn(guard.PortIngress, guard.MarkIngress)
				l.swapStorm()
				l.RemoveGuard()
				l.Control(TCP(portApp))
			},
		},
		{
			Name:     "swap-storm-without-proxy",
			MustNot:  "the same, while nothing listens where the proxy should",
			Notices:  "peers connect and send all the time; the application counts, and the wire is watched for its secret",
			Weakness: everythingComesIn,
			Run: func(l *Lab) {
				l.swapStorm()
				l.RemoveGuard()
				l.Control(TCP(portApp))
			},
		},
		{
			Name:     "own-connections",
			MustNot:  "the pod's own TCP, UDP or DNS stops working in a state or between two",
			Notices:  "each is tried in each state, and connections from the first state are used in all others",
			Control:  "the same without a guard",
			Weakness: noAnswers,
			Run:      ownConnections,
		},
		{
			Name:     "applied-twice",
			MustNot:  "closing or raising the gate twice makes another table than once, or opens something",
			Notices:  "nft's listings are compared; peers try",
			Weakness: everythingComesIn,
			Run: func(l *Lab) {
				l.same("closed", l.Close)
				l.Blocked(with(unnamed, named)...)
				l.same("mesh", func() { l.Raise(namedPorts) })
				l.Blocked(unnamed...)
				l.same("closed again", l.Close)
				l.Blocked(with(unnamed, named)...)
				l.controlDirect()
			},
		},
		{
			Name:    "load-error",
			MustNot: "podvm-guard fails to load its rules, and the state changes or the exit code is 0",
			Notices: "podvm-guard runs without CAP_NET_ADMIN, as an ordinary user, and beside a table of its name that another process " +
				"owns; exit code and nft's listing are compared, and peers try",
			Weakness: everythingComesIn,
			Run:      loadError,
		},
		{
			Name:     "killed-while-loading",
			MustNot:  "podvm-guard is killed in the middle of what it does, and leaves a half-made table",
			Notices:  "after each of many kills at different moments, peers try in a storm, and podvm-guard verify must be content",
			Weakness: everythingComesIn,
			Run:      killedWhileLoading,
		},
		{
			Name:     "foreign-tables-stay",
			MustNot:  "arming, raising, lowering or removing the guard touches rules that are not its own",
			Notices:  "nft's listing of foreign tables of families ip, ip6, inet and bridge is compared after every transition",
			Control:  "the listing does change when a rule is added to them",
			Weakness: swallowsOthers,
			Run:      foreignTablesStay,
		},
		{
			Name:     "drops-are-counted",
			MustNot:  "something is dropped that podvm-guard status does not tell of",
			Notices:  "the counters of each dropping rule before and after a packet for it",
			Weakness: dropsUncounted,
			Run:      dropsAreCounted,
		},
		{
			Name:     "last-rule-and-policy",
			Static:   true,
			MustNot:  "what comes in or through is stopped by one line alone: the last rule of its chain, or the chain's policy",
			Notices:  "nft's listing of the chains input and forward in both states",
			Control:  "a changed policy and a deleted last rule are seen",
			Weakness: policyAccepts,
			Run:      lastRuleAndPolicy,
		},
		{
			Name:     "every-change-is-noticed",
			Static:   true,
			MustNot:  "podvm-guard verify is content with a table that was changed, whatever the change",
			Notices:  "each rule is deleted once, each chain's policy changed once, and a rule, a chain and a set are added; exit code 3 is wanted each time",
			Control:  "exit code 0 for the table as it was loaded",
			Weakness: carelessComparison,
			Run:      everyChangeIsNoticed,
		},
	}
	for i := range rows {
		rows[i].Group = "The table and its transitions"
		if rows[i].Control == "" {
			rows[i].Control = controlDirect
		}
	}
	return rows
}

// controlDirect makes the usual attempts without the guard.
func (l *Lab) controlDirect() {
	l.RemoveGuard()
	for _, a := range with(unnamed, named) {
		l.Control(a)
	}
}

// swapStorm changes states while a storm blows.
func (l *Lab) swapStorm() {
	stop := l.storm(portApp)
	swaps := 0
	l.must(l.Pod.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), stormDuration+rowDeadline/2)
		defer cancel()
		for began := time.Now(); time.Since(began) < stormDuration || swaps < 1000; {
			for _, change := range []func(context.Context) error{
				func(ctx context.Context) error { return guard.Raise(ctx, namedPorts) },
				guard.Close,
				func(ctx context.Context) error { return guard.Raise(ctx, guard.Ports{}) },
				guard.Arm,
			} {
				if err := change(ctx); err != nil {
					return err
				}
				swaps++
			}
		}
		return nil
	}))
	stop()
	l.Notef("%d changes of state", swaps)
}

func ownConnections(l *Lab) {
	type old struct {
		name string
		use  func() bool
	}
	var olds []old
	remember := func(state string) {
		for _, network := range []string{"tcp", "udp"} {
			app := map[string]*App{"tcp": l.outsideTCP, "udp": l.outsideUDP}[network]
			c, err := dial(l.Pod.Host, network, netip.AddrPortFrom(l.PeerAddr(), portOutside), patience)
			l.must(err)
			l.cleanup(func() { c.Close() })
			olds = append(olds, old{network + " from state " + state, func() bool {
				for range 20 { // datagrams may get lost
					c.SetDeadline(time.Now().Add(silence))
					io.WriteString(c, "again\n")
					if readSecret(c, app) != "" {
						return true
					}
					if network == "tcp" {
						return false
					}
				}
				return false
			}})
		}
	}
	in := func(state string) {
		l.Works(own...)
		l.Works(PodLoopback(portApp))
		for _, o := range olds {
			if !o.use() {
				l.Failf("in state %s: %s does not go on", state, o.name)
			}
		}
		remember(state)
	}
	in("closed at boot")
	l.Raise(namedPorts)
	in("mesh without a proxy")
	l.StartReady()
	in("mesh")
	l.KillProxy()
	in("mesh with a dead proxy")
	l.Lower()
	in("closed")
	l.Open()
	in("open")
	l.RemoveGuard()
	for _, a := range own {
		l.Control(a)
	}
}

// listing is the whole table as nft prints it, without counts.
func (l *Lab) listing() string {
	t, err := l.table()
	l.must(err)
	var b strings.Builder
	if t == nil {
		return "no table"
	}
	for _, c := range t.chains {
		fmt.Fprintf(&b, "%s policy %s\n\t%s\n", c.name, c.policy, strings.Join(c.rules, "\n\t"))
	}
	return b.String()
}

// same applies something twice and compares the tables.
func (l *Lab) same(what string, apply func()) {
	apply()
	once := l.listing()
	apply()
	if twice := l.listing(); twice != once {
		l.Failf("%s applied once:\n%s\ntwice:\n%s", what, once, twice)
	}
}

// exits runs podvm-guard and returns its exit code and what it said.
func exits(cmd *exec.Cmd) (int, string) {
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		return -1, err.Error()
	}
	return cmd.ProcessState.ExitCode(), string(bytes.TrimSpace(out))
}

func loadError(l *Lab) {
	wantFailure := func(what string, cmd *exec.Cmd, before string) {
		if code, out := exits(cmd); code != 1 {
			l.Failf("%s: podvm-guard close exits with %d, want 1: %s", what, code, out)
		}
		if after := l.listing(); after != before {
			l.Failf("%s: the table was\n%s\nand is\n%s", what, before, after)
		}
	}
	powerless := func() *exec.Cmd {
		return l.Pod.Command("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all", "/opt/bin/podvm-guard", "close")
	}
	user := func() *exec.Cmd {
		return l.Pod.Command("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "/opt/bin/podvm-guard", "close")
	}
	closed := l.listing()
	wantFailure("root without CAP_NET_ADMIN, closed", powerless(), closed)
	wantFailure("an ordinary user, closed", user(), closed)
	l.Blocked(with(unnamed, named)...)
	l.Raise(namedPorts)
	mesh := l.listing()
	wantFailure("root without CAP_NET_ADMIN, mesh", powerless(), mesh)
	l.Blocked(unnamed...)
	l.Works(named...)
	if code, out := exits(l.Pod.Command("/opt/bin/podvm-guard", "close")); code != 0 {
		l.Brokenf("podvm-guard close with its capability exits with %d: %s", code, out)
	}
	l.controlDirect()

	// A table that belongs to another process cannot be deleted by anyone else, so the batch fails in its middle.
	owner := l.Pod.Command("sh", "-c", "{ echo 'table inet podvm_guard { flags owner; chain input { }; }'; cat; } | nft -i")
	stdin, err := owner.StdinPipe()
	l.must(err)
	l.must(owner.Start())
	defer owner.Wait()
	defer stdin.Close()
	l.Await("a table that another process owns", func() bool { return l.Stage() != guard.Opened })
	owned := l.listing()
	wantFailure("beside a table that another process owns", l.Pod.Command("/opt/bin/podvm-guard", "close"), owned)
}

func killedWhileLoading(l *Lab) {
	stop := l.storm(portApp)
	for i := range 60 {
		cmd := l.Pod.Command("/opt/bin/podvm-guard", "close")
		l.must(cmd.Start())
		// From before it begins to after it is done, in steps of a quarter of a millisecond.
		time.Sleep(time.Duration(i) * 250 * time.Microsecond)
		running, err := l.Pod.Processes("podvm-guard")
		l.must(err)
		for _, p := range running {
			p.Kill()
		}
		cmd.Wait() // of nsenter, which must live to reap it
		if code, out := exits(l.Pod.Command("/opt/bin/podvm-guard", "verify")); code != 0 {
			l.Failf("kill %d: podvm-guard verify exits with %d: %s", i, code, out)
		}
	}
	stop()
	l.Blocked(with(unnamed, named)...)
	l.controlDirect()
}

func foreignTablesStay(l *Lab) {
	l.InPod(`nft -f - <<END
table ip shop {
	set s { type inet_service; elements = { 1, 2 }; }
	chain c { type filter hook input priority 10; }
}
table ip6 shop {
	chain c { type nat hook prerouting priority -90; }
}
table inet podvm_guard2 {
	chain input { type filter hook input priority 0; policy accept; }
}
table bridge shop {
	chain c { type filter hook forward priority 0; policy accept; }
}
add rule ip shop c tcp dport @s counter
add rule ip6 shop c tcp dport 99 redirect to :98
END`)
	foreign := func() string {
		var b strings.Builder
		for _, t := range []string{"ip shop", "ip6 shop", "inet podvm_guard2", "bridge shop"} {
			_, out := exits(l.Pod.Host.Command("sh", "-c", "nft -a -s list table "+t))
			fmt.Fprintln(&b, out)
		}
		return b.String()
	}
	before := foreign()
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"close", l.Close},
		{"raise", func() { l.Raise(namedPorts) }},
		{"lower", l.Lower},
		{"open", l.Open},
		{"close again", l.Close},
		{"a whole life of the mesh proxy", func() { l.StartReady(); l.KillProxy() }},
	} {
		step.do()
		if after := foreign(); after != before {
			l.Failf("after %s the foreign tables were\n%s\nand are\n%s", step.name, before, after)
		}
	}
	l.Control(Attempt{"a changed foreign table", func(l *Lab, _ Wait) string {
		l.InPod("nft add rule ip shop c counter")
		if foreign() == before {
			return ""
		}
		return "another listing"
	}})
}

// drops are the counters of the dropping rules, by chain and rule, as the real command tells them.
func (l *Lab) drops() map[string]uint64 {
	var s guard.Status
	l.must(json.Unmarshal([]byte(l.InPod("/opt/bin/podvm-guard status --json")), &s))
	out := map[string]uint64{}
	for _, c := range s.Counters {
		if c.Drop {
			out[c.Chain+": "+c.Rule] += c.Packets
		}
	}
	return out
}

func dropsAreCounted(l *Lab) {
	peerDials := func(port uint16) func() { return func() { l.Blocked(Handshake(port)) } }
	l.forwarding()
	l.counted("closed", "input", "", peerDials(portApp))
	l.counted("closed", "forward", "", func() { l.Blocked(throughPod("tcp")) })
	l.counted("closed", "output", "fin,syn,rst,ack", l.oldAnswer)
	l.Raise(namedPorts)
	l.counted("mesh", "intercept", "", peerDials(portApp))
	l.counted("mesh", "intercept", "15006", peerDials(guard.PortIngress))
	l.counted("mesh", "input", "", func() { l.Blocked(UDP(portApp)) })
	l.counted("mesh", "forward", "", func() { l.Blocked(throughPod("udp")) })
	l.counted("mesh", "output", "0x00000052", l.sendDecrypted)
	l.counted("mesh", "output", "fin,syn,rst,ack", l.oldAnswer)
	l.controlDirect()
}

// counted does something that a rule of a chain drops, one with a certain text or the last one, and wants its counter to move.
func (l *Lab) counted(state, chain, text string, do func()) {
	moved := func(before, after map[string]uint64) bool {
		for rule, n := range after {
			if strings.HasPrefix(rule, chain+": ") && strings.Contains(rule, text) && n > before[rule] &&
				(text != "" || rule == chain+": counter drop") {
				return true
			}
		}
		return false
	}
	before := l.drops()
	do()
	if after := l.drops(); !moved(before, after) {
		l.Failf("in state %s no drop was counted in chain %s by a rule with %q: %v", state, chain, text, after)
	}
}

// oldAnswer has the pod send the answer to a connection that nobody has opened since the gate was closed, with conntrack
// told to be loose.
func (l *Lab) oldAnswer() {
	l.Sysctl("netfilter/nf_conntrack_tcp_loose", "1")
	from, to := netip.AddrPortFrom(l.PodAddr(), portApp), netip.AddrPortFrom(l.PeerAddr(), 47000)
	l.must(l.Pod.Do(func() error {
		err := sendRaw(Segment(from, to, flagACK|flagPSH, 1, 1, []byte("old answer")))
		if errors.Is(err, unix.EPERM) { // what the output hook drops fails at once
			return nil
		}
		return err
	}))
}

// sendRaw sends an IP packet through the kernel of the calling thread's network, and so through its output hook.
func sendRaw(packet []byte) error {
	if packet[0]>>4 == 4 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, packet, 0, &unix.SockaddrInet6{Addr: [16]byte(packet[24:40])})
}

func everyChangeIsNoticed(l *Lab) {
	verify := func(want int, what string) {
		if code, out := exits(l.Pod.Command("/opt/bin/podvm-guard", "verify")); code != want {
			l.Failf("%s: podvm-guard verify exits with %d, want %d: %s", what, code, want, out)
		}
	}
	for _, state := range []struct {
		name  string
		enter func()
	}{{"closed", l.Close}, {"mesh", func() { l.Close(); l.Raise(namedPorts) }}} {
		state.enter()
		l.Control(Attempt{"podvm-guard verify of " + state.name, func(l *Lab, _ Wait) string {
			code, _ := exits(l.Pod.Command("/opt/bin/podvm-guard", "verify"))
			return map[int]string{0: "exit code 0"}[code]
		}})
		sound, err := l.table()
		l.must(err)
		var changes []string
		for _, c := range sound.chains {
			for i := range c.rules {
				changes = append(changes, fmt.Sprintf("delete rule inet podvm_guard %s handle $(nft -a list chain inet podvm_guard %[1]s | "+
					"sed -n 's/.*# handle //p' | tail -n +2 | sed -n %dp)", c.name, i+1))
			}
			changes = append(changes,
				fmt.Sprintf("insert rule inet podvm_guard %s counter", c.name),
				fmt.Sprintf("chain inet podvm_guard %s '{ policy %s ; }'", c.name, map[string]string{"drop": "accept", "accept": "drop"}[c.policy]))
		}
		changes = slices.Concat(changes, []string{
			"add chain inet podvm_guard more", "add set inet podvm_guard more '{ type inet_service ; }'", "delete table inet podvm_guard",
		})
		if state.name == "mesh" {
			changes = append(changes, "add element inet podvm_guard plaintext_tcp '{ 15006 }'")
		}
		for _, change := range changes {
			state.enter()
			l.InPod("nft " + change)
			verify(3, state.name+": nft "+change)
		}
	}
}

func lastRuleAndPolicy(l *Lab) {
	stoppedOnce := func() (found []string) {
		t, err := l.table()
		l.must(err)
		for _, name := range []string{"input", "forward"} {
			switch c := t.chain(name); {
			case c == nil:
				found = append(found, "there is no chain "+name)
			case c.policy != "drop":
				found = append(found, fmt.Sprintf("chain %s has policy %s", name, c.policy))
			case len(c.rules) == 0 || c.rules[len(c.rules)-1] != "counter drop":
				found = append(found, fmt.Sprintf("chain %s does not end in a drop that counts", name))
			}
		}
		return found
	}
	for _, state := range []struct {
		name  string
		enter func()
	}{{"closed", l.Close}, {"mesh", func() { l.Raise(namedPorts) }}} {
		state.enter()
		for _, fault := range stoppedOnce() {
			l.Failf("%s: %s", state.name, fault)
		}
	}
	l.InPod("nft chain inet podvm_guard input '{ policy accept ; }'; nft flush chain inet podvm_guard forward")
	l.Control(Attempt{"a policy and a rule that are missing", func(*Lab, Wait) string {
		if len(stoppedOnce()) != 2 {
			return ""
		}
		return "both"
	}})
}
