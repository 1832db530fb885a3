package generate

import (
	"cmp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// edit replaces the bytes [from, to) of a text. What it writes there is asked for when it is written: where something goes is
// known as soon as a document was read, what exactly only when all files were. So no tree needs to be kept.
type edit struct {
	from, to int
	text     func() string
}

// splicer collects edits of one source. Whatever it cannot do without touching other bytes becomes a fault.
type splicer struct {
	*source
	edits  []edit
	faults []error
	// touched are the collections that were added to.
	touched map[*yaml.Node]bool
	// gone are the parts that are to be taken out of flow collections, by their first node's index.
	gone map[*yaml.Node][]int
}

func newSplicer(s *source) *splicer {
	return &splicer{source: s, touched: make(map[*yaml.Node]bool), gone: make(map[*yaml.Node][]int)}
}

func (s *splicer) failAt(code Code, n *yaml.Node, format string, args ...any) {
	s.faults = append(s.faults, s.faultAt(code, n, format, args...))
}

// apply returns text with edits made. Those at one place keep the order in which they were asked for.
func apply(text []byte, edits []edit) []byte {
	edits = slices.Clone(edits)
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Compare(a.from, b.from) })
	b := make([]byte, 0, len(text)+len(text)/8)
	at := 0
	for _, e := range edits {
		b = append(b, text[at:e.from]...)
		added := e.text()
		if eol := finalBreak(added); e.from == len(text) && eol != "" && !atLineStart(b) {
			// The file has no line break at its end, and shall have none afterwards.
			added = eol + strings.TrimSuffix(added, eol)
		}
		b = append(b, added...)
		at = e.to
	}
	return append(b, text[at:]...)
}

// atLineStart says whether what follows text begins a line.
func atLineStart(text []byte) bool {
	return len(text) == 0 || string(text) == string(bom) || finalBreak(text) != ""
}

// insert adds text at an offset.
func (s *splicer) insert(at int, text func() string) { s.replace(at, at, text) }

func (s *splicer) replace(from, to int, text func() string) {
	s.edits = append(s.edits, edit{from, to, text})
}

func nothing() string { return "" }

// addEntries puts entries into the mapping that parent has under key, and makes it where there is none. Where there is one
// without content, o keeps what it was.
func (s *splicer) addEntries(parent *yaml.Node, key string, o *original, entries func() mapping, l layout) {
	k, v := s.touch(parent, key)
	switch {
	case v == nil:
		s.appendEntry(parent, key, func() any { return entries() }, l)
	case isNull(v):
		o.keep(v.Value)
		s.fillNull(k, v, func() string { return flow(entries()) })
	case v.Kind != yaml.MappingNode:
		s.failAt(codeStyle, v, "%s is not a mapping, so generate cannot add to it; write one, or take it away", key)
	case isFlow(v):
		if len(v.Content) == 0 {
			o.keep(emptyMapping)
		}
		s.insertFlow(v, func() string { return flowEntries(entries()) })
	case !s.beginsLine(v.Content[0]):
		s.failAt(codeStyle, v.Content[0], "the first key of %s does not begin its line; write it without a question mark, so that generate can add to it", key)
	default:
		at := s.afterKey(k, v, v.Content[0])
		l.eol = s.eol(at)
		indent := v.Content[0].Column - 1
		s.insert(at, func() string {
			var b strings.Builder
			l.block(&b, entries(), indent)
			return b.String()
		})
	}
}

