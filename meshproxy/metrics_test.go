package meshproxy_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy/envoy"
	"portcullis.dev/portcullis/tests/netlab"
)

var update = flag.Bool("update", false, "write the tables in docs/observability.md anew")

const docs = "../docs"

// family is a metric as a scrape shows it.
type family struct {
	kind, help string
	labels     []string
	series     map[string]float64 // by what stands in braces
}

// scrape asks p's admin port 9901 for its metrics.
func scrape(p *pod) (map[string]*family, error) {
	text, err := get(p, "/metrics")
	if err != nil {
		return nil, err
	}
	return parseScrape(text)
}

func get(p *pod, path string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return p.Dial(ctx, network, "127.0.0.1:9901")
	}}}
	resp, err := client.Get("http://admin" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

var (
	sample = regexp.MustCompile(`^([a-z0-9_]+)(?:\{(.*)\})? (\S+)$`)
	label  = regexp.MustCompile(`([a-z0-9_]+)="(?:[^"\\]|\\.)*"`)
)

func parseScrape(text string) (map[string]*family, error) {
	out := map[string]*family{}
	at := func(name string) *family {
		if out[name] == nil {
			out[name] = &family{series: map[string]float64{}}
		}
		return out[name]
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch words := strings.SplitN(line, " ", 4); {
		case len(words) == 4 && words[1] == "HELP":
			at(words[2]).help = words[3]
		case len(words) == 4 && words[1] == "TYPE":
			at(words[2]).kind = words[3]
		default:
			m := sample.FindStringSubmatch(line)
			if m == nil {
				return nil, fmt.Errorf("not a sample: %q", line)
			}
			value, err := strconv.ParseFloat(m[3], 64)
			if err != nil {
				return nil, err
			}
			f := at(m[1])
			f.series[m[2]] = value
			f.labels = nil
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				f.labels = append(f.labels, l[1])
			}
		}
	}
	return out, nil
}

const prefix = "portcullis_meshproxy_"

// value is that of one series; a series that is not there is an error.
func value(metrics map[string]*family, name, labels string) (float64, error) {
	f := metrics[prefix+name]
	if f == nil {
		return 0, fmt.Errorf("no metric %s", name)
	}
	v, found := f.series[labels]
	if !found {
		return 0, fmt.Errorf("no series %s{%s} in %v", name, labels, f.series)
	}
	return v, nil
}

// everything is a pod whose configuration has something of every kind.
func everything(t *testing.T, m *mesh, args ...string) *pod {
	t.Helper()
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady(append([]string{
		"--ingress", "web#8080#false##db#5432#mtls#api",
		"--egress", "billing#127.137.0.1:8081#nowhere-at-all:8080##self#127.137.0.1:8082#" + p.IPv4.String() + ":6000#billing",
		"--admin-port", "9901",
	}, args...)...)
	return p
}

