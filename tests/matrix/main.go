// Command matrix shows that the gate stays closed: a table of everything that may go wrong in a podVM and everything that a
// hostile network may try, over IPv4 and IPv6, each in a pretended podVM of its own with the real podvm-guard, mesh proxy and
// Envoy. Every row also shows that the same traffic does pass without the guard.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"portcullis.dev/portcullis/tests/netlab"
)

const help = `matrix tries every row of the gate's table over IPv4 and IPv6, in pretended podVMs.

  matrix [flags]             print the table
  matrix --mutate [flags]    weaken the guard, one rule at a time, and want a row to notice each weakness

Flags:
  --run REGEXP       only the rows whose names match
  --list             print the rows and try nothing
  --markdown FILE    write the table as Markdown, too ("-" is standard output, in place of the table)
  --json FILE        write the results as JSON, too ("-" as above)
  --storm DURATION   how long the swap storm lasts (default 3s)
  --mutation REGEXP  with --mutate: only the mutations whose names match

It needs the binaries of ` + "`make build`" + ` beside itself, and Envoy ($PORTCULLIS_ENVOY, or where make fetches it to).
As an ordinary user it works in a user namespace; rows that need real root say so.

Exit codes:
  0  every row holds; with --mutate: every mutation was noticed, and every row was seen to fail
  1  a row failed, the lab did not work, or a mutation survived
  2  usage
`

func main() {
	if role() {
		return
	}
	// The mutant is built outside, where the Go tools find their caches.
	if slices.Contains(os.Args[1:], "--mutate") && os.Getenv(mutantDir) == "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		code := runMutant(ctx, os.Args[1:])
		stop()
		os.Exit(code)
	}
	netlab.Enter()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// stormDuration is how long the storms of the swap rows last.
var stormDuration = 3 * time.Second

func run(ctx context.Context, args []string) int {
	flags := flag.NewFlagSet("matrix", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	only := flags.String("run", "", "")
	list := flags.Bool("list", false, "")
	markdown := flags.String("markdown", "", "")
	jsonFile := flags.String("json", "", "")
	mutate := flags.Bool("mutate", false, "")
	onlyMutation := flags.String("mutation", "", "")
	flags.DurationVar(&stormDuration, "storm", stormDuration, "")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(help)
		return 0
	}
	rowPattern, rowErr := regexp.Compile(*only)
	mutationPattern, mutationErr := regexp.Compile(*onlyMutation)
	if flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := errors.Join(err, rowErr, mutationErr); err != nil {
		fmt.Fprintf(os.Stderr, "matrix: %v (matrix --help explains)\n", err)
		return 2
	}
	var rows []Row
	for _, r := range table() {
		if rowPattern.MatchString(r.Name) {
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		fmt.Fprintf(os.Stderr, "matrix: no row matches %q\n", *only)
		return 2
	}
	if *list {
		printList(os.Stdout, rows)
		return 0
	}
	self, err := os.Executable()
	if err != nil {
		return failed(err)
	}
	programs, err := findPrograms(filepath.Dir(self))
	if err != nil {
		return failed(err)
	}
	if *mutate {
		return runMutations(ctx, programs, rows, mutationPattern)
	}
	began := time.Now()
	results := runAll(ctx, programs, rows, nil, progress(len(rows)*2))
	toStdout := false
	for _, o := range []struct {
		path  string
		write func(io.Writer) error
	}{
		{*markdown, func(w io.Writer) error { printMarkdown(w, results); return nil }},
		{*jsonFile, func(w io.Writer) error { return printJSON(w, results) }},
	} {
		toStdout = toStdout || o.path == "-"
		if err := netlab.WriteTo(o.path, o.write); err != nil {
			return failed(err)
		}
	}
	human := io.Writer(os.Stdout)
	if toStdout {
		human = os.Stderr
	}
	printTable(human, results, time.Since(began))
	for _, r := range results {
		if r.Verdict != OK && r.Verdict != Skipped {
			return 1
		}
	}
	return 0
}

func failed(err error) int {
	fmt.Fprintf(os.Stderr, "matrix: %v\n", err)
	return 1
}

// progress counts on a terminal, and is quiet elsewhere.
func progress(total int) func(Result) {
	if s, err := os.Stderr.Stat(); err != nil || s.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	n := 0
	return func(r Result) {
		n++
		fmt.Fprintf(os.Stderr, "\r\033[K%d/%d %s", n, total, r.Row.Name)
		if n == total {
			fmt.Fprint(os.Stderr, "\r\033[K")
		}
	}
}
