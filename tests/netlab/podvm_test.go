package netlab_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis.dev/portcullis/tests/netlab"
)

func TestBootCommandsRunBeforeAnyInterfaceIsUp(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	vm := netlab.NewPodVM(t, netlab.BootSpec{Name: "early", Boot: [][]string{{"ip", "-o", "link"}, {"ip", "-o", "addr"}}, Log: log})
	b, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	if seen := string(b); !strings.Contains(seen, "lo:") || strings.Contains(seen, "UP") || strings.Contains(seen, "inet") {
		t.Errorf("want loopback, and no interface that is up, during boot; seen:\n%s", seen)
	}
	out, err := vm.Command("ip", "-o", "addr", "show", "dev", "eth0").CombinedOutput()
	if err != nil || !strings.Contains(string(out), vm.IPv4.String()) {
		t.Errorf("after boot: %v: %s", err, out)
	}
}

func TestFailedBootCommandPowersOff(t *testing.T) {
	_, err := netlab.Boot(netlab.BootSpec{Name: "broken", Boot: [][]string{{"false"}}})
	if err == nil || !strings.Contains(err.Error(), "powering off") {
		t.Errorf("got error %v, want powering off", err)
	}
}

func TestContainerHasItsOwnMountsAndOnlyItsCapabilities(t *testing.T) {
	vm := netlab.NewPodVM(t, netlab.BootSpec{Name: "pod"})
	vol, err := vm.Volume("shared")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	script := `echo from-writer > /data/file; grep -E 'CapBnd|CapEff|NoNewPrivs' /proc/self/status; touch /forbidden 2>/dev/null || echo root-is-read-only; echo pids $(ls -d /proc/[0-9]* | wc -l)`
	writer := &netlab.Container{
		Name: "writer", Command: []string{"sh", "-c", script}, Mounts: []netlab.Mount{{Volume: vol, Target: "/data"}},
		Capabilities: []string{"KILL"}, NoNewPrivileges: true, ReadOnlyRoot: true, Log: &log,
	}
	if err := vm.Start(writer); err != nil {
		t.Fatal(err)
	}
	<-writer.Done()
	for _, want := range []string{"CapEff:\t0000000000000020", "CapBnd:\t0000000000000020", "NoNewPrivs:\t1", "root-is-read-only"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, &log)
		}
	}
	reader := &netlab.Container{Name: "reader", Mounts: []netlab.Mount{{Volume: vol, Target: "/in", ReadOnly: true}}, User: 1337}
	out, err := vm.Exec(reader, []string{"sh", "-c", "cat /in/file; id -u; echo x > /in/file || echo volume-is-read-only"})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"from-writer", "1337", "volume-is-read-only"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	if _, err := os.Stat(filepath.Join("/run/volumes/shared")); err == nil {
		t.Error("the podVM's volume is visible outside it")
	}
}

func TestPowerOffEndsEveryProcess(t *testing.T) {
	vm := netlab.NewPodVM(t, netlab.BootSpec{Name: "short"})
	c := &netlab.Container{Name: "sleeper", Command: []string{"sleep", "1000"}}
	if err := vm.Start(c); err != nil {
		t.Fatal(err)
	}
	vm.PowerOff()
	<-c.Done()
}
