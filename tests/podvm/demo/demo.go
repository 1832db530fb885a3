package main

import (
	"bytes"
	"context"
	"crypto/sha512"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/podvm/kata"
	"portcullis.dev/portcullis/tests/podvm/order"
	"portcullis.dev/portcullis/tests/podvm/vm"
	"portcullis.dev/portcullis/tests/simtee"
	"portcullis.dev/portcullis/tests/table"
)

//go:embed pods.yaml
var podsYAML []byte

type demo struct {
	out, image string
	run        string // the machines' sockets

	lab   *netlab.Lab
	dns   *netlab.DNS
	wire  *netlab.Wire
	owner *netlab.Host // where the owners' command line runs, and whoever knocks

	world       *simtee.World
	measurement simtee.Measurement
	pods        map[string]corev1.Pod
	coordinator *netlab.PodVM
	guests      []*guest
	table       table.Table
}

// guest is a machine and its pod.
type guest struct {
	*vm.Machine
	name  string
	agent *kata.Agent
	watch *vm.Watch
}

// billing is called, and has a secret of its own; web calls.
const billing, web = "billing", "web"

const goods = "confidential goods of billing"

func newDemo(out, image string) (*demo, error) {
	run, err := os.MkdirTemp("", "podvm-run-")
	if err != nil {
		return nil, err
	}
	d := &demo{out: out, image: image, run: run, pods: map[string]corev1.Pod{}}
	sums, err := os.ReadFile(filepath.Join(image, "SHA256SUMS"))
	if err != nil {
		return nil, fmt.Errorf("no image: %w: run make demo-vm, which builds it", err)
	}
	// As a launch measurement, it stands for the image; the pretended hardware vouches for whatever it is told.
	d.measurement = sha512.Sum384(sums)
	if err := os.MkdirAll(d.path("logs"), 0o755); err != nil {
		return nil, err
	}
	if d.world, err = simtee.New(simtee.PublishedKeys()); err != nil {
		return nil, err
	}
	if err := d.world.Save(d.path("tee")); err != nil {
		return nil, err
	}
	if d.lab, err = netlab.New(); err != nil {
		return nil, err
	}
	if d.dns, err = d.lab.ServeDNS(); err != nil {
		return nil, err
	}
	d.dns.Answer(true, true)
	if d.wire, err = d.lab.Tap(); err != nil {
		return nil, err
	}
	d.owner, err = d.lab.NewHost("owner")
	return d, err
}

func (d *demo) close() {
	for _, g := range d.guests {
		g.watch.Stop()
		if g.agent != nil {
			g.agent.Close()
		}
		g.Close()
		if err := os.WriteFile(d.path("logs/"+g.name+".console"), []byte(g.Console()), 0o644); err != nil {
			fmt.Fprintf(os.Stderr, "demo-vm: %v\n", err)
		}
	}
	os.RemoveAll(d.run)
}

func (d *demo) path(name string) string { return filepath.Join(d.out, name) }

func (d *demo) generate(ctx context.Context) error {
	references, err := json.MarshalIndent(map[string]any{"Simulated": []any{d.world.Reference(d.measurement)}}, "", "  ")
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"pods.in.yaml": podsYAML, "policy.rego": []byte(kata.AllowPods()), "reference-values.json": references,
	} {
		if err := os.WriteFile(d.path(name), content, 0o644); err != nil {
			return err
		}
	}
	if err := d.ownerRuns(ctx, "generate", "-o", d.path("pods.yaml"), "--placement", "guest", "--manifest", d.path("manifest.json"),
		"--workload-owner-key", d.path("workload-owner.pem"), "--policy", d.path("policy.rego"),
		"--reference-values", d.path("reference-values.json"), d.path("pods.in.yaml")); err != nil {
		return err
	}
	injected, err := os.ReadFile(d.path("pods.yaml"))
	if err != nil {
		return err
	}
	for doc := range bytes.SplitSeq(injected, []byte("\n---")) {
		var p corev1.Pod
		if err := yaml.Unmarshal(doc, &p); err != nil {
			return err
		}
		if p.Kind == "Pod" {
			d.pods[p.Name] = p
		}
	}
	for _, name := range []string{billing, web} {
		if n := len(d.pods[name].Spec.InitContainers); n > 0 {
			return fmt.Errorf("%s has %d injected containers, want none", name, n)
		}
	}
	return nil
}

func (d *demo) document(pod string) ([]byte, error) {
	return initdata.Decode(d.pods[pod].Annotations[initdata.Annotation])
}

