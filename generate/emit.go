package generate

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
)

// What is injected is data: mappings in the order they are written, lists, strings, numbers and booleans.
type (
	mapping []field
	field   struct {
		key   string
		value any
	}
	list []any
)

// layout is how block style is written at a place, taken from what stands around it.
type layout struct {
	// dash is how far the items of a list stand right of its key: people write 0 or 2.
	dash int
	eol  string
}

// plain matches strings that need no quotes in any version of YAML, words like "yes" aside.
var plain = regexp.MustCompile(`^(/?[A-Za-z][A-Za-z0-9._/-]*(:[A-Za-z0-9._/-]+)*|[0-9]+(m|Mi|Gi))$`)

var words = map[string]bool{
	"y": true, "n": true, "yes": true, "no": true, "on": true, "off": true, "true": true, "false": true, "null": true,
}

// scalar is a scalar as it is written in block style. JSON in single quotes stays readable.
func scalar(v any) string {
	s, ok := v.(string)
	switch {
	case !ok:
	case plain.MatchString(s) && !words[strings.ToLower(s)]:
		return s
	case strings.Contains(s, `"`) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }):
		return "'" + strings.ReplaceAll(s, "'", "''") + "'"
	}
	return flow(v)
}

// flow is a value on one line, as JSON, which every YAML parser reads.
func flow(v any) string {
	switch v := v.(type) {
	case mapping:
		return "{" + flowEntries(v) + "}"
	case list:
		return "[" + flowItems(v) + "]"
	case string:
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		_ = e.Encode(v) // a string and a bytes.Buffer: nothing can fail
		return strings.TrimSuffix(b.String(), "\n")
	case bool:
		return strconv.FormatBool(v)
	case int:
		return strconv.Itoa(v)
	}
	panic("generate: a value of no YAML type")
}

// flowEntries is a mapping without its braces.
func flowEntries(m mapping) string {
	parts := make([]string, len(m))
	for i, f := range m {
		parts[i] = flow(f.key) + ": " + flow(f.value)
	}
	return strings.Join(parts, ", ")
}

// flowItems is a list without its brackets.
func flowItems(l list) string {
	parts := make([]string, len(l))
	for i, item := range l {
		parts[i] = flow(item)
	}
	return strings.Join(parts, ", ")
}

// block writes the entries of a mapping as lines, indented.
func (l layout) block(b *strings.Builder, m mapping, indent int) {
	for _, f := range m {
		b.WriteString(strings.Repeat(" ", indent))
		l.entry(b, f, indent)
	}
}

// items writes the items of a list as lines, each dash at the indentation.
func (l layout) items(b *strings.Builder, items list, indent int) {
	for _, item := range items {
		b.WriteString(strings.Repeat(" ", indent) + "- ")
		m, ok := item.(mapping)
		if !ok {
			b.WriteString(scalar(item) + l.eol)
			continue
		}
		l.entry(b, m[0], indent+2)
		l.block(b, m[1:], indent+2)
	}
}

// entry writes an entry whose key stands at the indentation. Short lists of scalars stay on its line.
func (l layout) entry(b *strings.Builder, f field, indent int) {
	b.WriteString(flowKey(f.key) + ":")
	switch v := f.value.(type) {
	case mapping:
		b.WriteString(l.eol)
		l.block(b, v, indent+2)
	case list:
		if _, ok := v[0].(mapping); !ok && len(flow(v)) <= 72 {
			b.WriteString(" " + flow(v) + l.eol)
			return
		}
		b.WriteString(l.eol)
		l.items(b, v, indent+l.dash)
	default:
		b.WriteString(" " + scalar(v) + l.eol)
	}
}

func flowKey(key string) string {
	if s := scalar(key); !strings.HasPrefix(s, `"`) {
		return s
	}
	return flow(key)
}
