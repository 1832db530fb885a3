package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// The states that Health names. Nothing proves one: a host can answer in the Coordinator's place.
const (
	StateNoManifest    = "no-manifest"
	StateActive        = "active"
	StateNeedsRecovery = "needs-recovery"
	StateNeedsPeer     = "needs-peer"    // another replica went on without this one
	StateSplitHistory  = "split-history" // it serves, and its store contradicts it
)

// Health asks the Coordinator for its state, and tells what its clock showed; zero where it did not say.
func (c *Client) Health(ctx context.Context) (health Health, clock time.Time, err error) {
	body, header, err := c.get(ctx, PathHealth)
	if err != nil {
		return Health{}, time.Time{}, err
	}
	if err := json.Unmarshal(body, &health); err != nil || health.State == "" {
		return Health{}, time.Time{}, fmt.Errorf("the answer of %s%s is not a Coordinator's", c.base, PathHealth)
	}
	if clock, err = http.ParseTime(header.Get("Date")); err != nil {
		clock = time.Time{}
	}
	return health, clock, nil
}

// Metrics asks for the Coordinator's metrics, in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	body, _, err := c.get(ctx, PathMetrics)
	return body, err
}

func (c *Client) get(ctx context.Context, path string) ([]byte, http.Header, error) {
	endpoint := c.base + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("coordinator unreachable: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("read the answer of %s: %w", endpoint, err)
	case len(body) > maxAnswer:
		return nil, nil, fmt.Errorf("the answer of %s is larger than %d bytes", endpoint, maxAnswer)
	case resp.StatusCode != http.StatusOK:
		return nil, nil, problemOf(endpoint, resp, body)
	}
	return body, resp.Header, nil
}
