package meshproxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

const probePort = 15021

// kubelet asks as kubelet does: plaintext, a connection each time, from another machine.
type kubelet struct{ http.Client }

func newKubelet(peer *netlab.Host) *kubelet {
	return &kubelet{http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: peer.Dial},
		Timeout:   3 * time.Second,
	}}
}

// ask returns the status code and the body; zero and the reason when there is no answer.
func (k *kubelet) ask(addr netip.Addr, path string) (int, string) {
	answer, err := k.Get(fmt.Sprintf("http://%s%s", netip.AddrPortFrom(addr, probePort), path))
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(body)
}

// webApp is an application over HTTP, whose health can be changed.
type webApp struct {
	sick  atomic.Bool
	mu    sync.Mutex
	asked []string // by whom, and what
}

func (p *pod) serveWeb(address string) *webApp {
	p.t.Helper()
	l, err := p.Listen("tcp", address)
	if err != nil {
		p.t.Fatal(err)
	}
	a := &webApp{}
	server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Handler: http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			a.mu.Lock()
			defer a.mu.Unlock()
			from := netip.MustParseAddrPort(r.RemoteAddr).Addr().Unmap()
			a.asked = append(a.asked, fmt.Sprintf("%s: %s %s%s", from, r.Method, r.Host, r.RequestURI))
			w.Header().Set("X-Secret", "SECRET")
			if a.sick.Load() {
				w.WriteHeader(http.StatusInternalServerError)
			}
			io.WriteString(w, "SECRET")
		},
	)}
	go server.Serve(l)
	p.t.Cleanup(func() { server.Close() })
	return a
}

func (a *webApp) questions() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.asked...)
}

// The whole way: the guard's mesh rules, the egress lock, a supervisor with its container's capabilities, and kubelet.
func TestProbesOfPortsBehindMutualTLS(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	k := newKubelet(peer)
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	web := p.serveWeb(":8080")
	p.serveWeb("127.0.0.1:8090")
	p.serveWeb(p.IPv4.String() + ":8091")
	p.serveFirst(5432)
	states := p.serveGRPC(9000)
	p.startReady("--ingress=web#8080#false", "--egress-policy=closed", "--probes="+strings.Join([]string{
		"web/liveness#http://:8080/healthz?full#1s#Host:shop.example",
		"local/liveness#http://:8090/#1s",
		"local/startup#tcp://:8090#1s",
		"one/readiness#http://:8091/#1s",
		"db/startup#tcp://:5432#1s",
		"api/readiness#grpc://:9000#1s",
		"api/liveness#grpc://:9000/shop.Cart#1s",
	}, "##"))
	if s := p.guardState(); s != guard.Mesh {
		t.Fatalf("the guard is %s", s)
	}
	const ok, sick = "ok\n", "the application does not answer this probe as it should\n"
	check := func(addr netip.Addr, path string, code int) {
		t.Helper()
		body := map[int]string{200: ok, 503: sick, 404: "not found\n"}[code]
		if gotCode, gotBody := k.ask(addr, path); gotCode != code || gotBody != body {
			t.Errorf("%s at %s answers %d %q, want %d %q", path, addr, gotCode, gotBody, code, body)
		}
	}
	for _, addr := range p.Addresses() {
		check(addr, "/probes/web/liveness", 200)
		check(addr, "/probes/local/liveness", 503)
		check(addr, "/probes/local/startup", 503)
		check(addr, "/probes/one/readiness", map[bool]int{true: 200, false: 503}[addr == p.IPv4])
		check(addr, "/probes/db/startup", 200)
		check(addr, "/probes/api/readiness", 200)
		check(addr, "/probes/api/liveness", 503) // an unknown service
		check(addr, "/probes/web/readiness", 404)
		check(addr, "/probes/web/liveness?full", 404)
		check(addr, "/healthz?full", 404)
		check(addr, "/", 404)

		want := fmt.Sprintf("%s: GET shop.example/healthz?full", addr)
		asked := web.questions()
		if len(asked) == 0 || asked[len(asked)-1] != want {
			t.Errorf("the application was asked %q, want %q at last", asked, want)
		}
		// The gate stands as before: the port itself is not for kubelet, and a certificate does not lead to the probe port.
		for _, port := range []uint16{8080, 5432, 9000, 8091} {
			if got, err := plaintext(peer, p.at(addr, port)); err == nil || got != "" {
				t.Errorf("port %d at %s answers %q in plaintext", port, addr, got)
			}
		}
		if got, _, err := overTLS(peer, p.at(addr, probePort), m.client(m.issue(time.Hour, "api"))); err == nil {
			t.Errorf("the probe port at %s speaks TLS: %q", addr, got)
		}
	}

	// Health that goes and comes, of both kinds of application.
	for range 2 {
		web.sick.Store(true)
		states.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
		p.await("bad answers", k.all(p, 503, "/probes/web/liveness", "/probes/api/readiness"))
		web.sick.Store(false)
		states.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
		p.await("good answers", k.all(p, 200, "/probes/web/liveness", "/probes/api/readiness"))
	}
	if err := p.ready(); err != nil {
		t.Errorf("not ready with a probe that failed: %v", err)
	}
	if strings.Contains(p.log.String(), "SECRET") {
		t.Error("the application's bytes are in the log")
	}

	// The proxy takes the gate down when it ends, and kubelet's way with it.
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := <-p.exited; err != nil {
		t.Errorf("the mesh proxy exits with %v", err)
	}
	squatter := p.serveFirst(probePort)
	for _, addr := range p.Addresses() {
		if got, err := plaintext(peer, p.at(addr, probePort)); err == nil || squatter.accepted.Load() != 0 {
			t.Errorf("after the proxy the probe port at %s answers %q", addr, got)
		}
	}
}

