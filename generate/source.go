package generate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// source is a stretch of a file, as a rule one document: its bytes, and a parsed tree that is only ever used to find places
// in those bytes.
type source struct {
	name string
	text []byte
	// before is how many lines of the file stand before the text. Nodes count theirs from the file's first.
	before int
	// starts[i] is the offset of the text's line i+1; see lines.
	starts []int
	// documents holds the root of every document that is not empty.
	documents []*yaml.Node
}

var (
	bom   = []byte("\xef\xbb\xbf")
	bom16 = [][]byte{{0xff, 0xfe}, {0xfe, 0xff}}
)

// parse finds the documents of a text, and every fault that makes its places uncertain. Before it stand so many lines of
// its file.
func parse(name string, text []byte, before int) (*source, error) {
	s := &source{name: name, text: text, before: before}
	for _, mark := range bom16 {
		if bytes.HasPrefix(text, mark) {
			return nil, s.fault(codeYAML, before+1, 1, "UTF-16 is not supported; save the file as UTF-8")
		}
	}
	if line := s.strayMark(); line > 0 {
		return nil, s.fault(codeYAML, before+line, 1, "a byte order mark in the middle of the file, which readers of YAML understand differently; remove it")
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var document yaml.Node
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, s.syntaxFault(err)
		}
		if len(document.Content) == 1 && !isNull(document.Content[0]) {
			s.documents = append(s.documents, document.Content[0])
		}
	}
	var faults []error
	for _, root := range s.documents {
		s.settle(root)
		s.check(root, make(map[*yaml.Node]bool), &faults)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return s, nil
}

// strayMark is the line that begins with a byte order mark which is not the file's first character; 0 when there is none.
func (s *source) strayMark() int {
	if bytes.Count(s.text, bom) == 0 {
		return 0
	}
	for i, start := range s.lines() {
		if bytes.HasPrefix(s.text[start:], bom) && (start > 0 || s.before > 0) {
			return i + 1
		}
	}
	return 0
}

// settle gives every node the line that it has in its file.
func (s *source) settle(n *yaml.Node) {
	n.Line += s.before
	for _, child := range n.Content {
		s.settle(child)
	}
}

// lines are the offsets of the text's lines. Most texts never need them.
func (s *source) lines() []int {
	if s.starts == nil {
		s.starts = lineStarts(s.text)
	}
	return s.starts
}

// forget drops all but the text.
func (s *source) forget() { s.documents, s.starts = nil, nil }

// lineStarts counts lines as the YAML parser does, which also breaks them at NEL, LS and PS (YAML 1.1, section 4.2).
func lineStarts(text []byte) []int {
	start := 0
	if bytes.HasPrefix(text, bom) {
		start = len(bom)
	}
	starts := []int{start}
	for i := start; i < len(text); {
		n := 0
		if mayBreak(text[i]) {
			n = breakLength(text[i:])
		}
		if n == 0 {
			i++
			continue
		}
		i += n
		starts = append(starts, i)
	}
	return starts
}

// mayBreak says whether a line break may begin with c. Few bytes do, and every byte is asked.
func mayBreak(c byte) bool { return c == '\n' || c == '\r' || c >= 0xc2 }

// breakLength is the length of the line break that b begins with, 0 when it begins with none.
func breakLength(b []byte) int {
	switch {
	case len(b) == 0:
		return 0
	case b[0] == '\n':
		return 1
	case b[0] == '\r':
		if len(b) > 1 && b[1] == '\n' {
			return 2
		}
		return 1
	case bytes.HasPrefix(b, []byte("\u0085")):
		return 2
	case bytes.HasPrefix(b, []byte("\u2028")), bytes.HasPrefix(b, []byte("\u2029")):
		return 3
	}
	return 0
}

// check refuses what parses and yet is no Kubernetes object, or cannot be read by those who read objects: keys that are not
// scalars (`image: {{ .Values.image }}` parses as one), duplicate keys, of which a reader would see another than the API server
// takes, merge keys that merge nothing, tags that lie, and aliases of what they stand in.
func (s *source) check(n *yaml.Node, around map[*yaml.Node]bool, faults *[]error) {
	fail := func(n *yaml.Node, format string, args ...any) {
		*faults = append(*faults, s.faultAt(codeYAML, n, format, args...))
	}
	switch n.Kind {
	case yaml.MappingNode:
		seen := make(map[string]*yaml.Node, len(n.Content)/2)
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode {
				message := "a key that is not a string; write it as one"
				if key.Kind == yaml.MappingNode {
					message = "a key that is not a string; if this is a template, render it first"
				}
				fail(key, "%s", message)
				continue
			}
			if first := seen[key.Value]; first != nil {
				fail(key, "duplicate key %q, the first is on line %d; keep one", key.Value, first.Line)
			}
			if key.Tag == "!!merge" && !merges(n.Content[i+1]) {
				fail(key, "<< merges mappings, and its value is none; give an alias of one, or take it away")
			}
			seen[key.Value] = key
		}
	case yaml.AliasNode:
		if around[n.Alias] {
			fail(n, "alias *%s repeats what it stands in, without end; take it away", n.Value)
		}
	case yaml.ScalarNode:
		if n.Style&yaml.TaggedStyle != 0 {
			var v any
			if err := n.Decode(&v); err != nil {
				fail(n, "%q is no %s; take the tag away, or write another value", n.Value, n.ShortTag())
			}
		}
	}
	if n.Anchor != "" {
		around[n] = true
		defer delete(around, n)
	}
	for _, child := range n.Content {
		s.check(child, around, faults)
	}
}

