package generate_test

import (
	"strings"
	"testing"

	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/guest/initdata"
)

// What a file says around the initdata does not change what was measured, nor does it hide that there is none.
func TestReadMeasuredBelievesTheInitdata(t *testing.T) {
	const pod = `apiVersion: v1
kind: Pod
metadata:
  name: web
  annotations:
    contrast.edgeless.systems/servicemesh-ingress: web#8080#false
spec:
  runtimeClassName: kata-qemu-snp
  containers:
    - name: web
`
	result, err := generate.Inject(t.Context(), []generate.File{{Name: "a.yaml", Text: []byte(pod)}}, generate.Options{
		RuntimeClasses: generate.RuntimeClasses, Namespace: "shop", CoordinatorHost: "coordinator",
		Images: generate.Images{Initializer: "i", Meshproxy: "m"}, Policy: generate.FixedPolicy("package agent_policy"),
	})
	if err != nil {
		t.Fatal(err)
	}
	injected := string(result.Files[0].Text)
	lying := strings.ReplaceAll(strings.ReplaceAll(injected, "name: web\n", "name: bank\n"), "web#8080#false", "web#8080#true")
	if lying == injected {
		t.Fatal("the lie is none")
	}
	read := func(yaml string) generate.Measured {
		t.Helper()
		all, err := generate.ReadMeasured([]generate.File{{Name: "a.yaml", Text: []byte(yaml)}}, "other")
		if err != nil || len(all) != 1 {
			t.Fatalf("got %v, %v", all, err)
		}
		return all[0]
	}
	for name, yaml := range map[string]string{"as it was injected": injected, "with a lie around it": lying} {
		m := read(yaml)
		if m.Err != nil || m.Hash != result.Pods[0].Hash || m.Config.Name != "web" || m.Config.Namespace != "shop" ||
			m.Mesh.IngressString() != "web#8080#false" {
			t.Errorf("%s: got %+v", name, m)
		}
	}
	if m := read(lying); m.Name != "bank" {
		t.Errorf("the file's own word is %q, want bank", m.Name)
	}

	bare, err := initdata.Build(map[string]string{initdata.KeyPolicy: "package agent_policy"})
	if err != nil {
		t.Fatal(err)
	}
	annotation, err := initdata.Encode(bare)
	if err != nil {
		t.Fatal(err)
	}
	with := func(value string) string {
		return strings.Replace(pod, "  annotations:\n", "  annotations:\n    "+initdata.Annotation+": \""+value+"\"\n", 1)
	}
	if m := read(pod); m.Err == nil || m.Hash.Valid() || m.Config != nil {
		t.Errorf("without initdata: got %+v", m)
	}
	if m := read(with("AAAA")); m.Err == nil || m.Hash.Valid() || m.Config != nil {
		t.Errorf("with broken initdata: got %+v", m)
	}
	if m := read(with(annotation)); m.Err == nil || m.Hash != initdata.Digest(bare) || m.Config != nil {
		t.Errorf("with initdata of another maker: got %+v", m)
	}
}

func TestReadMeasuredRefusesWhatIsNoYAML(t *testing.T) {
	if _, err := generate.ReadMeasured([]generate.File{{Name: "a.yaml", Text: []byte("a: [")}}, "n"); err == nil ||
		!strings.Contains(err.Error(), "a.yaml:1") {
		t.Errorf("got %v", err)
	}
}
