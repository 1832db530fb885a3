// Command initializer obtains a pod's mesh credentials: see package initializer.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/cmd/internal/command"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/guest/service"
	"portcullis.dev/portcullis/initializer"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/meshproxy/config"
)

const usage = `Usage:
  initializer [flags]        obtain mesh credentials, then stay until SIGTERM
  initializer ready [--dir]  exit 0 when the credentials are complete and valid, 3 when not
  initializer status [--dir] [--json]
                             say until when they are good, and whether this pod is to be rolled out again

The environment variables COORDINATOR_HOST and CONTRAST_EGRESS_POLICY stand for --coordinator and --egress-policy, where
these are not given.

`

func main() {
	service.Frugal()
	command.Main("initializer", run)
}

func run(ctx context.Context, args []string) (err error) {
	if len(args) > 0 && args[0] == "ready" {
		o, err := parse("initializer ready", args[1:], os.Getenv)
		if err != nil || o.help {
			return err
		}
		return initializer.Ready(o.dir, time.Now())
	}
	if len(args) > 0 && args[0] == "status" {
		return status(args[1:])
	}
	o, err := parse("initializer", args, os.Getenv)
	if err != nil || o.help {
		return err
	}
	log := command.Logger("initializer")
	if o.elsewhere != "" {
		log.Info("there is nothing to do", "why", o.elsewhere)
		return o.service.Done("nothing to do: " + o.elsewhere)
	}
	newDialer := func() *net.Dialer { return new(net.Dialer) }
	if o.locked {
		newDialer = guard.Dialer
	}
	client, err := api.NewThrough(newDialer(), o.coordinator)
	if err != nil {
		return &command.UsageError{Err: err}
	}
	// It asks nobody before evidence of hardware is judged, which takes a pin.
	cache, err := collateral.New(collateral.Config{Dialer: newDialer(), Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cache.Close()) }()
	return initializer.Run(ctx, initializer.Config{
		Dir:         o.dir,
		NoMesh:      o.noMesh,
		Coordinator: client,
		Pin:         o.pin,
		Validation:  manifest.ValidatorOptions{Collateral: cache},
		Issuer:      func() (attestation.Issuer, error) { return evidence.NewIssuer(o.tee) },
		OpenGuard:   guard.Open,
		Volume:      o.volume,
		Service:     o.service,
		Log:         log,
	})
}

func status(args []string) error {
	o, err := parse("initializer status", args, os.Getenv)
	if err != nil || o.help {
		return err
	}
	s, err := initializer.ReadStatus(o.dir, time.Now())
	if err != nil {
		return err
	}
	if !o.json {
		_, err = fmt.Print(s)
		return err
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

type options struct {
	dir         string
	coordinator string
	pin         *manifest.Pin
	noMesh      bool
	locked      bool
	tee         string
	json        bool
	help        bool

	// As a service of the podVM's image.
	volume    string
	service   service.Notifier
	elsewhere string // why there is nothing to do; empty where there is
}

// parse reads the arguments of the command, or of "initializer ready", which takes --dir only, or "initializer status". A pod's measured policy
// pins arguments but lets the host drop environment variables: so the arguments win, and an environment that says
// something else is an error rather than a second opinion.
func parse(name string, args []string, environment func(string) string) (o options, err error) {
	var policy, pod string
	var pins []string
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is one line, and command.Main prints it
	flags.StringVar(&o.dir, "dir", "/contrast", "`folder` for the credentials")
	if name == "initializer status" {
		flags.BoolVar(&o.json, "json", false, "for programs")
	}
	if name == "initializer" {
		flags.StringVar(&o.coordinator, "coordinator", "", "`host` or host:port of the Coordinator")
		flags.Func("coordinator-pin", "`JSON` that names the only authority to trust: its policy hash, reference values and workload\n"+
			"owners; the mesh of any Coordinator that answers is joined if not given", func(text string) error {
			pins = append(pins, text)
			return nil
		})
		flags.BoolVar(&o.noMesh, "no-mesh", false, "open the guard: this pod is to be reached without the mesh")
		flags.StringVar(&policy, "egress-policy", "",
			"`word`: closed or closed,dns mark the connections to the Coordinator for the egress lock, which takes CAP_NET_RAW")
		flags.StringVar(&pod, "pod", "", "`folder` of the pod's verified initdata, for a service of the podVM's image: it says what the flags\n"+
			"coordinator, coordinator-pin, no-mesh and egress-policy say to a container")
		flags.StringVar(&o.volume, "volume", "", "`folder` that gets the credentials as well, once a volume in memory is mounted there")
		flags.StringVar(&o.tee, "tee", "", "`name` of the guest's source of evidence: auto, socket, snp, tdx; auto if not given")
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(os.Stdout, usage)
			flags.SetOutput(os.Stdout)
			flags.PrintDefaults()
			return options{help: true}, nil
		}
		return options{}, &command.UsageError{Err: err}
	}
	if flags.NArg() > 0 {
		return options{}, &command.UsageError{Err: fmt.Errorf("unexpected argument %q, want flags only", flags.Arg(0))}
	}
	if o.dir == "" {
		return options{}, &command.UsageError{Err: errors.New("--dir is empty")}
	}
	if name != "initializer" {
		return o, nil
	}
	if pod != "" {
		environment = func(string) string { return "" }
		o.service = service.Systemd()
		if o.elsewhere, err = fromPod(flags, pod); err != nil || o.elsewhere != "" {
			return o, err
		}
	}
	for _, value := range []struct {
		argument                *string
		flag, variable, missing string
	}{
		{&o.coordinator, "--coordinator", "COORDINATOR_HOST", "no Coordinator: want --coordinator or COORDINATOR_HOST"},
		{&policy, "--egress-policy", "CONTRAST_EGRESS_POLICY", ""},
	} {
		switch given := environment(value.variable); {
		case *value.argument == "" && given == "" && value.missing != "":
			return options{}, &command.UsageError{Err: errors.New(value.missing)}
		case *value.argument == "":
			*value.argument = given
		case given != "" && given != *value.argument:
			return options{}, &command.UsageError{Err: fmt.Errorf("%s is %q, but %s is %q: make them equal or leave one out",
				value.variable, given, value.flag, *value.argument)}
		}
	}
	// There is no variable for the pin: a host could leave it away, or set one where the pod's owner wants none.
	switch len(pins) {
	case 0:
	case 1:
		if o.pin, err = manifest.ParsePin(pins[0]); err != nil {
			return options{}, &command.UsageError{Err: fmt.Errorf("--coordinator-pin: %w", err)}
		}
	default:
		return options{}, &command.UsageError{Err: errors.New("--coordinator-pin is given twice")}
	}
	mesh, err := config.Parse("", "", "", policy)
	if err != nil {
		return options{}, &command.UsageError{Err: err}
	}
	o.locked = mesh.EgressPolicy != config.EgressOpen
	if o.locked && o.noMesh {
		return options{}, &command.UsageError{Err: fmt.Errorf(
			"--egress-policy %s and --no-mesh: the latter takes the guard away, and the lock with it", policy)}
	}
	return o, nil
}
