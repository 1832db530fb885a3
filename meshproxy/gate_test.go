package meshproxy_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy"
	"portcullis.dev/portcullis/tests/netlab"
)

func TestChangedGuardIsPutBack(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	app := p.serveFirst(8080)
	p.startReady("--ingress", "web#8443#false", "--admin-port", "9901")
	const table = "inet podvm_guard"
	restored := 0
	for _, change := range []string{
		"insert rule " + table + " input accept; insert rule " + table + " intercept accept",
		"add element " + table + " plaintext_tcp { 8080 }", // a state of ours, but not this pod's
		"delete table " + table,
		"flush ruleset",
	} {
		if out, err := p.Command("nft", change).CombinedOutput(); err != nil {
			t.Fatalf("nft %s: %v: %s", change, err, out)
		}
		restored++
		p.await("the guard to be put back after "+change, func() error {
			if n := len(p.log.Entries("another process changed the guard; it is put back")); n < restored {
				return fmt.Errorf("the log says so %d times, want %d", n, restored)
			}
			return p.ready()
		})
		entries := p.log.Entries("another process changed the guard; it is put back")
		if last := entries[len(entries)-1]; last["process"] != "nft" || last["pid"] == 0.0 || last["level"] != "ERROR" {
			t.Errorf("after nft %s the log says %v", change, last)
		}
		for _, addr := range p.Addresses() {
			if got, err := plaintext(peer, p.at(addr, 8080)); err == nil {
				t.Errorf("after nft %s: %s answers %q in plaintext", change, addr, got)
			}
			if got, _, err := overTLS(peer, p.at(addr, 8080), m.client(m.issue(time.Hour, "api"))); got != greeting {
				t.Errorf("after nft %s: %s answers %q over TLS, %v", change, addr, got, err)
			}
		}
	}
	if n := app.accepted.Load(); int(n) != 2*restored {
		t.Errorf("the application saw %d connections, want those over TLS, %d", n, 2*restored)
	}
	// Rules elsewhere are none of ours: they are told, and left.
	if out, err := p.Command("nft", "add table inet elsewhere").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p.await("news of another table", func() error {
		if len(p.log.Entries("another process changed nftables rules; the guard stands as before")) != 1 {
			return errors.New("the log does not tell")
		}
		return nil
	})
	if out, err := p.Command("nft", "list", "table", "inet", "elsewhere").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	metrics, err := p.Command("curl", "-sS", "http://127.0.0.1:9901/metrics").CombinedOutput()
	for _, want := range []string{
		fmt.Sprintf("\nportcullis_meshproxy_foreign_rule_changes_total %d\n", restored+1),
		fmt.Sprintf("\nportcullis_meshproxy_guard_restored_total %d\n", restored),
	} {
		if err != nil || !strings.Contains(string(metrics), want) {
			t.Errorf("metrics do not say %q: %v\n%s", want, err, metrics)
		}
	}
}

// Another process may also leave a state of ours that is not this pod's.
func TestLiftedLockIsPutBack(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady("--egress-policy", "closed")
	for _, lift := range []func(context.Context) error{
		func(ctx context.Context) error { return guard.Raise(ctx, guard.Ports{}) },
		func(ctx context.Context) error { return guard.Lock{DNS: true}.Raise(ctx, guard.Ports{}) },
		guard.Lock{}.Close,
	} {
		if err := p.Do(func() error { return lift(t.Context()) }); err != nil {
			t.Fatal(err)
		}
		p.await("the lock to be put back", func() error {
			var s guard.Status
			err := p.Do(func() (err error) { s, err = guard.Inspect(t.Context()); return err })
			if err == nil && (s.State != guard.Mesh || s.Egress != guard.Egress{Locked: true}) {
				err = fmt.Errorf("the guard is %s with egress %s", s.State, s.Egress)
			}
			return err
		})
	}
	p.await("ready", p.ready)
}

// neverLive is a program in Envoy's place that does nothing. It is no script, whose interpreter an Envoy may not execute.
func neverLive(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source := "package main\n\nimport \"time\"\n\nfunc main() { time.Sleep(time.Minute) }\n"
	if err := os.WriteFile(dir+"/main.go", []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", dir+"/never-live", dir+"/main.go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir + "/never-live"
}

// A change while Envoy is not live must not lift the gate.
func TestGuardIsPutBackAsItWas(t *testing.T) {
	nft := guard.Change{PID: 7, Process: "nft"}
	g := &recordingGuard{state: guard.Closed, others: make(chan guard.Change), raise: func() error { return nil }}
	cfg := inProcess(t, g, "")
	envoy := cfg.Envoy
	cfg.Envoy = neverLive(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- meshproxy.Run(ctx, cfg) }()
	await(t, "the gate to be closed", func() error {
		if len(g.seen()) == 0 {
			return errors.New("the guard was asked for nothing")
		}
		return nil
	})
	g.change(guard.Foreign, "others change it")
	g.others <- nft
	g.others <- guard.Change{Missed: true} // is taken when the first has been seen to
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got, want := fmt.Sprint(g.seen()), "[close others change it arm close]"; got != want {
		t.Errorf("without a live Envoy the guard was asked to %s, want %s", got, want)
	}

	g = &recordingGuard{state: guard.Closed, others: make(chan guard.Change), raise: func() error { return nil }}
	cfg.Guard, cfg.Envoy = g, envoy
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- meshproxy.Run(ctx, cfg) }()
	await(t, "ready", func() error { return meshproxy.Ready(ctx, cfg.RunDir) })
	g.change(guard.Opened, "others change it")
	g.others <- nft
	await(t, "ready again", func() error { return meshproxy.Ready(ctx, cfg.RunDir) })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got, want := fmt.Sprint(g.seen()), "[close raise others change it arm raise close]"; got != want {
		t.Errorf("with a live Envoy the guard was asked to %s, want %s", got, want)
	}
}