// merges says whether a merge key can have a value: a mapping, or a list of them.
func merges(n *yaml.Node) bool {
	if n = resolve(n); n == nil {
		return false
	}
	if n.Kind == yaml.SequenceNode {
		return !slices.ContainsFunc(n.Content, func(item *yaml.Node) bool {
			item = resolve(item)
			return item == nil || item.Kind != yaml.MappingNode
		})
	}
	return n.Kind == yaml.MappingNode
}

// syntaxFault turns "yaml: line 3: ..." into a fault with a place. The parser gives no column, so it is the line's first.
func (s *source) syntaxFault(err error) error {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		if number, text, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				if parserMessage(text) {
					n++ // the library counts these from 0
				}
				line, message = min(max(n, 1), len(s.lines())), text
			}
		}
	}
	start := s.lines()[line-1]
	content := s.text[start:s.lineEnd(start)]
	column := 1 + len(content) - len(bytes.TrimLeft(content, " \t"))
	if bytes.Contains(s.text, []byte("{{")) {
		message += "; if this is a template, render it first"
	}
	return s.fault(codeYAML, s.before+line, column, "not valid YAML: %s", message)
}

// parserMessage tells the messages of the library's parser from those of its scanner.
func parserMessage(text string) bool {
	for _, prefix := range []string{
		"did not find expected ", "found undefined tag handle", "found incompatible YAML document", "found duplicate %",
	} {
		if strings.HasPrefix(text, prefix) {
			return true
		}
	}
	return false
}

// offset is where a node's text begins.
func (s *source) offset(n *yaml.Node) int {
	lines := s.lines()
	line := n.Line - s.before
	if line < 1 || line > len(lines) {
		return len(s.text)
	}
	at := lines[line-1]
	for range n.Column - 1 {
		if at >= len(s.text) {
			return len(s.text)
		}
		_, size := utf8.DecodeRune(s.text[at:])
		at += size
	}
	return at
}

// lineStart is the offset of the line that at lies in.
func (s *source) lineStart(at int) int {
	lines := s.lines()
	i, found := slices.BinarySearch(lines, at)
	if !found {
		i = max(i-1, 0)
	}
	return lines[i]
}

// lineEnd is the offset of the line break after at, or of the end of the text.
func (s *source) lineEnd(at int) int {
	for at < len(s.text) && (!mayBreak(s.text[at]) || breakLength(s.text[at:]) == 0) {
		at++
	}
	return at
}

// nextLine is the offset of the line after the one that at lies in, or of the end of the text.
func (s *source) nextLine(at int) int {
	end := s.lineEnd(at)
	return end + breakLength(s.text[end:])
}

// eol is the line break that lines inserted at an offset should end with: that of the line before, else of the first line.
func (s *source) eol(at int) string {
	lines := s.lines()
	for _, before := range [][]byte{s.text[:at], s.text[:lines[min(1, len(lines)-1)]]} {
		if eol := finalBreak(before); eol != "" {
			return eol
		}
	}
	return "\n"
}

// finalBreak is the line break that text ends with; empty when it ends with none.
func finalBreak[T []byte | string](text T) string {
	tail := string(text[max(0, len(text)-2):])
	for _, eol := range []string{"\r\n", "\n", "\r"} {
		if strings.HasSuffix(tail, eol) {
			return eol
		}
	}
	return ""
}

// end is where a node's text ends, just after its last byte that is not blank. The parser does not say; but no content of
// a scalar vanishes or is escaped other than in quotes, so its value can be followed through the text.
// False means that the text is not what the tree says, and nothing may be spliced there.
func (s *source) end(n *yaml.Node) (int, bool) {
	at := s.skipProperties(n, s.offset(n))
	switch n.Kind {
	case yaml.AliasNode:
		return at + len("*") + len(n.Value), true
	case yaml.MappingNode, yaml.SequenceNode:
		return s.endOfCollection(n, at)
	case yaml.ScalarNode:
	default:
		return 0, false
	}
	switch {
	case n.Style&yaml.DoubleQuotedStyle != 0:
		return s.endOfQuotes(at, '"')
	case n.Style&yaml.SingleQuotedStyle != 0:
		return s.endOfQuotes(at, '\'')
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		end, ok := s.follow(s.lineEnd(at), n.Value)
		// With "+" the blank lines that follow are content too: each but the first break of the value's end is one.
		content := strings.TrimRight(n.Value, "\n")
		for range len(n.Value) - len(content) - 1 {
			end = s.nextLine(end)
		}
		return end, ok
	}
	return s.follow(at, n.Value)
}

