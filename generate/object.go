package generate

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// object is one Kubernetes object of a file: a document, or an item of a list in it.
type object struct {
	src             *source
	node            *yaml.Node // the object's mapping
	group, kind     string
	namespace, name string
	// inList says that the object shares its document with others.
	inList bool
	// accepts is what the object's annotation accepts.
	accepts *acceptance
}

// podPaths says where an object of each kind keeps its pod template: the keys on the way to the mapping that has the
// pod's metadata and spec. The kinds are those of the API groups "" (core), apps, extensions and batch.
var podPaths = map[string][]string{
	"Pod":                   {},
	"PodTemplate":           {"template"},
	"ReplicationController": {"spec", "template"},
	"Deployment":            {"spec", "template"},
	"ReplicaSet":            {"spec", "template"},
	"StatefulSet":           {"spec", "template"},
	"DaemonSet":             {"spec", "template"},
	"Job":                   {"spec", "template"},
	"CronJob":               {"spec", "jobTemplate", "spec", "template"},
}

// builtin lists the API groups that those kinds, and Service, belong to. A Job of another group is somebody else's.
var builtin = []string{"", "apps", "extensions", "batch"}

// objects returns every object of a file, those inside List (and PodList, DeploymentList, ...) one by one.
func (s *source) objects(defaultNamespace string) []object {
	var all []object
	for _, root := range s.documents {
		all = append(all, s.objectsIn(root, "", defaultNamespace, false)...)
	}
	return all
}

func (s *source) objectsIn(n *yaml.Node, impliedKind, defaultNamespace string, inList bool) []object {
	n = resolve(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	o := object{src: s, node: n, kind: text(n, "kind"), inList: inList}
	if o.kind == "" {
		o.kind = impliedKind
	}
	if group, _, ok := strings.Cut(text(n, "apiVersion"), "/"); ok {
		o.group = group
	}
	if item, ok := strings.CutSuffix(o.kind, "List"); ok {
		if items := get(n, "items"); items != nil && items.Kind == yaml.SequenceNode {
			var all []object
			for _, child := range items.Content {
				all = append(all, s.objectsIn(child, item, defaultNamespace, true)...)
			}
			return all
		}
	}
	metadata := get(n, "metadata")
	o.name = text(metadata, "name")
	if o.name == "" {
		o.name = text(metadata, "generateName")
	}
	o.namespace = text(metadata, "namespace")
	if o.namespace == "" {
		o.namespace = defaultNamespace
	}
	return []object{o}
}

// pod is the part of an object that describes its pods.
type pod struct {
	object
	// template has the pod's metadata and spec.
	template *yaml.Node
	spec     *yaml.Node
}

// pod finds the object's pod template. False for objects without one.
func (o object) pod() (pod, bool) {
	path, ok := podPaths[o.kind]
	if !ok || !slices.Contains(builtin, o.group) {
		return pod{}, false
	}
	template := o.node
	for _, key := range path {
		template = get(template, key)
	}
	spec := get(template, "spec")
	if spec == nil || spec.Kind != yaml.MappingNode {
		return pod{}, false
	}
	return pod{object: o, template: template, spec: spec}, true
}

// annotationMaps are the places where a person may annotate: the object, its pod template, and what stands between.
func (o object) annotationMaps() []*yaml.Node {
	var maps []*yaml.Node
	n := o.node
	path := podPaths[o.kind]
	for i := 0; ; i++ {
		if annotations := get(get(n, "metadata"), "annotations"); annotations != nil && annotations.Kind == yaml.MappingNode {
			maps = append(maps, annotations)
		}
		if i == len(path) {
			return maps
		}
		n = get(n, path[i])
	}
}

// labels are the labels of the object's pods.
func (p pod) labels() map[string]string { return texts(get(get(p.template, "metadata"), "labels")) }

// containers returns the pod's containers: those that run, and those that run before them.
func (p pod) containers() []*yaml.Node {
	var all []*yaml.Node
	for _, key := range []string{"initContainers", "containers"} {
		if list := get(p.spec, key); list != nil && list.Kind == yaml.SequenceNode {
			for _, c := range list.Content {
				if c = resolve(c); c != nil && c.Kind == yaml.MappingNode {
					all = append(all, c)
				}
			}
		}
	}
	return all
}

func (o object) String() string { return o.kind + " " + o.namespace + "/" + o.name }

// get is what a mapping has under a key, also through aliases and merge keys; nil when there is nothing.
func get(n *yaml.Node, key string) *yaml.Node {
	if n = resolve(n); n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	if _, v := own(n, key); v != nil && key != "<<" && resolve(v) != nil {
		return resolve(v)
	}
	if _, merged := own(n, "<<"); merged == nil { // as nearly always
		return nil
	}
	for _, p := range pairs(n) {
		if p.key.Value == key {
			return p.value
		}
	}
	return nil
}

// pair is one entry of a mapping. Its value is never an alias.
type pair struct{ key, value *yaml.Node }

// pairs are a mapping's entries: its own first, then those of its merge keys that it does not have itself.
func pairs(n *yaml.Node) []pair {
	var all []pair
	seen := make(map[string]bool)
	var add func(n *yaml.Node, depth int)
	add = func(n *yaml.Node, depth int) {
		if n = resolve(n); n == nil || depth > maxAliases {
			return
		}
		if n.Kind == yaml.SequenceNode && depth > 0 { // several mappings under one merge key
			for _, m := range n.Content {
				add(m, depth+1)
			}
			return
		}
		if n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], resolve(n.Content[i+1])
			if value == nil || key.Value == "<<" || seen[key.Value] {
				continue
			}
			seen[key.Value] = true
			all = append(all, pair{key, value})
		}
		if _, merged := own(n, "<<"); merged != nil {
			add(merged, depth+1)
		}
	}
	add(n, 0)
	return all
}

// own is a mapping's own entry for a key as it stands in the text, not through aliases or merge keys.
func own(n *yaml.Node, key string) (k, v *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

// maxAliases bounds how far aliases and merge keys are followed, since an anchor can contain an alias of itself.
const maxAliases = 16

func resolve(n *yaml.Node) *yaml.Node {
	for range maxAliases {
		if n == nil || n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

// text is the scalar that a mapping has under a key; empty when there is none.
func text(n *yaml.Node, key string) string {
	if v := get(n, key); v != nil && v.Kind == yaml.ScalarNode && !isNull(v) {
		return v.Value
	}
	return ""
}

// texts are all the scalars of a mapping.
func texts(n *yaml.Node) map[string]string {
	all := make(map[string]string)
	for _, p := range pairs(n) {
		if p.value.Kind == yaml.ScalarNode {
			all[p.key.Value] = p.value.Value
		}
	}
	return all
}
