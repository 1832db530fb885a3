package generate_test

import (
	"bytes"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kyaml "sigs.k8s.io/yaml"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

var update = flag.Bool("update", false, "write the golden files anew")

const shop = "../tests/demo/shop.yaml"

func TestShopGolden(t *testing.T) {
	result := injectShop(t)
	golden(t, "testdata/shop.injected.yaml", result.Files[0].Text)

	m := new(manifest.Manifest)
	updateManifest(t, m, result.Pods, false)
	if err := generate.MergeReferenceValues(m, read(t, "testdata/reference-values.json")); err != nil {
		t.Fatal(err)
	}
	owner, err := pki.ParsePublicKey(read(t, "testdata/workload-owner.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := generate.AddOwner(m, owner); err != nil {
		t.Fatal(err)
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/shop.manifest.json", text)
	if len(result.Warnings) > 0 {
		t.Errorf("warnings: %q", result.Warnings)
	}
}

func TestShopIsKeptByteForByte(t *testing.T) { checkInjection(t, read(t, shop)) }

// What a podVM will be measured by must be what the manifest names, and what the annotation carries.
func TestPolicyHashIsDigestOfTheAnnotation(t *testing.T) {
	result := injectShop(t)
	byHash := make(map[attestation.PolicyHash]initdata.PodConfig)
	for value := range annotationValues(t, result.Files[0].Text, initdata.Annotation) {
		document, err := initdata.Decode(value)
		if err != nil {
			t.Fatal(err)
		}
		data, err := initdata.Parse(document)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := data[initdata.KeyPolicy], string(read(t, "../tests/demo/policy.rego")); got != want {
			t.Errorf("policy %q, want %q", got, want)
		}
		c, err := initdata.ParsePodConfig(data[initdata.KeyConfig])
		if err != nil {
			t.Fatal(err)
		}
		byHash[initdata.Digest(document)] = c
	}
	if len(byHash) != len(result.Pods) {
		t.Errorf("%d hashes for %d pods", len(byHash), len(result.Pods))
	}
	for _, p := range result.Pods {
		if diff := cmp.Diff(p.Config, byHash[p.Hash]); diff != "" {
			t.Errorf("%s %s:\n%s", p.Kind, p.Name, diff)
		}
	}
}

func TestWithoutAConfidentialPodNothingChanges(t *testing.T) {
	for _, text := range []string{
		"", "\n", "---\n", "# a comment", "{}", "[]", "a", "kind: Pod\n", "kind: Pod\nspec:\n  runtimeClassName: gvisor\n",
		"kind: List\nitems:\n", "kind: List\nitems: []\n", "kind: Deployment\nspec: {template: }\n",
		"apiVersion: batch.volcano.sh/v1\nkind: Job\nspec: {template: {spec: {runtimeClassName: kata-cc}}}\n",
	} {
		result, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(text)}}, options())
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := string(result.Files[0].Text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// Real files of public projects, where this checkout lies beside them.
func TestRealFiles(t *testing.T) {
	const folder = "../../shared/yaml"
	if paths := yamlFiles(t, folder); len(paths) == 0 {
		t.Skipf("SKIPPED: no YAML files in %s", folder)
	} else {
		checkCorpus(t, paths)
	}
}

// Files as charts, operators and tools write them, one per habit.
func TestCorpus(t *testing.T) {
	paths := yamlFiles(t, "testdata/corpus")
	if len(paths) < 30 {
		t.Fatalf("only %d files", len(paths))
	}
	checkCorpus(t, paths)
}

func yamlFiles(t *testing.T, folder string) []string {
	t.Helper()
	var paths []string
	for _, pattern := range []string{"*.y*ml", "*.json"} {
		found, err := filepath.Glob(filepath.Join(folder, pattern))
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	return paths
}

// checkCorpus wants files to stay as they are and, once their pods are put into the mesh, all that must hold for every file.
func checkCorpus(t *testing.T, paths []string) {
	validator := newValidator(t)
	valid := 0
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text := read(t, path)
			if got := inject(t, text); !bytes.Equal(got, text) {
				t.Errorf("changed without an annotation:\n%s", got)
			}
			annotated := string(annotate(t, text))
			for name, change := range variations {
				changed := change(annotated)
				if _, err := decode(changed); err != nil || strings.HasPrefix(changed, "\ufeff\ufeff") {
					continue // another %YAML, a document behind an end, a mark behind a mark
				}
				t.Run(name, func(t *testing.T) {
					if name == "as it is" {
						checkInjection(t, []byte(changed))
					}
					if output, ok := checkFile(t, changed); ok && validator.accepts(t, changed) {
						valid++
						validator.wantAccepted(t, output)
					}
				})
			}
		})
	}
	if validator != nil && valid < len(paths) {
		t.Errorf("Kubernetes takes only %d of the files before", valid)
	}
}

// annotate puts every pod of text into the mesh: a runtime class in front of the pod's spec, annotations in front of the
// object's metadata or among its annotations. Pods whose annotations are empty stay without.
func annotate(t testing.TB, text []byte) []byte {
	t.Helper()
	eol := "\n"
	if bytes.Contains(text, []byte("\r\n")) {
		eol = "\r\n"
	}
	// A podVM has no network of the host's, and nothing accepts that.
	text = bytes.ReplaceAll(text, []byte("hostNetwork: true"), []byte("hostNetwork: false"))
	lines := strings.SplitAfter(string(text), "\n")
	type place struct{ line, column int }
	before := make(map[place]string)
	// put writes an entry in front of a mapping's first.
	put := func(m *yaml.Node, block, flow string) {
		if len(m.Content) == 0 {
			return
		}
		first := m.Content[0]
		at := place{first.Line, first.Column}
		if m.Style&yaml.FlowStyle != 0 {
			before[at] += flow + ", "
			return
		}
		for _, line := range strings.Split(block, "\n") {
			before[at] += line + eol + strings.Repeat(" ", first.Column-1)
		}
	}
	const ingress, egress = "contrast.edgeless.systems/servicemesh-ingress", "contrast.edgeless.systems/servicemesh-egress"
	const accept = "portcullis.dev/accept"
	var walk func(n *yaml.Node, metadata *yaml.Node)
	walk = func(n *yaml.Node, metadata *yaml.Node) {
		if n.Kind == yaml.MappingNode {
			if object := child(n, "metadata"); object != nil && child(object, "name") != nil {
				metadata = object
				if kind := child(n, "kind"); kind != nil && !slices.Contains(podKinds, kind.Value) {
					return
				}
			}
			if child(n, "containers") != nil && metadata != nil {
				put(n, "runtimeClassName: kata-qemu-snp", `"runtimeClassName": "kata-qemu-snp"`)
				annotations := child(metadata, "annotations")
				if annotations == nil {
					put(metadata, "annotations:\n  "+accept+": PC1302\n  "+ingress+": web#8080#false\n  "+egress+": ''",
						`"annotations": {"`+accept+`": "PC1302", "`+ingress+`": "web#8080#false", "`+egress+`": ""}`)
				} else {
					put(annotations, accept+": PC1302\n"+ingress+": web#8080#false\n"+egress+": ''", `"`+accept+`": "PC1302", "`+ingress+`": "web#8080#false", "`+egress+`": ""`)
				}
				return
			}
		}
		for _, c := range n.Content {
			walk(c, metadata)
		}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var n yaml.Node
		if decoder.Decode(&n) != nil {
			break
		}
		walk(&n, nil)
	}
	var b strings.Builder
	for i, line := range lines {
		column := 1
		for _, r := range line {
			if i == 0 && column == 1 && r == '\ufeff' {
				b.WriteRune(r)
				continue
			}
			b.WriteString(before[place{i + 1, column}])
			b.WriteRune(r)
			column++
		}
	}
	return []byte(b.String())
}

func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// Whoever bears a name of ours was injected: an older injection is replaced, not doubled.
func TestAnOlderInjectionIsReplaced(t *testing.T) {
	old := options()
	old.Images = generate.Images{Initializer: "initializer:0", Meshproxy: "meshproxy:0"}
	old.Policy = generate.FixedPolicy("package old\n")
	old.CoordinatorHost = "old:1"
	for style, text := range styles {
		t.Run(style, func(t *testing.T) {
			result, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(text)}}, old)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := inject(t, result.Files[0].Text), inject(t, []byte(text)); !bytes.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestAPodThatIsNoLongerConfidentialLosesTheInjection(t *testing.T) {
	const text = "kind: Pod\nmetadata:\n  name: a\nspec:\n  runtimeClassName: kata-qemu-snp\n  containers:\n  - name: a\n"
	injected := inject(t, []byte(text))
	plain := bytes.Replace(injected, []byte("kata-qemu-snp"), []byte("runc"), 1)
	if got, want := string(inject(t, plain)), strings.Replace(text, "kata-qemu-snp", "runc", 1); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestFaults(t *testing.T) {
	const pod = "kind: Pod\nmetadata:\n  name: a\n  annotations:\n    %s\nspec:\n  runtimeClassName: kata-qemu-snp\n" +
		"  containers:\n  - name: a\n"
	annotated := func(annotation string) string {
		return strings.Replace(pod, "%s", "contrast.edgeless.systems/"+annotation, 1)
	}
	for _, c := range []struct {
		name, text string
		want       []string // in this order, and no more
	}{
		{"broken YAML", "kind: Pod\na: b: c\n", []string{"f.yaml:2:1: PC1001: not valid YAML: mapping values are not allowed"}},
		{
			"template that is no YAML", "kind: Pod\nspec:\n  {{- if .x }}\n  a: b\n",
			[]string{"f.yaml:3:3: PC1001: not valid YAML: did not find expected node content; if this is a template, render it first"},
		},
		{
			"template that is YAML", "kind: Pod\nimage: {{ .Values.image }}\n",
			[]string{"f.yaml:2:9: PC1001: a key that is not a string; if this is a template, render it first"},
		},
		{
			"duplicate key", "kind: Pod\nspec: {}\nspec: {}\n",
			[]string{`f.yaml:3:1: PC1001: duplicate key "spec", the first is on line 2`},
		},
		{"UTF-16", "\xff\xfek\x00", []string{"f.yaml:1:1: PC1001: UTF-16 is not supported"}},
		{
			"faulty annotation values, every one", annotated("servicemesh-ingress: web#0#maybe##web#8080/sctp#true\n" +
				"    contrast.edgeless.systems/servicemesh-egress: a#10.0.0.1:80#b"),
			[]string{
				`f.yaml:5:52: PC1101: ingress entry 1 "web#0#maybe": port: `, `f.yaml:5:52: PC1101: ingress entry 1 "web#0#maybe": disableTLS: `,
				`f.yaml:5:52: PC1101: ingress entry 2 "web#8080/sctp#true": name: `, `f.yaml:5:52: PC1101: ingress entry 2 "web#8080/sctp#true": port: `,
				`f.yaml:6:51: PC1101: egress entry 1 "a#10.0.0.1:80#b": listener: `, `f.yaml:6:51: PC1101: egress entry 1 "a#10.0.0.1:80#b": remote: `,
			},
		},
		{
			"values that clash", annotated("servicemesh-egress: a#127.0.0.2:80#b:80\n" +
				"    contrast.edgeless.systems/servicemesh-admin-interface-port: \"80\""),
			[]string{`f.yaml:5:51: PC1101: admin port "80": `},
		},
		{
			"unknown egress policy", annotated("servicemesh-egress-policy: shut"),
			[]string{`f.yaml:5:58: PC1101: egress policy "shut": it is unknown: want open, closed`},
		},
		{
			"empty egress policy", annotated("servicemesh-egress-policy: ''"),
			[]string{"f.yaml:5:58: PC1101: annotation contrast.edgeless.systems/servicemesh-egress-policy is empty; leave it out"},
		},
		{
			"egress lock without a guard", annotated("servicemesh-ingress: DISABLED\n" +
				"    contrast.edgeless.systems/servicemesh-egress-policy: closed"),
			[]string{`f.yaml:5:52: PC1101: egress policy "closed": ingress DISABLED takes the guard away`},
		},
		{
			"access log of no mesh", annotated("servicemesh-access-log: 'true'"),
			[]string{"f.yaml:5:55: PC1108: annotation contrast.edgeless.systems/servicemesh-access-log: a pod without a mesh has no connections"},
		},
		{
			"access log that is neither", annotated("servicemesh-access-log: 'yes'"),
			[]string{`f.yaml:5:55: PC1107: annotation contrast.edgeless.systems/servicemesh-access-log is "yes", want "true" or "false"`},
		},
		{
			"number as a value", annotated("servicemesh-admin-interface-port: 9901"),
			[]string{"f.yaml:5:65: PC1102: annotation contrast.edgeless.systems/servicemesh-admin-interface-port must be a string; put it in quotes"},
		},
		{
			"misspelt", annotated("servicemesh-ingres: ''"),
			[]string{"f.yaml:5:5: PC1104: unknown annotation contrast.edgeless.systems/servicemesh-ingres; known are "},
		},
		{
			"two values of one annotation",
			"kind: Deployment\nmetadata:\n  name: a\n  annotations: {contrast.edgeless.systems/servicemesh-ingress: CLOSED}\n" +
				"spec:\n  template:\n    metadata:\n      annotations: {contrast.edgeless.systems/servicemesh-ingress: ''}\n" +
				"    spec: {runtimeClassName: kata-cc, containers: []}\n",
			[]string{`f.yaml:8:68: PC1103: annotation contrast.edgeless.systems/servicemesh-ingress is "" here and "CLOSED" on line 4; keep one`},
		},
		{
			"mesh on a pod that is not confidential", strings.Replace(annotated("servicemesh-ingress: ''"), "kata-qemu-snp", "runc", 1),
			[]string{"f.yaml:5:52: PC1106: annotation contrast.edgeless.systems/servicemesh-ingress on Pod default/a, which is not a confidential " +
				`pod: its runtimeClassName is "runc", want one of contrast-cc*, `},
		},
		{
			"mesh on a pod without a class", strings.Replace(annotated("pod-role: coordinator"), "  runtimeClassName: kata-qemu-snp\n", "", 1),
			[]string{"f.yaml:5:41: PC1106: annotation contrast.edgeless.systems/pod-role on Pod default/a, which is not a confidential pod: it has no"},
		},
		{
			"mesh on an unknown kind", "apiVersion: x.org/v1\nkind: Rollout\nmetadata:\n  name: a\nspec: {template: {metadata: " +
				"{annotations: {contrast.edgeless.systems/servicemesh-ingress: ''}}}}\n",
			[]string{"f.yaml:5:44: PC1106: annotation contrast.edgeless.systems/servicemesh-ingress on an object of kind \"Rollout\", whose pods"},
		},
		{"unknown role", annotated("pod-role: Coordinator"), []string{`f.yaml:5:41: PC1107: annotation contrast.edgeless.systems/pod-role is "Coordinator"`}},
		{"unclear skip", annotated("skip-initializer: 'yes'"), []string{`f.yaml:5:49: PC1107: annotation contrast.edgeless.systems/skip-initializer is "yes"`}},
		{"secret without a name", annotated("workload-secret-id: ''"), []string{"f.yaml:5:51: PC1107: annotation contrast.edgeless.systems/workload-secret-id: "}},
		{
			"mesh without an Initializer", annotated("skip-initializer: 'true'\n    contrast.edgeless.systems/servicemesh-ingress: ''"),
			[]string{"f.yaml:6:52: PC1108: annotation contrast.edgeless.systems/servicemesh-ingress: without the Initializer"},
		},
		{
			"mesh on the Coordinator", annotated("pod-role: coordinator\n    contrast.edgeless.systems/servicemesh-ingress: ''"),
			[]string{"f.yaml:6:52: PC1108: annotation contrast.edgeless.systems/servicemesh-ingress: a Coordinator answers on its own port"},
		},
		{
			"credentials hidden", strings.Replace(annotated("servicemesh-ingress: ''"), "  - name: a\n",
				"  - name: a\n    volumeMounts:\n    - {name: x, mountPath: /contrast/}\n    - {name: x, mountPath: /contrast/tls-config}\n", 1),
			[]string{"f.yaml:11:28: PC1305: mountPath /contrast/ is where", "f.yaml:12:28: PC1305: mountPath /contrast/tls-config is where"},
		},
		{
			"credentials by subPath", strings.Replace(annotated("servicemesh-ingress: ''"), "  - name: a\n",
				"  - name: a\n    volumeMounts:\n    - {name: contrast-secrets, mountPath: /contrast, subPath: tls-config}\n", 1),
			[]string{"f.yaml:11:63: PC1305: subPath of contrast-secrets never sees a renewed certificate"},
		},
		{
			"somebody else's initdata", strings.Replace(annotated("servicemesh-ingress: ''"), "spec:",
				"    io.katacontainers.config.hypervisor.cc_init_data: H4sI\nspec:", 1),
			[]string{"f.yaml:6:5: PC1004: io.katacontainers.config.hypervisor.cc_init_data is here already and generate did not write it; remove it"},
		},
		{"no name", "kind: Pod\nspec:\n  runtimeClassName: kata-cc\n", []string{"f.yaml:1:1: PC1006: this Pod has no metadata.name"}},
		{
			"one name twice", annotated("servicemesh-ingress: ''") + "---\n" + annotated("servicemesh-ingress: ''"),
			[]string{"f.yaml:11:1: PC1501: Pod default/a is here already at f.yaml:1: two pods with one policy hash have one identity"},
		},
		{
			"part of the pod is repeated elsewhere",
			"kind: List\nitems:\n- kind: Pod\n  metadata: {name: a}\n  spec: &s\n    runtimeClassName: kata-cc\n    containers: [{name: a}]\n" +
				"- kind: Pod\n  metadata: {name: b}\n  spec: *s\n",
			[]string{"f.yaml:10:9: PC1002: alias *s repeats a part of a pod that generate must add to; write it out here"},
		},
		{
			"list from a merge key",
			"kind: List\nx: &s\n  volumes: [{name: x}]\nitems:\n- kind: Pod\n  metadata: {name: a}\n  spec:\n    <<: *s\n" +
				"    runtimeClassName: kata-cc\n    containers: [{name: a}]\n",
			[]string{"f.yaml:8:5: PC1002: volumes comes from a merge key (line 3), which an entry of its own would hide; write it out here"},
		},
		{
			"flow pair without braces", "kind: Pod\nmetadata: {name: a}\nspec: {runtimeClassName: kata-cc, containers: [name: a]}\n",
			[]string{"f.yaml:3:48: PC1002: put braces around this, so that generate can add to it"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(c.text)}}, options())
			if err == nil {
				t.Fatal("accepted")
			}
			faults, ok := errors.AsType[generate.Faults](err)
			if !ok {
				t.Fatalf("%T: %v", err, err)
			}
			if len(faults) != len(c.want) {
				t.Fatalf("%d faults, want %d:\n%v", len(faults), len(c.want), err)
			}
			for i, want := range c.want {
				if got := faults[i].Error(); !strings.HasPrefix(got, want) {
					t.Errorf("got %q, want %q...", got, want)
				}
			}
			if faults.ExitCode() != 2 {
				t.Errorf("exit code %d", faults.ExitCode())
			}
		})
	}
}

