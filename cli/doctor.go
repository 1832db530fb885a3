package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/cli/doctor"
)

func newDoctor() *cobra.Command {
	var coordinator string
	var guest, asJSON bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine lacks, and how to get it",
		Long: `Doctor looks at this machine and says what is missing before something fails for want of it. It looks at the machine of a
workload owner or a data owner; with --coordinator also at the way to a Coordinator, and both clocks; in a tree of Portcullis'
sources also at what "make demo" needs. With --guest, in a podVM or its image, it looks at the kernel, the guard, its units
and the TEE; what the kernel can takes root to find out. It changes nothing.

Exit codes: 0 nothing that is needed is missing, 3 something is, 1 something that is needed could not be looked at.`,
		Example: `  portcullis doctor
  portcullis doctor -c coordinator.example.com
  portcullis doctor --guest --json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			m := thisMachine(ctx)
			var findings []doctor.Finding
			switch {
			case guest && coordinator != "" && cmd.Flags().Changed("coordinator"):
				return usageOf(cmd, errors.New("give --guest or --coordinator, not both"))
			case guest:
				findings = doctor.ThisGuest(ctx, m)
			default:
				findings = doctor.OwnersMachine(m)
				if inSourceTree() {
					findings = append(findings, doctor.SourceTree(m)...)
				}
				if coordinator != "" {
					way, err := wayTo(ctx, cmd, coordinator)
					if err != nil {
						return err
					}
					findings = append(findings, way...)
				}
			}
			write := func(w io.Writer) error { return writeFindings(w, findings) }
			if asJSON {
				write = func(w io.Writer) error { return writeJSON(w, findings) }
			}
			if err := write(cmd.OutOrStdout()); err != nil {
				return err
			}
			return diagnosis(findings)
		},
	}
	cmd.Flags().StringVarP(&coordinator, "coordinator", "c", os.Getenv(environmentCoordinator),
		"HOST[:PORT] of a Coordinator, to look at the way to it; also "+environmentCoordinator)
	cmd.Flags().Lookup("coordinator").DefValue = "" // help says the same on every machine
	cmd.Flags().BoolVar(&guest, "guest", false, "look at a podVM, from inside")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long everything may take")
	flagJSON(cmd, &asJSON)
	return cmd
}

// released is a time before which this release did not exist.
var released = time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)

func thisMachine(ctx context.Context) *doctor.Machine {
	cache := defaultCollateral()
	return &doctor.Machine{
		Root: "/", Path: filepath.SplitList(os.Getenv("PATH")), Envoy: os.Getenv("PORTCULLIS_ENVOY"), Cache: cache,
		UID: os.Getuid(), Now: time.Now(), Released: released,
		Version: func(program string, args ...string) (string, error) {
			out, err := exec.CommandContext(ctx, program, args...).Output()
			return string(out), err
		},
	}
}

// inSourceTree says whether this is a tree of Portcullis' sources.
func inSourceTree() bool {
	text, err := os.ReadFile("go.mod")
	return err == nil && strings.HasPrefix(string(text), "module portcullis.dev/portcullis\n")
}

// wayTo looks at the way to a Coordinator, as far as it goes.
func wayTo(ctx context.Context, cmd *cobra.Command, coordinator string) ([]doctor.Finding, error) {
	client, err := api.New(coordinator)
	if err != nil {
		return nil, usageOf(cmd, err)
	}
	u, err := url.Parse(client.String())
	if err != nil {
		return nil, usageOf(cmd, err)
	}
	progress(cmd, "asking %s ...", client)
	name := doctor.Finding{Check: "Coordinator's name", Result: doctor.OK, Wanted: "an address"}
	addresses, err := net.DefaultResolver.LookupHost(ctx, u.Hostname())
	if err != nil {
		name.Result, name.Found = doctor.Missing, err.Error()
		name.Get = "is the name right, and does this machine's DNS know it? In a cluster: kubectl port-forward, then -c 127.0.0.1"
		return []doctor.Finding{name}, nil
	}
	name.Found = strings.Join(addresses, ", ")
	there := doctor.Finding{Check: "Coordinator", Result: doctor.OK, Wanted: "an answer"}
	health, clock, err := client.Health(ctx)
	if err != nil {
		there.Result, there.Found, there.Get = doctor.Missing, err.Error(), hintOf(reachable(err))
		return []doctor.Finding{name, there}, nil
	}
	there.Found = fmt.Sprintf("it answers, and says %q (portcullis status says more)", health.State)
	return []doctor.Finding{name, there, doctor.ClockSkew(time.Now(), clock)}, nil
}

func writeFindings(out io.Writer, findings []doctor.Finding) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CHECK\tRESULT\tFOUND\tWANTED")
	for _, f := range findings {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Check, f.Result, f.Found, f.Wanted)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range findings {
		if f.Get == "" {
			continue
		}
		if _, err := fmt.Fprintf(out, "\n%s (%s): %s\n", f.Check, f.Result, f.Get); err != nil {
			return err
		}
	}
	return nil
}

// diagnosis is what the findings come to, as an error.
func diagnosis(findings []doctor.Finding) error {
	worst := doctor.Worst(findings)
	var names []string
	for _, f := range findings {
		if f.Result == worst {
			names = append(names, f.Check)
		}
	}
	switch worst {
	case doctor.OK:
		return nil
	case doctor.Missing:
		return &problem{fmt.Errorf("not as it must be: %s", strings.Join(names, ", ")), exitNo, "below the table it says how to get each"}
	default:
		return &problem{fmt.Errorf("could not be looked at: %s", strings.Join(names, ", ")), exitFailed, "below the table it says what it takes"}
	}
}
