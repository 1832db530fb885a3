package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/tests/netlab"
)

// An experiment measures some figures of one variant.
type experiment struct {
	name string
	run  func(*bench, *variant) (figures, error)
	// plain is for experiments that make sense without proxies.
	plain bool
	// once is for experiments that need a long turn. The others have several short ones in a round.
	once bool
}

// figures are by the keys of rows.
type figures map[string]float64

// experiments are in the order in which they run: what needs fresh proxies is first.
var experiments = []experiment{
	{name: "idle", run: idle, once: true},
	{name: "connections", run: connections, plain: true},
	{name: "first-byte", run: firstByte, plain: true},
	{name: "requests", run: requests, plain: true},
	{name: "bulk-1", run: bulk(1), plain: true},
	{name: "bulk-4", run: bulk(4), plain: true},
	{name: "handshakes", run: handshakes, once: true},
	{name: "handshakes-answer", run: handshakesAnswered},
}

func experimentNames() string {
	var names []string
	for _, e := range experiments {
		names = append(names, e.name)
	}
	return strings.Join(names, ", ")
}

// bench is everything that one run has.
type bench struct {
	settings
	variants []*variant
	samples  []sample
}

// A sample is what one experiment saw in one round.
type sample struct {
	Round      int
	Turn       int
	Variant    string
	Experiment string
	Figures    figures
	// Others is the share of the machine that processes outside the lab had meanwhile, and the kernel for nobody.
	Others float64
}