func (k *kubelet) all(p *pod, code int, paths ...string) func() error {
	return func() error {
		for _, addr := range p.Addresses() {
			for _, path := range paths {
				if got, body := k.ask(addr, path); got != code {
					return fmt.Errorf("%s at %s answers %d %q", path, addr, got, body)
				}
			}
		}
		return nil
	}
}

func (p *pod) serveGRPC(port int) *health.Server {
	p.t.Helper()
	l, err := p.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		p.t.Fatal(err)
	}
	states, server := health.NewServer(), grpc.NewServer()
	healthpb.RegisterHealthServer(server, states)
	go server.Serve(l)
	p.t.Cleanup(server.Stop)
	return states
}

// Without a declared probe the probe port is a port like the proxy's others: closed, whoever listens there.
func TestNoProbesNoProbePort(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	squatter := p.serveFirst(probePort)
	p.startReady("--probes=")
	for _, addr := range p.Addresses() {
		if got, err := plaintext(peer, p.at(addr, probePort)); err == nil || squatter.accepted.Load() != 0 {
			t.Errorf("the probe port at %s answers %q", addr, got)
		}
	}
	// And with one, who sits there already keeps the gate down.
	p.cmd.Process.Signal(syscall.SIGTERM)
	<-p.exited
	p.start("--probes=web/liveness#tcp://:8080#1s")
	if err := <-p.exited; exitCode(err) != 1 {
		t.Errorf("with its port taken the mesh proxy exits with %v, want 1", err)
	}
	if s := p.guardState(); s != guard.Closed {
		t.Errorf("the guard is %s", s)
	}
	if !strings.Contains(p.log.String(), "open the probe port: ") {
		t.Errorf("its log does not name the probe port:\n%s", p.log)
	}
}

// The guard lets nothing with this mark out, so the declared headers stay in the guest wherever the pod's address moves.
func TestProbesAreMarkedAsDecrypted(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	mute, err := p.Listen("tcp", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	p.startReady("--probes=web/liveness#http://:8080/#30s")
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() { newKubelet(peer).ask(p.IPv4, "/probes/web/liveness") })
	p.await("the probe's connection", func() error {
		out, err := p.Command("ss", "-Htne", "state", "established", "dst", p.IPv4.String(), "dport", "=", ":8080").Output()
		if err != nil || !strings.Contains(string(out), "fwmark:0x52") {
			return fmt.Errorf("want one with mark 0x52: %v\n%s", err, out)
		}
		return nil
	})
}

