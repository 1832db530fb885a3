package probe_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/meshproxy/probe"
	"portcullis.dev/portcullis/tests/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// The pod's addresses: of this namespace, but not on 127.0.0.0/8.
var podIPv4, podIPv6 = netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("fd99::1")

var addAddresses = sync.OnceValue(func() error {
	for _, a := range []netip.Addr{podIPv4, podIPv6} {
		out, err := exec.Command("ip", "address", "add", a.String(), "dev", "lo").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
})

func listen(t *testing.T, host string) (net.Listener, uint16) {
	t.Helper()
	if err := addAddresses(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, netip.MustParseAddrPort(l.Addr().String()).Port()
}

// serve answers for probes on every address, and returns the port and the log.
func serve(t *testing.T, value string) (uint16, *netlab.Log) {
	t.Helper()
	c, err := config.Values{Probes: value}.Parse()
	if err != nil {
		t.Fatal(err)
	}
	l, port := listen(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	out := &netlab.Log{}
	go func() { ended <- probe.Serve(ctx, l, c.Probes, slog.New(slog.NewTextHandler(out, nil))) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("it ends with %v", err)
		}
	})
	return port, out
}

var kubelet = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}

// get is what kubelet gets.
func get(t *testing.T, addr netip.Addr, port uint16, path string) (int, string) {
	t.Helper()
	answer, err := kubelet.Get("http://" + netip.AddrPortFrom(addr, port).String() + path)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Error(err)
	}
	return answer.StatusCode, string(body)
}

// want checks the answer, which is one of two.
func want(t *testing.T, addr netip.Addr, port uint16, path string, good bool) {
	t.Helper()
	code, body := get(t, addr, port, path)
	wantCode, wantBody := http.StatusServiceUnavailable, "the application does not answer this probe as it should\n"
	if good {
		wantCode, wantBody = http.StatusOK, "ok\n"
	}
	if code != wantCode || body != wantBody {
		t.Errorf("%s at %s answers %d %q, want %d %q", path, addr, code, body, wantCode, wantBody)
	}
}

// application is an HTTP server that remembers what it was asked.
type application struct {
	handler http.HandlerFunc
	mu      sync.Mutex
	asked   []*http.Request
}

func (a *application) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.asked = append(a.asked, r)
	a.mu.Unlock()
	a.handler(w, r)
}

func (a *application) requests() []*http.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.asked)
}

