// Command mesh measures what a pod pays for its mesh: CPU, memory and time, in two pods on one switch, with the real guard,
// mesh proxy and Envoy on both sides; beside no mesh at all, and beside what is common today: iptables, Envoy's defaults and
// a P-384 CA. See docs/performance.md for figures and for how to read them.
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
	"strings"
	"syscall"
	"time"

	"portcullis.dev/portcullis/tests/netlab"
)

const help = `mesh measures what a mesh costs, in rounds in which all variants take turns.

  meshbench [flags]

Flags:
  --rounds N           how many rounds (default 9: some eight minutes)
  --quick              3 short rounds, to see that it works; the figures are worth little
  --only REGEXP        only the experiments whose names match: ` + "EXPERIMENTS" + `
  --beside NAME=WORDS  one more variant: WORDS are a meshproxy program, relative to this one's folder or absolute, and
                       flags for it, such as "two workers=meshproxy --concurrency 2"; may be repeated
  --json FILE          write every figure as JSON, too ("-" is standard output, in place of the table)
  --svg FILE           write a plot
  --perf DIR           let perf watch the proxies, and leave a file for each experiment there; figures suffer

It needs the binaries of ` + "`make build`" + ` beside itself, and Envoy ($PORTCULLIS_ENVOY, or where make fetches it to).
Nothing here passes or fails: the goals in the table are goals. Use a machine that has nothing else to do.
`

func main() {
	if role() {
		return
	}
	netlab.Enter()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	exitOn(err)
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "mesh: %v\n", err)
		os.Exit(1)
	}
}

// settings are what the command line says.
type settings struct {
	rounds      int
	turns       int           // in a round, of most experiments
	window      time.Duration // of a turn
	connections int           // idle ones
	perf        string        // a folder for profiles, if they are wanted
	only        *regexp.Regexp
	programs    programs
}

// programs are the real binaries, by absolute paths.
type programs struct{ podvmGuard, meshproxy, envoy string }

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("mesh", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	s := settings{turns: 4, window: 500 * time.Millisecond, connections: 1000}
	flags.IntVar(&s.rounds, "rounds", 9, "")
	quick := flags.Bool("quick", false, "")
	only := flags.String("only", "", "")
	jsonFile, svgFile := flags.String("json", "", ""), flags.String("svg", "", "")
	flags.StringVar(&s.perf, "perf", "", "")
	var beside []string
	flags.Func("beside", "", func(v string) error { beside = append(beside, v); return nil })
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(strings.Replace(help, "EXPERIMENTS", experimentNames(), 1))
		return nil
	}
	var patternErr error
	s.only, patternErr = regexp.Compile(*only)
	if flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := errors.Join(err, patternErr); err != nil {
		return fmt.Errorf("%w (--help explains)", err)
	}
	if *quick {
		s.rounds, s.turns, s.connections = min(s.rounds, 3), 1, 200
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if s.programs, err = findPrograms(filepath.Dir(self)); err != nil {
		return err
	}
	variants := []*variant{plaintext(), incumbent(s.programs), portcullis(s.programs)}
	for _, b := range beside {
		v, err := another(s.programs, filepath.Dir(self), b)
		if err != nil {
			return err
		}
		variants = append(variants, v)
	}
	b, err := newBench(s, variants)
	if err != nil {
		return err
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	human := io.Writer(os.Stdout)
	if *jsonFile == "-" {
		human = os.Stderr
	}
	rep := b.report()
	return errors.Join(
		rep.print(human),
		netlab.WriteTo(*jsonFile, rep.json),
		netlab.WriteTo(*svgFile, rep.svg),
	)
}

func findPrograms(dir string) (programs, error) {
	p := programs{filepath.Join(dir, "podvm-guard"), filepath.Join(dir, "meshproxy"), os.Getenv("PORTCULLIS_ENVOY")}
	if p.envoy == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return p, err
		}
		p.envoy = filepath.Join(cache, "portcullis/envoy-1.40.0/envoy")
	}
	var missing []error
	for _, path := range []string{p.podvmGuard, p.meshproxy, p.envoy} {
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, fmt.Errorf("%w (make build makes the binaries, make envoy fetches Envoy)", err))
		}
	}
	return p, errors.Join(missing...)
}

// another is our way with another program or other flags.
func another(p programs, dir, text string) (*variant, error) {
	name, command, _ := strings.Cut(text, "=")
	words := strings.Fields(command)
	if name == "" || len(words) == 0 {
		return nil, fmt.Errorf("--beside %q: want NAME=PROGRAM [FLAGS]", text)
	}
	if !filepath.IsAbs(words[0]) {
		words[0] = filepath.Join(dir, words[0])
	}
	if _, err := os.Stat(words[0]); err != nil {
		return nil, fmt.Errorf("--beside %q: %w", text, err)
	}
	p.meshproxy = words[0]
	v := portcullis(p, words[1:]...)
	v.name = name
	return v, nil
}
