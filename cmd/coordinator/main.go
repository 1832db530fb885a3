// Command coordinator is the attesting authority of a mesh: see package coordinator.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strconv"

	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/cmd/internal/command"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/audit"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/guest/service"
)

const usage = `Usage:
  coordinator [flags]             serve the attesting authority of a mesh until SIGTERM
  coordinator collateral --dir    fetch what AMD and Intel publish before it is needed (--help says more)

Its log is JSON, on standard error.

`

func main() { command.Main("coordinator", run) }

type options struct {
	listen         string
	store          string
	db             string
	namespace      string
	auditLog       string
	tee            string
	collateralDir  string
	peers          func(context.Context) ([]string, error)
	allowSimulated bool
	noGuard        bool
	service        service.Notifier
}

// run starts from the inside out: nobody can reach the Coordinator before all that it needs is there, and the gate goes
// down with it.
func run(ctx context.Context, args []string) (err error) {
	if len(args) > 0 && args[0] == "collateral" {
		return prefetch(ctx, args[1:])
	}
	o, port, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return &command.UsageError{Err: err}
	}
	log := command.Logger("coordinator")
	collectLess()

	s, err := openStore(o, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	issuer, err := evidence.NewIssuer(o.tee)
	if err != nil {
		return err
	}
	cache, err := collateral.New(collateral.Config{Dir: o.collateralDir, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cache.Close()) }()
	audited, err := openAudit(o.auditLog, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, audited.Close()) }()
	c, err := coordinator.New(ctx, coordinator.Config{
		Store: s, Issuer: issuer, AllowSimulatedTEE: o.allowSimulated, Collateral: cache, Audit: audited, Peers: o.peers, Log: log,
	})
	if err != nil {
		return err
	}
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", o.listen)
	if err != nil {
		return err
	}
	if o.noGuard {
		log.Warn("started with --no-guard: whatever listens here is open to the network")
		o.service.Ready("listens on " + listener.Addr().String())
		return c.Serve(ctx, listener)
	}
	// The Coordinator's own port passes the guard and nothing else.
	ports := guard.Ports{PlaintextTCP: []uint16{port}}
	if err := guard.Raise(ctx, ports); err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() { err = errors.Join(err, guard.Close(context.WithoutCancel(ctx))) }()
	// The kernel holds whoever connects until Serve accepts.
	o.service.Ready("listens on " + listener.Addr().String() + ", behind the guard")
	group, ctx := errgroup.WithContext(ctx)
	ctx, served := context.WithCancel(ctx)
	group.Go(func() error { return keepGuard(ctx, ports, log) })
	group.Go(func() error {
		defer served()
		return c.Serve(ctx, listener)
	})
	return group.Wait()
}

// collectLess trades 12 MiB of memory for an eighth of the CPU that a certificate costs (docs/performance.md): little of the heap
// lives, so by Go's default the collector would run every few dozen requests. A large history is not allowed five times
// its size: near the limit the collector is as busy as ever. Who sets GOGC or GOMEMLIMIT knows better.
func collectLess() {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetGCPercent(400)
		debug.SetMemoryLimit(192 << 20)
	}
}

// openAudit opens the audit log, where one is asked for.
func openAudit(path string, log *slog.Logger) (*audit.Log, error) {
	if path == "" {
		return nil, nil
	}
	return audit.Open(audit.Config{Path: path, Log: log})
}

// keepGuard puts the guard back whenever another process changed it, by way of the closed one, since nobody knows what was
// admitted meanwhile. Its error is that it cannot.
func keepGuard(serving context.Context, ports guard.Ports, log *slog.Logger) error {
	ctx, stop := context.WithCancel(serving)
	defer stop()
	var failed error
	err := guard.Watch(ctx, func(c guard.Change) {
		log := log.With("process", c.Process, "pid", c.PID)
		stands := c.Err == nil && c.Status.State == guard.Mesh && c.Status.Ports.Equal(ports)
		switch {
		case failed != nil || stands && c.Missed:
		case stands:
			log.Warn("another process changed nftables rules; the guard stands as before")
		default:
			if failed = guard.Arm(ctx); failed == nil {
				failed = guard.Raise(ctx, ports)
			}
			if failed != nil {
				stop()
				return
			}
			log.Error("another process changed the guard; it is put back", "was", c.Status.State, "difference", c.Status.Difference)
		}
	})
	if serving.Err() != nil {
		return nil // run closes the guard
	}
	return errors.Join(failed, err)
}

func parse(args []string) (options, uint16, error) {
	var o options
	flags := flag.NewFlagSet("coordinator", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is one line, and command.Main prints it
	flags.StringVar(&o.listen, "listen", ":"+strconv.Itoa(api.Port), "`address` to listen on")
	flags.StringVar(&o.store, "store", storeBolt, "what keeps the history: bbolt, a file; or kubernetes, ConfigMaps that replicas share")
	flags.StringVar(&o.db, "db", "/var/lib/portcullis/coordinator.db", "`file` of the store bbolt")
	flags.StringVar(&o.namespace, "namespace", "", "`namespace` of the store kubernetes; the pod's own if not given")
	flags.StringVar(&o.auditLog, "audit-log", "",
		"`file` that records every decision, hash-chained and signed; without it nothing is recorded")
	flags.StringVar(&o.tee, "tee", "", "`name` of the guest's source of evidence: auto, socket, snp, tdx; auto if not given")
	flags.StringVar(&o.collateralDir, "collateral-dir", "",
		"`folder` that keeps what AMD and Intel publish; in memory alone if not given")
	peers := flags.String("peers", "",
		"`host[:port]` whose addresses are the other replicas on this store, such as a headless Service; none if not given")
	flags.BoolVar(&o.allowSimulated, "allow-simulated-tee", false,
		"accept manifests that trust evidence which no hardware made: for tests only")
	flags.BoolVar(&o.noGuard, "no-guard", false, "start without the podVM's guard: for development only")
	systemd := flags.Bool("systemd", false, "tell systemd when it listens: for a service of a confidential VM's image")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(os.Stdout, usage)
			flags.SetOutput(os.Stdout)
			flags.PrintDefaults()
		}
		return options{}, 0, err
	}
	if flags.NArg() > 0 {
		return options{}, 0, fmt.Errorf("unexpected argument %q, want flags only", flags.Arg(0))
	}
	if err := checkStore(o.store, flags); err != nil {
		return options{}, 0, err
	}
	if *peers != "" {
		var err error
		if o.peers, err = coordinator.PeersAt(*peers); err != nil {
			return options{}, 0, fmt.Errorf("--peers %w", err)
		}
	}
	if *systemd {
		o.service = service.Systemd()
	}
	_, text, err := net.SplitHostPort(o.listen)
	if err != nil {
		return options{}, 0, fmt.Errorf("--listen %q: want host:port or :port", o.listen)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || (port == 0 && !o.noGuard) {
		return options{}, 0, fmt.Errorf("--listen %q: port %q, want 1 to 65535", o.listen, text)
	}
	return o, uint16(port), nil
}
