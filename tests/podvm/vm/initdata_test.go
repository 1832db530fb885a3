package vm_test

import (
	"strings"
	"testing"

	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/tests/podvm/kata"
	"portcullis.dev/portcullis/tests/podvm/vm"
	"portcullis.dev/portcullis/tests/simtee"
)

// A machine whose initdata is not the one that its hardware vouches for switches itself off before its agent starts. Every refusal is in
// package nspawn; these have real disks.
func TestOtherInitdataPowersOff(t *testing.T) {
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	data := map[string]string{initdata.KeyPolicy: kata.AllowPods()}
	document, err := initdata.Build(data)
	if err != nil {
		t.Fatal(err)
	}
	b, err := world.Disk(simtee.Measurement{1}, initdata.Digest(document))
	if err != nil {
		t.Fatal(err)
	}
	tee := write(t, b)
	own, another := initdataDisk(t, data), initdataDisk(t, map[string]string{initdata.KeyPolicy: kata.AllowPods() + "\n"})
	for _, c := range []struct {
		name  string
		disks []string
		says  string // empty: it boots
	}{
		{"control: the pod's own", []string{own, tee}, ""},
		{"another pod's", []string{another, tee}, "and the host committed to"},
		{"two", []string{own, own, tee}, "both have initdata"},
		{"none", []string{tee}, "attached no disk with it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := vm.Spec{Image: image(t, "simulated"), Way: vm.Direct, Disks: c.disks}
			if c.says == "" {
				e := boot(t, spec).show(t, "podvm-initdata.service")
				t.Logf("/run/podvm has %q", e.Pod)
				if len(e.Pod) == 0 {
					t.Error("nothing was delivered")
				}
				return
			}
			m := start(t, spec)
			refused(t, m, vm.PoweredOff)
			t.Logf("\n%s", mentions(m, "podvm-initdata", "Power down"))
			if !strings.Contains(m.Console(), c.says) {
				t.Errorf("the console does not say %q", c.says)
			}
		})
	}
}
