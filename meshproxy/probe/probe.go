// Package probe answers kubelet in the application's place.
//
// Kubelet asks in plaintext and has no certificate of the mesh, so it cannot reach a port that is behind TLS. It asks this
// package instead, on a port of its own, which asks the application the declared question from inside the pod and says
// nothing but whether the answer was good.
//
// That port is in plaintext and open to everybody, so it is a hole in the gate by design, and this is all that fits through
// it: the choice of one of the probes that the pod's measured configuration declares, going in, and one bit, coming out. A
// caller chooses no path, query, header, method, body or port of the application, and not how often it is asked; none of
// the application's bytes comes back. What cannot be forwarded cannot be smuggled.
//
// The application is asked at the address that the caller reached, as kubelet would have asked it, so a service that
// listens on localhost alone stays out of reach. The question travels over loopback; its socket carries the mark that keeps
// decrypted bytes in the guest, so that it does not leave even when the address moves away.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"portcullis.dev/portcullis/meshproxy/config"
)

const (
	// maxConnections is more than the probes of a pod need, and costs strangers' connections less than 2 MiB.
	maxConnections = 64
	// maxHeader is what kubelet's request needs several times over; net/http reads 4 KiB more.
	maxHeader = 4 << 10
	// requestTimeout is how long a request may take to arrive. Kubelet's arrives with its connection.
	requestTimeout = 3 * time.Second
	// answerTimeout is how long a caller may take to read its answer, after the probe.
	answerTimeout = 5 * time.Second
	// moment is how long each connection may stay, at least. Kubelet asks at once.
	moment = 100 * time.Millisecond
	// fresh is how long a result is good: what strangers can make the application answer is four questions a second per
	// probe. Kubelet asks once a second at most.
	fresh = 250 * time.Millisecond
)

// The two answers.
const (
	healthy   = "ok\n"
	unhealthy = "the application does not answer this probe as it should\n"
)

// Listen opens the probe port on every address.
func Listen() (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(int(config.ProbePort))))
	if err != nil {
		return nil, fmt.Errorf("open the probe port: %w", err)
	}
	return l, nil
}

// Serve answers for probes, and nothing else, until ctx is cancelled.
func Serve(ctx context.Context, l net.Listener, probes []config.Probe, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	s := &server{ctx: ctx, probes: map[string]config.Probe{}, log: log, flights: map[question]*flight{}, bad: map[question]string{}}
	defer s.running.Wait()
	defer cancel()
	longest := time.Duration(0)
	for _, p := range probes {
		s.probes[p.Path()] = p
		longest = max(longest, p.Timeout)
	}
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: requestTimeout, // a ReadTimeout would cut off who waits for a slower probe
		WriteTimeout:      requestTimeout + longest + answerTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, memberKey{}, c)
		},
		// An "OPTIONS *" is no probe either.
		DisableGeneralOptionsHandler: true,
	}
	server.SetKeepAlivesEnabled(false) // kubelet does not use them
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(&crowd{Listener: l}); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the probe port: %w", err)
	}
	return nil
}

type server struct {
	ctx     context.Context // of the probes, which outlive the callers that began them
	probes  map[string]config.Probe
	log     *slog.Logger
	running sync.WaitGroup

	mu      sync.Mutex
	flights map[question]*flight
	bad     map[question]string // why the last result was bad
}

// question is a probe at one of the pod's addresses. Were they one, a stranger could have an application that listens on
// IPv4 asked over IPv6, and kubelet would get that result.
type question struct {
	path string
	addr netip.Addr
}

// flight is a probe that runs, or whose result is fresh. The zero value of its result is bad.
type flight struct {
	done chan struct{}
	good bool
}

