package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/cmd/internal/command"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/simtee"
)

// TestMain enters network namespaces of this test's own: the socket's name is fixed.
func TestMain(m *testing.M) {
	commands := map[string]func(){"podvm-attest": main, "pretended": pretended}
	if commands[filepath.Base(os.Args[0])] == nil {
		netlab.Enter()
	}
	testscript.Main(m, commands)
}

// pretended is podvm-attest with a pretended TEE behind it.
func pretended() {
	command.Main("pretended", func(ctx context.Context, _ []string) error {
		world, err := simtee.New(simtee.PublishedKeys())
		if err != nil {
			return err
		}
		return serve(ctx, func() (attestation.Issuer, error) {
			return world.Machine(simtee.Measurement{1}, [32]byte{1}), nil
		})
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: exits CODE COMMAND...")
				}
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
					ts.Fatalf("%s: exit code %d, want %d", strings.Join(args[1:], " "), got, want)
				}
			},
		},
		Condition: func(condition string) (bool, error) {
			if condition != "tee" {
				return false, fmt.Errorf("unknown condition %q", condition)
			}
			_, err := evidence.Hardware(evidence.Auto)
			return err == nil, nil
		},
	})
}

// start starts a program with the given sockets as systemd passes them, until the test ends.
func start(t *testing.T, name string, sockets ...*os.File) *program {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	arguments := []string{path}
	environment := append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	if sockets != nil {
		// LISTEN_PID is the process's own: a shell sets it and becomes the program, as systemd does.
		arguments = []string{"/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, path}
		environment = append(environment, fmt.Sprintf("LISTEN_FDS=%d", len(sockets)))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	p := &program{cmd: exec.CommandContext(ctx, arguments[0], arguments[1:]...)}
	p.cmd.Env, p.cmd.ExtraFiles, p.cmd.Stderr = environment, sockets, &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// A program is one that runs, and what it writes.
type program struct {
	cmd    *exec.Cmd
	stderr strings.Builder
}

// stop ends the program as systemd does.
func (p *program) stop() (stderr string, err error) {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return p.stderr.String(), err
	}
	return p.wait()
}

func (p *program) wait() (stderr string, err error) {
	err = p.cmd.Wait()
	return p.stderr.String(), err
}

func issue(t *testing.T) error {
	t.Helper()
	issuer, err := evidence.NewIssuer(evidence.FromSocket)
	if err != nil {
		return err
	}
	e, err := issuer.Issue(t.Context(), attestation.NewReportData("test"))
	if err == nil && (e.Platform != attestation.Simulated || len(e.Report) == 0) {
		err = fmt.Errorf("got %+v", e)
	}
	return err
}

// A program that ended at once would be started again by those who wait, until systemd gives the socket up.
func TestWithoutATEEWhoAsksIsToldWhy(t *testing.T) {
	if _, err := evidence.Hardware(evidence.Auto); err == nil {
		t.Skip("SKIPPED: this machine has a TEE")
	}
	socket, file := listen(t)
	defer socket.Close()
	p := start(t, "podvm-attest", file)
	for range 3 {
		err := issue(t)
		if err == nil || !strings.Contains(err.Error(), "it answered: no source of evidence \"auto\" found: looked for /sys/kernel") {
			t.Errorf("got %v", err)
		}
	}
	if stderr, err := p.stop(); err != nil || !strings.Contains(stderr, "there is no evidence to serve") {
		t.Errorf("it ended with %v and wrote %q", err, stderr)
	}
}

// listen makes the socket and what systemd passes of it.
func listen(t *testing.T) (net.Listener, *os.File) {
	t.Helper()
	socket, err := net.Listen("unix", evidence.Socket)
	if err != nil {
		t.Fatal(err)
	}
	file, err := socket.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return socket, file
}

// systemd's socket is there before the program, and after it: who connects in between waits, and is served by the next one.
func TestSystemdsSocketIsTaken(t *testing.T) {
	socket, file := listen(t)
	defer socket.Close()
	for range 2 {
		p := start(t, "pretended", file)
		if err := issue(t); err != nil {
			t.Error(err)
		}
		stderr, err := p.stop()
		if err != nil || !strings.Contains(stderr, `"socket":"@podvm-attest"`) {
			t.Errorf("it ended with %v and wrote %q", err, stderr)
		}
	}
}

func TestWithoutSystemdItListensItself(t *testing.T) {
	p := start(t, "pretended")
	deadline := time.Now().Add(20 * time.Second)
	for err := issue(t); err != nil; err = issue(t) {
		if _, ok := errors.AsType[*evidence.NotFoundError](err); !ok || time.Now().After(deadline) {
			t.Error(err)
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if stderr, err := p.stop(); err != nil {
		t.Errorf("it ended with %v and wrote %q", err, stderr)
	}
}

func TestWhatSystemdPassesMustBeTheSocket(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	unix, err := net.Listen("unix", "@another")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	tcpFile, err1 := tcp.(*net.TCPListener).File()
	unixFile, err2 := unix.(*net.UnixListener).File()
	null, err3 := os.Open(os.DevNull)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{tcpFile, unixFile, null} {
		defer f.Close()
	}
	for name, tc := range map[string]struct {
		sockets []*os.File
		fault   string
	}{
		"a TCP socket": {[]*os.File{tcpFile}, "is a tcp socket, want unix"},
		"two sockets":  {[]*os.File{unixFile, unixFile}, "LISTEN_FDS has 2 sockets"},
		"no socket":    {[]*os.File{null}, "want one that listens"},
	} {
		stderr, err := start(t, "pretended", tc.sockets...).wait()
		if err == nil || !strings.Contains(stderr, tc.fault) {
			t.Errorf("%s: it ended with %v and wrote %q, want %q", name, err, stderr, tc.fault)
		}
	}
}
