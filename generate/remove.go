package generate

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/guest/initdata"
)

// What generate adds can be told from what was there by its names, and taken out of the text again, with one exception: a
// value without content (`volumes: ~`, `annotations: {}`) that was filled. What it was is kept in an annotation. Whatever was
// filled and is not in there was made by generate, key and all.

// annotationEmpty has what stood there instead of each value that was filled, by names as in "volumes" and
// "web/volumeMounts", as JSON.
const annotationEmpty = "portcullis.dev/original-empty-values"

// What a value without content may have been, other than a null.
const (
	emptyMapping = "{}"
	emptyList    = "[]"
)

// nulls are all the ways to write one.
var nulls = []string{"", "~", "null", "Null", "NULL"}

// originals are what the values without content of one pod were.
type originals map[string]string

// original is one of them, to be kept if it is filled.
type original struct {
	of   originals
	name string
}

func (o originals) at(name string) *original { return &original{o, name} }

func (o *original) keep(text string) { o.of[o.name] = text }

// text is the annotation's value.
func (o originals) text() string {
	b, _ := json.Marshal(o) // strings: nothing can fail
	return string(b)
}

// isNull says whether a value was a null, and how it was written.
func (o originals) isNull(name string) (text string, ok bool) {
	text, ok = o[name]
	return text, ok && slices.Contains(nulls, text)
}

// readOriginals reads the annotation. Its values are spliced in, so they must be what they can be.
func (s *splicer) readOriginals(p pod) originals {
	_, value := p.ownAnnotation(annotationEmpty)
	if value == nil {
		return nil
	}
	var o originals
	bad := value.Kind != yaml.ScalarNode || json.Unmarshal([]byte(value.Value), &o) != nil
	for _, text := range o {
		bad = bad || text != emptyMapping && text != emptyList && !slices.Contains(nulls, text)
	}
	if bad {
		s.failAt(codeEdited, value, "annotation %s is not as generate writes it; remove it, and what generate added to the values that were empty",
			annotationEmpty)
		return nil
	}
	return o
}

// Remove returns files without what Inject put into them, byte for byte as they were, but for what people changed since. Of
// the pods it returns those that lost something. The error is a Faults when the files are at fault.
func Remove(files []File, options Options) (*Result, error) {
	g := &generator{Options: options}
	g.readParts(files, g.withdraw)
	if len(g.faults) > 0 {
		return nil, g.faults
	}
	result := &Result{Files: g.assemble(files, func(p *part) []byte { return p.text })}
	for _, p := range g.parts {
		result.Pods = append(result.Pods, p.removed...)
	}
	return result, nil
}

// withdraw reads a part and takes the injection out of it.
func (g *generator) withdraw(s *source) *part {
	p := &part{source: s, given: s.text}
	read, err := parse(s.name, s.text, s.before)
	if err != nil {
		p.faults = flatten(err)
		return p
	}
	var pods []pod
	for _, o := range read.objects(g.Namespace) {
		if pod, ok := o.pod(); ok && pod.injected() {
			pods = append(pods, pod)
			p.removed = append(p.removed, Pod{
				File: s.name, Line: pod.node.Line, Namespace: pod.namespace, Kind: pod.kind, Name: pod.name,
			})
		}
	}
	stripped, err := g.strip(read, pods)
	if err != nil {
		p.faults = flatten(err)
		return p
	}
	p.source, p.stripped = stripped, stripped != read
	stripped.forget()
	return p
}

// strip takes the injection out of pods of a source, reads the result again, and compares: nothing else may differ.
func (g *generator) strip(s *source, pods []pod) (*source, error) {
	if len(pods) == 0 {
		return s, nil
	}
	text, err := s.without(pods, nil)
	if err != nil {
		return nil, err
	}
	after, err := parse(s.name, text, s.before)
	if err != nil {
		return nil, s.faultAt(codeEdited, pods[0].node, "without what generate added to %v the file would not be valid YAML (%v); was it edited by hand? "+
			"Write the pod template in plain block style, or take out by hand what generate added", pods[0], err)
	}
	probes := make([]map[string]string, len(pods))
	for i, p := range pods {
		probes[i] = p.replacedProbes()
	}
	was := s.printWithout(pods, probes, true)
	if is := after.printWithout(g.samePods(s, pods, after), probes, false); is != was {
		return nil, s.faultAt(codeEdited, pods[0].node, "what generate added to %v was moved, and cannot be taken out again without changing more; "+
			"take it out by hand", pods[0])
	}
	return after, nil
}

