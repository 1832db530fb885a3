package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// State is what a Coordinator says that it is doing. Nothing proves it: a host can answer in its place.
type State string

// The states.
const (
	StateNoManifest    State = "no-manifest"
	StateActive        State = "active"
	StateNeedsRecovery State = "needs-recovery"
)

// State asks the Coordinator for its state, and tells what its clock showed; zero where it did not say.
func (c *Client) State(ctx context.Context) (State, time.Time, error) {
	body, header, err := c.get(ctx, PathHealth)
	if err != nil {
		return "", time.Time{}, err
	}
	var answer struct {
		State State `json:"state"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.State == "" {
		return "", time.Time{}, fmt.Errorf("the answer of %s%s is not a Coordinator's", c.base, PathHealth)
	}
	clock, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		clock = time.Time{}
	}
	return answer.State, clock, nil
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
