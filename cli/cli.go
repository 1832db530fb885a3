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
	return advise(root.ExecuteContext(ctx))
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
		Args:              commandsOnly,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
	}
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	root.PersistentFlags().BoolP(flagQuiet, "q", false, "say nothing about progress")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageOf(cmd, err) })
	root.AddCommand(newGenerate(), newLint(), newExplain(), newSet(), newVerify(), newSign(), newKeygen(), newRecover(),
		newAttest(), newInspect(), newMeasure(), newCoordinatorYAML(), newAudit(), newStatus(), newConnect(), newDoctor(), newVersion(), newMan())
	complete(root)
	speakAlike(root)
	return root
}

// speakAlike gives cobra's own commands the words of ours.
func speakAlike(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd("completion")
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Short = "Explain a command"
		case "completion":
			cmd.Short = "Print what a shell needs to complete commands, flags and files"
			cmd.Example = `  source <(portcullis completion bash)
  portcullis completion fish > ~/.config/fish/completions/portcullis.fish`
		}
	}
}

// commandsOnly are the arguments of a command that only has others below it.
func commandsOnly(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	return nil
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

func malformed(hint, format string, args ...any) error {
	return &problem{fmt.Errorf(format, args...), exitUsage, hint}
}
