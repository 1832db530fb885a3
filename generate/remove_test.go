package generate_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"portcullis.dev/portcullis/generate"
)

const removable = `kind: Pod
metadata:
  name: a
  annotations:
    contrast.edgeless.systems/servicemesh-ingress: ""
spec:
  runtimeClassName: kata-cc
  containers:
    - name: a
      image: a
`

// A person's changes in an injected file are a person's: they are kept when it is injected again or the injection is removed.
func TestRemoveKeepsWhatPeopleChanged(t *testing.T) {
	injected := string(inject(t, []byte(removable)))
	for _, c := range []struct {
		name     string
		old, new string // in the injected file
		want     [2]string
	}{
		{"another image", "image: a\n", "image: b\n", [2]string{"image: a\n", "image: b\n"}},
		{
			"a container", "  containers:\n", "  containers:\n    - name: first\n      image: first\n",
			[2]string{"  containers:\n", "  containers:\n    - name: first\n      image: first\n"},
		},
		{
			"a volume among the injected", "  volumes:\n", "  volumes:\n    - name: mine\n      emptyDir: {}\n",
			[2]string{"      image: a\n", "      image: a\n  volumes:\n    - name: mine\n      emptyDir: {}\n"},
		},
		{
			"an annotation beside the injected", "    contrast.edgeless", "    note: x\n    contrast.edgeless",
			[2]string{"    contrast.edgeless", "    note: x\n    contrast.edgeless"},
		},
		{
			"a comment among the injected", "      env:\n        - name: COORDINATOR_HOST\n", "      env:\n# mine\n        - name: COORDINATOR_HOST\n",
			[2]string{"      image: a\n", "      image: a\n# mine\n"},
		},
		{
			"a comment above the injected", "  initContainers:\n", "  # mine\n  initContainers:\n",
			[2]string{"      image: a\n", "      image: a\n  # mine\n"},
		},
		{
			"a value in the injected", "runAsUser: 0", "runAsUser: 1", [2]string{"", ""},
		},
		{
			"an injected volume taken out by hand", "    - name: contrast-service-mesh\n      emptyDir:\n        medium: Memory\n        sizeLimit: 16Mi\n", "",
			[2]string{"", ""},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(injected, c.old) {
				t.Fatalf("%q is not in\n%s", c.old, injected)
			}
			edited := strings.Replace(injected, c.old, c.new, 1)
			want := strings.Replace(removable, c.want[0], c.want[1], 1)
			if got := string(remove(t, []byte(edited))); got != want {
				t.Errorf("removed:\n%s\nwant\n%s", got, want)
			}
			again := inject(t, []byte(edited))
			if got := string(remove(t, again)); got != want {
				t.Errorf("injected again and removed:\n%s\nwant\n%s", got, want)
			}
			if twice := inject(t, again); !bytes.Equal(twice, again) {
				t.Errorf("twice is not once:\n%s\nonce:\n%s", twice, again)
			}
		})
	}
}

func TestRemoveSaysFromWhichPods(t *testing.T) {
	shop := read(t, shop)
	injected := injectShop(t)
	result, err := generate.Remove([]generate.File{
		{Name: "plain.yaml", Text: []byte("kind: Pod\nmetadata: {name: plain}\nspec: {containers: []}\n")},
		{Name: "shop.yaml", Text: injected.Files[0].Text},
	}, generate.Options{Namespace: "default"}) // whatever the runtime classes are called now
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Files) != 2 || !bytes.Equal(result.Files[1].Text, shop) {
		t.Errorf("the shop is not as it was: %s", result.Files[1].Text)
	}
	if len(result.Pods) != len(injected.Pods) {
		t.Fatalf("%d pods, want %d", len(result.Pods), len(injected.Pods))
	}
	for i, p := range result.Pods {
		if want := injected.Pods[i]; p.Name != want.Name || p.Kind != want.Kind || p.File != "shop.yaml" || p.Line < want.Line {
			t.Errorf("%+v, want %s %s", p, want.Kind, want.Name)
		}
	}
}

