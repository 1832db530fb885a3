package generate_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/generate"
)

const annotationInitdata = "io.katacontainers.config.hypervisor.cc_init_data"

var soak = os.Getenv("PORTCULLIS_SOAK") == "1"

// check runs a property on so many files, the same ones each time, so that a change's tests fail for the change; and with
// PORTCULLIS_SOAK=1 on a hundred times as many, others each time. -rapid.checks and -rapid.seed say otherwise.
func check(t *testing.T, checks int, property func(t *rapid.T)) {
	set := func(name, value string) {
		f := flag.Lookup(name)
		if f.Value.String() != f.DefValue {
			return
		}
		if err := f.Value.Set(value); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Value.Set(f.DefValue) })
	}
	if soak {
		checks *= 100
	} else {
		set("rapid.seed", "20261126")
	}
	set("rapid.checks", strconv.Itoa(checks))
	rapid.Check(t, property)
}

// What must hold for every file: either it is refused, with the place and without a change, or nothing but the injection is
// added, and can be taken out again.
func TestPropertyOfEveryFile(t *testing.T) {
	var tried, accepted, injected, valid int
	validator := newValidator(t)
	check(t, 1000, func(rt *rapid.T) {
		d := &dice{t: rt}
		text := render(d, anyFile(d))
		if _, err := decode(text); err != nil {
			rt.Fatalf("the test writes YAML that is none: %v\n%s", err, text)
		}
		tried++
		output, ok := checkFile(rt, text)
		if !ok {
			return
		}
		accepted++
		if output != text {
			injected++
		}
		if validator.accepts(rt, text) {
			valid++
			validator.wantAccepted(rt, output)
		}
	})
	t.Logf("%d files, %d accepted, %d of them injected into, %d valid for Kubernetes", tried, accepted, injected, valid)
	if !t.Failed() && (accepted < tried*2/3 || injected < tried/3 || validator != nil && valid < tried/4) {
		t.Error("too few files for this to mean anything")
	}
}

// Files that were damaged: what the YAML library refuses is refused, and all else holds as for every file.
func TestPropertyOfDamagedFiles(t *testing.T) {
	var broken, accepted int
	check(t, 1000, func(rt *rapid.T) {
		d := &dice{t: rt}
		text := []byte(render(d, anyFile(d)))
		for range 1 + d.below(3) {
			at := d.below(len(text) + 1)
			switch d.below(5) {
			case 0: // bytes are lost
				text = slices.Delete(text, at, min(len(text), at+1+d.below(4)))
			case 1: // a character is in the wrong place
				text = slices.Insert(text, at, pick(d, []byte(" "), []byte(":"), []byte("\t"), []byte("\n"), []byte("{"), []byte("]"), []byte("\""),
					[]byte("- "), []byte("? "), []byte("&a "), []byte("*a"), []byte("<<: "), []byte("\r"), []byte("\u2028"), []byte("\x00"), []byte("\xff"),
					[]byte("---\n"), []byte("...\n"), []byte("#"), []byte("\ufeff"), []byte(","))...)
			case 2: // the end is missing
				text = text[:at]
			case 3: // a piece stands twice
				text = slices.Insert(text, at, slices.Clone(text[at:min(len(text), at+1+d.below(40))])...)
			case 4: // a line is indented anew
				line := bytes.LastIndexByte(text[:at], '\n') + 1
				text = slices.Insert(text, line, []byte(strings.Repeat(" ", 1+d.below(3)))...)
			}
		}
		_, err := decode(string(text))
		_, ok := checkFile(rt, string(text))
		if err != nil {
			broken++
			if ok {
				rt.Fatalf("broken YAML (%v) was accepted:\n%s", err, text)
			}
		}
		if ok {
			accepted++
		}
	})
	t.Logf("%d broken, %d accepted", broken, accepted)
}

// What people change in an injected file stays when the injection is removed or replaced.
func TestPropertyOfEditedFiles(t *testing.T) {
	check(t, 200, func(rt *rapid.T) {
		d := &dice{t: rt}
		text := render(d, anyFile(d))
		output, err := injectText(text)
		if err != nil {
			return
		}
		edit := func(s string) string {
			s = strings.ReplaceAll(s, "registry.example/", "mirror.example/")
			return strings.ReplaceAll(s, "/cache", "/var/cache")
		}
		removed, err := removeText(edit(output))
		if err != nil {
			rt.Fatalf("%v in\n%s", err, edit(output))
		}
		if want := edit(text); removed != want {
			rt.Fatalf("removed from an edited file:\n%s\nwant\n%s", removed, want)
		}
		again, err := injectText(edit(output))
		if err != nil {
			rt.Fatalf("%v in\n%s", err, edit(output))
		}
		if want, err := injectText(edit(text)); err != nil || again != want {
			rt.Fatalf("%v; injected into an edited file again:\n%s\nwant\n%s", err, again, want)
		}
	})
}

