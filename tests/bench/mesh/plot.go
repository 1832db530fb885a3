package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
)

// The plot: one line for each row that has a goal as a ratio, on a logarithmic scale of "times as good as the incumbent", so
// that right is good whatever the row counts. A bar is the median of the turns' ratios, the thin line their middle half,
// and the mark the goal.
const (
	plotWidth  = 920
	plotLeft   = 300
	plotRight  = 76
	plotTop    = 84
	plotLine   = 34
	plotBottom = 56
)

// plotScale is the ratios at both ends of the scale.
var plotScale = [2]float64{0.5, 4}

var colours = []string{"#9aa0a6", "#b3541e", "#1f5fa8", "#2b8a5a", "#7a4fa3", "#c2a000"}

func (r *report) svg(w io.Writer) error {
	var lines []reportRow
	for _, row := range r.Rows {
		if row.Goal != 0 && !row.GoalIsAbsolute {
			lines = append(lines, row)
		}
	}
	ours := r.Variants[2:]
	pitch := plotLine + 14*(len(ours)-1)
	height := plotTop + pitch*len(lines) + plotBottom
	var s strings.Builder
	text := func(x, y float64, anchor, style, format string, args ...any) {
		var escaped strings.Builder
		xml.EscapeText(&escaped, []byte(fmt.Sprintf(format, args...)))
		fmt.Fprintf(&s, `<text x="%.1f" y="%.1f" text-anchor="%s" %s>%s</text>`+"\n", x, y, anchor, style, escaped.String())
	}
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" `+
		`font-family="Helvetica, Arial, sans-serif" font-size="13">`+"\n", plotWidth, height)
	fmt.Fprintf(&s, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", plotWidth, height)
	text(16, 26, "start", `font-size="16" font-weight="bold"`, "Times as good as: %s", r.Variants[1])
	text(16, 46, "start", `fill="#555555"`, "%s; %d rounds, %s", r.Machine, r.Rounds, r.When.Format("2006-01-02"))
	for i, v := range ours {
		x := 16 + 220*float64(i)
		fmt.Fprintf(&s, `<rect x="%.1f" y="56" width="12" height="12" fill="%s"/>`+"\n", x, colour(i))
		text(x+18, 67, "start", "", "%s", v)
	}
	for _, tick := range []float64{0.5, 0.75, 1, 1.5, 2, 3, 4} {
		x, style := position(tick), `stroke="#dddddd"`
		if tick == 1 {
			style = `stroke="#333333" stroke-width="1.5"`
		}
		fmt.Fprintf(&s, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" %s/>`+"\n", x, plotTop-6, x, height-plotBottom+4, style)
		text(x, float64(height-plotBottom+20), "middle", `fill="#555555"`, "%g", tick)
	}
	text(16, float64(height-12), "start", `fill="#555555"`,
		"bar: median of the turns' ratios; thin line: from quarter to quarter; green mark: goal")
	for i, row := range lines {
		y := float64(plotTop + i*pitch)
		text(plotLeft-12, y+17, "end", "", "%s", row.Title)
		for j, v := range ours {
			ratio, ok := row.Ratio[v]
			if !ok {
				continue
			}
			top := y + 4 + float64(14*j)
			height := 18.0
			if len(ours) > 1 {
				height = 12
			}
			from, to := position(1), position(row.better(ratio.Median))
			fmt.Fprintf(&s, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.0f" fill="%s"/>`+"\n",
				min(from, to), top, math.Abs(to-from), height, colour(j))
			least, most := position(row.better(ratio.Quarter)), position(row.better(ratio.ThreeQuarters))
			fmt.Fprintf(&s, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1[2]f" stroke="#111111"/>`+"\n",
				min(least, most), top+height/2, max(least, most))
			text(plotWidth-24, top+height-4, "end", "", "%.2f", row.better(ratio.Median))
		}
		goal := position(row.better(row.Goal))
		fmt.Fprintf(&s, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#1a7f37" stroke-width="3"/>`+"\n",
			goal, y, goal, y+float64(pitch)-8)
	}
	s.WriteString("</svg>\n")
	_, err := io.WriteString(w, s.String())
	return err
}

// better is how many times as good a ratio to the incumbent is.
func (r reportRow) better(ratio float64) float64 {
	if r.MoreIsBetter || ratio == 0 {
		return ratio
	}
	return 1 / ratio
}

func position(times float64) float64 {
	times = min(max(times, plotScale[0]), plotScale[1])
	share := math.Log(times/plotScale[0]) / math.Log(plotScale[1]/plotScale[0])
	return plotLeft + share*(plotWidth-plotLeft-plotRight)
}

func colour(i int) string { return colours[(i+2)%len(colours)] }
