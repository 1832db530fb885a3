package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/tests/simtee"
)

// Each script in testdata/pinned begins with what people deploy: the Coordinator's pod and a workload's. Its commands are
// initializer and portcullis, those of TestScripts, and
//
//	podvm MANIFEST          this guest is the workload's, as the manifest has it
//	coordinator MANIFEST    a new Coordinator answers at $COORDINATOR, as the pod that the manifest has for it
//	pin YAML FILE           write the Initializer's argument that holds the pin
func TestPinned(t *testing.T) {
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	values, err := json.Marshal(map[string]any{"Simulated": []any{world.Reference(measurement)}})
	if err != nil {
		t.Fatal(err)
	}
	// The host leads whoever asks for the Coordinator to one of its choice: the address stays.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	stop := func() {}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/pinned",
		Setup: func(env *testscript.Env) error {
			env.Setenv("COORDINATOR", address)
			env.Defer(func() { stop() })
			return os.WriteFile(filepath.Join(env.WorkDir, "values.json"), values, 0o644)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits,
			"ready": ready,
			"await": await,
			"pin":   writePin,
			"podvm": func(ts *testscript.TestScript, _ bool, args []string) {
				listener, err := evidence.Listen(evidence.Socket)
				ts.Check(err)
				for hash, policy := range readManifest(ts, args[0]).Policies {
					if policy.Role == manifest.RoleNone {
						ts.Defer(inBackground(ts, func(ctx context.Context) error {
							return evidence.Serve(ctx, listener, world.Machine(measurement, hash))
						}))
						return
					}
				}
				ts.Fatalf("the manifest has no workload")
			},
			"coordinator": func(ts *testscript.TestScript, _ bool, args []string) {
				stop()
				db, err := store.OpenBolt(filepath.Join(t.TempDir(), "coordinator.db"))
				ts.Check(err)
				c, err := coordinator.New(t.Context(), coordinator.Config{
					Store:             db,
					Issuer:            world.Machine(measurement, readManifest(ts, args[0]).CoordinatorPolicies()[0]),
					AllowSimulatedTEE: true,
					Log:               slog.New(slog.DiscardHandler),
				})
				ts.Check(err)
				listener, err := net.Listen("tcp", address)
				ts.Check(err)
				end := inBackground(ts, func(ctx context.Context) error { return c.Serve(ctx, listener) })
				stop = func() {
					end()
					ts.Check(db.Close())
					stop = func() {}
				}
			},
		},
		RequireExplicitExec: true,
	})
}

// inBackground runs f until the function it returns is called, which sees it end well.
func inBackground(ts *testscript.TestScript, f func(context.Context) error) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return func() {
		cancel()
		ts.Check(<-done)
	}
}

func readManifest(ts *testscript.TestScript, name string) *manifest.Manifest {
	m, err := manifest.Parse([]byte(ts.ReadFile(name)))
	ts.Check(err)
	return m
}

func writePin(ts *testscript.TestScript, _ bool, args []string) {
	var pod struct {
		Spec struct {
			InitContainers []struct{ Args []string } `yaml:"initContainers"`
		}
	}
	ts.Check(yaml.Unmarshal([]byte(ts.ReadFile(args[0])), &pod))
	for _, c := range pod.Spec.InitContainers {
		for _, arg := range c.Args {
			if strings.HasPrefix(arg, "--coordinator-pin=") {
				ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(arg), 0o644))
				return
			}
		}
	}
	ts.Fatalf("%s has no pin", args[0])
}
