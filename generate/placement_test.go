package generate_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// mixed are a pod of the mesh with a probe, one that wants its secret, one outside of the mesh, and one that gets nothing.
const mixed = `apiVersion: v1
kind: Pod
metadata:
  name: inside
  annotations:
    contrast.edgeless.systems/servicemesh-ingress: ""
spec:
  runtimeClassName: kata-qemu-snp
  containers:
    - name: web # whose probe goes to the proxy
      livenessProbe:
        httpGet: {path: /healthz, port: 8080}
---
apiVersion: v1
kind: Pod
metadata:
  name: secret
  annotations:
    contrast.edgeless.systems/servicemesh-ingress: CLOSED
    contrast.edgeless.systems/workload-secret-id: a
spec:
  runtimeClassName: kata-qemu-snp
  containers:
    - name: db
---
apiVersion: v1
kind: Pod
metadata:
  name: outside
spec:
  runtimeClassName: kata-qemu-snp
  containers:
    - name: batch
---
apiVersion: v1
kind: Pod
metadata:
  name: skipped
  annotations:
    contrast.edgeless.systems/skip-initializer: "true"
spec:
  runtimeClassName: kata-qemu-snp
  containers:
    - name: own
`

func TestGuestPlacementGolden(t *testing.T) {
	o := options()
	o.Placement = initdata.Guest
	files := []generate.File{{Name: "f.yaml", Text: []byte(mixed)}}
	guest, err := generate.Inject(t.Context(), files, o)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/guest.injected.yaml", guest.Files[0].Text)
	for i, want := range []initdata.Guard{initdata.GuardMesh, initdata.GuardMesh, initdata.GuardOpen, initdata.GuardClosed} {
		c := guest.Pods[i].Config
		if c.Placement != initdata.Guest || c.Guard != want {
			t.Errorf("%s is placed in %q with the guard %q, want %q", guest.Pods[i].Name, c.Placement, c.Guard, want)
		}
	}
	if got := guest.Pods[0].Config.Mesh.Probes; got != "web/liveness#http://:8080/healthz#1s" {
		t.Errorf("the guest's proxy answers for %q", got)
	}
	measured, err := generate.ReadMeasured(guest.Files, "default")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range measured {
		if m.Err != nil || m.Config.Placement != initdata.Guest {
			t.Errorf("%s: the initdata says %+v, %v", m.Name, m.Config, m.Err)
		}
	}

	// What is in place is replaced, whichever it is, and can be taken out.
	sidecar, err := generate.Inject(t.Context(), files, options())
	if err != nil {
		t.Fatal(err)
	}
	again, err := generate.Inject(t.Context(), guest.Files, options())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Files[0].Text, sidecar.Files[0].Text) {
		t.Errorf("from guest to sidecar:\n%s", again.Files[0].Text)
	}
	if again, err = generate.Inject(t.Context(), sidecar.Files, o); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Files[0].Text, guest.Files[0].Text) {
		t.Errorf("from sidecar to guest:\n%s", again.Files[0].Text)
	}
	removed, err := generate.Remove(guest.Files, o)
	if err != nil || !bytes.Equal(removed.Files[0].Text, []byte(mixed)) {
		t.Errorf("taken out: %v\n%s", err, removed.Files[0].Text)
	}
	for i := range guest.Pods {
		if guest.Pods[i].Hash == sidecar.Pods[i].Hash {
			t.Errorf("%s has one policy hash in both placements", guest.Pods[i].Name)
		}
	}
}

// In the guest no argument holds the pin, so the initdata does; and a Coordinator is a container in either placement.
func TestGuestPlacementKeepsThePin(t *testing.T) {
	o := pinnedOptions(t)
	o.Placement = initdata.Guest
	o.Policy = generate.FixedPolicy("package agent_policy\n")
	pinned, err := generate.Inject(t.Context(), []generate.File{{Name: "shop.yaml", Text: read(t, shop)}}, o)
	if err != nil {
		t.Fatal(err)
	}
	const key = "cc_init_data: "
	values := 0
	for line := range strings.Lines(string(pinned.Files[0].Text)) {
		_, value, found := strings.Cut(line, key)
		if !found {
			continue
		}
		document, err := initdata.Decode(strings.Trim(value, "\"'\n"))
		if err != nil {
			t.Fatal(err)
		}
		data, err := initdata.Parse(document)
		if err != nil {
			t.Fatal(err)
		}
		config, err := initdata.ParsePodConfig(data[initdata.KeyConfig])
		if err != nil {
			t.Fatal(err)
		}
		if config.Role == initdata.Coordinator {
			if data[initdata.KeyPin] != "" || config.Placement != initdata.Sidecar {
				t.Errorf("the Coordinator's initdata: %+v", config)
			}
			continue
		}
		values++
		pin, err := manifest.ParsePin(data[initdata.KeyPin])
		if err != nil || pin.PolicyHash != pinned.Pods[0].Hash {
			t.Errorf("%s is pinned to %v, %v", config.Name, pin, err)
		}
	}
	if values != 4 {
		t.Errorf("%d pods have initdata", values)
	}
	o.Pin = nil
	plain, err := generate.Inject(t.Context(), pinned.Files, o)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(plain.Warnings, "\n"); strings.Count(got, "PC1503") != 4 {
		t.Errorf("nobody says that the pins are gone: %q", got)
	}
}

