package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// MaxDrawn is how many pods the picture has at most. With more of them, lines say less than the table.
const MaxDrawn = 60

// Drawing is the picture of a mesh, in SVG's units.
type Drawing struct {
	Width, Height int
	Boxes         []Box
	Lines         []Line
	// IdleY is where the pods begin that neither call nor are called; 0 where there are none.
	IdleY int
}

// Box is a pod, or everybody outside.
type Box struct {
	X, Y, W, H  int
	Name, Under string
	Class       string
	Badges      []Badge
}

// Badge is a line in a box.
type Badge struct {
	Y     int
	Text  string
	Level Level
}

// Line is who calls whom.
type Line struct {
	Path  string
	Level Level
	// Label is the port, placed at X and Y; empty where there are too many lines for labels.
	Label string
	X, Y  int
}

// The measures of the picture.
const (
	boxWidth  = 204
	boxHead   = 46 // name and what stands under it
	badgeStep = 17
	gapX      = 84
	gapY      = 22
	gapHeight = 10 // of the place where a line passes a column
	maxRows   = 10
	margin    = 8
	maxBadges = 4
	maxLabels = 40
)

// edge leads from one box to another.
type edge struct {
	from, to int
	label    string
	level    Level
}

// Draw lays out the pods in columns, callers left of whom they call. It is the same for the same mesh. Nil where there is
// nothing to draw, or too much.
func (g *Mesh) Draw() *Drawing {
	if len(g.Pods) == 0 || len(g.Pods) > MaxDrawn {
		return nil
	}
	boxes := []Box{{Name: "Everybody outside", Under: "no certificate of the mesh", Class: "outside"}}
	for _, p := range g.Pods {
		boxes = append(boxes, p.box())
	}
	for i := range boxes {
		boxes[i].W, boxes[i].H = boxWidth, boxHead+badgeStep*len(boxes[i].Badges)
		if len(boxes[i].Badges) > 0 {
			boxes[i].H += 6
		}
	}
	edges := g.edges()
	touched := make([]bool, len(boxes))
	for _, e := range edges {
		touched[e.from], touched[e.to] = true, true
	}
	columns := split(order(layers(len(boxes), edges, touched), hops(edges)))
	all, ways := detour(boxes, edges, columns)
	columns = order(columns, ways)
	d := &Drawing{}
	d.place(all, columns)
	d.placeIdle(all[:len(boxes)], touched)
	d.Lines = lines(all, edges, ways)
	for i, b := range all[:len(boxes)] {
		if i > 0 || touched[0] {
			for j := range b.Badges {
				b.Badges[j].Y = b.Y + boxHead + 8 + badgeStep*j
			}
			d.Boxes = append(d.Boxes, b)
		}
	}
	return d
}

// way is the boxes that a line passes on its way, both ends among them.
type way []int

func hops(edges []edge) []way {
	ways := make([]way, len(edges))
	for i, e := range edges {
		ways[i] = way{e.from, e.to}
	}
	return ways
}

// detour leaves a gap in each column that a line would otherwise cross behind boxes: a thin box without a frame.
func detour(boxes []Box, edges []edge, columns [][]int) ([]Box, []way) {
	column := make(map[int]int)
	for c, boxes := range columns {
		for _, i := range boxes {
			column[i] = c
		}
	}
	all, ways := slices.Clone(boxes), hops(edges)
	for k, e := range edges {
		w := way{e.from}
		for c := column[e.from] + 1; c < column[e.to]; c++ {
			w = append(w, len(all))
			columns[c] = append(columns[c], len(all))
			all = append(all, Box{W: boxWidth, H: gapHeight})
		}
		ways[k] = append(w, e.to)
	}
	return all, ways
}

// place centres each column.
func (d *Drawing) place(boxes []Box, columns [][]int) {
	heights := make([]int, len(columns))
	for c, column := range columns {
		for _, i := range column {
			heights[c] += boxes[i].H + gapY
		}
		d.Height = max(d.Height, heights[c]-gapY)
	}
	for c, column := range columns {
		y := margin + (d.Height-(heights[c]-gapY))/2
		for _, i := range column {
			boxes[i].X, boxes[i].Y = margin+c*(boxWidth+gapX), y
			y += boxes[i].H + gapY
		}
	}
	d.Width = 2*margin + len(columns)*(boxWidth+gapX) - gapX
	d.Height += 2 * margin
}

