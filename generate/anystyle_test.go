package generate_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// writer writes objects as YAML, each time in another of the styles that people and tools write it in. It is what generate
// must cope with, so it shares nothing with generate.
type writer struct {
	*dice
	b strings.Builder
	// habits are kept throughout a document, as people do; others change from line to line.
	step, dash int
	comments   bool
	flowing    bool // flow style here and there
	anchored   bool
	anchors    map[string]string // of strings
	shared     map[string]string // anchors of collections, by what they are
	closed     []string          // those of which aliases may be written
}

func render(d *dice, documents []any) string {
	var b strings.Builder
	b.WriteString(pick(d, "", "", "", "# a header\n", "\n", "---\n", "# a header\n---\n", "%YAML 1.1\n---\n", "--- # first\n"))
	for i, document := range documents {
		if i > 0 {
			if documents[i-1] != nil && d.oneIn(8) {
				b.WriteString("...\n")
			}
			b.WriteString(pick(d, "---\n", "---\n", "--- \n", "---\t# next\n", "---\n# about it\n", "---\n\n"))
		}
		b.WriteString(renderDocument(d, document))
	}
	text := b.String()
	switch d.below(8) {
	case 1:
		text = strings.TrimSuffix(text, "\n")
	case 2:
		text += "\n   \n"
	case 3:
		text += "# the end"
	case 4:
		text += "---\n"
	case 5:
		if documents[len(documents)-1] != nil {
			text += "...\n"
		}
	}
	switch d.below(20) {
	case 16, 17, 18:
		text = strings.ReplaceAll(text, "\n", "\r\n")
	case 19: // by two editors
		lines := strings.SplitAfter(text, "\n")
		for i, line := range lines {
			if d.oneIn(3) {
				lines[i] = strings.Replace(line, "\n", "\r\n", 1)
			}
		}
		text = strings.Join(lines, "")
	case 15: // before this century
		if d.oneIn(3) {
			text = strings.ReplaceAll(text, "\n", "\r")
		}
	}
	if d.oneIn(6) {
		text = "\ufeff" + text
	}
	return text
}

func renderDocument(d *dice, document any) string {
	if document == nil {
		return pick(d, "", "\n", "# nothing here\n", "null\n", "~\n")
	}
	if d.oneIn(6) {
		b, err := json.MarshalIndent(plain(document), "", pick(d, "  ", "\t", "    "))
		if d.oneIn(2) {
			b, err = json.Marshal(plain(document))
		}
		if err != nil {
			panic(err)
		}
		return string(b) + "\n"
	}
	w := &writer{
		dice: d, step: pick(d, 2, 2, 4, 1, 3), dash: d.below(3), comments: d.oneIn(2), flowing: d.oneIn(2),
		anchored: d.oneIn(4), anchors: make(map[string]string), shared: make(map[string]string),
	}
	if d.oneIn(8) {
		w.flow(document, 0, false)
		w.b.WriteString("\n")
		return w.b.String()
	}
	w.mapping(document.(object), 0, true)
	return w.b.String()
}

