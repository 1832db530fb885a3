package generate

import (
	"context"
	"errors"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/guest/initdata"
)

// argumentPin is the Initializer's argument that holds the pin.
const argumentPin = "--coordinator-pin="

// pin measures the Coordinator, whose initdata says nothing of the other pods, and pins those to it.
func (g *generator) pin(ctx context.Context) error {
	if g.Pin == nil || len(g.targets) == 0 {
		return nil
	}
	at := -1
	for i, t := range g.targets {
		if t.role != initdata.Coordinator {
			continue
		}
		if at >= 0 {
			return Faults{t.src.faultAt(codePin, t.node, "%v is a Coordinator, and so is %v at %s: pods are pinned to one",
				t.object, g.targets[at].object, g.targets[at].place())}
		}
		at = i
	}
	if at < 0 {
		return Faults{errors.New(string(codePin) + ": pods are to be pinned to their Coordinator, and no pod in these files is one: " +
			"give its YAML too, annotated " + annotationRole + ": " + string(initdata.Coordinator))}
	}
	coordinator := g.targets[at]
	for _, p := range g.parts {
		i := slices.Index(p.targets, coordinator)
		if i < 0 {
			continue
		}
		objects, err := g.injectedObjects(p)
		if err != nil {
			return err
		}
		if err := g.measureOne(ctx, coordinator, objects[i]); err != nil {
			return err
		}
	}
	pin := *g.Pin
	pin.PolicyHash = coordinator.hash
	text, err := pin.Text()
	if err != nil {
		return err
	}
	for _, t := range g.targets {
		t.pin = text
	}
	return nil
}

// pinned says whether an earlier run pinned the pod.
func (p pod) pinned() bool {
	if _, value := p.ownAnnotation(initdata.Annotation); value != nil { // with placement guest
		if document, err := initdata.Decode(value.Value); err == nil {
			if data, err := initdata.Parse(document); err == nil && data[initdata.KeyPin] != "" {
				return true
			}
		}
	}
	return slices.ContainsFunc(p.containers(), func(c *yaml.Node) bool {
		args := get(c, "args")
		return ourContainer(c) && args != nil && slices.ContainsFunc(args.Content, func(arg *yaml.Node) bool {
			return strings.HasPrefix(arg.Value, argumentPin)
		})
	})
}
