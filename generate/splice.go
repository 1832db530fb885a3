package generate

import (
	"cmp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// edit replaces the bytes [from, to) of a text.
type edit struct {
	from, to int
	text     string
}

// splicer collects edits of one file. Whatever it cannot do without touching other bytes becomes a fault.
type splicer struct {
	*source
	edits  []edit
	faults []error
	// touched are the collections that were added to.
	touched map[*yaml.Node]bool
}

func newSplicer(s *source) *splicer { return &splicer{source: s, touched: make(map[*yaml.Node]bool)} }

func (s *splicer) failAt(n *yaml.Node, format string, args ...any) {
	s.faults = append(s.faults, s.faultAt(n, format, args...))
}

// apply returns the edited text. Edits at one place keep the order in which they were made.
func (s *splicer) apply() []byte {
	edits := slices.Clone(s.edits)
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Compare(a.from, b.from) })
	var b strings.Builder
	at := 0
	for _, e := range edits {
		b.Write(s.text[at:e.from])
		text := e.text
		if eol := finalBreak(text); e.from == len(s.text) && eol != "" && !atLineStart(b.String()) {
			// The file has no line break at its end, and shall have none afterwards.
			text = eol + strings.TrimSuffix(text, eol)
		}
		b.WriteString(text)
		at = e.to
	}
	b.Write(s.text[at:])
	return []byte(b.String())
}

// atLineStart says whether what follows text begins a line.
func atLineStart(text string) bool {
	return text == "" || text == string(bom) || finalBreak(text) != ""
}

// insert adds text at an offset.
func (s *splicer) insert(at int, text string) { s.edits = append(s.edits, edit{at, at, text}) }

// addEntries puts entries into the mapping that parent has under key, and makes it where there is none.
func (s *splicer) addEntries(parent *yaml.Node, key string, entries mapping, l layout) {
	k, v := s.touch(parent, key)
	switch {
	case v == nil:
		s.appendEntry(parent, field{key, entries}, l)
	case isNull(v):
		s.fillNull(v, flow(entries))
	case v.Kind != yaml.MappingNode:
		s.failAt(v, "%s is not a mapping that generate can add to", key)
	case isFlow(v):
		parts := make([]string, len(entries))
		for i, f := range entries {
			parts[i] = flow(f.key) + ": " + flow(f.value)
		}
		s.insertFlow(v, parts)
	default:
		var b strings.Builder
		at := s.afterKey(k, v, v.Content[0])
		l.eol = s.eol(at)
		l.block(&b, entries, v.Content[0].Column-1)
		s.insert(at, b.String())
	}
}

// addItems puts items first into the list that parent has under key, and makes it where there is none.
func (s *splicer) addItems(parent *yaml.Node, key string, items list, l layout) {
	k, v := s.touch(parent, key)
	switch {
	case v == nil:
		s.appendEntry(parent, field{key, items}, l)
	case isNull(v):
		s.fillNull(v, flow(items))
	case v.Kind != yaml.SequenceNode:
		s.failAt(v, "%s is not a list that generate can add to", key)
	case isFlow(v):
		parts := make([]string, len(items))
		for i, item := range items {
			parts[i] = flow(item)
		}
		s.insertFlow(v, parts)
	default:
		dash, ok := s.dash(v)
		if !ok {
			s.failAt(v, "%s: the first dash does not begin its line; generate cannot add to this list", key)
			return
		}
		var b strings.Builder
		at := s.lineStart(dash)
		if v.Line == k.Line || !decorated(v) {
			at = s.nextLine(s.offset(k))
		}
		l.eol = s.eol(at)
		l.items(&b, items, dash-s.lineStart(dash))
		s.insert(at, b.String())
	}
}

// touch finds what is to be added to, and remembers it.
func (s *splicer) touch(parent *yaml.Node, key string) (k, v *yaml.Node) {
	k, v = own(parent, key)
	s.touched[parent] = true
	if v != nil {
		s.touched[v] = true
	} else if inherited := get(parent, key); inherited != nil {
		s.failAt(parent, "%s comes from a merge key (line %d), which an entry of its own would hide; write it out here",
			key, inherited.Line)
	}
	return k, v
}

