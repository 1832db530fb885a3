package meshproxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

func TestWhoGetsIn(t *testing.T) {
	t.Parallel()
	m, stranger := newMesh(t), newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	apps := map[uint16]*app{}
	for _, port := range []uint16{8080, 7890, 5432, 6000, 15021} {
		apps[port] = p.serveFirst(int(port))
	}
	api, other := m.issue(time.Hour, "api"), m.issue(time.Hour, "other")
	for _, addr := range p.Addresses() {
		if got, err := plaintext(peer, p.at(addr, 7890)); err == nil {
			t.Fatalf("before the mesh proxy runs %s answers %q", addr, got)
		}
	}
	p.startReady("--ingress", "web#8080#false##metrics#7890#true##db#5432#mtls#api,spiffe://shop.example/api")
	if s := p.guardState(); s != guard.Mesh {
		t.Fatalf("ready with the guard %s", s)
	}

	checks := []struct {
		name string
		port uint16
		tls  *tls.Config // nil: plaintext
		want string
	}{
		{"an unlisted port with a certificate", 6000, m.client(other), greeting},
		{"an unlisted port without a certificate", 6000, m.client(), ""},
		{"an unlisted port with a stranger's certificate", 6000, m.client(stranger.issue(time.Hour, "api")), ""},
		{"an unlisted port in plaintext", 6000, nil, ""},
		{"a #false port without a certificate", 8080, m.client(), greeting},
		{"a #false port with TLS 1.2", 8080, withVersion(m.client(), tls.VersionTLS12), greeting},
		{"an mTLS port with TLS 1.2", 6000, withVersion(m.client(other), tls.VersionTLS12), ""},
		{"a #false port in plaintext", 8080, nil, ""},
		{"a #true port in plaintext", 7890, nil, greeting},
		{"the right identity", 5432, m.client(api), greeting},
		{"the wrong identity", 5432, m.client(other), ""},
		{"no identity", 5432, m.client(), ""},
		{"the proxy's own port", 15021, m.client(other), ""},
		{"the mTLS listener", 15006, m.client(other), ""},
		{"the listener without client certificates", 15007, m.client(), ""},
	}
	for _, c := range checks {
		for _, addr := range p.Addresses() {
			var before int32
			if a := apps[c.port]; a != nil {
				before = a.accepted.Load()
			}
			var got string
			var err error
			if c.tls == nil {
				got, err = plaintext(peer, p.at(addr, c.port))
			} else {
				got, _, err = overTLS(peer, p.at(addr, c.port), c.tls)
			}
			if got != c.want {
				t.Errorf("%s, to %s: got %q (%v), want %q", c.name, addr, got, err, c.want)
			}
			if a := apps[c.port]; c.want == "" && a != nil && a.accepted.Load() != before {
				t.Errorf("%s, to %s: the application saw a connection", c.name, addr)
			}
		}
	}
}

func withVersion(c *tls.Config, version uint16) *tls.Config {
	c.MinVersion, c.MaxVersion = version, version
	return c
}

func TestEnvoyKilledClosesTheGateUntilItIsBack(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.serveFirst(8080)
	p.startReady()
	config := m.client(m.issue(time.Hour, "api"))
	for range 2 {
		before := p.envoy()
		if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		p.await("the gate to close", func() error {
			if s := p.guardState(); s != guard.Closed {
				return fmt.Errorf("the guard is %s", s)
			}
			return nil
		})
		if err := p.ready(); exitCode(err) != 3 {
			t.Errorf("ready without Envoy exits %v, want 3", err)
		}
		p.await("ready again", p.ready)
		p.await("the log to name another Envoy", func() error {
			if p.envoy() == before {
				return errors.New("the same Envoy is ready")
			}
			return nil
		})
		for _, addr := range p.Addresses() {
			if got, _, err := overTLS(peer, p.at(addr, 8080), config); got != greeting {
				t.Errorf("%s answers %q, %v", addr, got, err)
			}
		}
	}
}