// coordinate runs the Coordinator in a pretended podVM, as make demo does.
func (d *demo) coordinate(ctx context.Context) error {
	log, err := os.Create(d.path("logs/coordinator.log"))
	if err != nil {
		return err
	}
	host, err := d.lab.Boot(netlab.BootSpec{
		Name: "coordinator", Binaries: []string{binary("podvm-guard"), binary("coordinator")},
		Boot: [][]string{{"podvm-guard", "close"}}, Resolver: netlab.Resolver, Log: log,
	})
	if err != nil {
		return err
	}
	d.coordinator = host
	document, err := d.document("coordinator")
	if err != nil {
		return err
	}
	tee := host.Host.Command(binary("simtee"), "serve", "--world", d.path("tee"), "--host-data", initdata.Digest(document).String(),
		"--measurement", d.measurement.String())
	tee.Stderr = log
	listens, err := tee.StdoutPipe()
	if err != nil {
		return err
	}
	if err := tee.Start(); err != nil {
		return err
	}
	if _, err := listens.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("the pretended TEE did not start: %w", err)
	}
	d.dns.Set("coordinator", host.IPv4, host.IPv6)
	images := netlab.Images{"portcullis.dev/coordinator:v0.1.0": {Entrypoint: []string{"coordinator"}}}
	pod := netlab.NewPod(host, d.pods["coordinator"].Spec, images, func(string) io.Writer { return log })
	if err := pod.Run(ctx); err != nil {
		return err
	}
	address := fmt.Sprintf("%s:%d", host.IPv4, api.Port)
	if err := until(ctx, 30*time.Second, func() error {
		return d.owner.Command(binary("portcullis"), "set", "--coordinator", address,
			"--workload-owner-key", d.path("workload-owner.pem"), "--manifest", d.path("manifest.json")).Run()
	}); err != nil {
		return fmt.Errorf("set the manifest: %w", err)
	}
	return d.ownerRuns(ctx, "verify", "--coordinator", address, "--manifest", d.path("manifest.json"), "--output", d.path("verified"),
		"--yaml", d.path("pods.yaml"))
}

// powerOn gives each machine the image's disk, its pod's initdata, and the disk that plays its TEE.
func (d *demo) powerOn(ctx context.Context) error {
	for _, name := range []string{billing, web} {
		document, err := d.document(name)
		if err != nil {
			return err
		}
		data, err := initdata.Disk(document)
		if err != nil {
			return err
		}
		tee, err := d.world.Disk(d.measurement, initdata.Digest(document))
		if err != nil {
			return err
		}
		disks := []string{d.path(name + ".initdata"), d.path(name + ".tee")}
		for i, content := range [][]byte{data, tee} {
			if err := os.WriteFile(disks[i], content, 0o600); err != nil {
				return err
			}
		}
		m, err := vm.Start(ctx, d.lab, vm.Spec{Name: name, Image: d.image, Way: vm.Direct, Disks: disks, Dir: d.run})
		if err != nil {
			return err
		}
		d.guests = append(d.guests, &guest{Machine: m, name: name, watch: vm.Knocking(d.owner, m.Addresses(), doors...)})
		d.dns.Set(name+"-svc", m.IPv4, m.IPv6)
		say("%s: %s and %s, HOSTDATA %s", name, m.IPv4, m.IPv6, initdata.Digest(document))
	}
	return nil
}

// doors are what is knocked at, in plaintext.
var doors = []vm.Door{{Transport: "tcp", Port: 8080}, {Transport: "tcp", Port: 15006}, {Transport: "tcp", Port: 22}, {Transport: "udp", Port: 53}}

func (d *demo) boot(ctx context.Context) error {
	for _, g := range d.guests {
		if err := g.AwaitAgent(ctx); err != nil {
			return err
		}
		conn, err := g.Agent(ctx)
		if err != nil {
			return err
		}
		g.agent = kata.Dial(conn)
		if err := g.agent.Check(ctx); err != nil {
			return err
		}
		e, err := g.agent.Show(ctx, order.Units()...)
		if err != nil {
			return err
		}
		say("%s: the agent answers %.1f s after power-on; %s", g.name, time.Since(g.Began).Seconds(), strings.Join(e.Pod, ", "))
		faults, times := order.Faults(e)
		d.table.Add(g.name+": gate, initdata, agent, target, by the guest's clock", "-", "in this order", strings.Join(append(faults, times), "; "),
			len(faults) == 0)
	}
	return nil
}

func (d *demo) start(ctx context.Context) error {
	for _, g := range d.guests {
		if err := g.agent.Start(ctx, kata.Pod{
			Name: g.name, MAC: g.MAC, Addresses: g.Prefixes(), Gateway: netlab.Gateway4,
			Servers: []string{"nameserver " + netlab.Gateway4.String(), "options ndots:1"},
		}); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
		for _, c := range d.pods[g.name].Spec.Containers {
			volumes := map[string]string{}
			for _, m := range c.VolumeMounts {
				volumes[m.Name] = m.MountPath
			}
			args := append([]string{"/usr/bin/kata-agent"}, c.Args...)
			if err := g.agent.Run(ctx, c.Name, volumes, args...); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
			say("%s: container %s: %s", g.name, c.Name, strings.Join(c.Args, " "))
		}
	}
	return nil
}

// ownerRuns runs portcullis on the owner's machine and shows its output.
func (d *demo) ownerRuns(ctx context.Context, args ...string) error {
	say("$ portcullis %s", strings.ReplaceAll(strings.Join(args, " "), d.out+"/", ""))
	out, err := d.owner.Command(binary("portcullis"), args...).CombinedOutput()
	for line := range strings.Lines(strings.TrimSpace(string(out))) {
		say("%s", strings.TrimRight(strings.ReplaceAll(line, d.out+"/", ""), "\n"))
	}
	return errors.Join(err, ctx.Err())
}

// until calls f until it succeeds.
func until(ctx context.Context, patience time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
