// Package generate turns the Kubernetes YAML that people write into the YAML that they apply, and into a manifest.
//
// To each pod of a confidential runtime class it adds the Initializer, the mesh proxy, the credentials' volume and the
// measured initdata, and to the manifest a policy under that initdata's hash. It adds by splicing: a parser says where the
// pod template stands, and lines are put in there. Every other byte of a person's file stays, comments included, since a
// tool that reformats what people review hides its own changes among the noise. What was injected is found again by its
// names, so the next run replaces it, and running twice equals running once.
//
// The threat is a mesh that its owner only believes in. An annotation on a pod that is not confidential, a misspelt one, a
// name that two pods share, a mount that hides the credentials: each is an error with its place in the file, all of them
// are reported at once, and then nothing is written.
package generate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/pki"
)

// File is a YAML or JSON file of Kubernetes objects.
type File struct {
	// Name is what messages call it.
	Name string
	Text []byte
}

// Options say how to inject.
type Options struct {
	// RuntimeClasses are the prefixes of the names of confidential runtime classes. Without any, no pod is confidential.
	RuntimeClasses []string
	// Namespace is that of objects that name none.
	Namespace string
	// CoordinatorHost is host or host:port. Empty means the Service that selects the Coordinator's pod.
	CoordinatorHost string
	// Pin is whom the pods trust beside the policy hash of the Coordinator among them, which Inject fills in. Nil leaves them
	// to join the mesh of any Coordinator.
	Pin    *manifest.Pin
	Images Images
	// Policy makes the agent's policy of a pod.
	Policy Policy
}

// Result is what Inject made.
type Result struct {
	// Files are the files in their order, those without a change too.
	Files []File
	// Pods are the confidential pods in their order.
	Pods     []Pod
	Warnings []string
}

// Pod is one confidential pod.
type Pod struct {
	File                  string
	Line                  int
	Namespace, Kind, Name string
	Hash                  attestation.PolicyHash
	Policy                manifest.Policy
	// Config is what the pod's initdata says.
	Config initdata.PodConfig
	// Mesh is nil for a pod without a mesh proxy.
	Mesh *config.Config
	// Initializer says whether the pod got one.
	Initializer bool
}

// Faults are all the things wrong with the input.
type Faults []error

