package generate_test

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"portcullis.dev/portcullis/generate"
)

// hazardousPod is a pod of the mesh with no hazard; the placeholders are lines of its annotations, spec and container.
const hazardousPod = `apiVersion: v1
kind: Pod
metadata:
  name: a
  labels: {app: a}
  annotations:
    contrast.edgeless.systems/servicemesh-ingress: web#8080#false
    %ANNOTATIONS
spec:
  runtimeClassName: kata-qemu-snp
  %SPEC
  containers:
  - name: web
    resources: {limits: {memory: 64Mi}}
    %CONTAINER
`

const dropped = "securityContext: {capabilities: {drop: [ALL]}}"

func hazard(annotations, spec, container string) string {
	return strings.NewReplacer("%ANNOTATIONS", annotations, "%SPEC", spec, "%CONTAINER", container).Replace(hazardousPod)
}

// reports are the errors of files, or the warnings where there is none.
func reports(files []generate.File, o generate.Options) string {
	result, err := generate.Inspect(files, o)
	if err != nil {
		return err.Error()
	}
	return strings.Join(result.Warnings, "\n")
}

func TestHazards(t *testing.T) {
	for _, c := range []struct{ name, spec, container, want string }{
		{"none", "", dropped, ""},
		{"the host's network", "hostNetwork: true", dropped, "f.yaml:11:16: PC1301: hostNetwork of Pod default/a"},
		{"the host's network, in another word", "hostNetwork: yes", dropped, "PC1301: hostNetwork of Pod default/a"},
		{"not the host's network", "hostNetwork: no", dropped, ""},
		{"privileged, in another word", "", "securityContext: {privileged: On, capabilities: {drop: [ALL]}}", "PC1302: privileged of container web"},
		{"NET_ADMIN", "", "securityContext: {capabilities: {drop: [ALL], add: [NET_ADMIN]}}", "f.yaml:15:57: PC1302: capability NET_ADMIN of container web of Pod default/a could open the gate"},
		{"another spelling", "", "securityContext: {capabilities: {drop: [ALL], add: [cap_sys_admin]}}", "f.yaml:15:57: PC1302: capability SYS_ADMIN"},
		{"all of them", "", "securityContext: {capabilities: {drop: [NET_RAW], add: [ALL]}}", "PC1302: capability ALL"},
		{"privileged", "", "securityContext: {privileged: true, capabilities: {drop: [ALL]}}", "f.yaml:15:35: PC1302: privileged of container web"},
		{"an init container's", "initContainers: [{name: i, resources: {limits: {memory: 1Mi}}, securityContext: {privileged: true, capabilities: {drop: [ALL]}}}]", dropped, "PC1302: privileged of container i"},
		{"NET_RAW as it comes", "", "", "f.yaml:13:5: PC1303: container web of Pod default/a keeps NET_RAW"},
		{"NET_RAW given back", "", "securityContext: {capabilities: {drop: [ALL], add: [NET_RAW]}}", "PC1303: container web"},
		{"no other capability", "", "securityContext: {capabilities: {drop: [NET_RAW], add: [CHOWN]}}", ""},
		{"a mount over the credentials", "", dropped + "\n    volumeMounts: [{name: x, mountPath: /srv/../contrast}]", "f.yaml:16:41: PC1305: mountPath /srv/../contrast is where the mesh credentials"},
		{"a folder of the host's", "volumes: [{name: data, hostPath: {path: /srv}}]", dropped, "f.yaml:11:36: PC1306: volume data of Pod default/a"},
		{"one process namespace", "shareProcessNamespace: true", dropped, "f.yaml:11:26: PC1307: shareProcessNamespace"},
		{"the host's processes", "hostPID: true", dropped, "f.yaml:11:12: PC1308: hostPID"},
		{"the host's memory", "hostIPC: true", dropped, "f.yaml:11:12: PC1308: hostIPC"},
		{"escalation", "", "securityContext: {allowPrivilegeEscalation: true, capabilities: {drop: [ALL]}}", "f.yaml:13:5: PC1309: container web"},
		{"no escalation", "", "securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}", ""},
		{"a node's port", "", dropped + "\n    ports: [{containerPort: 8080, hostPort: 80}]", "f.yaml:16:45: PC1310: port 8080 of container web"},
		{"the proxy's port", "", dropped + "\n    ports: [{containerPort: 15006}]", "f.yaml:16:29: PC1311: port 15006 of container web"},
		{"beside the proxy's ports", "", dropped + "\n    ports: [{containerPort: 14999}, {containerPort: 15100}]", ""},
		{"datagrams", "", dropped + "\n    ports: [{containerPort: 53, protocol: UDP}]", "f.yaml:16:43: PC1312: port 53 of container web"},
		{"SCTP", "", dropped + "\n    ports: [{containerPort: 53, protocol: SCTP}]", "PC1312: port 53"},
		{"a variable of ours", "", dropped + "\n    env: [{name: COORDINATOR_HOST, value: x}]", "f.yaml:16:18: PC1313: variable COORDINATOR_HOST of container web"},
		{"no memory limit", "initContainers: [{name: i, securityContext: {capabilities: {drop: [ALL]}}}]", dropped, "f.yaml:11:20: PC1314: container i of Pod default/a has no memory limit"},
		{"a container for debugging", "ephemeralContainers: [{name: d}]", dropped, "f.yaml:11:24: PC1315: ephemeralContainers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := reports([]generate.File{{Name: "f.yaml", Text: []byte(hazard("", c.spec, c.container))}}, options())
			if !strings.Contains(got, c.want) || (got == "") != (c.want == "") || strings.Contains(got, "\n") {
				t.Fatalf("got %q, want %q", got, c.want)
			}
			if c.want == "" {
				return
			}
			code := regexp.MustCompile(`PC\d{4}`).FindString(got)
			e, _ := generate.Explain(code)
			accepted := reports([]generate.File{{
				Name: "f.yaml", Text: []byte(hazard("portcullis.dev/accept: "+code, c.spec, c.container)),
			}}, options())
			if e.Acceptable && accepted != "" {
				t.Errorf("accepted, and yet %q", accepted)
			}
			if !e.Acceptable && !strings.Contains(accepted, c.want[strings.Index(c.want, "PC"):]) {
				t.Errorf("%s cannot be accepted, and yet is gone: %q", code, accepted)
			}
		})
	}
}

