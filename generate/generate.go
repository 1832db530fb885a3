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
	"fmt"
	"hash/maphash"
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
	// Placement says where Initializer and mesh proxy run; empty means in containers.
	Placement initdata.Placement
	// Known are identities that policies carry besides those of the files' pods.
	Known []pki.SAN
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
	// Before is the policy hash that the file had of it, not Valid where it had none.
	Before attestation.PolicyHash
	Policy manifest.Policy
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
	result := &Result{Warnings: g.messages()}
	for _, t := range g.targets {
		result.Pods = append(result.Pods, t.result())
	}
	return result, nil
}

func inspect(files []File, options Options) (*generator, error) {
	g := &generator{Options: options}
	g.readParts(files, g.read)
	coordinator := g.coordinatorHost()
	for _, t := range g.targets {
		t.coordinator = coordinator(t)
		t.images = g.Images
	}
	if len(g.faults) == 0 {
		g.assignIdentities()
		g.checkPeers()
	}
	g.checkAccepted()
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
	result := &Result{Warnings: g.messages()}
	result.Files = g.assemble(files, g.splice)
	for _, p := range g.parts {
		g.fail(p.faults...)
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
	parts    []*part
	services []service
	targets  []*target
	faults   Faults
	warnings []*Fault
	accepted []*acceptance
}

// target is a confidential pod. Of its tree only what is asked for later is kept: its node tells the place and no more.
type target struct {
	object
	labels map[string]string
	injection
	sans       []pki.SAN
	config     initdata.PodConfig
	hash       attestation.PolicyHash
	annotation string
	before     attestation.PolicyHash
	// stable are the names that the target's pods keep, with the Service that they have them in.
	stable    stableNames
	portNames map[string]config.Port
}

func (g *generator) fail(faults ...error) { g.faults = append(g.faults, faults...) }

// warn warns of something in an object, unless that accepts it.
func (g *generator) warn(code Code, o object, n *yaml.Node, format string, args ...any) {
	if o.accepts != nil && byCode[code].Acceptable && o.accepts.takes(code) {
		return
	}
	g.warnings = append(g.warnings, &Fault{o.src.name, code, n.Line, n.Column, fmt.Sprintf(format, args...)})
}

// messages are the warnings in words.
func (g *generator) messages() []string {
	var all []string
	for _, w := range g.warnings {
		all = append(all, w.Error())
	}
	return all
}

// read reads a part, takes out what an earlier run injected, finds Services and confidential pods, and where to inject.
func (g *generator) read(s *source) *part {
	r := &reader{generator: &generator{Options: g.Options}, before: make(map[string]attestation.PolicyHash)}
	p := &part{source: s, given: s.text}
	if stripped, changed, err := r.readStripped(s); err != nil {
		r.fail(flatten(err)...)
	} else {
		p.source, p.stripped = stripped, changed
		for _, o := range stripped.objects(g.Namespace) {
			o.accepts = r.readAcceptance(o)
			if svc, ok := o.service(); ok {
				r.services = append(r.services, svc)
			}
			r.readObject(o)
		}
		r.plan(p)
		stripped.forget()
	}
	p.services, p.targets, p.faults, p.warnings, p.accepted = r.services, r.targets, r.faults, r.warnings, r.accepted
	return p
}

// reader reads one part.
type reader struct {
	*generator
	pods []pod // of the targets
	// before are the policy hashes that an earlier run gave, by object.
	before map[string]attestation.PolicyHash
}

// readObject reads an object. Whatever must see the tree of a pod is done here: it is not kept.
func (g *reader) readObject(o object) {
	p, ok := o.pod()
	if !ok {
		g.fail(o.checkUnknownKind()...)
		return
	}
	if !p.confidential(g.RuntimeClasses) {
		g.fail(p.checkForeign(g.RuntimeClasses)...)
		g.checkRuntime(p)
		return
	}
	if p.name == "" {
		g.fail(o.src.faultAt(codeNoName, o.node, "this %s has no metadata.name; its initdata needs one, so give it one", o.kind))
		return
	}
	settings, faults := p.readSettings(g.Placement)
	if len(faults) > 0 {
		g.fail(faults...)
		return
	}
	if settings.parsed != nil && settings.parsed.Mode == config.Disabled {
		g.warn(codeDisabled, o, settings.at[annotationIngress], "DISABLED takes the guard away: everything comes in to %v as it is", p)
	}
	if settings.parsed != nil {
		g.readProbes(p, &settings)
	}
	g.checkHazards(p, settings)
	g.pods = append(g.pods, p)
	o.node = &yaml.Node{Kind: o.node.Kind, Line: o.node.Line, Column: o.node.Column}
	g.targets = append(g.targets, &target{
		object: o, labels: p.labels(), injection: injection{settings: settings}, before: g.before[o.String()],
		stable: p.stableNames(), portNames: p.portNames(),
	})
}

// readStripped parses a source, and takes out what an earlier run injected.
func (g *reader) readStripped(s *source) (stripped *source, changed bool, err error) {
	s, err = parse(s.name, s.text, s.before)
	if err != nil {
		return nil, false, err
	}
	names := newSplicer(s)
	var injected []pod
	for _, o := range s.objects(g.Namespace) {
		p, ok := o.pod()
		switch {
		case !ok:
		case p.injected():
			injected = append(injected, p)
			g.before[o.String()] = p.hashBefore()
			if g.Pin == nil && p.pinned() {
				g.warn(codeUnpinned, o, p.node, "%v was pinned to its Coordinator and is no longer: it will join the mesh of any Coordinator that answers", p)
			}
		case p.confidential(g.RuntimeClasses):
			names.checkNames(p)
		}
	}
	if len(names.faults) > 0 {
		return nil, false, Faults(names.faults)
	}
	stripped, err = g.strip(s, injected)
	return stripped, stripped != s, err
}

// plan says where to inject into the targets of a part, and what the rest of it looks like.
func (g *reader) plan(p *part) {
	if len(g.targets) == 0 || len(g.faults) > 0 {
		return
	}
	sp := newSplicer(p.source)
	probes := make([]map[string]string, len(g.pods))
	for i, t := range g.targets {
		sp.inject(g.pods[i], t)
		probes[i] = t.probePaths()
	}
	sp.checkAliases()
	slices.SortStableFunc(sp.faults, byPlace)
	g.fail(sp.faults...)
	p.edits = sp.edits
	p.print = p.printWithout(g.pods, probes, false)
	for _, t := range g.targets {
		for i := range t.probes { // without their trees
			t.probes[i] = rewrite{probe: t.probes[i].probe}
		}
	}
}

// injected says whether an earlier run injected into a pod, whatever its runtime class is now.
func (p pod) injected() bool {
	if first := get(p.spec, "initContainers"); first != nil && slices.ContainsFunc(first.Content, ourContainer) {
		return true
	}
	_, value := p.ownAnnotation(initdata.Annotation)
	return value != nil && ourInitdata(value)
}

// hashBefore is the policy hash that an earlier run gave the pod.
func (p pod) hashBefore() attestation.PolicyHash {
	if _, value := p.ownAnnotation(initdata.Annotation); value != nil && value.Kind == yaml.ScalarNode {
		if document, err := initdata.Decode(value.Value); err == nil {
			return initdata.Digest(document)
		}
	}
	return attestation.PolicyHash{}
}

// measure makes each target's initdata, policy hash and annotation.
func (g *generator) measure(ctx context.Context) error {
	first := make(map[attestation.PolicyHash]*target)
	for _, p := range g.parts {
		objects, err := g.injectedObjects(p)
		if err != nil {
			return err
		}
		for i, t := range p.targets {
			if err := g.measureOne(ctx, t, objects[i]); err != nil {
				return err
			}
			if other := first[t.hash]; other != nil {
				g.fail(t.src.faultAt(codeOneHash, t.node, "%v is here already at %s: two pods with one policy hash have one identity; "+
					"give them different names", t.object, other.place()))
			}
			first[t.hash] = t
		}
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
		return fmt.Errorf("%s:%d: %s: policy of %v: %w", t.place(), t.node.Column, codePolicy, t.object, err)
	}
	if err := t.measure(policy); err != nil {
		return fmt.Errorf("%s:%d: %s: %v: %w", t.place(), t.node.Column, codePolicy, t.object, err)
	}
	return nil
}

// configure says what the pod's initdata says of it.
func (t *target) configure() {
	t.config = initdata.PodConfig{
		Namespace: t.namespace, Kind: t.kind, Name: t.name,
		Placement: t.placement,
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
	data := map[string]string{initdata.KeyPolicy: policy, initdata.KeyConfig: text}
	if t.placement == initdata.Guest && t.pin != "" {
		data[initdata.KeyPin] = t.pin
	}
	document, err := initdata.Build(data)
	if err != nil {
		return err
	}
	t.hash = initdata.Digest(document)
	t.annotation, err = initdata.Encode(document)
	return err
}

// injectedObjects returns the objects of a part's targets with their containers injected, as the policy must see them, but
// without their initdata, which holds the policy. One policy for all needs to see none.
func (g *generator) injectedObjects(p *part) ([][]byte, error) {
	all := make([][]byte, len(p.targets))
	if _, fixed := g.Policy.(FixedPolicy); fixed || len(all) == 0 {
		return all, nil
	}
	injected, err := parse(p.name, apply(p.text, p.edits), p.before)
	if err != nil {
		return nil, err
	}
	var cut pruning
	for i, pod := range g.confidentialPods(injected) {
		if _, metadata := own(pod.template, "metadata"); metadata != nil {
			if _, annotations := own(metadata, "annotations"); annotations != nil {
				cut.entries(annotations, func(k, _ *yaml.Node) bool { return k.Value == initdata.Annotation })
			}
			cut.entries(metadata, func(k, v *yaml.Node) bool { return k.Value == "annotations" && isEmpty(v) })
		}
		if i >= len(all) {
			break
		}
		if all[i], err = yaml.Marshal(pod.node); err != nil {
			return nil, fmt.Errorf("%s: %w", place(injected, pod.node), err)
		}
	}
	return all, nil
}

func (g *generator) confidentialPods(s *source) []pod {
	var pods []pod
	for _, o := range s.objects(g.Namespace) {
		if p, ok := o.pod(); ok && p.confidential(g.RuntimeClasses) {
			pods = append(pods, p)
		}
	}
	return pods
}

// splice injects into one part. What it makes is read again: but for the injection it must be what it was, and taking the
// injection out again must give the same bytes.
func (g *generator) splice(p *part) []byte {
	if len(p.edits) == 0 {
		return p.text
	}
	text := apply(p.text, p.edits)
	if bytes.Equal(text, p.given) { // as an earlier run made it; taking it out was checked
		return p.given
	}
	if err := g.checkSplice(p, text); err != nil {
		p.faults = append(p.faults, err)
	}
	return text
}

func (t *target) result() Pod {
	policy := manifest.Policy{SANs: t.sans, WorkloadSecretID: t.secretID}
	_ = policy.Pod.UnmarshalText([]byte(t.object.String())) // stays empty for a name that Kubernetes would refuse
	if t.role == initdata.Coordinator {
		policy.Role = manifest.RoleCoordinator
	}
	return Pod{
		File: t.src.name, Line: t.node.Line,
		Namespace: t.namespace, Kind: t.kind, Name: t.name,
		Hash: t.hash, Before: t.before, Policy: policy, Config: t.config, Mesh: t.parsed,
		Initializer: t.role == initdata.Workload && !t.skip,
	}
}

// probePaths are the paths of the target's probes at the mesh proxy, by container/kind.
func (t *target) probePaths() map[string]string {
	paths := make(map[string]string)
	for _, r := range t.probes {
		paths[r.probe.ID()] = r.probe.Path()
	}
	return paths
}

func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// checkSplice proves that text is a part with the injection, that nothing else changed, and that the injection can be taken
// out again without a trace.
func (g *generator) checkSplice(p *part, text []byte) error {
	const hint = "so nothing was written; write the pod template in plain block style"
	first := p.targets[0]
	result, err := parse(p.name, text, p.before)
	if err != nil {
		return p.faultAt(codeStyle, first.node, "with what generate would add, the file would not be valid YAML (%v), %s", err, hint)
	}
	pods := g.confidentialPods(result)
	if len(pods) != len(p.targets) {
		return p.faultAt(codeStyle, first.node, "what generate would add would change which pods there are, %s", hint)
	}
	var made []string
	var probes []map[string]string
	for _, t := range p.targets {
		made = append(made, t.annotation)
		probes = append(probes, t.probePaths())
	}
	back, err := result.without(pods, made)
	if err != nil || !bytes.Equal(back, p.text) {
		return p.faultAt(codeStyle, first.node, "what generate would add to %v could not be taken out again exactly, %s", first.object, hint)
	}
	if result.printWithout(pods, probes, true) == p.print {
		return nil
	}
	before, err := parse(p.name, p.text, p.before)
	if err != nil {
		return err
	}
	prune(g.confidentialPods(before), probes, false)
	prune(pods, probes, true)
	for i := range min(len(before.documents), len(result.documents)) {
		if n := difference(before.documents[i], result.documents[i]); n != nil {
			return p.faultAt(codeStyle, n, "what generate would add would change this too, %s (and end the file with a line break)", hint)
		}
	}
	return p.faultAt(codeStyle, first.node, "what generate would add would change the number of documents, %s", hint)
}

// fingerprint tells trees apart, within one run.
type fingerprint uint64

var printSeed = maphash.MakeSeed()

// printWithout is the fingerprint of a source's tree without the injection, and without those handlers of probes that
// generate replaces or, in an injected tree, put there.
func (s *source) printWithout(pods []pod, probes []map[string]string, injected bool) fingerprint {
	restore := prune(pods, probes, injected)
	defer restore()
	var h maphash.Hash
	h.SetSeed(printSeed)
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		for _, v := range []string{n.Tag, n.Value, n.Anchor} {
			_, _ = h.WriteString(v)
			_ = h.WriteByte(0xff) // which is in no UTF-8
		}
		_ = h.WriteByte(byte(n.Kind))
		maphash.WriteComparable(&h, len(n.Content))
		for _, child := range n.Content {
			walk(child)
		}
	}
	for _, root := range s.documents {
		walk(root)
	}
	return fingerprint(h.Sum64())
}

// pruning takes things out of a tree, and can put them back.
type pruning []prunedNode

type prunedNode struct {
	node    *yaml.Node
	content []*yaml.Node
}

func prune(pods []pod, probes []map[string]string, injected bool) (restore func()) {
	var cut pruning
	for i, p := range pods {
		cut.probes(p, probes[i], injected)
		cut.pod(p)
	}
	return func() {
		for _, c := range slices.Backward(cut) {
			c.node.Content = c.content
		}
	}
}

// pod takes out what generate injects, and whatever is left empty or was so.
func (c *pruning) pod(p pod) {
	for _, container := range p.containers() {
		c.items(container, "volumeMounts", func(n *yaml.Node) bool { return text(n, "name") == volumeSecrets })
	}
	c.items(p.spec, "initContainers", ourContainer)
	c.items(p.spec, "volumes", func(n *yaml.Node) bool {
		name := text(n, "name")
		return name == volumeSecrets || name == volumeMeshproxy
	})
	if _, metadata := own(p.template, "metadata"); metadata != nil {
		if _, annotations := own(metadata, "annotations"); annotations != nil {
			c.entries(annotations, func(k, _ *yaml.Node) bool { return slices.Contains(annotationsOurs, k.Value) })
		}
		c.entries(metadata, func(k, v *yaml.Node) bool { return k.Value == "annotations" && isEmpty(v) })
	}
	c.entries(p.template, func(k, v *yaml.Node) bool { return k.Value == "metadata" && isEmpty(v) })
}

func isEmpty(n *yaml.Node) bool {
	return isNull(n) || n.Kind != yaml.ScalarNode && n.Kind != yaml.AliasNode && len(n.Content) == 0
}

func (c *pruning) items(parent *yaml.Node, key string, ours func(n *yaml.Node) bool) {
	if _, v := own(parent, key); v != nil && v.Kind == yaml.SequenceNode && slices.ContainsFunc(v.Content, ours) {
		*c = append(*c, prunedNode{v, v.Content})
		v.Content = slices.DeleteFunc(slices.Clone(v.Content), ours)
	}
	c.entries(parent, func(k, v *yaml.Node) bool { return k.Value == key && isEmpty(v) })
}

func (c *pruning) entries(m *yaml.Node, drop func(k, v *yaml.Node) bool) {
	var kept []*yaml.Node
	for i := 0; i+1 < len(m.Content); i += 2 {
		if !drop(m.Content[i], m.Content[i+1]) {
			kept = append(kept, m.Content[i], m.Content[i+1])
		}
	}
	if len(kept) < len(m.Content) {
		*c = append(*c, prunedNode{m, m.Content})
		m.Content = kept
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