// placeIdle puts the pods without any line below the others, row by row.
func (d *Drawing) placeIdle(boxes []Box, touched []bool) {
	var idle []int
	for i := range boxes {
		if i > 0 && !touched[i] {
			idle = append(idle, i)
		}
	}
	if len(idle) == 0 {
		return
	}
	const across = 4
	columns := max(across, (d.Width-margin)/(boxWidth+gapX/3))
	columns = min(columns, len(idle))
	y := margin + 22
	if d.Width > 2*margin { // something stands above
		y = d.Height + 34
	} else {
		d.Width, d.Height = 0, 0
	}
	d.IdleY = y - 10
	for start := 0; start < len(idle); start += columns {
		tallest := 0
		for c, i := range idle[start:min(start+columns, len(idle))] {
			boxes[i].X, boxes[i].Y = margin+c*(boxWidth+gapX/3), y
			tallest = max(tallest, boxes[i].H)
			d.Width = max(d.Width, boxes[i].X+boxWidth+margin)
		}
		y += tallest + gapY
	}
	d.Height = y - gapY + margin
}

func (p Pod) box() Box {
	b := Box{Name: fit(p.Name, 20), Under: fit(p.Kind+" in "+p.Namespace, 26), Class: "pod"}
	if p.Coordinator {
		b.Class, b.Under = "coordinator", "issues the certificates"
	}
	if p.Level == Danger {
		b.Class += " exposed"
		b.Badges = append(b.Badges, Badge{Text: "open: no TLS, no gate", Level: Danger})
	}
	if p.Unread != "" {
		b.Badges = append(b.Badges, Badge{Text: "not known what it does", Level: Caution})
	}
	for _, d := range p.Doors {
		text := strings.TrimSuffix(d.Port, "/tcp") + ": "
		switch {
		case d.Outside && d.Level == Danger:
			text += "plaintext"
		case d.Outside && d.Level == Caution:
			text += "TLS, any client"
		case d.Outside:
			text += "health checks"
		case len(d.From) > 0:
			text += "only " + strings.Join(d.From, ", ")
		default:
			continue
		}
		b.Badges = append(b.Badges, Badge{Text: fit(text, 26), Level: d.Level})
	}
	if n := len(b.Badges); n > maxBadges {
		b.Badges = append(b.Badges[:maxBadges-1], Badge{Text: fmt.Sprintf("and %d more ports", n-maxBadges+1)})
	}
	return b
}