// The guard lets nothing with this mark out, wherever the host moves the pod's address.
func TestWhatIsDecryptedIsMarked(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.serveFirst(8080)
	p.startReady()
	for _, addr := range p.Addresses() {
		raw, err := peer.Dial(t.Context(), "tcp", p.at(addr, 8080).String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if got, err := readGreeting(tls.Client(raw, m.client(m.issue(time.Hour, "api")))); got != greeting {
			t.Fatalf("got %q, %v", got, err)
		}
		// The pod's connections to its own port, as the kernel has them.
		out, err := p.Command("ss", "-Htne", "state", "established",
			"dst", "["+addr.String()+"]", "dport", "=", ":8080").Output() // stderr: what ss misses on this machine
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if err != nil || len(lines) != 1 || !strings.Contains(lines[0], "fwmark:0x52") {
			t.Errorf("to %s: want one connection with mark 0x52: %v\n%s", addr, err, out)
		}
	}
}

func TestSupervisorKilledTakesEnvoyAlong(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	a := p.serveFirst(8080)
	p.startReady("--ingress", "web#8080#false")
	envoy := p.envoy()
	p.cmd.Process.Kill()
	p.await("Envoy to end", func() error {
		// as a zombie at most: this test is the one that would have to reap it
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", envoy))
		if err == nil && !strings.Contains(string(status), "State:\tZ") {
			return errors.New("it is there")
		}
		return nil
	})
	for _, addr := range p.Addresses() {
		if got, _, err := overTLS(peer, p.at(addr, 8080), m.client()); err == nil {
			t.Errorf("%s answers %q", addr, got)
		}
	}
	if n := a.accepted.Load(); n != 0 {
		t.Errorf("the application saw %d connections", n)
	}
	p.startReady("--ingress", "web#8080#false")
	if got, _, err := overTLS(peer, p.at(p.IPv4, 8080), m.client()); got != greeting {
		t.Errorf("after a restart it answers %q, %v", got, err)
	}
}

func TestSIGTERMDrains(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.serveFirst(8080)
	p.startReady()
	raw, err := peer.Dial(t.Context(), "tcp", p.at(p.IPv6, 8080).String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, m.client(m.issue(time.Hour, "api")))
	if got, err := readGreeting(conn); got != greeting {
		t.Fatalf("got %q, %v", got, err)
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.await("not ready", func() error {
		if err := p.ready(); exitCode(err) != 3 {
			return fmt.Errorf("ready exits with %v", err)
		}
		return nil
	})
	const late = "late word\n" // as long as the greeting
	if _, err := io.WriteString(conn, late); err != nil {
		t.Fatal(err)
	}
	if got, err := readGreeting(conn); got != late {
		t.Errorf("while draining the connection carries %q, %v", got, err)
	}
	select {
	case err := <-p.exited:
		t.Errorf("the mesh proxy ended with a connection open: %v", err)
	default:
	}
	conn.Close()
	select {
	case err := <-p.exited:
		if err != nil {
			t.Errorf("the mesh proxy exits with %v, want 0", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the mesh proxy does not end with its last connection")
	}
	if s := p.guardState(); s != guard.Closed {
		t.Errorf("it left the guard %s", s)
	}
}

func TestNewCredentialsTakeEffectAndBadOnesDoNot(t *testing.T) {
	t.Parallel()
	m, stranger := newMesh(t), newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	first := m.issue(time.Hour, "web")
	m.write(p.contrast, first)
	p.serveFirst(8080)
	p.startReady()
	config := m.client(m.issue(time.Hour, "api"))
	serial := func() (string, error) {
		_, state, err := overTLS(peer, p.at(p.IPv4, 8080), config)
		if err != nil {
			return "", err
		}
		return state.PeerCertificates[0].SerialNumber.Text(16), nil
	}
	refused := func() int { return len(p.log.Entries("new credentials are refused; the old ones stay in force")) }

	expired := m.issue(time.Nanosecond, "web")
	half := m.issue(time.Hour, "web")
	half.PrivateKey = first.PrivateKey
	for name, bad := range map[string]func(){
		"an expired certificate":    func() { m.write(p.contrast, expired) },
		"another certificate's key": func() { m.write(p.contrast, half) },
		"another mesh CA":           func() { stranger.write(p.contrast, stranger.issue(time.Hour, "web")) },
		"a missing key":             func() { m.writeFiles(p.contrast, map[string][]byte{"certChain.pem": nil}) },
	} {
		before := refused()
		bad()
		p.await("refusal of "+name, func() error {
			if refused() == before {
				return errors.New("nothing was refused")
			}
			return nil
		})
		if got, err := serial(); got != first.Leaf.SerialNumber.Text(16) {
			t.Errorf("after %s the certificate is %s (%v), want the first", name, got, err)
		}
		if err := p.ready(); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}

	envoy := p.envoy()
	second := m.issue(time.Hour, "web")
	m.write(p.contrast, second)
	p.await("the second certificate", func() error {
		got, err := serial()
		if err != nil {
			t.Errorf("a connection failed during the rotation: %v", err)
		}
		if got != second.Leaf.SerialNumber.Text(16) {
			return fmt.Errorf("the certificate is %s", got)
		}
		return nil
	})
	if p.envoy() != envoy {
		t.Error("Envoy was restarted for it")
	}
}

func TestNotReadyWithAnExpiredCertificate(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(4*time.Second, "web"))
	p.startReady()
	p.await("the certificate to expire", func() error {
		err := p.ready()
		if exitCode(err) != 3 || !strings.Contains(err.Error(), "meshproxy: not ready: the certificate expired at ") {
			return fmt.Errorf("ready says %v", err)
		}
		return nil
	})
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.await("a new certificate to help", p.ready)
}

// A ticket is good on the port that made it, and nowhere else; and not after a rotation of credentials.
func TestTicketsAreBoundToTheirPort(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	for _, port := range []int{8080, 8081, 6000} {
		p.serveFirst(port)
	}
	p.startReady("--ingress", "web#8080#false##other#8081#false")
	config := m.client()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	connect := func(port uint16) (string, bool) {
		got, state, _ := overTLS(peer, p.at(p.IPv4, port), config)
		return got, state.DidResume
	}
	for _, step := range []struct {
		port    uint16
		got     string
		resumed bool
	}{
		{8080, greeting, false},
		{8080, greeting, true},  // the control: tickets work at all
		{8081, greeting, false}, // and are its own port's
		{6000, "", false},       // above all: no way past a client certificate
	} {
		if got, resumed := connect(step.port); got != step.got || resumed != step.resumed {
			t.Fatalf("port %d: got %q, resumed %v; want %q, %v", step.port, got, resumed, step.got, step.resumed)
		}
	}

	connect(8080)
	second := m.issue(time.Hour, "web")
	m.write(p.contrast, second)
	await(t, "new credentials in force", func() error {
		_, state, err := overTLS(peer, p.at(p.IPv4, 8081), m.client())
		if err != nil || state.PeerCertificates[0].SerialNumber.Cmp(second.Leaf.SerialNumber) != 0 {
			return fmt.Errorf("not yet: %v", err)
		}
		return nil
	})
	if got, resumed := connect(8080); got != greeting || resumed {
		t.Errorf("after the rotation a ticket of before: got %q, resumed %v", got, resumed)
	}
}

func TestClosedPodCallsOutToTheRightIdentityOnly(t *testing.T) {
	t.Parallel()
	m, stranger := newMesh(t), newMesh(t)
	web, impostor := newPod(t, "web"), newPod(t, "impostor")
	m.write(web.contrast, m.issue(time.Hour, "web", web.IPv4.String(), "spiffe://shop.example/web"))
	stranger.write(impostor.contrast, stranger.issue(time.Hour, "web"))
	for _, p := range []*pod{web, impostor} {
		p.serveFirst(8080)
		p.startReady()
	}
	caller := newPod(t, "caller")
	m.write(caller.contrast, m.issue(time.Hour, "caller"))
	app := caller.serveFirst(8080)
	caller.startReady("--ingress", "CLOSED", "--egress", strings.Join([]string{
		fmt.Sprintf("dns#127.137.0.1:11001#%s:8080#web", web.IPv4),
		fmt.Sprintf("six#127.137.0.1:11002#[%s]:8080#nobody,%s", web.IPv6, web.IPv4),
		fmt.Sprintf("uri#127.137.0.1:11003#%s:8080#spiffe://shop.example/web", web.IPv4),
		fmt.Sprintf("any#127.137.0.1:11004#%s:8080#any", web.IPv4),
		fmt.Sprintf("wrong#127.137.0.1:11005#%s:8080#billing", web.IPv4),
		fmt.Sprintf("stranger#127.137.0.1:11006#%s:8080#web", impostor.IPv4),
		fmt.Sprintf("strangerany#127.137.0.1:11007#%s:8080#any", impostor.IPv4),
	}, "##"))
	for port := uint16(11001); port <= 11007; port++ {
		want := greeting
		if port >= 11005 {
			want = ""
		}
		got, err := plaintext(caller.Host, netip.AddrPortFrom(netip.MustParseAddr("127.137.0.1"), port))
		if got != want {
			t.Errorf("egress listener %d: got %q (%v), want %q", port, got, err, want)
		}
	}
	if s := caller.guardState(); s != guard.Closed {
		t.Errorf("the guard is %s", s)
	}
	for _, addr := range caller.Addresses() {
		if got, _, err := overTLS(web.Host, caller.at(addr, 8080), m.client(m.issue(time.Hour, "api"))); err == nil {
			t.Errorf("%s answers %q", addr, got)
		}
	}
	if n := app.accepted.Load(); n != 0 {
		t.Errorf("the application saw %d connections", n)
	}
}

// The name is looked up by Envoy itself; both address families lead to the peer, whose certificate must carry the name.
func TestCallsOutByName(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	web := newPod(t, "web")
	m.write(web.contrast, m.issue(time.Hour, "web-svc"))
	web.serveFirst(8080)
	web.startReady()
	hosts := fmt.Sprintf("%s web-svc other-name\n%s web-svc web-four\n", web.IPv6, web.IPv4)
	if err := os.WriteFile("/run/hosts", []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
	// in the lab's own mount namespace
	if err := unix.Mount("/run/hosts", "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	caller := newPod(t, "caller")
	m.write(caller.contrast, m.issue(time.Hour, "caller"))
	caller.startReady("--ingress", "CLOSED", "--egress", strings.Join([]string{
		"own#127.137.0.1:11001#web-svc:8080",
		"four#127.137.0.1:11002#web-four:8080#web-svc",
		"six#127.137.0.1:11003#other-name:8080#web-svc",
		"wrong#127.137.0.1:11004#other-name:8080",
		"unknown#127.137.0.1:11005#nowhere-at-all:8080",
	}, "##"))
	for port := uint16(11001); port <= 11005; port++ {
		listener := netip.AddrPortFrom(netip.MustParseAddr("127.137.0.1"), port)
		if port >= 11004 {
			if got, err := plaintext(caller.Host, listener); err == nil {
				t.Errorf("egress listener %d: got %q", port, got)
			}
			continue
		}
		await(t, "a greeting", func() error { // the first look-up may not have ended
			_, err := plaintext(caller.Host, listener)
			return err
		})
	}
}

func TestDisabledOpensTheGuardWithAWarning(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.serveFirst(8080)

	// The host may add environment variables; it cannot open the guard with them.
	cmd := p.command(p.flags()...)
	cmd.Env = append(os.Environ(), "CONTRAST_INGRESS_PROXY_CONFIG=DISABLED")
	if out, err := cmd.CombinedOutput(); exitCode(err) != 2 || p.guardState() != guard.Closed {
		t.Errorf("DISABLED by environment: %v, guard %s: %s", err, p.guardState(), out)
	}

	for range 2 { // the second start finds no table, and knows why
		p.startReady("--ingress", "DISABLED")
		if s := p.guardState(); s != guard.Opened {
			t.Errorf("the guard is %s", s)
		}
		for _, addr := range p.Addresses() {
			if got, err := plaintext(peer, p.at(addr, 8080)); got != greeting {
				t.Errorf("%s answers %q, %v", addr, got, err)
			}
		}
		p.cmd.Process.Signal(syscall.SIGTERM)
		if err := <-p.exited; err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(p.log.String(), `"level":"WARN","msg":"the ingress configuration is DISABLED`) {
		t.Errorf("no warning in the log:\n%s", p.log)
	}
}

func TestEnvoyHasOneCapabilityAndOneDirectory(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.envoy()))
	if err != nil {
		t.Fatal(err)
	}
	const netRaw = "0000000000002000" // bit 13
	for field, want := range map[string]string{
		"CapPrm": netRaw, "CapEff": netRaw, "CapAmb": netRaw, "NoNewPrivs": "1",
		"Uid": "1337\t1337\t1337\t1337", "Gid": "1337\t1337\t1337\t1337", "Groups": "",
	} {
		_, rest, found := strings.Cut(string(status), "\n"+field+":")
		got, _, _ := strings.Cut(rest, "\n")
		if got = strings.TrimSpace(got); !found || got != want {
			t.Errorf("%s of Envoy is %q, want %q", field, got, want)
		}
	}
	// What its user can do: read what was published, write in one directory.
	asEnvoy := func(script string) error {
		out, err := exec.Command("setpriv", "--reuid=1337", "--regid=1337", "--clear-groups", "--bounding-set=-all",
			"--inh-caps=-all", "sh", "-c", script).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	dir := p.run_ + "/envoy"
	for _, allowed := range []string{
		"cat " + dir + "/credentials/..data/identity.json", "cat " + dir + "/bootstrap.pb", "touch " + dir + "/admin/file",
	} {
		if err := asEnvoy(allowed); err != nil {
			t.Errorf("Envoy's user cannot: %s: %v", allowed, err)
		}
	}
	for _, forbidden := range []string{
		"cat " + p.contrast + "/tls-config/key.pem",
		"touch " + p.run_ + "/file", "touch " + dir + "/file", "touch " + dir + "/credentials/file",
		"echo > " + dir + "/bootstrap.pb", "rm -r " + dir + "/tickets/..data",
		"mv " + dir + " " + p.run_ + "/elsewhere", "cat < " + p.run_ + "/ready.sock",
	} {
		if asEnvoy(forbidden) == nil {
			t.Errorf("Envoy's user can: %s", forbidden)
		}
	}
	// And another user of the pod sees nothing of it.
	if exec.Command("setpriv", "--reuid=1338", "--regid=1338", "--clear-groups", "ls", dir).Run() == nil {
		t.Error("another user can list Envoy's directory")
	}
}

func TestAdminViewOnlyShows(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady("--admin-port", "9901")
	for _, tt := range []struct {
		method, path string
		status       int
		contains     string
	}{
		{"GET", "/ready", 200, "LIVE"},
		{"GET", "/metrics", 200, "portcullis_meshproxy_ready 1"},
		{"GET", "/metrics", 200, `portcullis_meshproxy_guard_state{state="mesh"} 1`},
		{"GET", "/stats/prometheus", 200, "envoy_cluster_upstream_cx_total"},
		{"GET", "/stats/prometheus?filter=x", 200, "envoy_cluster_upstream_cx_total"},
		{"GET", "/certs", 200, "cert_chain"},
		{"GET", "/listeners", 200, "15006"},
		{"GET", "/clusters", 200, "black-hole"},
		{"GET", "/server_info", 200, "1.40.0"},
		{"POST", "/ready", 405, ""},
		{"POST", "/listeners", 405, ""},
		{"HEAD", "/certs", 405, ""},
		{"POST", "/quitquitquit", 404, ""},
		{"GET", "/quitquitquit", 404, ""},
		{"GET", "/config_dump", 404, ""},
		{"GET", "/certs/../config_dump", 404, ""},
		{"GET", "/ready/", 404, ""},
		{"GET", "//ready", 404, ""},
	} {
		client := http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return p.Dial(ctx, network, "127.0.0.1:9901")
			},
		}}
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://admin"+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.status || !strings.Contains(string(body), tt.contains) || err != nil {
			t.Errorf("%s %s: %s, %v, want %d with %q:\n%.300s", tt.method, tt.path, resp.Status, err, tt.status, tt.contains, body)
		}
	}
}

func TestIdleSupervisorIsSmall(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady("--ingress", "web#8080#false", "--egress", "billing#127.137.0.1:8081#billing-svc:8080", "--admin-port", "9901")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	t.Logf("VmRSS %d KiB", kib)
	if kib > 25<<10 {
		t.Errorf("the idle mesh proxy takes %d KiB, want at most %d", kib, 25<<10)
	}
}

func TestRefusesToStart(t *testing.T) {
	t.Parallel()
	m, stranger := newMesh(t), newMesh(t)
	good := m.issue(time.Hour, "web")
	tests := []struct {
		name    string
		prepare func(p *pod)
		args    []string
		code    int
		want    string // on stderr, as it is
	}{
		{
			"without credentials", func(*pod) {}, nil, 1,
			"meshproxy: read the credentials in CONTRAST: lstat CONTRAST/tls-config: no such file or directory\n" +
				"hint: the Initializer writes them; it must have finished before the mesh proxy starts\n",
		},
		{
			"with the key of another certificate", func(p *pod) {
				half := good
				half.PrivateKey = m.issue(time.Hour, "web").PrivateKey
				m.write(p.contrast, half)
			}, nil, 1,
			"meshproxy: check the credentials in CONTRAST: key.pem is not the key of the certificate in certChain.pem\n" +
				"hint: the Initializer writes them; it must have finished before the mesh proxy starts\n",
		},
		{
			"with a certificate of another mesh", func(p *pod) { stranger.write(p.contrast, good) }, nil, 1,
			"meshproxy: check the credentials in CONTRAST: certChain.pem does not verify under mesh-ca.pem: " +
				"x509: certificate signed by unknown authority",
		},
		{
			"without Envoy", func(p *pod) { m.write(p.contrast, good) },
			[]string{"--envoy", "/nowhere/envoy"},
			1,
			"meshproxy: find Envoy: exec: \"/nowhere/envoy\": stat /nowhere/envoy: no such file or directory\n" +
				"hint: --envoy names the program; it is Envoy 1.40.0 or later\n",
		},
		{
			"when a port is taken", func(p *pod) {
				m.write(p.contrast, good)
				p.serveFirst(15006)
			}, nil, 1,
			"cannot bind '[::]:15006': Address already in use\n",
		},
		{
			"when the admin port is taken", func(p *pod) {
				m.write(p.contrast, good)
				p.serveFirst(9901)
			},
			[]string{"--admin-port", "9901"},
			1,
			"meshproxy: open the admin port: listen tcp :9901: bind: address already in use\n",
		},
		{
			"when Envoy may not listen on a port", func(p *pod) { m.write(p.contrast, good) },
			[]string{"--egress", "b#127.0.0.1:80#h:80"},
			1,
			`meshproxy: egress entry "b#127.0.0.1:80#h:80": Envoy may not listen on port 80: ` +
				"net.ipv4.ip_unprivileged_port_start is 1024\n" +
				"hint: choose a higher port, or set that sysctl in the pod's securityContext\n",
		},
		{
			"with a malformed annotation", func(p *pod) { m.write(p.contrast, good) },
			[]string{"--ingress", "web#80#yes"},
			2,
			`meshproxy: ingress entry 1 "web#80#yes": disableTLS: "yes" is unknown: ` +
				"want mtls, false (TLS without a client certificate) or true (plaintext)\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t, "web")
			tt.prepare(p)
			var stderr strings.Builder
			cmd := p.command(p.flags(tt.args...)...)
			cmd.Stderr = &stderr
			err := cmd.Run()
			got := strings.ReplaceAll(withoutLog(stderr.String()), p.contrast, "CONTRAST")
			if exitCode(err) != tt.code || !strings.Contains(got, tt.want) || strings.Count(got, "\n") > 2 {
				t.Errorf("exit %v with:\n%s\nwant %d with:\n%s", err, got, tt.code, tt.want)
			}
			if s := p.guardState(); s != guard.Closed {
				t.Errorf("it left the guard %s", s)
			}
		})
	}
}

func TestRefusesAnImageWithoutGuard(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	for _, ingress := range []string{"", "CLOSED", "DISABLED"} {
		p := newPod(t, "web")
		if err := p.Do(func() error { return guard.Open(t.Context()) }); err != nil {
			t.Fatal(err)
		}
		m.write(p.contrast, m.issue(time.Hour, "web"))
		out, err := p.command(p.flags("--ingress", ingress)...).CombinedOutput()
		want := "meshproxy: start the mesh proxy: " + guard.ErrNoGuard.Error() + "\nhint: "
		if exitCode(err) != 1 || !strings.HasPrefix(string(out), want) {
			t.Errorf("ingress %q: exit %v with %s", ingress, err, out)
		}
		if files, _ := os.ReadDir(p.run_); len(files) != 0 {
			t.Errorf("ingress %q: it left %v", ingress, files)
		}
	}
}

// withoutLog is what a person is told: stderr without the JSON lines of the log.
func withoutLog(stderr string) string {
	var kept strings.Builder
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "{") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
