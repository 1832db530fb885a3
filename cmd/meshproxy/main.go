// Command meshproxy runs the pod's Envoy and lifts the guard for it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"portcullis.dev/portcullis/cmd/internal/command"
	"portcullis.dev/portcullis/guest/service"
	"portcullis.dev/portcullis/meshproxy"
	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/meshproxy/confine"
)

const help = `meshproxy puts a podVM's connections behind mutual TLS and lifts the guard for them.

  meshproxy [flags]                     run until SIGTERM, then drain; a second signal ends that at once
  meshproxy ready [--run-dir DIR]       check that the one that runs is ready

Flags:
  --ingress ENTRIES    name#port[/udp]#disableTLS[#identities], joined by ##; CLOSED; DISABLED
                       (or CONTRAST_INGRESS_PROXY_CONFIG, but for DISABLED)
  --egress ENTRIES     name#127.x.y.z:port#host:port[#identities], joined by ##
                       (or CONTRAST_EGRESS_PROXY_CONFIG)
  --egress-policy WORD open (the default); closed: nothing leaves the pod but Envoy's connections to egress entries and
                       the Initializer's to the Coordinator; closed,dns: and port 53 (or CONTRAST_EGRESS_POLICY)
  --admin-port PORT    serve a read-only admin view there (or CONTRAST_ADMIN_PORT)
  --probes ENTRIES     container/liveness|readiness|startup#check#timeout[#header:value]..., joined by ##: what is answered
                       for kubelet on port 15021 (CONTRAST_PROBES may repeat it)
  --access-log         log every connection, not only those that are refused (or CONTRAST_ACCESS_LOG=true)
  --envoy PATH         the Envoy program (default "envoy", from PATH)
  --envoy-user ID      the user and group id that Envoy runs as (default 1337)
  --concurrency N      Envoy's workers (default 1)
  --credentials DIR    what the Initializer wrote (default /contrast)
  --run-dir DIR        a directory in memory, for the mesh proxy alone (default /run/portcullis)
  --drain DURATION     how long connections may take to end after SIGTERM (default 20s)
  --pod DIR            the pod's verified initdata, for a service of the podVM's image: it says what ingress, egress,
                       egress-policy, admin-port, probes and access-log say to a container, and no variable counts

A flag wins over its environment variable; where both are given and differ, that is an error: the host can drop and add
environment variables of a container, but not change arguments that its policy pins.

Exit codes:
  0  done; for ready: it is ready
  1  failed: no guard, no credentials, no Envoy, a port that is taken
  2  usage, or a malformed value
  3  ready only: it is not ready
`