// samePods finds pods of s in after, which has the same objects.
func (g *generator) samePods(s *source, pods []pod, after *source) []pod {
	var same []pod
	is := after.objects(g.Namespace)
	for i, o := range s.objects(g.Namespace) {
		if !slices.ContainsFunc(pods, func(p pod) bool { return p.node == o.node }) || i >= len(is) {
			continue
		}
		if p, ok := is[i].pod(); ok {
			same = append(same, p)
		}
	}
	return same
}

// without is the source's text without what was injected into pods. Made are annotations that were made a moment ago, and
// need not be unpacked to know that generate wrote them.
func (s *source) without(pods []pod, made []string) ([]byte, error) {
	sp := newSplicer(s)
	for _, p := range pods {
		sp.strip(p, made)
	}
	sp.removeFlow()
	if len(sp.faults) > 0 {
		slices.SortStableFunc(sp.faults, byPlace)
		return nil, Faults(sp.faults)
	}
	sp.closeEnd()
	return apply(s.text, sp.edits), nil
}

// strip takes out of a pod what an earlier run injected.
func (s *splicer) strip(p pod, made []string) {
	was := s.readOriginals(p)
	for _, c := range p.containers() {
		if !ourContainer(c) {
			s.removeItems(c, "volumeMounts", was, text(c, "name")+"/volumeMounts", s.ourMount)
		}
	}
	s.removeItems(p.spec, "initContainers", was, "initContainers", ourContainer)
	s.removeItems(p.spec, "volumes", was, "volumes", s.ourVolume)
	s.restoreProbes(p)
	s.stripAnnotations(p, was, made)
}

// annotationsOurs are what generate adds to a pod's annotations.
var annotationsOurs = []string{initdata.Annotation, annotationProbes, annotationEmpty}

func (s *splicer) stripAnnotations(p pod, was originals, made []string) {
	_, metadata := own(p.template, "metadata")
	if metadata == nil || metadata.Kind != yaml.MappingNode {
		return
	}
	key, annotations := own(metadata, "annotations")
	if annotations == nil || annotations.Kind != yaml.MappingNode {
		return
	}
	var gone []int
	for i := 0; i < len(annotations.Content); i += 2 {
		name, value := annotations.Content[i], annotations.Content[i+1]
		switch {
		case !slices.Contains(annotationsOurs, name.Value):
			continue
		case name.Value == initdata.Annotation && !slices.Contains(made, value.Value) && !ourInitdata(value):
			s.failAt(codeOurs, name, "%s is here already and generate did not write it; remove it", name.Value)
			return
		}
		gone = append(gone, i)
	}
	alone := len(gone) > 0 && 2*len(gone) == len(annotations.Content)
	_, kept := was["annotations"]
	_, keptMetadata := was["metadata"]
	switch null, wasNull := was.isNull("metadata"); {
	case alone && !kept && len(metadata.Content) == 2 && wasNull && isFlow(metadata):
		s.restoreNull(metadata, null)
	case alone && !kept && len(metadata.Content) == 2 && !keptMetadata:
		metadataKey, _ := own(p.template, "metadata")
		s.removeEntry(p.template, metadataKey, metadata) // made for the annotations
	default:
		s.remove(metadata, key, annotations, 2, gone, was, "annotations")
	}
}

// removeItems takes out of the list that parent has under key the items that ours recognises.
func (s *splicer) removeItems(parent *yaml.Node, key string, was originals, name string, ours func(item *yaml.Node) bool) {
	k, v := own(parent, key)
	if v == nil || v.Kind != yaml.SequenceNode {
		return
	}
	var gone []int
	for i, item := range v.Content {
		if ours(item) {
			gone = append(gone, i)
		}
	}
	s.remove(parent, k, v, 1, gone, was, name)
}

// remove takes parts out of the collection that parent has under key; a part is step nodes long. When nothing else is left,
// the collection becomes what it was, and where it was nothing its entry goes.
func (s *splicer) remove(parent, key, n *yaml.Node, step int, gone []int, was originals, name string) {
	_, kept := was[name]
	null, wasNull := was.isNull(name)
	switch all := len(gone)*step == len(n.Content); {
	case len(gone) == 0:
	case all && (!kept || !isFlow(n)):
		s.removeEntry(parent, key, n)
	case all && wasNull:
		s.restoreNull(n, null)
	case isFlow(n):
		s.gone[n] = append(s.gone[n], gone...)
	case n.Kind == yaml.SequenceNode:
		for _, i := range gone {
			s.removeLines(n.Content[i], n, n.Content[i])
		}
	default:
		for _, i := range gone {
			s.removeLines(n.Content[i], n.Content[i], n.Content[i+1])
		}
	}
}