func (s *source) endOfCollection(n *yaml.Node, at int) (int, bool) {
	last := at
	if len(n.Content) > 0 {
		var ok bool
		if last, ok = s.end(n.Content[len(n.Content)-1]); !ok {
			return 0, false
		}
	} else {
		last = at + 1 // an empty collection is a flow collection: behind its opening bracket
	}
	if !isFlow(n) {
		return last, len(n.Content) > 0
	}
	if len(n.Content) > 0 && !s.bracketed(n) {
		return last, true
	}
	closing := byte('}')
	if n.Kind == yaml.SequenceNode {
		closing = ']'
	}
	for last < len(s.text) {
		switch c := s.text[last]; {
		case c == closing:
			return last + 1, true
		case c == '#':
			last = s.lineEnd(last)
		case c == ',', isBlank(s.text[last:]) > 0:
			last++
		default:
			return 0, false
		}
	}
	return 0, false
}

// bracketed says whether a flow collection begins with its bracket, which a single pair in a flow list does without: [a: b].
func (s *source) bracketed(n *yaml.Node) bool {
	at := s.skipProperties(n, s.offset(n))
	return at < len(s.text) && (s.text[at] == '{' || s.text[at] == '[')
}

func (s *source) endOfQuotes(at int, quote byte) (int, bool) {
	if at >= len(s.text) || s.text[at] != quote {
		return 0, false
	}
	for i := at + 1; i < len(s.text); i++ {
		switch {
		case s.text[i] == '\\' && quote == '"':
			i++
		case s.text[i] != quote:
		case quote == '\'' && i+1 < len(s.text) && s.text[i+1] == quote:
			i++
		default:
			return i + 1, true
		}
	}
	return 0, false
}

// follow walks from at through everything in value that is not blank, and returns where that ends.
func (s *source) follow(at int, value string) (int, bool) {
	end := at
	for i := 0; i < len(value); {
		if n := isBlank([]byte(value[i:min(i+3, len(value))])); n > 0 {
			i += n
			continue
		}
		for at < len(s.text) {
			n := isBlank(s.text[at:])
			if n == 0 {
				break
			}
			at += n
		}
		if at >= len(s.text) || s.text[at] != value[i] {
			return 0, false
		}
		i++
		at++
		end = at
	}
	return end, true
}

// skipProperties skips the anchor and the tag that may stand before a node's content.
func (s *source) skipProperties(n *yaml.Node, at int) int {
	if n.Kind == yaml.AliasNode || n.Anchor == "" && n.Style&yaml.TaggedStyle == 0 {
		return at
	}
	empty := n.Kind == yaml.ScalarNode && n.Value == "" && n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|
		yaml.LiteralStyle|yaml.FoldedStyle) == 0
	for at < len(s.text) && (s.text[at] == '&' || s.text[at] == '!') {
		for at < len(s.text) && isBlank(s.text[at:]) == 0 {
			at++
		}
		if empty && !propertyFollows(s.text[at:]) {
			break // what comes next is somebody else's
		}
		for at < len(s.text) {
			blank := isBlank(s.text[at:])
			if blank == 0 {
				break
			}
			at += blank
		}
	}
	return at
}

// propertyFollows says whether another anchor or tag stands further on in the line.
func propertyFollows(b []byte) bool {
	b = bytes.TrimLeft(b, " \t")
	return len(b) > 0 && (b[0] == '&' || b[0] == '!')
}

// isBlank is the length of the space, tab or line break that b begins with, 0 when it begins with none.
func isBlank(b []byte) int {
	if len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		return 1
	}
	return breakLength(b)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func isFlow(n *yaml.Node) bool { return n.Style&yaml.FlowStyle != 0 || len(n.Content) == 0 }

// A Fault is something wrong in a file, and where.
type Fault struct {
	File string
	Code Code
	// Line and Column count from 1; Column counts characters.
	Line, Column int
	Message      string
}

func (f *Fault) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s: %s", f.File, f.Line, f.Column, f.Code, f.Message)
}

// ExitCode is 2: malformed input.
func (f *Fault) ExitCode() int { return 2 }

func (s *source) fault(code Code, line, column int, format string, args ...any) error {
	return &Fault{Code: code, File: s.name, Line: line, Column: column, Message: fmt.Sprintf(format, args...)}
}

func (s *source) faultAt(code Code, n *yaml.Node, format string, args ...any) error {
	return s.fault(code, n.Line, n.Column, format, args...)
}
