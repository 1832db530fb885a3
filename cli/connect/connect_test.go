package connect_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/cli/connect"
	"portcullis.dev/portcullis/pki"
)

const patience = 30 * time.Second

// authority is a CA of the test's own.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mesh"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{c, key}
}

func (a *authority) issue(t *testing.T, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"web-svc"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, URIs: []*url.URL{{Scheme: "spiffe", Host: "shop.example", Path: "/web"}},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}
}

// serve answers each connection with a function, and returns where.
func serve(t *testing.T, answer func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	g.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.Go(func() {
				defer conn.Close()
				answer(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.Wait()
	})
	return l.Addr().String()
}

// secure is serve behind TLS.
func secure(t *testing.T, config *tls.Config, answer func(*tls.Conn)) string {
	t.Helper()
	return serve(t, func(raw net.Conn) {
		_ = raw.SetDeadline(time.Now().Add(patience))
		conn := tls.Server(raw, config)
		if conn.Handshake() != nil {
			return
		}
		answer(conn)
		_ = conn.Close()
	})
}

// open makes a tunnel to a workload.
func open(t *testing.T, peer connect.Peer) (local string, reported chan error, end context.CancelFunc, cut chan struct{}, ended chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	reported, cut, ended = make(chan error, 1000), make(chan struct{}), make(chan error, 1)
	tunnel := &connect.Tunnel{Peer: peer, Report: func(err error) { reported <- err }}
	go func() { ended <- tunnel.Serve(ctx, l, cut) }()
	return l.Addr().String(), reported, cancel, cut, ended
}

func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

func await(t *testing.T, errs <-chan error) error {
	t.Helper()
	select {
	case err := <-errs:
		return err
	case <-time.After(patience):
		t.Fatal("nothing came")
		return nil
	}
}

func workload(t *testing.T, answer func(*tls.Conn)) connect.Peer {
	t.Helper()
	ca := newAuthority(t)
	return connect.Peer{
		CAs:     []*x509.Certificate{ca.certificate},
		Address: secure(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, nil)}}, answer),
	}
}

// echo answers with all that came, when the client has said that it was all.
func echo(conn *tls.Conn) {
	all, err := io.ReadAll(conn)
	if err == nil {
		_, _ = conn.Write(append([]byte("got: "), all...))
	}
}

