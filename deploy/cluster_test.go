package deploy_test

import (
	"encoding/json"
	"strings"
	"testing"

	"portcullis.dev/portcullis/deploy"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/tests/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }

const runtimeClasses = `apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: kata-qemu-snp}
handler: kata-qemu-snp
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: kata-qemu-tdx}
handler: kata-qemu-tdx
`

// The API server takes what is printed, and what generate makes of it, without one warning; and a pod of the template, which the
// StatefulSet's controller would ask for.
func TestAPIServerAcceptsTheYAML(t *testing.T) {
	c := cluster.Shared(t)
	c.MustKubectl(t, runtimeClasses, "apply", "-f", "-")
	for name, d := range map[string]deploy.Coordinator{"replicated": replicated(), "alone": alone()} {
		t.Run(name, func(t *testing.T) {
			namespace := c.Namespace(t)
			if d.Namespace != "" {
				d.Namespace = namespace
			}
			printed := text(t, d)
			injected, err := generate.Inject(t.Context(), []generate.File{{Name: "coordinator.yaml", Text: []byte(printed)}}, generate.Options{
				RuntimeClasses: generate.RuntimeClasses, Namespace: "default", Policy: generate.FixedPolicy("package agent_policy\n"),
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(injected.Pods) != 1 || len(injected.Warnings) > 0 {
				t.Fatalf("generate: %d pods, warnings %q", len(injected.Pods), injected.Warnings)
			}
			for what, yaml := range map[string]string{"printed": printed, "after generate": string(injected.Files[0].Text)} {
				objects := strings.Count(yaml, "\nkind: ")
				for _, args := range [][]string{
					{"-n", namespace, "apply", "--dry-run=server", "-f", "-"},
					{"-n", namespace, "apply", "-f", "-"},
				} {
					if got := strings.Count(c.MustKubectl(t, yaml, args...), "\n"); got != objects {
						t.Errorf("%s: %q took %d objects, want %d", what, args, got, objects)
					}
				}
			}
			c.MustKubectl(t, podOf(t, c, namespace), "create", "-f", "-")
		})
	}
}

// The checks above see what they are to see: a field that does not exist, a rule that is broken, a warning.
func TestAPIServerRefusesWhatIsWrong(t *testing.T) {
	c := cluster.Shared(t)
	d := replicated()
	d.Namespace = c.Namespace(t)
	good := text(t, d)
	for what, test := range map[string]struct{ from, to, want string }{
		"a misspelt field":   {"serviceName:", "servicesName:", "unknown field"},
		"a selector amiss":   {"matchLabels: {app.kubernetes.io/name: coordinator}\n  template:", "matchLabels: {app.kubernetes.io/name: other}\n  template:", "selector"},
		"a probe of no port": {"{path: /readyz, port: api}", "{path: /readyz, port: 0}", "port"},
		"a warning":          {"      enableServiceLinks: false", "      enableServiceLinks: false\n      nodeSelector: {beta.kubernetes.io/os: linux}", "Warning: "},
	} {
		bad := strings.Replace(good, test.from, test.to, 1)
		if bad == good {
			t.Fatalf("%s: nothing to replace", what)
		}
		_, stderr, err := c.Kubectl(t.Context(), bad, "apply", "--dry-run=server", "-f", "-")
		if (err == nil) != (what == "a warning") || !strings.Contains(stderr, test.want) {
			t.Errorf("%s: %v, %s, want %q", what, err, stderr, test.want)
		}
	}
}

// podOf is a pod of the StatefulSet's template.
func podOf(t *testing.T, c *cluster.Cluster, namespace string) string {
	t.Helper()
	var set struct {
		Spec struct {
			Template struct {
				Metadata map[string]any
				Spec     map[string]any
			}
			VolumeClaimTemplates []struct{ Metadata struct{ Name string } }
		}
	}
	if err := json.Unmarshal([]byte(c.MustKubectl(t, "", "-n", namespace, "get", "statefulset", "coordinator", "-o", "json")), &set); err != nil {
		t.Fatal(err)
	}
	pod := set.Spec.Template
	delete(pod.Metadata, "creationTimestamp")
	pod.Metadata["name"], pod.Metadata["namespace"] = "coordinator-0", namespace
	for _, claim := range set.Spec.VolumeClaimTemplates {
		pod.Spec["volumes"] = []any{map[string]any{
			"name": claim.Metadata.Name, "persistentVolumeClaim": map[string]any{"claimName": claim.Metadata.Name + "-coordinator-0"},
		}}
	}
	text, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": pod.Metadata, "spec": pod.Spec})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
