// Package collateral keeps what the vendors publish and evidence is judged with: AMD's certificates and revocation lists, and
// Intel's TCB info, QE identity and revocation lists.
//
// Without a cache, the vendor's servers decide whether pods start, and every peer's evidence makes the Coordinator call out. A
// Cache fetches a document once however many ask for it, keeps it in memory and, where a folder is given, on disk, and goes
// on with what it has while the vendor is down. Documents are signed and say until when they may be used, which the validators
// judge each time: what comes from here is as old as it is, and never more than an opinion about who signed it.
//
// The threats are evidence that makes the Coordinator fetch what an attacker likes, or as often as he likes; a vendor that is
// slow or gone, behind which everything queues up; and a folder on a disk that the host owns. So only what the vendors
// publish is fetched, one request at a time for each document and few for each vendor; what failed is not tried again at once;
// sizes are bounded everywhere; and a file counts only when it is whole.
package collateral

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"portcullis.dev/portcullis/attestation"
)

// The bounds. Documents are 1 to 50 KiB; the largest CRL seen is below 200 KiB.
const (
	maxBody    = 2 << 20
	maxHeader  = 64 << 10
	maxEntries = 4096 // in memory
	maxBytes   = 64 << 20
	maxFailed  = 1024
	// perVendor is how many requests a vendor gets at the same time. Others wait for their turn.
	perVendor = 8
	// patience is how long one fetch may take, its wait for a turn included.
	patience = 10 * time.Second
	// failedFor is how long a document that the vendor refused is not asked for again.
	failedFor = time.Minute
	// A vendor that does not answer is left alone for backOff, and twice as long each time, up to maxBackOff.
	backOff    = time.Second
	maxBackOff = time.Minute
)

