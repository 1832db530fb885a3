package generate_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	kyaml "sigs.k8s.io/yaml"

	"portcullis.dev/portcullis/generate"
)

const (
	annotationProbes = "portcullis.dev/original-probes"
	annotationEmpty  = "portcullis.dev/original-empty-values"
)

// Pods with probes, in the many ways in which people write them. Each ‹handler› is replaced, and nothing else changes.
var probed = map[string]struct {
	text   string
	probes []string
}{
	"block": {
		`apiVersion: v1
kind: Pod
metadata:
  name: web
  annotations:
    contrast.edgeless.systems/servicemesh-ingress: web#8080#false##metrics#7890#true
spec:
  runtimeClassName: kata-qemu-snp
  initContainers:
    - name: cache
      image: cache:1
      restartPolicy: Always # a native sidecar
      startupProbe:
        ‹tcpSocket: {port: 11211}› # it listens
        failureThreshold: 30
  containers:
    - name: web
      image: web:1
      ports:
        - containerPort: 8080
          name: http
      livenessProbe:
        # asked once in five seconds
        ‹httpGet: # of the web server
          path: /healthz?full=1#top
          port: http
          # with the name that it serves
          httpHeaders:
            - name: Host
              value: shop.example
            - {name: X-Probe, value: "50% #1"}›  # the last
          # nothing else
        periodSeconds: 5
      readinessProbe:
        timeoutSeconds: 7
        ‹httpGet:
          port: 8443
          scheme: HTTPS›

      startupProbe:
        exec: {command: [test, -e, /ready]}
    - name: api
      readinessProbe:
        ‹grpc:
          port: 9000
          service: shop.Cart/v1#2›
      livenessProbe:
        ‹grpc: {port: 9000}›
    - name: metrics
      readinessProbe:
        httpGet: {path: /metrics, port: 7890}
`,
		[]string{
			"cache/startup#tcp://:11211#1s",
			"web/liveness#http://:8080/healthz?full=1#1s#Host:shop.example#X-Probe:50%25 %231",
			"web/readiness#https://:8443/#7s",
			"api/liveness#grpc://:9000#1s",
			"api/readiness#grpc://:9000/shop.Cart/v1%232#1s",
		},
	},
	"dashes at the key, the probe at the end": {
		`kind: Pod
apiVersion: v1
metadata:
  name: db
  annotations:
    contrast.edgeless.systems/servicemesh-ingress: ""
spec:
  volumes:
  - name: x
    emptyDir: {}
  runtimeClassName: kata-cc
  containers:
  - volumeMounts:
    - {name: x, mountPath: /x}
    name: db
    livenessProbe:
      ‹"tcpSocket":
        "port":
          5432›
`,
		[]string{"db/liveness#tcp://:5432#1s"},
	},
	"flow": {
		`{apiVersion: v1, kind: Pod, metadata: {name: pod, annotations: {contrast.edgeless.systems/servicemesh-ingress: ""}},
  spec: {runtimeClassName: kata-qemu-snp, containers: [{name: a, ports: [{name: web, containerPort: 80}],
    livenessProbe: {‹httpGet: {path: healthz,
 port: web}›, timeoutSeconds: 2}, readinessProbe: {‹tcpSocket: {port: 80}›}}]}}
`,
		[]string{"a/liveness#http://:80/healthz#2s", "a/readiness#tcp://:80#1s"},
	},
	"JSON": {
		`{
	"apiVersion": "v1",
	"kind": "Pod",
	"metadata": {"name": "pod", "annotations": {"contrast.edgeless.systems/servicemesh-ingress": ""}},
	"spec": {
		"runtimeClassName": "kata-qemu-snp",
		"containers": [
			{
				"name": "a",
				"image": "a",
				"startupProbe": {
					"periodSeconds": 1,
					‹"httpGet": {
						"path": "/a%20b",
						"port": 8080
					}›
				}
			}
		]
	}
}`,
		[]string{"a/startup#http://:8080/a%20b#1s"},
	},
}

var unmarked = strings.NewReplacer("‹", "", "›", "")

// handlers matches what is marked, and what it becomes.
var (
	marked    = regexp.MustCompile(`(?s)‹.*?›`)
	emptied   = regexp.MustCompile(`"(initContainers|volumes|volumeMounts)": \[\], `) // what stays of the injection in flow style
	rewritten = regexp.MustCompile(`("?)httpGet"?: \{"?path"?: "?/probes/([a-z-]+/(?:liveness|readiness|startup))"?, "?port"?: 15021\}`)
)

