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

// With systemd as PID 1: the image as baked comes up behind its gate, with the Coordinator where it is a service, and no mutation
// comes up without one unless all that could hold it is gone. Those that do come up show that the stand-in agent can see an open gate.
func TestBoot(t *testing.T) {
	needSystemd(t)
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: this needs root on the machine: systemd as PID 1 wants a cgroup of its own, and a root of overlays")
	}
	guardBinary, attestBinary, coordinatorBinary := build(t, "podvm-guard"), build(t, "podvm-attest"), build(t, "coordinator")
	cases := mutations
	for _, p := range placements {
		as := mutation{name: "as baked", of: p, make: func(*image) {}, boot: closed}
		if p.name == alone.name {
			as.boot = serves
		}
		cases = append(cases, as)
	}
	for _, m := range cases {
		if m.boot == "" {
			continue
		}
		t.Run(m.of.name+"/"+m.name, func(t *testing.T) {
			t.Parallel()
			im := bake(t, m.of)
			im.programs[guardProgram], im.programs[attestProgram] = guardBinary, attestBinary
			im.programs[coordinatorProgram] = coordinatorBinary
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
			if b.outcome == serves {
				b.checkOrder(t)
				b.checkVisit(t)
			}
			if t.Failed() {
				t.Logf("the notes:\n%s\nthe console:\n%s", b.notes, b.console)
			}
		})
	}
}

// A boot is one life of a pretended podVM.
type boot struct {
	of      placement
	outcome outcome
	took    time.Duration
	notes   map[string]string // the agent's, or the visitor's
	console string
}

func (b *boot) checkOrder(t *testing.T) {
	at := func(event string) time.Duration {
		µs, err := strconv.ParseInt(b.notes[event], 10, 64)
		if err != nil || µs == 0 {
			t.Fatalf("the agent's notes have no time for %s: %q", event, b.notes[event])
		}
		return time.Duration(µs) * time.Microsecond
	}
	done := at(guard + ".ExecMainExit")
	network := []string{"network-pre.target.ActiveEnter", "sysinit.target.ActiveEnter"}
	later := []string{agent + ".ExecMainStart"}
	switch b.of.name {
	case kata.name:
		later = append(later, network...)
	case alone.name:
		later = append(network, coordinator+".ExecMainStart")
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

// boot boots the image until its agent started, or will not.
func (im *image) boot(t *testing.T) *boot {
	t.Helper()
	if im.name == alone.name {
		return im.visit(t)
	}
	im.files["observer.service"], im.programs["usr/bin/observe"] = observer, observerProgram
	im.links[im.target+".wants/observer.service"] = "../observer.service"
	l := im.live(t)
	b := &boot{of: im.placement, took: l.took, console: l.console, notes: l.read("complete")}
	notes, complete := l.notes["complete"]
	noted := func(file string) bool {
		_, ok := l.notes[file]
		return ok
	}
	if noted("forwarder") {
		t.Error("the forwarder started without the agent")
	}
	switch {
	case complete && b.notes[b.where()] == "0":
		b.outcome = closed
	case complete && b.notes[b.where()] == "3":
		b.outcome = opened
	case complete || noted("started"):
		t.Fatalf("the agent started and did not say how it found the gate:\n%s\n%s", notes, l.console)
	case noted("no-agent"):
		b.outcome = noAgent
	case l.off:
		b.outcome = powerOff
	default: // PID 1 gave up
		b.outcome = noAgent
	}
	return b
}

// A life is what is left of a pretended podVM that is off.
type life struct {
	notes   map[string]string // what its programs wrote to /evidence, by file
	off     bool              // it was turned off; else PID 1 gave up
	took    time.Duration
	console string
}

// read returns the lines of a note that are name=value.
func (l life) read(note string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(l.notes[note]) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[name] = value
	}
	return values
}

// live boots the image until it is off: this machine's systemd is PID 1 of namespaces of its own, on a read-only root made of the image
// and this machine's /usr.
func (im *image) live(t *testing.T) life {
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
		Console: terminal.Name(), State: im.state,
		// What kata puts on the kernel's command line. In a container, systemd takes its arguments for that.
		CommandLine: []string{
			"systemd.unit=" + im.target, "systemd.mask=systemd-networkd.service", "systemd.mask=systemd-networkd.socket",
		},
	}
	im.write(t, spec.Image)
	if err := errors.Join(os.Mkdir(spec.Root, 0o755), os.Mkdir(spec.Evidence, 0o755)); err != nil {
		t.Fatal(err)
	}
	status, took, said := run(t, spec, console, terminal)
	if strings.Contains(said, pid1Failed) {
		t.Fatalf("no systemd:\n%s", said)
	}
	// reboot(2) in a PID namespace ends its PID 1 by a signal: SIGINT for "off".
	l := life{notes: map[string]string{}, off: status.Signaled() && status.Signal() == syscall.SIGINT, took: took, console: said}
	entries, err := os.ReadDir(spec.Evidence)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		l.notes[e.Name()] = readFile(t, filepath.Join(spec.Evidence, e.Name()))
	}
	return l
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