func TestFaultsOfAllFilesAtOnce(t *testing.T) {
	_, err := generate.Inject(t.Context(), []generate.File{
		{Name: "a.yaml", Text: []byte("a: b: c")}, {Name: "b.yaml", Text: []byte("a: b: c")},
	}, options())
	if err == nil || !strings.Contains(err.Error(), "a.yaml:1:1: ") || !strings.Contains(err.Error(), "b.yaml:1:1: ") {
		t.Errorf("got %v", err)
	}
}

func TestNoPolicyIsExplained(t *testing.T) {
	o := options()
	o.Policy = nil
	_, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: read(t, shop)}}, o)
	hint, ok := err.(interface{ Hint() string })
	if !ok || !strings.Contains(hint.Hint(), "--policy FILE") || !strings.Contains(hint.Hint(), "--genpolicy PATH") {
		t.Errorf("got %v", err)
	}
	o.Policy = generate.FixedPolicy(" \n")
	if _, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: read(t, shop)}}, o); err == nil {
		t.Error("an empty policy is accepted")
	}
}

// Whoever runs genpolicy must see what will run: the injected containers.
func TestGenpolicySeesTheInjectedPod(t *testing.T) {
	folder := t.TempDir()
	program := filepath.Join(folder, "genpolicy")
	script := "#!/bin/sh\n[ \"$*\" = --raw-out ] || exit 9\ncat >" + folder + "/in.$$\necho \"package agent_policy # $(cksum <" + folder + "/in.$$)\"\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	o := options()
	o.Policy = generate.Genpolicy{Program: program}
	result, err := generate.Inject(t.Context(), []generate.File{{Name: "shop.yaml", Text: read(t, shop)}}, o)
	if err != nil {
		t.Fatal(err)
	}
	inputs, err := filepath.Glob(folder + "/in.*")
	if err != nil || len(inputs) != len(result.Pods) {
		t.Fatalf("ran for %d pods of %d, %v", len(inputs), len(result.Pods), err)
	}
	var all []byte
	for _, path := range inputs {
		input := read(t, path)
		if bytes.Contains(input, []byte(initdata.Annotation)) {
			t.Errorf("the policy would have to contain itself:\n%s", input)
		}
		all = append(all, input...)
	}
	for what, want := range map[string]int{"name: contrast-initializer": 4, "name: contrast-service-mesh": 9, "kind: Service": 0} {
		if got := bytes.Count(all, []byte(what)); got != want {
			t.Errorf("%q stands %d times in what genpolicy saw, want %d", what, got, want)
		}
	}
}

