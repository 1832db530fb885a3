// Command simtee is a pretended TEE for tests and demonstrations.
//
//	simtee init DIR
//	simtee serve --world DIR --host-data HEX --measurement HEX [--socket @podvm-attest]
//	simtee serve --disk-in DIR [--disk-in DIR]...
//
// The latter plays the machine of a disk that is among the block devices and files of a folder, and takes systemd's socket.
//
// serve prints one line to standard output once it listens, and stays until SIGINT or SIGTERM.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/tests/simtee"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "simtee: %v\n", err)
		if _, ok := errors.AsType[*usageError](err); ok {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

type usageError struct{ error }

const usage = "want simtee init DIR, or simtee serve --world DIR --host-data HEX --measurement HEX [--socket NAME], " +
	"or simtee serve --disk-in DIR [--disk-in DIR]"

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return &usageError{errors.New(usage)}
	}
	switch args[0] {
	case "init":
		return initialise(args[1:])
	case "serve":
		return serve(ctx, args[1:])
	default:
		return &usageError{fmt.Errorf("unknown word %q: %s", args[0], usage)}
	}
}

func initialise(args []string) error {
	if len(args) != 1 {
		return &usageError{errors.New(usage)}
	}
	keys, err := simtee.NewKeys()
	if err != nil {
		return err
	}
	world, err := simtee.New(keys)
	if err != nil {
		return err
	}
	return world.Save(args[0])
}

func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("simtee serve", flag.ContinueOnError)
	dir := flags.String("world", "", "the folder that simtee init made")
	hostData := flags.String("host-data", "", "what the host gave at launch: 64 hexadecimal digits")
	measured := flags.String("measurement", "", "what was launched: 96 hexadecimal digits")
	socket := flags.String("socket", evidence.Socket, "the abstract Unix socket to serve on")
	var disks []string
	flags.Func("disk-in", "a folder with the machine's disk", func(dir string) error {
		disks = append(disks, dir)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return &usageError{err}
	}
	if len(disks) > 0 {
		return serveDisk(ctx, disks)
	}
	if flags.NArg() > 0 || *dir == "" {
		return &usageError{errors.New(usage)}
	}
	data, err := hex.DecodeString(*hostData)
	if err != nil || len(data) != 32 {
		return &usageError{fmt.Errorf("--host-data %q is not 64 hexadecimal digits", *hostData)}
	}
	measurement, err := simtee.ParseMeasurement(*measured)
	if err != nil {
		return &usageError{fmt.Errorf("--measurement: %w", err)}
	}
	world, err := simtee.Load(*dir)
	if err != nil {
		return err
	}
	listener, err := evidence.Listen(*socket)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(os.Stdout, "simtee: serving on %s\n", *socket); err != nil {
		return fmt.Errorf("say that simtee listens: %w", err)
	}
	return evidence.Serve(ctx, listener, world.Machine(measurement, [32]byte(data)))
}

// serveDisk answers on the socket that systemd passes.
func serveDisk(ctx context.Context, folders []string) error {
	var faults []error
	for _, dir := range folders {
		machine, err := simtee.FindDisk(dir)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		listeners, err := activation.Listeners()
		if err != nil || len(listeners) != 1 || listeners[0] == nil {
			return fmt.Errorf("want one socket of systemd's, not %d: %w", len(listeners), err)
		}
		return evidence.ServeUntilIdle(ctx, listeners[0], machine, 10*time.Second) // as podvm-attest
	}
	return errors.Join(faults...)
}