func TestManyConnectionsAreCarriedBothWaysToTheEndOfEach(t *testing.T) {
	local, reported, end, _, ended := open(t, workload(t, echo))
	var g errgroup.Group
	for i := range 100 {
		g.Go(func() error {
			raw, err := net.Dial("tcp", local)
			if err != nil {
				return err
			}
			defer raw.Close()
			conn := raw.(*net.TCPConn)
			_ = conn.SetDeadline(time.Now().Add(patience))
			sent := bytes.Repeat(fmt.Appendf(nil, "%d,", i), 20_000)
			if _, err := conn.Write(sent); err != nil {
				return err
			}
			if err := conn.CloseWrite(); err != nil { // the answer begins after this half is closed
				return err
			}
			got, err := io.ReadAll(conn)
			if err != nil {
				return err
			}
			if string(got) != "got: "+string(sent) {
				return fmt.Errorf("connection %d: %d bytes came back of %d", i, len(got), len(sent))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	end()
	if err := await(t, ended); err != nil {
		t.Error(err)
	}
	if len(reported) > 0 {
		t.Errorf("reported: %v", <-reported)
	}
}

func TestAClientThatDoesNotReadHoldsTheWorkloadBack(t *testing.T) {
	wrote := make(chan int, 1)
	local, _, _, _, _ := open(t, workload(t, func(conn *tls.Conn) {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		total, chunk := 0, make([]byte, 64<<10)
		for total < 1<<30 {
			n, err := conn.Write(chunk)
			if total += n; err != nil {
				break
			}
		}
		wrote <- total
	}))
	dial(t, local)
	select {
	case n := <-wrote:
		if n >= 64<<20 { // what sockets hold is some megabytes
			t.Errorf("the workload could write %d bytes that nobody read", n)
		}
	case <-time.After(patience):
		t.Fatal("the workload still writes")
	}
}

func TestAnAnswerThatIsCutOffEndsInAReset(t *testing.T) {
	local, reported, _, _, _ := open(t, workload(t, func(conn *tls.Conn) {
		_, _ = conn.Write([]byte("transfer 100"))
		_ = conn.NetConn().Close() // as an attacker on the way: a proper end of TCP, none of TLS
	}))
	conn := dial(t, local)
	got, err := io.ReadAll(conn)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client read %q and then %v, want a reset", got, err)
	}
	if err := await(t, reported); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("reported: %v", err)
	}
}

func TestAClientThatGoesEndsTheConnectionToTheWorkload(t *testing.T) {
	ended := make(chan error, 1)
	local, reported, _, _, _ := open(t, workload(t, func(conn *tls.Conn) {
		_, err := io.ReadAll(conn)
		ended <- err
	}))
	conn := dial(t, local)
	if _, err := conn.Write([]byte("half a requ")); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetLinger(0)
	conn.Close()
	// It did not say that this was all, and so neither does the tunnel.
	if err := await(t, ended); err == nil {
		t.Error("the workload took half a request for a whole one")
	}
	if len(reported) > 0 {
		t.Errorf("reported: %v", <-reported)
	}
}

func TestTheEndIsGracefulUntilItIsCut(t *testing.T) {
	for _, cutting := range []bool{false, true} {
		t.Run(fmt.Sprintf("cut %v", cutting), func(t *testing.T) {
			local, _, end, cut, ended := open(t, workload(t, echo))
			conn := dial(t, local)
			if _, err := conn.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			end()
			for { // no new connection
				other, err := net.Dial("tcp", local)
				if err != nil {
					break
				}
				other.Close()
			}
			if cutting {
				close(cut)
			} else if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			switch {
			case cutting && err == nil:
				t.Errorf("the client took %q for all", got)
			case !cutting && (err != nil || string(got) != "got: hello"):
				t.Errorf("the open connection ended with %q, %v", got, err)
			}
			if err := await(t, ended); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhoeverIsNotTheWorkloadIsRefusedInWords(t *testing.T) {
	mesh, other := newAuthority(t), newAuthority(t)
	web := mesh.issue(t, nil)
	asking := func(version uint16) *tls.Config {
		return &tls.Config{
			Certificates: []tls.Certificate{web}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool(),
			MinVersion: version, MaxVersion: version,
		}
	}
	with := func(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
	for _, c := range []struct {
		name     string
		server   *tls.Config
		identity string
		noCA     bool
		want     string // empty: accepted
		hint     string
		code     int
	}{
		{"by its address", with(web), "", false, "", "", 0},
		{"by its name", with(web), "web-svc", false, "", "", 0},
		{"by its URI", with(web), "spiffe://shop.example/web", false, "", "", 0},
		{"over TLS 1.2", &tls.Config{Certificates: []tls.Certificate{web}, MaxVersion: tls.VersionTLS12}, "", false, "", "", 0},
		{
			"asks for a certificate and takes none", &tls.Config{Certificates: []tls.Certificate{web}, ClientAuth: tls.RequestClientCert},
			"", false, "", "", 0,
		},
		{"another CA", with(other.issue(t, nil)), "", false, "its certificate is not under the mesh CA", "verify again", 3},
		{"no CA to believe", with(web), "", true, "its certificate is not under the mesh CA", "", 3},
		{"another identity", with(web), "billing-svc", false, "it is of the mesh, but not billing-svc", "it is web-svc, 127.0.0.1, spiffe://shop.example/web", 3},
		{
			"another address", with(mesh.issue(t, func(c *x509.Certificate) { c.IPAddresses = nil })), "", false,
			"it is of the mesh, but not 127.0.0.1", "give --identity web-svc", 3,
		},
		{
			"without any name", with(mesh.issue(t, func(c *x509.Certificate) { c.IPAddresses, c.DNSNames, c.URIs = nil, nil, nil })),
			"web-svc", false, "it is of the mesh, but not web-svc", "it has no name at all", 3,
		},
		{
			"a client's certificate", with(mesh.issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })),
			"", false, "not under the mesh CA: x509: certificate specifies an incompatible key usage", "", 3,
		},
		{
			"expired", with(mesh.issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), "", false,
			"its certificate is not in its time", "clock", 3,
		},
		{"wants a certificate, TLS 1.3", asking(tls.VersionTLS13), "", false, "wants a certificate of the mesh, which only pods have", "#false", 3},
		{"wants a certificate, TLS 1.2", asking(tls.VersionTLS12), "", false, "wants a certificate of the mesh, which only pods have", "#false", 3},
		{
			"TLS 1.1", &tls.Config{Certificates: []tls.Certificate{web}, MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11},
			"", false, "TLS with ", "log says why", 0,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer := connect.Peer{CAs: []*x509.Certificate{mesh.certificate}, Address: secure(t, c.server, echo)}
			if c.noCA {
				peer.CAs = nil
			}
			if c.identity != "" {
				var err error
				if peer.Identity, err = pki.ParseSAN(c.identity); err != nil {
					t.Fatal(err)
				}
			}
			wantError(t, peer.Check(t.Context()), c.want, c.hint, c.code)
			if c.want == "" {
				return
			}
			// And nothing is carried.
			local, reported, _, _, _ := open(t, peer)
			conn, err := net.DialTimeout("tcp", local, patience)
			if err == nil { // it may have been reset at once
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(patience))
				_, _ = conn.Write([]byte("secret"))
				if got, err := io.ReadAll(conn); err == nil || len(got) > 0 {
					t.Errorf("the client got %q, %v", got, err)
				}
			}
			if c.name != "wants a certificate, TLS 1.3" { // which may end while the client writes
				wantError(t, await(t, reported), c.want, c.hint, c.code)
			}
		})
	}
	t.Run("plaintext", func(t *testing.T) {
		address := serve(t, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 1))
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		})
		err := connect.Peer{CAs: []*x509.Certificate{mesh.certificate}, Address: address}.Check(t.Context())
		wantError(t, err, "it does not speak TLS", "nobody is proven to answer there", 3)
	})
	t.Run("nobody", func(t *testing.T) {
		err := connect.Peer{CAs: []*x509.Certificate{mesh.certificate}, Address: "127.0.0.1:1"}.Check(t.Context())
		wantError(t, err, "connect to the workload: dial tcp 127.0.0.1:1: connect: connection refused", "can this machine reach it", 0)
	})
}

func wantError(t *testing.T, err error, want, hint string, code int) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("got %v, want it accepted", err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
		return
	}
	advised, ok := errors.AsType[interface {
		error
		Hint() string
	}](err)
	if !ok || !strings.Contains(advised.Hint(), hint) {
		t.Errorf("the hint of %v is not %q", err, hint)
	}
	got := 0
	if coded, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err); ok {
		got = coded.ExitCode()
	}
	if got != code {
		t.Errorf("exit code %d, want %d: %v", got, code, err)
	}
}
