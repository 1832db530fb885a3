// Command podvm-guard closes the gate of a podVM at boot, before anything that could be reached exists, and says what
// state it is in.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"portcullis.dev/portcullis/cmd/internal/command"
	"portcullis.dev/portcullis/guest/guard"
)

const help = `podvm-guard is the gate of a podVM: the nftables table "inet podvm_guard" of this network namespace.

  podvm-guard close            let nothing in but answers to the guest's own connections; forget all older
                               connections; read back what the kernel has. Run it before the first container.
  podvm-guard status [--json]  print the state, the ports that are let in, and what each rule counted
  podvm-guard verify           check that the live table is exactly one of ours: closed or mesh

States: closed; mesh (TCP comes in through the mesh proxy only); open (there is no table); foreign (there is a table
of this name with other rules).

Exit codes:
  0  done; for verify: the guard stands
  1  failed: the rules did not load (the old state stays), a kernel ability is missing, no permission
  2  usage
  3  verify only: the table is missing, or is none of ours

It needs CAP_NET_ADMIN in the network namespace, and for close a writable /proc/sys/net.
`

func main() { command.Main("podvm-guard", run) }

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("podvm-guard", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // command.Main prints the error
	asJSON := flags.Bool("json", false, "")
	name := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) || name == "help" {
		_, err := fmt.Print(help)
		return err
	} else if err != nil {
		return usage("%w", err)
	}
	if flags.NArg() > 0 {
		return usage("unexpected argument %q", flags.Arg(0))
	}
	if *asJSON && name != "status" {
		return usage("--json is for status only")
	}
	switch name {
	case "close":
		return guard.Arm(ctx)
	case "status":
		return status(ctx, *asJSON)
	case "verify":
		return verify(ctx)
	case "":
		return usage("no command: want close, status or verify")
	default:
		return usage("unknown command %q: want close, status or verify", name)
	}
}

func usage(format string, args ...any) error {
	return &command.UsageError{Err: fmt.Errorf(format+" (podvm-guard --help explains)", args...)}
}

func status(ctx context.Context, asJSON bool) error {
	s, err := guard.Inspect(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		out := json.NewEncoder(os.Stdout)
		out.SetEscapeHTML(false)
		out.SetIndent("", "  ")
		return out.Encode(struct {
			guard.Status
			Drops uint64 `json:"drops"`
		}{s, s.Drops()})
	}
	fmt.Println("state:", s.State)
	if s.Difference != "" {
		fmt.Println("difference:", s.Difference)
	}
	if s.State == guard.Mesh {
		fmt.Println("ports:", s.Ports)
	}
	fmt.Println("drops:", s.Drops())
	if len(s.Counters) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\nCHAIN\tPACKETS\tBYTES\tRULE\n")
	for _, c := range s.Counters {
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\n", c.Chain, c.Packets, c.Bytes, c.Rule)
	}
	return w.Flush()
}

func verify(ctx context.Context) error {
	s, err := guard.Inspect(ctx)
	if err != nil || s.Acceptable() {
		return err
	}
	return &notOursError{s}
}

// A notOursError is verify's "no".
type notOursError struct{ status guard.Status }

func (e *notOursError) Error() string {
	if e.status.State == guard.Opened {
		return "the guard is open: there is no table inet podvm_guard"
	}
	return fmt.Sprintf("the guard is %s: %s", e.status.State, e.status.Difference)
}

func (e *notOursError) Hint() string {
	return "podvm-guard close lowers the gate; what passed until now is unknown"
}

func (e *notOursError) ExitCode() int { return command.No }