func TestGenpolicyFailureIsExplained(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"fails", "echo working; echo 'no such image' >&2; exit 1", "exit status 1:\n  no such image"},
		{"says nothing", "exit 0", "it wrote no policy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "genpolicy")
			if err := os.WriteFile(program, []byte("#!/bin/sh\ncat >/dev/null\n"+c.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			o := options()
			o.Policy = generate.Genpolicy{Program: program}
			_, err := generate.Inject(t.Context(), []generate.File{{Name: "shop.yaml", Text: read(t, shop)}}, o)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "shop.yaml:") {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestIdentities(t *testing.T) {
	const web = "kind: Deployment\nmetadata: {name: web%n, namespace: %s}\nspec: {template: {metadata: {labels: {app: web, v: '%n'}}, " +
		"spec: {runtimeClassName: kata-cc, containers: [{name: a}]}}}\n---\n"
	deployment := func(n, namespace string) string { return strings.NewReplacer("%n", n, "%s", namespace).Replace(web) }
	service := func(name, namespace, selector string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nspec: {selector: {" + selector + "}}\n---\n"
	}
	forms := func(name, namespace string) []string {
		return []string{name, name + "." + namespace, name + "." + namespace + ".svc", name + "." + namespace + ".svc.cluster.local"}
	}
	for _, c := range []struct {
		name, text string
		want       map[string][]string // by namespace/name
		warning    string
	}{
		{"its own name only", deployment("1", "a"), map[string][]string{"a/web1": {"web1"}}, ""},
		{
			"two Services", service("s", "a", "app: web") + service("t", "a", "v: '1', app: web") + deployment("1", "a"),
			map[string][]string{"a/web1": slices.Concat(forms("s", "a"), forms("t", "a"), []string{"web1"})},
			"",
		},
		{"another namespace's Service", service("s", "b", "app: web") + deployment("1", "a"), map[string][]string{"a/web1": {"web1"}}, ""},
		{"another selector", service("s", "a", "app: db") + deployment("1", "a"), map[string][]string{"a/web1": {"web1"}}, ""},
		{"no selector", service("s", "a", "") + deployment("1", "a"), map[string][]string{"a/web1": {"web1"}}, ""},
		{
			"a Service of its own name", service("web1", "a", "app: web") + deployment("1", "a"),
			map[string][]string{"a/web1": forms("web1", "a")},
			"",
		},
		{
			"its name is a Service elsewhere", service("web1", "b", "app: db") + deployment("1", "a"),
			map[string][]string{"a/web1": nil},
			"",
		},
		{
			"one name in two namespaces", deployment("1", "a") + deployment("1", "b"),
			map[string][]string{"a/web1": nil, "b/web1": nil},
			"",
		},
		{
			"a Service of two pods", service("s", "a", "app: web") + deployment("1", "a") + deployment("2", "a"),
			map[string][]string{"a/web1": {"web1"}, "a/web2": {"web2"}},
			"PC1401: Service a/s selects Deployment a/web1 and Deployment a/web2",
		},
		{
			"one Service name in two namespaces",
			service("s", "a", "app: web") + service("s", "b", "app: web") + deployment("1", "a") + deployment("2", "b"),
			map[string][]string{"a/web1": append(forms("s", "a")[1:], "web1"), "b/web2": append(forms("s", "b")[1:], "web2")},
			"PC1402: s leads to Deployment a/web1 and to Deployment b/web2",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			result, err := generate.Inspect([]generate.File{{Name: "f.yaml", Text: []byte(c.text)}}, options())
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string][]string)
			for _, p := range result.Pods {
				var names []string
				for _, san := range p.Policy.SANs {
					names = append(names, san.String())
				}
				got[p.Namespace+"/"+p.Name] = names
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("want -, got +:\n%s", diff)
			}
			if warnings := besides(result.Warnings, "PC1314", "PC1303"); !strings.Contains(warnings, c.warning) || (c.warning == "") != (warnings == "") {
				t.Errorf("warnings %q, want %q", warnings, c.warning)
			}
		})
	}
}