// addItems puts items first into the list that parent has under key, and makes it where there is none.
func (s *splicer) addItems(parent *yaml.Node, key string, o *original, items func() list, l layout) {
	k, v := s.touch(parent, key)
	switch {
	case v == nil:
		s.appendEntry(parent, key, func() any { return items() }, l)
	case isNull(v):
		o.keep(v.Value)
		s.fillNull(k, v, func() string { return flow(items()) })
	case v.Kind != yaml.SequenceNode:
		s.failAt(codeStyle, v, "%s is not a list, so generate cannot add to it; write one, or take it away", key)
	case isFlow(v):
		if len(v.Content) == 0 {
			o.keep(emptyList)
		}
		s.insertFlow(v, func() string { return flowItems(items()) })
	default:
		dash, ok := s.dash(v)
		if !ok {
			s.failAt(codeStyle, v, "%s: the first dash does not begin its line; put it on a line of its own, so that generate can add to this list", key)
			return
		}
		at := s.lineStart(dash)
		if v.Line == k.Line || !decorated(v) {
			at = s.nextLine(s.offset(k))
		}
		l.eol = s.eol(at)
		indent := dash - s.lineStart(dash)
		s.insert(at, func() string {
			var b strings.Builder
			l.items(&b, items(), indent)
			return b.String()
		})
	}
}

// touch finds what is to be added to, and remembers it.
func (s *splicer) touch(parent *yaml.Node, key string) (k, v *yaml.Node) {
	k, v = own(parent, key)
	s.touched[parent] = true
	if v != nil {
		s.touched[v] = true
	} else if inherited := get(parent, key); inherited != nil {
		s.failAt(codeStyle, parent, "%s comes from a merge key (line %d), which an entry of its own would hide; write it out here",
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
			s.failAt(codeStyle, n, "alias *%s repeats a part of a pod that generate must add to; write it out here", n.Value)
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

// beginsLine says whether nothing but the dashes of lists stands before a key in its line.
func (s *splicer) beginsLine(key *yaml.Node) bool {
	at := s.offset(key)
	return strings.Trim(string(s.text[s.lineStart(at):at]), "- \t") == ""
}

// fillNull writes a value where a key has none.
func (s *splicer) fillNull(key, n *yaml.Node, value func() string) {
	if decorated(n) {
		s.failAt(codeStyle, n, "an empty value with an anchor or a tag: generate cannot add to it; take the empty entry away")
		return
	}
	at := s.offset(n)
	if n.Value == "" {
		if !strings.HasSuffix(strings.TrimRight(string(s.text[:at]), " \t\r\n"), ":") {
			s.failAt(codeStyle, key, "%s has no value here; write a colon behind it, or take it away, so that generate can add to it", key.Value)
			return
		}
		s.insert(at, func() string { return " " + value() })
		return
	}
	s.replace(at, at+len(n.Value), value)
}

// insertFlow adds parts at the front of a flow collection. Each ends where the next, or the present first one, begins: so
// taking out a part together with the blanks behind its comma restores the text.
func (s *splicer) insertFlow(n *yaml.Node, parts func() string) {
	if !s.bracketed(n) {
		s.failAt(codeStyle, n, "put braces around this, so that generate can add to it")
		return
	}
	if len(n.Content) > 0 {
		s.insert(s.offset(n.Content[0]), func() string { return parts() + ", " })
		return
	}
	s.insert(s.skipProperties(n, s.offset(n))+1, parts)
}

// appendEntry adds an entry at a block mapping's end, and at a flow mapping's front.
func (s *splicer) appendEntry(m *yaml.Node, key string, value func() any, l layout) {
	if isFlow(m) {
		s.insertFlow(m, func() string { return flowEntries(mapping{{key, value()}}) })
		return
	}
	if !s.beginsLine(m.Content[0]) {
		s.failAt(codeStyle, m.Content[0], "this key does not begin its line; write it without a question mark, so that generate can add %s beside it", key)
		return
	}
	end, ok := s.end(m)
	if !ok {
		s.failAt(codeStyle, m, "cannot tell where this mapping ends, so generate cannot add %s to it; write it in plain block style", key)
		return
	}
	indent := m.Content[0].Column - 1
	at := s.pastComments(s.nextLine(end), indent)
	l.eol = s.eol(at)
	s.insert(at, func() string {
		var b strings.Builder
		l.block(&b, mapping{{key, value()}}, indent)
		return b.String()
	})
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