// probesBack puts back what stands in the annotations, where each container's name is in one pod only.
func probesBack(t testing.TB, text []byte) []byte {
	t.Helper()
	originals := make(map[string]string)
	for value := range annotationValues(t, text, annotationProbes) {
		if err := json.Unmarshal([]byte(value), &originals); err != nil {
			t.Fatal(err)
		}
	}
	var lines strings.Builder
	for line := range strings.Lines(string(text)) {
		lines.WriteString(rewritten.ReplaceAllStringFunc(line, func(match string) string {
			parts := rewritten.FindStringSubmatch(match)
			if parts[1] == "" { // block style, in which lines have their place
				indent := strings.Repeat(" ", strings.Index(line, match))
				return strings.ReplaceAll(strings.ReplaceAll(originals[parts[2]], "\n", "\n"+indent), indent+"\b", "")
			}
			return originals[parts[2]]
		}))
	}
	return []byte(lines.String())
}

func TestProbesAreLedToTheProxyAndBack(t *testing.T) {
	for style, c := range probed {
		for variation, change := range variations {
			t.Run(style+"/"+variation, func(t *testing.T) {
				text := change(c.text)
				before := []byte(unmarked.Replace(text))
				after := inject(t, before)
				checkInjection(t, before)
				checkOnlyInserted(t, marked.ReplaceAll([]byte(text), []byte("HANDLER")), rewritten.ReplaceAll(after, []byte("HANDLER")))
				if n := len(rewritten.FindAll(after, -1)); n != len(c.probes) {
					t.Errorf("%d probes are led to the proxy, want %d:\n%s", n, len(c.probes), after)
				}
				// Without its runtime class a pod loses what was injected.
				plain := regexp.MustCompile(`kata-[a-z-]+`).ReplaceAll(removeMesh(after), []byte("runc"))
				want := regexp.MustCompile(`kata-[a-z-]+`).ReplaceAll(removeMesh(before), []byte("runc"))
				if got := emptied.ReplaceAll(inject(t, plain), nil); !bytes.Equal(got, want) {
					t.Errorf("what comes back is\n%q, want\n%q", got, want)
				}
			})
		}
	}
}

// removeMesh renames the mesh annotation, which a pod that is not confidential must not have.
func removeMesh(text []byte) []byte {
	return bytes.ReplaceAll(text, []byte("contrast.edgeless.systems/servicemesh-ingress"), []byte("former-ingress"))
}

// The API server must accept what is written, the proxy must be told the same in an argument and a variable, and the
// measured configuration must say it too.
func TestProbesReachTheProxyAsAnArgument(t *testing.T) {
	for style, c := range probed {
		t.Run(style, func(t *testing.T) {
			result, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(unmarked.Replace(c.text))}}, options())
			if err != nil {
				t.Fatal(err)
			}
			var pod corev1.Pod
			if err := kyaml.UnmarshalStrict(result.Files[0].Text, &pod); err != nil {
				t.Fatal(err)
			}
			want := strings.Join(c.probes, "##")
			proxy := pod.Spec.InitContainers[1]
			if !slices.Contains(proxy.Args, "--probes="+want) || !slices.Contains(proxy.Env, corev1.EnvVar{Name: "CONTRAST_PROBES", Value: want}) {
				t.Errorf("container %s has the arguments %q and the variables %q, want the probes %q in both", proxy.Name, proxy.Args, proxy.Env, want)
			}
			if got := result.Pods[0].Config.Mesh.Probes; got != want {
				t.Errorf("the measured probes are %q, want %q", got, want)
			}
			if got := result.Pods[0].Mesh.ProbesString(); got != want {
				t.Errorf("parsed, the probes are %q, want %q", got, want)
			}
			var originals map[string]string
			if err := json.Unmarshal([]byte(pod.Annotations[annotationProbes]), &originals); err != nil {
				t.Fatal(err)
			}
			if len(originals) != len(c.probes) {
				t.Errorf("%d originals are kept, want %d: %q", len(originals), len(c.probes), originals)
			}
			for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
				for kind, probe := range map[string]*corev1.Probe{
					"liveness": container.LivenessProbe, "readiness": container.ReadinessProbe, "startup": container.StartupProbe,
				} {
					original, kept := originals[container.Name+"/"+kind]
					if !kept {
						continue
					}
					path := "/probes/" + container.Name + "/" + kind
					if diff := cmp.Diff(&corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(15021)}, probe.HTTPGet); diff != "" {
						t.Errorf("%s of %s: %s", kind, container.Name, diff)
					}
					// What is kept is a handler as Kubernetes knows it.
					if strings.HasPrefix(original, `"httpGet": {`) {
						original = "{" + original + "}"
					}
					if err := kyaml.UnmarshalStrict([]byte(original), new(corev1.ProbeHandler)); err != nil {
						t.Errorf("%s of %s: %v in\n%s", kind, container.Name, err, original)
					}
				}
			}
		})
	}
}