// checkAliases refuses aliases of what was added to: they would repeat the addition elsewhere.
func (s *splicer) checkAliases() {
	var contains func(n *yaml.Node) bool
	contains = func(n *yaml.Node) bool {
		return s.touched[n] || slices.ContainsFunc(n.Content, contains)
	}
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		if n.Kind == yaml.AliasNode && n.Alias != nil && contains(n.Alias) {
			s.failAt(n, "alias *%s repeats a part of a pod that generate must add to; write it out here", n.Value)
		}
		for _, child := range n.Content {
			walk(child)
		}
	}
	for _, root := range s.documents {
		walk(root)
	}
}

// afterKey is where the first line of a block mapping's content may be inserted: right below its key, so that the comments
// above the present first entry stay with it.
func (s *splicer) afterKey(key, value, first *yaml.Node) int {
	if decorated(value) && value.Line != key.Line {
		return s.lineStart(s.offset(first)) // below the anchor's or tag's own line
	}
	return s.nextLine(s.offset(key))
}

// decorated says whether an anchor or tag stands before a collection, so that its place is theirs.
func decorated(n *yaml.Node) bool { return n.Anchor != "" || n.Style&yaml.TaggedStyle != 0 }

// dash is the offset of a block list's first dash.
func (s *splicer) dash(seq *yaml.Node) (int, bool) {
	at := s.offset(seq)
	if decorated(seq) {
		at = s.lineStart(s.offset(seq.Content[0]))
		for at < len(s.text) && s.text[at] == ' ' {
			at++
		}
	}
	begins := strings.Trim(string(s.text[s.lineStart(at):at]), " ") == ""
	return at, begins && at < len(s.text) && s.text[at] == '-'
}

// fillNull writes a value where a key has none.
func (s *splicer) fillNull(n *yaml.Node, value string) {
	if decorated(n) {
		s.failAt(n, "an empty value with an anchor or a tag: generate cannot add to it")
		return
	}
	at := s.offset(n)
	if n.Value == "" {
		s.insert(at, " "+value)
		return
	}
	s.edits = append(s.edits, edit{at, at + len(n.Value), value})
}

// insertFlow adds parts at the front of a flow collection. Each ends where the next, or the present first one, begins: so
// taking out a part together with the blanks behind its comma restores the text.
func (s *splicer) insertFlow(n *yaml.Node, parts []string) {
	if !s.bracketed(n) {
		s.failAt(n, "put braces around this, so that generate can add to it")
		return
	}
	if len(n.Content) > 0 {
		s.insert(s.offset(n.Content[0]), strings.Join(parts, ", ")+", ")
		return
	}
	s.insert(s.skipProperties(n, s.offset(n))+1, strings.Join(parts, ", "))
}

// appendEntry adds an entry at a block mapping's end, and at a flow mapping's front.
func (s *splicer) appendEntry(m *yaml.Node, f field, l layout) {
	if isFlow(m) {
		s.insertFlow(m, []string{flow(f.key) + ": " + flow(f.value)})
		return
	}
	end, ok := s.end(m)
	if !ok {
		s.failAt(m, "cannot tell where this mapping ends; write it in another style")
		return
	}
	indent := m.Content[0].Column - 1
	at := s.pastComments(s.nextLine(end), indent)
	l.eol = s.eol(at)
	var b strings.Builder
	l.block(&b, mapping{f}, indent)
	s.insert(at, b.String())
}

// pastComments skips comment lines that stand at least as deep as the mapping they follow: they belong to it.
func (s *splicer) pastComments(at, indent int) int {
	for at < len(s.text) {
		line := s.text[at:s.lineEnd(at)]
		depth := len(line) - len(strings.TrimLeft(string(line), " "))
		if depth < indent || depth == len(line) || line[depth] != '#' {
			break
		}
		at = s.nextLine(at)
	}
	return at
}

