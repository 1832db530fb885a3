// Package coordinator is the authority of a mesh: it holds the manifest and certifies the pods that the manifest admits.
//
// Its life has three states. Fresh, it knows no manifest and waits for one. The first manifest makes the seed, from which
// the root CA's key follows, and a mesh CA whose key serves that manifest alone; the Coordinator is active. Each later
// manifest must be signed by the owners of the one before, and makes a new mesh CA. A Coordinator that finds a history
// in its store when it starts does not have the seed, which never leaves memory in clear: it needs recovery, and answers
// nothing else meanwhile. To say that it were fresh would let a host start over, with a manifest of its own. As many
// seed-share owners as the manifest's threshold give it the seed back, each one's share sealed to this process and signed
// (recovery.go).
//
// The threat is a host that controls the network, the store and the clock, and may run Coordinators of its own. So
// clients are believed only what their evidence says, every message that matters protects itself (package api), the
// store is trusted with nothing (package store), and nonces are measured on a clock that the host does not set. What a
// client is told and what the log says are two things: a rejection's values are for the operator alone.
package coordinator

import (
	"context"
	"crypto/hpke"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/coordinator/audit"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
)

// Config is what a Coordinator needs. Store, Issuer and Log must be set.
type Config struct {
	// Store keeps the history. Who opened it closes it.
	Store store.Store
	// Issuer makes the Coordinator's own evidence.
	Issuer attestation.Issuer
	// AllowSimulatedTEE admits manifests that trust evidence which no hardware made.
	AllowSimulatedTEE bool
	// Collateral is what the vendors publish about their hardware. Who made it closes it. Without it, no evidence of hardware
	// can be judged, and manifests that trust any are refused.
	Collateral *collateral.Cache
	// Peers says where other replicas on the same store may be, as host:port; it is asked anew each time. An address of this
	// process among them does no harm. Without it, no replica is asked for anything.
	Peers func(context.Context) ([]string, error)
	// SNPRoots and TDXRoots are for tests, as in manifest.ValidatorOptions. Nil means the vendors' own.
	SNPRoots map[string]*x509.Certificate
	TDXRoots []*x509.Certificate
	// Audit records every decision, where there is one (package audit). Who opened it closes it.
	Audit *audit.Log
	// Log receives what operators need to know: issued certificates, transitions, and every refusal with its reason.
	Log *slog.Logger
}

// Coordinator is one replica of the authority.
type Coordinator struct {
	store          store.Store
	issuer         attestation.Issuer
	allowSimulated bool
	validation     manifest.ValidatorOptions
	audit          *audit.Log
	log            *slog.Logger
	metrics        *metrics
	hpkeKey        hpke.PrivateKey
	clock          clock
	peers          func(context.Context) ([]string, error)

	// The gates bound what clients can make the Coordinator do at the same time.
	judging   *gate // evidence of others
	attesting *gate // evidence of its own
	setting   *gate // manifests in memory

	setMutex   sync.Mutex                 // held by who changes what is below
	unanswered *generation                // of a commit that may have reached the store or not
	withdrawn  bool                       // whether the audit log says that unanswered was not kept
	active     atomic.Pointer[generation] // nil before the first manifest; the newest that was served, where recovery is needed
	recovering atomic.Pointer[recovery]   // nil unless recovery is needed
	split      atomic.Pointer[split]      // nil unless the store contradicts what this process knows
}

// New makes a Coordinator on what its store holds.
func New(ctx context.Context, cfg Config) (*Coordinator, error) {
	if cfg.Store == nil || cfg.Issuer == nil || cfg.Log == nil {
		return nil, errors.New("make a Coordinator: store, issuer and log are needed")
	}
	key, err := api.NewHPKEKey()
	if err != nil {
		return nil, fmt.Errorf("make the Coordinator's HPKE key: %w", err)
	}
	workers := runtime.GOMAXPROCS(0)
	c := &Coordinator{
		store:          cfg.Store,
		issuer:         cfg.Issuer,
		allowSimulated: cfg.AllowSimulatedTEE,
		validation:     manifest.ValidatorOptions{SNPRoots: cfg.SNPRoots, TDXRoots: cfg.TDXRoots},
		audit:          cfg.Audit,
		log:            cfg.Log,
		hpkeKey:        key,
		peers:          cfg.Peers,
		clock:          startClock(),
		judging:        newGate(workers, 64*workers),
		attesting:      newGate(2, 32),
		setting:        newGate(4, 16),
	}
	c.metrics = newMetrics(c)
	if cfg.Collateral != nil {
		c.validation.Collateral = cfg.Collateral
		c.metrics.registry.MustRegister(cfg.Collateral)
	}
	switch text, err := c.store.Latest(ctx); {
	case err == nil:
		l, err := parseLatest(text)
		if err != nil {
			return nil, fmt.Errorf("read the history in the store: %w", err)
		}
		r, err := c.newRecovery(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("read the history in the store: %w", err)
		}
		c.recovering.Store(r)
		c.log.Warn("the store holds a history whose seed is not in this process: recovery is needed",
			"transition", hex.EncodeToString(r.transition().Hash[:]), "generation", len(r.history),
			"owners", len(r.owners()), "threshold", r.threshold())
	case !errors.Is(err, store.ErrNotFound):
		return nil, fmt.Errorf("read the store: %w", err)
	}
	if err := c.auditStart(); err != nil {
		return nil, err
	}
	return c, nil
}

// The server's bounds. A client that is slower than this is not a podVM on a cluster's network.
const (
	maxConnections    = 1024
	maxHeader         = 8 << 10
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second
	writeTimeout      = time.Minute
	idleTimeout       = 30 * time.Second
	drainTimeout      = 10 * time.Second
)

// Serve answers on listener and keeps up with the store until ctx ends, then finishes the requests it has begun.
func (c *Coordinator) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           c.Handler(),
		MaxHeaderBytes:    maxHeader,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	c.log.Info("listening", "address", listener.Addr().String(), "state", c.state())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := server.Serve(netutil.LimitListener(listener, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		c.follow(ctx)
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		if err := server.Shutdown(drain); err != nil {
			return errors.Join(fmt.Errorf("finish the requests in progress: %w", err), server.Close())
		}
		return nil
	})
	return group.Wait()
}

type state string

const (
	stateFresh         state = "no-manifest"
	stateActive        state = "active"
	stateNeedsRecovery state = "needs-recovery"
	stateNeedsPeer     state = "needs-peer"    // another replica went on without this one
	stateSplit         state = "split-history" // active, and the store contradicts it
)

var states = []state{stateFresh, stateActive, stateNeedsRecovery, stateNeedsPeer, stateSplit}

func (c *Coordinator) state() state {
	switch r := c.recovering.Load(); {
	case r != nil:
		return state(r.code())
	case c.active.Load() == nil:
		return stateFresh
	case c.split.Load() != nil:
		return stateSplit
	default:
		return stateActive
	}
}

// generation returns what the active manifest made.
func (c *Coordinator) generation() (*generation, error) {
	if r := c.recovering.Load(); r != nil {
		return nil, problem(r.code())
	}
	g := c.active.Load()
	if g == nil {
		return nil, problem(api.CodeNoManifest)
	}
	return g, nil
}
