package guard_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { netlab.Main(m) }

var examplePorts = guard.Ports{
	PlaintextTCP: []uint16{8001, 7890, 8002, 8000, 7890},
	PlaintextUDP: []uint16{5353},
	NoClientAuth: []uint16{8080, 65535},
}

// states are the ways into each state, with the file that holds its text.
var states = []struct {
	golden string
	state  guard.State
	ports  guard.Ports
	egress guard.Egress
	enter  func(context.Context) error
}{
	{golden: "closed.nft", state: guard.Closed, enter: guard.Arm},
	{golden: "closed.nft", state: guard.Closed, enter: inTurn(guard.Arm, raise(examplePorts), guard.Close)},
	{golden: "mesh.nft", state: guard.Mesh, enter: inTurn(guard.Arm, raise(guard.Ports{}))},
	{
		golden: "mesh-ports.nft", state: guard.Mesh, enter: inTurn(guard.Arm, raise(examplePorts)),
		ports: guard.Ports{
			PlaintextTCP: []uint16{7890, 8000, 8001, 8002},
			PlaintextUDP: []uint16{5353},
			NoClientAuth: []uint16{8080, 65535},
		},
	},
	{golden: "closed-locked.nft", state: guard.Closed, egress: locked, enter: guard.Lock{}.Arm},
	{golden: "closed-locked.nft", state: guard.Closed, egress: locked, enter: inTurn(guard.Arm, guard.Lock{}.Close)},
	{
		golden: "closed-locked-dns.nft", state: guard.Closed, egress: guard.Egress{Locked: true, DNS: true},
		enter: inTurn(guard.Lock{}.Arm, guard.Lock{DNS: true}.Close),
	},
	{golden: "mesh-locked.nft", state: guard.Mesh, egress: locked, enter: inTurn(guard.Arm, raiseLocked(guard.Lock{}, guard.Ports{}))},
	{
		golden: "mesh-locked-dns.nft", state: guard.Mesh, egress: guard.Egress{Locked: true, DNS: true},
		enter: inTurn(guard.Arm, raiseLocked(guard.Lock{DNS: true}, guard.Ports{})),
	},
	{golden: "closed.nft", state: guard.Closed, enter: inTurn(guard.Arm, raiseLocked(guard.Lock{}, guard.Ports{}), guard.Close)},
}

var locked = guard.Egress{Locked: true}

func TestKernelHoldsTheGoldenRuleset(t *testing.T) {
	for i, s := range states {
		t.Run(fmt.Sprint(s.golden, " ", i), func(t *testing.T) {
			h := netlab.NewHost(t, "guest")
			do(t, h, s.enter)
			golden(t, s.golden, nft(t, h, "-s", "list", "table", "inet", "podvm_guard"))
			if got := inspect(t, h); got.State != s.state || !got.Ports.Equal(s.ports) || got.Egress != s.egress {
				t.Errorf("Inspect: got state %q with ports %v, egress %+v (%s), want %q with %v, %+v",
					got.State, got.Ports, got.Egress, got.Difference, s.state, s.ports, s.egress)
			}
		})
	}
}

var designPorts = guard.Ports{PlaintextTCP: []uint16{7890}, PlaintextUDP: []uint16{5353}, NoClientAuth: []uint16{8080, 65535}}

// The design's own text, loaded by nft, must be what this package takes for its states: two compilers agree.
func TestRulesetIsTheDesignsText(t *testing.T) {
	for _, c := range []struct {
		file   string
		state  guard.State
		ports  guard.Ports
		egress guard.Egress
	}{
		{file: "design-closed.nft", state: guard.Closed},
		{file: "design-mesh.nft", state: guard.Mesh, ports: designPorts},
		{file: "design-closed-locked.nft", state: guard.Closed, egress: locked},
		{file: "design-mesh-locked-dns.nft", state: guard.Mesh, ports: designPorts, egress: guard.Egress{Locked: true, DNS: true}},
	} {
		t.Run(c.file, func(t *testing.T) {
			h := netlab.NewHost(t, "guest")
			nft(t, h, "-f", filepath.Join("testdata", c.file))
			if got := inspect(t, h); got.State != c.state || !got.Ports.Equal(c.ports) || got.Egress != c.egress {
				t.Errorf("got state %q with ports %v, egress %+v (difference: %s), want %q with %v, %+v",
					got.State, got.Ports, got.Egress, got.Difference, c.state, c.ports, c.egress)
			}
		})
	}
}