func serveHTTP(t *testing.T, l net.Listener, handler http.HandlerFunc) *application {
	a := &application{handler: handler}
	server := &http.Server{Handler: a, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return a
}

// Each kind of application, and what kubelet would make of its answer.
func TestTheApplicationIsAskedAsKubeletWould(t *testing.T) {
	l, plain := listen(t, "")
	serveHTTP(t, l, func(w http.ResponseWriter, r *http.Request) {
		addr := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr).AddrPort().Addr().Unmap()
		at := func(port uint16) string { return "http://" + netip.AddrPortFrom(addr, port).String() }
		switch r.URL.Path {
		case "/status":
			code, _ := strconv.Atoi(r.URL.RawQuery)
			w.WriteHeader(code)
		case "/here":
			http.Redirect(w, r, at(plain)+"/status?"+r.URL.RawQuery, http.StatusFound)
		case "/elsewhere":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case "/localhost":
			http.Redirect(w, r, "http://localhost:1/", http.StatusFound)
		case "/round":
			http.Redirect(w, r, "/round", http.StatusFound)
		case "/proxy":
			http.Redirect(w, r, at(15020), http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		case "/long":
			io.CopyN(w, endless{}, 1<<20)
		case "/header":
			w.Header().Set("X-Long", strings.Repeat("x", 100<<10))
		}
	})
	secret, overTLS := listen(t, "")
	serveHTTP(t, tls.NewListener(secret, &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}, NextProtos: []string{"h2", "http/1.1"}}),
		func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	inside, local := listen(t, "127.0.0.1")
	serveHTTP(t, inside, func(http.ResponseWriter, *http.Request) {})
	one, onlyIPv4 := listen(t, podIPv4.String())
	serveHTTP(t, one, func(http.ResponseWriter, *http.Request) {})
	_, silent := listen(t, "") // accepts and says nothing
	closed, nobody := listen(t, "")
	closed.Close()
	rude, garbled := listen(t, "")
	go func() {
		for {
			c, err := rude.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "SECRET-OF-THE-APPLICATION\r\n\r\n")
			c.Close()
		}
	}()

	const always, never = "46", ""
	for name, c := range map[string]struct {
		check string
		good  string // over which IP versions
		cause string
	}{
		"200":                           {fmt.Sprintf("http://:%d/status?200", plain), always, ""},
		"204":                           {fmt.Sprintf("http://:%d/status?204", plain), always, ""},
		"399":                           {fmt.Sprintf("http://:%d/status?399", plain), always, ""},
		"400":                           {fmt.Sprintf("http://:%d/status?400", plain), never, "status 400"},
		"503":                           {fmt.Sprintf("http://:%d/status?503", plain), never, "status 503"},
		"redirected here, good":         {fmt.Sprintf("http://:%d/here?200", plain), always, ""},
		"redirected here, bad":          {fmt.Sprintf("http://:%d/here?500", plain), never, "status 500"},
		"redirected elsewhere":          {fmt.Sprintf("http://:%d/elsewhere", plain), always, ""},
		"redirected to localhost":       {fmt.Sprintf("http://:%d/localhost", plain), always, ""},
		"redirected for ever":           {fmt.Sprintf("http://:%d/round", plain), never, "too many redirects"},
		"redirected to the proxy":       {fmt.Sprintf("http://:%d/proxy", plain), never, "it leads to one of the proxy's own ports"},
		"slow":                          {fmt.Sprintf("http://:%d/slow", plain), never, "no answer in time"},
		"long":                          {fmt.Sprintf("http://:%d/long", plain), always, ""},
		"a long header":                 {fmt.Sprintf("http://:%d/header", plain), never, "what answers does not speak this protocol"},
		"TLS":                           {fmt.Sprintf("https://:%d/", overTLS), always, ""},
		"TLS, where there is none":      {fmt.Sprintf("https://:%d/", plain), never, "what answers does not speak this protocol"},
		"none, where there is TLS":      {fmt.Sprintf("http://:%d/", overTLS), never, "status 400"},
		"an application on localhost":   {fmt.Sprintf("http://:%d/", local), never, "connection refused"},
		"localhost over tcp":            {fmt.Sprintf("tcp://:%d", local), never, "connection refused"},
		"one on the pod's IPv4 address": {fmt.Sprintf("http://:%d/", onlyIPv4), "4", "connection refused"},
		"no application":                {fmt.Sprintf("http://:%d/", nobody), never, "connection refused"},
		"a connection is enough":        {fmt.Sprintf("tcp://:%d", silent), always, ""},
		"no connection":                 {fmt.Sprintf("tcp://:%d", nobody), never, "connection refused"},
		"what does not speak HTTP":      {fmt.Sprintf("http://:%d/", garbled), never, "what answers does not speak this protocol"},
		// who is faster: its answer, or our next bytes
		"what does not speak gRPC":          {fmt.Sprintf("grpc://:%d", plain), never, "what answers does not speak this protocol|broken pipe|connection reset by peer"},
		"what speaks HTTP/2 over TLS":       {fmt.Sprintf("grpc://:%d", overTLS), never, "what answers does not speak this protocol|broken pipe|connection reset by peer"},
		"what says nothing, asked by gRPC":  {fmt.Sprintf("grpc://:%d", silent), never, "no answer in time"},
		"what says nothing, asked by HTTPS": {fmt.Sprintf("https://:%d/", silent), never, "no answer in time"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port, log := serve(t, "web/liveness#"+c.check+"#1s")
			for addr, version := range map[netip.Addr]string{podIPv4: "4", podIPv6: "6"} {
				want(t, addr, port, "/probes/web/liveness", strings.Contains(c.good, version))
			}
			if c.cause != "" {
				await(t, "the log", func() error {
					text := log.String()
					for cause := range strings.SplitSeq(c.cause, "|") {
						if strings.Contains(text, fmt.Sprintf("cause=%q", cause)) || strings.Contains(text, "cause="+cause) {
							return nil
						}
					}
					return fmt.Errorf("it does not say %q: %s", c.cause, text)
				})
			}
			if strings.Contains(log.String(), "SECRET") {
				t.Errorf("the application's bytes are in the log: %s", log)
			}
		})
	}
}

