package vm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"portcullis.dev/portcullis/tests/podvm/vm"
)

// The unit and the drop-in that a host would like the guest to have.
const (
	hostsUnit = "hosts-own.service"
	hostsWord = "hosts.own=1"
)

// Units that come as SMBIOS credentials are not there, for two reasons: systemd takes over no credentials, and nothing in the image makes
// units of them. The control: without systemd.import_credentials=no they are taken over, and still no unit comes of them.
func TestCredentialsOfTheHostAreIgnored(t *testing.T) {
	dir := image(t, "plain")
	line := commandLine(t, dir)
	const no = "systemd.import_credentials=no"
	if !strings.Contains(line, no) {
		t.Fatalf("the image's command line has no %s", no)
	}
	for _, c := range []struct {
		name, line string
		imported   bool
	}{
		{"as built", line, false},
		{"control: without " + no, strings.ReplaceAll(line, no, ""), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := boot(t, vm.Spec{Image: dir, Way: vm.Direct, CommandLine: c.line, Credentials: map[string]string{
				"systemd.extra-unit." + hostsUnit:                      "[Service]\nExecStart=/usr/sbin/podvm-guard status\n",
				"systemd.unit-dropin.kata-containers.target~hosts-own": "[Unit]\nDescription=The host's own\nWants=" + hostsUnit + "\n",
			}})
			e := g.show(t, hostsUnit, "kata-containers.target", "podvm-guard.service")
			unit, target := e.Units[hostsUnit]["LoadState"], e.Units["kata-containers.target"]["Description"]
			t.Logf("credentials %q, %s: %s, kata-containers.target: %q, guard: %s", e.Credentials, hostsUnit, unit, target, e.Guard.State)
			if imported := len(e.Credentials) == 2; imported != c.imported {
				t.Errorf("imported: %v, want %v", imported, c.imported)
			}
			if unit != "not-found" || target == "The host's own" {
				t.Error("the host's unit is there")
			}
			if e.Guard.State != "closed" {
				t.Errorf("the guard is %s", e.Guard.State)
			}
		})
	}
}

// Words that a host adds to the command line of a direct boot do reach the kernel, and change the launch measurement.
func TestCommandLineIsMeasured(t *testing.T) {
	dir := image(t, "plain")
	line := commandLine(t, dir)
	g := boot(t, vm.Spec{Image: dir, Way: vm.Direct, CommandLine: line + " " + hostsWord})
	e := g.show(t, "podvm-guard.service")
	t.Logf("the kernel's command line: %s", e.CommandLine)
	if !strings.Contains(e.CommandLine, hostsWord) {
		t.Errorf("the host's word is not there: then this test knows the machine badly")
	}
	if e.Guard.State != "closed" {
		t.Errorf("the guard is %s", e.Guard.State)
	}
	honest, other := measurement(t, dir, line), measurement(t, dir, line+" "+hostsWord)
	t.Logf("launch measurement with the image's line %s, with the host's word %s", honest, other)
	if honest == other || measurement(t, dir, line) != honest {
		t.Error("the measurement does not tell them apart")
	}
}

// measurement is SNP's for a direct boot of the image with a command line.
func measurement(t *testing.T, image, line string) string {
	t.Helper()
	cmd := exec.Command("../../../bin/portcullis", "measure", "snp", "--ovmf", "../../../measure/testdata/ovmf_AmdSev_suffix.bin",
		"--kernel", filepath.Join(image, "vmlinuz"), "--initrd", filepath.Join(image, "initrd"), "--append", line,
		"--vcpus", "2", "--vcpu-type", "EPYC-Milan")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, said.String())
	}
	return strings.TrimSpace(string(out))
}

// A UKI runs with its own command line or not at all, whatever lies beside it on the disk that the firmware boots from, or is
// handed to it.
func TestUKIKeepsItsCommandLine(t *testing.T) {
	dir := image(t, "plain")
	uki, err := os.ReadFile(filepath.Join(dir, "podvm.efi"))
	if err != nil {
		t.Fatal(err)
	}
	const at = "EFI/BOOT/BOOTX64.EFI"
	credential := []byte("[Service]\nExecStart=/usr/sbin/podvm-guard status\n")
	for _, c := range []struct {
		name string
		// beside lies on the EFI system partition; options are the load options.
		beside  map[string][]byte
		options string
		boots   bool // with its own command line; else the machine must end before its agent starts
	}{
		{"control: nothing", nil, "", true},
		{"an addon of its own", map[string][]byte{at + ".extra.d/hosts.addon.efi": addon(hostsWord)}, "", false},
		{"an addon for all", map[string][]byte{"loader/addons/hosts.addon.efi": addon(hostsWord)}, "", false},
		{"credentials of its own", map[string][]byte{at + ".extra.d/systemd.extra-unit." + hostsUnit + ".cred": credential}, "", true},
		{"credentials for all", map[string][]byte{"loader/credentials/systemd.extra-unit." + hostsUnit + ".cred": credential}, "", true},
		{"a boot loader's entry", map[string][]byte{
			at: bootLoader(t), "podvm.efi": uki,
			"loader/loader.conf":        []byte("default hosts.conf\ntimeout 0\n"),
			"loader/entries/hosts.conf": []byte("title hosts\nefi /podvm.efi\noptions " + commandLine(t, dir) + " " + hostsWord + "\n"),
		}, "", false},
		{"control: a boot loader's entry without options", map[string][]byte{
			at: bootLoader(t), "podvm.efi": uki,
			"loader/loader.conf":      []byte("default own.conf\ntimeout 0\n"),
			"loader/entries/own.conf": []byte("title own\nefi /podvm.efi\n"),
		}, "", true},
		{"load options", nil, commandLine(t, dir) + " " + hostsWord, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := vm.Spec{Image: dir, Way: vm.Disk}
			if c.options != "" {
				spec.Way, spec.CommandLine = vm.UKI, c.options
			} else {
				files := map[string][]byte{at: uki}
				for name, content := range c.beside {
					files[name] = content
				}
				spec.Disks = []string{esp(t, files)}
			}
			m := start(t, spec)
			if !c.boots {
				refusedSomehow(t, m)
				t.Logf("\n%s", mentions(m, "ommand line:", "init:", "Power down"))
				if !strings.Contains(m.Console(), "the kernel's command line is not the one that was built in") {
					t.Errorf("the console does not say why:\n%s", m.LastOfConsole(20))
				}
				return
			}
			g := greet(t, m)
			e := g.show(t, hostsUnit)
			t.Logf("%s: %s, guard: %s, the kernel's command line: %s", hostsUnit, e.Units[hostsUnit]["LoadState"], e.Guard.State, e.CommandLine)
			if strings.TrimSpace(e.CommandLine) != commandLine(t, dir) {
				t.Error("that is not the image's")
			}
			if got := e.Units[hostsUnit]["LoadState"]; got != "not-found" {
				t.Errorf("%s is %s", hostsUnit, got)
			}
		})
	}
}

// bootLoader is systemd-boot, of the root with the image's tools.
func bootLoader(t *testing.T) []byte {
	t.Helper()
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		cache = filepath.Join(os.Getenv("HOME"), ".cache")
	}
	found, err := filepath.Glob(filepath.Join(cache, "portcullis/image/tools-*/usr/lib/systemd/boot/efi/systemd-bootx64.efi"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no systemd-boot below %s: make podvm-images makes a root that has it (%v)", cache, err)
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return b
}
