package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// A row is a figure of the report.
type row struct {
	key, title, unit string
	format           string
	// goal is a ratio to the incumbent's figure, or, where absolute, a figure itself. Zero is no goal.
	goal     float64
	absolute bool
	// more is for figures of which more is better.
	more bool
}

// rows are the proxy's rows of the table of goals, and beside each what explains it.
var rows = []row{
	{key: "cpu-connection", title: "CPU per new connection, both sides", unit: "us", format: "%.0f", goal: 0.55},
	{key: "cpu-connection-client", title: "  of these, the client's proxy", unit: "us", format: "%.0f"},
	{key: "cpu-connection-server", title: "  of these, the server's proxy", unit: "us", format: "%.0f"},
	{key: "kernel-connection", title: "  of these, in the kernel", unit: "", format: "%.2f"},
	{key: "connections", title: "new connections, 16 callers", unit: "/s", format: "%.0f", goal: 1.6, more: true},
	{key: "handshakes", title: "full handshakes per CPU second", unit: "/s", format: "%.0f", goal: 2.3, more: true},
	{key: "handshakes-answer", title: "  with the application's answer", unit: "/s", format: "%.0f", more: true},
	{key: "cpu-request", title: "CPU per keep-alive request", unit: "us", format: "%.1f", goal: 0.85},
	{key: "kernel-request", title: "  of these, in the kernel", unit: "", format: "%.2f"},
	{key: "requests", title: "requests, 16 connections", unit: "/s", format: "%.0f", more: true},
	{key: "request-p50", title: "  request to answer, median", unit: "us", format: "%.0f"},
	{key: "bulk-1", title: "bulk, 1 stream", unit: "Gb/s", format: "%.2f", goal: 1.1, more: true},
	{key: "bulk-4", title: "bulk, 4 streams", unit: "Gb/s", format: "%.2f", goal: 1.1, more: true},
	{key: "gigabyte-1", title: "  CPU per GB, 1 stream", unit: "s", format: "%.2f"},
	{key: "gigabyte-4", title: "  CPU per GB, 4 streams", unit: "s", format: "%.2f"},
	{key: "first-byte", title: "connect to first byte, median", unit: "us", format: "%.0f", goal: 0.7},
	{key: "first-byte-p99", title: "  connect to first byte, 99 %", unit: "us", format: "%.0f"},
	{key: "anonymous", title: "anonymous memory, proxy and Envoy", unit: "MiB", format: "%.1f", goal: 25, absolute: true},
	{key: "envoy-anonymous", title: "  of these, Envoy", unit: "MiB", format: "%.1f"},
	{key: "resident", title: "  resident, with mapped files", unit: "MiB", format: "%.0f"},
	{key: "idle-client", title: "per idle connection, client's side", unit: "KiB", format: "%.1f"},
	{key: "idle-server", title: "per idle connection, server's side", unit: "KiB", format: "%.1f"},
	{key: "ready", title: "exec to ready", unit: "ms", format: "%.0f", goal: 150, absolute: true},
}

// report is what a run found out.
type report struct {
	When     time.Time
	Machine  string
	Rounds   int
	Turns    int
	Window   string
	Variants []string
	// Others is the median share of the machine that was not the lab's during the experiments, and the worst.
	Others, OthersMost float64
	Rows               []reportRow
	Samples            []sample
}

type reportRow struct {
	Key, Title, Unit string
	Goal             float64 `json:",omitempty"`
	GoalIsAbsolute   bool    `json:",omitempty"`
	MoreIsBetter     bool    `json:",omitempty"`
	Median           map[string]float64
	// Ratio is of a variant to the incumbent: the median of the turns' own ratios, and the quarters below and above. Beside
	// is the same to ours, of variants that were asked for.
	Ratio, Beside map[string]spread
	Verdict       string `json:",omitempty"`

	row row
}

type spread struct{ Median, Quarter, ThreeQuarters float64 }

func (b *bench) report() *report {
	r := &report{
		When: time.Now().UTC(), Machine: describeMachine(), Rounds: b.rounds, Turns: b.turns, Window: b.window.String(),
		Samples: b.samples,
	}
	for _, v := range b.variants {
		r.Variants = append(r.Variants, v.name)
	}
	var others []float64
	for _, s := range b.samples {
		others = append(others, s.Others)
	}
	r.Others, r.OthersMost = median(others), slices.Max(append(others, 0))
	reference, ours := r.Variants[1], r.Variants[2]
	for _, row := range rows {
		out := reportRow{
			Key: row.key, Title: row.title, Unit: row.unit, Goal: row.goal, GoalIsAbsolute: row.absolute, MoreIsBetter: row.more,
			Median: map[string]float64{}, Ratio: map[string]spread{}, Beside: map[string]spread{}, row: row,
		}
		for i, v := range r.Variants {
			if figures := slices.Collect(maps.Values(b.of(v, row.key))); len(figures) > 0 {
				out.Median[v] = median(figures)
			}
			if s, ok := b.compare(v, reference, row.key); ok {
				out.Ratio[v] = s
			}
			if s, ok := b.compare(v, ours, row.key); ok && i > 2 {
				out.Beside[v] = s
			}
		}
		if len(out.Median) == 0 {
			continue
		}
		out.Verdict = row.verdict(out.Median[ours], out.Ratio[ours].Median)
		r.Rows = append(r.Rows, out)
	}
	return r
}

