package meshproxy_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/meshproxy/confine"
)

// What a taken-over Envoy would try. A prober is started in its place, by the same way, and as a control without
// confinement, where as root every attempt must succeed: so an attempt that cannot succeed anywhere proves nothing.

// proberSource tries what it is told and prints what came of it, as JSON. It speaks in system calls, as an exploit would.
const proberSource = `package main

import (
	"encoding/json"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

func socket(family, kind, protocol int) error {
	fd, err := syscall.Socket(family, kind, protocol)
	if err == nil {
		syscall.Close(fd)
	}
	return err
}

func call(trap, a, b, c uintptr) error {
	if _, _, errno := syscall.RawSyscall(trap, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

func main() {
	secret, outside, inside, abstract := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	parent, _ := strconv.Atoi(os.Args[5])
	results := map[string]string{}
	try := func(name string, err error) {
		results[name] = "ok"
		if err != nil {
			results[name] = err.Error()
		}
	}
	read := func(path string) error { _, err := os.ReadFile(path); return err }
	// what Envoy must be able to do
	try("may: a TCP socket", socket(syscall.AF_INET6, syscall.SOCK_STREAM, 0))
	try("may: a UDP socket", socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0))
	try("may: its own directory", read(inside))
	// and what not
	try("a packet socket", socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0))
	try("a raw IP socket", socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP))
	try("a raw IPv6 socket", socket(syscall.AF_INET6, syscall.SOCK_RAW, syscall.IPPROTO_ICMPV6))
	try("nftables", socket(syscall.AF_NETLINK, syscall.SOCK_RAW, 12))
	try("the Initializer's key", read(secret))
	try("a file elsewhere", os.WriteFile(outside, []byte("x"), 0o600))
	try("an abstract socket", func() error {
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		return syscall.Connect(fd, &syscall.SockaddrUnix{Name: abstract})
	}())
	try("a signal to another process", syscall.Kill(parent, 0))
	try("a new network namespace", call(syscall.SYS_UNSHARE, 0x40000000, 0, 0))
	try("a mount", func() error {
		none, target := []byte("none\x00"), []byte("/mnt\x00")
		kind := []byte("tmpfs\x00")
		_, _, errno := syscall.RawSyscall6(syscall.SYS_MOUNT, uintptr(unsafe.Pointer(&none[0])),
			uintptr(unsafe.Pointer(&target[0])), uintptr(unsafe.Pointer(&kind[0])), 0, 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	}())
	try("tracing", call(syscall.SYS_PTRACE, 16, uintptr(parent), 0)) // PTRACE_ATTACH
	call(syscall.SYS_PTRACE, 17, uintptr(parent), 0)
	try("a new process", func() error {
		p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		if err == nil {
			_, err = p.Wait()
		}
		return err
	}())
	json.NewEncoder(os.Stdout).Encode(results)
}
`

func TestATakenOverEnvoyCanDoNothingElse(t *testing.T) {
	if missing := confine.Available().Missing(); len(missing) > 0 {
		t.Skipf("THE CONFINEMENT WAS NOT TRIED: this kernel lacks %s", strings.Join(missing, ", "))
	}
	dir, err := os.MkdirTemp("/run", "confine")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	source := t.TempDir()
	if err := os.WriteFile(source+"/main.go", []byte(proberSource), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", dir+"/prober", source+"/main.go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, d := range []string{"envoy", "contrast", "elsewhere"} {
		if err := os.Mkdir(dir+"/"+d, 0o777); err != nil {
			t.Fatal(err)
		}
		os.Chmod(dir+"/"+d, 0o777) // Landlock, not the file's mode, is what is tried
	}
	for _, f := range []string{"/envoy/bootstrap", "/contrast/key.pem"} {
		if err := os.WriteFile(dir+f, []byte("secret"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The evidence socket of a podVM is an abstract one.
	abstract := "@" + filepath.Base(dir)
	l, err := net.Listen("unix", abstract)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	bystander := exec.Command("sleep", "60")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { bystander.Process.Kill(); bystander.Wait() }()
	arguments := []string{
		dir + "/contrast/key.pem", dir + "/elsewhere/file", dir + "/envoy/bootstrap", abstract, fmt.Sprint(bystander.Process.Pid),
	}

	run := func(cmd *exec.Cmd) map[string]string {
		t.Helper()
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		results := map[string]string{}
		if jsonErr := json.Unmarshal(out, &results); err != nil || jsonErr != nil || len(results) == 0 {
			t.Fatalf("the prober: %v, %v, %q", err, jsonErr, out)
		}
		return results
	}
	limits, err := confine.For(dir+"/prober", dir+"/envoy")
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := confine.Command(limits, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	confined := run(cmd) // as root, with every capability: no user id and no capability set helps the layers
	os.Remove(dir + "/elsewhere/file")
	// In a mount namespace of its own, since it does mount something.
	free := exec.Command(dir+"/prober", arguments...)
	free.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	control := run(free)
	for name, got := range confined {
		may := strings.HasPrefix(name, "may: ")
		switch {
		case control[name] != "ok":
			t.Errorf("control: without confinement, %s: %s", name, control[name])
		case may != (got == "ok"):
			t.Errorf("confined, %s: %s", name, got)
		}
	}
	if t.Failed() {
		return
	}
	for _, missing := range []func(*confine.Limits){
		func(l *confine.Limits) { l.Program = "/bin/true" },
		func(l *confine.Limits) { *l = confine.Limits{} },
	} {
		wrong := limits
		missing(&wrong)
		cmd, err := confine.Command(wrong, arguments...)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := cmd.Output(); err == nil && len(out) > 0 {
			t.Errorf("with the limits %+v the prober ran: %s", wrong, out)
		}
	}
}

// Every thread of the supervisor, not only the first, has what is meant, and Envoy is filtered.
func TestSupervisorKeepsOneCapabilityInEffect(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	p := newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady()
	const netAdmin, start, raw = "0000000000001000", "00000000000020e0", "0000000000002000"
	const within = "00000000000030e0" // netAdmin and start
	field := func(status []byte, name string) string {
		_, rest, _ := strings.Cut(string(status), "\n"+name+":")
		value, _, _ := strings.Cut(rest, "\n")
		return strings.TrimSpace(value)
	}
	// setpriv has become the mesh proxy
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.cmd.Process.Pid))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("the supervisor's threads: %v, %v", tasks, err)
	}
	starters := 0
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		effective, permitted := field(status, "CapEff"), field(status, "CapPrm")
		switch {
		case effective == netAdmin && permitted == within:
		case effective == start && permitted == start:
			starters++ // the one that starts and ends Envoys
		default:
			t.Errorf("%s: in effect %s, permitted %s", task, effective, permitted)
		}
		if got := field(status, "NoNewPrivs"); got != "1" {
			t.Errorf("%s: NoNewPrivs is %q", task, got)
		}
	}
	if starters != 1 {
		t.Errorf("%d threads can start an Envoy, want 1", starters)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.envoy()))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"CapEff": raw, "CapPrm": raw, "NoNewPrivs": "1", "Seccomp": "2"} {
		if got := field(status, name); got != want {
			t.Errorf("Envoy's %s is %q, want %q", name, got, want)
		}
	}
}
