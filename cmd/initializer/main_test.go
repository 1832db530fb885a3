package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/cli"
	"portcullis.dev/portcullis/cmd/internal/command"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/simtee"
)

var (
	measurement = simtee.Measurement{1}
	policy      = attestation.PolicyHash{1}
)

// The scripts share a network namespace of their own, with a TEE in it and Coordinators.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); name != "initializer" && name != "portcullis" { // testscript runs this binary as the command, too
		netlab.Enter()
	}
	testscript.Main(m, map[string]func(){
		"initializer": main,
		"portcullis": func() {
			command.Main("portcullis", func(ctx context.Context, args []string) error {
				return cli.Run(ctx, args, cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
			})
		},
	})
}

func TestScripts(t *testing.T) {
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := evidence.Listen(evidence.Socket)
	if err != nil {
		t.Fatal(err)
	}
	background(t, func(ctx context.Context) error {
		return evidence.Serve(ctx, listener, world.Machine(measurement, policy))
	})
	good := startCoordinator(t, world, measurement)
	strict := startCoordinator(t, world, simtee.Measurement{2})
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("COORDINATOR", good)
			env.Setenv("STRICT", strict) // its manifest knows another image
			return os.Mkdir(filepath.Join(env.WorkDir, "volume"), 0o755)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits,
			"ready": ready,
			"await": await,
			"arm":   func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(guard.Arm(context.Background())) },
			"guard": guardIs,
		},
		RequireExplicitExec: true,
	})
}

// background runs f until the test ends, and sees it end well.
func background(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// startCoordinator starts one whose manifest admits our pod, if it was launched with that measurement.
func startCoordinator(t *testing.T, world *simtee.World, wanted simtee.Measurement) (address string) {
	t.Helper()
	db, err := store.OpenBolt(filepath.Join(t.TempDir(), "coordinator.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	self := attestation.PolicyHash{2}
	c, err := coordinator.New(t.Context(), coordinator.Config{
		Store: db, Issuer: world.Machine(wanted, self), AllowSimulatedTEE: true, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	background(t, func(ctx context.Context) error { return c.Serve(ctx, listener) })
	san, err := pki.ParseSAN("web")
	if err != nil {
		t.Fatal(err)
	}
	m := manifest.Manifest{
		Policies: map[attestation.PolicyHash]manifest.Policy{
			self:   {Role: manifest.RoleCoordinator},
			policy: {SANs: []pki.SAN{san}, WorkloadSecretID: "shop"},
		},
		ReferenceValues: manifest.ReferenceValues{Simulated: []simulated.ReferenceValue{world.Reference(wanted)}},
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	client, err := api.New(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Set(t.Context(), api.SetRequest{Manifest: text, Previous: make([]byte, 32)}); err != nil {
		t.Fatal(err)
	}
	return listener.Addr().String()
}

// exits CODE PROGRAM [ARG...]: the program ends with that code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		got = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// ready DIR: the start-up probe succeeds, sooner or later.
func ready(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, func() error { return ts.Exec("initializer", "ready", "--dir", args[0]) })
}

// await FILE TEXT: a program that is running has written that text into the file.
func await(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, func() error {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && !strings.Contains(string(b), args[1]) {
			err = errors.New("it says: " + string(b))
		}
		return err
	})
}

// guard STATE: the live table is in that state.
func guardIs(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, func() error {
		status, err := guard.Inspect(context.Background())
		if err == nil && string(status.State) != args[0] {
			err = errors.New("the guard is " + string(status.State))
		}
		return err
	})
}

func eventually(ts *testscript.TestScript, f func() error) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v", err)
		}
	}
}