// What was not injected is nobody's to remove.
func TestRemoveLeavesAllElse(t *testing.T) {
	for _, text := range []string{
		"", "# nothing\n", "a: b\n", removable,
		strings.Replace(removable, "spec:", "    io.katacontainers.config.hypervisor.cc_init_data: H4sI\nspec:", 1),
		strings.Replace(removable, "spec:", "spec:\n  volumes:\n    - name: contrast-secrets\n      hostPath: {path: /}", 1),
	} {
		if got := string(remove(t, []byte(text))); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// What cannot be taken out exactly is refused, with its place and what to do.
func TestRemoveRefuses(t *testing.T) {
	const empty = "portcullis.dev/original-empty-values"
	injected := string(inject(t, []byte(strings.Replace(removable, "spec:\n", "spec:\n  volumes:\n", 1))))
	if !strings.Contains(injected, empty) {
		t.Fatalf("no %s in\n%s", empty, injected)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"broken YAML", "kind: Pod", "kind: Pod: x", "f.yaml:1:1: PC1001: not valid YAML: "},
		{"a record that says too much", `{"volumes":""}`, `{"volumes":"[{name: x}]"}`, "annotation " + empty + " is not as generate writes it; remove it"},
		{"a record that is none", `'{"volumes":""}'`, `"x"`, "annotation " + empty + " is not as generate writes it; remove it"},
		{
			"the credentials by subPath", "          readOnly: true\n", "          readOnly: true\n          subPath: tls-config\n",
			"subPath of contrast-secrets never sees a renewed certificate",
		},
		{
			"the volume on a disk", `"medium": "Memory", "sizeLimit": "1Mi"`, "", "volume contrast-secrets is not as generate writes it, in memory",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			edited := strings.Replace(injected, c.old, c.new, 1)
			if edited == injected {
				t.Fatalf("%q is not in\n%s", c.old, injected)
			}
			_, err := generate.Remove([]generate.File{{Name: "f.yaml", Text: []byte(edited)}}, options())
			var faults generate.Faults
			if !errors.As(err, &faults) || !strings.HasPrefix(err.Error(), "f.yaml:") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if _, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(edited)}}, options()); err == nil {
				t.Error("and injecting again is not refused")
			}
		})
	}
}

// Names that generate gives are refused where it did not give them: the next run would take what bears them away.
func TestNamesOfOursAreRefused(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{
			"volume", "spec:\n", "spec:\n  volumes:\n    - name: contrast-secrets\n      emptyDir: {medium: Memory}\n",
			"f.yaml:8:7: PC1004: volume name contrast-secrets is generate's own; give yours another",
		},
		{
			"volume of the mesh proxy", "spec:\n", "spec:\n  volumes: [{name: contrast-service-mesh, configMap: {name: x}}]\n",
			"f.yaml:7:13: PC1004: volume name contrast-service-mesh is generate's own; give yours another",
		},
		{
			"container", "    - name: a\n", "    - name: contrast-initializer\n      image: x\n    - name: a\n",
			"f.yaml:9:7: PC1004: container name contrast-initializer is generate's own; give yours another",
		},
		{
			"mount", "      image: a\n", "      image: a\n      volumeMounts:\n        - name: contrast-secrets\n          mountPath: /contrast\n",
			"f.yaml:12:11: PC1305: generate mounts contrast-secrets in every container; remove this mount",
		},
		{
			"mount elsewhere", "      image: a\n", "      image: a\n      volumeMounts:\n        - name: contrast-secrets\n          mountPath: /x\n",
			"f.yaml:12:11: PC1305: contrast-secrets is mounted at /contrast in every container by generate; remove this mount",
		},
		{
			"mount of the mesh proxy's volume", "      image: a\n",
			"      image: a\n      volumeMounts:\n        - name: contrast-service-mesh\n          mountPath: /x\n",
			"f.yaml:12:11: PC1004: volume contrast-service-mesh is the mesh proxy's own; give yours another name",
		},
		{
			"record", "  annotations:\n", "  annotations:\n    portcullis.dev/original-empty-values: '{}'\n",
			"f.yaml:5:5: PC1004: portcullis.dev/original-empty-values is here already and generate did not write it; remove it",
		},
		{
			"one name for two containers", "    - name: a\n", "    - name: a\n      image: x\n    - name: a\n",
			`f.yaml:11:7: PC1005: the container on line 9 is named "a" too; give each container a name of its own`,
		},
		{
			"value without a colon", "  runtimeClassName: kata-cc\n", "  runtimeClassName: kata-cc\n  ? volumes\n",
			"f.yaml:8:5: PC1002: volumes has no value here; write a colon behind it, or take it away",
		},
		{
			"key behind a question mark", "spec:\n", "spec:\n  ? hostname\n  : x\n",
			"f.yaml:7:5: PC1002: this key does not begin its line; write it without a question mark, so that generate can add ",
		},
		{
			"empty value with an anchor", "spec:\n", "spec:\n  volumes: &v\n",
			"f.yaml:7:12: PC1002: an empty value with an anchor or a tag: generate cannot add to it; take the empty entry away",
		},
		{
			"merge of nothing", "spec:\n", "spec:\n  <<: x\n", "f.yaml:7:3: PC1001: << merges mappings, and its value is none; give an alias of one",
		},
		{
			"second byte order mark", "kind: Pod\n", "\ufeff\ufeffkind: Pod\n", "f.yaml:1:1: PC1001: a byte order mark in the middle of the file",
		},
		{
			"byte order mark in the middle", "spec:\n", "---\n\ufeffspec:\n", "f.yaml:7:1: PC1001: a byte order mark in the middle of the file",
		},
		{
			"tag that lies", "image: a\n", "image: a\n      tty: !!bool x\n", `f.yaml:11:12: PC1001: "x" is no !!bool; take the tag away`,
		},
		{
			"alias of what it stands in", "image: a\n", "image: a\n      env: &e [*e]\n",
			"f.yaml:11:16: PC1001: alias *e repeats what it stands in, without end; take it away",
		},
		{
			"text that would get a line break", "      image: a\n", "      image: a\n      args:\n        - |\n          text",
			"and end the file with a line break",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(removable, c.old, c.new, 1)
			if text == removable {
				t.Fatalf("%q is not there", c.old)
			}
			_, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(text)}}, options())
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "f.yaml:") {
				t.Errorf("got %v, want %q in\n%s", err, c.want, text)
			}
		})
	}
}

