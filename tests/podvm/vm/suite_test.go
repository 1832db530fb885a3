package vm_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/podvm/kata"
	"portcullis.dev/portcullis/tests/podvm/vm"
)

// env names the folder of images.
const env = "PORTCULLIS_PODVM"

func TestMain(m *testing.M) {
	if os.Getenv(env) == "" {
		os.Exit(m.Run())
	}
	netlab.Main(m)
}

// image is the folder of a variant of the image. Without env it says who runs these tests, and skips.
func image(t *testing.T, variant string) string {
	t.Helper()
	dir := os.Getenv(env)
	if dir == "" {
		t.Skip("left to make test-vm: it boots virtual machines, which takes minutes")
	}
	return filepath.Join(dir, variant)
}

// theLab is the one of the test program, with somebody who knocks.
var theLab = sync.OnceValues(func() (*laboratory, error) {
	lab, err := netlab.New()
	if err != nil {
		return nil, err
	}
	knocker, err := lab.NewHost("knocker")
	return &laboratory{lab, knocker}, err
})

type laboratory struct {
	*netlab.Lab
	knocker *netlab.Host
}

// A boot takes some 15 s under TCG on two quiet cores, and some 50 on busy ones.
const bootTime = 4 * time.Minute

// start powers a machine on that is gone when the test ends.
func start(t *testing.T, spec vm.Spec) *vm.Machine {
	t.Helper()
	lab, err := theLab()
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir, whose paths have the test's name: a socket's may be 108 bytes long (unix(7)).
	dir, err := os.MkdirTemp("", "podvm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	spec.Name, spec.Dir = "podvm", dir
	if spec.Way != vm.Disk && spec.Disks == nil {
		spec.Disks = []string{initdataDisk(t, map[string]string{initdata.KeyPolicy: kata.AllowPods()})}
	}
	m, err := vm.Start(t.Context(), lab.Lab, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// initdataDisk is a disk with a pod's initdata.
func initdataDisk(t *testing.T, data map[string]string) string {
	t.Helper()
	document, err := initdata.Build(data)
	if err != nil {
		t.Fatal(err)
	}
	b, err := initdata.Disk(document)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, b)
}

// write makes a file of bytes.
func write(t *testing.T, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// guest is a machine whose agent answers.
type guest struct {
	*vm.Machine
	agent *kata.Agent
}

// boot returns when the agent of a new machine is there.
func boot(t *testing.T, spec vm.Spec) *guest {
	t.Helper()
	m := start(t, spec)
	return greet(t, m)
}

func greet(t *testing.T, m *vm.Machine) *guest {
	t.Helper()
	ctx := within(t, bootTime)
	if err := m.AwaitAgent(ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := m.Agent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	agent := kata.Dial(conn)
	t.Cleanup(func() { agent.Close() })
	if err := agent.Check(ctx); err != nil {
		t.Fatal(err)
	}
	return &guest{m, agent}
}

// show asks for units' properties, and all else that the agent tells.
func (g *guest) show(t *testing.T, units ...string) kata.Evidence {
	t.Helper()
	e, err := g.agent.Show(within(t, time.Minute), units...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// configure gives a NIC its addresses, as a runtime does before there is a sandbox.
func (g *guest) configure(t *testing.T, j *netlab.Jack) {
	t.Helper()
	if err := g.agent.Interface(within(t, time.Minute), j.MAC, j.Prefixes()...); err != nil {
		t.Fatal(err)
	}
}

// neighbours returns when the guest has answered for these addresses on the link: it is there, and its network works.
func neighbours(t *testing.T, ctx context.Context, addresses []netip.Addr) {
	t.Helper()
	lab, err := theLab()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		until(t, ctx, func() error {
			mac, err := lab.knocker.Neighbour(a)
			if err == nil && mac == nil {
				err = fmt.Errorf("nobody answers for %s on the link", a)
			}
			if err == nil {
				t.Logf("%s is at %s", a, mac)
			}
			return err
		})
	}
}

// until calls f again and again until it succeeds.
func until(t *testing.T, ctx context.Context, f func() error) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-tick.C:
		}
	}
}

// mentions are the lines of the console that say one of these words.
func mentions(m *vm.Machine, words ...string) string {
	var found []string
	for line := range strings.Lines(m.Console()) {
		for _, w := range words {
			if strings.Contains(line, w) {
				found = append(found, "      | "+strings.TrimSpace(line))
				break
			}
		}
	}
	if found == nil {
		return "      (the console says nothing of it)"
	}
	return strings.Join(found, "\n")
}