// removeItems takes out of the list that parent has under key the items that ours recognises, and the whole entry when
// nothing else is left of a block list: a block list is never empty, so the entry was added for them.
func (s *splicer) removeItems(parent *yaml.Node, key string, ours func(item *yaml.Node) bool) {
	k, v := own(parent, key)
	if v == nil || v.Kind != yaml.SequenceNode {
		return
	}
	s.remove(k, v, 1, func(i int) bool { return ours(v.Content[i]) })
}

// removeEntries takes entries out of the mapping that parent has under key, and that mapping's own entry when nothing else
// is left of a block mapping.
func (s *splicer) removeEntries(parent *yaml.Node, key string, names []string) {
	k, v := own(parent, key)
	if v == nil || v.Kind != yaml.MappingNode {
		return
	}
	s.remove(k, v, 2, func(i int) bool { return slices.Contains(names, v.Content[i].Value) })
}

// remove takes parts out of a collection; a part is step nodes long.
func (s *splicer) remove(key, n *yaml.Node, step int, ours func(i int) bool) {
	var gone []int
	for i := 0; i < len(n.Content); i += step {
		if ours(i) {
			gone = append(gone, i)
		}
	}
	switch {
	case len(gone) == 0:
		return
	case isFlow(n):
		for _, i := range gone {
			s.removeFlow(n, i, step)
		}
		return
	case len(gone)*step == len(n.Content):
		s.removeLines(key, key, n)
		return
	}
	for _, i := range gone {
		first := n.Content[i]
		if n.Kind == yaml.SequenceNode {
			s.removeLines(first, n, n.Content[i])
		} else {
			s.removeLines(first, first, n.Content[i+step-1])
		}
	}
}

// removeLines takes out the lines from the one that first begins on to the one that last ends on. In a list the dash of
// the item stands before it.
func (s *splicer) removeLines(first, in, last *yaml.Node) {
	start := s.offset(first)
	from := s.lineStart(start)
	lead := strings.TrimLeft(string(s.text[from:start]), " ")
	if in.Kind == yaml.SequenceNode {
		lead = strings.TrimLeft(strings.TrimPrefix(lead, "-"), " ")
	}
	end, ok := s.end(last)
	if lead != "" || !ok {
		s.failAt(first, "generate injected this once, but it was moved since and cannot be replaced; remove it by hand")
		return
	}
	s.edits = append(s.edits, edit{from: from, to: s.nextLine(end)})
}

func (s *splicer) removeFlow(n *yaml.Node, i, step int) {
	from := s.offset(n.Content[i])
	if next := i + step; next < len(n.Content) {
		s.edits = append(s.edits, edit{from: from, to: s.offset(n.Content[next])})
		return
	}
	end, ok := s.end(n.Content[i+step-1])
	if !ok {
		s.failAt(n.Content[i], "cannot tell where this ends; remove it by hand")
		return
	}
	if i > 0 { // the comma before it goes too, unless what stands before it went already
		if before, ok := s.end(n.Content[i-1]); ok && !s.removed(before) {
			from = before
		}
	}
	s.edits = append(s.edits, edit{from: from, to: end})
}

func (s *splicer) removed(at int) bool {
	return slices.ContainsFunc(s.edits, func(e edit) bool { return e.from < at && at <= e.to })
}

// closeEnd makes the removal of a file's last lines leave a file without a final line break as it was: without one.
func (s *splicer) closeEnd() {
	if atLineStart(string(s.text)) {
		return
	}
	slices.SortFunc(s.edits, func(a, b edit) int { return cmp.Compare(a.from, b.from) })
	edge := len(s.text)
	for i := len(s.edits) - 1; i >= 0 && s.edits[i].to == edge && s.edits[i].from < edge; i-- {
		edge = s.edits[i].from
		if i > 0 && s.edits[i-1].to == edge {
			continue
		}
		s.edits[i].from -= len(finalBreak(string(s.text[:edge])))
	}
}
