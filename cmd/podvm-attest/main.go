// Command podvm-attest serves the TEE's evidence to the pod that runs inside it: see package evidence.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/cmd/internal/command"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/guest/service"
)

const help = `podvm-attest serves evidence of this guest's TEE on the abstract Unix socket @podvm-attest.

  podvm-attest [--tee auto|snp|tdx]

It takes the socket that systemd passes (podvm-attest.socket), or else listens in the network namespace that it is
started in, and answers until SIGTERM, with systemd's socket until nobody has asked for 10 s: report data in, evidence out. Requests to the hardware are made one at a time,
and keep a pace that it bears. Its log is JSON, on standard error.

--tee names the TEE; auto, the default, takes the one that the kernel names: configfs-tsm first, then /dev/sev-guest.
Where there is none, or another, what was looked for is named: to whoever asks, if systemd passed the socket, and it is
looked for again at each request; else in an error, and podvm-attest ends.

Exit codes:
  0  stopped by SIGTERM or SIGINT, or idle
  1  failed: there is no TEE, or no socket
  2  usage

It needs root in the guest, whose kernel gives evidence to nobody else, and no capability.
`

// idle is how long a service that systemd starts for whoever asks stays for the next one. Pods ask when they start, and then for weeks no more.
const idle = 10 * time.Second

func main() {
	service.Frugal()
	command.Main("podvm-attest", run)
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("podvm-attest", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // command.Main prints the error
	tee := flags.String("tee", evidence.Auto, "")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		_, err := fmt.Print(help)
		return err
	} else if err != nil {
		return usage("%w", err)
	}
	if flags.NArg() > 0 {
		return usage("unexpected argument %q", flags.Arg(0))
	}
	return serve(ctx, func() (attestation.Issuer, error) { return evidence.Hardware(*tee) })
}

func usage(format string, args ...any) error {
	return &command.UsageError{Err: fmt.Errorf(format+" (podvm-attest --help explains)", args...)}
}

// serve answers with the evidence of the TEE that find finds.
func serve(ctx context.Context, find func() (attestation.Issuer, error)) error {
	log := command.Logger("podvm-attest")
	activated := os.Getenv("LISTEN_FDS") != ""
	issuer, err := find()
	switch _, missing := errors.AsType[*evidence.NotFoundError](err); {
	case missing && activated:
		// Not an end: systemd would start it again for those who wait, and soon give the socket up.
		log.Error("there is no evidence to serve", "err", err)
		issuer = evidence.Late(find)
	case err != nil:
		return err
	}
	listen := func() (net.Listener, error) { return evidence.Listen(evidence.Socket) }
	if activated {
		listen = passed
	}
	listener, err := listen()
	if err != nil {
		return err
	}
	log.Info("serving", "socket", listener.Addr().String())
	if !activated {
		return evidence.Serve(ctx, listener, issuer)
	}
	return evidence.ServeUntilIdle(ctx, listener, issuer, idle)
}

// passed takes systemd's socket.
func passed() (net.Listener, error) {
	listeners, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take systemd's socket: %w", err)
	}
	if len(listeners) != 1 || listeners[0] == nil {
		return nil, fmt.Errorf("LISTEN_FDS has %d sockets for this process, want one that listens", len(listeners))
	}
	if network := listeners[0].Addr().Network(); network != "unix" {
		return nil, fmt.Errorf("the socket that systemd passes is a %s socket, want unix", network)
	}
	return listeners[0], nil
}