func (f Faults) Error() string {
	if len(f) == 1 {
		return f[0].Error()
	}
	lines := make([]string, 0, len(f)+1)
	lines = append(lines, fmt.Sprintf("%d faults", len(f)))
	for _, fault := range f {
		lines = append(lines, fault.Error())
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives each fault.
func (f Faults) Unwrap() []error { return f }

// ExitCode is 2: malformed input.
func (Faults) ExitCode() int { return 2 }

// Inspect finds the confidential pods of files and what their annotations mean, and makes nothing: no policy is needed, the
// pods have no hash, the result has no files. The error is a Faults when the files are at fault.
func Inspect(files []File, options Options) (*Result, error) {
	g, err := inspect(files, options)
	if err != nil {
		return nil, err
	}
	result := &Result{Warnings: g.warnings}
	for _, t := range g.targets {
		result.Pods = append(result.Pods, t.result())
	}
	return result, nil
}

func inspect(files []File, options Options) (*generator, error) {
	g := &generator{Options: options}
	g.read(files)
	if len(g.faults) == 0 {
		g.assignIdentities()
		g.checkPeers()
		g.checkLocks()
	}
	if len(g.faults) > 0 {
		return nil, g.faults
	}
	for _, t := range g.targets {
		t.configure()
	}
	return g, nil
}

// Inject returns files with everything injected, and the pods it found. The error is a Faults when the files are at fault.
func Inject(ctx context.Context, files []File, options Options) (*Result, error) {
	g, err := inspect(files, options)
	if err != nil {
		return nil, err
	}
	if len(g.targets) > 0 && g.Policy == nil {
		return nil, errNoPolicy
	}
	if err := g.pin(ctx); err != nil {
		return nil, err
	}
	if err := g.measure(ctx); err != nil {
		return nil, err
	}
	result := &Result{Warnings: g.warnings}
	for _, s := range g.sources {
		text := g.splice(s, true)
		result.Files = append(result.Files, File{s.name, text})
	}
	if len(g.faults) > 0 {
		return nil, g.faults
	}
	for _, t := range g.targets {
		result.Pods = append(result.Pods, t.result())
	}
	return result, nil
}

// generator is one run over all files.
type generator struct {
	Options
	sources  []*source // without what an earlier run injected
	services []service
	targets  []*target
	faults   Faults
	warnings []string
}

// target is a confidential pod.
type target struct {
	pod
	injection
	sans       []pki.SAN
	config     initdata.PodConfig
	hash       attestation.PolicyHash
	annotation string
}

func (g *generator) fail(faults ...error) { g.faults = append(g.faults, faults...) }

func (g *generator) warn(s *source, n *yaml.Node, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if s != nil {
		message = fmt.Sprintf("%s:%d:%d: %s", s.name, n.Line, n.Column, message)
	}
	g.warnings = append(g.warnings, message)
}

// read parses the files, takes out what an earlier run injected, and finds Services and confidential pods.
func (g *generator) read(files []File) {
	for _, f := range files {
		s, err := g.parseStripped(f)
		if err != nil {
			g.fail(flatten(err)...)
			continue
		}
		g.sources = append(g.sources, s)
		for _, o := range s.objects(g.Namespace) {
			if svc, ok := o.service(); ok {
				g.services = append(g.services, svc)
			}
			g.readObject(o)
		}
	}
	for _, t := range g.targets {
		t.coordinator = g.coordinatorHost(t)
		t.images = g.Images
	}
}

func (g *generator) readObject(o object) {
	p, ok := o.pod()
	if !ok {
		g.fail(o.checkUnknownKind()...)
		return
	}
	if !p.confidential(g.RuntimeClasses) {
		g.fail(p.checkForeign(g.RuntimeClasses)...)
		return
	}
	if p.name == "" {
		g.fail(o.src.faultAt(o.node, "this %s has no metadata.name", o.kind))
		return
	}
	settings, faults := p.readSettings()
	if len(faults) > 0 {
		g.fail(faults...)
		return
	}
	if settings.parsed != nil && settings.parsed.Mode == config.Disabled {
		g.warn(o.src, settings.at[annotationIngress], "DISABLED takes the guard away: everything comes in to %v as it is", p)
	}
	if settings.parsed != nil {
		g.readProbes(p, &settings)
	}
	g.targets = append(g.targets, &target{pod: p, injection: injection{settings: settings}})
}

func (g *generator) parseStripped(f File) (*source, error) {
	s, err := parse(f.Name, f.Text)
	if err != nil {
		return nil, err
	}
	strip := newSplicer(s)
	for _, o := range s.objects(g.Namespace) {
		if p, ok := o.pod(); ok && (p.confidential(g.RuntimeClasses) || p.injected()) {
			if g.Pin == nil && p.pinned() {
				g.warn(s, p.node, "%v was pinned to its Coordinator and is no longer: it will join the mesh of any Coordinator that answers", p)
			}
			strip.strip(p)
		}
	}
	if len(strip.faults) > 0 {
		return nil, errors.Join(strip.faults...)
	}
	if len(strip.edits) == 0 {
		return s, nil
	}
	strip.closeEnd()
	return parse(f.Name, strip.apply())
}

// injected says whether an earlier run injected into a pod, whatever its runtime class is now.
func (p pod) injected() bool {
	if slices.ContainsFunc(p.containers(), ourContainer) {
		return true
	}
	if _, value := p.ownAnnotation(annotationProbes); value != nil {
		return true
	}
	_, value := p.ownAnnotation(initdata.Annotation)
	return value != nil && ourInitdata(value)
}

// measure makes each target's initdata, policy hash and annotation.
func (g *generator) measure(ctx context.Context) error {
	objects, err := g.injectedObjects()
	if err != nil {
		return err
	}
	first := make(map[attestation.PolicyHash]*target)
	for i, t := range g.targets {
		if err := g.measureOne(ctx, t, objects[i]); err != nil {
			return err
		}
		if other := first[t.hash]; other != nil {
			g.fail(t.src.faultAt(t.node, "%v is here already at %s: two pods with one policy hash have one identity; "+
				"give them different names", t.pod, other.place()))
		}
		first[t.hash] = t
	}
	if len(g.faults) > 0 {
		return g.faults
	}
	return nil
}

// measureOne measures a target, unless that was done, with its object as the policy must see it.
func (g *generator) measureOne(ctx context.Context, t *target, object []byte) error {
	if t.hash.Valid() {
		return nil
	}
	policy, err := g.Policy.Policy(ctx, object)
	if err != nil {
		return fmt.Errorf("policy of %v (%s): %w", t.pod, t.place(), err)
	}
	if err := t.measure(policy); err != nil {
		return fmt.Errorf("%s: %v: %w", t.place(), t.pod, err)
	}
	return nil
}

// configure says what the pod's initdata says of it.
func (t *target) configure() {
	t.config = initdata.PodConfig{
		Namespace: t.namespace, Kind: t.kind, Name: t.name,
		Placement: initdata.Sidecar,
		Role:      t.role,
		Guard:     t.guard(),
		Mesh:      t.mesh,
	}
	if t.role == initdata.Workload {
		t.config.CoordinatorHost = t.coordinator
	}
}

func (t *target) measure(policy string) error {
	text, err := t.config.Text()
	if err != nil {
		return err
	}
	document, err := initdata.Build(map[string]string{initdata.KeyPolicy: policy, initdata.KeyConfig: text})
	if err != nil {
		return err
	}
	t.hash = initdata.Digest(document)
	t.annotation, err = initdata.Encode(document)
	return err
}

// injectedObjects returns each target's object with its containers injected, as the policy must see it, but without its
// initdata, which holds the policy.
func (g *generator) injectedObjects() ([][]byte, error) {
	var all [][]byte
	for _, s := range g.sources {
		text := g.splice(s, false)
		if len(g.faults) > 0 {
			return nil, g.faults
		}
		injected, err := parse(s.name, text)
		if err != nil {
			return nil, err
		}
		for _, o := range injected.objects(g.Namespace) {
			p, ok := o.pod()
			if !ok || !p.confidential(g.RuntimeClasses) {
				continue
			}
			object, err := yaml.Marshal(o.node)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", place(injected, o.node), err)
			}
			all = append(all, object)
		}
	}
	return all, nil
}

// splice injects into one file. What it makes is read again and compared: nothing but the injected may differ.
func (g *generator) splice(s *source, withInitdata bool) []byte {
	sp := newSplicer(s)
	for _, t := range g.targetsOf(s) {
		annotation := ""
		if withInitdata {
			annotation = t.annotation
		}
		sp.inject(t.pod, t.injection, annotation)
	}
	sp.checkAliases()
	if len(sp.faults) > 0 {
		g.fail(sp.faults...)
		return nil
	}
	if len(sp.edits) == 0 {
		return s.text
	}
	text := sp.apply()
	if withInitdata {
		if err := g.checkSplice(s, text); err != nil {
			g.fail(err)
		}
	}
	return text
}

// targetsOf are the confidential pods of one file, in their order.
func (g *generator) targetsOf(s *source) []*target {
	return slices.DeleteFunc(slices.Clone(g.targets), func(t *target) bool { return t.src != s })
}

func (t *target) result() Pod {
	policy := manifest.Policy{SANs: t.sans, WorkloadSecretID: t.secretID}
	if t.role == initdata.Coordinator {
		policy.Role = manifest.RoleCoordinator
	}
	return Pod{
		File: t.src.name, Line: t.node.Line,
		Namespace: t.namespace, Kind: t.kind, Name: t.name,
		Hash: t.hash, Policy: policy, Config: t.config, Mesh: t.parsed,
		Initializer: len(t.sidecars()) > 0,
	}
}

func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// checkSplice proves that text is s with the injection and nothing else changed.
func (g *generator) checkSplice(s *source, text []byte) error {
	result, err := parse(s.name, text)
	if err != nil {
		return fmt.Errorf("internal error, nothing was written: the injected YAML does not parse: %w", err)
	}
	before, err := parse(s.name, s.text) // a tree of its own: it is cut down here
	if err != nil {
		return err
	}
	for _, tree := range []*source{before, result} {
		targets := g.targetsOf(s)
		for _, o := range tree.objects(g.Namespace) {
			if p, ok := o.pod(); ok && p.confidential(g.RuntimeClasses) && len(targets) > 0 {
				p.pruneProbes(targets[0].probes, tree == result)
				p.prune()
				targets = targets[1:]
			}
		}
	}
	if len(before.documents) != len(result.documents) {
		return s.fault(1, 1, "internal error, nothing was written: splicing would change the number of documents")
	}
	for i := range before.documents {
		if n := difference(before.documents[i], result.documents[i]); n != nil {
			return s.faultAt(n, "splicing would change this too, so nothing was written; write the pod template in plain block style")
		}
	}
	return nil
}

// prune takes out of the tree what generate injects, and whatever is left empty or was so.
func (p pod) prune() {
	for _, c := range p.containers() {
		dropItems(c, "volumeMounts", func(n *yaml.Node) bool { return text(n, "name") == volumeSecrets })
	}
	dropItems(p.spec, "initContainers", ourContainer)
	dropItems(p.spec, "volumes", func(n *yaml.Node) bool {
		name := text(n, "name")
		return name == volumeSecrets || name == volumeMeshproxy
	})
	if _, metadata := own(p.template, "metadata"); metadata != nil {
		if _, annotations := own(metadata, "annotations"); annotations != nil {
			dropEntry(annotations, func(k, _ *yaml.Node) bool { return slices.Contains(annotationsOurs, k.Value) })
		}
		dropEntry(metadata, func(k, v *yaml.Node) bool { return k.Value == "annotations" && isEmpty(v) })
	}
	dropEntry(p.template, func(k, v *yaml.Node) bool { return k.Value == "metadata" && isEmpty(v) })
}

func isEmpty(n *yaml.Node) bool {
	return isNull(n) || n.Kind != yaml.ScalarNode && n.Kind != yaml.AliasNode && len(n.Content) == 0
}

func dropItems(parent *yaml.Node, key string, ours func(n *yaml.Node) bool) {
	if _, v := own(parent, key); v != nil && v.Kind == yaml.SequenceNode {
		v.Content = slices.DeleteFunc(v.Content, ours)
	}
	dropEntry(parent, func(k, v *yaml.Node) bool { return k.Value == key && isEmpty(v) })
}

func dropEntry(m *yaml.Node, drop func(k, v *yaml.Node) bool) {
	for i := 0; i+1 < len(m.Content); {
		if drop(m.Content[i], m.Content[i+1]) {
			m.Content = slices.Delete(m.Content, i, i+2)
		} else {
			i += 2
		}
	}
}

// difference returns the node of a where b differs, nil when they are equal.
func difference(a, b *yaml.Node) *yaml.Node {
	if a.Kind != b.Kind || a.Tag != b.Tag || a.Value != b.Value || a.Anchor != b.Anchor || len(a.Content) != len(b.Content) {
		return a
	}
	for i := range a.Content {
		if n := difference(a.Content[i], b.Content[i]); n != nil {
			return n
		}
	}
	return nil
}

// Changed says whether f differs from the file of the same place in before.
func (f File) Changed(before File) bool { return !bytes.Equal(f.Text, before.Text) }