func TestStatusNamesRulesAsNftPrintsThem(t *testing.T) {
	lock := &guard.Lock{DNS: true}
	for _, c := range []struct {
		ports *guard.Ports
		lock  *guard.Lock
		enter func(context.Context) error
	}{
		{nil, nil, guard.Arm},
		{&guard.Ports{}, nil, inTurn(guard.Arm, raise(guard.Ports{}))},
		{nil, lock, lock.Arm},
		{&guard.Ports{}, lock, inTurn(guard.Arm, raiseLocked(*lock, guard.Ports{}))},
	} {
		h := netlab.NewHost(t, "guest")
		do(t, h, c.enter)
		printed := map[string][]string{}
		chain := ""
		for line := range strings.Lines(nft(t, h, "-s", "list", "table", "inet", "podvm_guard")) {
			switch line = strings.TrimSpace(line); {
			case strings.HasPrefix(line, "chain "):
				chain = strings.Fields(line)[1]
			case strings.HasSuffix(line, "accept") || strings.HasSuffix(line, "drop"):
				printed[chain] = append(printed[chain], line)
			}
		}
		if diff := cmp.Diff(printed, guard.RuleTexts(c.ports, c.lock)); diff != "" {
			t.Errorf("rule texts (-nft +ours):\n%s", diff)
		}
	}
}

func TestApplyingTwiceEqualsApplyingOnce(t *testing.T) {
	for i, s := range states {
		t.Run(fmt.Sprint(s.golden, " ", i), func(t *testing.T) {
			h := netlab.NewHost(t, "guest")
			do(t, h, s.enter)
			once := nft(t, h, "-s", "list", "ruleset")
			do(t, h, s.enter)
			if twice := nft(t, h, "-s", "list", "ruleset"); twice != once {
				t.Errorf("the second time changed the ruleset:\n%s", cmp.Diff(once, twice))
			}
		})
	}
}