// What strangers can do to a port that is open to them.
func TestHostileCallersOfTheProbePort(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	k := newKubelet(peer)
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	web := p.serveWeb(":8080")
	p.startReady("--probes=web/liveness#http://:8080/healthz#1s")
	// Where there are more callers than the proxy has room for, one of them may be kubelet; it asks three times before it acts.
	kubelets := func(while string) {
		t.Helper()
		var body string
		for range 3 {
			var code int
			if code, body = k.ask(p.IPv4, "/probes/web/liveness"); code == 200 {
				return
			}
		}
		t.Errorf("while there are %s kubelet gets no good answer, at last %q", while, body)
	}
	kubelets("none")
	before := p.memory()
	ctx, cancel := context.WithCancel(t.Context())
	var strangers sync.WaitGroup
	defer func() {
		cancel()
		strangers.Wait()
	}()
	dial := func() (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		return peer.Dial(ctx, "tcp", netip.AddrPortFrom(p.IPv4, probePort).String())
	}
	// 100 connections at a time, of 64 that there is room for, that say something byte by byte, or nothing.
	var opened atomic.Int32
	for range 100 {
		strangers.Go(func() {
			for ctx.Err() == nil {
				conn, err := dial()
				if err != nil {
					continue
				}
				opened.Add(1)
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				for _, c := range []byte("GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\nX: ") {
					if _, err := conn.Write([]byte{c}); err != nil {
						break
					}
					select {
					case <-time.After(50 * time.Millisecond):
					case <-ctx.Done():
					}
				}
				stop()
				conn.Close()
			}
		})
	}
	p.await("strangers", func() error {
		if n := opened.Load(); n < 100 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	for range 20 {
		kubelets("slow strangers")
	}
	out, err := p.Command("ss", "-Htn", "state", "established", "sport", "=", ":15021").Output()
	if n := strings.Count(string(out), "\n"); err != nil || n > 70 {
		t.Errorf("the proxy holds %d connections, want at most 64 and a few in between (%v)", n, err)
	}
	// Requests without end, and ones that hide another.
	for _, request := range []string{
		"GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 1000),
		"GET /" + strings.Repeat("x", 1<<20),
		"POST /probes/web/liveness HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + strings.Repeat("x", 1<<20),
		"GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\nX: y\nGET /admin HTTP/1.1\r\n\r\n",
		"GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\nX:\r\n\tGET /admin HTTP/1.1\r\n\r\n",
	} {
		conn, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		go io.WriteString(conn, request)
		answer, err := io.ReadAll(conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%.60q keeps the proxy busy: %q", request, answer)
		}
		if strings.Contains(string(answer), "SECRET") || strings.Count(string(answer), "HTTP/1.1 ") > 1 {
			t.Errorf("%.60q is answered by %q", request, answer)
		}
		conn.Close()
		kubelets("endless requests")
	}
	// As many good questions as strangers like are few for the application.
	asked, began := len(web.questions()), time.Now()
	for time.Since(began) < time.Second {
		k.ask(p.IPv4, "/probes/web/liveness")
	}
	if n := len(web.questions()) - asked; n > 6 {
		t.Errorf("the application was asked %d times in a second", n)
	}
	for _, q := range web.questions() {
		if want := fmt.Sprintf("%[1]s: GET %[1]s:8080/healthz", p.IPv4); q != want {
			t.Errorf("the application was asked %q, want %q only", q, want)
		}
	}
	after := p.memory()
	t.Logf("the supervisor has %d KiB, and had %d KiB before", after, before)
	if after > before+10<<10 {
		t.Errorf("strangers made the supervisor grow from %d to %d KiB", before, after)
	}
}

var residentAnonymous = regexp.MustCompile(`RssAnon:\s+(\d+) kB`)

// memory is the supervisor's own, in KiB.
func (p *pod) memory() int {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	found := residentAnonymous.FindSubmatch(text)
	if found == nil {
		p.t.Fatalf("no RssAnon in\n%s", text)
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}