// What an edited file means: its probes are those that a person sees, and the annotation only what is not to be seen.
func TestEditedProbes(t *testing.T) {
	const text = `kind: Pod
metadata:
  name: a
  annotations:
    contrast.edgeless.systems/servicemesh-ingress: ""
spec:
  runtimeClassName: kata-cc
  containers:
    - name: web
      livenessProbe:
        httpGet:
          path: /healthz # known to few
          port: 8080
        periodSeconds: 5
`
	injected := string(inject(t, []byte(text)))
	ours := "httpGet: {path: /probes/web/liveness, port: 15021}"
	if !strings.Contains(injected, ours) {
		t.Fatalf("no %q in\n%s", ours, injected)
	}
	for _, c := range []struct {
		name, old, new string
		want           string // what the proxy is told, or the fault
	}{
		{"the period", "periodSeconds: 5", "periodSeconds: 9", "web/liveness#http://:8080/healthz#1s"},
		{"the time-out", "periodSeconds: 5", "timeoutSeconds: 9", "web/liveness#http://:8080/healthz#9s"},
		{"the container's name", "- name: web\n", "- name: shop\n", "shop/liveness#http://:8080/healthz#1s"},
		{"the kind of probe", "livenessProbe", "readinessProbe", "web/readiness#http://:8080/healthz#1s"},
		{"written anew", ours, "tcpSocket: {port: 9}", "web/liveness#tcp://:9#1s"},
		{"taken away", "      livenessProbe:\n        " + ours + "\n        periodSeconds: 5\n", "", ""},
		{
			"a field in what generate wrote", ours, "httpGet: {path: /probes/web/liveness, port: 15021, scheme: HTTPS}",
			"f.yaml:13:18: PC1003: generate wrote this handler, and it has more fields now",
		},
		{
			"an unknown path", ours, "httpGet: {path: /probes/db/liveness, port: 15021}",
			"f.yaml:13:18: PC1003: port 15021 is the mesh proxy's, and annotation portcullis.dev/original-probes has no original",
		},
		{
			"another path of the proxy's port", ours, "httpGet: {path: /x, port: 15021}",
			`f.yaml:11:18: PC1201: probes entry 1 "web/liveness#http://:15021/x#1s": check: port 15021 is one of the proxy's own`,
		},
		{"the annotation's name", annotationProbes, "x", "f.yaml:13:18: PC1003: port 15021 is the mesh proxy's"},
		{"no JSON", `{"web/liveness":`, `{"web/liveness"`, "f.yaml:6:37: PC1003: annotation portcullis.dev/original-probes is not as"},
		{"more than a handler", `8080"}`, `8080\nimage: evil"}`, "f.yaml:6:37: PC1003: annotation portcullis.dev/original-probes: what it has for"},
		{"another document", `8080"}`, `8080\n---\nkind: Pod"}`, "f.yaml:6:37: PC1003: annotation portcullis.dev/original-probes: what it has for"},
		{"no handler", `"httpGet:`, `"image:`, "f.yaml:6:37: PC1003: annotation portcullis.dev/original-probes: what it has for"},
		{"something that runs", `"httpGet:`, `"exec:`, "f.yaml:6:37: PC1003: annotation portcullis.dev/original-probes: what it has for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			edited := strings.Replace(injected, c.old, c.new, 1)
			if edited == injected {
				t.Fatalf("no %q in\n%s", c.old, injected)
			}
			result, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(edited)}}, options())
			if err != nil {
				if !strings.HasPrefix(err.Error(), c.want) || c.want == "" {
					t.Fatalf("got %q, want %q", err, c.want)
				}
				return
			}
			if got := result.Pods[0].Config.Mesh.Probes; got != c.want {
				t.Errorf("the proxy is told of %q, want %q", got, c.want)
			}
			if has := bytes.Contains(result.Files[0].Text, []byte(annotationProbes)); has != (c.want != "") {
				t.Errorf("the annotation is there: %v, in\n%s", has, result.Files[0].Text)
			}
		})
	}
	// A file that was indented anew gets its original back at its new place.
	head, spec, _ := strings.Cut(injected, "spec:\n")
	var deeper strings.Builder
	for line := range strings.Lines(spec) {
		deeper.WriteString("    " + line)
	}
	plain := strings.NewReplacer("kata-cc", "runc", "contrast.edgeless.systems/", "").Replace(head + "spec:\n" + deeper.String())
	want := "            httpGet:\n              path: /healthz # known to few\n              port: 8080\n            periodSeconds: 5\n"
	if got := string(inject(t, []byte(plain))); !strings.Contains(got, want) {
		t.Errorf("no\n%s in\n%s", want, got)
	}
}

