package meshproxy_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/tests/netlab"
)

// entry waits for a refusal that has all of the wanted fields; those with a dot are in a group.
func (p *pod) entry(message string, want map[string]any) (found map[string]any) {
	p.t.Helper()
	p.await(fmt.Sprintf("an entry %q with %v", message, want), func() error {
		var near []string
	entries:
		for _, e := range p.log.Entries(message) {
			for field, value := range want {
				got := e[field]
				if group, name, inGroup := strings.Cut(field, "."); inGroup {
					fields, _ := e[group].(map[string]any)
					got = fields[name]
				}
				if got != value {
					near = append(near, fmt.Sprintf("%s is %v in %v", field, got, e))
					continue entries
				}
			}
			found = e
			return nil
		}
		return fmt.Errorf("none of %d:\n%s", len(near), strings.Join(near, "\n"))
	})
	return found
}

const refusedMessage = "connection refused"

func TestRefusalsSayWhoAndWhy(t *testing.T) {
	t.Parallel()
	m, stranger := newMesh(t), newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.serveFirst(5432)
	p.startReady("--ingress", "web#8080#false##db#5432#mtls#api,spiffe://shop.example/api")
	other := m.issue(time.Hour, "other", "spiffe://shop.example/other", "10.1.2.3")
	verified := func(more map[string]any) map[string]any {
		more["certificate.verified"], more["certificate.dns"] = true, "other"
		more["certificate.uri"], more["certificate.ip"] = "spiffe://shop.example/other", "10.1.2.3"
		more["certificate.serial"] = fmt.Sprintf("%x", other.Leaf.SerialNumber.Bytes())
		return more
	}
	for _, addr := range p.Addresses() {
		for name, tt := range map[string]struct {
			port uint16
			tls  *tls.Config
			say  string // instead of TLS
			want map[string]any
		}{
			"the wrong identity": {
				port: 5432, tls: m.client(other), want: verified(map[string]any{
					"reason": "identity", "chain": "mtls-5432", "wanted": "api,spiffe://shop.example/api",
				}),
			},
			"no certificate": {
				port: 6000, tls: m.client(), want: map[string]any{"reason": "no_certificate", "chain": "mtls", "certificate": nil},
			},
			"another mesh's certificate": {
				port: 6000, tls: m.showing(stranger.issue(time.Hour, "api", "spiffe://shop.example/api")), want: map[string]any{
					"reason": "untrusted", "certificate.verified": false, "certificate.dns": "api",
					"certificate.uri": "spiffe://shop.example/api",
				},
			},
			"an expired certificate": {
				port: 5432, tls: m.client(m.issue(time.Nanosecond, "late")), want: map[string]any{
					"reason": "untrusted", "certificate.verified": false, "certificate.dns": "late", "chain": "mtls-5432",
				},
			},
			"TLS 1.2":   {port: 6000, tls: withVersion(m.client(other), tls.VersionTLS12), want: map[string]any{"reason": "handshake"}},
			"plaintext": {port: 8080, say: "GET / HTTP/1.1\r\n\r\n", want: map[string]any{"reason": "handshake", "detail": "HTTP_REQUEST"}},
			"no application": {
				port: 6001, tls: m.client(other), want: verified(map[string]any{"reason": "application", "chain": "mtls"}),
			},
			"the proxy's own port": {port: 15099, say: "x", want: map[string]any{"reason": "destination"}},
		} {
			to := p.at(addr, tt.port)
			raw, err := peer.Dial(t.Context(), "tcp", to.String())
			if err != nil {
				t.Fatal(err)
			}
			raw.SetDeadline(time.Now().Add(5 * time.Second))
			if tt.tls == nil {
				io.WriteString(raw, tt.say)
			} else {
				conn := tls.Client(raw, tt.tls)
				conn.Handshake()
				conn.Read(make([]byte, 1))
			}
			tt.want["peer"], tt.want["port"], tt.want["local"] = raw.LocalAddr().String(), float64(tt.port), to.String()
			tt.want["direction"], tt.want["level"] = "inbound", "WARN"
			raw.Close()
			t.Run(name, func(t *testing.T) { p.entry(refusedMessage, tt.want) })
		}
	}
	if n := len(p.log.Entries("connection")); n != 0 {
		t.Errorf("%d entries about connections that were not refused", n)
	}
}

