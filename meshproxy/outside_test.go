package meshproxy_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/netlab"
)

// These are clients from outside the mesh, which know it by its CA and by nothing else: what they may do, and what they may
// not. The ports of the pod that they call:
const (
	portOutside   = 8080 // #false
	portOutside2  = 8081 // #false
	portMutual    = 6000 // not listed: a certificate of the mesh
	portListed    = 5432 // identities api
	portListed2   = 5433 // identities api
	portAddressed = 5434 // identities 10.0.0.7
)

// outsideLab is a pod with these ports, and a peer that has files for the programs that it calls it with.
type outsideLab struct {
	*mesh
	t    *testing.T
	peer *netlab.Host
	p    *pod
	dir  string
}

func newOutsideLab(t *testing.T, program string) *outsideLab {
	t.Helper()
	m := newMesh(t)
	l := &outsideLab{mesh: m, t: t, peer: netlab.NewHost(t, "peer"), p: newPod(t, "web"), dir: t.TempDir()}
	m.write(l.p.contrast, m.issue(time.Hour, "web"))
	var entries []string
	for port, rest := range map[int]string{
		portOutside: "false", portOutside2: "false", portMutual: "",
		portListed: "mtls#api", portListed2: "mtls#api", portAddressed: "mtls#10.0.0.7",
	} {
		l.p.serveFirst(port)
		if rest != "" {
			entries = append(entries, fmt.Sprintf("p%d#%d#%s", port, port, rest))
		}
	}
	cmd := l.p.command(l.p.flags("--ingress", strings.Join(entries, "##"))...)
	if program != "" {
		cmd.Args[slices.Index(cmd.Args, filepath.Dir(envoyProgram(t))+"/meshproxy")] = program
	}
	l.p.launch(cmd)
	l.p.awaitReady()
	l.file("ca.pem", pki.EncodeCertificates(m.ca.Certificate))
	api := m.issue(time.Hour, "api")
	l.file("api.pem", pki.EncodeCertificates(api.Leaf, m.ca.Intermediate))
	key, err := pki.EncodePrivateKey(api.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	l.file("api.key", key.Reveal())
	return l
}

func (l *outsideLab) file(name string, content []byte) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if content != nil {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			l.t.Fatal(err)
		}
	}
	return path
}

func (l *outsideLab) at(port uint16) netip.AddrPort { return l.p.at(l.p.IPv4, port) }

