package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/deploy"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/cluster"
	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/simtee"
)

var (
	measurement = simtee.Measurement{1}
	policy      = attestation.PolicyHash{1}
)

// The scripts share a network namespace of their own, with a TEE in it.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "coordinator" { // testscript runs this binary as the command, too
		netlab.Enter()
	}
	testscript.Main(suite{m}, map[string]func(){"coordinator": main})
}

// suite stops the test cluster after the tests, where one was started.
type suite struct{ m *testing.M }

func (s suite) Run() int { return cluster.Run(s.m) }

func TestScripts(t *testing.T) { runScripts(t, "testdata/script", nil) }

// The Coordinator is what it is in a pod of the StatefulSet: it finds the API server by the service account that is mounted into the
// pod, and may do what the printed Role allows.
func TestScriptsInACluster(t *testing.T) {
	c := cluster.Shared(t)
	runScripts(t, "testdata/cluster", func(env *testscript.Env) error {
		for name, value := range deployed(t, c) {
			env.Setenv(name, value)
		}
		peersAt(t, "127.0.0.1", "127.0.0.2", "127.0.0.3")
		env.Setenv("ADMIN", c.Kubeconfig())
		return nil
	})
}

// peersName is what replicas know each other by, a headless Service.
const peersName = "coordinator-peers"

