// Command ca measures what a certificate costs an authority: the Coordinator, which verifies evidence for each, beside
// step-ca and the SPIRE server, which see none. All answer on loopback on the same machine and take turns in each round. See
// docs/performance.md for figures.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const help = `ca measures certificates per second, and the authority's CPU for each.

  go run ./tests/bench/ca --peers DIR [--rounds N] [--certificates N]

The folder of peers holds step-ca and spire-server; make bench-ca builds them.

Each certificate is for a key of its own. What callers prepare (key, request, token or evidence) they prepare before the clock runs,
and what they get they check after it stopped. Callers and authority share the processors, so compare the
authority's CPU per certificate first, and rates second.

`

// concurrency is how many requests are under way at a time.
const concurrency = 8

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	run := measure
	args := os.Args[1:]
	if len(args) > 0 && args[0] == serveWord {
		run, args = serve, args[1:]
	}
	if err := run(ctx, args); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "ca: %v\n", err)
		os.Exit(1)
	}
}

// authority is something that issues certificates.
type authority struct {
	name string
	// start starts it in a folder of its own. The process is ready when ready says so.
	start func(dir string) (*exec.Cmd, error)
	ready func() error
	// turn makes the stages that lead to n certificates.
	turn func(n int) []stage
}

// stage is a step on the way to a certificate, done for all of a turn's certificates before the next one begins.
type stage struct {
	do func(ctx context.Context, i int) error
	// measured is time and CPU of the authority. The rest is the caller's own work.
	measured bool
}

// running is an authority's process.
type running struct {
	*authority
	cmd    *exec.Cmd
	turns  []turn
	before int64 // resident memory after the start, in octets
}

// turn is what some certificates cost.
type turn struct {
	Certificates int
	Seconds, CPU float64
	Latencies    []time.Duration `json:"-"` // of the last stage that is measured: the certificate's own request
	P50, P99     time.Duration
	Resident     int64
}

func measure(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("ca", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), help); flags.PrintDefaults() }
	peers := flags.String("peers", "", "`folder` with step-ca and spire-server; without it the Coordinator alone is measured")
	rounds := flags.Int("rounds", 5, "`number` of turns that each authority gets")
	certificates := flags.Int("certificates", 1500, "`number` of certificates in a turn")
	profile := flags.String("cpuprofile", "", "`file` for a profile of the Coordinator on SEV-SNP")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *rounds < 1 || *certificates < concurrency {
		return fmt.Errorf("want flags only, at least 1 round and %d certificates", concurrency)
	}
	dir, err := os.MkdirTemp("", "portcullis-ca-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	all, err := coordinators(*profile)
	if err != nil {
		return err
	}
	if *peers != "" {
		others, err := peerAuthorities(*peers)
		if err != nil {
			return err
		}
		all = append(all, others...)
	}
	var authorities []*running
	for i, a := range all {
		r := &running{authority: a}
		if err := r.run(ctx, filepath.Join(dir, fmt.Sprint(i))); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		defer func() { err = errors.Join(err, r.stop()) }()
		authorities = append(authorities, r)
	}
	progress := func(format string, args ...any) {
		if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			fmt.Fprintf(os.Stderr, "\r%-70s\r"+format, append([]any{""}, args...)...)
		}
	}
	others := watchMachine()
	for round := range *rounds {
		for i := range authorities {
			// Each begins a round as often as the others: who comes first finds another machine.
			r := authorities[(i+round)%len(authorities)]
			progress("round %d of %d: %s", round+1, *rounds, r.name)
			t, err := r.take(ctx, *certificates)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			r.turns = append(r.turns, *t)
			others.look()
		}
	}
	progress("")
	return report(os.Stdout, authorities, others)
}

// run starts the authority and warms it up.
func (r *running) run(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	cmd, err := r.start(dir)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	r.cmd = cmd
	deadline := time.Now().Add(time.Minute)
	for {
		err := r.ready()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			return errors.Join(fmt.Errorf("it is not ready: %w\n%s", err, text), r.stop())
		}
		time.Sleep(50 * time.Millisecond)
	}
	if r.before, err = resident(cmd.Process.Pid); err != nil {
		return errors.Join(err, r.stop())
	}
	if _, err := r.take(ctx, 200); err != nil {
		text, _ := os.ReadFile(log.Name())
		return errors.Join(fmt.Errorf("warm up: %w\n%.2000s", err, text), r.stop())
	}
	return nil
}

func (r *running) stop() error {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	killed := time.AfterFunc(15*time.Second, func() { _ = r.cmd.Process.Kill() })
	defer killed.Stop()
	_ = r.cmd.Wait() // how it ends is not measured
	return nil
}

// take lets the authority issue n certificates.
func (r *running) take(ctx context.Context, n int) (*turn, error) {
	t := &turn{Certificates: n}
	pid := r.cmd.Process.Pid
	for _, s := range r.turn(n) {
		cpu, err := cpuTime(pid)
		if err != nil {
			return nil, err
		}
		latencies := make([]time.Duration, n)
		begin := time.Now()
		if err := each(n, func(i int) error {
			begin := time.Now()
			err := s.do(ctx, i)
			latencies[i] = time.Since(begin)
			return err
		}); err != nil {
			return nil, err
		}
		took := time.Since(begin)
		after, err := cpuTime(pid)
		if err != nil {
			return nil, err
		}
		if s.measured {
			t.Seconds += took.Seconds()
			t.CPU += (after - cpu).Seconds()
			t.Latencies = latencies
		}
	}
	slices.Sort(t.Latencies)
	t.P50, t.P99 = t.Latencies[n/2], t.Latencies[n*99/100]
	var err error
	t.Resident, err = resident(pid)
	return t, err
}

// each calls do for 0 to n-1, so many at a time, until one fails.
func each(n int, do func(i int) error) error {
	var (
		next   atomic.Int64
		failed atomic.Pointer[error]
		wg     sync.WaitGroup
	)
	for range concurrency {
		wg.Go(func() {
			for failed.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := do(i); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}
