package collateral

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/google/go-tdx-guest/pcs"
)

// issuerChains are the headers in which Intel sends the certificates of whoever signed the body.
var issuerChains = []string{
	pcs.SgxPckCrlIssuerChainPhrase, pcs.SgxQeIdentityIssuerChainPhrase, pcs.TcbInfoIssuerChainPhrase,
}

// A vendor is the state of a vendor's servers as far as it was seen.
type vendor struct {
	turns chan struct{}

	failures int // in a row
	since    time.Time
	until    time.Time // while it is left alone
	err      error
	probing  bool // one request looks whether it is back
	attempt  int  // rises with every failure; one that began before the last failure says nothing new
	answered time.Time
}

func newVendor() *vendor { return &vendor{turns: make(chan struct{}, perVendor)} }

func (v *vendor) down() bool { return v.failures > 0 }

// blocked says why the vendor is not to be asked now.
func (v *vendor) blocked(now time.Time) error {
	if v.down() && (v.probing || now.Before(v.until)) {
		return fmt.Errorf("no answer since %s: %w", v.since.UTC().Format(time.RFC3339), v.err)
	}
	return nil
}

// blocked says why nobody is to ask for a document now. c.mu is held.
func (c *Cache) blocked(now time.Time, url string, k *kind) error {
	if f, ok := c.failed[url]; ok && now.Before(f.until) {
		return f.err
	}
	return c.vendors[k.vendor].blocked(now)
}

// The results of a fetch, as the metrics name them.
const (
	resultOK        = "ok"
	resultRefused   = "refused"   // the vendor answers, but not with this document
	resultDown      = "down"      // the vendor does not answer, or not now
	resultAbandoned = "abandoned" // nobody waited any more
)

var results = []string{resultOK, resultRefused, resultDown, resultAbandoned}

// A downError is the vendor's fault, whichever document was asked for.
type downError struct {
	err   error
	after time.Duration // when to come back, if it said so
}

func (e *downError) Error() string { return e.err.Error() }
func (e *downError) Unwrap() error { return e.err }

// fetch asks the vendor, when it is its turn and if the vendor is not known to be down.
func (c *Cache) fetch(ctx context.Context, url string, k *kind) (*entry, error) {
	v := c.vendors[k.vendor]
	c.mu.Lock()
	err := c.blocked(c.now(), url, k)
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case v.turns <- struct{}{}:
		defer func() { <-v.turns }()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for one of %d requests to end: %w", perVendor, ctx.Err())
	}

	c.mu.Lock()
	if err := c.blocked(c.now(), url, k); err != nil { // by now
		c.mu.Unlock()
		return nil, err
	}
	attempt, probe := v.attempt, v.down()
	v.probing = v.probing || probe
	c.mu.Unlock()

	e, err := c.request(ctx, url, k)

	c.mu.Lock()
	defer c.mu.Unlock()
	if probe {
		v.probing = false
	}
	result := resultOK
	switch down, isDown := errors.AsType[*downError](err); {
	case err == nil:
		c.isUp(v, k)
	case errors.Is(ctx.Err(), context.Canceled):
		result = resultAbandoned
	case isDown:
		result = resultDown
		if v.attempt == attempt {
			c.isDown(v, k, url, down)
		}
	default:
		result = resultRefused
		c.fail(url, err)
		c.isUp(v, k)
	}
	c.metrics.fetches.WithLabelValues(k.vendor, result).Inc()
	return e, err
}

// request is one exchange. A *downError is the vendor's fault, any other error is about the document.
func (c *Cache) request(ctx context.Context, url string, k *kind) (*entry, error) {
	e := &entry{url: url, kind: k, header: http.Header{}, fetched: c.now()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, &downError{err: err}
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		seconds, _ := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16)
		return nil, &downError{fmt.Errorf("the vendor answers %s", resp.Status), time.Duration(seconds) * time.Second}
	default:
		return nil, fmt.Errorf("the vendor answers %s", resp.Status)
	}
	if e.body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody+1)); err != nil {
		return nil, &downError{err: fmt.Errorf("read the vendor's answer: %w", err)}
	}
	if len(e.body) > maxBody {
		return nil, fmt.Errorf("the vendor's answer is longer than %d bytes", maxBody)
	}
	if e.next, err = k.read(e.body); err != nil {
		return nil, fmt.Errorf("the vendor's answer is something else: %w", err)
	}
	for _, name := range issuerChains {
		if values := resp.Header.Values(name); len(values) > 0 {
			e.header[name] = values
		}
	}
	return e, nil
}

// isUp notes an answer, whatever it says. c.mu is held.
func (c *Cache) isUp(v *vendor, k *kind) {
	now := c.now()
	if v.down() {
		c.log.Info("a vendor of collateral answers again", "vendor", k.vendor, "after", now.Sub(v.since).String())
	}
	v.failures, v.err, v.answered = 0, nil, now
}

// isDown notes that the vendor did not answer. c.mu is held.
func (c *Cache) isDown(v *vendor, k *kind, url string, err *downError) {
	now := c.now()
	if !v.down() {
		v.since = now
		c.log.Warn("a vendor of collateral does not answer: what is held serves, as long as it may",
			"vendor", k.vendor, "url", url, "err", err.err)
	}
	pause := min(backOff<<min(v.failures, 10), maxBackOff)
	v.failures++
	v.attempt++
	v.err = err.err
	v.until = now.Add(max(pause, min(err.after, 5*maxBackOff)))
}

// fail remembers that the vendor refused a document. c.mu is held.
func (c *Cache) fail(url string, err error) {
	now := c.now()
	if len(c.failed) >= maxFailed {
		for url, f := range c.failed {
			if !now.Before(f.until) {
				delete(c.failed, url)
			}
		}
	}
	for url := range c.failed { // any one: they are all as good as an attacker's
		if len(c.failed) < maxFailed {
			break
		}
		delete(c.failed, url)
	}
	c.failed[url] = failure{until: now.Add(failedFor), err: err}
}