// peersAt has the name lead to addresses of the loopback, in the test's mount namespace.
func peersAt(t *testing.T, addresses ...string) {
	t.Helper()
	text := "127.0.0.1 localhost\n"
	for _, address := range addresses {
		text += address + " " + peersName + "\n"
	}
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("put the headless Service's addresses into /etc/hosts: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount("/etc/hosts", unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// deployed applies the printed YAML in a namespace of its own, mounts the service account, and returns the environment of a pod,
// and the arguments in the YAML as STORE and PEERS.
func deployed(t *testing.T, c *cluster.Cluster) map[string]string {
	t.Helper()
	namespace := c.Namespace(t)
	var yaml strings.Builder
	err := deploy.Coordinator{
		Namespace: namespace, Image: "coordinator", RuntimeClass: "kata-qemu-snp", Replicas: 3, Store: deploy.StoreKubernetes,
	}.Write(&yaml)
	if err != nil {
		t.Fatal(err)
	}
	c.MustKubectl(t, yaml.String(), "apply", "-f", "-")
	account := c.ServiceAccount(t, namespace, "coordinator")
	ca, err := os.ReadFile(account.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	server, err := url.Parse(account.Host)
	if err != nil {
		t.Fatal(err)
	}
	const mounted = "/var/run/secrets/kubernetes.io/serviceaccount" // netlab gives the test a /run of its own
	if err := errors.Join(
		os.MkdirAll(mounted, 0o700),
		os.WriteFile(mounted+"/token", []byte(account.BearerToken), 0o600),
		os.WriteFile(mounted+"/ca.crt", ca, 0o600),
		os.WriteFile(mounted+"/namespace", []byte(namespace), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	argument := func(name string) string {
		_, value, _ := strings.Cut(yaml.String(), "- --"+name+"=")
		value, _, _ = strings.Cut(value, "\n")
		return "--" + name + "=" + value
	}
	return map[string]string{
		"STORE": argument("store"), "PEERS": argument("peers"),
		"KUBERNETES_SERVICE_HOST": server.Hostname(), "KUBERNETES_SERVICE_PORT": server.Port(), "NAMESPACE": namespace,
	}
}

// serveWorld is the guest's TEE, as the Coordinator's pod has it, while the test runs.
func serveWorld(t *testing.T) *simtee.World {
	t.Helper()
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	serveEvidence(t, world.Machine(measurement, policy))
	return world
}

func runScripts(t *testing.T, dir string, prepare func(*testscript.Env) error) {
	world := serveWorld(t)
	key, err := pki.NewSeedshareKey()
	if err != nil {
		t.Fatal(err)
	}
	owner, err := manifest.NewSeedshareOwner(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	m := manifest.Manifest{
		Policies:           map[attestation.PolicyHash]manifest.Policy{policy: {Role: manifest.RoleCoordinator}},
		ReferenceValues:    manifest.ReferenceValues{Simulated: []simulated.ReferenceValue{world.Reference(measurement)}},
		SeedshareOwnerKeys: []manifest.SeedshareOwner{owner},
		SeedshareThreshold: 1,
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Setup: func(env *testscript.Env) error {
			if prepare != nil {
				if err := prepare(env); err != nil {
					return err
				}
			}
			return os.WriteFile(filepath.Join(env.WorkDir, "manifest.json"), text, 0o644)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":  exits,
			"await":  await,
			"occupy": occupy,
			"arm":    arm,
			"guard":  guardIs,
			"logged": logged,
			"set":    set,
			"recover": func(ts *testscript.TestScript, _ bool, args []string) {
				recoverSeed(ts, key, args)
			},
		},
		RequireExplicitExec: true,
	})
}

// serveEvidence is the podVM's own service, until the test ends.
func serveEvidence(t *testing.T, machine attestation.Issuer) {
	t.Helper()
	listener, err := evidence.Listen(evidence.Socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- evidence.Serve(ctx, listener, machine) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("serve evidence: %v", err)
		}
	})
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

// await ADDRESS PATH STATUS TEXT: the URL answers with that status, and that text in it.
func await(ts *testscript.TestScript, _ bool, args []string) {
	url := "http://" + args[0] + args[1]
	deadline := time.Now().Add(20 * time.Second)
	for {
		got, err := fetch(url)
		if err == nil && strings.HasPrefix(got, args[2]+" ") && strings.Contains(got, args[3]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s answers %q, %v", url, got, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func fetch(url string) (string, error) {
	resp, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, body), err
}

// occupy ADDRESS: somebody else listens there until the script ends.
func occupy(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", args[0])
	ts.Check(err)
	ts.Defer(func() { l.Close() })
}

// arm: the guard is closed, as at boot, until the script ends.
func arm(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(guard.Arm(context.Background()))
	ts.Defer(func() {
		if err := guard.Open(context.Background()); err != nil {
			ts.Logf("open the guard: %v", err) // a script that failed may have left a Coordinator, which closes it
		}
	})
}

// logged FILE REGEXP: a running Coordinator's log has such a line.
func logged(ts *testscript.TestScript, _ bool, args []string) {
	line := regexp.MustCompile(args[1])
	deadline := time.Now().Add(20 * time.Second)
	for !line.MatchString(ts.ReadFile(args[0])) {
		if time.Now().After(deadline) {
			ts.Fatalf("%s has no line %s:\n%s", args[0], line, ts.ReadFile(args[0]))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// guard STATE [PORTS]: the live table is in that state, with those ports in plaintext.
func guardIs(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		status, err := guard.Inspect(context.Background())
		ts.Check(err)
		ports, err := json.Marshal(status.Ports)
		ts.Check(err)
		if string(status.State) == args[0] && (len(args) == 1 || string(ports) == args[1]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the guard is %s %s, want %s", status.State, ports, args)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// set ADDRESS FILE: the Coordinator gets its first manifest, and verifies under it. Its seed share is in share.json.
func set(ts *testscript.TestScript, _ bool, args []string) {
	c, trusted := coordinatorOf(ts, args)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := c.Set(ctx, api.SetRequest{Manifest: trusted.Text(), Previous: make([]byte, 32)})
	ts.Check(err)
	nonce := make([]byte, api.NonceSize)
	resp, err := c.Attest(ctx, nonce)
	ts.Check(err)
	v, err := api.VerifyCoordinator(ctx, resp, nonce, trusted, manifest.ValidatorOptions{})
	ts.Check(err)
	share, err := json.Marshal(v.Shares[0])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("share.json"), share, 0o644))
}

// recover ADDRESS FILE: the Coordinator, which waits to go on from that manifest, gets the share in share.json.
func recoverSeed(ts *testscript.TestScript, key *pki.SeedshareKey, args []string) {
	c, trusted := coordinatorOf(ts, args)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	nonce := make([]byte, api.NonceSize)
	resp, err := c.AttestRecovery(ctx, nonce)
	ts.Check(err)
	v, err := api.VerifyRecovery(ctx, resp, nonce, trusted, manifest.ValidatorOptions{})
	ts.Check(err)
	var sealed api.SealedShare
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("share.json")), &sealed))
	share, err := sealed.Open(key.HPKE)
	ts.Check(err)
	req, err := api.NewRecoverRequest(share, key.Signing, v)
	ts.Check(err)
	_, err = c.Recover(ctx, *req)
	ts.Check(err)
}

func coordinatorOf(ts *testscript.TestScript, args []string) (*api.Client, *manifest.Manifest) {
	trusted, err := manifest.Parse([]byte(ts.ReadFile(args[1])))
	ts.Check(err)
	c, err := api.New(args[0])
	ts.Check(err)
	return c, trusted
}