func TestOneScrapeSaysEverything(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := everything(t, m)
	p.serveFirst(6000)
	p.serveFirst(5432)
	api := m.client(m.issue(time.Hour, "api"))
	for _, port := range []uint16{6000, 5432} {
		if got, _, err := overTLS(peer, p.at(p.IPv4, port), api); got != greeting {
			t.Fatalf("port %d: got %q, %v", port, got, err)
		}
	}
	overTLS(peer, p.at(p.IPv4, 5432), m.client(m.issue(time.Hour, "other"))) // fails
	overTLS(peer, p.at(p.IPv4, 6000), m.client())
	plaintext(peer, p.at(p.IPv4, 15006))
	plaintext(p.Host, netip.MustParseAddrPort("127.137.0.1:8082")) // the pod itself is not billing

	var metrics map[string]*family
	for _, want := range []struct {
		name, labels string
		least, most  float64
	}{
		{"ready", "", 1, 1},
		{"not_ready", `cause="guard"`, 0, 0},
		{"guard_state", `state="mesh"`, 1, 1},
		{"guard_dropped_packets_total", `reason="to_proxy"`, 1, 100},
		{"guard_dropped_packets_total", `reason="egress_lock"`, 0, 0},
		{"certificate_not_after_seconds", "", float64(time.Now().Unix()), float64(time.Now().Add(2 * time.Hour).Unix())},
		{"envoy_certificate_not_after_seconds", `context="ingress"`, float64(time.Now().Unix()), float64(time.Now().Add(2 * time.Hour).Unix())},
		{"credentials_published_total", "", 1, 1},
		{"credentials_refused_total", "", 0, 0},
		{"ticket_keys_published_total", "", 1, 1},
		{"envoy_restarts_total", "", 0, 0},
		{"envoy_up", "", 1, 1},
		{"envoy_secret_updates_total", `outcome="taken",secret="identity"`, 1, 1},
		{"envoy_secret_updates_total", `outcome="taken",secret="mtls-5432"`, 1, 1},
		{"connections_total", `listener="ingress"`, 4, 5}, // the pod's own call is one, too, or goes past Envoy
		{"connections_refused_total", `listener="ingress",reason="identity"`, 1, 1},
		{"connections_refused_total", `listener="ingress",reason="no_certificate"`, 1, 1},
		{"handshakes_total", `listener="ingress"`, 2, 2},
		{"upstream_connections_total", `cluster="ingress"`, 2, 2},
		{"upstream_received_bytes_total", `cluster="ingress"`, 2 * float64(len(greeting)), 2 * float64(len(greeting))},
		{"upstream_connect_failures_total", `cluster="egress-self"`, 1, 1},
		{"upstream_name_failures_total", `cluster="egress-billing"`, 0, 100},
		{"second_line_denied_total", "", 0, 0},
		{"log_entries_suppressed_total", "", 0, 0},
	} {
		p.await(want.name, func() (err error) {
			if metrics, err = scrape(p); err != nil {
				return err
			}
			got, err := value(metrics, want.name, want.labels)
			if err == nil && (got < want.least || got > want.most) {
				err = fmt.Errorf("%s{%s} is %v, want %v to %v", want.name, want.labels, got, want.least, want.most)
			}
			return err
		})
	}
	if f := metrics[prefix+"mesh_ca_info"]; len(f.series) != 1 {
		t.Errorf("mesh CAs: %v", f.series)
	}
	for _, m := range envoy.Metrics {
		if metrics[prefix+m.Name] == nil {
			t.Errorf("Envoy does not have what makes %s", m.Name)
		}
	}
	for name := range metrics {
		if !strings.HasPrefix(name, prefix) {
			t.Errorf("metric %s is none of ours", name)
		}
	}
	text, err := get(p, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if len(problems) > 0 || err != nil {
		t.Errorf("problems with the scrape: %v, %v", problems, err)
	}
	t.Run("documented", func(t *testing.T) { metricsAreDocumented(t, metrics) })
	t.Run("used", func(t *testing.T) { usedMetricsExist(t, metrics) })
	t.Run("promtool", func(t *testing.T) {
		promtool, err := exec.LookPath("promtool")
		if err != nil {
			t.Skip("promtool is missing; promlint, which it is made of, found no problem")
		}
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	})
	t.Run("nothing else is kept", func(t *testing.T) {
		all, err := get(p, "/stats/prometheus")
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(all, "# TYPE"); n < 20 || n > 120 || strings.Contains(all, "upstream_rq_retry") {
			t.Errorf("Envoy keeps %d statistics:\n%s", n, all)
		}
	})
}

// metricsAreDocumented compares docs/observability.md with a scrape, word for word.
func metricsAreDocumented(t *testing.T, metrics map[string]*family) {
	const file, begin, end = docs + "/observability.md", "<!-- metrics: go test -update -->\n", "<!-- end -->\n"
	var table strings.Builder
	table.WriteString("| metric | type | labels | |\n|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		f := metrics[name]
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", strings.TrimPrefix(name, prefix), f.kind, strings.Join(f.labels, ", "), f.help)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	got, after, found2 := strings.Cut(rest, end)
	if !found || !found2 {
		t.Fatalf("%s has no place for the table of metrics", file)
	}
	if *update {
		if err := os.WriteFile(file, []byte(before+begin+table.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != table.String() {
		t.Errorf("%s does not say what a scrape says (go test -update, then read the difference), want:\n%s", file, &table)
	}
	// Words that labels take are explained, too.
	for _, name := range []string{"guard_dropped_packets_total", "not_ready", "connections_refused_total", "upstream_refused_total"} {
		for series := range metrics[prefix+name].series {
			for _, l := range label.FindAllString(series, -1) {
				word := strings.Trim(l[strings.Index(l, "=")+1:], `"`)
				if !strings.HasPrefix(l, "listener=") && !strings.HasPrefix(l, "cluster=") && !strings.Contains(after, "| `"+word+"` |") {
					t.Errorf("%s does not explain %s of %s", file, l, name)
				}
			}
		}
	}
}

// usedMetricsExist looks for every metric that the dashboard and the rules name.
func usedMetricsExist(t *testing.T, metrics map[string]*family) {
	name := regexp.MustCompile(`portcullis_meshproxy_[a-z0-9_]+`) // the others are the Coordinator's
	for _, file := range []string{docs + "/grafana/portcullis-meshproxy.json", docs + "/prometheus/portcullis.rules.yaml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(file) == ".json" && !json.Valid(text) {
			t.Errorf("%s is not JSON", file)
		}
		used := name.FindAllString(string(text), -1)
		if len(used) < 5 {
			t.Errorf("%s uses %v", file, used)
		}
		for _, m := range used {
			if metrics[m] == nil {
				t.Errorf("%s uses %s, which no scrape has", file, m)
			}
		}
	}
}

// A change of state makes a new table, whose counters begin at zero.
func TestDropsAreCountedAcrossChangesOfState(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady("--admin-port", "9901")
	count := func(reason string) float64 {
		t.Helper()
		metrics, err := scrape(p)
		if err != nil {
			t.Fatal(err)
		}
		v, err := value(metrics, "guard_dropped_packets_total", fmt.Sprintf("reason=%q", reason))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	last := count("to_proxy")
	for range 3 {
		plaintext(peer, p.at(p.IPv6, 15006))
		// Nobody has looked at the counters when the table goes.
		killed := p.envoy()
		if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		p.await("another Envoy", func() error {
			if p.envoy() == killed {
				return errors.New("the same is ready")
			}
			return p.ready()
		})
		n := count("to_proxy")
		if n <= last {
			t.Errorf("after another drop and Envoy's death it counts %v, and %v before", n, last)
		}
		if again := count("to_proxy"); again != n {
			t.Errorf("it counts %v, and then %v", n, again)
		}
		last = n
	}
	metrics, err := scrape(p)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := value(metrics, "envoy_restarts_total", ""); n != 3 {
		t.Errorf("%v restarts, %v; want 3", n, err)
	}
}

// Whatever the guard stops has a word, in every state that it can be in.
func TestEveryReasonToDropHasAWord(t *testing.T) {
	t.Parallel()
	h := netlab.NewHost(t, "web")
	meanings := map[string]bool{}
	ctx := t.Context()
	for _, change := range []func() error{
		func() error { return guard.Arm(ctx) },
		func() error { return guard.Raise(ctx, guard.Ports{}) },
		func() error { return guard.Lock{}.Close(ctx) },
		func() error { return guard.Lock{DNS: true}.Raise(ctx, guard.Ports{}) },
	} {
		if err := h.Do(func() error {
			if err := change(); err != nil {
				return err
			}
			status, err := guard.Inspect(ctx)
			for _, c := range status.Counters {
				if c.Drop {
					meanings[c.Meaning] = true
				}
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	source, err := os.ReadFile("metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(source), "var dropReasons = ")
	table, _, _ = strings.Cut(table, "\n}\n")
	for meaning := range meanings {
		if !strings.Contains(table, strconv.Quote(meaning)) {
			t.Errorf("what the guard drops %q has no word", meaning)
		}
	}
	if n := strings.Count(table, "\n") - 0; n != len(meanings) {
		t.Errorf("%d words for %d meanings", n, len(meanings))
	}
}

// The causes are a scrape's, one at a time.
func TestReadinessSaysItsCause(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(8*time.Second, "web"))
	p.startReady("--admin-port", "9901")
	causes := func() (string, error) {
		metrics, err := scrape(p)
		if err != nil {
			return "", err
		}
		var set []string
		for series, v := range metrics[prefix+"not_ready"].series {
			if v == 1 {
				set = append(set, series)
			}
		}
		if v, err := value(metrics, "ready", ""); err != nil || (v == 1) != (len(set) == 0) {
			return "", fmt.Errorf("ready is %v with the causes %v (%v)", v, set, err)
		}
		return strings.Join(set, " "), nil
	}
	await := func(what string, want ...string) {
		t.Helper()
		p.await(what, func() error {
			got, err := causes()
			if err == nil && !slices.Contains(want, got) {
				err = fmt.Errorf("the causes are %q, want %q", got, want)
			}
			return err
		})
	}
	await("the certificate's end", `cause="certificate"`)
	m.write(p.contrast, m.issue(time.Hour, "web"))
	await("a new certificate", "")
	// An Envoy that does not answer.
	if err := syscall.Kill(p.envoy(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await("Envoy's silence", `cause="envoy"`)
	if metrics, err := scrape(p); err != nil {
		t.Error(err)
	} else if up, err := value(metrics, "envoy_up", ""); up != 0 || err != nil {
		t.Errorf("a stopped Envoy is up: %v, %v", up, err)
	}
	if err := syscall.Kill(p.envoy(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	await("Envoy's answer", "")
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.await("its end, with a word", func() error {
		got, err := causes()
		if got == `cause="stopping"` {
			return nil
		}
		select {
		case <-p.exited: // no connection was open, so it may be gone before it is asked
			return nil
		default:
		}
		return cmp.Or(err, fmt.Errorf("the causes are %q", got))
	})
}

func TestAdminViewAgainstHostileRequests(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady("--admin-port", "9901")
	dial := func() net.Conn {
		t.Helper()
		conn, err := p.Dial(t.Context(), "tcp", "127.0.0.1:9901")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		return conn
	}
	const host, last = "\r\nHost: x\r\n\r\n", "\r\nConnection: close\r\nHost: x\r\n\r\n"
	for name, tt := range map[string]struct{ request, status string }{
		"control":               {"GET /ready HTTP/1.1" + last, "200"},
		"a query":               {"GET /ready?x=/quitquitquit HTTP/1.1" + last, "200"},
		"dots":                  {"GET /certs/../ready HTTP/1.1" + host, "404"},
		"encoded dots":          {"GET /certs/%2e%2e/quitquitquit HTTP/1.1" + host, "404"},
		"an encoded letter":     {"GET /%72eady HTTP/1.1" + host, "404"},
		"an encoded slash":      {"GET /stats%2fprometheus HTTP/1.1" + host, "404"},
		"an encoded question":   {"GET /ready%3fx HTTP/1.1" + host, "404"},
		"two slashes":           {"GET //ready HTTP/1.1" + host, "404"},
		"a null":                {"GET /ready%00 HTTP/1.1" + host, "404"},
		"a fragment":            {"GET /ready#x HTTP/1.1" + host, "404"},
		"an absolute URI":       {"GET http://envoy/ready HTTP/1.1" + host, "404"},
		"Envoy's pages":         {"GET /config_dump HTTP/1.1" + host, "404"},
		"Envoy's statistics":    {"GET /stats?filter=. HTTP/1.1" + host, "404"},
		"draining":              {"POST /drain_listeners?graceful HTTP/1.1" + host, "404"},
		"POST":                  {"POST /ready HTTP/1.1" + host, "405"},
		"PUT":                   {"PUT /metrics HTTP/1.1\r\nContent-Length: 1" + host + "x", "405"},
		"DELETE":                {"DELETE /certs HTTP/1.1" + host, "405"},
		"TRACE":                 {"TRACE /ready HTTP/1.1" + host, "405"},
		"OPTIONS":               {"OPTIONS /ready HTTP/1.1" + host, "405"},
		"OPTIONS *":             {"OPTIONS * HTTP/1.1" + host, "404"},
		"CONNECT":               {"CONNECT 127.0.0.1:80 HTTP/1.1" + host, "404"},
		"CONNECT to a page":     {"CONNECT /ready HTTP/1.1" + host, "405"},
		"an unknown method":     {"get /ready HTTP/1.1" + host, "405"},
		"a body":                {"GET /ready HTTP/1.1\r\nContent-Length: 4" + host + "GET ", "400"},
		"chunks":                {"GET /ready HTTP/1.1\r\nTransfer-Encoding: chunked" + host + "0\r\n\r\n", "400"},
		"length and chunks":     {"GET /ready HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked" + host + "0\r\n\r\n", "400"},
		"two lengths":           {"GET /ready HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 4" + host + "GET ", "400"},
		"a bare line feed":      {"GET /ready HTTP/1.1\r\nX: a\rb" + host, "400"},
		"a space in a header":   {"GET /ready HTTP/1.1\r\nTransfer-Encoding : chunked" + host, "400"},
		"no host":               {"GET /ready HTTP/1.1\r\n\r\n", "400"},
		"HTTP/2 in plaintext":   {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "40"},
		"huge headers":          {"GET /ready HTTP/1.1\r\nX: " + strings.Repeat("x", 64<<10) + host, "431"},
		"a huge path":           {"GET /" + strings.Repeat("x", 64<<10) + " HTTP/1.1" + host, "431"},
		"not HTTP":              {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"},
		"an upgrade":            {"GET /ready HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ" + host, "200"},
		"a second one smuggled": {"GET /nothing HTTP/1.1" + host + "GET /ready HTTP/1.1" + host, "404"},
	} {
		conn := dial()
		// Who hangs up half-way gets no answer that takes a look at Envoy.
		if tt.status == "200" {
			tt.request = strings.Replace(tt.request, host, "\r\nConnection: close"+host, 1)
		}
		io.WriteString(conn, tt.request)
		answer, _ := io.ReadAll(conn)
		if n := bytes.Count(answer, []byte("HTTP/1.")); n != 1 || !bytes.HasPrefix(answer, []byte("HTTP/1.1 "+tt.status)) {
			t.Errorf("%s: %d answers, want one with %s:\n%.300q", name, n, tt.status, answer)
		}
	}
	if err := p.ready(); err != nil {
		t.Fatalf("after all that: %v", err)
	}

	// A client that never finishes its request is sent away, and does not keep others out meanwhile.
	slow := dial()
	io.WriteString(slow, "GET /ready HTTP/1.1\r\nX: ")
	began := time.Now()
	if _, err := get(p, "/ready"); err != nil {
		t.Errorf("beside a slow client: %v", err)
	}
	if _, err := io.ReadAll(slow); err != nil || time.Since(began) > 15*time.Second {
		t.Errorf("a slow client is kept for %v (%v)", time.Since(began), err)
	}

	// Many connections cost no more than a few, and when they have gone there is room again.
	for range 500 {
		io.WriteString(dial(), "GET /ready HTTP/1.1\r\n")
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil || kib > 40<<10 {
		t.Errorf("with 500 connections the supervisor takes %d KiB (%v)", kib, err)
	}
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil || len(descriptors) > 100 {
		t.Errorf("it holds %d descriptors (%v)", len(descriptors), err)
	}
	if err := p.ready(); err != nil {
		t.Errorf("with 500 connections to the admin port: %v", err)
	}
}
