package generate_test

import (
	"bytes"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/generate"
)

// The annotated objects of these tests, in the many ways in which people write them.
var styles = map[string]string{
	"block, dashes indented": `apiVersion: apps/v1
kind: Deployment
metadata:
  name: web # the front
  annotations:
    # nothing else comes in
    contrast.edgeless.systems/servicemesh-ingress: ""
spec:
  template:
    metadata:
      labels:
        app: web
        # more labels here
    spec:
      runtimeClassName: kata-qemu-snp
      initContainers:
        # fills the cache
        - name: fill
          image: fill:1
      containers:
        - name: web
          image: web:1
          volumeMounts:
            # the cache
            - name: cache
              mountPath: /cache
              # readOnly: true
        - image: helper:1
          name: helper
          # command: [sleep]
      volumes:
        - name: cache
          emptyDir: {}
`,
	"block, dashes at the key": `kind: StatefulSet
apiVersion: apps/v1
metadata:
  name: db
spec:
  template:
    metadata:
      annotations:
        contrast.edgeless.systems/servicemesh-egress: a#127.0.0.2:80#web:80
    spec:
      containers:
      - command:
        - sh
        - -c
        - |
          # looks like a comment
          exec db

          # and so does this
        name: db
        volumeMounts:
        - {name: data, mountPath: /data}
      runtimeClassName: kata-qemu-tdx
  volumeClaimTemplates: []
`,
	"scalars that reach to the end": `apiVersion: v1
kind: Pod
metadata:
  name: pod
  annotations:
    contrast.edgeless.systems/servicemesh-ingress: ""
    note: "two
      lines # no comment"
spec:
  runtimeClassName: kata-cc
  containers:
    - image: a
      name: a
      args:
        - >+
          folded
          # text

        - 'single ''quoted''

          text'
    - name: b
      args: [a, # one
        "b]", 'c}'] # two
    - name: c
      args:
        - plain
          on # two lines
    - name: d
      command:
`,
	"blank lines that count": `apiVersion: v1
kind: Pod
metadata:
  name: pod
spec:
  runtimeClassName: kata-cc
  containers:
    - name: a
      args:
        - |+
          text


    - name: b
      args:
        - >+
          text

`,
	"everything in flow": `{apiVersion: v1, kind: Pod, metadata: {name: pod, annotations: {contrast.edgeless.systems/servicemesh-ingress: ""}},
  spec: {runtimeClassName: kata-qemu-snp, containers: [{name: a, image: a}, {name: b, volumeMounts: []}], volumes: [ ]}}
`,
	"JSON": `{
	"apiVersion": "batch/v1",
	"kind": "CronJob",
	"metadata": {"name": "job"},
	"spec": {
		"jobTemplate": {
			"spec": {
				"template": {
					"spec": {
						"runtimeClassName": "kata-qemu-snp",
						"containers": [
							{
								"name": "a\u00e9",
								"image": "ü"
							}
						]
					}
				}
			}
		}
	}
}`,
	"empty values": `apiVersion: batch/v1
kind: Job
metadata: {name: job, annotations: {contrast.edgeless.systems/servicemesh-admin-interface-port: "9901"}}
spec:
  template:
    metadata:
    spec:
      runtimeClassName: contrast-cc-x
      initContainers: # none
      volumes: null
      containers:
      - name: a
        volumeMounts: ~
`,
	"no template metadata": `apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: agent
spec:
  template:
    spec:
      runtimeClassName: kata-remote
      containers:
      -
        name: a
        image: a
      -   name: b
          image: b
`,
	"anchors and merge keys": `apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: ReplicaSet
  metadata: &m
    name: &name anchors
    labels: &labels {app: x}
  spec:
    template: !!map
      metadata:
        labels: *labels
        annotations: &a
          other: value
      spec: &spec
        runtimeClassName: kata-qemu-snp
        containers: !!seq
        - name: a
          env:
          - &e {name: A, value: &v "1"}
          - <<: *e
            name: B
        volumes: &vols
          - name: x
            emptyDir: {}
- apiVersion: v1
  kind: ReplicationController
  metadata:
    name: *name
  spec:
    template:
      spec: {runtimeClassName: kata-qemu-snp, containers: [{name: single, ports: [containerPort: 80]}]}
`,
	"several documents": `# a header

---
---
# only a comment
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data:
  script: |
    kind: Pod
    ---not a document
...
---
kind: Pod
apiVersion: v1
metadata:
    name: deep
    labels:
        app: deep
spec:
    runtimeClassName:   kata-qemu-snp   # runs in a podVM
    containers:
        -   name:   a
            image:  a
--- # the next
kind: PodTemplate
apiVersion: v1
metadata:
 name: narrow
template:
 spec:
  containers:
  - name: a
    image: a
  runtimeClassName: kata-qemu-snp
`,
}