// A pod outside of the mesh has no gate to open, and one that is not confidential no hazard.
func TestHazardsOfOtherPods(t *testing.T) {
	privileged := hazard("", "", "securityContext: {privileged: true}")
	open := strings.Replace(privileged, "contrast.edgeless.systems/servicemesh-ingress: web#8080#false", "a: b", 1)
	if got := reports([]generate.File{{Name: "f.yaml", Text: []byte(open)}}, options()); got != "" {
		t.Errorf("outside of the mesh: %q", got)
	}
	plain := strings.Replace(open, "kata-qemu-snp", "runc", 1)
	if got := reports([]generate.File{{Name: "f.yaml", Text: []byte(plain)}}, options()); got != "" {
		t.Errorf("not confidential: %q", got)
	}
	closed := strings.Replace(privileged, "servicemesh-ingress: web#8080#false", `skip-initializer: "true"`, 1)
	if got := reports([]generate.File{{Name: "f.yaml", Text: []byte(closed)}}, options()); !strings.Contains(got, "PC1302") {
		t.Errorf("with a gate that is down: %q", got)
	}
	for class, want := range map[string]bool{"kata": true, "kata-qemu-coco-dev": true, "my-SNP": true, "gvisor": false} {
		other := strings.Replace(open, "kata-qemu-snp", class, 1)
		got := reports([]generate.File{{Name: "f.yaml", Text: []byte(other)}}, options())
		if strings.Contains(got, "f.yaml:10:21: PC1316: runtimeClassName "+class) != want {
			t.Errorf("class %s: %q", class, got)
		}
	}
}