func TestTheDeclaredRequestAndNothingElse(t *testing.T) {
	l, port := listen(t, "")
	app := serveHTTP(t, l, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "session=SECRET")
		io.WriteString(w, "SECRET")
	})
	at, _ := serve(t, fmt.Sprintf(
		"web/liveness#http://:%[1]d/a%%20b?c=d#1s##web/readiness#http://:%[1]d/#1s#Host:shop.example#X-A:1#X-A:%%232#User-Agent:me#Accept:", port))
	want(t, podIPv4, at, "/probes/web/liveness", true)
	want(t, podIPv4, at, "/probes/web/readiness", true)
	asked := app.requests()
	if len(asked) != 2 {
		t.Fatalf("the application was asked %d times, want 2", len(asked))
	}
	r := asked[0]
	if r.Method != http.MethodGet || r.RequestURI != "/a%20b?c=d" || r.Host != netip.AddrPortFrom(podIPv4, port).String() ||
		len(r.Header) != 3 || r.UserAgent() != "kube-probe/portcullis" || r.Header.Get("Accept") != "*/*" || r.Header.Get("Connection") != "close" {
		t.Errorf("the first request is %s %s of %s with %v", r.Method, r.RequestURI, r.Host, r.Header)
	}
	if from := netip.MustParseAddrPort(r.RemoteAddr).Addr().Unmap(); from != podIPv4 {
		t.Errorf("it comes from %s, want the pod's own address", from)
	}
	r = asked[1]
	if r.RequestURI != "/" || r.Host != "shop.example" || !slices.Equal(r.Header["X-A"], []string{"1", "#2"}) || r.UserAgent() != "me" ||
		r.Header["Accept"] != nil {
		t.Errorf("the second request is %s of %s with %v", r.RequestURI, r.Host, r.Header)
	}

	before := len(app.requests())
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /probes/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /probes/web HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /probes/web/startup HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /probes/web/liveness/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /probes/web/liveness? HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /probes/web/liveness?c=e HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET //probes/web/liveness HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /probes/../probes/web/liveness HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /probes/web/%6civeness HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /probes/web%2fliveness HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /Probes/web/liveness HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET http://a/probes/web/liveness HTTP/1.1\r\nHost: a\r\n\r\n",
		"HEAD /probes/web/liveness HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /probes/web/liveness HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
		"DELETE /probes/web/liveness HTTP/1.1\r\nHost: a\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
		"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: a\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
		"GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		if answer := raw(t, podIPv4, at, request); !strings.HasPrefix(answer, "HTTP/1.1 404 ") || strings.Contains(answer, "SECRET") {
			t.Errorf("%q is answered by %q, want 404", request, answer)
		}
	}
	for _, request := range []string{
		"GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: gzip\r\n\r\n",
		"GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
		"GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
		"GET /probes/web/liveness HTTP/1.1\r\n\r\n",
		"GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n",
		"GET /probes/web/liveness" + strings.Repeat("/", 100<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /probes/web/live\x00ness HTTP/1.1\r\nHost: a\r\n\r\n",
		"\x16\x03\x01\x00\x05hello\r\n\r\n",
	} {
		if answer := raw(t, podIPv4, at, request); strings.Contains(answer, " 200 ") || strings.Contains(answer, " 503 ") || strings.Contains(answer, "SECRET") {
			t.Errorf("%.80q is answered by %q, want a refusal", request, answer)
		}
	}
	// On loopback there is nothing, not even for the pod's own containers: kubelet does not come that way.
	if answer := raw(t, netip.MustParseAddr("127.0.0.1"), at, "GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 404 ") {
		t.Errorf("on loopback the answer is %q, want 404", answer)
	}
	if n := len(app.requests()); n != before {
		t.Errorf("the application was asked %d times more", n-before)
	}

	// Nothing of what a caller adds reaches the application, and one connection is one question.
	answer := raw(t, podIPv4, at, "GET /probes/web/liveness HTTP/1.1\r\nHost: evil\r\nX-Evil: evil\r\nCookie: evil\r\nUpgrade: h2c\r\n"+
		"Connection: keep-alive, Upgrade\r\nX-Forwarded-For: evil\r\n\r\nGET /probes/web/readiness HTTP/1.1\r\nHost: evil\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 200 ") || strings.Count(answer, "HTTP/1.1") != 1 || strings.Contains(answer, "SECRET") {
		t.Errorf("a decorated request is answered by %q", answer)
	}
	for _, r := range app.requests()[before:] {
		if text := fmt.Sprint(r.Method, r.RequestURI, r.Host, r.Header); strings.Contains(text, "evil") || r.RequestURI != "/a%20b?c=d" {
			t.Errorf("the application was asked %s", text)
		}
	}
}