func TestUpdateManifestKeepsWhatAPersonAdded(t *testing.T) {
	san := func(name string) pki.SAN {
		s, err := pki.ParseSAN(name)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	web := generate.Pod{
		File: "f.yaml", Line: 3, Namespace: "shop", Kind: "Pod", Name: "web", Hash: attestation.PolicyHash{2}, Before: attestation.PolicyHash{1},
		Policy: manifest.Policy{SANs: []pki.SAN{san("web")}, Pod: "Pod shop/web"},
	}
	for _, c := range []struct {
		name  string
		hash  byte
		old   manifest.Policy
		want  []string // the SANs of web, nil where an error is wanted
		notes string
		kept  bool // the old policy
	}{
		{"by its pod", 9, manifest.Policy{Pod: "Pod shop/web", SANs: []pki.SAN{san("web"), san("shop.example.com"), san("10.0.0.7")}}, []string{"web", "shop.example.com", "10.0.0.7"}, "", false},
		{"by the hash that it had", 1, manifest.Policy{SANs: []pki.SAN{san("web"), san("shop.example.com")}}, []string{"web", "shop.example.com"}, "", false},
		{
			"of a Service that is gone", 9,
			manifest.Policy{Pod: "Pod shop/web", SANs: []pki.SAN{san("old"), san("old.shop"), san("old.shop.svc.cluster.local")}},
			[]string{"web"},
			"PC1506: old is no longer an identity of Pod shop/web", false,
		},
		{"a person's", 9, manifest.Policy{SANs: []pki.SAN{san("partner.example")}}, []string{"web"}, "", true},
		{"a person's with its name", 9, manifest.Policy{SANs: []pki.SAN{san("web")}}, nil, "f.yaml:3:1: PC1505: web is an identity of Pod shop/web, and the manifest has it in Policies[", true},
		{"of a pod that is gone", 9, manifest.Policy{Pod: "Pod shop/gone", SANs: []pki.SAN{san("web")}}, []string{"web"}, "PC1506: the policy 090000000000 of Pod shop/gone was removed", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			old := attestation.PolicyHash{c.hash}
			m := &manifest.Manifest{Policies: map[attestation.PolicyHash]manifest.Policy{old: c.old}}
			notes, err := generate.UpdateManifest(m, []generate.Pod{web}, false)
			if c.want == nil {
				if err == nil || !strings.Contains(err.Error(), c.notes) || len(m.Policies) != 1 {
					t.Fatalf("got %v and %v, want %q", m.Policies, err, c.notes)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range m.Policies[web.Hash].SANs {
				got = append(got, s.String())
			}
			if strings.Join(got, " ") != strings.Join(c.want, " ") {
				t.Errorf("the identities are %q, want %q", got, c.want)
			}
			if _, there := m.Policies[old]; there != c.kept {
				t.Errorf("the old policy is there: %v", there)
			}
			if text := strings.Join(notes, "\n"); !strings.Contains(text, c.notes) || (text == "") != (c.notes == "") {
				t.Errorf("notes %q, want %q", text, c.notes)
			}
		})
	}
}

func TestGenpolicyIsCancelled(t *testing.T) {
	folder := t.TempDir()
	program := filepath.Join(folder, "genpolicy")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n: >"+folder+"/started\nexec sleep 600\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := options()
	o.Policy = generate.Genpolicy{Program: program}
	done := make(chan error, 1)
	go func() {
		_, err := generate.Inject(ctx, []generate.File{{Name: "shop.yaml", Text: read(t, shop)}}, o)
		done <- err
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(folder, "started")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("genpolicy was not started")
		}
	}
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("genpolicy is still being waited for")
	}
}
