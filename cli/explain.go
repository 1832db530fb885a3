package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/generate"
)

func newExplain() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain [flags] [CODE]",
		Short: "Explain a code of an error or a warning",
		Long: `Explain says what a code in a message of generate or lint is about: why it matters, what to do, and whether it can be accepted.
Without a code it lists all.`,
		Example: `  portcullis explain PC1302
  portcullis explain`,
		Args: arguments(cobra.MaximumNArgs(1)),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var codes []string
			for _, e := range generate.Explanations() {
				codes = append(codes, string(e.Code)+"\t"+e.Title)
			}
			return codes, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listCodes(cmd, asJSON)
			}
			e, ok := generate.Explain(args[0])
			if !ok {
				return malformed("portcullis explain lists them all", "there is no code %q", args[0])
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), codeReportOf(e))
			}
			text := fmt.Sprintf("%s: %s (%s)\n\n%s\n\nWhat to do: %s\n", e.Code, e.Title, e.Kind(), wrap(e.Why), wrap(e.Do))
			if e.Example != "" {
				text += "\n    " + strings.ReplaceAll(e.Example, "\n", "\n    ") + "\n"
			}
			_, err := fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	flagJSON(cmd, &asJSON)
	return cmd
}

func listCodes(cmd *cobra.Command, asJSON bool) error {
	var all []codeReport
	for _, e := range generate.Explanations() {
		all = append(all, codeReportOf(e))
	}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), all)
	}
	for _, c := range all {
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s  %-7s  %s\n", c.Code, c.Level, c.Title); err != nil {
			return err
		}
	}
	return nil
}

type codeReport struct {
	Code       string `json:"code"`
	Level      string `json:"level"`
	Acceptable bool   `json:"acceptable"`
	Title      string `json:"title"`
	Why        string `json:"why"`
	Do         string `json:"do"`
	Example    string `json:"example,omitempty"`
}

func codeReportOf(e generate.Explanation) codeReport {
	level := "error"
	if e.Warning {
		level = "warning"
	}
	return codeReport{string(e.Code), level, e.Acceptable, e.Title, e.Why, e.Do, e.Example}
}

// wrap breaks a paragraph into lines for a terminal.
func wrap(text string) string {
	const width = 88
	var b strings.Builder
	column := 0
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case column+1+len(word) > width:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}