// compare is a variant's figures over another's, turn by turn.
func (b *bench) compare(variant, other, key string) (spread, bool) {
	base := b.of(other, key)
	var ratios []float64
	for t, f := range b.of(variant, key) {
		if base[t] > 0 {
			ratios = append(ratios, f/base[t])
		}
	}
	if len(ratios) == 0 {
		return spread{}, false
	}
	return spread{quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75)}, true
}

// a turn is a round and a turn in it.
type turn struct{ round, turn int }

// of are a variant's figures by turn.
func (b *bench) of(variant, key string) map[turn]float64 {
	m := map[turn]float64{}
	for _, s := range b.samples {
		if f, ok := s.Figures[key]; ok && s.Variant == variant {
			m[turn{s.Round, s.Turn}] = f
		}
	}
	return m
}

func (r row) verdict(figure, ratio float64) string {
	if !r.absolute {
		figure = ratio
	}
	switch {
	case r.goal == 0:
		return ""
	case figure == 0:
		return "not measured"
	case r.more && figure >= r.goal || !r.more && figure <= r.goal:
		return "reached"
	}
	return "missed"
}

func (r row) goalText() string {
	switch {
	case r.goal == 0:
		return ""
	case r.absolute:
		return fmt.Sprintf("<= %g %s", r.goal, r.unit)
	case r.more:
		return fmt.Sprintf(">= %.2f", r.goal)
	}
	return fmt.Sprintf("<= %.2f", r.goal)
}

func median(v []float64) float64 { return quantile(v, 0.5) }

// quantile interpolates between neighbours.
func quantile(v []float64, share float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	at := share * float64(len(v)-1)
	i := int(at)
	j := min(i+1, len(v)-1)
	return v[i] + (at-float64(i))*(v[j]-v[i])
}

func (r *report) print(w io.Writer) error {
	fmt.Fprintf(w, "%s\n%s; %d rounds of %d turns of %s; other work had %.0f %% of the machine (at most %.0f %%)\n\n",
		r.Machine, r.When.Format("2006-01-02 15:04 UTC"), r.Rounds, r.Turns, r.Window, 100*r.Others, 100*r.OthersMost)
	for i, v := range r.Variants {
		fmt.Fprintf(w, "%s = %s\n", letter(i), v)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := []string{"WHAT", "UNIT"}
	for i := range r.Variants {
		head = append(head, letter(i))
	}
	head = append(head, "C / B", "25-75 %", "GOAL", "")
	for i := range r.Variants[3:] {
		head = append(head, letter(i+3)+" / C", "25-75 %")
	}
	fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, row := range r.Rows {
		cells := []string{row.Title, row.Unit}
		for _, v := range r.Variants {
			cell := "-"
			if f, ok := row.Median[v]; ok {
				cell = fmt.Sprintf(row.row.format, f)
			}
			cells = append(cells, cell)
		}
		cells = append(cells, row.Ratio[r.Variants[2]].columns()...)
		cells = append(cells, row.row.goalText(), row.Verdict)
		for _, v := range r.Variants[3:] {
			cells = append(cells, row.Beside[v].columns()...)
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(w, "\nFigures are medians of all turns. C / B is the median of the turns' own ratios, with their quarters. CPU is that of the\n"+
		"proxies alone.\n")
	return err
}

func (s spread) columns() []string {
	if s == (spread{}) {
		return []string{"-", ""}
	}
	return []string{fmt.Sprintf("%.2f", s.Median), fmt.Sprintf("%.2f-%.2f", s.Quarter, s.ThreeQuarters)}
}

func letter(i int) string { return string(rune('A' + i)) }

func (r *report) json(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// describeMachine is kernel, processors, memory.
func describeMachine() string {
	kernel, err := exec.Command("uname", "-r").Output()
	if err != nil {
		kernel = []byte("unknown kernel")
	}
	text := fmt.Sprintf("Linux %s, %d processors", strings.TrimSpace(string(kernel)), runtime.NumCPU())
	for file, fields := range map[string][2]string{"/proc/cpuinfo": {"model name", ""}, "/proc/meminfo": {"MemTotal", "kB"}} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(line, ":")
			value = strings.TrimSpace(value)
			if strings.TrimSpace(name) != fields[0] {
				continue
			}
			if kib, err := strconv.Atoi(strings.TrimSuffix(value, " kB")); err == nil {
				value = fmt.Sprintf("%d GiB", kib>>20)
			}
			text += ", " + value
			break
		}
	}
	return text
}
