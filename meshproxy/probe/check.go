package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy/config"
)

const (
	// userAgent begins as kubelet's does, which applications know. Its version is the caller's, and stays outside.
	userAgent = "kube-probe/portcullis"
	// maxBody is how much of an answer kubelet reads before it is content (pkg/probe/http).
	maxBody = 10 << 10
	// maxAnswerHeader bounds what an application can make the proxy hold.
	maxAnswerHeader = 32 << 10
	maxRedirects    = 10
)

// check asks the application at one of the pod's addresses. The error says in the proxy's own words what was wrong, since an
// application's would end up in a log.
func check(ctx context.Context, p config.Probe, addr netip.Addr) error {
	var err error
	at := netip.AddrPortFrom(addr, uint16(p.Port))
	switch p.Check {
	case config.CheckHTTP, config.CheckHTTPS:
		err = checkHTTP(ctx, p, at)
	case config.CheckGRPC:
		err = checkGRPC(ctx, p, at)
	case config.CheckTCP:
		var conn net.Conn
		if conn, err = dial(ctx, "tcp", at.String()); err == nil {
			conn.Close()
		}
	default:
		err = finding("it is no known check")
	}
	return explain(ctx, err)
}

// finding is what a probe found, in words that may be logged.
type finding string

func (f finding) Error() string { return string(f) }

func explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[finding](err); ok {
		return f
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return finding(errno.Error())
	}
	if ctx.Err() != nil {
		return finding("no answer in time")
	}
	return finding("what answers does not speak this protocol")
}

// dial connects to the pod itself. Envoy's mark for what was decrypted keeps the connection from every other machine.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	switch {
	case err != nil || to.Addr().IsLoopback():
		return nil, finding("it leads away from the pod's address")
	case config.Port(to.Port()).Reserved(): // by a redirect
		return nil, finding("it leads to one of the proxy's own ports")
	}
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(socket uintptr) {
			err = unix.SetsockoptInt(int(socket), unix.SOL_SOCKET, unix.SO_MARK, guard.MarkDecrypted)
		}), err)
	}}
	return d.DialContext(ctx, network, address)
}

// One client for HTTP and one for gRPC: plaintext HTTP/2 is a protocol of its own, which nothing negotiates. Neither keeps a
// connection, follows a proxy's environment variable, or minds a certificate, as kubelet does not.
var (
	clientHTTP = &http.Client{
		Transport: &http.Transport{
			DialContext:            dial,
			TLSClientConfig:        &tls.Config{InsecureSkipVerify: true},
			ForceAttemptHTTP2:      true,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxAnswerHeader,
		},
		CheckRedirect: followHere,
	}
	clientGRPC = &http.Client{
		Transport: &http.Transport{
			DialContext:            dial,
			Protocols:              plaintextHTTP2(),
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxAnswerHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
)

func plaintextHTTP2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// followHere follows redirects that stay on the pod's address. Others are an answer like any below 400: kubelet warns of
// them and is content.
func followHere(r *http.Request, via []*http.Request) error {
	switch {
	case r.URL.Hostname() != via[0].URL.Hostname():
		return http.ErrUseLastResponse
	case len(via) >= maxRedirects:
		return finding("too many redirects")
	}
	return nil
}

func checkHTTP(ctx context.Context, p config.Probe, at netip.AddrPort) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Check.String()+"://"+host(at)+p.Target, nil)
	if err != nil {
		return err
	}
	for _, h := range p.Headers {
		r.Header.Add(h.Name, h.Value)
	}
	// A header that is declared empty is left out, but for User-Agent, of which net/http says the same.
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header.Set("User-Agent", userAgent)
	}
	if _, ok := r.Header["Accept"]; !ok {
		r.Header.Set("Accept", "*/*")
	} else if r.Header.Get("Accept") == "" {
		r.Header.Del("Accept")
	}
	if name := r.Header.Get("Host"); name != "" {
		r.Host = name
	}
	answer, err := clientHTTP.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(answer.Body, maxBody)); err != nil {
		return err
	}
	if answer.StatusCode < http.StatusOK || answer.StatusCode >= http.StatusBadRequest {
		return finding("status " + strconv.Itoa(answer.StatusCode))
	}
	return nil
}

// host is an address and port in a URL, where a zone's percent sign is escaped (RFC 6874).
func host(at netip.AddrPort) string { return strings.Replace(at.String(), "%", "%25", 1) }

// checkGRPC calls grpc.health.v1.Health/Check. It is one small message each way, which net/http and the wire format's own
// package carry; google.golang.org/grpc for it would double the program.
func checkGRPC(ctx context.Context, p config.Probe, at netip.AddrPort) error {
	const service = 1 // HealthCheckRequest.service
	var message []byte
	if p.Service != "" {
		message = protowire.AppendString(protowire.AppendTag(nil, service, protowire.BytesType), p.Service)
	}
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	target := url.URL{Scheme: "http", Host: at.String(), Path: "/grpc.health.v1.Health/Check"}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(append(frame, message...)))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("TE", "trailers")
	r.Header.Set("User-Agent", userAgent)
	r.Header.Set("Grpc-Timeout", strconv.Itoa(int(p.Timeout.Seconds()))+"S")
	answer, err := clientGRPC.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxBody))
	if err != nil {
		return err
	}
	// An answer without a message has its trailers in place of its headers.
	status := answer.Trailer.Get("Grpc-Status")
	if status == "" {
		status = answer.Header.Get("Grpc-Status")
	}
	code, err := strconv.ParseUint(status, 10, 16)
	switch {
	case answer.StatusCode != http.StatusOK:
		return finding("status " + strconv.Itoa(answer.StatusCode))
	case err != nil:
		return finding("what answers does not speak gRPC")
	case code == 12:
		return finding("the application does not serve grpc.health.v1.Health")
	case code != 0:
		return finding(fmt.Sprintf("gRPC status %d", code))
	}
	return serving(body)
}

// serving reads a HealthCheckResponse.
func serving(body []byte) error {
	const (
		field = 1 // HealthCheckResponse.status
		yes   = 1 // SERVING
	)
	malformed := finding("what answers is no gRPC health response")
	if len(body) < 5 || body[0] != 0 || uint64(binary.BigEndian.Uint32(body[1:])) != uint64(len(body)-5) {
		return malformed
	}
	status := uint64(0)
	for message := body[5:]; len(message) > 0; {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return malformed
		}
		message = message[n:]
		if number == field && kind == protowire.VarintType {
			status, n = protowire.ConsumeVarint(message)
		} else {
			n = protowire.ConsumeFieldValue(number, kind, message)
		}
		if n < 0 {
			return malformed
		}
		message = message[n:]
	}
	if status != yes {
		return finding(fmt.Sprintf("its health status is %d, not SERVING", status))
	}
	return nil
}