func TestProbesThatStay(t *testing.T) {
	for _, c := range []struct{ name, annotation, container, warning string }{
		{"exec", "ingress: ''", "livenessProbe: {exec: {command: [a]}}", ""},
		{"a plaintext port", "ingress: 'x#80#true'", "livenessProbe: {httpGet: {port: 80}}", ""},
		{"a plaintext port by name", "ingress: 'x#80#true'", "livenessProbe: {tcpSocket: {port: web}}, ports: [{name: web, containerPort: 80}]", ""},
		{"nothing is intercepted", "ingress: DISABLED", "livenessProbe: {httpGet: {port: 80}}", "DISABLED takes the guard away"},
		{"another host", "ingress: ''", "readinessProbe: {httpGet: {port: 80, host: example.org}}", "PC1202: readinessProbe of container a of Pod default/a asks the host example.org and not the pod"},
		{"no handler", "ingress: ''", "readinessProbe: {periodSeconds: 3, httpGet: }", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			result, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(podWith(c.annotation, c.container))}}, options())
			if err != nil {
				t.Fatal(err)
			}
			if text := result.Files[0].Text; bytes.Contains(text, []byte("15021")) || bytes.Contains(text, []byte("--probes")) ||
				bytes.Contains(text, []byte(annotationProbes)) {
				t.Errorf("a probe is rewritten in\n%s", text)
			}
			if got := besides(result.Warnings, "PC1314", "PC1303"); !strings.Contains(got, c.warning) || (got == "") != (c.warning == "") {
				t.Errorf("warnings %q, want %q", got, c.warning)
			}
		})
	}
}

func TestProbeWarnings(t *testing.T) {
	for _, c := range []struct{ name, container, want string }{
		{"TLS that the proxy terminates", "livenessProbe: {httpGet: {port: 443, scheme: HTTPS}}", "PC1204: livenessProbe of container a of Pod default/a asks for HTTPS on port 443"},
		{"a hook", "lifecycle: {preStop: {httpGet: {port: 80}}}", "PC1205: preStop of container a of Pod default/a is a request of kubelet's to port 80, which TLS keeps out"},
		{"no hook that needs the network", "lifecycle: {preStop: {exec: {command: [a]}}, postStart: {httpGet: {port: 7890}}}", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			result, err := generate.Inspect([]generate.File{{
				Name: "f.yaml", Text: []byte(podWith("ingress: 'a#443#false##b#7890#true'", c.container)),
			}}, options())
			if err != nil {
				t.Fatal(err)
			}
			if got := besides(result.Warnings, "PC1314", "PC1303"); !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
				t.Errorf("warnings %q, want %q", got, c.want)
			}
		})
	}
}

func podWith(annotation, container string) string {
	return "kind: Pod\nmetadata: {name: a, annotations: {contrast.edgeless.systems/servicemesh-" + annotation + "}}\n" +
		"spec:\n  runtimeClassName: kata-cc\n  containers:\n  - {name: a, " + container + "}\n"
}