func TestUnknownPeerIsReported(t *testing.T) {
	text := bytes.Replace(read(t, shop), []byte("cart-svc:8080\n"), []byte("chart-svc:8080\n"), 1)
	result, err := generate.Inspect([]generate.File{{Name: "shop.yaml", Text: text}}, options())
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Warnings) != 1 || !strings.HasPrefix(result.Warnings[0], "shop.yaml:80:55: PC1404: ") ||
		!strings.Contains(result.Warnings[0], "asks for the identity chart-svc, which no policy") {
		t.Errorf("warnings: %q", result.Warnings)
	}
}

func TestCoordinatorHost(t *testing.T) {
	const coordinator = "kind: Pod\nmetadata: {name: c, namespace: sys, labels: {app: c}, annotations: " +
		"{contrast.edgeless.systems/pod-role: coordinator}}\nspec: {runtimeClassName: kata-cc, containers: [{name: c}]}\n---\n"
	pod := func(namespace string) string {
		return "kind: Pod\nmetadata: {name: p, namespace: " + namespace + "}\nspec: {runtimeClassName: kata-cc, containers: [{name: c}]}\n"
	}
	service := func(ports string) string {
		return "kind: Service\nmetadata: {name: gate, namespace: sys}\nspec: {selector: {app: c}, ports: [" + ports + "]}\n---\n"
	}
	for _, c := range []struct{ name, text, flag, want string }{
		{"nothing known", pod("a"), "", "coordinator"},
		{"as told", coordinator + service("port: 1313") + pod("a"), "host:99", "host:99"},
		{"its Service", coordinator + service("{port: 1313}") + pod("sys"), "", "gate"},
		{"its Service, in another namespace", coordinator + service("{port: 1313}") + pod("a"), "", "gate.sys"},
		{"another port", coordinator + service("{port: 9}, {port: 80, targetPort: 1313}") + pod("sys"), "", "gate:80"},
		{"no Service", coordinator + pod("sys"), "", "coordinator"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options()
			o.CoordinatorHost = c.flag
			result, err := generate.Inspect([]generate.File{{Name: "f.yaml", Text: []byte(c.text)}}, o)
			if err != nil {
				t.Fatal(err)
			}
			if got := result.Pods[len(result.Pods)-1].Config.CoordinatorHost; got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestRolesAndGuards(t *testing.T) {
	for _, c := range []struct {
		annotation string
		containers []string
		guard      initdata.Guard
	}{
		{"x: y", []string{"contrast-initializer"}, initdata.GuardOpen},
		{"contrast.edgeless.systems/servicemesh-ingress: ''", []string{"contrast-initializer", "contrast-service-mesh"}, initdata.GuardMesh},
		{"contrast.edgeless.systems/servicemesh-egress: ''", []string{"contrast-initializer", "contrast-service-mesh"}, initdata.GuardMesh},
		{"contrast.edgeless.systems/servicemesh-ingress: CLOSED", []string{"contrast-initializer", "contrast-service-mesh"}, initdata.GuardMesh},
		{"contrast.edgeless.systems/servicemesh-egress-policy: closed", []string{"contrast-initializer", "contrast-service-mesh"}, initdata.GuardMesh},
		{"contrast.edgeless.systems/servicemesh-ingress: DISABLED", []string{"contrast-initializer", "contrast-service-mesh"}, initdata.GuardOpen},
		{"contrast.edgeless.systems/skip-initializer: 'true'", nil, initdata.GuardClosed},
		{"contrast.edgeless.systems/skip-initializer: 'false'", []string{"contrast-initializer"}, initdata.GuardOpen},
		{"contrast.edgeless.systems/pod-role: coordinator", nil, initdata.GuardMesh},
	} {
		t.Run(c.annotation, func(t *testing.T) {
			text := "kind: Pod\nmetadata: {name: a, annotations: {" + c.annotation + "}}\nspec:\n  runtimeClassName: kata-cc\n" +
				"  containers:\n  - name: a\n"
			result, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(text)}}, options())
			if err != nil {
				t.Fatal(err)
			}
			var pod struct {
				Spec struct {
					InitContainers []struct{ Name string } `yaml:"initContainers"`
				}
			}
			if err := yaml.Unmarshal(result.Files[0].Text, &pod); err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, container := range pod.Spec.InitContainers {
				names = append(names, container.Name)
			}
			if !slices.Equal(names, c.containers) {
				t.Errorf("containers %q, want %q", names, c.containers)
			}
			if got := result.Pods[0].Config.Guard; got != c.guard {
				t.Errorf("guard %q, want %q", got, c.guard)
			}
			noMesh := bytes.Contains(result.Files[0].Text, []byte(`"--no-mesh"`))
			if want := slices.Equal(c.containers, []string{"contrast-initializer"}); noMesh != want {
				t.Errorf("--no-mesh is %v, want %v", noMesh, want)
			}
		})
	}
}