// Every change that someone could make to our table is a foreign table, the subtle ones too.
func TestAnyOtherTableIsForeign(t *testing.T) {
	const table = "inet podvm_guard"
	for _, c := range []struct {
		name   string
		change func(t *testing.T, h *netlab.Host)
		want   string // in Difference
	}{
		{"rule added at the end", run("add rule " + table + " input tcp dport 22 accept"), "[ payload "},
		{"rule added at the start", run("insert rule " + table + " input accept"), `want in chain input the rule "meta iiftype loopback fib saddr type local accept"`},
		{"rule added to a chain that accepts", run("insert rule " + table + " intercept accept"), "intercept"},
		{"rule deleted", deleteRule("input", "drop"), "counter drop"},
		{"tproxy's gate deleted", deleteRule("intercept", "drop"), `want in chain intercept the rule "counter drop"`},
		{"rules reordered", edit("meta l4proto != tcp accept\n\t\ttcp dport @plaintext_tcp accept", "tcp dport @plaintext_tcp accept\n\t\tmeta l4proto != tcp accept"), "want in chain intercept"},
		{"another socket mark", edit("socket mark 0x00000051", "socket mark 0x00000052"), "0x00000051"},
		{"no socket mark", edit("socket transparent 1 socket mark 0x00000051 accept", "socket transparent 1 accept"), "0x00000051"},
		{"socket transparent 0", edit("socket transparent 1 socket mark 0x00000053", "socket transparent 0 socket mark 0x00000053"), "0x00000053"},
		{"another tproxy port", edit("tproxy to :15006", "tproxy to :15007"), "tproxy to :15006"},
		{"tproxy for one family", edit("meta l4proto tcp tproxy to :15006", "meta l4proto tcp tproxy ip to :15006"), "tproxy to :15006"},
		{"accept for drop", edit("priority filter; policy accept;\n\t\tmeta oiftype loopback ct mark set 0x00000055 accept\n\t\tct mark 0x00000055 counter drop\n\t\tmeta l4proto tcp fib saddr type != local counter drop\n\t\tsocket mark 0x00000052 counter drop", "priority filter; policy accept;\n\t\tmeta oiftype loopback ct mark set 0x00000055 accept\n\t\tct mark 0x00000055 counter drop\n\t\tmeta l4proto tcp fib saddr type != local counter drop\n\t\tsocket mark 0x00000052 counter accept"), "0x00000052"},
		{"inverted set lookup", edit("tcp dport != @no_client_auth", "tcp dport @no_client_auth"), "!= @no_client_auth"},
		{"another set", edit("udp dport @plaintext_udp", "udp dport @plaintext_tcp"), "@plaintext_udp"},
		{"one more in an anonymous set", edit("{ icmp, ipv6-icmp }", "{ icmp, tcp, ipv6-icmp }"), "{ icmp, ipv6-icmp }"},
		{"a range for an anonymous set", edit("{ 15006, 15007 }", "{ 15006-15007 }"), "{ 15006, 15007 }"},
		{"policy", run("chain " + table + " input { policy accept; }"), "chain input type filter hook 1 priority 0 policy 0"},
		{"priority", edit("hook input priority filter", "hook input priority filter + 1"), "chain input"},
		{"chain added", run("add chain " + table + " more { type filter hook input priority -1; policy accept; }"), "chain more"},
		{"chain without a hook added", run("add chain " + table + " more"), "chain more"},
		{"set added", run("add set " + table + " more { type inet_service; }"), "set more"},
		{"every port, as an element", run("add element " + table + " plaintext_tcp { 15006 }"), "plaintext TCP port 15006"},
		{"dormant table", run("add table " + table + " { flags dormant; }"), "table"},
		{"no rules", run("flush table " + table), `want in chain intercept the rule "meta iiftype loopback fib saddr type local accept"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := netlab.NewHost(t, "guest")
			do(t, h, inTurn(guard.Arm, raise(guard.Ports{})))
			c.change(t, h)
			got := inspect(t, h)
			if got.State != guard.Foreign || got.Acceptable() {
				t.Fatalf("got state %q, want foreign", got.State)
			}
			if !strings.Contains(got.Difference, c.want) {
				t.Errorf("difference does not name what changed (%s): %s", c.want, got.Difference)
			}
			// A transition replaces it, whatever it is.
			do(t, h, guard.Close)
			if got := inspect(t, h); got.State != guard.Closed {
				t.Errorf("after Close: got state %q (%s), want closed", got.State, got.Difference)
			}
		})
	}
}

// So is every change to the lock.
func TestAnyOtherLockIsForeign(t *testing.T) {
	const chain = "inet podvm_guard output"
	for _, c := range []struct {
		name   string
		change func(t *testing.T, h *netlab.Host)
	}{
		{"policy", run("chain " + chain + " { policy accept; }")},
		{"everything", run("insert rule " + chain + " accept")},
		{"another mark", edit("socket mark 0x00000054 accept", "socket mark 0x00000051 accept")},
		{"another port than DNS's", edit("socket mark 0x00000054 accept",
			"socket mark 0x00000054 accept\n\t\tmeta l4proto { tcp, udp } th dport 54 accept")},
		{"DNS in another place", run("insert rule " + chain + " meta l4proto { tcp, udp } th dport 53 accept")},
		{"original direction", edit("ct direction reply ct state established accept", "ct state established accept")},
		{"loopback not marked", edit("meta oiftype loopback ct mark set 0x00000055 accept", "meta oiftype loopback accept")},
		{"marked loopback let out", deleteRule("output", "ct mark 0x00000055 counter packets 0 bytes 0 drop")},
		{"decrypted let out", deleteRule("output", "socket mark 0x00000052 counter packets 0 bytes 0 drop")},
		{"picked up mid-stream", deleteRule("output", "ct state invalid,new counter packets 0 bytes 0 drop")},
		{"one more ICMPv6 type", edit("{ mld-listener-report,", "{ echo-request, mld-listener-report,")},
		{"user id for the mark", edit("socket mark 0x00000054 accept", "meta skuid 1337 accept")},
		{"the packet's mark for the socket's", edit("socket mark 0x00000054 accept", "meta mark 0x00000054 accept")},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := netlab.NewHost(t, "guest")
			do(t, h, guard.Lock{}.Arm)
			c.change(t, h)
			if got := inspect(t, h); got.State != guard.Foreign || got.Difference == "" || got.Egress.Locked {
				t.Errorf("got state %q (%s) with egress %v, want foreign", got.State, got.Difference, got.Egress)
			}
		})
	}
}

func TestFailedBatchLeavesTheOldState(t *testing.T) {
	h := netlab.NewHost(t, "guest")
	err := h.Do(func() error { return guard.LoadBroken(t.Context()) })
	if err == nil {
		t.Fatal("the kernel took a rule that looks into an absent set")
	}
	if _, ok := errors.AsType[*guard.MissingAbilityError](err); ok {
		t.Errorf("blamed a kernel option that is there: %v", err)
	}
	if got := nft(t, h, "list", "ruleset"); got != "" {
		t.Errorf("where nothing was, this is left:\n%s", got)
	}
	do(t, h, inTurn(guard.Arm, raise(examplePorts)))
	before := nft(t, h, "-s", "list", "ruleset")
	if err := h.Do(func() error { return guard.LoadBroken(t.Context()) }); err == nil {
		t.Fatal("the kernel took a rule that looks into an absent set")
	}
	if after := nft(t, h, "-s", "list", "ruleset"); after != before {
		t.Errorf("the old state is changed:\n%s", cmp.Diff(before, after))
	}
}

func TestMissingKernelAbilityIsNamed(t *testing.T) {
	for expression, option := range map[string]string{
		"tproxy": "CONFIG_NFT_TPROXY", "socket": "CONFIG_NFT_SOCKET", "ct": "CONFIG_NFT_CT", "immediate": "CONFIG_NF_TABLES_INET",
		"ct dreg=1 key=3": "CONFIG_NF_CONNTRACK_MARK", "socket key=3": "CONFIG_SOCK_CGROUP_DATA", "fib": "CONFIG_NFT_FIB_INET",
	} {
		err := guard.ExplainWithout(expression)
		if missing, ok := errors.AsType[*guard.MissingAbilityError](err); !ok || missing.Option != option {
			t.Errorf("kernel without %s: got %v, want it to name %s", expression, err, option)
		}
	}
	if err := guard.ExplainWithout("nothing"); !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("a kernel that lacks nothing: got %v, want the batch's own error", err)
	}
}

func TestAbilitiesAreTriedOneByOneAndLeaveNothing(t *testing.T) {
	h := netlab.NewHost(t, "guest")
	before := nft(t, h, "list", "ruleset")
	var tried []guard.Ability
	do(t, h, func(ctx context.Context) (err error) {
		tried, err = guard.Abilities(ctx)
		return err
	})
	for _, a := range tried {
		if a.Err != nil {
			t.Errorf("%s: %v", a.Option, a.Err)
		}
	}
	if len(tried) != 7 {
		t.Errorf("%d abilities were tried, want 7", len(tried))
	}
	if after := nft(t, h, "list", "ruleset"); after != before {
		t.Errorf("the rules are changed:\n%s", cmp.Diff(before, after))
	}
}

func TestAbilitiesThatAreMissingOrForbiddenAreTold(t *testing.T) {
	tried, err := guard.AbilitiesOf(func(listing string) error {
		if strings.Contains(listing, "tproxy") {
			return unix.ENOENT
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range tried {
		if missing := a.Err != nil; missing != (a.Option == "CONFIG_NFT_TPROXY") {
			t.Errorf("%s: %v", a.Option, a.Err)
		}
	}
	for _, errno := range []unix.Errno{unix.EPERM, unix.ENOMEM} {
		if _, err := guard.AbilitiesOf(func(string) error { return errno }); !errors.Is(err, errno) {
			t.Errorf("got %v, want %v", err, errno)
		}
	}
}

func TestOpenRemovesOnlyOurTable(t *testing.T) {
	h := netlab.NewHost(t, "guest")
	for _, foreign := range []string{"inet filter", "ip podvm_guard", "inet podvm_guard2"} {
		nft(t, h, "add table "+foreign)
	}
	before := nft(t, h, "list", "ruleset")
	do(t, h, inTurn(guard.Arm, guard.Open))
	if after := nft(t, h, "list", "ruleset"); after != before {
		t.Errorf("other tables changed:\n%s", cmp.Diff(before, after))
	}
	if got := inspect(t, h); got.State != guard.Opened || got.Acceptable() {
		t.Errorf("got state %q, want open, which is not acceptable", got.State)
	}
}

func TestWithoutATableNothingButArmActs(t *testing.T) {
	h := netlab.NewHost(t, "guest")
	for name, f := range map[string]func(context.Context) error{
		"Raise": raise(examplePorts), "Close": guard.Close, "Open": guard.Open,
	} {
		if err := h.Do(func() error { return f(t.Context()) }); !errors.Is(err, guard.ErrNoGuard) {
			t.Errorf("%s: got error %v, want ErrNoGuard", name, err)
		}
	}
	if got := nft(t, h, "list", "ruleset"); got != "" {
		t.Errorf("they made rules:\n%s", got)
	}
}

func TestArmForbidsMidstreamPickup(t *testing.T) {
	h := netlab.NewHost(t, "guest")
	const tcpLoose = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose"
	loose := func() (value string) {
		do(t, h, func(context.Context) error {
			b, err := os.ReadFile(tcpLoose)
			value = strings.TrimSpace(string(b))
			return err
		})
		return value
	}
	do(t, h, func(context.Context) error { return os.WriteFile(tcpLoose, []byte("1"), 0) })
	if got := loose(); got != "1" {
		t.Fatalf("the lab cannot set %s: got %s", tcpLoose, got)
	}
	do(t, h, guard.Arm)
	if got := loose(); got != "0" {
		t.Errorf("%s after Arm: got %s, want 0", tcpLoose, got)
	}
}

func TestPortsThatWouldWeakenTheGateAreRefused(t *testing.T) {
	h := netlab.NewHost(t, "guest")
	do(t, h, guard.Arm)
	for _, c := range []struct {
		ports guard.Ports
		want  []string
	}{
		{guard.Ports{PlaintextTCP: []uint16{0, 15006}}, []string{"plaintext TCP port 0", "plaintext TCP port 15006"}},
		{guard.Ports{NoClientAuth: []uint16{15007}}, []string{"without client certificate port 15007"}},
		{guard.Ports{PlaintextTCP: []uint16{80, 443}, NoClientAuth: []uint16{443}}, []string{"TCP port 443"}},
	} {
		err := h.Do(func() error { return guard.Raise(t.Context(), c.ports) })
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("Raise(%v): got error %v, want one that says %q", c.ports, err, w)
			}
		}
	}
	if got := inspect(t, h); got.State != guard.Closed {
		t.Errorf("got state %q, want closed", got.State)
	}
}

func TestThousandsOfPorts(t *testing.T) {
	h := netlab.NewHost(t, "guest")
	do(t, h, guard.Arm)
	ports := guard.Ports{}
	for p := uint16(20000); p < 30000; p += 2 { // no two are neighbours
		ports.PlaintextTCP = append(ports.PlaintextTCP, p)
	}
	do(t, h, raise(ports))
	if got := inspect(t, h); !slices.Equal(got.Ports.PlaintextTCP, ports.PlaintextTCP) {
		t.Errorf("got state %q with %d ports, want mesh with %d", got.State, len(got.Ports.PlaintextTCP), len(ports.PlaintextTCP))
	}
}

func TestZeroLockHasNoExceptions(t *testing.T) {
	h := netlab.NewHost(t, "guest")
	do(t, h, guard.Lock{}.Arm)
	if got := inspect(t, h).Egress; !got.Locked || got.DNS || got.Agent {
		t.Errorf("the zero lock is %+v", got)
	}
}

func TestPortsAreEqualByContent(t *testing.T) {
	p := guard.Ports{PlaintextTCP: []uint16{2, 1, 1}, NoClientAuth: []uint16{7}}
	for _, c := range []struct {
		q    guard.Ports
		want bool
	}{
		{guard.Ports{PlaintextTCP: []uint16{1, 2}, NoClientAuth: []uint16{7}}, true},
		{guard.Ports{PlaintextTCP: []uint16{1}, NoClientAuth: []uint16{7}}, false},
		{guard.Ports{PlaintextTCP: []uint16{1, 2, 3}, NoClientAuth: []uint16{7}}, false},
		{guard.Ports{PlaintextUDP: []uint16{1, 2}, NoClientAuth: []uint16{7}}, false},
		{guard.Ports{PlaintextTCP: []uint16{1, 2, 7}}, false},
		{guard.Ports{}, false},
	} {
		if got := p.Equal(c.q); got != c.want || c.q.Equal(p) != got {
			t.Errorf("%v equal to %v: %t, want %t", p, c.q, got, c.want)
		}
	}
}

func TestCancelledContextChangesNothing(t *testing.T) {
	h := netlab.NewHost(t, "guest")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Do(func() error { return guard.Arm(ctx) }); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want context canceled", err)
	}
	if got := nft(t, h, "list", "ruleset"); got != "" {
		t.Errorf("it made rules:\n%s", got)
	}
}

func TestZeroStatusIsNotAcceptable(t *testing.T) {
	if (guard.Status{}).Acceptable() {
		t.Error("a status that nobody filled in is acceptable")
	}
}

func raise(p guard.Ports) func(context.Context) error {
	return func(ctx context.Context) error { return guard.Raise(ctx, p) }
}

func raiseLocked(l guard.Lock, p guard.Ports) func(context.Context) error {
	return func(ctx context.Context) error { return l.Raise(ctx, p) }
}

func inTurn(steps ...func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, f := range steps {
			if err := f(ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

func do(t *testing.T, h *netlab.Host, f func(context.Context) error) {
	t.Helper()
	if err := h.Do(func() error { return f(t.Context()) }); err != nil {
		t.Fatal(err)
	}
}

func inspect(t *testing.T, h *netlab.Host) (s guard.Status) {
	t.Helper()
	do(t, h, func(ctx context.Context) (err error) {
		s, err = guard.Inspect(ctx)
		return err
	})
	return s
}

func nft(t *testing.T, h *netlab.Host, args ...string) string {
	t.Helper()
	cmd := h.Command("nft", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

func run(command string) func(*testing.T, *netlab.Host) {
	return func(t *testing.T, h *netlab.Host) { nft(t, h, command) }
}

// edit loads the live table again with a part of its text replaced.
func edit(old, with string) func(*testing.T, *netlab.Host) {
	return func(t *testing.T, h *netlab.Host) {
		text := nft(t, h, "-s", "list", "table", "inet", "podvm_guard")
		if !strings.Contains(text, old) {
			t.Fatalf("the table does not contain %q:\n%s", old, text)
		}
		file := filepath.Join(t.TempDir(), "edited.nft")
		text = "delete table inet podvm_guard\n" + strings.Replace(text, old, with, 1)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		nft(t, h, "-f", file)
	}
}

// deleteRule deletes a chain's last rule that contains a word.
func deleteRule(chain, word string) func(*testing.T, *netlab.Host) {
	return func(t *testing.T, h *netlab.Host) {
		handle := ""
		for line := range strings.Lines(nft(t, h, "-a", "list", "chain", "inet", "podvm_guard", chain)) {
			if strings.Contains(line, word+" # handle") {
				handle = strings.TrimSpace(line[strings.LastIndex(line, " "):])
			}
		}
		nft(t, h, "delete rule inet podvm_guard "+chain+" handle "+handle)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}