func TestAcceptances(t *testing.T) {
	for _, c := range []struct{ name, annotation, want string }{
		{"without use", "portcullis.dev/accept: PC1303,PC1308", "f.yaml:8:28: PC1111: annotation portcullis.dev/accept: nothing in Pod default/a is reported as PC1308; take it out"},
		{"unknown", "portcullis.dev/accept: PC1303, PC9999", `f.yaml:8:28: PC1110: annotation portcullis.dev/accept: there is no code "PC9999"`},
		{"never acceptable", "portcullis.dev/accept: PC1303, pc1301", "f.yaml:8:28: PC1110: annotation portcullis.dev/accept: PC1301 cannot be accepted"},
		{"no string", "portcullis.dev/accept: [PC1303]", "f.yaml:8:28: PC1102: annotation portcullis.dev/accept must be a string"},
		{"in small letters, twice", "portcullis.dev/accept: pc1303 ,PC1303,", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := reports([]generate.File{{Name: "f.yaml", Text: []byte(hazard(c.annotation, "", ""))}}, options())
			if !strings.Contains(got, c.want) || (got == "") != (c.want == "") || strings.Contains(got, "\n") {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}

	// On the object or on its pod template, and for this object alone.
	const deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: %s, annotations: {%s}}\nspec: {template: {metadata: {annotations: {%s}}, " +
		"spec: {runtimeClassName: kata-cc, shareProcessNamespace: true, hostPID: true, containers: []}}}\n---\n"
	got := reports([]generate.File{{Name: "f.yaml", Text: fmt.Appendf(nil, deployment+deployment,
		"both", "portcullis.dev/accept: PC1308", "contrast.edgeless.systems/servicemesh-ingress: CLOSED, portcullis.dev/accept: PC1307",
		"neither", "a: b", "contrast.edgeless.systems/servicemesh-ingress: CLOSED")}}, options())
	if lines := strings.Split(got, "\n"); len(lines) != 2 || !strings.Contains(lines[0], "PC1307: shareProcessNamespace of Deployment default/neither") ||
		!strings.Contains(lines[1], "PC1308: hostPID of Deployment default/neither") {
		t.Errorf("got %q", got)
	}
}

func TestServicesForOutside(t *testing.T) {
	const service = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s, annotations: {%s}}\nspec:\n  selector: {app: a}\n  %s\n  ports:\n  - {port: 80, targetPort: %s}\n"
	pod := hazard("", "", dropped+"\n    ports: [{name: api, containerPort: 9000}, {name: web, containerPort: 8080}]")
	for _, c := range []struct{ name, annotation, spec, port, want string }{
		{"LoadBalancer", "", "type: LoadBalancer", "9000", "PC1317: Service default/s (LoadBalancer) leads clients from outside to port 9000 of Pod default/a"},
		{"NodePort to a name", "", "type: NodePort", "api", "PC1317: Service default/s (NodePort) leads clients from outside to port 9000"},
		{"addresses", "", "externalIPs: [192.0.2.1]", "9000", "PC1317: Service default/s (externalIPs)"},
		{"to a port without client certificates", "", "type: LoadBalancer", "web", ""},
		{"from inside", "", "type: ClusterIP", "9000", ""},
		{"accepted on the Service", "portcullis.dev/accept: PC1317", "type: NodePort", "9000", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := reports([]generate.File{{Name: "f.yaml", Text: []byte(pod + fmt.Sprintf(service, c.annotation, c.spec, c.port))}}, options())
			if !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// What somebody relies on and does not get is an error, on every object.
func TestAnnotationsThatDoNothing(t *testing.T) {
	for _, c := range []struct{ name, class, annotation, want string }{
		{"encrypted storage", "kata-cc", "secure-pv: 'state:share'", "f.yaml:6:5: PC1105: annotation contrast.edgeless.systems/secure-pv: encrypted volumes are not offered"},
		{"the store of images", "kata-cc", "image-store-size: 10Gi", "PC1105: annotation contrast.edgeless.systems/image-store-size: there is no store of images"},
		{"a misspelt name", "kata-cc", "workload-secret: a", "f.yaml:6:5: PC1104: unknown annotation contrast.edgeless.systems/workload-secret; known are"},
		{"on an ordinary pod", "runc", "secure-pv: 'state:share'", "PC1105: annotation"},
		{"misspelt on an ordinary pod", "runc", "nonsense: a", "PC1104: unknown annotation"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := "kind: Pod\nmetadata:\n  name: a\n  annotations:\n    b: c\n    contrast.edgeless.systems/" + c.annotation + "\nspec: {runtimeClassName: " + c.class + ", containers: []}\n"
			if got := reports([]generate.File{{Name: "f.yaml", Text: []byte(text)}}, options()); !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	other := "kind: Rollout\napiVersion: argoproj.io/v1\nmetadata: {name: a}\nspec: {template: {metadata: {annotations: {contrast.edgeless.systems/secure-pv: 'a:b'}}}}\n"
	if got := reports([]generate.File{{Name: "f.yaml", Text: []byte(other)}}, options()); !strings.Contains(got, "PC1105") {
		t.Errorf("of another kind: %q", got)
	}
}

func TestCodesPage(t *testing.T) {
	var b bytes.Buffer
	if err := generate.WriteCodes(&b); err != nil {
		t.Fatal(err)
	}
	const path = "../docs/codes.md"
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(b.Bytes(), read(t, path)) {
		t.Errorf("%s is not what generate/explanations.go says; go test ./generate -run TestCodesPage -update writes it", path)
	}
}

// Each code is explained once, in order; each that the source names is explained, and each that is explained is used.
func TestCodesAreWhole(t *testing.T) {
	all := generate.Explanations()
	constants := regexp.MustCompile(`(?m)^\tcode\w+\s+Code = "(PC\d{4})"$`).FindAllStringSubmatch(string(read(t, "codes.go")), -1)
	if len(constants) != len(all) {
		t.Errorf("%d codes, %d explanations", len(constants), len(all))
	}
	for i, e := range all {
		if i < len(constants) && constants[i][1] != string(e.Code) {
			t.Errorf("explanation %d is %s, want %s", i, e.Code, constants[i][1])
		}
		if i > 0 && e.Code <= all[i-1].Code {
			t.Errorf("%s is not in its order", e.Code)
		}
		if e.Title == "" || e.Why == "" || e.Do == "" || strings.HasSuffix(e.Title, ".") || !strings.HasSuffix(e.Why, ".") || !strings.HasSuffix(e.Do, ".") {
			t.Errorf("%s is not explained, in sentences: %+v", e.Code, e)
		}
	}
	// Every code is brought about by some test, or by a script of the command.
	tested := ""
	for _, pattern := range []string{".", "../cmd/portcullis/testdata/script"} {
		entries, err := os.ReadDir(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if name := entry.Name(); strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, ".txtar") {
				tested += string(read(t, pattern+"/"+name))
			}
		}
	}
	untested := slices.DeleteFunc(all, func(e generate.Explanation) bool { return strings.Contains(tested, string(e.Code)+": ") })
	for _, e := range untested {
		t.Errorf("no test wants %s", e.Code)
	}
}