// Config is what a Cache needs. The zero value is a cache in memory.
type Config struct {
	// Dir is a folder that outlives the process, for this alone; it is made where there is none. None if empty.
	Dir string
	// Log is told when a vendor stops answering and when it is back. Nobody if nil.
	Log *slog.Logger
	// Dialer opens the connections of the default Transport, and gets its time-out from it. Nil means a plain one.
	Dialer *net.Dialer
	// Transport carries the requests. Nil means one with short time-outs and the machine's root certificates.
	Transport http.RoundTripper
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Cache is an attestation.Getter that remembers. It is a prometheus.Collector, too.
type Cache struct {
	log    *slog.Logger
	now    func() time.Time
	client *http.Client
	disk   *disk // nil without a folder

	life    context.Context // ends with Close
	stop    context.CancelFunc
	fetches sync.WaitGroup
	metrics *metrics

	mu      sync.Mutex
	closed  bool
	uses    uint64 // a clock for entry.used
	bytes   int
	entries map[string]*entry
	flights map[string]*flight
	failed  map[string]failure
	vendors map[string]*vendor
}

// An entry is a document. It is not written to once it is in the cache, but for used.
type entry struct {
	url     string
	kind    *kind
	header  http.Header
	body    []byte
	fetched time.Time
	next    time.Time // the document's NextUpdate, or zero
	used    uint64
}

// A failure is a document that the vendor refused.
type failure struct {
	until time.Time
	err   error
}

// A flight is a fetch in progress.
type flight struct {
	cancel context.CancelFunc
	// waiters are those for whom it flies. When the last one has gone it stops, unless it renews what is there already.
	waiters int
	renews  bool
	done    chan struct{}
	// The outcome, once done is closed. With an err, entry may still be an old one from the disk.
	entry *entry
	err   error
}

// New makes a cache. Close ends it.
func New(cfg Config) (*Cache, error) {
	c := &Cache{
		log: cfg.Log, now: cfg.Now,
		entries: map[string]*entry{}, flights: map[string]*flight{}, failed: map[string]failure{},
		vendors: map[string]*vendor{amd: newVendor(), intel: newVendor()},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	if cfg.Dir != "" {
		var err error
		if c.disk, err = openDisk(cfg.Dir); err != nil {
			return nil, err
		}
	}
	transport := cfg.Transport
	if transport == nil {
		dialer := cmp.Or(cfg.Dialer, new(net.Dialer))
		dialer.Timeout = patience / 2
		transport = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            dialer.DialContext,
			TLSHandshakeTimeout:    patience / 2,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: maxHeader,
			ForceAttemptHTTP2:      true,
		}
	}
	c.client = &http.Client{
		Transport: transport,
		// A redirection would lead past the list of what is fetched.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.life, c.stop = context.WithCancel(context.Background())
	c.metrics = newMetrics(c)
	return c, nil
}

// Close stops every fetch and waits for its end. Get then answers from memory only.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.fetches.Wait()
	c.client.CloseIdleConnections()
	if c.disk != nil {
		return c.disk.Close()
	}
	return nil
}

// Get implements attestation.Getter. Of a document it answers the newest version that it can have: what it holds, if that is
// no older than its kind allows; else what the vendor answers; else, while the vendor does not, what it holds. A vendor
// that is known to be down is not waited for. A fetch that nobody waits for any more is stopped, unless it renews what is held.
//
// Headers are those that carry Intel's issuer chains, and no others.
func (c *Cache) Get(ctx context.Context, url string) (http.Header, []byte, error) {
	k := c.kindOf(url)
	if k == nil {
		return nil, nil, &attestation.Unavailable{
			What: "what " + fmt.Sprintf("%.120q", url) + " names",
			Err:  errors.New("it is no address that AMD or Intel publish collateral at"),
		}
	}
	e, err := c.get(ctx, url, k)
	if err != nil {
		return nil, nil, &attestation.Unavailable{What: k.name(url), Err: err}
	}
	// Copies: libraries keep slices of what they parse.
	return e.header.Clone(), append([]byte(nil), e.body...), nil
}

// kindOf classifies a URL, at once where its document is held.
func (c *Cache) kindOf(url string) *kind {
	c.mu.Lock()
	e := c.entries[url]
	c.mu.Unlock()
	if e != nil {
		return e.kind
	}
	return classify(url)
}

func (c *Cache) get(ctx context.Context, url string, k *kind) (*entry, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	now := c.now()
	held := c.lookUp(url)
	if held != nil && held.condition(now) == fresh {
		c.metrics.hits.Inc()
		c.mu.Unlock()
		return held, nil
	}
	if held != nil && c.blocked(now, url, k) != nil {
		c.metrics.stale.Inc()
		c.mu.Unlock()
		return held, nil
	}
	f, err := c.join(url, k, held != nil)
	switch {
	case err != nil && held == nil:
		c.mu.Unlock()
		return nil, err
	// Renewed beside, and nobody has to wait: for a while, or for as long as it is not known that the vendor is back.
	case err != nil || held != nil && (held.condition(now) == aging || c.vendors[k.vendor].down()):
		c.metrics.stale.Inc()
		c.mu.Unlock()
		return held, nil
	}
	f.waiters++
	c.mu.Unlock()

	select {
	case <-f.done:
	case <-ctx.Done():
		c.leave(url, f)
		return nil, context.Cause(ctx)
	}
	if f.err == nil {
		return f.entry, nil
	}
	if held == nil {
		held = f.entry
	}
	if held == nil {
		return nil, f.err
	}
	c.metrics.stale.Inc()
	return held, nil
}

// join finds the flight for a document or starts one. c.mu is held.
func (c *Cache) join(url string, k *kind, renews bool) (*flight, error) {
	if f := c.flights[url]; f != nil {
		return f, nil
	}
	if c.closed {
		return nil, errors.New("the cache is closed")
	}
	ctx, cancel := context.WithTimeout(c.life, patience)
	f := &flight{cancel: cancel, renews: renews, done: make(chan struct{})}
	c.flights[url] = f
	c.fetches.Go(func() {
		defer cancel()
		f.entry, f.err = c.fly(ctx, url, k)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.flights[url] == f {
			delete(c.flights, url)
		}
		// What the disk has instead of an answer is no better than what memory has.
		if f.entry != nil && (f.err == nil || c.entries[url] == nil) {
			c.remember(f.entry)
		}
		close(f.done)
	})
	return f, nil
}

// leave is a waiter's end.
func (c *Cache) leave(url string, f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.waiters--; f.waiters > 0 || f.renews {
		return
	}
	f.cancel()
	if c.flights[url] == f {
		delete(c.flights, url) // whoever comes now is not to share its fate
	}
}

// fly gets a document from the disk if it is fresh there, or else from its vendor. With an error, the entry is what the disk
// had all the same, if anything.
func (c *Cache) fly(ctx context.Context, url string, k *kind) (*entry, error) {
	var old *entry
	if c.disk != nil {
		e, err := c.disk.load(url)
		if err == nil && e != nil {
			e.kind = k
			e.next, err = k.read(e.body)
		}
		switch {
		case err != nil:
			c.log.Warn("a file of the collateral's folder is refused", "file", c.disk.path(url), "url", url, "err", err)
		case e != nil && e.condition(c.now()) == fresh:
			return e, nil
		default:
			old = e
		}
	}
	e, err := c.fetch(ctx, url, k)
	if err != nil {
		return old, err
	}
	if err := c.store(e); err != nil {
		c.log.Warn("collateral is not kept on disk", "url", url, "err", err)
	}
	return e, nil
}

func (c *Cache) store(e *entry) error {
	if c.disk == nil {
		return nil
	}
	return c.disk.store(e, c.now())
}

// The conditions of a document.
type condition int

const (
	old   condition = iota // a newer one is worth waiting for
	aging                  // a newer one is worth having
	fresh
)

// condition is how e looks now: by its age and, where that has passed, by its NextUpdate, unless that was so when it was
// fetched a moment ago. Before it was fetched, by a clock that was set back, it is old.
func (e *entry) condition(now time.Time) condition {
	age := now.Sub(e.fetched)
	switch {
	case age < 0 || age >= 2*e.kind.fresh || !e.next.IsZero() && now.After(e.next) && age >= failedFor:
		return old
	case age >= e.kind.fresh:
		return aging
	default:
		return fresh
	}
}

// lookUp finds what is in memory. c.mu is held.
func (c *Cache) lookUp(url string) *entry {
	e := c.entries[url]
	if e != nil {
		c.uses++
		e.used = c.uses
	}
	return e
}

// remember keeps e in memory, at the cost of what was not used for longest. c.mu is held.
func (c *Cache) remember(e *entry) {
	if before := c.entries[e.url]; before != nil {
		c.forget(before)
	}
	for len(c.entries) >= maxEntries || c.bytes+e.size() > maxBytes {
		var last *entry
		for _, other := range c.entries {
			if last == nil || other.used < last.used {
				last = other
			}
		}
		c.forget(last)
	}
	c.uses++
	e.used = c.uses
	c.entries[e.url] = e
	c.bytes += e.size()
}

func (c *Cache) forget(e *entry) {
	delete(c.entries, e.url)
	c.bytes -= e.size()
}

// size is what e takes, more or less, in bytes.
func (e *entry) size() int {
	n := len(e.url) + len(e.body)
	for name, values := range e.header {
		n += len(name)
		for _, v := range values {
			n += len(v)
		}
	}
	return n
}
