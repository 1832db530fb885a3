// Command demo shows Portcullis whole, on one machine: annotated Kubernetes YAML becomes an injected YAML and a manifest, a
// Coordinator is set and verified, each pod runs in a pretended podVM behind its guard, and a table of real connections
// says what was expected and what was seen. It exits 1 when any check fails, and leaves nothing behind.
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
)

// deadline bounds the whole demo. A run takes some ten seconds.
const deadline = 3 * time.Minute

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--prove-checks" {
		if err := proveChecks(); err != nil {
			fmt.Fprintf(os.Stderr, "demo: %v\n", err)
			os.Exit(1)
		}
		return
	}
	netlab.Enter()
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	keep := flag.Bool("keep", false, "leave YAML, manifest, certificates and logs in demo/out")
	broken := flag.String("break", "", "break one thing on purpose, to see its check fail: "+sabotageNames())
	layouts := flag.String("images", "", "run Initializer, mesh proxy and Coordinator from the OCI images in this folder, such as bin/oci")
	flag.Bool("prove-checks", false, "run once with each thing broken and want its checks to fail; takes no other flag")
	flag.Parse()
	if flag.NArg() > 0 || !knownSabotage(*broken) {
		flag.Usage()
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	out, err := os.MkdirTemp("", "portcullis-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(out)
	d, err := newDemo(out, *broken)
	if err == nil && *layouts != "" {
		d.roots, err = unpackImages(*layouts)
		defer os.RemoveAll(d.roots)
	}
	if err == nil {
		err = d.run(ctx)
	}
	if *keep {
		if kept := keepArtefacts(out); kept != nil {
			return kept
		}
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "demo: make demo KEEP=1 leaves all logs in demo/out")
	}
	return err
}

func keepArtefacts(out string) error {
	const kept = "demo/out"
	if err := os.RemoveAll(kept); err != nil {
		return err
	}
	if err := os.CopyFS(kept, os.DirFS(out)); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "artefacts are in %s\n", kept)
	return nil
}

// run is the demo, in the order in which a user meets the parts.
func (d *demo) run(ctx context.Context) error {
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"generate: annotated YAML becomes injected YAML and manifest.json", d.generate},
		{"coordinator: a podVM with its guard up, an empty store, and no trust in anyone", d.startCoordinator},
		{"set: the workload owner attests the Coordinator, signs the manifest and hands it over", d.set},
		{"verify: the data owner checks evidence and history, pins mesh-ca.pem and root-ca.pem, and reads report.html", d.verify},
		{"gate: a host that starts workloads first, or never starts the mesh, gets nothing out of them", d.checkGate},
		{"pods: each in its podVM: guard, Initializer, mesh proxy with Envoy, workload", d.startPods},
		{"mesh: who may talk to whom", d.checkMesh},
		{"strangers: a pod of another Coordinator, and a podVM with another measurement", d.checkStrangers},
		{"failure: an Envoy is killed, and its supervisor stopped", d.checkFailure},
		{"recovery: the Coordinator is killed, and with it the only copy of the seed; its owner gives it back", d.checkRecovery},
		{"secrets: none is in what a host collects", d.checkSecrets},
	}
	began := time.Now()
	for i, s := range steps {
		before := len(d.table)
		fmt.Printf("\n[%d/%d] %s\n", i+1, len(steps), s.title)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
		if made := len(d.table) - before; made > 0 {
			say("%d checks made", made)
		}
	}
	return d.table.Print(time.Since(began))
}

func say(format string, args ...any) { fmt.Printf("      "+format+"\n", args...) }

// binary is the path of a program that was built beside the demo.
func binary(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
