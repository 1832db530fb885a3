package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"portcullis.dev/portcullis/tests/netlab"
)

// outcome is what a client saw of one connection. The zero value is a failure.
type outcome struct {
	// answer is the body of an HTTP answer of status 200.
	answer string
	// refused is TLS's own word for it; silent says that not one byte came back.
	refused string
	silent  bool
	text    string
}

func (o outcome) String() string { return o.text }

// Nothing waits longer than this for an answer. In the lab an answer takes milliseconds.
const patience = 1200 * time.Millisecond

// tlsAlert is the content type of a TLS record that carries an alert (RFC 8446, section 5.1).
const tlsAlert = 21

// get makes one connection and asks path of it over plain HTTP, or over TLS when config is given. Without a path it only
// waits for what the server says of the handshake: a TLS 1.3 client has finished before the server has judged its
// certificate, and a request that is under way by then can cost it the alert (unread data makes TCP reset).
func get(ctx context.Context, from *netlab.Host, to netip.AddrPort, path string, config *tls.Config) outcome {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", to.String())
	if err != nil {
		return unanswered(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	if config != nil {
		conn = tls.Client(conn, config)
	}
	if path == "" {
		n, err := conn.Read(make([]byte, 1))
		if n > 0 {
			return outcome{text: "a byte"}
		}
		return unanswered(err)
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n", path); err != nil {
		return unanswered(err)
	}
	r := bufio.NewReader(conn)
	if first, err := r.Peek(2); err == nil && config == nil && first[0] == tlsAlert && first[1] == 3 {
		return outcome{refused: "TLS alert", text: "refused: a TLS alert, no HTTP"}
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return unanswered(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return unanswered(err)
	}
	text := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return outcome{text: fmt.Sprintf("%s: %s", resp.Status, text)}
	}
	first, _, _ := strings.Cut(text, "\n")
	return outcome{answer: text, text: first}
}

// unanswered sorts the ways in which a connection comes to nothing. Only TLS alerts and our own verification are refusals,
// and only silence is silence: anything else counts as neither.
func unanswered(err error) outcome {
	var alert tls.AlertError
	var remote *net.OpError
	var unverified *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &unverified):
		return outcome{refused: unverified.Err.Error(), text: "client refuses: " + unverified.Err.Error()}
	case errors.As(err, &remote) && remote.Op == "remote error":
		return outcome{refused: remote.Err.Error(), text: "refused: " + remote.Err.Error()}
	case errors.As(err, &alert):
		return outcome{refused: alert.Error(), text: "refused: " + alert.Error()}
	case errors.As(err, &record):
		return outcome{text: "bytes that are not TLS"}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return outcome{silent: true, text: "no answer"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return outcome{text: "reset: no listener"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return outcome{silent: true, text: "closed without a byte"}
	default:
		return outcome{text: err.Error()}
	}
}

// client is the TLS configuration of an outside client that trusts roots and wants name; cert may be nil.
func client(roots *x509.CertPool, name string, cert *tls.Certificate) *tls.Config {
	c := &tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS13}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	return c
}

// family is what the table calls an address's kind.
func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
