package generate

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// annotationAccept lists the codes that a person considered and accepts for an object.
const annotationAccept = "portcullis.dev/accept"

// acceptance is what an object's annotation accepts. Nil accepts nothing.
type acceptance struct {
	object
	codes []acceptedCode
}

type acceptedCode struct {
	Code
	at   *yaml.Node
	used bool
}

// takes says whether code is accepted, and notes that this was of use.
func (a *acceptance) takes(code Code) bool {
	if a == nil {
		return false
	}
	for i := range a.codes {
		if a.codes[i].Code == code {
			a.codes[i].used = true
			return true
		}
	}
	return false
}

// readAcceptance reads an object's annotation, on itself and on its pod template.
func (g *generator) readAcceptance(o object) *acceptance {
	a := &acceptance{object: object{src: o.src, kind: o.kind, namespace: o.namespace, name: o.name}}
	for _, annotations := range o.annotationMaps() {
		v := get(annotations, annotationAccept)
		if v == nil {
			continue
		}
		if v.Kind != yaml.ScalarNode || v.Tag != "!!str" {
			g.fail(o.src.faultAt(codeNotString, v, "annotation %s must be a string; put it in quotes", annotationAccept))
			continue
		}
		at := &yaml.Node{Line: v.Line, Column: v.Column}
		for word := range strings.SplitSeq(v.Value, ",") {
			word = strings.TrimSpace(word)
			e, known := Explain(word)
			switch {
			case word == "":
			case !known:
				g.warn(codeAcceptUnknown, o, at, "annotation %s: there is no code %q; docs/codes.md lists them", annotationAccept, word)
			case !e.Acceptable:
				g.warn(codeAcceptUnknown, o, at, "annotation %s: %s cannot be accepted; portcullis explain %s says why",
					annotationAccept, e.Code, e.Code)
			case !slices.ContainsFunc(a.codes, func(c acceptedCode) bool { return c.Code == e.Code }):
				a.codes = append(a.codes, acceptedCode{Code: e.Code, at: at})
			}
		}
	}
	if len(a.codes) == 0 {
		return nil
	}
	g.accepted = append(g.accepted, a)
	return a
}

// checkAccepted warns of what was accepted and never reported.
func (g *generator) checkAccepted() {
	for _, a := range g.accepted {
		for _, c := range a.codes {
			if !c.used {
				g.warn(codeAcceptUnused, a.object, c.at, "annotation %s: nothing in %v is reported as %s; take it out",
					annotationAccept, a.object, c.Code)
			}
		}
	}
}
