package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usageOf makes an error that of the command line. Its hint names what may have been meant, or the help.
func usageOf(cmd *cobra.Command, err error) error {
	hint := fmt.Sprintf("see %s --help", cmd.CommandPath())
	if meant := meantFlag(cmd, err.Error()); meant != "" {
		hint = fmt.Sprintf("did you mean %s? %s", meant, hint)
	}
	return &problem{err, exitUsage, hint}
}

// unknownCommand is the error for a word that names no command below cmd.
func unknownCommand(cmd *cobra.Command, word string) error {
	hint := fmt.Sprintf("see %s --help", cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		hint = fmt.Sprintf("did you mean %s? %s", strings.Join(near, " or "), hint)
	}
	return &problem{fmt.Errorf("unknown command %q for %q", word, cmd.CommandPath()), exitUsage, hint}
}

// meantFlag finds the flag that a misspelt one is closest to. What pflag says of it is all that there is.
func meantFlag(cmd *cobra.Command, message string) string {
	word, ok := strings.CutPrefix(message, "unknown flag: --")
	if !ok {
		return ""
	}
	meant, nearest := "", len(word)/2 // at most half of it is wrong
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if d := distance(word, f.Name); d < nearest && !f.Hidden {
			meant, nearest = "--"+f.Name, d
		}
	})
	return meant
}

// distance is how many letters must be added, removed or replaced to make b of a (Levenshtein's).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := before
			if a[i] != b[j] {
				replaced++
			}
			before = row[j+1]
			row[j+1] = min(replaced, row[j]+1, before+1)
		}
	}
	return row[len(b)]
}