func TestProbeFaults(t *testing.T) {
	for _, c := range []struct {
		name, annotation, container string
		want                        []string
	}{
		{"nothing comes in", "ingress: CLOSED", "livenessProbe: {httpGet: {port: 80}}", []string{
			"6:40: PC1203: livenessProbe of container a of Pod default/a cannot get in: ingress CLOSED lets nothing in; use exec",
		}},
		{"every fault", "ingress: ''", "livenessProbe: {httpGet: {port: 80, scheme: ftp, paht: x, path: '//u:p@h/'}}, " +
			"readinessProbe: {tcpSocket: {port: web}}, startupProbe: {grpc: {}, exec: {command: [a]}}", []string{
			`6:64: PC1201: httpGet has no field "paht"; it has path, port, host`, `6:59: PC1201: scheme "ftp", want HTTP or HTTPS`,
			`6:79: PC1201: path "//u:p@h/" is not a path`, `6:128: PC1201: port "web" is none of the ports`, "6:160: PC1201: a probe with grpc and exec",
		}},
		{"no port", "ingress: ''", "livenessProbe: {tcpSocket: {}}", []string{"6:42: PC1201: a probe without a port"}},
		{"a port that is none", "ingress: ''", "livenessProbe: {tcpSocket: {port: 65536}}", []string{`6:49: PC1201: port "65536", want a number from 1 to 65535`}},
		{"a port's name without its port", "ingress: ''", "livenessProbe: {tcpSocket: {port: web}}, ports: [{name: http, containerPort: 1}]", []string{
			`6:49: PC1201: port "web" is none of the ports of container a`,
		}},
		{"the proxy's port", "ingress: ''", "livenessProbe: {tcpSocket: {port: 15006}}", []string{
			`6:42: PC1201: probes entry 1 "a/liveness#tcp://:15006#1s": check: port 15006 is one of the proxy's own: want a port outside 15000-15099`,
		}},
		{"too patient", "ingress: ''", "livenessProbe: {tcpSocket: {port: 1}, timeoutSeconds: 3601}", []string{
			`6:42: PC1201: probes entry 1 "a/liveness#tcp://:1#3601s": timeout: "3601s" is none: want whole seconds from 1s to 3600s`,
		}},
		{"no number of seconds", "ingress: ''", "livenessProbe: {tcpSocket: {port: 1}, timeoutSeconds: soon}", []string{
			`6:69: PC1201: timeoutSeconds "soon", want a number of seconds`,
		}},
		{"a header that cannot be", "ingress: ''", "livenessProbe: {httpGet: {port: 1, httpHeaders: [{name: 'a b', value: x}, {name: b, value: \"x\\ny\"}]}}", []string{
			`6:40: PC1201: probes entry 1 "a/liveness#http://:1/#1s#a b:x#b:x%0Ay": header: "a b:x" has no header's name: want name:value`,
			`6:40: PC1201: probes entry 1 "a/liveness#http://:1/#1s#a b:x#b:x%0Ay": header: no header can carry the value of b: want a value`,
		}},
		{"a query with a blank", "ingress: ''", "livenessProbe: {httpGet: {port: 1, path: '/x?a b'}}", []string{
			`6:40: PC1201: probes entry 1 "a/liveness#http://:1/x?a b#1s": check: "/x?a b" is not what a request line can say: want a path`,
		}},
		{"credentials in the path", "ingress: ''", "livenessProbe: {httpGet: {port: 1, path: '//u:p@h/'}}", []string{
			`6:56: PC1201: path "//u:p@h/" is not a path with perhaps a query`,
		}},
		{"two handlers", "ingress: ''", "livenessProbe: {httpGet: {port: 1}, exec: {command: [a]}}", []string{
			"6:51: PC1201: a probe with httpGet and exec; Kubernetes allows one",
		}},
		{"an unknown field", "ingress: ''", "livenessProbe: {httpGet: {port: 1, paht: /x}}", []string{`6:50: PC1201: httpGet has no field "paht"; it has path, port`}},
		{"a scheme", "ingress: ''", "livenessProbe: {httpGet: {port: 1, scheme: https}}", []string{`6:58: PC1201: scheme "https", want HTTP or HTTPS`}},
		{"one probe twice", "ingress: ''", "livenessProbe: &p {tcpSocket: {port: 1}}, readinessProbe: *p", []string{
			"6:5: PC1002: readinessProbe of container a of Pod default/a comes from an alias or a merge key (line 6), and generate must change it",
		}},
		{"one handler twice", "ingress: ''", "livenessProbe: {tcpSocket: &p {port: 1}}, readinessProbe: {tcpSocket: *p}", []string{
			"6:42: PC1002: tcpSocket of livenessProbe of container a of Pod default/a has an anchor or an alias",
			"6:73: PC1002: tcpSocket of readinessProbe of container a of Pod default/a comes from an alias or a merge key (line 6)",
		}},
		{"a port twice", "ingress: ''", "livenessProbe: {tcpSocket: {port: &p 1}}, command: [*p]", []string{
			"6:42: PC1002: tcpSocket of livenessProbe of container a of Pod default/a has an anchor or an alias",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			faults := faultsOf(t, podWith(c.annotation, c.container))
			if len(faults) != len(c.want) {
				t.Fatalf("%d faults, want %d:\n%v", len(faults), len(c.want), faults)
			}
			for i, want := range c.want {
				if got := faults[i].Error(); !strings.HasPrefix(got, "f.yaml:"+want) {
					t.Errorf("got %q, want %q...", got, "f.yaml:"+want)
				}
			}
		})
	}
}

func faultsOf(t *testing.T, text string) []error {
	t.Helper()
	_, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(text)}}, options())
	faults, ok := errors.AsType[generate.Faults](err)
	if !ok {
		t.Fatalf("%T: %v", err, err)
	}
	return faults
}
