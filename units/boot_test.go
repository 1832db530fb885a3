package units_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An outcome is what became of a boot.
type outcome string

const (
	closed   outcome = "the agent started behind a closed gate"
	opened   outcome = "the agent started, and the gate was open"
	powerOff outcome = "the machine went off without the agent"
	noAgent  outcome = "the boot came to its end without the agent"
)

// standInAgent notes how it finds the gate at its start and what systemd knows of the order, and ends the boot.
const standInAgent = `#!/bin/sh
exec >/evidence/started 2>&1
podvm-guard verify
echo root=$?
echo root.evidence=$(/usr/bin/ask)
if [ -e /run/netns/podns ]; then
	ip netns exec podns podvm-guard verify
	echo podns=$?
	echo podns.evidence=$(ip netns exec podns /usr/bin/ask)
fi
for unit in podvm-guard.service kata-agent.service network-pre.target sysinit.target; do
	for time in ExecMainExit ExecMainStart ActiveEnter; do
		echo $unit.$time=$(systemctl show --value --property ${time}TimestampMonotonic $unit)
	done
done
mv /evidence/started /evidence/complete
exec systemctl poweroff --force --force
`

// asker asks for evidence as a container does, and prints the answer.
const asker = `#!/usr/bin/python3
import base64, json, socket
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
try:
    s.connect("\0podvm-attest")
    s.sendall(json.dumps({"reportData": base64.b64encode(b"x" * 64).decode()}).encode() + b"\n")
    print(s.makefile().readline().strip() or "nothing")
except OSError as e:
    print(e)
`

// observer runs when the agent did or did not start, and ends a boot that it did not start in.
const observer = `[Unit]
Description=Observer of the boot
DefaultDependencies=no
After=kata-agent.service agent-protocol-forwarder.service

[Service]
ExecStart=/usr/bin/observe
`

const observerProgram = `#!/bin/sh
started() { [ "$(systemctl show --value --property ActiveEnterTimestampMonotonic "$1")" != 0 ]; }
started kata-agent.service && exit
started agent-protocol-forwarder.service && echo >/evidence/forwarder
echo >/evidence/no-agent
exec systemctl poweroff --force --force
`

const bootDeadline = 30 * time.Second

// With systemd as PID 1: the image as baked comes up behind its gate, and no mutation comes up without one unless all that
// could hold it is gone. Those that do come up show that the stand-in agent can see an open gate.
func TestBoot(t *testing.T) {
	needSystemd(t)
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: this needs root on the machine: systemd as PID 1 wants a cgroup of its own, and a root of overlays")
	}
	guardBinary, attestBinary := build(t, "podvm-guard"), build(t, "podvm-attest")
	cases := mutations
	for _, p := range placements {
		cases = append(cases, mutation{name: "as baked", of: p, make: func(*image) {}, boot: closed})
	}
	for _, m := range cases {
		if m.boot == "" {
			continue
		}
		t.Run(m.of.name+"/"+m.name, func(t *testing.T) {
			t.Parallel()
			im := bake(t, m.of)
			im.programs[guardProgram], im.programs[attestProgram] = guardBinary, attestBinary
			m.make(im)
			b := im.boot(t)
			t.Logf("%s, after %v", b.outcome, b.took.Round(10*time.Millisecond))
			if b.outcome != m.boot {
				t.Errorf("%s; want: %s", b.outcome, m.boot)
			}
			if b.outcome == closed {
				b.checkOrder(t)
				b.checkEvidence(t, cmp.Or(m.evidence, requested))
			}
			if t.Failed() {
				t.Logf("the agent's notes:\n%s\nthe console:\n%s", b.notes, b.console)
			}
		})
	}
}

// A boot is one life of a pretended podVM.
type boot struct {
	of      placement
	outcome outcome
	took    time.Duration
	notes   map[string]string // the agent's
	console string
}

// time is when something happened, after the start of the machine.
func (b *boot) time(t *testing.T, event string) time.Duration {
	t.Helper()
	µs, err := strconv.ParseInt(b.notes[event], 10, 64)
	if err != nil || µs == 0 {
		t.Fatalf("the notes have no time for %s: %q", event, b.notes[event])
	}
	return time.Duration(µs) * time.Microsecond
}