func newBench(s settings, variants []*variant) (*bench, error) {
	lab, err := netlab.New()
	if err != nil {
		return nil, err
	}
	dns, err := lab.ServeDNS()
	if err != nil {
		return nil, err
	}
	b := &bench{settings: s, variants: variants}
	for _, v := range variants {
		if err := v.start(lab, dns); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// measure runs all rounds. In each, all proxies start anew, and in each experiment all variants take their turns, so that
// what disturbs one disturbs all.
func (b *bench) measure(ctx context.Context) error {
	for round := range b.rounds {
		progress("round %d of %d", round+1, b.rounds)
		if err := b.round(ctx, round); err != nil {
			return err
		}
	}
	progress("")
	return nil
}

func (b *bench) round(ctx context.Context, round int) error {
	turns := append(b.variants[round%len(b.variants):len(b.variants):len(b.variants)], b.variants[:round%len(b.variants)]...)
	for _, v := range turns {
		if err := v.up(ctx); err != nil {
			return err
		}
		if v.plain {
			continue
		}
		if err := b.note(round, 0, v, "start", func() (figures, error) { return start(v) }); err != nil {
			return err
		}
	}
	for _, v := range turns { // whatever the first connections cost is not what is asked for
		if _, err := v.client.call(anyCPU, "--kind=connections", "--target="+v.target(portAnswer), "--parallel=2", "--for=200ms"); err != nil {
			return err
		}
	}
	for _, e := range experiments {
		if !b.only.MatchString(e.name) {
			continue
		}
		for turn := range b.turns {
			for _, v := range turns {
				if v.plain && !e.plain || e.once && turn > 0 {
					continue
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := b.note(round, turn, v, e.name, func() (figures, error) { return e.run(b, v) }); err != nil {
					return err
				}
			}
			turns = append(turns[1:len(turns):len(turns)], turns[0])
		}
	}
	for _, v := range turns {
		if err := v.down(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) note(round, turn int, v *variant, name string, run func() (figures, error)) error {
	before, err := takeMachine()
	if err != nil {
		return err
	}
	f, err := run()
	if err != nil {
		return fmt.Errorf("%s of %s: %w", name, v.name, err)
	}
	after, err := takeMachine()
	if err != nil {
		return err
	}
	b.samples = append(b.samples, sample{
		Round: round, Turn: turn, Variant: v.name, Experiment: name, Figures: f, Others: after.others(before),
	})
	return nil
}

// profile lets perf watch the proxies of some pods of v, if that is asked for.
func (b *bench) profile(v *variant, name string, pods ...*pod) (stop func() error, err error) {
	var pids []string
	for _, p := range pods {
		for _, pid := range p.processes() {
			pids = append(pids, strconv.Itoa(pid))
		}
	}
	if b.perf == "" || len(pids) == 0 {
		return func() error { return nil }, nil
	}
	file := filepath.Join(b.perf, strings.Map(func(r rune) rune {
		if strings.ContainsRune(" ,/", r) {
			return '-'
		}
		return r
	}, v.name+"."+name)+".perf")
	cmd := exec.Command("perf", "record", "--quiet", "--event", "cpu-clock", "--freq", "1999", "-g", "--output", file,
		"--pid", strings.Join(pids, ","))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			return err
		}
		err := cmd.Wait()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGINT {
			return nil
		}
		if err != nil {
			return fmt.Errorf("perf: %w: %s", err, stderr.String())
		}
		return nil
	}, nil
}

const anyCPU = -1

// start tells of proxies that are ready and have done nothing.
func start(v *variant) (figures, error) {
	f := figures{"ready": (v.client.readyTook + v.server.readyTook).Seconds() * 1e3 / 2}
	for _, p := range []*pod{v.client, v.server} {
		for _, pid := range p.processes() {
			m, err := memoryOf(pid)
			if err != nil {
				return nil, err
			}
			f["anonymous"] += m.anonymous / 1024 / 2
			f["resident"] += m.resident / 1024 / 2
			if pid == p.envoy {
				f["envoy-anonymous"] += m.anonymous / 1024 / 2
			}
		}
	}
	return f, nil
}

// idle tells what a connection costs that does nothing.
func idle(b *bench, v *variant) (f figures, err error) {
	before, err := envoyMemory(v)
	if err != nil {
		return nil, err
	}
	cmd := v.client.Command(self, roleExec, strconv.Itoa(anyCPU), self, roleCall,
		"--kind=idle", "--target="+v.target(portAnswer), "--parallel="+strconv.Itoa(b.connections))
	end, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var held result
	err = held.decode(out)
	if err == nil {
		var after [2]float64
		if after, err = envoyMemory(v); err == nil {
			f = figures{
				"idle-client": (after[0] - before[0]) / float64(held.Count),
				"idle-server": (after[1] - before[1]) / float64(held.Count),
			}
		}
	}
	end.Close()
	return f, errors.Join(err, cmd.Wait())
}

// envoyMemory is what the Envoys of the client and of the server hold, in KiB.
func envoyMemory(v *variant) (kib [2]float64, err error) {
	for i, p := range []*pod{v.client, v.server} {
		m, err := memoryOf(p.envoy)
		if err != nil {
			return kib, err
		}
		kib[i] = m.anonymous
	}
	return kib, nil
}

// connections tells what a connection costs that is made for one request.
func connections(b *bench, v *variant) (figures, error) {
	r, used, err := b.load(v, "connections", portAnswer, 16, b.window)
	if err != nil {
		return nil, err
	}
	f := figures{"connections": float64(r.Count) / r.Seconds}
	used.into(f, "connection", r.Count)
	return f, nil
}

func firstByte(b *bench, v *variant) (figures, error) {
	r, _, err := b.load(v, "connections", portAnswer, 1, b.window)
	if err != nil {
		return nil, err
	}
	return figures{"first-byte": r.P50us, "first-byte-p99": r.P99us}, nil
}

func requests(b *bench, v *variant) (figures, error) {
	r, used, err := b.load(v, "requests", portAnswer, 16, b.window)
	if err != nil {
		return nil, err
	}
	f := figures{"requests": float64(r.Count) / r.Seconds, "request-p50": r.P50us, "request-p99": r.P99us}
	used.into(f, "request", r.Count)
	return f, nil
}

func bulk(streams int) func(*bench, *variant) (figures, error) {
	return func(b *bench, v *variant) (figures, error) {
		r, used, err := b.load(v, "stream", portSink, streams, b.window)
		if err != nil {
			return nil, err
		}
		f := figures{fmt.Sprintf("bulk-%d", streams): float64(r.Bytes) * 8 / 1e9 / r.Seconds}
		if !v.plain {
			f[fmt.Sprintf("gigabyte-%d", streams)] = used.total() / (float64(r.Bytes) / 1e9)
		}
		return f, nil
	}
}

// load runs a caller in the client's pod, and tells what the proxies used meanwhile.
func (b *bench) load(v *variant, kind string, port uint16, parallel int, d time.Duration) (result, usage, error) {
	stop, err := b.profile(v, fmt.Sprintf("%s-%d", kind, parallel), v.client, v.server)
	if err != nil {
		return result{}, usage{}, err
	}
	before, err := v.usage()
	if err != nil {
		return result{}, usage{}, err
	}
	r, err := v.client.call(anyCPU,
		"--kind="+kind, "--target="+v.target(port), "--parallel="+strconv.Itoa(parallel), "--for="+d.String())
	if err := errors.Join(err, stop()); err != nil {
		return r, usage{}, err
	}
	after, err := v.usage()
	if err == nil {
		err = r.believable()
	}
	return r, after.since(before), err
}

// believable refuses a result of which some part failed: its figures would be of something else.
func (r *result) believable() error {
	if r.Failed > 0 || r.Count == 0 && r.Bytes == 0 {
		return fmt.Errorf("%d failed, %d did not: %s", r.Failed, r.Count, r.Error)
	}
	return nil
}

// handshakes tells how many full handshakes a server makes of a second of its processor: an Envoy of its own on the first
// processor, its callers on the second, no application.
func handshakes(b *bench, v *variant) (figures, error) {
	p := v.alone
	c := v.envoyAlone(p)
	if err := p.startProxy(context.Background(), 0, c, envoyLive); err != nil {
		return nil, err
	}
	defer p.stopProxy()
	target := fmt.Sprintf("%s:%d", p.IPv4, portAnswer)
	if _, err := b.shake(v, "handshakes", target, 200*time.Millisecond); err != nil {
		return nil, err
	}
	stop, err := b.profile(v, "handshakes", p)
	if err != nil {
		return nil, err
	}
	before, err := cpuOf(p.envoy)
	if err != nil {
		return nil, err
	}
	r, err := b.shake(v, "handshakes", target, time.Duration(b.turns)*b.window)
	if err := errors.Join(err, stop()); err != nil {
		return nil, err
	}
	after, err := cpuOf(p.envoy)
	if err != nil {
		return nil, err
	}
	return figures{"handshakes": float64(r.Count) / (after - before)}, nil
}

// handshakesAnswered is the same as the pod really does it, with the connection to the application and one answer.
func handshakesAnswered(b *bench, v *variant) (figures, error) {
	before, err := v.server.usage()
	if err != nil {
		return nil, err
	}
	r, err := b.shake(v, "handshakes-answer", fmt.Sprintf("%s:%d", v.server.IPv4, portAnswer), b.window)
	if err != nil {
		return nil, err
	}
	after, err := v.server.usage()
	if err != nil {
		return nil, err
	}
	return figures{"handshakes-answer": float64(r.Count) / (after - before)}, nil
}

func (b *bench) shake(v *variant, kind, target string, d time.Duration) (result, error) {
	r, err := v.client.call(1, "--kind="+kind, "--target="+target, "--parallel=8", "--for="+d.String(),
		"--identity="+callerIdentity, "--tls12="+strconv.FormatBool(v.callerTLS12))
	if err != nil {
		return r, err
	}
	return r, r.believable()
}

// usage is what the proxies of a client and of a server have used, in seconds of a processor.
type usage struct{ client, server, kernel float64 }

func (v *variant) usage() (u usage, err error) {
	if u.client, err = v.client.usage(); err != nil {
		return u, err
	}
	if u.server, err = v.server.usage(); err != nil {
		return u, err
	}
	for _, p := range []*pod{v.client, v.server} {
		for _, pid := range p.processes() {
			kernel, err := kernelShareOf(pid)
			if err != nil {
				return u, err
			}
			u.kernel += kernel
		}
	}
	return u, nil
}

func (u usage) total() float64 { return u.client + u.server }

func (u usage) since(before usage) usage {
	return usage{u.client - before.client, u.server - before.server, u.kernel - before.kernel}
}

// into tells what one of count cost, in microseconds, if there were proxies.
func (u usage) into(f figures, what string, count int) {
	if u.total() == 0 {
		return
	}
	us := 1e6 / float64(count)
	f["cpu-"+what], f["cpu-"+what+"-client"], f["cpu-"+what+"-server"] = u.total()*us, u.client*us, u.server*us
	f["kernel-"+what] = u.kernel / u.total()
}

// processes are a pod's proxy and its Envoy.
func (p *pod) processes() []int {
	switch {
	case p.proxy == 0:
		return nil
	case p.proxy == p.envoy:
		return []int{p.envoy}
	}
	return []int{p.proxy, p.envoy}
}

func (p *pod) usage() (sum float64, err error) {
	for _, pid := range p.processes() {
		s, err := cpuOf(pid)
		if err != nil {
			return 0, err
		}
		sum += s
	}
	return sum, nil
}

// cpuOf is what a process has used so far, all of its threads, those that ended too; by the scheduler's own clock, which is
// finer than the ticks of /proc.
func cpuOf(pid int) (float64, error) {
	const scheduled = 2 // CPUCLOCK_SCHED: MAKE_PROCESS_CPUCLOCK of linux/posix-timers.h
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &t); err != nil {
		return 0, fmt.Errorf("read the processor clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()).Seconds(), nil
}

// ticks of /proc are hundredths of a second, whatever the kernel's own are.
const ticks = 100

// statOf are the fields of /proc/PID/stat from the third, which is the state, on.
func statOf(pid string) ([]string, error) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return nil, err
	}
	text := string(b)
	fields := strings.Fields(text[strings.LastIndex(text, ")")+1:])
	if len(fields) < 13 {
		return nil, fmt.Errorf("/proc/%s/stat: %q", pid, text)
	}
	return fields, nil
}

// kernelShareOf is the part of cpuOf that was in the kernel, in ticks.
func kernelShareOf(pid int) (float64, error) {
	fields, err := statOf(strconv.Itoa(pid))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseFloat(fields[12], 64) // stime
	return n / ticks, err
}

// memory is in KiB.
type memory struct{ anonymous, resident float64 }

func memoryOf(pid int) (m memory, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		into := map[string]*float64{"RssAnon": &m.anonymous, "VmRSS": &m.resident}[name]
		if into == nil {
			continue
		}
		if *into, err = strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64); err != nil {
			return m, err
		}
	}
	return m, lines.Err()
}