// checkFile checks everything that must hold for a text, and returns what is made of it, or false when it is refused.
func checkFile(t fataler, text string) (string, bool) {
	t.Helper()
	stripped, err := removeText(text)
	if err != nil {
		wantPlaces(t, text, err)
	} else if stripped != text {
		t.Fatalf("something was removed from a file into which nothing was injected:\n%s\nleft:\n%s", text, stripped)
	}
	output, err := injectText(text)
	if err != nil {
		wantPlaces(t, text, err)
		return "", false
	}
	before, err := decode(text)
	if err != nil {
		t.Fatalf("broken YAML (%v) was accepted:\n%s", err, text)
	}
	after, err := decode(output)
	if err != nil {
		t.Fatalf("%v: made of\n%s\nthis:\n%s", err, text, output)
	}
	injected := 0
	for i := range before {
		if i < len(after) {
			injected += model(before[i], after[i])
		}
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Fatalf("the trees differ:\n%s\nbefore:\n%s\nafter:\n%s", diff, text, output)
	}
	if injected == 0 && output != text {
		t.Fatalf("without a confidential pod it changed; before:\n%s\nafter:\n%s", text, output)
	}
	again, err := injectText(output)
	if err != nil || again != output {
		t.Fatalf("%v; twice is not once; before:\n%s\nonce:\n%s\ntwice:\n%s", err, text, output, again)
	}
	removed, err := removeText(output)
	if err != nil || removed != text {
		t.Fatalf("%v; removed is not as before; before:\n%s\ninjected:\n%s\nremoved:\n%s", err, text, output, removed)
	}
	return output, true
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func injectText(text string) (string, error) {
	result, err := generate.Inject(background, []generate.File{{Name: "f.yaml", Text: []byte(text)}}, options())
	if err != nil {
		return "", err
	}
	return string(result.Files[0].Text), nil
}

func removeText(text string) (string, error) {
	result, err := generate.Remove([]generate.File{{Name: "f.yaml", Text: []byte(text)}}, options())
	if err != nil {
		return "", err
	}
	return string(result.Files[0].Text), nil
}

// wantPlaces wants each fault to say where it is, and something about it.
func wantPlaces(t fataler, text string, err error) {
	t.Helper()
	var faults generate.Faults
	if !errors.As(err, &faults) || len(faults) == 0 {
		t.Fatalf("%T without faults: %v", err, err)
	}
	lines := strings.Count(text, "\n") + strings.Count(text, "\r") + strings.Count(text, "\u2028") + strings.Count(text, "\u2029") + strings.Count(text, "\u0085") + 1
	for _, fault := range faults {
		f, ok := errors.AsType[*generate.Fault](fault)
		if !ok || f.File != "f.yaml" || f.Line < 1 || f.Line > lines || f.Column < 1 || f.Message == "" {
			t.Fatalf("a fault without its place: %v in\n%s", fault, text)
		}
	}
}

func decode(text string) ([]any, error) {
	var all []any
	for d := yaml.NewDecoder(strings.NewReader(text)); ; {
		var v any
		switch err := d.Decode(&v); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, err
		}
		all = append(all, stringKeys(v))
	}
}

// stringKeys makes every key a string, as Kubernetes does.
func stringKeys(v any) any {
	switch v := v.(type) {
	case []any:
		for i, item := range v {
			v[i] = stringKeys(item)
		}
	case map[string]any:
		for key, value := range v {
			v[key] = stringKeys(value)
		}
	case map[any]any:
		m := make(map[string]any, len(v))
		for key, value := range v {
			m[fmt.Sprint(key)] = stringKeys(value)
		}
		return m
	}
	return v
}