// Empty values in every style become what they were.
func TestEmptyValuesComeBack(t *testing.T) {
	for _, value := range []string{"", " ~", " null", " Null", " NULL", " []", " [ ]", " [\n  # none\n  ]", "   # none", " null # none"} {
		for _, key := range []string{"volumes", "initContainers"} {
			checkInjection(t, []byte(strings.Replace(removable, "spec:\n", "spec:\n  "+key+":"+value+"\n", 1)))
		}
		checkInjection(t, []byte(strings.Replace(removable, "      image: a\n", "      volumeMounts:"+strings.ReplaceAll(value, "\n", "\n    ")+"\n      image: a\n", 1)))
	}
	const job = "kind: Job\nmetadata: {name: a}\nspec:\n  template:\n%s    spec: {runtimeClassName: kata-cc, containers: [{name: a%s}]%s}\n"
	for _, metadata := range []string{
		"", "    metadata:\n", "    metadata: ~\n", "    metadata: {}\n", "    metadata: { }\n", "    metadata: {annotations: }\n",
		"    metadata: {annotations: {}}\n", "    metadata: {labels: {a: b}, annotations: null}\n", "    metadata:\n      annotations:\n",
		"    metadata:\n      annotations: {}\n", "    metadata:\n      annotations: {a: b}\n", "    metadata:\n      labels: {a: b}\n",
	} {
		for _, mounts := range []string{"", ", volumeMounts: ", ", volumeMounts: []", ", volumeMounts: null, image: a", ", volumeMounts: [{name: x, mountPath: /x},]"} {
			for _, volumes := range []string{"", ", volumes: ", ", volumes: ~, initContainers: []", ", initContainers: [ ]"} {
				checkFile(t, fmt.Sprintf(job, metadata, mounts, volumes))
			}
		}
	}
}

// Whatever its size, a file is read document by document.
func TestLargeFiles(t *testing.T) {
	var many strings.Builder
	for i := range 100 {
		fmt.Fprintf(&many, "---\n%s", strings.Replace(removable, "name: a\n", fmt.Sprintf("name: pod-%d\n", i), 1))
	}
	checkInjection(t, []byte(many.String()))

	large := "kind: ConfigMap\nmetadata: {name: large}\ndata:\n  text: |\n" + strings.Repeat("    a line of some length, as files have them\n", 50_000)
	if len(large) < 2<<20 {
		t.Fatalf("%d bytes", len(large))
	}
	checkFile(t, large+"---\n"+removable)
	list := "kind: List\nitems:\n"
	for i := range 500 {
		item := strings.Replace(removable, "name: a\n", fmt.Sprintf("name: pod-%d\n", i), 1)
		list += "- " + strings.ReplaceAll(strings.TrimSuffix(item, "\n"), "\n", "\n  ") + "\n"
	}
	checkFile(t, list)
}

// Places are those of the whole file, in whichever document a fault is.
func TestPlacesInLaterDocuments(t *testing.T) {
	const first = "# a header\n---\nkind: ConfigMap\n---\r\n# CRLF\r\n---\n"
	for _, c := range []struct{ text, want string }{
		{"a: b: c\n", "f.yaml:7:1: PC1001: not valid YAML: mapping values are not allowed"},
		{"a: 1\na: 2\n", `f.yaml:8:1: PC1001: duplicate key "a", the first is on line 7`},
		{strings.Replace(removable, `""`, "web", 1), "f.yaml:11:52: "},
		{"a: [\n---\nkind: Pod\n", "f.yaml:"},
	} {
		_, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(first + c.text)}}, options())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}