// removeEntry takes the entry with a key and a value out of a mapping.
func (s *splicer) removeEntry(m, key, value *yaml.Node) {
	if isFlow(m) {
		s.gone[m] = append(s.gone[m], slices.Index(m.Content, key))
		return
	}
	s.removeLines(key, key, value)
}

// restoreNull makes a flow collection a null again.
func (s *splicer) restoreNull(n *yaml.Node, null string) {
	from := s.offset(n)
	to, ok := s.end(n)
	if !ok {
		s.failAt(codeEdited, n, "cannot tell where this ends; replace it by hand with what it was, %q", null)
		return
	}
	if null == "" && from > 0 && s.text[from-1] == ' ' { // which fillNull put there
		from--
	}
	s.replace(from, to, func() string { return null })
}

// removeLines takes out the lines from the one that first begins on to the one that last ends on, but leaves lines that are
// comments: generate writes none. In a list the dash of the item stands before it.
func (s *splicer) removeLines(first, in, last *yaml.Node) {
	start := s.offset(first)
	from := s.lineStart(start)
	lead := strings.TrimLeft(string(s.text[from:start]), " ")
	if in.Kind == yaml.SequenceNode {
		lead = strings.TrimLeft(strings.TrimPrefix(lead, "-"), " ")
	}
	end, ok := s.end(last)
	if lead != "" || !ok {
		s.failAt(codeEdited, first, "generate injected this once, but it was moved since and cannot be replaced; remove it by hand")
		return
	}
	end = s.nextLine(end)
	for at := from; at < end; at = s.nextLine(at) {
		if comment := strings.TrimLeft(string(s.text[at:s.lineEnd(at)]), " \t"); strings.HasPrefix(comment, "#") {
			s.cut(from, at)
			from = s.nextLine(at)
		}
	}
	s.cut(from, end)
}

func (s *splicer) cut(from, to int) {
	if from < to {
		s.replace(from, to, nothing)
	}
}

// removeFlow takes out of flow collections what is gone, neighbours together.
func (s *splicer) removeFlow() {
	collections := slices.SortedFunc(maps.Keys(s.gone), func(a, b *yaml.Node) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	for _, n := range collections {
		step := 1
		if n.Kind == yaml.MappingNode {
			step = 2
		}
		gone := s.gone[n]
		slices.Sort(gone)
		for len(gone) > 0 {
			first, next := gone[0], gone[0]
			for len(gone) > 0 && gone[0] == next {
				gone, next = gone[1:], next+step
			}
			s.removeRun(n, first, next)
		}
	}
}

// removeRun takes the nodes [first, next) out of a flow collection.
func (s *splicer) removeRun(n *yaml.Node, first, next int) {
	from := s.offset(n.Content[first])
	to, ok := s.end(n.Content[next-1])
	switch {
	case !ok:
	case next < len(n.Content):
		to, ok = s.pastComma(to, s.offset(n.Content[next]))
	case first > 0: // the comma before it goes too
		from, ok = s.end(n.Content[first-1])
	}
	if !ok {
		s.failAt(codeEdited, n.Content[first], "cannot tell where this ends; remove it by hand")
		return
	}
	s.cut(from, to)
}

// pastComma is where the next part begins, or where a comment before it does.
func (s *splicer) pastComma(at, next int) (int, bool) {
	between := string(s.text[at:max(at, next)])
	before, after, ok := strings.Cut(between, ",")
	if !ok || strings.TrimSpace(before) != "" {
		return 0, false
	}
	if strings.TrimSpace(after) == "" {
		return next, true
	}
	return at + len(before) + len(","), true
}

// closeEnd makes the removal of a file's last lines leave a file without a final line break as it was: without one.
func (s *splicer) closeEnd() {
	if atLineStart(s.text) {
		return
	}
	slices.SortStableFunc(s.edits, func(a, b edit) int { return cmp.Compare(a.from, b.from) })
	edge := len(s.text)
	for i := len(s.edits) - 1; i >= 0 && s.edits[i].to == edge && s.edits[i].from < edge; i-- {
		edge = s.edits[i].from
		if i > 0 && s.edits[i-1].to == edge {
			continue
		}
		s.edits[i].from -= len(finalBreak(s.text[:edge]))
	}
}