// plain is a value as encoding/json takes it. The order of keys is lost, which JSON's writers do too.
func plain(v any) any {
	switch v := v.(type) {
	case object:
		m := make(map[string]any, len(v))
		for _, e := range v {
			m[e.key] = plain(e.value)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i, item := range v {
			list[i] = plain(item)
		}
		return list
	}
	return v
}

func (w *writer) pad(n int) { w.b.WriteString(strings.Repeat(" ", n)) }

// remark writes comment lines and blank lines where they may stand.
func (w *writer) remark(indent int) {
	if !w.comments || !w.oneIn(6) {
		return
	}
	switch w.below(4) {
	case 0:
		w.pad(indent)
		w.b.WriteString("# a comment: - not {yaml}\n")
	case 1:
		w.b.WriteString("# at the margin\n")
	case 2:
		w.b.WriteString("\n")
	case 3:
		w.pad(indent + 2)
		w.b.WriteString("#\ttabs\tin it\n  \n")
	}
}

// trailer ends a line, perhaps with a comment.
func (w *writer) trailer() {
	if w.comments && w.oneIn(6) {
		w.b.WriteString(pick(w.dice, " # why", "  #", " #\ta tab", " # it's \"quoted\""))
	} else if w.oneIn(20) {
		w.b.WriteString("  ")
	}
	w.b.WriteString("\n")
}

// mapping writes a block mapping. Its first line may go on where something stands already.
func (w *writer) mapping(m object, indent int, fresh bool) {
	if len(m) == 0 {
		panic("an empty block mapping")
	}
	for i, e := range m {
		if i > 0 || fresh {
			w.remark(indent)
			w.pad(indent)
		}
		if _, scalar := e.value.(string); scalar && w.anchored && w.oneIn(30) {
			w.b.WriteString("? " + w.key(e.key) + "\n")
			w.pad(indent)
			w.b.WriteString(":")
		} else {
			w.b.WriteString(w.key(e.key) + ":")
		}
		w.value(e.value, indent)
	}
	if w.anchored && len(w.closed) > 0 && w.oneIn(20) {
		w.pad(indent)
		w.b.WriteString("<<: *" + pick(w.dice, w.closed...) + "\n")
	}
	if w.comments && w.oneIn(8) {
		w.pad(indent)
		w.b.WriteString("# what follows the last\n")
	}
}

func (w *writer) key(key string) string {
	switch w.below(12) {
	case 10:
		return "'" + key + "'"
	case 11:
		return `"` + key + `"`
	}
	return key
}

// value writes what stands behind a key's colon or, in a list, behind a dash.
func (w *writer) value(v any, indent int) {
	switch v := v.(type) {
	case object:
		if len(v) == 0 {
			w.b.WriteString(pick(w.dice, " {}", " {}", " { }"))
			w.trailer()
			return
		}
		if w.flowing && w.oneIn(4) {
			w.b.WriteString(" ")
			w.flow(v, indent+1, true)
			w.trailer()
			return
		}
		if w.alias(v) {
			return
		}
		done := w.property("!!map", v)
		w.trailer()
		w.mapping(v, indent+w.step, true)
		done()
	case []any:
		if len(v) == 0 {
			w.b.WriteString(pick(w.dice, " []", " []", " [ ]", " [\n"+strings.Repeat(" ", indent+1)+"]"))
			w.trailer()
			return
		}
		if w.flowing && w.oneIn(4) {
			w.b.WriteString(" ")
			w.flow(v, indent+1, true)
			w.trailer()
			return
		}
		if w.alias(v) {
			return
		}
		done := w.property("!!seq", v)
		w.trailer()
		w.list(v, indent+w.dash)
		done()
	default:
		w.scalar(v, indent)
	}
}

// property writes an anchor or a tag now and then. What it returns is called when the collection is written.
func (w *writer) property(tag string, v any) (done func()) {
	done = func() {}
	if !w.anchored {
		return done
	}
	switch w.below(10) {
	case 7, 8:
		name := w.name("a")
		w.b.WriteString(" &" + name)
		return func() {
			w.shared[fmt.Sprint(v)] = name
			if tag == "!!map" {
				w.closed = append(w.closed, name)
			}
		}
	case 9:
		w.b.WriteString(" " + tag)
	}
	return done
}

// alias writes an alias of an equal collection, if there is one.
func (w *writer) alias(v any) bool {
	name := w.shared[fmt.Sprint(v)]
	if name == "" || !w.oneIn(2) {
		return false
	}
	w.b.WriteString(" *" + name)
	w.trailer()
	return true
}

func (w *writer) list(items []any, indent int) {
	for _, item := range items {
		w.remark(indent)
		w.pad(indent)
		w.b.WriteString("-")
		m, ok := item.(object)
		switch {
		case !ok || len(m) == 0:
			w.value(item, indent)
		case w.flowing && w.oneIn(4):
			w.b.WriteString(" ")
			w.flow(m, indent+1, true)
			w.trailer()
		case w.oneIn(10):
			w.trailer()
			w.mapping(m, indent+1+w.step, true)
		default:
			gap := pick(w.dice, 1, 1, 1, 1, 1, 1, 3)
			w.pad(gap)
			w.mapping(m, indent+1+gap, false)
		}
	}
}

var (
	plainText = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9./_-]*( [A-Za-z0-9./_-]+)*$`)
	resolved  = map[string]bool{"true": true, "null": true, "false": true, "y": true, "n": true}
)

// scalar writes a scalar of a block collection, and ends the line.
func (w *writer) scalar(v any, indent int) {
	s, ok := v.(string)
	if !ok {
		switch v := v.(type) {
		case nil:
			w.b.WriteString(pick(w.dice, "", "", " null", " ~", " Null", " NULL"))
		default:
			w.b.WriteString(" " + fmt.Sprint(v))
		}
		w.trailer()
		return
	}
	if w.anchored {
		if name, ok := w.anchors[s]; ok && w.oneIn(2) {
			w.b.WriteString(" *" + name)
			w.trailer()
			return
		}
		if w.oneIn(4) {
			name := fmt.Sprintf("s%d", len(w.anchors))
			w.b.WriteString(" &" + name)
			w.anchors[s] = name
		}
	}
	if strings.Contains(s, "\n") && w.blockScalar(s, indent) {
		return
	}
	w.b.WriteString(" " + w.inline(s, indent+1))
	w.trailer()
}

// blockScalar writes a string as a literal or folded block, if it can be.
func (w *writer) blockScalar(s string, indent int) bool {
	if w.oneIn(4) || strings.HasPrefix(s, " ") || strings.HasPrefix(s, "\n") || strings.Contains(s, "\t") || strings.Contains(s, " \n") {
		return false
	}
	body := strings.TrimRight(s, "\n")
	breaks := len(s) - len(body)
	chomp := map[int]string{0: "-", 1: ""}[breaks]
	if breaks > 1 || breaks == 1 && w.oneIn(4) {
		chomp = "+"
	}
	style := "|"
	if w.oneIn(3) && !strings.Contains(s, "\n ") {
		style = ">"
	}
	deep := indent + w.step
	w.b.WriteString(" " + style + pick(w.dice, chomp, chomp, fmt.Sprint(w.step)+chomp))
	w.trailer()
	lines := strings.Split(body, "\n")
	for i, line := range lines {
		if line != "" {
			w.pad(deep)
		}
		w.b.WriteString(line + "\n")
		if style == ">" && i+1 < len(lines) && line != "" && lines[i+1] != "" {
			w.b.WriteString("\n") // one break folds into a blank
		} else if style == ">" && i+1 < len(lines) && line != "" {
			w.b.WriteString("\n")
		}
	}
	if chomp == "+" {
		for range breaks - 1 {
			w.b.WriteString("\n")
		}
	} else if w.oneIn(8) {
		w.b.WriteString("\n")
	}
	return true
}

// inline is a string on one line or folded over several, which stand deeper than indent.
func (w *writer) inline(s string, indent int) string {
	fold := func(s string) string {
		if !w.oneIn(4) || indent < 0 {
			return s
		}
		words := strings.Split(s, " ")
		if len(words) < 2 || strings.Contains(s, "  ") || words[0] == "" || words[len(words)-1] == "" {
			return s
		}
		for i := range words[1:] {
			if words[i+1] != "" && (words[i+1][0] == '#' || words[i+1][0] == '%') {
				return s
			}
		}
		return strings.Join(words, "\n"+strings.Repeat(" ", indent))
	}
	printable := !strings.ContainsAny(s, "\n\t")
	switch w.below(4) {
	case 0, 1:
		if plainText.MatchString(s) && !resolved[s] {
			return fold(s)
		}
	case 2:
		if printable {
			return "'" + fold(strings.ReplaceAll(s, "'", "''")) + "'"
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	quoted := string(b)
	if printable && !strings.Contains(quoted, `\`) {
		return `"` + fold(quoted[1:len(quoted)-1]) + `"`
	}
	return quoted
}

// flow writes a value in flow style, perhaps over several lines deeper than indent.
func (w *writer) flow(v any, indent int, inBlock bool) {
	gap := func() {
		switch {
		case w.oneIn(6):
			if w.comments && w.oneIn(3) {
				w.b.WriteString(" # here too")
			}
			w.b.WriteString("\n")
			w.pad(indent + w.below(3))
		case w.oneIn(3):
			w.b.WriteString(" ")
		}
	}
	switch v := v.(type) {
	case object:
		w.b.WriteString("{")
		for i, e := range v {
			gap()
			w.b.WriteString(w.key(e.key) + ": ")
			if e.value != nil || w.oneIn(2) {
				w.flow(e.value, indent, inBlock)
			}
			if i+1 < len(v) || w.oneIn(6) {
				w.b.WriteString(pick(w.dice, ", ", ", ", " , ", ","))
			}
		}
		gap()
		w.b.WriteString("}")
	case []any:
		w.b.WriteString("[")
		for i, item := range v {
			gap()
			w.flow(item, indent, inBlock)
			if i+1 < len(v) || w.oneIn(6) {
				w.b.WriteString(pick(w.dice, ", ", ", ", ","))
			}
		}
		gap()
		w.b.WriteString("]")
	case string:
		if !inBlock {
			indent = -1
		}
		w.b.WriteString(w.inline(v, indent))
	case nil:
		w.b.WriteString(pick(w.dice, "null", "~"))
	default:
		w.b.WriteString(fmt.Sprint(v))
	}
}