// The lock reaches both containers as an argument, gives the Initializer the capability to mark its sockets, and is
// measured; a container that could get past it is warned of.
func TestEgressLock(t *testing.T) {
	text := "kind: Pod\nmetadata: {name: a, annotations: {portcullis.dev/accept: PC1302, contrast.edgeless.systems/servicemesh-egress-policy: closed}}\n" +
		"spec:\n  runtimeClassName: kata-cc\n  initContainers:\n" +
		"  - {name: added, securityContext: {capabilities: {drop: [ALL], add: [NET_ADMIN]}}}\n" +
		"  - {name: privileged, securityContext: {privileged: true, capabilities: {drop: [ALL]}}}\n  containers:\n" +
		"  - {name: plain}\n" +
		"  - {name: dropped, securityContext: {capabilities: {drop: [NET_RAW]}}}\n" +
		"  - {name: bare, securityContext: {capabilities: {drop: [ALL], add: [CHOWN]}}}\n" +
		"  - {name: back, securityContext: {capabilities: {drop: [ALL], add: [NET_RAW]}}}\n"
	result, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(text)}}, options())
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := kyaml.UnmarshalStrict(result.Files[0].Text, &pod); err != nil {
		t.Fatal(err)
	}
	for _, c := range pod.Spec.InitContainers {
		if !strings.HasPrefix(c.Name, "contrast-") {
			continue
		}
		if !slices.Contains(c.Args, "--egress-policy=closed") ||
			!slices.Contains(c.Env, corev1.EnvVar{Name: "CONTRAST_EGRESS_POLICY", Value: "closed"}) {
			t.Errorf("container %s has the arguments %q and variables %v, want the egress policy in both", c.Name, c.Args, c.Env)
		}
		if !slices.Contains(c.SecurityContext.Capabilities.Add, "NET_RAW") {
			t.Errorf("container %s may not mark its sockets: %v", c.Name, c.SecurityContext.Capabilities)
		}
	}
	if got := result.Pods[0].Config.Mesh.EgressPolicy; got != "closed" {
		t.Errorf("the measured egress policy is %q", got)
	}
	const want = "f.yaml:9:5: PC1304: container plain, container back of Pod default/a has the capability NET_RAW, with which it can send past " +
		"the egress lock: add securityContext.capabilities.drop: [NET_RAW], or [ALL]"
	if got := besides(result.Warnings, "PC1314"); got != want {
		t.Errorf("warned of %q, want %q", got, want)
	}
}

