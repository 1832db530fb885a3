// Command podvm-initdata hands the pod's measured initdata to the guest, or keeps the guest from going on: see receive.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"portcullis.dev/portcullis/cmd/internal/command"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/guest/hostdata"
	"portcullis.dev/portcullis/guest/initdata"
)

const help = `podvm-initdata verifies the pod's initdata and hands it to the guest. podvm-initdata.service runs it in every boot of
a podVM, before the agent.

  podvm-initdata [--out /run/podvm] [--wait 30s]

The host attaches the initdata as a disk, and had to commit to its SHA-256 when it launched the guest: HOSTDATA of SEV-SNP,
MRCONFIGID of TDX. podvm-initdata asks the hardware for that digest, reads the disk once, compares, and writes each string of
the document to a file of its name in --out. Where the host committed to nothing and attached nothing, the folder has only a
policy.rego that refuses every request. It refuses a disk without a digest, a digest without a disk (after --wait, since a disk
may be found late), another digest, two disks, and what it cannot read. Its log is JSON, on standard error.

On a machine without a TEE it goes on only if the kernel's command line, which is measured, has podvm.allow_simulated_tee=1.

Exit codes:
  0  the folder is there
  1  failed: there is no TEE, a disk cannot be read, or what is on it is broken
  2  usage
  3  refused: what the host attached is not what it committed to

With any but 0, the service turns the podVM off.

It needs root, to read disks and to ask the hardware, and no capability.
`

func main() { command.Main("podvm-initdata", run) }

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("podvm-initdata", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // command.Main prints the error
	out := flags.String("out", "/run/podvm", "")
	wait := flags.Duration("wait", 30*time.Second, "")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		_, err := fmt.Print(help)
		return err
	} else if err != nil {
		return usage("%w", err)
	}
	if flags.NArg() > 0 {
		return usage("unexpected argument %q", flags.Arg(0))
	}
	if *wait < 0 || *wait > time.Minute {
		return usage("--wait %v is not between 0 and 1m", *wait)
	}
	commandLine, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	commitment, err := hostdata.Read(ctx, string(commandLine))
	if _, missing := errors.AsType[*evidence.NotFoundError](err); missing {
		return &noTEEError{err}
	} else if err != nil {
		return err
	}
	r := receiver{
		find: func() ([]byte, string, error) { return initdata.Find("/dev", "/sys") },
		wait: *wait,
		log:  command.Logger("podvm-initdata"),
	}
	data, err := r.receive(ctx, commitment)
	if err != nil {
		return err
	}
	return initdata.Deliver(data, *out)
}

func usage(format string, args ...any) error {
	return &command.UsageError{Err: fmt.Errorf(format+" (podvm-initdata --help explains)", args...)}
}

// noTEEError adds to an *evidence.NotFoundError what that means here.
type noTEEError struct{ error }

func (e *noTEEError) Unwrap() error { return e.error }

// Hint says what lets a test go on.
func (*noTEEError) Hint() string {
	return "a podVM without a TEE runs only in tests, with " + hostdata.Simulated + " on the kernel's command line"
}
