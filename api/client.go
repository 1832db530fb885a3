package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Bounds on answers. An answer comes over a hostile network: without a bound it could fill the guest's memory.
const (
	maxAnswer       = 1 << 20
	maxAttestAnswer = 64 << 20 // carries every manifest of the history
)

// Client calls one Coordinator. It trusts nothing it is told: callers verify answers (VerifyCoordinator,
// CertificateResponse.ReportData). It neither retries nor follows redirects.
type Client struct {
	base string
	http *http.Client
}

// New makes a Client for host: "host", "host:port", "[::1]:port", "http://host:port" or "https://host". Without a port
// it is Port, except after https://. The scheme is http where none is given.
func New(host string) (*Client, error) { return NewThrough(new(net.Dialer), host) }

// NewThrough is New for connections that dialer opens. It sets the dialer's time-out.
func NewThrough(dialer *net.Dialer, host string) (*Client, error) {
	base, err := baseURL(host)
	if err != nil {
		return nil, fmt.Errorf("coordinator host %q: %w", host, err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	dialer.Timeout = 10 * time.Second
	transport.DialContext = dialer.DialContext
	transport.ResponseHeaderTimeout = time.Minute
	transport.IdleConnTimeout = 10 * time.Second
	return &Client{
		base: base,
		http: &http.Client{
			Transport:     transport,
			Timeout:       2 * time.Minute,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func baseURL(host string) (string, error) {
	s := host
	if !strings.Contains(s, "://") {
		// An IPv6 address without brackets and port is what a person types.
		if ip, err := netip.ParseAddr(s); err == nil && ip.Is6() {
			s = "[" + s + "]"
		}
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", errors.New("want host, host:port, http://host:port or https://host")
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("scheme %q, want http or https", u.Scheme)
	case u.Hostname() == "":
		return "", errors.New("the host is empty")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return "", errors.New("want a host and a port, no user, path, query or fragment")
	}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil && strings.ContainsFunc(u.Hostname(), notInName) {
		return "", errors.New("want host, host:port, http://host:port or https://host")
	}
	if strings.HasSuffix(u.Host, ":") {
		return "", errors.New("the port is empty")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return "", fmt.Errorf("port %s, want 1 to 65535", p)
		}
	} else if u.Scheme == "http" {
		u.Host = net.JoinHostPort(u.Hostname(), strconv.Itoa(Port))
	}
	return u.Scheme + "://" + u.Host, nil
}

func notInName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._", r)
}

// String returns the Coordinator's address as a URL.
func (c *Client) String() string { return c.base }

// Attest asks the Coordinator who it is. nonce is NonceSize fresh random bytes; verify with VerifyCoordinator.
func (c *Client) Attest(ctx context.Context, nonce []byte) (*AttestResponse, error) {
	return post[AttestResponse](ctx, c, PathAttest, AttestRequest{Nonce: nonce}, maxAttestAnswer)
}

// AttestRecovery asks a Coordinator that needs recovery who it is; verify with VerifyRecovery. One that does not need it
// answers CodeNoRecovery.
func (c *Client) AttestRecovery(ctx context.Context, nonce []byte) (*AttestResponse, error) {
	return post[AttestResponse](ctx, c, PathAttest, AttestRequest{Nonce: nonce, Recovery: true}, maxAttestAnswer)
}

// Recover gives a share of the seed.
func (c *Client) Recover(ctx context.Context, req RecoverRequest) (*RecoverResponse, error) {
	return post[RecoverResponse](ctx, c, PathRecover, req, maxAnswer)
}

// Set sets a manifest.
func (c *Client) Set(ctx context.Context, req SetRequest) (*SetResponse, error) {
	return post[SetResponse](ctx, c, PathManifest, req, maxAnswer)
}

// Nonce asks for a nonce for Certificate. It is good for 60 seconds.
func (c *Client) Nonce(ctx context.Context) ([]byte, error) {
	resp, err := post[NonceResponse](ctx, c, PathNonce, NonceRequest{}, maxAnswer)
	if err != nil {
		return nil, err
	}
	return resp.Nonce, nil
}

// Certificate asks for a mesh certificate.
func (c *Client) Certificate(ctx context.Context, req CertificateRequest) (*CertificateResponse, error) {
	return post[CertificateResponse](ctx, c, PathCertificate, req, maxAnswer)
}

// PeerState asks another replica for what it has; verify with PeerResponse.ReportData, then Open.
func (c *Client) PeerState(ctx context.Context, req PeerRequest) (*PeerResponse, error) {
	return post[PeerResponse](ctx, c, PathPeerState, req, maxAnswer)
}

// Successor asks for the cross-certificate of what came after the mesh CA with that SHA-256; nil is nothing yet.
func (c *Client) Successor(ctx context.Context, meshCA [32]byte) ([]byte, error) {
	resp, err := post[SuccessorResponse](ctx, c, PathSuccessor, SuccessorRequest{MeshCA: meshCA[:]}, maxAnswer)
	if err != nil {
		return nil, err
	}
	return resp.Successor, nil
}

// Error is a Coordinator's refusal, or any other answer that is not 200.
type Error struct {
	Problem
	// Endpoint is the URL that answered.
	Endpoint string
	// RetryAfter is how long to wait as the Coordinator asked; zero when it did not.
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s answered %d", e.Endpoint, e.Status)
	if e.Code != "" {
		fmt.Fprintf(&b, " %s", e.Code)
	}
	if e.Detail != "" {
		fmt.Fprintf(&b, ": %s", e.Detail)
	}
	for _, f := range e.Faults {
		fmt.Fprintf(&b, "; %s", f)
	}
	return b.String()
}

// Temporary says whether the same request may succeed later.
func (e *Error) Temporary() bool {
	switch e.Code {
	case CodeBusy, CodeNoManifest, CodeNeedsRecovery, CodeNeedsPeer, CodeSplitHistory, CodeUnavailable, CodeInternal, CodeBadNonce:
		return true
	case "": // a proxy on the way
		return e.Status == http.StatusTooManyRequests || e.Status >= 500
	default:
		return false
	}
}

// ExitCode is 2 for malformed input, 3 where the Coordinator checked and said no, 1 otherwise.
func (e *Error) ExitCode() int {
	switch e.Code {
	case CodeBadRequest, CodeBadManifest, CodeTooLarge:
		return 2
	case CodeBadSignature, CodeEvidenceRejected, CodeConflict, CodeGenerationChanged, CodeSharesDiscarded, CodeSplitHistory:
		return 3
	default:
		return 1
	}
}

// Hint says what to do next, where that is known.
func (e *Error) Hint() string {
	switch e.Code {
	case CodeBadManifest:
		return "docs/manifest.md lists every field"
	case CodeBadSignature:
		return "the current manifest's WorkloadOwnerKeys must sign the new transition hash: portcullis sign"
	case CodeEvidenceRejected:
		return "the Coordinator's log names the field, what it wanted and what it got"
	case CodeConflict:
		return "another manifest was set meanwhile: verify again, then set"
	case CodeGenerationChanged:
		return "the manifest moved on: roll this pod out again"
	case CodeNoManifest:
		return "set a manifest first: portcullis set"
	case CodeNeedsRecovery:
		return "the Coordinator was restarted and its seed is not in its memory: its seed-share owners run portcullis recover"
	case CodeNeedsPeer:
		return "another replica has what this one waits for: try again; where none is left, seed-share owners run portcullis recover"
	case CodeSplitHistory:
		return "the Coordinator's store was rolled back, or holds another history: its log and /readyz say how"
	case CodeNoRecovery:
		return "whether it is the right one, portcullis verify says"
	case CodeShareRepeated:
		return "it waits for other owners' shares"
	case CodeSharesDiscarded:
		return "one of the shares is not of this Coordinator's seed; its log names the owners. Each must give a share again"
	default:
		return "see the Coordinator's log"
	}
}

func post[T any](ctx context.Context, c *Client, path string, request any, limit int64) (*T, error) {
	endpoint := c.base + path
	body, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("encode the request to %s: %w", endpoint, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, application/problem+json")
	resp, err := c.http.Do(req)
	if err != nil {
		// *url.Error already says method and URL.
		return nil, fmt.Errorf("coordinator unreachable: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", endpoint, err)
	}
	if int64(len(answer)) > limit {
		return nil, fmt.Errorf("the answer of %s is larger than %d bytes", endpoint, limit)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, problemOf(endpoint, resp, answer)
	}
	out := new(T)
	if err := json.Unmarshal(answer, out); err != nil {
		return nil, fmt.Errorf("decode the answer of %s (is a Coordinator listening there?): %w", endpoint, err)
	}
	return out, nil
}

func problemOf(endpoint string, resp *http.Response, body []byte) *Error {
	e := &Error{Endpoint: endpoint}
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && t == ProblemType {
		if json.Unmarshal(body, &e.Problem) != nil {
			e.Problem = Problem{}
		}
	}
	if e.Code == "" {
		e.Problem = Problem{Title: http.StatusText(resp.StatusCode), Detail: "not a Coordinator's answer"}
	}
	e.Status = resp.StatusCode
	if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); err == nil {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}