// edges are between boxes: 0 is everybody outside, pod i has the number i+1.
func (g *Mesh) edges() []edge {
	var all []edge
	add := func(e edge) {
		for i := range all {
			if all[i].from == e.from && all[i].to == e.to && all[i].level == e.level {
				if !slices.Contains(strings.Split(all[i].label, ","), e.label) {
					all[i].label += "," + e.label
				}
				return
			}
		}
		all = append(all, e)
	}
	for i, p := range g.Pods {
		if p.Level == Danger {
			add(edge{0, i + 1, "all", Danger})
		}
		for _, d := range p.Doors {
			if d.Outside && d.Level.over(Note) {
				port, _, _ := strings.Cut(d.Port, "/")
				add(edge{0, i + 1, port, d.Level})
			}
		}
		for _, c := range p.Calls {
			for _, to := range c.To {
				if to != i {
					_, port, _ := cutLast(c.Remote, ":")
					add(edge{i + 1, to + 1, port, c.Level})
				}
			}
		}
	}
	return all
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// layers puts each box one layer behind the last that calls it; calls in a circle are broken where the search, which
// goes in the order of the boxes, meets itself.
func layers(n int, edges []edge, touched []bool) [][]int {
	out := make([][]int, n)
	for _, e := range edges {
		out[e.from] = append(out[e.from], e.to)
	}
	const (
		fresh = iota
		open
		done
	)
	state, sorted := make([]int, n), []int(nil)
	back := make(map[[2]int]bool)
	var visit func(int)
	visit = func(i int) {
		state[i] = open
		for _, j := range out[i] {
			switch state[j] {
			case open:
				back[[2]int{i, j}] = true
			case fresh:
				visit(j)
			}
		}
		state[i] = done
		sorted = append(sorted, i)
	}
	for i := range n {
		if touched[i] && state[i] == fresh {
			visit(i)
		}
	}
	slices.Reverse(sorted) // callers first
	layer, last := make([]int, n), 0
	for _, i := range sorted {
		for _, j := range out[i] {
			if !back[[2]int{i, j}] {
				layer[j] = max(layer[j], layer[i]+1)
				last = max(last, layer[j])
			}
		}
	}
	if touched[0] { // everybody outside has the first column alone
		for i := 1; i < n; i++ {
			if touched[i] && layer[i] == 0 {
				layer[i], last = 1, max(last, 1)
			}
		}
	}
	all := make([][]int, last+1)
	for i := range n {
		if touched[i] {
			all[layer[i]] = append(all[layer[i]], i)
		}
	}
	return slices.DeleteFunc(all, func(l []int) bool { return len(l) == 0 })
}

// order sorts each layer by where its neighbours are, so that lines cross less.
func order(layers [][]int, ways []way) [][]int {
	place := make(map[int]float64)
	note := func(layer []int) {
		for at, i := range layer {
			place[i] = float64(at) - float64(len(layer)-1)/2
		}
	}
	before, after := make(map[int][]int), make(map[int][]int)
	for _, w := range ways {
		for i := range len(w) - 1 {
			after[w[i]] = append(after[w[i]], w[i+1])
			before[w[i+1]] = append(before[w[i+1]], w[i])
		}
	}
	for _, layer := range layers {
		note(layer)
	}
	for sweep := range 8 {
		neighbours := before
		if sweep%2 == 1 {
			neighbours = after
		}
		for c := range layers {
			if sweep%2 == 1 {
				c = len(layers) - 1 - c
			}
			weight := make(map[int]float64)
			for _, i := range layers[c] {
				weight[i] = place[i]
				if near := neighbours[i]; len(near) > 0 {
					sum := 0.0
					for _, j := range near {
						sum += place[j]
					}
					weight[i] = sum / float64(len(near))
				}
			}
			slices.SortStableFunc(layers[c], func(a, b int) int { return cmp.Compare(weight[a], weight[b]) })
			note(layers[c])
		}
	}
	return layers
}

// split makes several columns of a layer that is too long for one.
func split(layers [][]int) [][]int {
	var columns [][]int
	for _, layer := range layers {
		parts := (len(layer) + maxRows - 1) / maxRows
		for part := range slices.Chunk(layer, (len(layer)+parts-1)/parts) {
			columns = append(columns, slices.Clone(part))
		}
	}
	return columns
}

// lines leave a box on its right and arrive at the left, spread over the side in the order of the boxes that they lead to.
func lines(boxes []Box, edges []edge, ways []way) []Line {
	leaves := ends(boxes, ways, func(w way) (here, there int) { return w[0], w[1] })
	arrives := ends(boxes, ways, func(w way) (here, there int) { return w[len(w)-1], w[len(w)-2] })
	all := make([]Line, len(edges))
	for k, w := range ways {
		first := boxes[w[0]]
		x, y := first.X+first.W, leaves[k]
		path := fmt.Sprintf("M%d %d", x, y)
		to := func(x2, y2 int) {
			bend := max(gapX/2, (x2-x)/2)
			if x2 < x { // a call in a circle goes round
				bend = gapX
			}
			path += fmt.Sprintf(" C%d %d %d %d %d %d", x+bend, y, x2-bend, y2, x2, y2)
			x, y = x2, y2
		}
		for _, i := range w[1 : len(w)-1] {
			to(boxes[i].X, boxes[i].Y+gapHeight/2)
			x = boxes[i].X + boxes[i].W
			path += fmt.Sprintf(" H%d", x)
		}
		to(boxes[w[len(w)-1]].X-7, arrives[k])
		all[k] = Line{Path: path, Level: edges[k].level, X: x - 8, Y: y - 5}
		if len(edges) <= maxLabels {
			all[k].Label = fit(edges[k].label, 12)
		}
	}
	return all
}

// ends says at which height each line touches the box that is here for it.
func ends(boxes []Box, ways []way, of func(way) (here, there int)) map[int]int {
	lines := make(map[int][]int) // by the box
	for k, w := range ways {
		here, _ := of(w)
		lines[here] = append(lines[here], k)
	}
	at := make(map[int]int)
	for i, ks := range lines {
		slices.SortStableFunc(ks, func(a, b int) int {
			_, x := of(ways[a])
			_, y := of(ways[b])
			return cmp.Or(cmp.Compare(boxes[x].Y, boxes[y].Y), cmp.Compare(boxes[x].X, boxes[y].X))
		})
		step := min(18, (boxes[i].H-16)/max(len(ks), 1))
		for n, k := range ks {
			at[k] = boxes[i].Y + boxes[i].H/2 + step*n - step*(len(ks)-1)/2
		}
	}
	return at
}

// fit shortens text that would not fit into a box, which has room for most letters as wide as most are. What is hidden in
// the text takes its place, too.
func fit(s string, most int) string {
	s = strings.Join(strings.Fields(s), " ")
	runes := []rune(string(reveal([]byte(s[:min(len(s), 8*most)]))))
	room := float64(most)
	for i, r := range runes {
		if room -= width(r); room < 0 {
			return string(runes[:max(i-1, 0)]) + "…"
		}
	}
	return string(runes)
}

// width is a letter's, where that of most is 1. It errs on the wide side: fonts differ.
func width(r rune) float64 {
	switch {
	case r >= 0x1100: // scripts of East Asia, and what may be as wide
		return 2
	case unicode.IsUpper(r), strings.ContainsRune("mw@%&+<>=—…", r), r >= 0x80:
		return 1.5
	default:
		return 1
	}
}
