package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// isTerminal says whether people read w as it is written.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// coloured says whether w shows colours, and its reader wants them (no-color.org).
func coloured(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}

// The colours, as SGR sequences (ECMA-48). Nothing is said by colour alone.
const (
	red     = "\x1b[31m"
	green   = "\x1b[32m"
	cyan    = "\x1b[36m"
	bold    = "\x1b[1m"
	noStyle = "\x1b[0m"
)

// progress writes what takes long to standard error, for people: nothing unless that is a terminal, or with --quiet.
func progress(cmd *cobra.Command, format string, args ...any) {
	if quiet, err := cmd.Flags().GetBool(flagQuiet); err == nil && quiet {
		return
	}
	if w := cmd.ErrOrStderr(); isTerminal(w) {
		fmt.Fprintf(w, format+"\n", args...)
	}
}

const flagQuiet = "quiet"
