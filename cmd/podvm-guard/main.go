// Command podvm-guard closes the gate of a podVM at boot, before anything that could be reached exists, and says what
// state it is in.
package main

import (
	"cmp"
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
  podvm-guard status [--json]  print the state, the ports that are let in, what may leave, and what was dropped since
                               the last change of state
  podvm-guard verify           check that the live table is exactly one of ours: closed or mesh

States: closed; mesh (TCP comes in through the mesh proxy only); open (there is no table); foreign (there is a table
of this name with other rules). docs/guard.md explains them, and the fields of --json.

Exit codes:
  0  done; for status: whatever the state is; for verify: the guard stands
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
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	line := func(name, value string) { fmt.Fprintf(w, "%s:\t%s\n", name, value) }
	line("state", fmt.Sprintf("%s (%s)", s.State, meanings[s.State]))
	if s.Difference != "" {
		line("difference", s.Difference)
	}
	if s.State == guard.Mesh {
		line("ports", s.Ports.String())
	}
	if s.Acceptable() {
		line("egress", s.Egress.String())
	}
	if len(s.Counters) > 0 {
		line("drops", packets(s.Drops()))
	}
	if err := w.Flush(); err != nil || len(s.Counters) == 0 {
		return err
	}
	numbers := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(numbers, "\nPACKETS\tBYTES\tCHAIN\t\n")
	for _, c := range s.Counters {
		verdict := "passed"
		if c.Drop {
			verdict = "dropped"
		}
		fmt.Fprintf(numbers, "%d\t%d\t%s\t  %s: %s\n", c.Packets, c.Bytes, c.Chain, verdict, cmp.Or(c.Meaning, c.Rule))
	}
	return numbers.Flush()
}

// meanings are the states in words.
var meanings = map[guard.State]string{
	guard.Closed:  "nothing comes in but answers",
	guard.Mesh:    "TCP comes in through the mesh proxy, and the named ports",
	guard.Opened:  "there is no guard: everything comes in",
	guard.Foreign: "somebody changed the guard's table",
}

func packets(n uint64) string {
	if n == 1 {
		return "1 packet"
	}
	return fmt.Sprintf("%d packets", n)
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