func main() {
	service.Frugal()
	meshproxy.Launch() // in a process that becomes Envoy, or makes its bootstrap
	command.Main("meshproxy", run)
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("meshproxy", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // command.Main prints the error
	cfg := meshproxy.Config{}
	flags.StringVar(&cfg.RunDir, "run-dir", "/run/portcullis", "")
	asksReady := len(args) > 0 && args[0] == "ready"
	if asksReady {
		args = args[1:]
	}
	var envoyUser uint
	var pod string
	lookup := os.LookupEnv
	if !asksReady {
		flags.String("ingress", "", "")
		flags.String("egress", "", "")
		flags.String("admin-port", "", "")
		flags.String("egress-policy", "", "")
		flags.String("probes", "", "")
		flags.BoolVar(&cfg.AccessLog, "access-log", false, "")
		flags.StringVar(&cfg.Envoy, "envoy", "envoy", "")
		flags.UintVar(&envoyUser, "envoy-user", 1337, "")
		flags.IntVar(&cfg.Concurrency, "concurrency", 1, "")
		flags.StringVar(&cfg.Credentials, "credentials", "/contrast", "")
		flags.DurationVar(&cfg.Drain, "drain", 20*time.Second, "")
		flags.StringVar(&pod, "pod", "", "")
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		_, err := fmt.Print(help)
		return err
	} else if err != nil {
		return usage("%w", err)
	}
	switch {
	case flags.NArg() > 0:
		return usage("unexpected argument %q", flags.Arg(0))
	case asksReady:
		return meshproxy.Ready(ctx, cfg.RunDir)
	case envoyUser == 0 || envoyUser >= 1<<32-1:
		return usage("--envoy-user %d: want an id from 1 to 4294967294, not root's", envoyUser)
	case cfg.Concurrency < 1:
		return usage("--concurrency %s: want at least 1", strconv.Itoa(cfg.Concurrency))
	case cfg.Drain < 0:
		return usage("--drain %v: want no less than 0s", cfg.Drain)
	}
	cfg.EnvoyUser = uint32(envoyUser)
	cfg.Log = command.Logger("meshproxy")
	if pod != "" {
		lookup = func(string) (string, bool) { return "", false }
		cfg.Service = service.Systemd()
		elsewhere, err := fromPod(flags, pod)
		if err != nil {
			return err
		}
		if elsewhere != "" {
			cfg.Log.Info("there is nothing to do", "why", elsewhere)
			return cfg.Service.Done("nothing to do: " + elsewhere)
		}
	}
	var err error
	if cfg.Mesh, err = meshConfig(flags, lookup); err != nil {
		return err
	}
	if cfg.AccessLog, err = accessLog(flags, lookup); err != nil {
		return err
	}
	cfg.Hurry = command.SecondSignal()
	if err := confine.Self(cfg.EnvoyUser); err != nil {
		return fmt.Errorf("start the mesh proxy: %w", err)
	}
	return meshproxy.Run(ctx, cfg)
}

// meshConfig takes each value from its flag or else its environment variable.
func meshConfig(flags *flag.FlagSet, lookup func(string) (string, bool)) (*config.Config, error) {
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	var values []string
	for _, source := range []struct{ flag, variable string }{
		{"ingress", "CONTRAST_INGRESS_PROXY_CONFIG"},
		{"egress", "CONTRAST_EGRESS_PROXY_CONFIG"},
		{"admin-port", "CONTRAST_ADMIN_PORT"},
		{"egress-policy", "CONTRAST_EGRESS_POLICY"},
		{"probes", "CONTRAST_PROBES"},
	} {
		argument := flags.Lookup(source.flag).Value.String()
		variable, _ := lookup(source.variable)
		switch {
		case !given[source.flag]:
			values = append(values, variable)
		case variable != "" && variable != argument:
			return nil, usage("--%s is %q and %s is %q: they must agree", source.flag, argument, source.variable, variable)
		default:
			values = append(values, argument)
		}
	}
	cfg, err := config.Values{
		Ingress: values[0], Egress: values[1], AdminPort: values[2], EgressPolicy: values[3], Probes: values[4],
	}.Parse()
	if err != nil {
		return nil, err
	}
	if len(cfg.Probes) > 0 && !given["probes"] {
		return nil, usage("probes are requests to the application, and an environment variable is not trusted with those: " +
			"pass --probes as an argument")
	}
	if cfg.Mode == config.Disabled && !given["ingress"] {
		return nil, usage("ingress DISABLED opens the guard, and an environment variable is not trusted with that: " +
			"pass --ingress=DISABLED as an argument")
	}
	return cfg, nil
}

// accessLog is like meshConfig.
func accessLog(flags *flag.FlagSet, lookup func(string) (string, bool)) (on bool, err error) {
	const variable = "CONTRAST_ACCESS_LOG"
	argument := flags.Lookup("access-log")
	given := false
	flags.Visit(func(f *flag.Flag) { given = given || f == argument })
	value, _ := lookup(variable)
	switch {
	case value != "" && value != "true" && value != "false":
		return false, usage("%s is %q: want true or false", variable, value)
	case given && value != "" && value != argument.Value.String():
		return false, usage("--access-log is %s and %s is %s: they must agree", argument.Value, variable, value)
	}
	return value == "true" || argument.Value.String() == "true", nil
}

func usage(format string, args ...any) error {
	return &command.UsageError{Err: fmt.Errorf(format+" (meshproxy --help explains)", args...)}
}