// resolvConf makes the lab's DNS everybody's, in the lab's own mount namespace.
func resolvConf(t *testing.T) *netlab.DNS {
	t.Helper()
	if err := os.WriteFile("/run/resolv.conf", []byte(netlab.Resolver), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/run/resolv.conf", "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	dns, err := new(netlab.Lab).ServeDNS() // on the switch's addresses, which the test's lab has
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dns.Close()
		unix.Unmount("/etc/resolv.conf", unix.MNT_DETACH)
	})
	return dns
}

func TestLockedPodCallsOutThroughTheMeshOnly(t *testing.T) {
	m := newMesh(t)
	web := newPod(t, "web")
	dns := resolvConf(t)
	m.write(web.contrast, m.issue(time.Hour, "web-svc"))
	web.serveFirst(8080)
	web.serveFirst(7890)
	web.startReady("--ingress", "metrics#7890#true")
	dns.Set("web-svc", web.IPv6, web.IPv4)
	dns.Set("web-four", web.IPv4)
	dns.Set("secret", web.IPv4)
	for _, policy := range []string{"open", "closed", "closed,dns"} {
		caller := newPod(t, "caller")
		m.write(caller.contrast, m.issue(time.Hour, "caller"))
		caller.serveFirst(9000)
		caller.startReady("--egress-policy", policy, "--ingress", "plain#9000#true", "--egress", strings.Join([]string{
			fmt.Sprintf("address4#127.137.0.1:11001#%s:8080#web-svc", web.IPv4),
			fmt.Sprintf("address6#127.137.0.1:11002#[%s]:8080#web-svc", web.IPv6),
			"name#127.137.0.1:11003#web-svc:8080",
			"name4#127.137.0.1:11004#web-four:8080#web-svc",
			"long#127.137.0.1:11005#web-svc.default.svc.cluster.local:8080#web-svc",
		}, "##"))
		for port := uint16(11001); port <= 11005; port++ {
			await(t, fmt.Sprintf("policy %s: a greeting through listener %d", policy, port), func() error {
				_, err := plaintext(caller.Host, netip.AddrPortFrom(netip.MustParseAddr("127.137.0.1"), port))
				return err
			})
		}
		for _, addr := range web.Addresses() {
			if got, err := plaintext(caller.Host, web.at(addr, 7890)); (err == nil) != (policy == "open") {
				t.Errorf("policy %s: plaintext to %s: got %q, %v", policy, addr, got, err)
			}
		}
		for _, gateway := range []netip.Addr{netlab.Gateway4, netlab.Gateway6} {
			server := netip.AddrPortFrom(gateway, 53)
			if _, err := query(t, caller.Host, server, "web-svc.default."); (err == nil) != (policy != "closed") {
				t.Errorf("policy %s: DNS at %s: %v", policy, gateway, err)
			}
		}
		// Answers to what comes in get out under any policy.
		for _, addr := range caller.Addresses() {
			if got, err := plaintext(web.Host, caller.at(addr, 9000)); got != greeting {
				t.Errorf("policy %s: from outside %s answers %q, %v", policy, addr, got, err)
			}
		}
		// Envoy's resolver is everybody's in the pod, and knows the configured names only.
		own := netip.MustParseAddrPort("127.0.0.1:15053")
		known, err := query(t, caller.Host, own, "web-svc.")
		if (err == nil && known == 2) != (policy != "open") {
			t.Errorf("policy %s: the proxy's resolver knows web-svc by %d addresses, %v", policy, known, err)
		}
		if other, err := query(t, caller.Host, own, "secret.default.svc.cluster.local."); other != 0 {
			t.Errorf("policy %s: the proxy's resolver knows other names: %d, %v", policy, other, err)
		}
	}
}

// The lock is there before anything else of the mesh proxy is, and stays when it cannot start.
func TestLockHoldsBeforeEnvoy(t *testing.T) {
	t.Parallel()
	p := newPod(t, "web")
	out, err := p.command(p.flags("--egress-policy", "closed")...).CombinedOutput()
	if exitCode(err) != 1 || !strings.Contains(string(out), "read the credentials") {
		t.Fatalf("without credentials: %v: %s", err, out)
	}
	var s guard.Status
	if err := p.Do(func() (err error) { s, err = guard.Inspect(t.Context()); return err }); err != nil {
		t.Fatal(err)
	}
	if s.State != guard.Closed || !s.Egress.Locked || s.Egress.DNS {
		t.Errorf("it left the guard %s with %+v", s.State, s.Egress)
	}
}

// query asks a DNS server for a name's addresses and returns how many it knows.
func query(t *testing.T, from *netlab.Host, server netip.AddrPort, name string) (addresses int, err error) {
	t.Helper()
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		question := dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: 1}, Questions: []dnsmessage.Question{question}}
		packed, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		c, err := from.Dial(t.Context(), "udp", server.String())
		if err != nil {
			return 0, err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(dialTimeout))
		if _, err := c.Write(packed); err != nil {
			return 0, err
		}
		answer := make([]byte, 512)
		n, err := c.Read(answer)
		if err != nil {
			return 0, err
		}
		if err := m.Unpack(answer[:n]); err != nil {
			return 0, err
		}
		addresses += len(m.Answers)
	}
	return addresses, nil
}