// raw sends bytes and returns everything that comes back.
func raw(t *testing.T, addr netip.Addr, port uint16, request string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(addr, port).String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	go io.WriteString(conn, request) // it may be refused before its end
	answer, err := io.ReadAll(bufio.NewReader(conn))
	if err != nil && len(answer) == 0 && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("%.80q: %v", request, err)
	}
	return string(answer)
}

// However many ask, the application is asked by one, and not again while its answer is fresh.
func TestOneQuestionAtATime(t *testing.T) {
	l, port := listen(t, "")
	release := make(chan struct{})
	var now, most atomic.Int32
	app := serveHTTP(t, l, func(w http.ResponseWriter, r *http.Request) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	at, _ := serve(t, fmt.Sprintf("web/liveness#http://:%d/#10s", port))
	// One that goes away does not take the others' answer along.
	first, err := net.Dial("tcp", netip.AddrPortFrom(podIPv4, at).String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(first, "GET /probes/web/liveness HTTP/1.1\r\nHost: a\r\n\r\n")
	await(t, "the first question", func() error {
		if len(app.requests()) == 0 {
			return errors.New("the application was not asked")
		}
		return nil
	})
	first.Close()
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() { want(t, podIPv4, at, "/probes/web/liveness", true) })
	}
	all.Go(func() { want(t, podIPv6, at, "/probes/web/liveness", true) })
	await(t, "a question at the other address", func() error {
		if n := len(app.requests()); n != 2 {
			return fmt.Errorf("the application was asked %d times", n)
		}
		return nil
	})
	close(release)
	all.Wait()
	if n := most.Load(); n != 2 {
		t.Errorf("the application was asked %d times at once, want once per address", n)
	}
	began, before := time.Now(), len(app.requests())
	for time.Since(began) < time.Second {
		want(t, podIPv4, at, "/probes/web/liveness", true)
	}
	if n := len(app.requests()) - before; n < 1 || n > 5 {
		t.Errorf("asked all the time, the proxy asks the application %d times a second, want 4", n)
	}
}

func TestTheAnswerFollowsTheApplication(t *testing.T) {
	l, port := listen(t, "")
	var code atomic.Int32
	serveHTTP(t, l, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(int(code.Load())) })
	at, log := serve(t, fmt.Sprintf("web/readiness#http://:%d/#1s", port))
	for _, c := range []int32{200, 500, 204, 404, 302} {
		code.Store(c)
		await(t, fmt.Sprintf("the answer to %d", c), func() error {
			if got, _ := get(t, podIPv4, at, "/probes/web/readiness"); (got == 200) != (c < 400) {
				return fmt.Errorf("it is %d", got)
			}
			return nil
		})
	}
	for text, times := range map[string]int{"cause=\"status 500\"": 1, "cause=\"status 404\"": 1, "answers its probe again": 2} {
		await(t, text, func() error {
			if n := strings.Count(log.String(), text); n != times {
				return fmt.Errorf("the log says it %d times, want %d: %s", n, times, log)
			}
			return nil
		})
	}
}

