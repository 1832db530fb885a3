// Package evidence brings the TEE's evidence to the pod that runs inside it.
//
// Containers reach neither the kernel's attestation interface nor the TEE device, and should not: both are root's. So the
// image listens on an abstract Unix socket. Such sockets are scoped to a network namespace, here the one that the pod's
// containers share, and need no path that a mount could hide. The protocol is one request per connection:
//
//	client  {"reportData": "<base64 of 64 bytes>"}\n
//	server  {"evidence": {"platform": "...", "report": "...", "certificates": "..."}}\n
//	        {"error": "..."}\n
//
// Anyone in the pod may ask, for any report data: the pod is the unit of identity. What the server guards is the
// hardware, which answers one request at a time, so requests are few at once, small, and have deadlines. What the client
// guards is its patience. Nothing here needs to be believed: whoever judges the evidence checks its signature and finds
// its own report data in it.
package evidence

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/attestation"
)

// Socket is the abstract Unix socket that evidence is served on.
const Socket = "@podvm-attest"

const (
	maxRequest = 4 << 10
	maxAnswer  = 1 << 20
	// patience bounds one connection, on both ends. A report takes milliseconds; a queue of them, seconds.
	patience = 30 * time.Second
	// atOnce bounds the connections that are served; others wait in the listener's backlog.
	atOnce = 16
)

type request struct {
	ReportData []byte `json:"reportData"`
}

type answer struct {
	Evidence *attestation.Evidence `json:"evidence,omitempty"`
	Error    string                `json:"error,omitempty"`
}

// Listen binds the socket in the network namespace of the calling process. Its name, "@" first, is Socket unless a test
// needs another.
func Listen(socket string) (net.Listener, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	return l, nil
}

// Serve answers requests with the issuer's evidence until ctx is done or the listener fails. It closes the listener.
func Serve(ctx context.Context, l net.Listener, issuer attestation.Issuer) error {
	return ServeUntilIdle(ctx, l, issuer, 0)
}

// ServeUntilIdle is Serve that ends as well when nobody has asked for so long; zero is never. It is for a listener that somebody else
// keeps open, and takes over again: who asks meanwhile waits for that.
func ServeUntilIdle(ctx context.Context, l net.Listener, issuer attestation.Issuer, idle time.Duration) error {
	outer := ctx // of those who were heard before it ended
	ctx, end := context.WithCancel(ctx)
	defer end()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var connections errgroup.Group
	connections.SetLimit(atOnce)
	defer connections.Wait() //nolint:errcheck // the functions return nil
	left := newIdle(idle, end)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		left.begin()
		connections.Go(func() error {
			defer left.end()
			serve(outer, conn, issuer)
			return nil
		})
	}
}

// idleness calls a function when there has been nothing to do for a while.
type idleness struct {
	after time.Duration
	timer *time.Timer

	mu     sync.Mutex
	active int
}

func newIdle(after time.Duration, f func()) *idleness {
	if after == 0 {
		return &idleness{}
	}
	return &idleness{after: after, timer: time.AfterFunc(after, f)}
}

func (i *idleness) begin() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.active++; i.timer != nil {
		i.timer.Stop()
	}
}

func (i *idleness) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.active--; i.active == 0 && i.timer != nil {
		i.timer.Reset(i.after)
	}
}

func serve(ctx context.Context, conn net.Conn, issuer attestation.Issuer) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	line, err := readLine(conn, maxRequest)
	if errors.Is(err, io.EOF) {
		return // somebody looked whether we are there
	}
	var a answer
	if err == nil {
		a.Evidence, err = issue(ctx, line, issuer)
	}
	if err != nil {
		a = answer{Error: err.Error()}
	}
	_ = json.NewEncoder(conn).Encode(a) // the client sees a short answer
}

func issue(ctx context.Context, line []byte, issuer attestation.Issuer) (*attestation.Evidence, error) {
	var r request
	if err := decode(line, &r); err != nil {
		return nil, fmt.Errorf("malformed request: %w", err)
	}
	data, err := attestation.ParseReportData(r.ReportData)
	if err != nil {
		return nil, fmt.Errorf("malformed request: %w", err)
	}
	e, err := issuer.Issue(ctx, data)
	if err != nil {
		return nil, err
	}
	return &e, nil
}

// errNoSocket is in the error when nobody listens.
var errNoSocket = errors.New("nobody listens")

func newSocketIssuer(socket string) (attestation.Issuer, error) {
	conn, err := net.DialTimeout("unix", socket, patience)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoSocket, err)
	}
	conn.Close()
	return socketIssuer(socket), nil
}

// socketIssuer is the client; its value is the socket's name.
type socketIssuer string

func (s socketIssuer) Issue(ctx context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	if !data.Valid() {
		return attestation.Evidence{}, errors.New("issue evidence: the report data is empty")
	}
	e, err := s.ask(ctx, data.Bytes())
	if err != nil {
		return attestation.Evidence{}, fmt.Errorf("ask %s for evidence: %w", string(s), err)
	}
	return e, nil
}

func (s socketIssuer) ask(ctx context.Context, data [64]byte) (attestation.Evidence, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", string(s))
	if err != nil {
		return attestation.Evidence{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(request{ReportData: data[:]}); err != nil {
		return attestation.Evidence{}, because(ctx, err)
	}
	line, err := readLine(conn, maxAnswer)
	if err != nil {
		return attestation.Evidence{}, because(ctx, err)
	}
	var a answer
	if err := decode(line, &a); err != nil {
		return attestation.Evidence{}, fmt.Errorf("malformed answer: %w", err)
	}
	switch {
	case a.Error != "":
		return attestation.Evidence{}, fmt.Errorf("it answered: %s", a.Error)
	case a.Evidence == nil || a.Evidence.Platform == "" || len(a.Evidence.Report) == 0:
		return attestation.Evidence{}, errors.New("it answered without evidence")
	}
	return *a.Evidence, nil
}

// because prefers the reason why the context ended to the closed connection that this caused.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// readLine reads up to and without a newline. io.EOF means that nothing came at all.
func readLine(r io.Reader, most int64) ([]byte, error) {
	line, err := bufio.NewReader(io.LimitReader(r, most)).ReadBytes('\n')
	switch {
	case err == nil:
		return bytes.TrimSuffix(line, []byte("\n")), nil
	case !errors.Is(err, io.EOF):
		return nil, err
	case len(line) == 0:
		return nil, io.EOF
	case int64(len(line)) == most:
		return nil, fmt.Errorf("a line of more than %d bytes", most)
	default:
		return nil, io.ErrUnexpectedEOF
	}
}

func decode(line []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}
