package initdata_test

import (
	"reflect"
	"strings"
	"testing"

	"portcullis.dev/portcullis/guest/initdata"
)

func TestPodConfigRoundTrip(t *testing.T) {
	for _, c := range []struct {
		name   string
		config initdata.PodConfig
	}{
		{"in the mesh", inMesh()},
		{"not in the mesh", initdata.PodConfig{
			Namespace: "shop", Kind: "Pod", Name: "catalog", Placement: initdata.Guest,
			Role: initdata.Workload, Guard: initdata.GuardOpen, CoordinatorHost: "coordinator",
		}},
		{"nothing injected", initdata.PodConfig{
			Namespace: "shop", Kind: "Pod", Name: "own", Placement: initdata.Sidecar,
			Role: initdata.Workload, Guard: initdata.GuardClosed, CoordinatorHost: "coordinator",
		}},
		{"Coordinator", initdata.PodConfig{
			Namespace: "shop", Kind: "Pod", Name: "coordinator", Placement: initdata.Sidecar,
			Role: initdata.Coordinator, Guard: initdata.GuardMesh,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, err := c.config.Text()
			if err != nil {
				t.Fatal(err)
			}
			got, err := initdata.ParsePodConfig(text)
			if err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			if !reflect.DeepEqual(got, c.config) {
				t.Errorf("got %+v, want %+v from\n%s", got, c.config, text)
			}
		})
	}
}

func TestPodConfigZeroValueIsRefused(t *testing.T) {
	if text, err := (initdata.PodConfig{}).Text(); err == nil {
		t.Errorf("written as\n%s", text)
	}
}

func TestParsePodConfigRefuses(t *testing.T) {
	text, err := inMesh().Text()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"missing field", `placement = "sidecar"` + "\n", "", "placement is missing"},
		{"missing guard", `guard = "mesh"` + "\n", "", "guard is missing"},
		{"unknown guard", `guard = "mesh"`, `guard = "ajar"`, `guard is "ajar"`},
		{"open by another word", `guard = "mesh"`, `guard = "OPEN"`, `guard is "OPEN"`},
		{"mesh without its table", text[strings.Index(text, "\n[mesh]"):], "", "no table [mesh]"},
		{"closed, with a mesh", `guard = "mesh"`, `guard = "closed"`, "there is a table [mesh]"},
		{"unknown role", `role = "workload"`, `role = "root"`, `role is "root"`},
		{"coordinator with a mesh", `role = "workload"`, `role = "coordinator"`, "there is a table [mesh]"},
		{"unknown placement", `"sidecar"`, `"host"`, `placement is "host"`},
		{"no Coordinator", `coordinator = "coordinator:1313"`, `coordinator = ""`, "coordinator is empty"},
		{"unknown name", "[mesh]", "x = 1\n[mesh]", "unknown name x"},
		{"unknown name in the mesh", "[mesh]", "[mesh]\nx = 1", "unknown name mesh.x"},
		{"missing in the mesh", `admin-port = "9901"` + "\n", "", "mesh.admin-port is missing"},
		{"not a string", `name = "web"`, `name = 1`, "name is not a string"},
		{"name in another case", `name = "web"`, `Name = "web"`, "unknown name Name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed := strings.Replace(text, c.old, c.new, 1)
			if changed == text {
				t.Fatalf("%q is not in\n%s", c.old, text)
			}
			if got, err := initdata.ParsePodConfig(changed); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %+v, %v, want an error with %q", got, err, c.want)
			}
		})
	}
}

func inMesh() initdata.PodConfig {
	return initdata.PodConfig{
		Namespace: "shop", Kind: "Deployment", Name: "web", Placement: initdata.Sidecar,
		Role: initdata.Workload, Guard: initdata.GuardMesh, CoordinatorHost: "coordinator:1313",
		Mesh: &initdata.MeshConfig{Ingress: "web#8080#false", Egress: "a\"\\\n", AdminPort: "9901", EgressPolicy: "closed", Probes: "web/liveness#tcp://:8080#1s", AccessLog: "true"},
	}
}