// machine is what all processors did until now, in seconds, and how much of that was the lab's.
type machine struct{ busy, all, lab float64 }

func takeMachine() (m machine, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return m, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, field := range strings.Fields(line)[1:9] { // user nice system idle iowait irq softirq steal
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return m, err
		}
		m.all += n / ticks
		if i != 3 && i != 4 {
			m.busy += n / ticks
		}
	}
	// The lab is a PID namespace, so every process that is seen is of the lab. Those that ended were waited for.
	var ended unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &ended); err != nil {
		return m, err
	}
	m.lab = seconds(ended.Utime) + seconds(ended.Stime)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return m, err
	}
	for _, dir := range dirs {
		fields, err := statOf(filepath.Base(dir))
		if err != nil {
			continue // gone meanwhile, and in RUSAGE_CHILDREN the next time
		}
		for _, field := range fields[11:13] {
			n, err := strconv.ParseFloat(field, 64)
			if err != nil {
				return m, err
			}
			m.lab += n / ticks
		}
	}
	return m, nil
}

// others is the share of the machine's time since before that was neither idle nor the lab's.
func (m machine) others(before machine) float64 {
	if m.all == before.all {
		return 0
	}
	return max(0, (m.busy-before.busy-(m.lab-before.lab))/(m.all-before.all))
}

func progress(format string, args ...any) {
	if s, err := os.Stderr.Stat(); err != nil || s.Mode()&os.ModeCharDevice == 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "\r\033[K"+format, args...)
}
