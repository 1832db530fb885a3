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
	"strconv"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/cmd/internal/command"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/guest/guard"
)

const usage = `Usage: coordinator [flags]

Serves the attesting authority of a mesh until SIGTERM. Its log is JSON, on standard error.

`

func main() { command.Main("coordinator", run) }

type options struct {
	listen         string
	db             string
	tee            string
	allowSimulated bool
	noGuard        bool
}

// run starts from the inside out: nobody can reach the Coordinator before all that it needs is there, and the gate goes
// down with it.
func run(ctx context.Context, args []string) (err error) {
	o, port, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return &command.UsageError{Err: err}
	}
	log := command.Logger("coordinator")

	s, err := store.OpenBolt(o.db)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	issuer, err := evidence.NewIssuer(o.tee)
	if err != nil {
		return err
	}
	c, err := coordinator.New(ctx, coordinator.Config{
		Store: s, Issuer: issuer, AllowSimulatedTEE: o.allowSimulated, Log: log,
	})
	if err != nil {
		return err
	}
	lower, err := raise(ctx, o, port, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lower()) }()
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", o.listen)
	if err != nil {
		return err
	}
	return c.Serve(ctx, listener)
}

// raise lets the Coordinator's own port through the guard and nothing else.
func raise(ctx context.Context, o options, port uint16, log *slog.Logger) (lower func() error, err error) {
	if o.noGuard {
		log.Warn("started with --no-guard: whatever listens here is open to the network")
		return func() error { return nil }, nil
	}
	if err := guard.Raise(ctx, guard.Ports{PlaintextTCP: []uint16{port}}); err != nil {
		return nil, err
	}
	return func() error { return guard.Close(context.WithoutCancel(ctx)) }, nil
}

func parse(args []string) (options, uint16, error) {
	var o options
	flags := flag.NewFlagSet("coordinator", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is one line, and command.Main prints it
	flags.StringVar(&o.listen, "listen", ":"+strconv.Itoa(api.Port), "`address` to listen on")
	flags.StringVar(&o.db, "db", "/var/lib/portcullis/coordinator.db", "`file` that keeps the history")
	flags.StringVar(&o.tee, "tee", "", "`name` of the guest's source of evidence: socket; what is there if not given")
	flags.BoolVar(&o.allowSimulated, "allow-simulated-tee", false,
		"accept manifests that trust evidence which no hardware made: for tests only")
	flags.BoolVar(&o.noGuard, "no-guard", false, "start without the podVM's guard: for development only")
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
