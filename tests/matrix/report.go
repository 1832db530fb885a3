package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// line is a row with what became of it over both families.
type line struct {
	Row     Row
	Results []Result
}

func lines(results []Result) []line {
	var out []line
	for _, r := range results {
		if n := len(out); n > 0 && out[n-1].Row.Name == r.Row.Name {
			out[n-1].Results = append(out[n-1].Results, r)
			continue
		}
		out = append(out, line{r.Row, []Result{r}})
	}
	return out
}

func (l line) verdict(f Family) string {
	for _, r := range l.Results {
		if r.Family == f {
			return string(r.Verdict)
		}
	}
	return "-"
}

// printTable writes the table for people, and what went wrong below it.
func printTable(out io.Writer, results []Result, took time.Duration) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	group := ""
	for _, l := range lines(results) {
		if l.Row.Group != group {
			group = l.Row.Group
			fmt.Fprintf(w, "\n%s\tIPv4\tIPv6\tmust not happen\n", strings.ToUpper(group))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", l.Row.Name, l.verdict(IPv4), l.verdict(IPv6), l.Row.MustNot)
	}
	w.Flush()
	counts := map[Verdict]int{}
	for _, r := range results {
		counts[r.Verdict]++
		for _, note := range r.Notes {
			fmt.Fprintf(out, "\n%s over %s: %s", r.Row.Name, r.Family, note)
		}
		for _, reason := range r.Reasons {
			fmt.Fprintf(out, "\n%s %s over %s: %s\n", r.Verdict, r.Row.Name, r.Family, reason)
		}
	}
	fmt.Fprintf(out, "\n\n%d ok, %d failed, %d broken, %d skipped in %.1f s\n",
		counts[OK], counts[Failed], counts[Broken], counts[Skipped], took.Seconds())
}

// printMarkdown writes the table with everything that a reader wants to know about each row.
func printMarkdown(out io.Writer, results []Result) {
	group := ""
	for _, l := range lines(results) {
		if l.Row.Group != group {
			group = l.Row.Group
			fmt.Fprintf(out, "\n## %s\n\n| row | IPv4 | IPv6 | must not happen | how it notices | control |\n|---|---|---|---|---|---|\n", group)
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s | %s | %s |\n", l.Row.Name, l.verdict(IPv4), l.verdict(IPv6),
			cell(l.Row.MustNot), cell(l.Row.Notices), cell(l.Row.Control))
	}
}

func cell(s string) string { return strings.NewReplacer("|", `\|`, "\n", " ").Replace(s) }

// printJSON writes one object per row and family.
func printJSON(out io.Writer, results []Result) error {
	type object struct {
		Row      string   `json:"row"`
		Group    string   `json:"group"`
		Family   Family   `json:"family"`
		Verdict  Verdict  `json:"verdict"`
		Reasons  []string `json:"reasons,omitempty"`
		Notes    []string `json:"notes,omitempty"`
		MustNot  string   `json:"mustNot"`
		Notices  string   `json:"notices"`
		Control  string   `json:"control"`
		Weakness string   `json:"weakness"`
		Seconds  float64  `json:"seconds"`
	}
	objects := []object{}
	for _, r := range results {
		objects = append(objects, object{
			r.Row.Name, r.Row.Group, r.Family, r.Verdict, r.Reasons, r.Notes, r.Row.MustNot, r.Row.Notices, r.Row.Control,
			r.Row.Weakness, r.Took.Seconds(),
		})
	}
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(objects)
}

// printList writes what the rows are, for who chooses with --run.
func printList(out io.Writer, rows []Row) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\n", r.Name, r.MustNot)
	}
	w.Flush()
}
