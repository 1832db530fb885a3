package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis.dev/portcullis/guest/initdata"
)

// podFolder is what podvm-initdata delivers for a pod.
func podFolder(t *testing.T, change func(*initdata.PodConfig)) string {
	t.Helper()
	c := initdata.PodConfig{
		Namespace: "shop", Kind: "Pod", Name: "web", Placement: initdata.Guest, Role: initdata.Workload, Guard: initdata.GuardMesh,
		CoordinatorHost: "coordinator:1313", Mesh: &initdata.MeshConfig{EgressPolicy: "closed"},
	}
	change(&c)
	text, err := c.Text()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "podvm")
	if err := initdata.Deliver(map[string]string{initdata.KeyPolicy: "p", initdata.KeyConfig: text}, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// hostile is an environment in which everything is set.
func hostile(string) string { return "evil:1" }

func TestAPodsInitdataSaysWhatTheInitializerDoes(t *testing.T) {
	for _, c := range []struct {
		name      string
		change    func(*initdata.PodConfig)
		want      options
		elsewhere string
	}{
		{"in the mesh", func(*initdata.PodConfig) {}, options{coordinator: "coordinator:1313", locked: true}, ""},
		{"without the lock", func(c *initdata.PodConfig) { c.Mesh.EgressPolicy = "" }, options{coordinator: "coordinator:1313"}, ""},
		{"open", func(c *initdata.PodConfig) { c.Guard, c.Mesh = initdata.GuardOpen, nil }, options{coordinator: "coordinator:1313", noMesh: true}, ""},
		{"open, and calling out", func(c *initdata.PodConfig) {
			c.Guard, c.Mesh = initdata.GuardOpen, &initdata.MeshConfig{Ingress: "DISABLED"}
		}, options{coordinator: "coordinator:1313"}, ""},
		{"closed", func(c *initdata.PodConfig) { c.Guard, c.Mesh = initdata.GuardClosed, nil }, options{}, "the gate stays closed"},
		{"in its containers", func(c *initdata.PodConfig) { c.Placement = initdata.Sidecar }, options{}, "placement is sidecar"},
		{"the Coordinator", func(c *initdata.PodConfig) {
			c.Role, c.CoordinatorHost, c.Mesh = initdata.Coordinator, "", nil
		}, options{}, "the mesh's coordinator"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := parse("initializer", []string{"--pod", podFolder(t, c.change)}, hostile)
			if err != nil {
				t.Fatal(err)
			}
			if c.elsewhere != "" {
				if !strings.Contains(o.elsewhere, c.elsewhere) || o.noMesh {
					t.Errorf("%+v", o)
				}
				return
			}
			if o.elsewhere != "" || o.coordinator != c.want.coordinator || o.noMesh != c.want.noMesh || o.locked != c.want.locked {
				t.Errorf("%+v, want %+v", o, c.want)
			}
		})
	}
}

func TestAPodWithoutInitdataOfOurs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "podvm")
	if _, err := parse("initializer", []string{"--pod", dir}, hostile); err == nil {
		t.Error("no folder at all: accepted")
	}
	if err := initdata.Deliver(map[string]string{initdata.KeyPolicy: "p"}, dir); err != nil {
		t.Fatal(err)
	}
	if o, err := parse("initializer", []string{"--pod", dir}, hostile); err != nil || !strings.Contains(o.elsewhere, "no portcullis.toml") {
		t.Errorf("%+v, %v", o, err)
	}
	for name, text := range map[string]string{"half": "guard = \"open\"\n", "broken": "x"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, initdata.KeyConfig), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if o, err := parse("initializer", []string{"--pod", dir}, hostile); err == nil {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

func TestNobodyElseSaysTheSame(t *testing.T) {
	for _, argument := range []string{"--coordinator=evil", "--no-mesh", "--egress-policy=open", "--coordinator-pin={}"} {
		_, err := parse("initializer", []string{argument, "--pod", podFolder(t, func(*initdata.PodConfig) {})}, hostile)
		if err == nil || !strings.Contains(err.Error(), "with --pod the pod's initdata says it") {
			t.Errorf("%s: error %v", argument, err)
		}
	}
}

func TestABrokenPinIsRefused(t *testing.T) {
	dir := podFolder(t, func(*initdata.PodConfig) {})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, initdata.KeyPin), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o, err := parse("initializer", []string{"--pod", dir}, hostile); err == nil {
		t.Errorf("%+v", o)
	}
}