// The changes that must not matter.
var variations = map[string]func(string) string{
	"as it is":           func(s string) string { return s },
	"CRLF":               crlf,
	"BOM":                func(s string) string { return "\ufeff" + s },
	"no final newline":   func(s string) string { return strings.TrimSuffix(s, "\n") },
	"CRLF, none at end":  func(s string) string { return strings.TrimSuffix(crlf(s), "\r\n") },
	"blanks at the end":  func(s string) string { return s + "\n\n   \n" },
	"comment at the end": func(s string) string { return strings.TrimSuffix(s, "\n") + "\n# the end" },
	"marker first":       func(s string) string { return "%YAML 1.1\n---\n" + s },
	"another document":   func(s string) string { return strings.TrimSuffix(s, "\n") + "\n---\nkind: ConfigMap\n" },
	"end marker":         func(s string) string { return strings.TrimSuffix(s, "\n") + "\n...\n" },
}

func crlf(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\n", "\r\n")
}

func TestInjectKeepsEveryOtherByte(t *testing.T) {
	for style, base := range styles {
		for variation, change := range variations {
			t.Run(style+"/"+variation, func(t *testing.T) {
				input := change(base)
				checkInjection(t, []byte(input))
			})
		}
	}
}

// checkInjection injects into text and checks what must hold for every text that has a confidential pod.
func checkInjection(t testing.TB, text []byte) {
	t.Helper()
	once := inject(t, text)
	if bytes.Equal(once, text) {
		t.Fatalf("nothing was injected into\n%s", text)
	}
	back := probesBack(t, once)
	checkOnlyInserted(t, text, back)
	eol := []byte("\r\n")
	if n := bytes.Count(text, eol); n > 0 && n == bytes.Count(text, []byte("\n")) && bytes.Count(once, eol) != bytes.Count(once, []byte("\n")) {
		t.Errorf("line breaks of two kinds in\n%q", once)
	}
	checkTrees(t, text, back)
	if twice := inject(t, once); !bytes.Equal(twice, once) {
		t.Errorf("twice is not once; once:\n%s\ntwice:\n%s", once, twice)
	}
	if removed := remove(t, once); !bytes.Equal(removed, text) {
		t.Errorf("removed is not as before; before:\n%s\nremoved:\n%s", text, removed)
	}
}

func inject(t testing.TB, text []byte) []byte {
	t.Helper()
	result, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: text}}, options())
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return result.Files[0].Text
}

func remove(t testing.TB, text []byte) []byte {
	t.Helper()
	result, err := generate.Remove([]generate.File{{Name: "f.yaml", Text: text}}, options())
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return result.Files[0].Text
}

func options() generate.Options {
	return generate.Options{
		RuntimeClasses: generate.RuntimeClasses,
		Namespace:      "default",
		Images:         generate.Images{Initializer: "initializer:1", Meshproxy: "meshproxy:1"},
		Policy:         generate.FixedPolicy("package agent_policy\n"),
	}
}

