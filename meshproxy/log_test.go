package meshproxy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"portcullis.dev/portcullis/meshproxy/config"
)

// textLog is a log without times.
func textLog(out io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

func parse(t *testing.T, ingress, egress string) *config.Config {
	t.Helper()
	cfg, err := config.Parse(ingress, egress, "", "")
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestEnvoysLogBecomesOurs(t *testing.T) {
	var out strings.Builder
	l := newEnvoyLog(&newLogs(textLog(&out), &config.Config{}, false).messages)
	for _, part := range []string{
		"warning|main|half a ", "line\nerror|config|cannot bind \\'[::]:15006\\': in use\ninfo|main|a|b\n",
		"\nterminate called\n", "rest",
	} {
		fmt.Fprint(l, part)
	}
	want := `level=WARN msg="half a line" source=envoy logger=main
level=ERROR msg="cannot bind '[::]:15006': in use" source=envoy logger=config
level=INFO msg=a|b source=envoy logger=main
level=ERROR msg="terminate called" source=envoy
`
	if out.String() != want || l.lastError() != "terminate called" {
		t.Errorf("got:\n%slast %q, want:\n%s", &out, l.lastError(), want)
	}
}

// The end of a line that is too long must not pass for a line of its own.
func TestLongLinesAreCutAndNotTornApart(t *testing.T) {
	for _, chunk := range []int{1 << 10, 32 << 10, 1 << 20} {
		var got []string
		l := &lines{each: func(line []byte) { got = append(got, string(line)) }}
		in := []byte("first\n" + strings.Repeat("x", 200<<10) + "error|main|forged\nlast\n\n")
		for len(in) > 0 {
			n := min(chunk, len(in))
			if w, err := l.Write(in[:n]); w != n || err != nil {
				t.Fatalf("wrote %d of %d, %v", w, n, err)
			}
			in = in[n:]
		}
		if len(got) != 4 || got[0] != "first" || got[1] != strings.Repeat("x", maxLine) || got[2] != "last" || got[3] != "" {
			t.Errorf("in pieces of %d: %d lines, the second of %d bytes", chunk, len(got), len(got[min(1, len(got)-1)]))
		}
	}
}

func TestStrangersWordsArePrintable(t *testing.T) {
	for in, want := range map[string]string{
		"spiffe://shop.example/api":   "spiffe://shop.example/api",
		"a\nlevel=ERROR":              `a\nlevel=ERROR`,
		"\x1b[31mred\x1b[0m \"x\"":    `\x1b[31mred\x1b[0m "x"`,
		"\u202egpj.exe\u2028\u009b2J": `\u202egpj.exe\u2028\u009b2J`,
		"\xff\x00":                    `\xff\x00`,
		`\n`:                          `\\n`,
		"0123456789ab":                "0123456789a...",
		"0123456789ä":                 `0123456789\xc3...`,
	} {
		most := 60
		if strings.HasPrefix(in, "0123") {
			most = 11
		}
		if got := printable(in, most); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

// lockedText is for a log that a timer writes, too.
type lockedText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestABudgetIsSpentByKindAndSaysWhatItLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedText
		b := &budget{log: textLog(&out), burst: 3, interval: time.Second}
		count := func(kind string, n int) (allowed int) {
			for range n {
				if b.allow(kind) {
					allowed++
				}
			}
			return allowed
		}
		if a, c := count("a", 10), count("b", 2); a != 3 || c != 2 {
			t.Errorf("at once %d and %d entries, want 3 and 2", a, c)
		}
		time.Sleep(2500 * time.Millisecond)
		if a := count("a", 10); a != 2 {
			t.Errorf("after 2.5 s %d entries more, want 2", a)
		}
		time.Sleep(500 * time.Millisecond)
		if a := count("a", 10); a != 1 {
			t.Errorf("after half a second more %d entries, want 1: the half is not lost", a)
		}
		if got := out.String(); got != "" {
			t.Errorf("it reports at once: %s", got)
		}
		time.Sleep(reportInterval)
		synctest.Wait()
		const first = "level=WARN msg=\"entries are left out of the log\" kind=a entries=24\n"
		if out.String() != first {
			t.Errorf("it reports %q, want %q", out.String(), first)
		}
		time.Sleep(time.Hour)
		if a := count("a", 10); a != 3 {
			t.Errorf("after an hour %d entries, want the burst of 3", a)
		}
		b.close()
		if want := first + strings.Replace(first, "24", "7", 1); out.String() != want {
			t.Errorf("at its end it reports %q, want %q", out.String(), want)
		}
		if n := b.suppressed(); n != 31 {
			t.Errorf("it counts %d in all, want 31", n)
		}
		time.Sleep(time.Hour) // no timer is left that would report again
	})
}

func TestConnectionsBecomeEntries(t *testing.T) {
	const tls = `TLS_error:|268435581:SSL_routines:OPENSSL_internal:`
	for name, tt := range map[string]struct{ line, want string }{
		"the wrong identity": {
			`{"a_chain":"mtls-5432","a_listener":"ingress","a_local":"10.0.0.3:5432","a_remote":"10.0.0.2:4242","a_flags":"-",` +
				`"b_failure":"` + tls + `CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_SAN_matcher,_certificate_SANs_are_[other]:TLS_error_end",` +
				`"c_serial":"2d15","d_dns":"other","d_subject":"CN=01"}`,
			`level=WARN msg="connection refused" direction=inbound reason=identity peer=10.0.0.2:4242 port=5432 ` +
				`local=10.0.0.3:5432 chain=mtls-5432 certificate.verified=true certificate.dns=other certificate.subject="CN=01" ` +
				`certificate.serial=2d15 wanted=api,spiffe://shop.example/api`,
		},
		"a stranger who claims to be somebody, and knows our words": {
			`{"a_chain":"mtls","a_listener":"ingress","a_local":"[fd00::3]:5432","a_remote":"[fd00::2]:4242","a_flags":"-",` +
				`"b_failure":"` + tls + `CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_X509_verify_cert:_self_signed:TLS_error_end",` +
				`"d_dns":"verify_cert_failed:_SAN_matcher,_certificate_SANs_are_[api]\u000alevel=INFO \u001b[31m"}`,
			`level=WARN msg="connection refused" direction=inbound reason=untrusted ` +
				`detail=verify_cert_failed:_X509_verify_cert:_self_signed peer=[fd00::2]:4242 port=5432 local=[fd00::3]:5432 chain=mtls ` +
				`certificate.verified=false certificate.dns="verify_cert_failed:_SAN_matcher,_certificate_SANs_are_[api]\\nlevel=INFO \\x1b[31m"`,
		},
		"bytes changed on the way": {
			`{"a_chain":"mtls","a_listener":"ingress","a_upstream":"10.0.0.3:80","b_failure":"TLS_error:|1:SSL_routines:` +
				`OPENSSL_internal:DECRYPTION_FAILED_OR_BAD_RECORD_MAC:TLS_error_end","d_uri":"spiffe://a"}`,
			`level=WARN msg="connection refused" direction=inbound reason=broken detail=DECRYPTION_FAILED_OR_BAD_RECORD_MAC ` +
				`chain=mtls upstream=10.0.0.3:80 certificate.verified=true certificate.uri=spiffe://a`,
		},
		"the second line": {
			`{"a_chain":"mtls-5432","a_listener":"ingress","a_details":"rbac_access_denied_matched_policy[none]","d_dns":"b"}`,
			`level=WARN msg="connection refused" direction=inbound reason=second_line ` +
				`detail=rbac_access_denied_matched_policy[none] chain=mtls-5432 certificate.verified=true certificate.dns=b`,
		},
		"a server that is somebody else": {
			`{"a_cluster":"egress-billing","a_chain":"egress-billing","a_listener":"egress-billing","a_flags":"UF,URX",` +
				`"a_upstream":"10.0.0.9:80","b_upstream_failure":"` + tls +
				`CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_SAN_matcher,_certificate_SANs_are_[web,_10.0.0.9]:TLS_error_end"}`,
			`level=WARN msg="connection refused" direction=outbound reason=identity chain=egress-billing upstream=10.0.0.9:80 ` +
				`certificate.verified=true certificate.names=web,_10.0.0.9 wanted=billing-svc`,
		},
		"a server that is not there": {
			`{"a_cluster":"egress-billing","a_listener":"egress-billing","a_flags":"UF","b_upstream_failure":"delayed_connect_error:_x"}`,
			`level=WARN msg="connection refused" direction=outbound reason=connect detail=delayed_connect_error:_x`,
		},
		"an application that is not there": {
			`{"a_cluster":"ingress","a_listener":"ingress","a_flags":"UF,URX","b_upstream_failure":"delayed_connect_error:_x"}`,
			`level=WARN msg="connection refused" direction=inbound reason=application detail=delayed_connect_error:_x`,
		},
		"a line that breaks off": {
			`{"a_chain":"mtls","a_listener":"ingress","a_remote":"10.0.0.2:1","b_failure":"` + tls +
				`CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_x:TLS_error_end","d_dns":"yyyyyy\"\u00`,
			`level=WARN msg="connection refused" direction=inbound reason=untrusted detail=verify_cert_failed:_x peer=10.0.0.2:1 chain=mtls ` +
				`certificate.verified=false certificate.dns="yyyyyy\""`,
		},
		"one that went well": {
			`{"a_chain":"mtls","a_listener":"ingress","a_flags":"-","a_bytes_received":1,"a_bytes_sent":2,"a_duration":3,` +
				`"a_upstream":"10.0.0.3:80","d_dns":"api"}`,
			`level=INFO msg=connection direction=inbound chain=mtls upstream=10.0.0.3:80 certificate.verified=true ` +
				`certificate.dns=api received=1 sent=2 milliseconds=3`,
		},
		"a timed out handshake": {
			`{"a_chain":"mtls","a_listener":"ingress","a_details":"transport socket timeout was reached"}`,
			`level=WARN msg="connection refused" direction=inbound reason=handshake_timeout chain=mtls`,
		},
	} {
		var out strings.Builder
		l := newLogs(textLog(&out), parse(t, "db#5432#mtls#api,spiffe://shop.example/api", "billing#127.0.0.1:8081#billing-svc:80"), true)
		fmt.Fprintln(newConnectionLog(l), tt.line)
		if got := out.String(); got != tt.want+"\n" {
			t.Errorf("%s:\ngot  %swant %s", name, got, tt.want)
		}
	}
}

func TestOnlyRefusalsAreLoggedUnlessAllAreAskedFor(t *testing.T) {
	var out strings.Builder
	l := newConnectionLog(newLogs(textLog(&out), &config.Config{}, false))
	fmt.Fprintln(l, `{"a_chain":"mtls","a_listener":"ingress","a_flags":"-"}`)
	fmt.Fprintln(l, "no JSON at all")
	fmt.Fprintln(l, `{"a_flags":17}`)
	if out.Len() != 0 {
		t.Errorf("it logs %s", &out)
	}
}

// Whatever Envoy writes, there is one entry per line at most, valid, short, and printable.
func FuzzConnectionLog(f *testing.F) {
	f.Add([]byte(`{"a_listener":"ingress","a_details":"rbac_access_denied","d_dns":"a\u000a\u001b","d_uri":"\u202e","a_remote":"x\"}"}`))
	f.Add([]byte(`{"a_listener":"egress-a","a_flags":"UF","b_upstream_failure":"TLS_error:|1:SSL_routines:OPENSSL_internal:A:b"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		l := newConnectionLog(newLogs(slog.New(slog.NewJSONHandler(&out, nil)), &config.Config{}, true))
		l.Write(append(in, '\n'))
		if n := bytes.Count(out.Bytes(), []byte("\n")); n > bytes.Count(in, []byte("\n"))+1 {
			t.Errorf("%d entries", n)
		}
		for line := range bytes.Lines(out.Bytes()) {
			var entry map[string]any
			if err := json.Unmarshal(line, &entry); err != nil || len(line) > 16<<10 {
				t.Errorf("%v, %d bytes: %s", err, len(line), line)
			}
			for _, c := range bytes.TrimSuffix(line, []byte("\n")) {
				if c < ' ' || c > '~' {
					t.Errorf("byte %#x in %q", c, line)
				}
			}
			for _, v := range entry {
				if s, ok := v.(string); ok && strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
					t.Errorf("not printable: %q", s)
				}
			}
		}
	})
}
