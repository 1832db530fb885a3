// Command demo-vm shows one mesh of two podVMs that are virtual machines: annotated YAML becomes measured initdata, each machine boots the
// podVM's image from its kernel to its agent, services of the image get certificates from a Coordinator outside, and the
// workloads speak mutual TLS through their own Envoys. The TEE is pretended, by a disk; everything else is as it is for use. It exits 1 when
// any check fails, and leaves nothing behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/podvm/vm"
)

// deadline bounds everything. Without KVM a run takes some two minutes.
const deadline = 15 * time.Minute

func main() {
	netlab.Enter()
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "demo-vm: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	image := flag.String("image", "bin/podvm/simulated", "the folder of an image with a pretended TEE")
	keep := flag.String("keep", "", "a folder to leave YAML, manifest, consoles and logs in")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	out, err := os.MkdirTemp("", "podvm-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(out)
	d, err := newDemo(out, *image)
	if err == nil {
		err = d.steps(ctx)
		d.close()
	}
	if *keep != "" {
		if kept := os.CopyFS(*keep, os.DirFS(out)); kept != nil {
			return kept
		}
		fmt.Fprintf(os.Stderr, "artefacts are in %s\n", *keep)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "demo-vm: make demo-vm KEEP=1 leaves consoles and logs in demo/vm")
	}
	return err
}

func (d *demo) steps(ctx context.Context) error {
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"generate --placement guest: the mesh's configuration goes into each pod's measured initdata", d.generate},
		{"coordinator: outside these machines; its manifest is set, and verified", d.coordinate},
		{"power on: two machines, each with the image's disk, its pod's initdata, and a pretended TEE; somebody knocks from now on", d.powerOn},
		{"boot: the gate, the initdata, the agent (" + vm.Accelerator() + ")", d.boot},
		{"start: what Kata's runtime asks of the agents: network, sandbox, containers", d.start},
		{"mesh: certificates, Envoys, and the gate lifted for them", d.awaitMesh},
		{"calls: who may talk to whom", d.checkCalls},
		{"memory: what the mesh costs a guest, idle", d.checkMemory},
	}
	began := time.Now()
	for i, s := range steps {
		fmt.Printf("\n[%d/%d] %s\n", i+1, len(steps), s.title)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return d.table.Print(time.Since(began))
}

func say(format string, args ...any) { fmt.Printf("      "+format+"\n", args...) }

// binary is the path of a program that was built beside this one.
func binary(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
