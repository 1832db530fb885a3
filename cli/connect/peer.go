// Package connect opens a plaintext port of this machine's loopback to a workload behind TLS.
//
// A data owner has no certificate of the mesh, and a client, such as a database's, that cannot be told to trust the mesh CA
// and nothing else. In between stands this: each connection that the client makes is carried over TLS to the workload, after
// the workload has shown a certificate under the mesh CA with the wanted name. What the client reads was sent by a pod that was
// attested against the manifest, or the connection breaks: an answer that was cut off on the way ends in a reset, never in
// what looks like its end.
package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/pki"
)

// Peer is a workload, and how it is known.
type Peer struct {
	// Address is HOST:PORT.
	Address string
	// CAs are those that its certificate must be under. Without any, none is.
	CAs []*x509.Certificate
	// Identity is a name that its certificate must carry. The zero value stands for Address' host, which is no name of the
	// mesh where it leads through a forwarded port.
	Identity pki.SAN
}

const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 15 * time.Second // Envoy gives a client 10
	// verdictTimeout is how long a server has that asked for a certificate to say that it needs one. In TLS 1.3 it does so after
	// the client's side of the handshake is over.
	verdictTimeout = 2 * time.Second
)

// RefusedError says that what answers is not the workload.
type RefusedError struct {
	Address string
	Err     error
	hint    string
}

func (e *RefusedError) Error() string { return fmt.Sprintf("%s is refused: %v", e.Address, e.Err) }
func (e *RefusedError) Unwrap() error { return e.Err }
func (e *RefusedError) Hint() string  { return e.hint }

// ExitCode is that of a check whose answer is no.
func (*RefusedError) ExitCode() int { return 3 }

// UnreachableError says that nobody was there to be checked.
type UnreachableError struct {
	Err  error
	hint string
}

func (e *UnreachableError) Error() string { return e.Err.Error() }
func (e *UnreachableError) Unwrap() error { return e.Err }
func (e *UnreachableError) Hint() string  { return e.hint }

// Check makes one connection and ends it. It finds out, too, whether the server wants a certificate that nobody here has.
func (p Peer) Check(ctx context.Context) error {
	conn, err := p.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if !conn.asked {
		return nil
	}
	_ = conn.SetReadDeadline(time.Now().Add(verdictTimeout))
	if _, err := conn.Read(make([]byte, 1)); isAlert(err) {
		return p.wantsCertificate(err)
	}
	return nil // it serves those without a certificate, too
}

// dial connects and checks the server's certificate.
func (p Peer) dial(ctx context.Context) (*secured, error) {
	host, _, err := net.SplitHostPort(p.Address)
	if err != nil {
		return nil, err
	}
	tcp, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", p.Address)
	if err != nil {
		return nil, &UnreachableError{
			fmt.Errorf("connect to the workload: %w", err),
			"is it running, and can this machine reach it? In a cluster: kubectl port-forward, then 127.0.0.1:PORT with --identity",
		}
	}
	var asked atomic.Bool
	below := &watched{Conn: tcp}
	conn := tls.Client(below, &tls.Config{
		ServerName:         host,
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection does more: identities are URIs, too
		VerifyConnection:   func(state tls.ConnectionState) error { return p.verify(host, state.PeerCertificates) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked.Store(true)
			return new(tls.Certificate), nil // none
		},
	})
	within, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(within); err != nil {
		_ = tcp.Close()
		return nil, p.explain(err, asked.Load())
	}
	return &secured{conn, below, asked.Load()}, nil
}

// secured is a connection to a server that was checked.
type secured struct {
	*tls.Conn
	below *watched
	asked bool // the server asked for a certificate of ours
}

// truncated says, after Read returned io.EOF, that the server did not say that this was its end. Package crypto/tls takes an
// end of TCP between two records for one, as browsers do; anybody on the way can make it.
func (s *secured) truncated() bool { return s.below.ended.Load() }

// abort ends the connection so that the server sees that something went wrong.
func (s *secured) abort() { reset(s.below.Conn) }

// watched remembers whether TCP ended. Below TLS, that is read only where close_notify did not come before.
type watched struct {
	net.Conn
	ended atomic.Bool
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		w.ended.Store(true)
	}
	return n, err
}

// verify says whether a chain is the workload's.
func (p Peer) verify(host string, chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return &RefusedError{p.Address, errors.New("it shows no certificate"), ""}
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, ca := range p.CAs {
		roots.AddCert(ca)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	leaf := chain[0]
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		return p.notOfTheMesh(err)
	}
	if p.Identity == (pki.SAN{}) {
		if err := leaf.VerifyHostname(host); err == nil {
			return nil
		}
		return p.otherName(host, leaf)
	}
	if !slices.Contains(names(leaf), p.Identity.String()) {
		return p.otherName(p.Identity.String(), leaf)
	}
	return nil
}

func (p Peer) notOfTheMesh(err error) error {
	if expired, ok := errors.AsType[x509.CertificateInvalidError](err); ok && expired.Reason == x509.Expired {
		return &RefusedError{p.Address, fmt.Errorf("its certificate is not in its time: %w", err), "is this machine's clock right?"}
	}
	return &RefusedError{
		p.Address, fmt.Errorf("its certificate is not under the mesh CA: %w", err),
		"another mesh, or this mesh under another manifest: each has a mesh CA of its own, so verify again",
	}
}

func (p Peer) otherName(want string, leaf *x509.Certificate) error {
	hint := "it has no name at all: see its SANs in the manifest"
	if all := names(leaf); len(all) > 0 {
		hint = "it is " + strings.Join(all, ", ") + ": if that is whom you mean, give --identity " + all[0]
	}
	return &RefusedError{p.Address, fmt.Errorf("it is of the mesh, but not %s", want), hint}
}

// names are all that a certificate may be known by.
func names(c *x509.Certificate) []string {
	all := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	for _, uri := range c.URIs {
		all = append(all, uri.String())
	}
	return all
}

// explain says what a failed handshake means.
func (p Peer) explain(err error, asked bool) error {
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return refused
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return &RefusedError{
			p.Address, fmt.Errorf("it does not speak TLS: %w", err),
			"a port with true in its ingress annotation is plaintext: nothing protects it, and nobody is proven to answer there",
		}
	}
	if asked && isAlert(err) {
		return p.wantsCertificate(err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &UnreachableError{fmt.Errorf("%s accepts connections but does not finish a TLS handshake: %w", p.Address, err), "is the pod's mesh proxy ready?"}
	}
	return &UnreachableError{
		fmt.Errorf("TLS with %s: %w", p.Address, err),
		"the mesh proxy's log says why, where it is the mesh proxy that answers",
	}
}

func (p Peer) wantsCertificate(err error) error {
	return &RefusedError{
		p.Address, fmt.Errorf("it wants a certificate of the mesh, which only pods have: %w", err),
		"data owners reach ports with false in the ingress annotation, such as web#8080#false: others are for pods of the mesh",
	}
}

// isAlert says whether the other side ended TLS with an alert of its own.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}
