// Package table is what a demonstration ends with: what was expected of each check, and what was seen.
package table

import (
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"
)

// row is one check.
type row struct {
	check, family, want, saw string
	ok                       bool
}

// Table is the checks that were made, in their order.
type Table []row

// Add notes a check: what it is, over which address family, what was expected, what was seen, and whether that is the same.
func (t *Table) Add(check, family, want, saw string, ok bool) {
	*t = append(*t, row{check, family, want, saw, ok})
}

// Print writes the table and how long it all took. The error says how many checks failed.
func (t Table) Print(took time.Duration) error {
	failed := 0
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\n\tcheck\tover\texpected\tseen\n")
	for _, r := range t {
		verdict := "ok"
		if !r.ok {
			verdict = "FAILED"
			failed++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", verdict, r.check, r.family, r.want, r.saw)
	}
	w.Flush()
	fmt.Printf("\n%d passed, %d failed in %.1f s\n", len(t)-failed, failed, took.Seconds())
	if failed > 0 {
		return fmt.Errorf("%d of %d checks failed", failed, len(t))
	}
	if len(t) == 0 {
		return errors.New("no check was made")
	}
	return nil
}