// A real gRPC server, and the service that it ships for this.
func TestGRPC(t *testing.T) {
	l, port := listen(t, "")
	states := health.NewServer()
	var agents sync.Map
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		m, _ := metadata.FromIncomingContext(ctx)
		agents.Store(strings.Join(m["user-agent"], ","), true)
		if _, bounded := ctx.Deadline(); !bounded {
			return nil, status.Error(codes.InvalidArgument, "no deadline")
		}
		return next(ctx, req)
	}))
	healthpb.RegisterHealthServer(server, states)
	go server.Serve(l)
	defer server.Stop()
	bare, other := listen(t, "")
	without := grpc.NewServer()
	go without.Serve(bare)
	defer without.Stop()

	states.SetServingStatus("shop.Cart#é", healthpb.HealthCheckResponse_SERVING)
	at, log := serve(t, fmt.Sprintf("api/liveness#grpc://:%[1]d#2s##api/readiness#grpc://:%[1]d/shop.Cart%%23%%C3%%A9#2s##"+
		"api/startup#grpc://:%[1]d/unknown#2s##bare/liveness#grpc://:%[2]d#2s", port, other))
	for _, addr := range []netip.Addr{podIPv4, podIPv6} {
		want(t, addr, at, "/probes/api/liveness", true)
		want(t, addr, at, "/probes/api/readiness", true)
		want(t, addr, at, "/probes/api/startup", false)
		want(t, addr, at, "/probes/bare/liveness", false)
	}
	for _, s := range []healthpb.HealthCheckResponse_ServingStatus{
		healthpb.HealthCheckResponse_NOT_SERVING, healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_UNKNOWN,
	} {
		states.SetServingStatus("shop.Cart#é", s)
		await(t, s.String(), func() error {
			if code, _ := get(t, podIPv4, at, "/probes/api/readiness"); (code == 200) != (s == healthpb.HealthCheckResponse_SERVING) {
				return fmt.Errorf("the answer is %d", code)
			}
			return nil
		})
	}
	for _, cause := range []string{
		"gRPC status 5", "the application does not serve grpc.health.v1.Health", "its health status is 2, not SERVING", "its health status is 0, not SERVING",
	} {
		await(t, "the log", func() error {
			if !strings.Contains(log.String(), fmt.Sprintf("cause=%q", cause)) {
				return fmt.Errorf("it does not say %q: %s", cause, log)
			}
			return nil
		})
	}
	if _, ok := agents.Load("kube-probe/portcullis"); !ok {
		t.Error("the server was asked by somebody else")
	}
}

// Who holds connections does not keep kubelet out: beyond 64 the oldest go.
func TestACrowdDoesNotKeepKubeletOut(t *testing.T) {
	l, port := listen(t, "")
	serveHTTP(t, l, func(http.ResponseWriter, *http.Request) {})
	at, _ := serve(t, fmt.Sprintf("web/liveness#http://:%d/#1s", port))
	var gone atomic.Int32
	for i := range 200 {
		conn, err := net.Dial("tcp", netip.AddrPortFrom(podIPv4, at).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			io.WriteString(conn, "GET /probes/web/liveness HTTP/1.1\r\nHo") // and never ends
		}
		go func() {
			io.Copy(io.Discard, conn)
			gone.Add(1)
		}()
	}
	began := time.Now()
	want(t, podIPv4, at, "/probes/web/liveness", true)
	if took := time.Since(began); took > time.Second {
		t.Errorf("kubelet waits %v", took)
	}
	await(t, "the oldest to go", func() error {
		if n := gone.Load(); n < 200-64 {
			return fmt.Errorf("%d are gone", n)
		}
		return nil
	})
	await(t, "the slow ones to be timed out", func() error {
		if n := gone.Load(); n != 200 {
			return fmt.Errorf("%d are gone", n)
		}
		return nil
	})
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"elsewhere"}, NotAfter: time.Now().Add(-time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}
}

func await(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
