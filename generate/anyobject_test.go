package generate_test

import (
	"fmt"

	"pgregory.net/rapid"
)

// dice make every choice of the property tests, so that rapid can make a failure small.
type dice struct {
	t *rapid.T
	// named counts the names given, as most must differ.
	named int
}

func (d *dice) below(n int) int { return rapid.IntRange(0, n-1).Draw(d.t, "") }

// oneIn is true once in n times; rapid's smaller cases have it false.
func (d *dice) oneIn(n int) bool { return d.below(n) == n-1 }

func pick[T any](d *dice, from ...T) T { return from[d.below(len(from))] }

func (d *dice) name(prefix string) string {
	d.named++
	return fmt.Sprintf("%s%d", prefix, d.named)
}

// object is a mapping in the order in which it is written.
type (
	object []entry
	entry  struct {
		key   string
		value any
	}
)

// anyFile is the objects of a file's documents. A document may be nil.
func anyFile(d *dice) []any {
	documents := make([]any, 1+d.below(4))
	for i := range documents {
		switch d.below(9) {
		default:
			documents[i] = anyPodObject(d)
		case 1:
			documents[i] = anyService(d)
		case 2:
			documents[i] = anyConfigMap(d)
		case 3:
			documents[i] = nil
		case 4:
			documents[i] = anyList(d)
		}
	}
	return documents
}

func anyList(d *dice) object {
	items := make([]any, d.below(3))
	kind := "List"
	for i := range items {
		if items[i] = anyPodObject(d); d.oneIn(3) {
			items[i] = anyConfigMap(d)
		}
	}
	if d.oneIn(3) { // the items of such a list need not say what they are
		kind = "PodList"
		for i := range items {
			items[i] = anyPodOfKind(d, "Pod")
			if d.oneIn(2) {
				items[i] = items[i].(object)[2:]
			}
		}
	}
	return object{{"apiVersion", "v1"}, {"kind", kind}, {"items", items}}
}

func anyService(d *dice) object {
	return object{
		{"apiVersion", "v1"},
		{"kind", "Service"},
		{"metadata", object{{"name", d.name("service")}}},
		{"spec", object{
			{"selector", object{{"app", pick(d, "web", "db", "none")}}},
			{"ports", []any{object{{"port", 80}, {"targetPort", pick[any](d, 8080, "http")}}}},
		}},
	}
}

func anyConfigMap(d *dice) object {
	data := object{}
	for range d.below(3) {
		data = append(data, entry{d.name("key"), anyText(d)})
	}
	return object{{"apiVersion", "v1"}, {"kind", "ConfigMap"}, {"metadata", object{{"name", d.name("config")}}}, {"data", data}}
}

// anyText is what people keep in strings, some of it like YAML.
func anyText(d *dice) string {
	return pick(d,
		"text", "", "two words", "8080", "true", "null", "a: b", "a #b", "# no comment", "- item", "'single' \"double\"", "ünïcödé ☃",
		"{flow: [style]}", "*alias &anchor !tag", "tab\there", "back\\slash", "trailing ", " leading", "line\nbreak", "ends\n",
		"#!/bin/sh\nexec web --port=8080 # the port\n\n  indented\nlast", "kind: Pod\nspec:\n  containers: []\n", "a\n\nb\n\n\n", "%directive", "@at `tick`",
		"very long text that goes on and on until somebody folds it at the eightieth column, as some tools do by themselves, and then goes on",
	)
}

var podKinds = []string{"Deployment", "Pod", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "CronJob", "PodTemplate"}

func anyPodObject(d *dice) object { return anyPodOfKind(d, pick(d, podKinds...)) }

func anyPodOfKind(d *dice, kind string) object {
	group := map[string]string{
		"Pod": "v1", "ReplicationController": "v1", "PodTemplate": "v1", "Job": "batch/v1", "CronJob": "batch/v1",
	}[kind]
	if group == "" {
		group = "apps/v1"
	}
	name := d.name("pod")
	annotations := anyMesh(d)
	confidential := len(annotations) > 0 || d.oneIn(2)
	class := pick(d, "kata-qemu-snp", "kata-qemu-tdx", "contrast-cc-abc")
	if !confidential {
		class = pick(d, "", "gvisor")
	}
	restart := ""
	if kind == "Job" || kind == "CronJob" {
		restart = "Never"
	}
	spec := anySpec(d, class, restart)
	app := pick(d, "web", "db")
	labels := object{{"app", app}}
	metadata := object{{"name", name}}
	template := object{}
	if kind == "Pod" {
		metadata = append(metadata, entry{"labels", labels})
	} else {
		template = object{{"labels", labels}}
	}
	if len(annotations) > 0 {
		if kind != "Pod" && d.oneIn(2) {
			template = append(template, entry{"annotations", annotations})
		} else {
			metadata = append(metadata, entry{"annotations", annotations})
		}
	}
	if kind != "Pod" && template.get("annotations") == nil {
		template = append(template, anyEmpty(d, "annotations", object{}, object{{"note", anyText(d)}})...)
	}
	head := object{{"apiVersion", group}, {"kind", kind}}
	if kind == "Pod" {
		return d.shuffled(append(head, entry{"metadata", metadata}, entry{"spec", spec}), 2)
	}
	pod := object{{"metadata", d.shuffled(template, 0)}, {"spec", spec}}
	selector := object{{"matchLabels", labels}}
	var outer object
	switch kind {
	case "PodTemplate":
		return append(head, entry{"metadata", metadata}, entry{"template", pod})
	case "Job":
		if d.oneIn(3) { // its pods need no labels
			pod = append(anyEmpty(d, "metadata", object{}), entry{"spec", spec})
			if len(annotations) > 0 && metadata.get("annotations") == nil {
				metadata = append(metadata, entry{"annotations", annotations})
			}
		}
		outer = object{{"template", pod}}
	case "CronJob":
		outer = object{{"schedule", "*/5 * * * *"}, {"jobTemplate", object{{"spec", object{{"template", pod}}}}}}
	case "StatefulSet":
		outer = object{{"serviceName", "db"}, {"selector", selector}, {"template", pod}}
	case "ReplicationController":
		outer = object{{"selector", labels}, {"template", pod}}
	default:
		outer = object{{"selector", selector}, {"template", pod}}
	}
	return append(head, entry{"metadata", metadata}, entry{"spec", d.shuffled(outer, 0)})
}