func (b *boot) checkOrder(t *testing.T) {
	at := func(event string) time.Duration { return b.time(t, event) }
	done := at(guard + ".ExecMainExit")
	later := []string{agent + ".ExecMainStart"}
	switch b.of.name {
	case kata.name:
		later = append(later, "network-pre.target.ActiveEnter", "sysinit.target.ActiveEnter")
	case peerPods.name:
		if b.notes["root"] != "3" {
			t.Errorf("podvm-guard verify exits with %s in the root namespace, which is none of the guard's: want 3", b.notes["root"])
		}
	}
	for _, event := range later {
		if ahead := at(event) - done; ahead < 0 {
			t.Errorf("the gate was down %v after %s", -ahead, event)
		}
	}
}

// What somebody is told who asks for evidence when the agent starts.
const (
	// The pretended configfs-tsm lets podvm-attest, in its sandbox, make a request.
	requested = "/generation"
	readOnly  = "read-only file system"
	nobody    = "Connection refused"
)

// checkEvidence sees what is told where the pod's containers are, and that nobody is told anything elsewhere.
func (b *boot) checkEvidence(t *testing.T, want string) {
	t.Helper()
	if got := b.notes[b.where()+".evidence"]; !strings.Contains(got, want) {
		t.Errorf("in %s, who asks for evidence is told %q, want %q in it", b.where(), got, want)
	}
	if got := b.notes["root.evidence"]; b.where() != "root" && want == requested && !strings.Contains(got, nobody) {
		t.Errorf("in the root namespace, where no container is, who asks for evidence is told %q", got)
	}
}

// where is the network namespace of the containers.
func (b *boot) where() string {
	return map[string]string{kata.name: "root", peerPods.name: "podns"}[b.of.name]
}

// boot boots the image, and says what became of it.
func (im *image) boot(t *testing.T) *boot {
	t.Helper()
	im.files["observer.service"], im.programs["usr/bin/observe"] = observer, observerProgram
	im.links[im.target+".wants/observer.service"] = "../observer.service"
	// What kata puts on the kernel's command line.
	status, took, said, evidence := im.live(t, "systemd.mask=systemd-networkd.service", "systemd.mask=systemd-networkd.socket")
	b := &boot{of: im.placement, took: took, console: said, notes: readNotes(t, evidence)}
	noted := func(file string) bool {
		_, err := os.Stat(filepath.Join(evidence, file))
		return err == nil
	}
	if noted("forwarder") {
		t.Error("the forwarder started without the agent")
	}
	switch {
	case b.notes[b.where()] == "0":
		b.outcome = closed
	case b.notes[b.where()] == "3":
		b.outcome = opened
	case noted("complete") || noted("started"):
		t.Fatalf("the agent started and did not say how it found the gate:\n%s\n%s", b.notes, said)
	case noted("no-agent"):
		b.outcome = noAgent
	// reboot(2) in a PID namespace ends its PID 1 by a signal: SIGINT for "off".
	case status.Signaled() && status.Signal() == syscall.SIGINT:
		b.outcome = powerOff
	default: // PID 1 gave up
		b.outcome = noAgent
	}
	return b
}

