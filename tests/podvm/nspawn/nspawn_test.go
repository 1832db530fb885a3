package nspawn_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/tests/podvm/kata"
	"portcullis.dev/portcullis/tests/podvm/nspawn"
	"portcullis.dev/portcullis/tests/podvm/order"
	"portcullis.dev/portcullis/tests/simtee"
)

// env names the folder of images, which tests/podvm/images.sh makes.
const env = "PORTCULLIS_PODVM"

const patience = 90 * time.Second

// root mounts a variant of the image for a test.
func root(t *testing.T, variant string) nspawn.Root {
	t.Helper()
	dir := os.Getenv(env)
	if dir == "" {
		t.Skip("left to make test-image: it boots containers, as root")
	}
	r, unmount, err := nspawn.Mount(filepath.Join(dir, variant))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(unmount)
	return r
}

func boot(t *testing.T, spec nspawn.Spec) *nspawn.Machine {
	t.Helper()
	m, err := nspawn.Boot(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func disk(t *testing.T, data map[string]string) []byte {
	t.Helper()
	document, err := initdata.Build(data)
	if err != nil {
		t.Fatal(err)
	}
	b, err := initdata.Disk(document)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pod is initdata that lets the stand-in agent obey.
func pod() map[string]string { return map[string]string{initdata.KeyPolicy: kata.AllowPods()} }

// knocker tries the guest's ports, again and again, from before it starts.
type knocker struct {
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu       sync.Mutex
	knocks   int
	answered []string
}

func knock(m *nspawn.Machine) *knocker {
	ctx, cancel := context.WithCancel(context.Background())
	k := &knocker{cancel: cancel}
	for _, p := range nspawn.Guest {
		for _, port := range []uint16{22, 1313, 8080, 15006} {
			address := netip.AddrPortFrom(p.Addr(), port).String()
			k.all.Go(func() {
				for ctx.Err() == nil {
					bounded, done := context.WithTimeout(ctx, 300*time.Millisecond)
					conn, err := m.Dial(bounded, "tcp", address)
					done()
					k.mu.Lock()
					if ctx.Err() == nil {
						k.knocks++
					}
					if err == nil {
						conn.Close()
						k.answered = append(k.answered, address)
					} else if strings.Contains(err.Error(), "refused") {
						k.answered = append(k.answered, address+" refused")
					}
					k.mu.Unlock()
					time.Sleep(30 * time.Millisecond)
				}
			})
		}
	}
	return k
}

// letIn says whether anybody was, at an address so far.
func (k *knocker) letIn(address string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.answered, address)
}

func (k *knocker) stop() (knocks int, answered []string) {
	k.cancel()
	k.all.Wait()
	return k.knocks, k.answered
}

// up boots a machine to its agent, gives it its addresses, and waits until it was knocked at.
func up(t *testing.T, m *nspawn.Machine, drops uint64) kata.Evidence {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := m.AwaitAgent(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Agent.Interface(ctx, nspawn.MAC, nspawn.Guest...); err != nil {
		t.Fatal(err)
	}
	for {
		e, err := m.Agent.Show(ctx, order.Units()...)
		if err != nil {
			t.Fatal(err)
		}
		seen := m.Neighbours()
		if e.Guard.Drops >= drops && strings.Contains(seen, nspawn.Guest[0].Addr().String()) && strings.Contains(seen, nspawn.Guest[1].Addr().String()) {
			return e
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// boots is how many there are in a run: 50 with PORTCULLIS_SOAK=1.
func boots() int {
	if os.Getenv("PORTCULLIS_SOAK") != "" {
		return 50
	}
	return 5
}

func TestGateIsDownBeforeTheAgentInEveryBoot(t *testing.T) { inEveryBoot(t, root(t, "plain"), boots()) }

// A podVM that somebody else built, of a plain Debian, with the gate from our package or our system extension.
func TestGateInPodVMsOfOthers(t *testing.T) {
	for _, way := range []string{"package", "extension"} {
		t.Run(way, func(t *testing.T) {
			r := root(t, way)
			inEveryBoot(t, r, 3)
			t.Run("refused", func(t *testing.T) {
				for _, c := range []refusal{
					{"guard fails", nspawn.Spec{Root: r, Disks: [][]byte{disk(t, pod())}, Units: map[string]string{
						"podvm-guard.service.d/test.conf": "[Service]\nExecStart=\nExecStart=/usr/sbin/podvm-guard no-such-word\n",
					}}, "Failed to start podvm-guard.service"},
					{"guard masked", nspawn.Spec{Root: r, Units: map[string]string{"podvm-guard.service": "-> /dev/null"}}, "podvm-guard.service is masked"},
					{"two initdata disks", nspawn.Spec{Root: r, Disks: [][]byte{disk(t, pod()), disk(t, pod())}}, "both have initdata"},
				} {
					t.Run(c.name, c.test)
				}
			})
		})
	}
}

func inEveryBoot(t *testing.T, r nspawn.Root, boots int) {
	t.Helper()
	var knocks, letIn int
	var drops uint64
	for n := range boots {
		t.Run(fmt.Sprint(n+1), func(t *testing.T) {
			m := boot(t, nspawn.Spec{Root: r, Disks: [][]byte{disk(t, pod())}})
			k := knock(m)
			e := up(t, m, 8)
			n, answered := k.stop()
			faults, times := order.Faults(e)
			for _, f := range faults {
				t.Error(f)
			}
			if len(answered) > 0 {
				t.Errorf("%d of %d knocks were answered: %q", len(answered), n, answered)
			}
			if e.Guard.State != "closed" {
				t.Errorf("the guard is %s", e.Guard.State)
			}
			knocks, letIn, drops = knocks+n, letIn+len(answered), drops+e.Guard.Drops
			t.Logf("%s; %d knocks, %d packets dropped", times, n, e.Guard.Drops)
			m.Close()
		})
	}
	t.Logf("%d boots: %d knocks, %d answered; %d packets dropped by the gate", boots, knocks, letIn, drops)
}

// The control: where nothing closes the gate, the same knocks are answered.
func TestKnocksReachAnOpenGuest(t *testing.T) {
	m := boot(t, nspawn.Spec{Root: root(t, "accepting"), Disks: [][]byte{disk(t, pod())}})
	k := knock(m)
	up(t, m, 0)
	if err := m.Agent.Run(t.Context(), "workload", nil, "/usr/bin/kata-agent", "serve", "8080", "hello"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, p := range nspawn.Guest {
		for want := netip.AddrPortFrom(p.Addr(), 8080).String(); !k.letIn(want); {
			select {
			case <-ctx.Done():
				t.Fatalf("nobody was let in at %s", want)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	n, answered := k.stop()
	t.Logf("%d knocks, %d answered", n, len(answered))
}

// Whatever is wrong with gate or initdata, the machine ends without its agent, and says why.
func TestNoAgentBehindNoGate(t *testing.T) {
	simulated := root(t, "simulated")
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	document, err := initdata.Build(pod())
	if err != nil {
		t.Fatal(err)
	}
	good := disk(t, pod())
	another := disk(t, map[string]string{initdata.KeyPolicy: "another"})
	tee := func(digest [32]byte) []byte {
		b, err := world.Disk(simtee.Measurement{1}, digest)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	own := tee(initdata.Digest(document))
	half, err := initdata.Build(map[string]string{initdata.KeyPolicy: kata.AllowPods(), initdata.KeyConfig: "guard = \"open\"\n"})
	if err != nil {
		t.Fatal(err)
	}
	halfDisk, err := initdata.Disk(half)
	if err != nil {
		t.Fatal(err)
	}
	cut := append([]byte(nil), good...)
	cut[9] = 0x40 // 16 KiB, of a disk of half a KiB
	large := append([]byte("initdata\x00\x00\x00\x00\x01\x00\x00\x00"), make([]byte, 496)...)
	broken := append([]byte(nil), good...)
	broken[30] ^= 0xff
	for _, c := range []refusal{
		{"guard fails", nspawn.Spec{Units: map[string]string{
			"podvm-guard.service.d/test.conf": "[Service]\nExecStart=\nExecStart=/usr/sbin/podvm-guard no-such-word\n",
		}}, "Failed to start podvm-guard.service"},
		{"guard's program missing", nspawn.Spec{Units: map[string]string{
			"podvm-guard.service.d/test.conf": "[Service]\nExecStart=\nExecStart=/usr/sbin/missing close\n",
		}}, "Failed to start podvm-guard.service"},
		{"guard masked", nspawn.Spec{Units: map[string]string{"podvm-guard.service": "-> /dev/null"}}, "podvm-guard.service is masked"},
		{"guard without its capability", nspawn.Spec{NoNetAdmin: true}, "Failed to start podvm-guard.service"},
		{"initdata service masked", nspawn.Spec{Units: map[string]string{"podvm-initdata.service": "-> /dev/null"}}, "podvm-initdata.service is masked"},
		{"no TEE, and no word for tests", nspawn.Spec{Disks: [][]byte{good}, Units: map[string]string{
			"podvm-initdata.service.d/test.conf": "[Unit]\n",
		}}, "no source of evidence"},
		{"initdata broken", nspawn.Spec{Disks: [][]byte{broken}, TEE: own}, "gzip"},
		{"initdata beyond every limit", nspawn.Spec{Disks: [][]byte{large}, TEE: own}, "bytes, want 1 to"},
		{"initdata cut off", nspawn.Spec{Disks: [][]byte{cut}, TEE: own}, "the disk ends after"},
		{"half a configuration", nspawn.Spec{Disks: [][]byte{halfDisk}, TEE: tee(initdata.Digest(half))}, "portcullis.toml"},
		{"two initdata disks", nspawn.Spec{Disks: [][]byte{good, good}, TEE: own}, "both have initdata"},
		{"another pod's initdata", nspawn.Spec{Disks: [][]byte{another}, TEE: own}, "and the host committed to"},
		{"HOSTDATA, and no initdata", nspawn.Spec{TEE: own}, "attached no disk with it"},
		{"initdata, and no HOSTDATA", nspawn.Spec{Disks: [][]byte{good}, TEE: tee([32]byte{})}, "the host committed to none"},
	} {
		c.spec.Root = simulated
		t.Run(c.name, c.test)
	}
}

// refusal is a boot that must end without its agent.
type refusal struct {
	name string
	spec nspawn.Spec
	says string // on the console
}

func (c refusal) test(t *testing.T) {
	if c.spec.Units == nil {
		c.spec.Units = map[string]string{}
	}
	// Not half a minute for a disk that does not come.
	if _, ok := c.spec.Units["podvm-initdata.service"]; !ok {
		c.spec.Units["podvm-initdata.service.d/wait.conf"] = "[Service]\nExecStart=\nExecStart=/usr/sbin/podvm-initdata --wait 1s\nStandardError=journal+console\n"
	}
	m := boot(t, c.spec)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ended, ok := errors.AsType[*nspawn.Ended](m.AwaitAgent(ctx))
	if !ok {
		t.Fatalf("the agent started, or the machine still runs:\n%s", m.Console())
	}
	var evidence []string
	for line := range strings.Lines(ended.Console) {
		for _, word := range []string{"podvm-", "Powering off", "masked", "kata-agent", "hint"} {
			if strings.Contains(line, word) && !strings.HasPrefix(line, "Script started") {
				evidence = append(evidence, strings.TrimSpace(line))
				break
			}
		}
	}
	t.Log("\n      | " + strings.Join(evidence, "\n      | "))
	if !strings.Contains(ended.Console, c.says) {
		t.Errorf("the console does not say %q:\n%s", c.says, ended.Console)
	}
	if strings.Contains(ended.Console, "Started kata-agent.service") {
		t.Error("the agent was started")
	}
}

// The pretended TEE's own: what is refused above is accepted when it is right, and a pod without initdata gets nothing at all.
func TestInitdataIsDelivered(t *testing.T) {
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	document, err := initdata.Build(pod())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		disks   [][]byte
		digest  [32]byte
		allowed bool
	}{
		{"the pod's", [][]byte{disk(t, pod())}, initdata.Digest(document), true},
		{"none", nil, [32]byte{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			tee, err := world.Disk(simtee.Measurement{1}, c.digest)
			if err != nil {
				t.Fatal(err)
			}
			m := boot(t, nspawn.Spec{Root: root(t, "simulated"), Disks: c.disks, TEE: tee})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := m.AwaitAgent(ctx); err != nil {
				t.Fatal(err)
			}
			err = m.Agent.Interface(ctx, nspawn.MAC, nspawn.Guest...)
			if (err == nil) != c.allowed {
				t.Errorf("UpdateInterface: %v", err)
			}
			e, err := m.Agent.Show(ctx, "podvm-initdata.service")
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("/run/podvm has %q; allowed: %t", e.Pod, c.allowed)
			if strings.Join(e.Pod, " ") != "policy.rego" {
				t.Errorf("/run/podvm has %q", e.Pod)
			}
		})
	}
}

// One image serves all pods: where the mesh is not the services' matter, they say so, end well, and leave the gate as it is.
func TestServicesLeaveOtherPodsAlone(t *testing.T) {
	r := root(t, "plain")
	for _, c := range []struct {
		name   string
		config *initdata.PodConfig // nil: the initdata has none
		why    string
	}{
		{"in its containers", &initdata.PodConfig{
			Namespace: "shop", Kind: "Pod", Name: "web", Placement: initdata.Sidecar, Role: initdata.Workload, Guard: initdata.GuardMesh,
			CoordinatorHost: "coordinator", Mesh: &initdata.MeshConfig{},
		}, "placement is sidecar"},
		{"closed", &initdata.PodConfig{
			Namespace: "shop", Kind: "Pod", Name: "web", Placement: initdata.Guest, Role: initdata.Workload, Guard: initdata.GuardClosed,
			CoordinatorHost: "coordinator",
		}, "the gate stays closed"},
		{"not of our making", nil, "no portcullis.toml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := pod()
			if c.config != nil {
				text, err := c.config.Text()
				if err != nil {
					t.Fatal(err)
				}
				data[initdata.KeyConfig] = text
			}
			m := boot(t, nspawn.Spec{Root: r, Disks: [][]byte{disk(t, data)}})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := m.AwaitAgent(ctx); err != nil {
				t.Fatal(err)
			}
			if err := m.Agent.Start(ctx, kata.Pod{
				Name: "web", MAC: nspawn.MAC, Addresses: nspawn.Guest, Servers: []string{"nameserver 10.138.0.2"},
			}); err != nil {
				t.Fatal(err)
			}
			services := []string{"podvm-initializer.service", "podvm-meshproxy.service"}
			for {
				e, err := m.Agent.Show(ctx, services...)
				if err != nil {
					t.Fatal(err)
				}
				ended := 0
				for _, s := range services {
					u := e.Units[s]
					if u["ActiveState"] == "active" && u["SubState"] == "exited" && u["Result"] == "success" && u["NRestarts"] == "0" &&
						strings.Contains(u["StatusText"], "nothing to do") && strings.Contains(strings.Join(e.Journal, "\n"), c.why) {
						ended++
					}
				}
				if ended == len(services) {
					if e.Guard.State != "closed" {
						t.Errorf("the guard is %s", e.Guard.State)
					}
					t.Log(e.Units[services[0]]["StatusText"])
					return
				}
				select {
				case <-ctx.Done():
					t.Fatalf("%v\n%s", e.Units, strings.Join(e.Journal, "\n"))
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
}