// besides are the warnings without those of codes, which nearly every short pod gets.
func besides(warnings []string, codes ...string) string {
	var left []string
	for _, w := range warnings {
		if !slices.ContainsFunc(codes, func(code string) bool { return strings.Contains(w, ": "+code+": ") }) {
			left = append(left, w)
		}
	}
	return strings.Join(left, "\n")
}

func TestAccessLogIsPinned(t *testing.T) {
	for value, want := range map[string]bool{"true": true, "false": false} {
		result, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(
			"kind: Pod\nmetadata: {name: a, annotations: {contrast.edgeless.systems/servicemesh-ingress: CLOSED,\n" +
				"  contrast.edgeless.systems/servicemesh-access-log: '" + value + "'}}\n" +
				"spec: {runtimeClassName: kata-cc, containers: [{name: a}]}\n",
		)}}, options())
		if err != nil {
			t.Fatal(err)
		}
		var pod corev1.Pod
		if err := kyaml.UnmarshalStrict(result.Files[0].Text, &pod); err != nil {
			t.Fatal(err)
		}
		proxy := pod.Spec.InitContainers[1]
		argument := slices.Contains(proxy.Args, "--access-log=true")
		if argument != want || argument != slices.Contains(proxy.Env, corev1.EnvVar{Name: "CONTRAST_ACCESS_LOG", Value: "true"}) ||
			argument != (result.Pods[0].Config.Mesh.AccessLog == "true") {
			t.Errorf("%s: the mesh proxy has %q and %v, the initdata %q", value, proxy.Args, proxy.Env, result.Pods[0].Config.Mesh.AccessLog)
		}
	}
}

