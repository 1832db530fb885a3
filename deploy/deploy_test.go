package deploy_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis.dev/portcullis/deploy"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const image = "registry.example.com/coordinator@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func replicated() deploy.Coordinator {
	return deploy.Coordinator{Image: image, RuntimeClass: "kata-qemu-snp", Replicas: 3, Store: deploy.StoreKubernetes}
}

func alone() deploy.Coordinator {
	return deploy.Coordinator{
		Namespace: "mesh", Image: image, RuntimeClass: "kata-qemu-tdx", Replicas: 1, Store: deploy.StoreBolt,
	}
}

func text(t *testing.T, c deploy.Coordinator) string {
	t.Helper()
	var b bytes.Buffer
	if err := c.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestGoldenFiles(t *testing.T) {
	for name, c := range map[string]deploy.Coordinator{"replicated": replicated(), "alone": alone()} {
		golden := filepath.Join("testdata", name+".yaml")
		got := text(t, c)
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs from what is written; see with -update and git diff", golden)
		}
	}
}

func TestEveryFaultIsSaidAtOnce(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*deploy.Coordinator)
		want   []string
	}{
		"nothing":                   {func(c *deploy.Coordinator) { *c = deploy.Coordinator{} }, []string{`image ""`, `runtime class ""`, "0 replicas", `store ""`}},
		"namespace":                 {func(c *deploy.Coordinator) { c.Namespace = "a b" }, []string{`namespace "a b"`}},
		"yaml in the image":         {func(c *deploy.Coordinator) { c.Image = "a\n  hostNetwork: true" }, []string{"image"}},
		"a comment in the image":    {func(c *deploy.Coordinator) { c.Image = "a #" }, []string{"image"}},
		"a mapping for an image":    {func(c *deploy.Coordinator) { c.Image = "a:" }, []string{"image"}},
		"short digest":              {func(c *deploy.Coordinator) { c.Image = "a@sha256:00" }, []string{"image"}},
		"yaml in the runtime class": {func(c *deploy.Coordinator) { c.RuntimeClass = "a: b" }, []string{"runtime class"}},
		"a file for three":          {func(c *deploy.Coordinator) { c.Store = deploy.StoreBolt }, []string{"3 replicas with the store bbolt"}},
		"another store":             {func(c *deploy.Coordinator) { c.Store = "etcd" }, []string{`store "etcd"`}},
		"a thousand":                {func(c *deploy.Coordinator) { c.Replicas = 1000 }, []string{"1000 replicas"}},
	} {
		c := replicated()
		test.change(&c)
		var b bytes.Buffer
		err := c.Write(&b)
		if err == nil || b.Len() > 0 {
			t.Errorf("%s: %v and %d bytes, want an error and nothing", name, err, b.Len())
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
	}
}

// A budget over one replica would either say nothing or never let its node go.
func TestOneReplicaHasNoBudget(t *testing.T) {
	for replicas, want := range map[int]bool{1: false, 2: true, 15: true} {
		c := replicated()
		c.Replicas = replicas
		if got := strings.Contains(text(t, c), "PodDisruptionBudget"); got != want {
			t.Errorf("%d replicas: a budget is printed: %v", replicas, got)
		}
	}
}

func TestPinnedMeansByDigest(t *testing.T) {
	for image, want := range map[string]bool{image: true, "a": false, "a:v1": false, "a@sha256:0": false, "": false} {
		if got := (deploy.Coordinator{Image: image}).Pinned(); got != want {
			t.Errorf("Pinned(%q) = %v", image, got)
		}
	}
}
