package main

import (
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"
)

// row is one check: a real connection, or a log line that one left.
type row struct {
	check, family, want, saw string
	ok                       bool
}

type table []row

func (t *table) add(check, family, want, saw string, ok bool) {
	*t = append(*t, row{check, family, want, saw, ok})
}

// print writes the table; the error says how many checks failed.
func (t table) print(took time.Duration) error {
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
