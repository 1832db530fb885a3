package meshproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"portcullis.dev/portcullis/meshproxy/envoy"
)

// adminClient talks to Envoy's admin socket.
type adminClient struct{ http *http.Client }

func newAdminClient(socket string) *adminClient {
	return &adminClient{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		MaxIdleConns:       2,
		IdleConnTimeout:    time.Minute,
		DisableCompression: true,
	}}}
}

// maxAdminAnswer is more than Envoy ever has to say for a configuration that Kubernetes can hold.
const maxAdminAnswer = 8 << 20

// do sends a request and hands the body of a 200 answer to read.
func (a *adminClient) do(ctx context.Context, method, path string, read func(http.Header, io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask Envoy: %w", err)
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, maxAdminAnswer)
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(body, 200))
		return fmt.Errorf("ask Envoy for %s: %s %s", path, resp.Status, strings.TrimSpace(string(why)))
	}
	return read(resp.Header, body)
}

// live is nil when Envoy's initialization is complete and its workers accept connections. LIVE alone comes a moment early.
func (a *adminClient) live(ctx context.Context) error {
	if err := a.do(ctx, http.MethodGet, "/ready", func(http.Header, io.Reader) error { return nil }); err != nil {
		return err
	}
	started, err := a.sum(ctx, envoy.WorkersStarted)
	if err == nil && started == 0 {
		err = errors.New("envoy's workers have not started")
	}
	return err
}

// activeConnections counts the connections from and to the application and peers, those in their handshakes among them.
func (a *adminClient) activeConnections(ctx context.Context) (int, error) {
	from, err := a.sum(ctx, envoy.DownstreamCxActive)
	if err != nil {
		return 0, err
	}
	to, err := a.sum(ctx, envoy.CxActive)
	return from + to, err
}

// drain makes Envoy close its listeners after its drain time.
func (a *adminClient) drain(ctx context.Context) error {
	return a.do(ctx, http.MethodPost, "/drain_listeners?graceful", func(http.Header, io.Reader) error { return nil })
}

// series are what s makes of all statistics.
func (a *adminClient) series(ctx context.Context, s *envoy.Stats) (out []envoy.Series, err error) {
	err = a.do(ctx, http.MethodGet, "/stats?filter=.", func(_ http.Header, body io.Reader) (err error) {
		out, err = s.Read(body)
		return err
	})
	return out, err
}

// sum adds up the statistics whose names end in suffix, but for those of the admin interface: the question is one of its
// connections.
func (a *adminClient) sum(ctx context.Context, suffix string) (sum int, err error) {
	err = a.do(ctx, http.MethodGet, "/stats?filter="+suffix+"$", func(_ http.Header, body io.Reader) error {
		lines := bufio.NewScanner(body)
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			if strings.HasPrefix(name, "listener.admin.") || strings.HasPrefix(name, "http.admin.") {
				continue
			}
			if n, err := strconv.Atoi(value); err == nil && strings.HasSuffix(name, suffix) {
				sum += n
			}
		}
		return lines.Err()
	})
	return sum, err
}
