package generate

import (
	"bytes"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// part is a stretch of a file, as a rule one document, and what is kept of it: which pods and Services it has, and where
// something is to be spliced in. Its tree is dropped as soon as this is known, since the trees of many files are many times
// as large as they.
type part struct {
	*source  // without what an earlier run injected
	file     int
	given    []byte // with what an earlier run injected
	services []service
	targets  []*target
	faults   Faults
	warnings []*Fault
	accepted []*acceptance
	edits    []edit
	// print is of the tree without all that is injected.
	print fingerprint
	// stripped says that something was taken out, removed from which pods.
	stripped bool
	removed  []Pod
}

// split cuts a file before every line that begins a document. Such a line is a marker wherever it stands (YAML 1.2, 9.1.2),
// so no string is cut. A file with directives, which belong to the document after them, stays whole.
func split(name string, text []byte) []*source {
	lines := 0
	var parts []*source
	add := func(text []byte) {
		parts = append(parts, &source{name: name, text: text, before: lines})
		lines += countLines(text)
	}
	if !directives(text) {
		for at := 0; ; {
			next := bytes.Index(text[at:], []byte("\n---"))
			if next < 0 {
				break
			}
			at += next + 1
			if after := text[at+len("---"):]; len(after) == 0 || isBlank(after) > 0 {
				add(text[:at:at])
				text, at = text[at:], 0
			}
		}
	}
	add(text)
	return parts
}

func directives(text []byte) bool {
	return bytes.HasPrefix(bytes.TrimPrefix(text, bom), []byte("%")) || bytes.Contains(text, []byte("\n%")) ||
		bytes.Contains(text, []byte("\r%"))
}

// countLines is how many line breaks text has.
func countLines(text []byte) int {
	lines := 0
	for i := 0; i < len(text); i++ {
		if mayBreak(text[i]) {
			if n := breakLength(text[i:]); n > 0 {
				lines++
				i += n - 1
			}
		}
	}
	return lines
}

// readParts reads all files part by part, and keeps what read makes of each, in their order.
func (g *generator) readParts(files []File, read func(*source) *part) {
	var sources []*source
	var owners []int
	for i, f := range files {
		for _, s := range split(f.Name, f.Text) {
			sources = append(sources, s)
			owners = append(owners, i)
		}
	}
	g.parts = make([]*part, len(sources))
	parallel(len(sources), func(i int) {
		g.parts[i] = read(sources[i])
		g.parts[i].file = owners[i]
	})
	for _, p := range g.parts {
		g.services = append(g.services, p.services...)
		g.targets = append(g.targets, p.targets...)
		g.fail(p.faults...)
		g.warnings = append(g.warnings, p.warnings...)
		g.accepted = append(g.accepted, p.accepted...)
	}
}

// assemble makes files of what text returns for each part. A file in which nothing changed is the one that came in.
func (g *generator) assemble(files []File, text func(*part) []byte) []File {
	const (
		window = 64      // so few texts exist twice at a time
		added  = 6 << 10 // what a pod grows by, about
	)
	made := slices.Clone(files)
	parts := g.parts
	for i := range files {
		n := 0
		for n < len(parts) && parts[n].file == i {
			n++
		}
		of := parts[:n]
		parts = parts[n:]
		if !slices.ContainsFunc(of, (*part).changes) {
			continue
		}
		var b bytes.Buffer
		same, differs := 0, false // so many bytes were the same so far, and are not copied yet
		for chunk := range slices.Chunk(of, window) {
			texts := make([][]byte, len(chunk))
			parallel(len(chunk), func(i int) { texts[i] = text(chunk[i]) })
			for n, t := range texts {
				if !differs && bytes.Equal(t, chunk[n].given) {
					same += len(t)
					continue
				}
				if !differs {
					differs = true
					b.Grow(len(files[i].Text) + added*countTargets(of))
					b.Write(files[i].Text[:same])
				}
				b.Write(t)
			}
		}
		if differs {
			made[i].Text = b.Bytes()
		}
	}
	return made
}

// changes says whether the part will be written otherwise than it was read.
func (p *part) changes() bool { return len(p.edits) > 0 || p.stripped }

func countTargets(parts []*part) int {
	n := 0
	for _, p := range parts {
		n += len(p.targets)
	}
	return n
}

// parallel calls do for every i below n, on all processors.
func parallel(n int, do func(i int)) {
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				do(int(i))
			}
		})
	}
	workers.Wait()
}