// anyMesh is what puts a pod into the mesh, or nothing.
func anyMesh(d *dice) object {
	const prefix = "contrast.edgeless.systems/"
	return pick(d,
		object{{prefix + "servicemesh-ingress", ""}},
		object{{prefix + "servicemesh-ingress", "web#8080#false"}, {"note", "x"}},
		object{{"note", "it's: #1"}, {prefix + "servicemesh-egress", "db#127.0.0.2:80#db:80"}},
		object{{prefix + "servicemesh-admin-interface-port", "9901"}, {prefix + "servicemesh-access-log", "true"}},
		object{{prefix + "skip-initializer", "true"}},
		object{{prefix + "workload-secret-id", "secret"}},
		object{}, object{},
	)
}

// anyEmpty is an entry that may be missing, null, empty, or have one of the values.
func anyEmpty(d *dice, key string, empty any, values ...any) object {
	choices := append([]any{"missing", "missing", nil, empty}, values...)
	v := pick(d, choices...)
	if v == any("missing") {
		return nil
	}
	return object{{key, v}}
}

func anySpec(d *dice, class, restart string) object {
	spec := object{}
	if class != "" {
		spec = append(spec, entry{"runtimeClassName", class})
	}
	if restart != "" {
		spec = append(spec, entry{"restartPolicy", restart})
	}
	volumes := []any{object{{"name", "cache"}, {"emptyDir", object{}}}}
	if d.oneIn(3) {
		volumes = append(volumes, object{{"name", "config"}, {"configMap", object{{"name", "config"}}}})
	}
	spec = append(spec, anyEmpty(d, "volumes", []any{}, volumes, volumes)...)
	mounts := []any{}
	if v, _ := spec.get("volumes").([]any); len(v) > 0 {
		mounts = []any{object{{"name", "cache"}, {"mountPath", "/cache"}}}
	}
	containers := make([]any, 1+d.below(3))
	for i := range containers {
		containers[i] = anyContainer(d, mounts, true)
	}
	spec = append(spec, entry{"containers", containers})
	first := []any{anyContainer(d, mounts, false)}
	spec = append(spec, anyEmpty(d, "initContainers", []any{}, first)...)
	if d.oneIn(3) {
		spec = append(spec, entry{"securityContext", object{}})
	}
	return d.shuffled(spec, 0)
}

func anyContainer(d *dice, mounts []any, probes bool) object {
	name := d.name("c")
	c := object{{"name", name}, {"image", "registry.example/" + name + ":1"}}
	if d.oneIn(2) {
		args := make([]any, d.below(3))
		for i := range args {
			args[i] = anyText(d)
		}
		c = append(c, entry{"args", args})
	}
	if d.oneIn(3) {
		c = append(c, entry{"env", []any{object{{"name", "A"}, {"value", anyText(d)}}}})
	}
	c = append(c, anyEmpty(d, "volumeMounts", []any{}, mounts, mounts)...)
	c = append(c, anyEmpty(d, "ports", []any{}, []any{object{{"containerPort", 8080}, {"name", "p" + name}}})...)
	if probes && d.oneIn(3) {
		c = append(c, entry{pick(d, "livenessProbe", "readinessProbe", "startupProbe"), anyProbe(d)})
	}
	c = append(c, anyEmpty(d, "resources", object{}, object{{"limits", object{{"memory", "64Mi"}}}})...)
	if d.oneIn(4) {
		c = append(c, entry{"command", nil})
	}
	return d.shuffled(c, 0)
}

func anyProbe(d *dice) object {
	probe := object{pick(d,
		entry{"httpGet", object{{"path", "/healthz?full=1#top"}, {"port", 8080}}},
		entry{"httpGet", object{{"port", 8443}, {"scheme", "HTTPS"}, {"httpHeaders", []any{object{{"name", "Host"}, {"value", "shop: #1"}}}}}},
		entry{"tcpSocket", object{{"port", 5432}}},
		entry{"grpc", object{{"port", 9000}}},
		entry{"exec", object{{"command", []any{"test", "-e", "/ready"}}}},
	)}
	if d.oneIn(2) {
		probe = append(probe, entry{"periodSeconds", 5})
	}
	return d.shuffled(probe, 0)
}

func (o object) get(key string) any {
	for _, e := range o {
		if e.key == key {
			return e.value
		}
	}
	return nil
}

// shuffled orders the entries from an index on anew, often enough.
func (d *dice) shuffled(o object, from int) object {
	if d.oneIn(2) {
		for i := from; i < len(o); i++ {
			j := i + d.below(len(o)-i)
			o[i], o[j] = o[j], o[i]
		}
	}
	return o
}