func TestASlowHandshakeIsLogged(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady()
	conn, err := peer.Dial(t.Context(), "tcp", p.at(p.IPv4, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p.entry(refusedMessage, map[string]any{"reason": "handshake_timeout", "peer": conn.LocalAddr().String()})
}

func TestCallsToTheWrongPeerSayWhoAnswered(t *testing.T) {
	t.Parallel()
	m, stranger := newMesh(t), newMesh(t)
	web, impostor := newPod(t, "web"), newPod(t, "impostor")
	m.write(web.contrast, m.issue(time.Hour, "web", "spiffe://shop.example/web"))
	stranger.write(impostor.contrast, stranger.issue(time.Hour, "billing"))
	for _, p := range []*pod{web, impostor} {
		p.serveFirst(8080)
		p.startReady()
	}
	caller := newPod(t, "caller")
	m.write(caller.contrast, m.issue(time.Hour, "caller"))
	caller.startReady("--ingress", "CLOSED", "--egress", strings.Join([]string{
		fmt.Sprintf("wrong#127.137.0.1:11001#%s:8080#billing", web.IPv4),
		fmt.Sprintf("stranger#127.137.0.1:11002#%s:8080#any", impostor.IPv4),
		fmt.Sprintf("silent#127.137.0.1:11003#%s:15006#any", web.IPv4), // its guard drops that
		"unknown#127.137.0.1:11004#nowhere-at-all:8080",
	}, "##"))
	for port, want := range map[uint16]map[string]any{
		11001: {
			"reason": "identity", "upstream": p4(web, 8080), "certificate.verified": true,
			"certificate.names": "web,_spiffe://shop.example/web", "wanted": "billing",
		},
		11002: {"reason": "untrusted", "upstream": p4(impostor, 8080), "certificate": nil},
		11003: {"reason": "connect", "upstream": p4(web, 15006)},
		11004: {"reason": "no_address"},
	} {
		conn, err := caller.Dial(t.Context(), "tcp", netip.AddrPortFrom(netip.MustParseAddr("127.137.0.1"), port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if got, err := io.ReadAll(conn); len(got) != 0 {
			t.Errorf("port %d answers %q, %v", port, got, err)
		}
		want["direction"], want["port"], want["peer"] = "outbound", float64(port), conn.LocalAddr().String()
		caller.entry(refusedMessage, want)
	}
}

func p4(p *pod, port uint16) string { return p.at(p.IPv4, port).String() }

// Whoever can reach the pod can put anything into a certificate, and nothing of it may reach the log as it is.
func TestCertificatesCannotWriteTheLog(t *testing.T) {
	t.Parallel()
	m, stranger := newMesh(t), newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady("--ingress", "db#5432#mtls#api")
	const lie = `x"}` + "\n" + `{"time":"2030-01-01T00:00:00Z","level":"INFO","msg":"forged","component":"meshproxy"}` + "\n"
	hostile := map[string][]san{
		"a line of its own": {dns(lie), uri("spiffe://" + lie)},
		"terminal escapes":  {dns("\x1b[2J\x1b]0;owned\x07"), uri("spiffe://\x9b31m\u202e")},
		"not UTF-8":         {dns("\xff\xfe\x00\x80"), uri("spiffe://\xc3\x28")},
		"Envoy's own words": {dns("error|main|forged"), uri("spiffe://]:TLS_error_end")},
		"64 KiB":            {dns(strings.Repeat("y", 64<<10)), uri("spiffe://short")},
		"64 KiB of escapes": {dns(strings.Repeat("\x01\"\n", 64<<10/3))},
		"8,000 names":       slices.Repeat([]san{dns("a.b")}, 8000),
	}
	for name, names := range hostile {
		for reason, issuer := range map[string]*mesh{"untrusted": stranger, "identity": m} {
			raw, err := peer.Dial(t.Context(), "tcp", p.at(p.IPv4, 5432).String())
			if err != nil {
				t.Fatal(err)
			}
			raw.SetDeadline(time.Now().Add(5 * time.Second))
			conn := tls.Client(raw, m.showing(issuer.forge(names, func(c *x509.Certificate) {
				c.Subject.CommonName = "evil\n\"\x1b[31m"
			})))
			conn.Handshake()
			conn.Read(make([]byte, 1))
			raw.Close()
			t.Run(name, func(t *testing.T) {
				p.entry(refusedMessage, map[string]any{"reason": reason, "peer": raw.LocalAddr().String(), "port": 5432.0})
			})
		}
	}
	if forged := p.log.Entries("forged"); len(forged) != 0 {
		t.Errorf("a peer wrote %v", forged)
	}
	for line := range bytes.Lines([]byte(p.log.String())) {
		if !json.Valid(line) || len(line) > 16<<10 {
			t.Errorf("%d bytes, or not JSON: %.500q", len(line), line)
		}
		if i := bytes.IndexFunc(bytes.TrimSuffix(line, []byte("\n")), func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
			t.Errorf("not printable at %d: %.500q", i, line)
		}
		// Nor after somebody has taken the JSON away.
		var entry any
		if err := json.Unmarshal(line, &entry); err != nil {
			t.Fatal(err)
		}
		for _, text := range texts(entry) {
			if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("not printable: %.500q", text)
			}
		}
	}
}

// texts are all texts in a JSON value.
func texts(value any) []string {
	switch v := value.(type) {
	case string:
		return []string{v}
	case map[string]any:
		var all []string
		for _, member := range v {
			all = append(all, texts(member)...)
		}
		return all
	}
	return nil
}

// A flood of one kind of refusals neither fills the log nor hides another kind.
func TestAFloodOfRefusalsIsCounted(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady("--ingress", "db#5432#mtls#api", "--admin-port", "9901")
	const flood = 600
	began := time.Now()
	for range flood {
		conn, err := peer.Dial(t.Context(), "tcp", p.at(p.IPv4, 80).String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "this is not TLS\n")
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		io.ReadAll(conn)
		conn.Close()
	}
	overTLS(peer, p.at(p.IPv4, 5432), m.client(m.issue(time.Hour, "other")))
	p.entry(refusedMessage, map[string]any{"reason": "identity", "certificate.dns": "other"})
	p.await("the whole flood", func() error {
		metrics, err := scrape(p)
		if err != nil {
			return err
		}
		suppressed, err := value(metrics, "log_entries_suppressed_total", "")
		if n := len(p.log.Entries(refusedMessage)) + int(suppressed); err == nil && n != flood+1 {
			err = fmt.Errorf("%d entries were made or left out, want %d", n, flood+1)
		}
		return err
	})
	most := 20 + int(time.Since(began)/time.Second) + 2
	if n := len(p.log.Entries(refusedMessage)); n > most {
		t.Errorf("%d entries in %v, want %d at most", n, time.Since(began), most)
	}
	p.await("the log to say so", func() error {
		var told float64
		for _, e := range p.log.Entries("entries are left out of the log") {
			if e["kind"] != "inbound handshake" {
				t.Errorf("left out: %v", e)
			}
			told += e["entries"].(float64)
		}
		if made := len(p.log.Entries(refusedMessage)) - 1; made+int(told) != flood {
			return fmt.Errorf("the log tells of %v besides %d", told, made)
		}
		return nil
	})
}

func TestAccessLogHasALinePerConnection(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	web, caller := newPod(t, "web"), newPod(t, "caller")
	m.write(web.contrast, m.issue(time.Hour, "web", "spiffe://shop.example/web"))
	m.write(caller.contrast, m.issue(time.Hour, "caller", "spiffe://shop.example/caller"))
	web.serveFirst(8080)
	web.startReady("--access-log")
	caller.startReady("--access-log", "--ingress", "CLOSED", "--egress", fmt.Sprintf("web#127.137.0.1:11001#%s:8080#web", web.IPv4))
	conn, err := caller.Dial(t.Context(), "tcp", "127.137.0.1:11001")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := readGreeting(conn); got != greeting {
		t.Fatalf("got %q, %v", got, err)
	}
	io.WriteString(conn, "0123456789") // which comes back
	if got, err := readGreeting(conn); got != "0123456789" {
		t.Fatalf("got %q, %v", got, err)
	}
	conn.Close()
	for _, want := range []struct {
		p      *pod
		fields map[string]any
	}{
		{web, map[string]any{
			"direction": "inbound", "chain": "mtls", "port": 8080.0, "received": 10.0, "sent": 20.0, "certificate.verified": true,
			"certificate.dns": "caller", "certificate.uri": "spiffe://shop.example/caller", "upstream": p4(web, 8080),
		}},
		{caller, map[string]any{
			"direction": "outbound", "chain": "egress-web", "port": 11001.0, "received": 10.0, "sent": 20.0, "upstream": p4(web, 8080),
			"certificate.verified": true, "certificate.dns": "web", "certificate.uri": "spiffe://shop.example/web",
			"peer": conn.LocalAddr().String(),
		}},
	} {
		e := want.p.entry("connection", want.fields)
		if ms, ok := e["milliseconds"].(float64); !ok || ms < 0 || ms > 20_000 {
			t.Errorf("it took %v", e["milliseconds"])
		}
		if n := len(want.p.log.Entries("connection")); n != 1 {
			t.Errorf("%s has %d lines for one connection", want.p.Name, n)
		}
	}
	// Refusals are told of as ever.
	overTLS(caller.Host, web.at(web.IPv4, 8080), m.client())
	web.entry(refusedMessage, map[string]any{"reason": "no_certificate"})
	if n := len(web.log.Entries("connection")); n != 1 {
		t.Errorf("with a refusal there are %d lines", n)
	}
}