// checkOnlyInserted checks that every line of before is in after, in order and unchanged, but for lines of flow style, into
// which text may be inserted, and explicit nulls, which are replaced.
func checkOnlyInserted(t testing.TB, before, after []byte) {
	t.Helper()
	rest := strings.SplitAfter(string(after), "\n")
	for i, line := range strings.SplitAfter(string(before), "\n") {
		found := false
		for len(rest) > 0 && !found {
			found = lineKept(line, rest[0])
			rest = rest[1:]
		}
		if !found {
			t.Errorf("line %d is not kept: %q; the result is\n%s", i+1, line, after)
			return
		}
	}
}

func lineKept(before, after string) bool {
	if before == after || strings.TrimRight(before, "\r\n") == strings.TrimRight(after, "\r\n") {
		return true
	}
	for _, null := range []string{": null", ": ~", ":null", ": Null", ": NULL"} {
		before = strings.Replace(before, null, ": ", 1)
	}
	if !strings.ContainsAny(after, "{[") || strings.TrimSpace(before) == "" {
		return false
	}
	for _, c := range []byte(before) {
		i := strings.IndexByte(after, c)
		if i < 0 {
			return false
		}
		after = after[i+1:]
	}
	return true
}

// checkTrees decodes both texts with the YAML library alone, takes the injected out of the second, and compares.
func checkTrees(t testing.TB, before, after []byte) {
	t.Helper()
	want, got := decodeAll(t, before), decodeAll(t, after)
	injected := false
	for _, tree := range got {
		injected = withdraw(tree) || injected
	}
	if !injected {
		t.Errorf("nothing was injected into\n%s", after)
	}
	for _, tree := range want {
		withdraw(tree)
	}
	w, g := dump(t, want), dump(t, got)
	if w != g {
		t.Errorf("the trees differ; before:\n%s\nafter:\n%s", w, g)
	}
}

func decodeAll(t testing.TB, text []byte) []any {
	t.Helper()
	var all []any
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var v any
		if err := d.Decode(&v); err != nil {
			if err.Error() != "EOF" {
				t.Fatalf("%v in\n%s", err, text)
			}
			return all
		}
		all = append(all, v)
	}
}

func dump(t testing.TB, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// withdraw takes out what is injected, and the collections that this leaves empty or that were empty or null.
func withdraw(v any) (found bool) {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			found = withdraw(item) || found
		}
	case map[string]any:
		for _, item := range v {
			found = withdraw(item) || found
		}
		for _, key := range []string{"initContainers", "volumes", "volumeMounts"} {
			items, _ := v[key].([]any)
			var kept []any
			for _, item := range items {
				switch m, _ := item.(map[string]any); m["name"] {
				case "contrast-initializer", "contrast-service-mesh", "contrast-secrets":
					found = true
				default:
					kept = append(kept, item)
				}
			}
			v[key] = kept
			if len(kept) == 0 {
				delete(v, key)
			}
		}
		if annotations, ok := v["annotations"].(map[string]any); ok {
			for _, ours := range []string{"io.katacontainers.config.hypervisor.cc_init_data", annotationProbes, annotationEmpty} {
				if _, ok := annotations[ours]; ok {
					found = true
					delete(annotations, ours)
				}
			}
		}
		for _, key := range []string{"annotations", "metadata"} {
			if m, ok := v[key].(map[string]any); v[key] == nil || ok && len(m) == 0 {
				delete(v, key)
			}
		}
	}
	return found
}

// A comment belongs to what stands above or below it; nothing may come between.
func TestCommentsStayWithWhatTheyDescribe(t *testing.T) {
	const text = `kind: Pod
metadata:
  name: a
  annotations:
    # about the note
    note: x
spec:
  runtimeClassName: kata-cc
  containers:
    - name: a
      image: a
      # command: [sleep]
    # - name: b
  volumes:
    # about the cache
    - name: cache
`
	got := string(inject(t, []byte(text)))
	for _, together := range []string{
		"    # about the note\n    note: x\n",
		"      image: a\n      # command: [sleep]\n      volumeMounts:\n",
		"    # about the cache\n    - name: cache\n",
	} {
		if !strings.Contains(got, together) {
			t.Errorf("torn apart: %q in\n%s", together, got)
		}
	}
}
