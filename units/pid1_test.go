package units_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	pid1Role   = "units-test-pid1" // argv[0] of this program in its second role
	pid1Failed = "PID 1 of the boot test failed"
)

func TestMain(m *testing.M) {
	syscall.Umask(0o022) // the guard's user reads what the tests write
	if os.Args[0] == pid1Role {
		fmt.Fprintf(os.Stderr, "%s: %v\n", pid1Failed, becomePID1(os.Args[1]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// A rootSpec says what a pretended podVM is made of.
type rootSpec struct {
	Image    string // the image's tree
	Root     string // an empty folder, for the root
	Evidence string // the folder that the agent writes to
	Console  string // a terminal
	State    bool   // /var/lib can be written to
	// The kernel's.
	CommandLine []string
}

// becomePID1 makes the podVM's root and becomes systemd. It returns only to say why not.
func becomePID1(arg string) error {
	runtime.LockOSThread() // namespaces and capabilities are a thread's; exec keeps the calling one's
	var spec rootSpec
	if err := json.Unmarshal([]byte(arg), &spec); err != nil {
		return err
	}
	// This process was born into its cgroup. From here on, that is the root of all cgroups.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	if err := spec.makeRoot(); err != nil {
		return err
	}
	// Modules and clock would be the machine's own. systemd knows that it may lack these in a container.
	for _, c := range []uintptr{unix.CAP_SYS_MODULE, unix.CAP_SYS_TIME, unix.CAP_SYS_RAWIO} {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	args := append([]string{"/lib/systemd/systemd", "--log-target=console", "--show-status=yes"}, spec.CommandLine...)
	env := []string{"container=portcullis", "PATH=/usr/sbin:/usr/bin", "LANG=C"}
	return fmt.Errorf("exec %s: %w", args[0], syscall.Exec(args[0], args, env))
}

// makeRoot makes a root as kata's images have it: read-only, with memory on /run only, and with State on /var/lib; /tmp is for
// tmp.mount. There is no nss-systemd in it, no user but root and nobody, no /var/lib/private.
func (spec rootSpec) makeRoot() error {
	in := func(path string) string { return filepath.Join(spec.Root, path) }
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range []struct {
		fs, target, options string
		flags               uintptr
	}{
		{"tmpfs", "/", "mode=755", 0},
		{"overlay", "/usr", "lowerdir=" + filepath.Join(spec.Image, "usr") + ":/usr", unix.MS_RDONLY},
		{"proc", "/proc", "", 0},
		{"sysfs", "/sys", "", unix.MS_RDONLY},
		{"tmpfs", "/sys/kernel", "mode=755", 0},
		{"cgroup2", "/sys/fs/cgroup", "", 0},
		{"tmpfs", "/run", "mode=755", 0},
		{"tmpfs", "/dev", "mode=755", 0},
		{"devpts", "/dev/pts", "newinstance,ptmxmode=666,mode=620", 0},
		{"tmpfs", "/dev/shm", "mode=1777", 0},
	} {
		if err := os.MkdirAll(in(m.target), 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, in(m.target), m.fs, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.target, err)
		}
	}
	if spec.State {
		state := in("/var/lib")
		if err := errors.Join(os.MkdirAll(state, 0o755), unix.Mount("tmpfs", state, "tmpfs", 0, "mode=755")); err != nil {
			return fmt.Errorf("mount /var/lib: %w", err)
		}
	}
	for _, dir := range []string{
		"etc/systemd", "evidence", "root", "tmp", "var/lib", "var/log", "var/tmp",
		// As far as a sandbox can tell it is configfs-tsm: root can make a request, which then has no attributes.
		"sys/kernel/config/tsm/report",
	} {
		if err := os.MkdirAll(in(dir), 0o755); err != nil {
			return err
		}
	}
	etc := map[string]string{
		"passwd":                "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
		"group":                 "root:x:0:\nnogroup:x:65534:\n",
		"nsswitch.conf":         "passwd: files\ngroup: files\n",
		"machine-id":            "70616e74686572737061727263756c6c\n",
		"systemd/journald.conf": "[Journal]\nStorage=volatile\nForwardToConsole=yes\n",
	}
	if cache, err := os.ReadFile("/etc/ld.so.cache"); err == nil {
		etc["ld.so.cache"] = string(cache)
	}
	for name, text := range etc {
		if err := os.WriteFile(in("etc/"+name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	links := map[string]string{"dev/ptmx": "pts/ptmx"}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		if target, err := os.Readlink("/" + name); err == nil {
			links[name] = target
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, in(name)); err != nil {
			return err
		}
	}
	files := map[string]string{"dev/console": spec.Console}
	for _, dev := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		files["dev/"+dev] = "/dev/" + dev
	}
	for target, source := range files {
		if err := errors.Join(os.WriteFile(in(target), nil, 0o644), bind(source, in(target), false)); err != nil {
			return err
		}
	}
	if err := errors.Join(
		// The image's units in place of this machine's, instead of beside them.
		bind(filepath.Join(spec.Image, unitFolder), in(unitFolder), true),
		bind(spec.Evidence, in("evidence"), false),
		// What is tuned here is the machine's, but for the network, which has a namespace.
		bind(in("proc/sys/kernel"), in("proc/sys/kernel"), true),
		bind(in("proc/sys/fs"), in("proc/sys/fs"), true),
		bind(in("proc/sys/vm"), in("proc/sys/vm"), true),
		unix.Mount("", spec.Root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
		os.Chdir(spec.Root),
	); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	return unix.Unmount(".", unix.MNT_DETACH)
}

func bind(source, target string, readOnly bool) error {
	err := unix.Mount(source, target, "", unix.MS_BIND, "")
	if err == nil && readOnly {
		err = unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	if err != nil {
		return fmt.Errorf("bind %s to %s: %w", source, target, err)
	}
	return nil
}
