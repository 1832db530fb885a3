package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the CPU time of a process and all of its threads, those that ended included, to the nanosecond: the clock
// that clock_getcpuclockid(3) names.
func cpuTime(pid int) (time.Duration, error) {
	const cpuclockSched = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|cpuclockSched), &t); err != nil {
		return 0, fmt.Errorf("read the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// resident is a process' resident memory in octets.
func resident(pid int) (int64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no resident memory", pid)
}

// machine watches what others do to the machine meanwhile.
type machine struct {
	busy, own float64 // seconds, at the last look
	when      time.Time
	shares    []float64
}

func watchMachine() *machine {
	m := &machine{}
	m.look()
	m.shares = nil
	return m
}

// look notes the share of the machine that neither this process nor the authorities had since the last look.
func (m *machine) look() {
	busy, own := busySeconds(), ownSeconds()
	now := time.Now()
	if span := now.Sub(m.when).Seconds() * float64(runtime.NumCPU()); span > 0 && !m.when.IsZero() {
		m.shares = append(m.shares, max(0, (busy-m.busy)-(own-m.own))/span)
	}
	m.busy, m.own, m.when = busy, own, now
}

func busySeconds() float64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	var busy int64
	fields := strings.Fields(strings.SplitN(string(text), "\n", 2)[0])
	for i, f := range fields[1:] {
		if n, err := strconv.ParseInt(f, 10, 64); err == nil && i != 3 && i != 4 && i < 8 { // idle, iowait; guest counts twice
			busy += n
		}
	}
	return float64(busy) / 100
}

// ownSeconds is the CPU time of this process and of the processes that it started.
func ownSeconds() float64 {
	total, _ := cpuTime(os.Getpid())
	var children []byte
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		of, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		children = append(children, of...)
	}
	for _, child := range strings.Fields(string(children)) {
		if pid, err := strconv.Atoi(child); err == nil {
			cpu, _ := cpuTime(pid)
			total += cpu
		}
	}
	return total.Seconds()
}

func median[T int64 | float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func of[T any](turns []turn, what func(turn) T) (all []T) {
	for _, t := range turns {
		all = append(all, what(t))
	}
	return all
}

func rate(t turn) float64 { return float64(t.Certificates) / t.Seconds }
func cost(t turn) float64 { return t.CPU / float64(t.Certificates) }

// report prints medians. The ratios are medians of the rounds' own: whatever slows a round down slows all of it down.
func report(to io.Writer, all []*running, m *machine) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	last := all[len(all)-1]
	fmt.Fprintf(to, "Linux %s, %d processors, %s\n%d rounds of %d certificates, %d at a time; other work had %.0f %% of the machine (at most %.0f %%)\n\n",
		unix.ByteSliceToString(name.Release[:]), runtime.NumCPU(), processor(),
		len(last.turns), last.turns[0].Certificates, concurrency, 100*median(m.shares), 100*slices.Max(m.shares))
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "AUTHORITY\tCERTIFICATES\tSERVER CPU EACH\tRATE / LAST\tCPU / LAST\tP50\tP99\tRSS BEFORE\tRSS AFTER\n")
	for _, r := range all {
		var rates, costs []float64
		for i := range r.turns {
			rates = append(rates, rate(r.turns[i])/rate(last.turns[i]))
			costs = append(costs, cost(r.turns[i])/cost(last.turns[i]))
		}
		fmt.Fprintf(w, "%s\t%.0f /s\t%.2f ms\t%.2f\t%.2f\t%.1f ms\t%.1f ms\t%d MiB\t%d MiB\n", r.name,
			median(of(r.turns, rate)), 1e3*median(of(r.turns, cost)), median(rates), median(costs),
			median(of(r.turns, func(t turn) float64 { return t.P50.Seconds() * 1e3 })),
			median(of(r.turns, func(t turn) float64 { return t.P99.Seconds() * 1e3 })),
			r.before>>20, r.turns[len(r.turns)-1].Resident>>20)
	}
	return w.Flush()
}

func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