func TestZeroOptionsInjectNothing(t *testing.T) {
	result, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(
		"kind: Pod\nmetadata: {name: a}\nspec: {runtimeClassName: kata-cc, containers: [{name: a}]}\n",
	)}}, generate.Options{})
	if err != nil || len(result.Pods) != 0 {
		t.Errorf("got %+v, %v", result, err)
	}
}

func injectShop(t *testing.T) *generate.Result {
	t.Helper()
	o := options()
	o.Policy = generate.FixedPolicy(read(t, "../tests/demo/policy.rego"))
	result, err := generate.Inject(t.Context(), []generate.File{{Name: "shop.yaml", Text: read(t, shop)}}, o)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// annotationValues are all the values of an annotation, wherever it stands.
func annotationValues(t testing.TB, text []byte, name string) map[string]bool {
	t.Helper()
	values := make(map[string]bool)
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, item := range v {
				walk(item)
			}
		case map[string]any:
			if value, ok := v[name].(string); ok {
				values[value] = true
			}
			for _, key := range slices.Sorted(maps.Keys(v)) {
				walk(v[key])
			}
		}
	}
	walk(decodeAll(t, text))
	return values
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(read(t, path)), string(got)); diff != "" {
		t.Errorf("%s (-update writes it anew): want -, got +:\n%s", path, diff)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The API server refuses unknown fields; so does the strict decoder into its own types.
func TestInjectedFieldsAreKubernetes(t *testing.T) {
	for document := range bytes.SplitSeq(injectShop(t).Files[0].Text, []byte("\n---\n")) {
		var kind metav1.TypeMeta
		if err := kyaml.Unmarshal(document, &kind); err != nil {
			t.Fatal(err)
		}
		var object any
		switch kind.Kind {
		case "Pod":
			object = new(corev1.Pod)
		case "Deployment":
			object = new(appsv1.Deployment)
		default:
			continue
		}
		if err := kyaml.UnmarshalStrict(document, object); err != nil {
			t.Errorf("%v in\n%s", err, document)
		}
	}
}