// model does to both trees what makes them equal when after is before with the injection: to before what injecting does to
// an object, and from after it takes what cannot be foretold. It knows Kubernetes' objects and nothing of generate.
func model(before, after any) (injected int) {
	b, okB := before.(map[string]any)
	a, okA := after.(map[string]any)
	if !okB || !okA {
		return 0
	}
	kind, _ := b["kind"].(string)
	if items, ok := b["items"].([]any); ok && strings.HasSuffix(kind, "List") {
		others, _ := a["items"].([]any)
		for i := range min(len(items), len(others)) {
			for _, item := range []any{items[i], others[i]} {
				if m, ok := item.(map[string]any); ok && m["kind"] == nil && kind != "List" {
					m["kind"] = strings.TrimSuffix(kind, "List")
				}
			}
			injected += model(items[i], others[i])
		}
		return injected
	}
	path, ok := map[string]string{
		"Pod": "", "PodTemplate": "template", "Deployment": "spec.template", "ReplicaSet": "spec.template", "StatefulSet": "spec.template",
		"DaemonSet": "spec.template", "Job": "spec.template", "ReplicationController": "spec.template",
		"CronJob": "spec.jobTemplate.spec.template",
	}[kind]
	version, _ := b["apiVersion"].(string)
	if group, _, named := strings.Cut(version, "/"); !ok || named && group != "apps" && group != "batch" && group != "extensions" && group != "" {
		return 0
	}
	asked := maps.Clone(annotationsOf(b))
	for _, key := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' }) {
		b, _ = b[key].(map[string]any)
		a, _ = a[key].(map[string]any)
		maps.Copy(asked, annotationsOf(b))
	}
	spec, _ := b["spec"].(map[string]any)
	class, _ := spec["runtimeClassName"].(string)
	if a == nil || !slices.ContainsFunc(generate.RuntimeClasses, func(prefix string) bool { return strings.HasPrefix(class, prefix) }) {
		return 0
	}
	metadata := sub(b, "metadata")
	sub(metadata, "annotations")
	if injectedAnnotations := annotationsOf(a); injectedAnnotations[annotationInitdata] != nil {
		for _, ours := range []string{annotationInitdata, annotationProbes, annotationEmpty} {
			delete(injectedAnnotations, ours)
		}
	}
	const prefix = "contrast.edgeless.systems/"
	if asked[prefix+"skip-initializer"] == "true" || asked[prefix+"pod-role"] != nil {
		return 1
	}
	mesh := slices.ContainsFunc(slices.Collect(maps.Keys(asked)), func(name string) bool {
		return strings.HasPrefix(name, prefix+"servicemesh-")
	})
	first, volumes := []any{"contrast-initializer"}, []any{"contrast-secrets"}
	if mesh {
		first, volumes = append(first, "contrast-service-mesh"), append(volumes, "contrast-service-mesh")
	}
	for _, list := range []string{"containers", "initContainers"} {
		containers, _ := spec[list].([]any)
		for _, c := range containers {
			modelContainer(c, mesh)
		}
	}
	prepend(spec, "initContainers", first)
	prepend(spec, "volumes", volumes)
	nameOnly(sub(a, "spec"), "initContainers", len(first))
	nameOnly(sub(a, "spec"), "volumes", len(volumes))
	return 1
}

func modelContainer(c any, mesh bool) {
	container, ok := c.(map[string]any)
	if !ok {
		return
	}
	prepend(container, "volumeMounts", []any{map[string]any{"name": "contrast-secrets", "mountPath": "/contrast", "readOnly": true}})
	for _, kind := range []string{"liveness", "readiness", "startup"} {
		probe, ok := container[kind+"Probe"].(map[string]any)
		if !ok || !mesh {
			continue
		}
		for _, handler := range []string{"httpGet", "tcpSocket", "grpc"} {
			if probe[handler] != nil {
				delete(probe, handler)
				probe["httpGet"] = map[string]any{"path": fmt.Sprintf("/probes/%v/%s", container["name"], kind), "port": 15021}
				break
			}
		}
	}
}

func annotationsOf(m map[string]any) map[string]any {
	metadata, _ := m["metadata"].(map[string]any)
	annotations, ok := metadata["annotations"].(map[string]any)
	if !ok {
		return make(map[string]any)
	}
	return annotations
}

func sub(m map[string]any, key string) map[string]any {
	child, ok := m[key].(map[string]any)
	if !ok {
		child = make(map[string]any)
		m[key] = child
	}
	return child
}

func prepend(m map[string]any, key string, items []any) {
	present, _ := m[key].([]any)
	m[key] = append(slices.Clone(items), present...)
}

// nameOnly replaces the first n items by their names.
func nameOnly(m map[string]any, key string, n int) {
	items, _ := m[key].([]any)
	for i := range min(n, len(items)) {
		if item, ok := items[i].(map[string]any); ok {
			items[i] = item["name"]
		}
	}
}

// Any text at all.
func FuzzInject(f *testing.F) {
	for _, text := range styles {
		f.Add(text)
	}
	for _, c := range probed {
		f.Add(strings.NewReplacer("‹", "", "›", "").Replace(c.text))
	}
	paths, err := filepath.Glob("testdata/corpus/*")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		f.Add(string(read(f, path)))
	}
	for _, text := range []string{ // what was accepted once, and is broken
		"\n<<: \n", "a: &a [*a]\n", "a: !!bool x\n", "\ufeff\ufeff'a': v1\nkind: x\n---\n{b: c}\n", "a: [\n---\nb: ]\n",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "#true") || strings.Contains(text, "DISABLED") || strings.Contains(text, "host") {
			return // which probes need no proxy then is more than the model knows
		}
		if stripped, err := removeText(text); err == nil && stripped != text {
			return // somebody injected already, or wrote what looks so
		}
		checkFile(t, text)
	})
}
