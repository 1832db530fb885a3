// Package netlab makes pretended podVMs out of Linux namespaces, so that the whole of Portcullis runs on any Linux
// machine: real nftables, a real Envoy, real processes, in networks that exist only here.
//
// Enter (or Main, for tests) moves a program into user (when it is not root), network, mount, UTS and PID namespaces of
// its own. Everything the lab makes lives in them, touches nothing outside, and is gone with the program however it
// ends: the program is PID 1 in there. A Lab is a switch (a bridge) with Hosts on it; a PodVM is a Host with a root file
// system, a PID 1 and a guard of its own.
//
// The package is for tests and the demo. Nothing that ships imports it.
package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// stageVar carries how far a re-executed program has come. argv stays the user's own.
const stageVar = "PORTCULLIS_NETLAB_STAGE"

const (
	stageMapped = "wait-for-mapping" // in a new user namespace whose ids are being mapped
	stageInside = "inside"           // in all namespaces, as root there
)

// Main is TestMain's body for tests that need the lab: m runs inside.
func Main(m *testing.M) {
	Enter()
	os.Exit(m.Run())
}

// Enter returns inside the lab's namespaces, as root there. The process that was started waits outside and exits with the
// inner one's exit code. It exits 1 with a clear line where the kernel or the machine forbids namespaces.
//
// It must be the first thing that a program does: the roles that netlab re-executes a program for start here too.
func Enter() {
	switch {
	case os.Args[0] == argvInit:
		fail(runInit())
		os.Exit(0)
	case os.Getenv(specVar) != "":
		fail(runContainer())
	}
	switch os.Getenv(stageVar) {
	case stageInside:
		fail(settle())
		return
	case stageMapped:
		fail(awaitMapping())
	default:
		os.Exit(enterFromOutside())
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "netlab: %v\n", err)
		os.Exit(1)
	}
}

// self is this program's path. /proc/self/exe would do for executing it, but a program that was started through that link
// from another mount namespace cannot find its own folder in a chroot.
func self() string {
	path, err := os.Executable()
	fail(err)
	return path
}

const namespaces = syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

func enterFromOutside() int {
	cmd := exec.Command(self())
	cmd.Args = os.Args
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: syscall.SIGKILL}
	root := os.Getuid() == 0
	if root {
		cmd.Env = append(os.Environ(), stageVar+"="+stageInside)
		return runToEnd(cmd, func() error { return nil })
	}
	// An ordinary user: a user namespace with a range of ids, which only the setuid helpers newuidmap and newgidmap may
	// map. The child waits for that on a pipe.
	r, w, err := os.Pipe()
	fail(err)
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
	cmd.ExtraFiles = []*os.File{r}
	cmd.Env = append(os.Environ(), stageVar+"="+stageMapped)
	return runToEnd(cmd, func() error {
		defer w.Close()
		if err := mapIDs(cmd.Process.Pid); err != nil {
			return err
		}
		_, err := w.Write([]byte{'m'})
		return err
	})
}

func runToEnd(cmd *exec.Cmd, started func() error) int {
	// Interrupts from the terminal reach the inner program too; this one only waits for it.
	signal.Ignore(syscall.SIGINT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "netlab: cannot make namespaces: %v%s\n", err, whyForbidden())
		return 1
	}
	if err := started(); err != nil {
		fmt.Fprintf(os.Stderr, "netlab: %v\n", err)
		cmd.Process.Kill()
		cmd.Wait()
		return 1
	}
	cmd.Wait()
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// whyForbidden names the settings that commonly forbid user namespaces to ordinary users.
func whyForbidden() string {
	for path, want := range map[string]string{
		"/proc/sys/kernel/unprivileged_userns_clone":             "1",
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "0",
	} {
		if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) != want {
			return fmt.Sprintf(" (%s is %s: the kernel forbids user namespaces to ordinary users; run as root, or set it to %s)",
				path, strings.TrimSpace(string(b)), want)
		}
	}
	if b, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(b)) == "0" {
		return " (/proc/sys/user/max_user_namespaces is 0: the kernel forbids user namespaces; run as root)"
	}
	return ""
}

// mapIDs gives the child's user namespace 65536 ids: root is the caller, the rest come from /etc/subuid and /etc/subgid.
func mapIDs(pid int) error {
	for _, m := range []struct {
		tool, file string
		own        int
	}{{"newuidmap", "/etc/subuid", os.Getuid()}, {"newgidmap", "/etc/subgid", os.Getgid()}} {
		start, count, err := subordinate(m.file)
		if err != nil {
			return err
		}
		args := []string{fmt.Sprint(pid), "0", fmt.Sprint(m.own), "1", "1", start, count}
		out, err := exec.Command(m.tool, args...).CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("%s is not installed; run as root: apt-get install uidmap", m.tool)
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w: %s", m.tool, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

func subordinate(file string) (start, count string, err error) {
	u, err := user.Current()
	if err != nil {
		return "", "", err
	}
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", "", err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 3 && (f[0] == u.Username || f[0] == u.Uid) {
			return f[1], f[2], nil
		}
	}
	return "", "", fmt.Errorf("%s gives user %s no range of ids, and the mesh proxy needs a user of its own; run as root: "+
		"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", file, u.Username, u.Username)
}

// awaitMapping runs in the new user namespace and becomes root there by executing itself once more: the capabilities that
// clone gave were lost at the first exec, when its id was not mapped yet.
func awaitMapping() error {
	pipe := os.NewFile(3, "mapping")
	if n, err := pipe.Read(make([]byte, 1)); n != 1 {
		return fmt.Errorf("no ids were mapped: %w", err)
	}
	pipe.Close()
	// The death signal is cleared when credentials change; set it again.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	os.Setenv(stageVar, stageInside)
	return syscall.Exec(self(), os.Args, os.Environ())
}

// settle makes the new namespaces usable: mounts do not propagate outwards, /proc shows this PID namespace, /run is the
// lab's own, and loopback is up.
func settle() error {
	os.Unsetenv(stageVar)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w (in a chroot, its root must be a mount point: mount --bind DIR DIR)", err)
	}
	for _, m := range []struct{ fs, target string }{{"proc", "/proc"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m.fs, m.target, m.fs, unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.target, err)
		}
	}
	return linkUp("lo")
}