// openssl is what s_client prints. It says say when the application has greeted it, and leaves when it is greeted, or
// refused.
func (l *outsideLab) openssl(port uint16, say string, args ...string) string {
	l.t.Helper()
	cmd := l.peer.Command("openssl", append([]string{
		"s_client", "-connect", l.at(port).String(), "-CAfile", l.file("ca.pem", nil), "-servername", "web",
	}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out := &netlab.Log{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var once sync.Once
	deadline := time.After(patience)
	for {
		if strings.Contains(out.String(), greeting) {
			once.Do(func() {
				io.WriteString(in, say)
				if say == "" {
					in.Close()
				}
			})
		}
		select {
		case <-done:
			return out.String()
		case <-deadline:
			cmd.Process.Kill()
			<-done
			l.t.Errorf("openssl %q does not end:\n%s", args, out)
			return out.String()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (l *outsideLab) certificate() []string {
	return []string{"-cert", l.file("api.pem", nil), "-key", l.file("api.key", nil), "-cert_chain", l.file("api.pem", nil)}
}

const (
	weakest = "ALL:@SECLEVEL=0"
	weak12  = "AES128-SHA:AES256-GCM-SHA384:ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-GCM-SHA256:" +
		"DHE-RSA-AES128-GCM-SHA256:ADH-AES128-GCM-SHA256:AECDH-AES128-SHA:NULL:@SECLEVEL=0"
)

func TestOpenSSLFromOutside(t *testing.T) {
	t.Parallel()
	l := newOutsideLab(t, "")
	for _, tt := range []struct {
		name string
		port uint16
		args []string
		want []string // all of it
	}{
		{"TLS 1.3", portOutside, []string{"-tls1_3"}, []string{
			greeting, "New, TLSv1.3, Cipher is TLS_", "Server Temp Key: X25519", "Compression: NONE", "Max Early Data: 0",
			"Verify return code: 0 (ok)", "No ALPN negotiated",
		}},
		{"TLS 1.2", portOutside, []string{"-tls1_2"}, []string{
			greeting, "New, TLSv1.2, Cipher is ECDHE-ECDSA-", "Server Temp Key: X25519", "Compression: NONE",
			"Secure Renegotiation IS supported", "Extended master secret: yes", "Verify return code: 0 (ok)",
		}},
		{"TLS 1.2 and NIST's curves", portOutside, []string{"-tls1_2", "-groups", "P-384:P-256"}, []string{greeting, "prime256v1"}},
		{"TLS 1.3 and NIST's curves", portOutside, []string{"-tls1_3", "-groups", "P-384:P-256"}, []string{greeting, "prime256v1"}},
		{"a wish for ALPN", portOutside, []string{"-alpn", "h2,http/1.1"}, []string{greeting, "No ALPN negotiated"}},
		{"TLS 1.1", portOutside, []string{"-tls1_1", "-cipher", weakest}, []string{"alert protocol version"}},
		{"TLS 1.0", portOutside, []string{"-tls1", "-cipher", weakest}, []string{"alert protocol version"}},
		{"weak ciphers", portOutside, []string{"-tls1_2", "-cipher", weak12}, []string{"alert handshake failure"}},
		{"no good curve", portOutside, []string{"-tls1_2", "-groups", "P-521:P-384"}, []string{"alert handshake failure"}},
		{"TLS 1.3 with a certificate", portMutual, append(l.certificate(), "-tls1_3"), []string{
			greeting, "New, TLSv1.3", "Verify return code: 0 (ok)", "No ALPN negotiated", "Max Early Data: 0",
		}},
		{"TLS 1.3 with the right certificate", portListed, append(l.certificate(), "-tls1_3"), []string{greeting}},
		{"TLS 1.3 with a certificate that is not listed", portAddressed, append(l.certificate(), "-tls1_3"), []string{"alert"}},
		{"TLS 1.2 with a certificate", portMutual, append(l.certificate(), "-tls1_2"), []string{"alert protocol version"}},
		{"NIST's curves with a certificate", portMutual, append(l.certificate(), "-groups", "P-256"), []string{"alert handshake failure"}},
		{"no certificate", portMutual, nil, []string{"alert certificate required"}},
	} {
		out := l.openssl(tt.port, "", tt.args...)
		if strings.Contains(out, greeting) != slices.Contains(tt.want, greeting) {
			t.Errorf("%s: whether it is greeted is wrong:\n%s", tt.name, out)
		}
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: it does not say %q:\n%s", tt.name, want, out)
			}
		}
	}

	// R asks for a renegotiation.
	if out := l.openssl(portOutside, "R\n", "-tls1_2"); !strings.Contains(out, "RENEGOTIATING") || !strings.Contains(out, "no renegotiation") {
		t.Errorf("a renegotiation is not refused:\n%s", out)
	}

	// A session is the port's that made it, in both versions; and 0-RTT is not.
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		session := l.file("session"+version, nil)
		l.openssl(portOutside, "", version, "-sess_out", session)
		for _, tt := range []struct {
			name string
			port uint16
			args []string
			want string // or not greeted
		}{
			{"on its port", portOutside, []string{version}, "Reused, "}, // the control
			{"on another port", portOutside2, []string{version}, "New, "},
			{"on a port that wants a certificate", portMutual, nil, ""},
			{"on a port that wants a certificate with a name", portListed, nil, ""},
		} {
			out := l.openssl(tt.port, "", append(tt.args, "-sess_in", session)...)
			if greeted := strings.Contains(out, greeting); greeted != (tt.want != "") || !strings.Contains(out, tt.want) {
				t.Errorf("a session of %s %s: want %q:\n%s", version, tt.name, tt.want, out)
			}
		}
	}
	early := l.file("early", []byte("an early word\n"))
	if out := l.openssl(portOutside, "", "-tls1_3", "-sess_in", l.file("session-tls1_3", nil), "-early_data", early); !strings.Contains(out, greeting) ||
		!strings.Contains(out, "Early data was not sent") && !strings.Contains(out, "Early data was rejected") {
		t.Errorf("early data:\n%s", out)
	}
}

func TestCurlFromOutside(t *testing.T) {
	t.Parallel()
	l := newOutsideLab(t, "")
	const portHTTP, portHTTPMutual = 8443, 8444
	page := func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello over %s", r.Proto) }
	p := newPod(t, "shop")
	l.write(p.contrast, l.issue(time.Hour, "shop.example"))
	for _, port := range []string{":8443", ":8444"} {
		listener, err := p.Listen("tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(page)}
		go server.Serve(listener)
		t.Cleanup(func() { server.Close() })
	}
	p.startReady("--ingress", fmt.Sprintf("shop#%d#false", portHTTP))
	certificate := []string{"--cert", l.file("api.pem", nil), "--key", l.file("api.key", nil)}
	for _, tt := range []struct {
		name string
		port int
		args []string
		want string // or an error
	}{
		{"as it is", portHTTP, nil, "hello over HTTP/1.1"},
		{"wishing for HTTP/2", portHTTP, []string{"--http2"}, "hello over HTTP/1.1"},
		{"with TLS 1.2", portHTTP, []string{"--tls-max", "1.2"}, "hello over HTTP/1.1"},
		{"with TLS 1.3", portHTTP, []string{"--tlsv1.3"}, "hello over HTTP/1.1"},
		{"with a certificate that nobody asked for", portHTTP, certificate, "hello over HTTP/1.1"},
		{"with TLS 1.1", portHTTP, []string{"--tls-max", "1.1", "--tlsv1.0", "--ciphers", weakest}, ""},
		{"without the CA", portHTTP, []string{"--cacert", "/etc/ssl/certs/ca-certificates.crt"}, ""},
		{"in plaintext", portHTTP, []string{"--proto-default", "http"}, ""},
		{"without a certificate", portHTTPMutual, nil, ""},
		{"with a certificate", portHTTPMutual, certificate, "hello over HTTP/1.1"},
		{"with a certificate and TLS 1.2", portHTTPMutual, append([]string{"--tls-max", "1.2"}, certificate...), ""},
	} {
		for _, addr := range p.Addresses() {
			scheme := "https://"
			if tt.name == "in plaintext" {
				scheme = "http://"
			}
			out, err := l.peer.Command("curl", append([]string{
				"--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--cacert", l.file("ca.pem", nil),
				"--resolve", fmt.Sprintf("shop.example:%d:[%s]", tt.port, addr),
			}, append(tt.args, fmt.Sprintf("%sshop.example:%d/", scheme, tt.port))...)...).CombinedOutput()
			if tt.want != "" && (err != nil || string(out) != tt.want) || tt.want == "" && (err == nil || bytes.Contains(out, []byte("hello"))) {
				t.Errorf("curl %s, to %s: %v, %s", tt.name, addr, err, out)
			}
		}
	}
}

func TestGoFromOutside(t *testing.T) {
	t.Parallel()
	l := newOutsideLab(t, "")
	api := l.issue(time.Hour, "api")
	for _, tt := range []struct {
		name   string
		port   uint16
		config *tls.Config
		change func(*tls.Config)
		curve  tls.CurveID // or not greeted
	}{
		{"between meshes", portMutual, l.client(api), nil, tls.X25519MLKEM768},
		{"between meshes, to a name", portListed, l.client(api), nil, tls.X25519MLKEM768},
		{"between meshes, before the quantum", portMutual, l.client(api), curves(tls.X25519), tls.X25519},
		{"between meshes, NIST's curves", portMutual, l.client(api), curves(tls.CurveP256, tls.CurveP384), 0},
		{"from outside", portOutside, l.client(), nil, tls.X25519MLKEM768},
		{"from outside, NIST's curves", portOutside, l.client(), curves(tls.CurveP384, tls.CurveP256), tls.CurveP256},
		{"from outside, TLS 1.2", portOutside, l.client(), func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, tls.X25519},
		{"from outside, TLS 1.1", portOutside, l.client(), func(c *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}, 0},
		{"from outside, weak ciphers", portOutside, l.client(), func(c *tls.Config) {
			c.MaxVersion = tls.VersionTLS12
			for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
				if !strings.Contains(s.Name, "ECDHE") || strings.Contains(s.Name, "_CBC_") || strings.Contains(s.Name, "_RC4_") {
					c.CipherSuites = append(c.CipherSuites, s.ID)
				}
			}
		}, 0},
		{"from outside, another name", portOutside, l.client(), func(c *tls.Config) { c.ServerName = "billing" }, 0},
	} {
		if tt.change != nil {
			tt.change(tt.config)
		}
		tt.config.NextProtos = []string{"h2", "http/1.1"}
		conn, err := openTLS(l.peer, l.at(tt.port), tt.config)
		var got string
		if err == nil {
			got, err = readGreetingIn(conn, patience)
		}
		switch {
		case tt.curve == 0:
			if got != "" {
				t.Errorf("%s: got %q", tt.name, got)
			}
		case got != greeting:
			t.Errorf("%s: got %q, %v", tt.name, got, err)
		default:
			s := conn.ConnectionState()
			if s.CurveID != tt.curve {
				t.Errorf("%s: key exchange %v, want %v", tt.name, s.CurveID, tt.curve)
			}
			// Only the application knows what it speaks: Envoy does not answer for it.
			if s.NegotiatedProtocol != "" {
				t.Errorf("%s: ALPN %q", tt.name, s.NegotiatedProtocol)
			}
		}
		if conn != nil {
			conn.Close()
		}
	}

	// Compression (RFC 3749): a server that knew it would choose it.
	for _, port := range []uint16{portOutside, portMutual} {
		config := l.client()
		if port == portOutside {
			config.MaxVersion = tls.VersionTLS12
		}
		methods, err := l.compression(port, clientHello(t, config))
		if err != nil || methods != 0 {
			t.Errorf("port %d chooses compression %d, %v", port, methods, err)
		}
	}
}

func curves(ids ...tls.CurveID) func(*tls.Config) {
	return func(c *tls.Config) { c.CurvePreferences = ids }
}

// compression offers DEFLATE before none, in a ClientHello, and returns what the ServerHello chooses.
func (l *outsideLab) compression(port uint16, hello []byte) (byte, error) {
	// RFC 5246, 7.4.1.2: record and handshake headers, version, random, session, cipher suites, compression methods. A client
	// of TLS 1.3 may offer none but null (RFC 8446, 4.1.2), and must be refused if it does.
	at := 5 + 4 + 2 + 32
	at += 1 + int(hello[at])
	at += 2 + int(hello[at])<<8 + int(hello[at+1])
	if hello[at] != 1 || hello[at+1] != 0 {
		return 0, errors.New("the ClientHello is not as expected")
	}
	hello = slices.Insert(bytes.Clone(hello), at+1, 1)
	hello[at]++
	lengthen := func(at int) { // of three bytes or two, and never a carry here
		hello[at]++
	}
	lengthen(4)
	lengthen(8)
	conn, err := dialFrom(l.peer, l.at(port))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(hello); err != nil {
		return 0, err
	}
	answer := make([]byte, 5)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return 0, err
	}
	body := make([]byte, int(answer[3])<<8|int(answer[4]))
	if _, err := io.ReadFull(conn, body); err != nil {
		return 0, err
	}
	switch answer[0] {
	case 21: // an alert: refused
		return 0, nil
	case 22:
		at := 4 + 2 + 32
		at += 1 + int(body[at])
		return body[at+2], nil
	default:
		return 0, fmt.Errorf("a record of type %d", answer[0])
	}
}

// pinned is a session cache that keeps the first session.
type pinned struct{ session *tls.ClientSessionState }

func (p *pinned) Get(string) (*tls.ClientSessionState, bool) { return p.session, p.session != nil }

func (p *pinned) Put(_ string, s *tls.ClientSessionState) {
	if p.session == nil {
		p.session = s
	}
}

// A certificate of the mesh opens sessions too, and they carry an identity: they are good on the port that made them.
func TestSessionsWithCertificates(t *testing.T) {
	t.Parallel()
	l := newOutsideLab(t, "")
	api, other := l.issue(time.Hour, "api", "10.0.0.7"), l.issue(time.Hour, "other")
	for _, tt := range []struct {
		name     string
		shows    tls.Certificate
		from, to uint16
		got      string
		resumed  bool
	}{
		{"the same port", api, portMutual, portMutual, greeting, true},
		{"the same port, with a name", api, portListed, portListed, greeting, true},
		{"the same port, with an address", api, portAddressed, portAddressed, greeting, false}, // makes no tickets
		{"from a port for all to one for some", other, portMutual, portListed, "", false},
		{"from a port for all to one for some, who is one of them", api, portMutual, portListed, greeting, false},
		{"from a port for some to another such", api, portListed, portListed2, greeting, false},
		{"from a port for some to one for all", api, portListed, portMutual, greeting, false},
	} {
		config := l.client(tt.shows)
		config.ClientSessionCache = &pinned{}
		if got, err := speakFirst(l.peer, l.at(tt.from), config, greeting); got != greeting {
			t.Errorf("%s: the first connection gets %q, %v", tt.name, got, err)
			continue
		}
		config.Certificates = nil // whoever stole the session has no key
		if tt.got != "" && !tt.resumed {
			config.Certificates = []tls.Certificate{tt.shows}
		}
		conn, err := openTLS(l.peer, l.at(tt.to), config)
		if err != nil {
			if tt.got != "" {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		io.WriteString(conn, greeting) // what the second line waits for
		got, err := readGreetingIn(conn, patience)
		if resumed := conn.ConnectionState().DidResume; got != tt.got || resumed != tt.resumed {
			t.Errorf("%s: got %q (%v), resumed %v; want %q, %v", tt.name, got, err, resumed, tt.got, tt.resumed)
		}
		conn.Close()
	}
}

// hurried is the mesh proxy with one constant changed, so that a test sees what happens every five minutes.
var hurried = sync.OnceValues(func() (string, error) {
	const file, constant = "meshproxy.go", "ticketInterval = 300 * time.Second"
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	if bytes.Count(text, []byte(constant)) != 1 {
		return "", fmt.Errorf("%s does not say %q", file, constant)
	}
	dir, err := os.MkdirTemp("/run", "hurried")
	if err != nil {
		return "", err
	}
	changed, overlay, program := dir+"/meshproxy.go", dir+"/overlay.json", dir+"/meshproxy"
	text = bytes.Replace(text, []byte(constant), fmt.Appendf(nil, "ticketInterval = %d", hurriedInterval), 1)
	if err := os.WriteFile(changed, text, 0o600); err != nil {
		return "", err
	}
	original, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-overlay", overlay, "-o", program, "portcullis.dev/portcullis/cmd/meshproxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, os.Chmod(dir, 0o755)
})

const hurriedInterval = 3 * time.Second

func TestTicketsEndWithTheirKeys(t *testing.T) {
	t.Parallel()
	program, err := hurried()
	if err != nil {
		t.Fatal(err)
	}
	l := newOutsideLab(t, program)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := withVersion(l.client(), version)
		config.ClientSessionCache = &pinned{}
		resumed := func() bool {
			t.Helper()
			conn, err := openTLS(l.peer, l.at(portOutside), config)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got, err := readGreetingIn(conn, patience); got != greeting {
				t.Fatalf("got %q, %v", got, err)
			}
			return conn.ConnectionState().DidResume
		}
		if resumed() {
			t.Fatal("the first connection resumes")
		}
		made := time.Now()
		if !resumed() {
			t.Fatal("the second does not")
		}
		p := l.p
		p.await("its key to be gone", func() error {
			if resumed() {
				return errors.New("the ticket is good")
			}
			return nil
		})
		// Its key opens it for one more interval at least, and for two at most.
		if age := time.Since(made); age < hurriedInterval*9/10 || age > 3*hurriedInterval {
			t.Errorf("TLS %#x: a ticket was good for %v, want %v to %v", version, age, hurriedInterval, 2*hurriedInterval)
		}
		config.ClientSessionCache = &pinned{}
		resumed()
		if !resumed() {
			t.Errorf("TLS %#x: new tickets are not good", version)
		}
	}
}

// sslyze is a program that knows what Mozilla recommends to servers that anyone may call.
func TestSslyze(t *testing.T) {
	t.Parallel()
	python := os.Getenv("PORTCULLIS_SSLYZE")
	if python == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		python = filepath.Join(cache, "portcullis", "sslyze-6.3.1")
	}
	python = filepath.Join(python, "bin", "python")
	if _, err := os.Stat(python); err != nil {
		t.Skipf("SKIPPED: sslyze 6.3.1 is not here, so nothing compares the ports with Mozilla's recommendations: %v "+
			"(tools/sslyze.sh DIR fetches it; PORTCULLIS_SSLYZE names DIR)", err)
	}
	l := newOutsideLab(t, "")
	// It compares the name that it connects to with the certificate.
	l.write(l.p.contrast, l.issue(89*24*time.Hour, "web", l.p.IPv4.String()))
	l.p.await("that certificate", func() error {
		conn, err := openTLS(l.peer, l.at(portOutside), l.client())
		if err != nil {
			return err
		}
		defer conn.Close()
		if len(conn.ConnectionState().PeerCertificates[0].IPAddresses) == 0 {
			return errors.New("it is the first")
		}
		return nil
	})
	// The part of it that tries SSL 2 cannot load certificates with elliptic curves.
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "scanner"}, DNSNames: []string{"api"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, l.ca.Intermediate, &key.PublicKey, l.ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := l.file("scanner.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	keyFile := l.file("scanner.key", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	for _, tt := range []struct {
		name string
		port uint16
		args []string
	}{
		{"a #false port", portOutside, nil},
		{"an mTLS port", portMutual, []string{"--cert", certificate, "--key", keyFile}},
	} {
		out, err := l.peer.Command(python, append([]string{
			"-m", "sslyze", "--mozilla_config=intermediate", "--resum", "--early_data", "--certinfo_ca_file", l.file("ca.pem", nil),
		}, append(tt.args, l.at(tt.port).String())...)...).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte(": OK - Compliant.")) {
			t.Errorf("%s: %v\n%s", tt.name, err, out)
		}
		if len(tt.args) == 0 && !bytes.Contains(out, []byte("Session Renegotiation")) {
			t.Errorf("%s: it did not look:\n%s", tt.name, out)
		}
	}
}
