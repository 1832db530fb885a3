// Package cli is the command portcullis: what a workload owner and a data owner do from their own machine.
//
// A workload owner generates (YAML in, injected YAML and manifest out), sets the manifest at the Coordinator and signs its
// changes. A data owner verifies. Nobody here trusts the Coordinator's word: before a manifest is handed over and before a
// CA certificate is written to disk, its evidence was checked against a manifest that the caller already holds.
//
// Results go to standard output, everything else to standard error. An error is one line of cause and, where something can
// be done about it, one line of hint; exit codes are 0 done, 1 failed, 2 usage or malformed input, 3 a check was made and
// the answer is no.
package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis"
)

// Version is this release's. It names the images that generate injects.
const Version = portcullis.Version

// Streams are where a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Run runs the command line args.
func Run(ctx context.Context, args []string, streams Streams) error {
	root := newRoot(streams)
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

func newRoot(streams Streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "portcullis",
		Short: "A confidential service mesh for podVMs",
		Long: `Portcullis lets nothing into a confidential pod but mutually authenticated TLS between attested pods.

Exit codes: 0 done, 1 failed, 2 usage or malformed input, 3 a check was made and the answer is no.`,
		Example: `  portcullis generate --genpolicy genpolicy --reference-values values.json shop.yaml
  kubectl apply -f shop.yaml
  portcullis set -c coordinator.example.com
  portcullis verify -c coordinator.example.com`,
		Args:              arguments(cobra.NoArgs),
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
	}
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageOf(cmd, err) })
	root.AddCommand(newGenerate(), newLint(), newSet(), newVerify(), newSign(), newKeygen(), newRecover(),
		newAttest(), newInspect(), newMeasure(), newCoordinatorYAML(), newAudit(), newVersion())
	return root
}

func newVersion() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  portcullis version --json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]string{"version": Version})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), Version)
			return err
		},
	}
	flagJSON(cmd, &asJSON)
	return cmd
}

// arguments makes a wrong number of arguments a usage error.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageOf(cmd, err)
		}
		return nil
	}
}

func flagJSON(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, "json", false, "write the result as JSON")
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// progress writes what takes long to standard error, for people: nothing unless that is a terminal.
func progress(cmd *cobra.Command, format string, args ...any) {
	f, ok := cmd.ErrOrStderr().(*os.File)
	if !ok {
		return
	}
	if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprintf(f, format+"\n", args...)
	}
}

// problem is an error with an exit code and advice.
type problem struct {
	err  error
	code int
	hint string
}

func (p *problem) Error() string { return p.err.Error() }
func (p *problem) Unwrap() error { return p.err }
func (p *problem) ExitCode() int { return p.code }
func (p *problem) Hint() string  { return p.hint }

const (
	exitFailed = 1
	exitUsage  = 2
	exitNo     = 3
)

func usageOf(cmd *cobra.Command, err error) error {
	return &problem{err, exitUsage, fmt.Sprintf("see %s --help", cmd.CommandPath())}
}

func malformed(hint, format string, args ...any) error {
	return &problem{fmt.Errorf(format, args...), exitUsage, hint}
}