// live boots the image: this machine's systemd is PID 1 of namespaces of its own, on a read-only root made of the image and this
// machine's /usr. evidence is the folder that the image's programs leave notes in.
func (im *image) live(t *testing.T, words ...string) (status syscall.WaitStatus, took time.Duration, said, evidence string) {
	t.Helper()
	// Not t.TempDir: its name has the test's, and an overlay's options have commas and colons of their own.
	dir, err := os.MkdirTemp("", "podvm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	console, terminal := openTerminal(t)
	spec := rootSpec{
		Image: filepath.Join(dir, "image"), Root: filepath.Join(dir, "root"), Evidence: filepath.Join(dir, "evidence"),
		Console: terminal.Name(),
		// In a container, systemd takes its arguments for the kernel's command line.
		CommandLine: append([]string{"systemd.unit=" + im.target}, words...),
	}
	im.write(t, spec.Image)
	if err := errors.Join(os.Mkdir(spec.Root, 0o755), os.Mkdir(spec.Evidence, 0o755)); err != nil {
		t.Fatal(err)
	}
	status, took, said = run(t, spec, console, terminal)
	if strings.Contains(said, pid1Failed) {
		t.Fatalf("no systemd:\n%s", said)
	}
	return status, took, said, spec.Evidence
}

// readNotes reads what the programs of a boot noted, NAME=value a line. None are a boot that did not come to it.
func readNotes(t *testing.T, evidence string) map[string]string {
	t.Helper()
	complete, err := os.ReadFile(filepath.Join(evidence, "complete"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	notes := map[string]string{}
	for line := range strings.Lines(string(complete)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		notes[name] = value
	}
	return notes
}

// run is one life of PID 1.
func run(t *testing.T, spec rootSpec, console, terminal *os.File) (status syscall.WaitStatus, took time.Duration, said string) {
	t.Helper()
	arg, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Args = []string{pid1Role, string(arg)}
	cmd.Stdout, cmd.Stderr = terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UseCgroupFD: true, CgroupFD: int(makeCgroup(t).Fd()),
		Pdeathsig: syscall.SIGKILL,
	}
	runtime.LockOSThread() // the death signal is about this thread
	defer runtime.UnlockOSThread()
	start := time.Now()
	if err := cmd.Start(); errors.Is(err, syscall.EPERM) {
		t.Skipf("SKIPPED: this needs root's capabilities, to make namespaces: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	read := make(chan struct{})
	go func() {
		io.Copy(&out, console) // ends with an error when nobody holds the terminal any more
		close(read)
	}()
	cmd.Wait()
	took = time.Since(start)
	terminal.Close()
	<-read
	said = escapeSequences.ReplaceAllString(out.String(), "")
	if ctx.Err() != nil {
		t.Fatalf("the boot came to no end within %v:\n%s", bootDeadline, said)
	}
	return cmd.ProcessState.Sys().(syscall.WaitStatus), took, said
}

var escapeSequences = regexp.MustCompile("\x1b\\[[0-9;?:]*[A-Za-z]|\r")

// openTerminal makes what systemd takes for its console: it insists on a terminal.
func openTerminal(t *testing.T) (console, terminal *os.File) {
	t.Helper()
	console, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { console.Close() })
	n, err := unix.IoctlGetInt(int(console.Fd()), unix.TIOCGPTN)
	if err := errors.Join(err, unix.IoctlSetPointerInt(int(console.Fd()), unix.TIOCSPTLCK, 0)); err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return console, terminal
}

var cgroups atomic.Int32

// makeCgroup makes a cgroup for one boot. It is in the machine's own cgroup2: to mount another would change its options.
func makeCgroup(t *testing.T) *os.File {
	t.Helper()
	top := ""
	for line := range strings.Lines(readFile(t, "/proc/self/mountinfo")) {
		// ID parent major:minor root mountpoint options ... - type
		if f := strings.Fields(line); f[3] == "/" && strings.Contains(line, " - cgroup2 ") {
			top = f[4]
		}
	}
	if top == "" {
		t.Skip("SKIPPED: this needs a mounted cgroup2; run as root: mount -t cgroup2 cgroup2 DIRECTORY")
	}
	dir := filepath.Join(top, fmt.Sprintf("portcullis-%d-%d", os.Getpid(), cgroups.Add(1)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("SKIPPED: this needs root on the machine, to make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		// PID 1 has ended, and with it every process in there; the kernel may still be at it.
		deadline := time.Now().Add(10 * time.Second)
		for err := removeCgroup(dir); err != nil; err = removeCgroup(dir) {
			if time.Now().After(deadline) {
				t.Errorf("remove a boot's cgroup: %v", err)
				return
			}
			runtime.Gosched()
		}
	})
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeCgroup(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, os.Remove(dir))
}

// build returns a program that the image has.
func build(t *testing.T, name string) (program string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", file,
		"portcullis.dev/portcullis/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v:\n%s", err, out)
	}
	return readFile(t, file)
}