// ServeHTTP compares the request's target as it came, so no two spellings lead to one probe.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, declared := s.probes[r.RequestURI]
	addr, outside := reached(r)
	if !declared || !outside || r.Method != http.MethodGet || r.ContentLength != 0 {
		http.NewResponseController(w).SetReadDeadline(time.Now()) // nobody reads its body
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	asks(r.Context())
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if s.ask(r.Context(), p, addr) {
		io.WriteString(w, healthy)
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	io.WriteString(w, unhealthy)
}

// reached is the pod's address that the caller connected to. On loopback it would lead to what is for the pod alone.
func reached(r *http.Request) (netip.Addr, bool) {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	addr := local.AddrPort().Addr().Unmap()
	return addr, addr.IsValid() && !addr.IsLoopback() && !addr.IsUnspecified()
}

// ask has the application asked, or waits for the result of who asks already.
func (s *server) ask(ctx context.Context, p config.Probe, addr netip.Addr) bool {
	q := question{p.Path(), addr}
	s.mu.Lock()
	f := s.flights[q]
	if f == nil {
		if len(s.flights) >= maxConnections || s.ctx.Err() != nil {
			s.mu.Unlock()
			return false
		}
		f = &flight{done: make(chan struct{})}
		s.flights[q] = f
		s.running.Go(func() { s.run(q, p, f) })
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.good
	case <-ctx.Done():
		return false
	}
}

func (s *server) run(q question, p config.Probe, f *flight) {
	ctx, cancel := context.WithTimeout(s.ctx, p.Timeout)
	defer cancel()
	err := check(ctx, p, q.addr)
	f.good = err == nil
	close(f.done)
	s.tell(q, p, err)
	select {
	case <-time.After(fresh):
	case <-s.ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.flights, q)
}

// tell logs what changes. Kubelet's events say only that the proxy answered 503.
func (s *server) tell(q question, p config.Probe, err error) {
	if s.ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	before, was := s.bad[q]
	switch {
	case err == nil:
		delete(s.bad, q)
	case was || len(s.bad) < maxConnections:
		s.bad[q] = err.Error()
	}
	s.mu.Unlock()
	log := s.log.With("probe", p.ID(), "at", netip.AddrPortFrom(q.addr, uint16(p.Port)).String())
	switch {
	case err == nil && was:
		log.Info("the application answers its probe again")
	case err != nil && before != err.Error():
		log.Warn("the application does not answer its probe as it should", "cause", err.Error())
	}
}

// crowd is a listener that keeps maxConnections connections. For one more, the oldest goes that has had its moment and has not
// asked for a probe. So kubelet, who waits in the kernel's queue until it is its turn, has the time to ask, however many others
// come and go, and then the time of the probe.
type crowd struct {
	net.Listener
	mu    sync.Mutex
	conns []*member // the oldest first
}

type member struct {
	net.Conn
	crowd *crowd
	since time.Time
	asked bool // by crowd.mu
}

func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	m := &member{Conn: conn, crowd: c, since: time.Now()}
	c.mu.Lock()
	c.conns = append(c.conns, m)
	full := len(c.conns) > maxConnections
	oldest := c.conns[0]
	c.mu.Unlock()
	if !full {
		return m, nil
	}
	time.Sleep(time.Until(oldest.since.Add(moment)))
	c.mu.Lock()
	for _, other := range c.conns {
		if other != m && !other.asked {
			oldest = other
			break
		}
	}
	full = len(c.conns) > maxConnections // some may have gone meanwhile
	c.mu.Unlock()
	if full {
		oldest.Close()
	}
	return m, nil
}

type memberKey struct{}

// asks says that the connection of a request has asked for a probe.
func asks(ctx context.Context) {
	if m, ok := ctx.Value(memberKey{}).(*member); ok {
		m.crowd.mu.Lock()
		defer m.crowd.mu.Unlock()
		m.asked = true
	}
}

func (m *member) Close() error {
	m.crowd.mu.Lock()
	for i, other := range m.crowd.conns {
		if other == m {
			m.crowd.conns = append(m.crowd.conns[:i], m.crowd.conns[i+1:]...)
			break
		}
	}
	m.crowd.mu.Unlock()
	return m.Conn.Close()
}
