// Package confine takes from Envoy, and from its supervisor, what they do not need.
//
// Envoy parses what strangers send, in C++. Whoever takes it over has what the process has: a user of its own, CAP_NET_RAW,
// the pod's traffic and its key. This package keeps it from having more, in layers that do not rely on each other:
//
//   - no_new_privs: no file that it could execute gives it more than it has.
//   - seccomp (seccomp.go): an allow-list of system calls. CAP_NET_RAW is there for two socket options; packet sockets, raw
//     IP sockets and all netlink but the route family are refused, and so are new processes, namespaces, tracing, mounts,
//     bpf, io_uring and whatever is not on the list.
//   - Landlock (landlock.go): it reads its own directory and what a C++ program needs of the system, makes its admin
//     socket, binds its listeners' ports, executes nothing else, and reaches no process outside through an abstract socket
//     or a signal. The evidence socket of a podVM is such an abstract socket.
//
// Go runs nothing between fork and exec, so the supervisor executes itself under another name (Command), and that process
// confines itself and becomes Envoy (Launch). The alternative, to confine the thread that starts Envoys, would put the
// system calls of the Go runtime on the list, and the supervisor at the mercy of the list.
//
// A kernel may lack Landlock or seccomp; then the other layers stand. Available says what there is.
package confine

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Limits are what a confined program may do beyond computing and talking TCP and UDP. The zero value allows nothing, not
// even to start.
type Limits struct {
	// Program is the only file that may be executed, with its Loader, if it is linked dynamically.
	Program string
	Loader  string
	// Read are files, and directories whose files may be read. What is missing is left out.
	Read []string
	// Sockets is the one directory in which something may be made and removed: Unix sockets.
	Sockets string
	// Listen are the TCP ports that may be bound.
	Listen []uint16
}

// argv0 is what a program is called that is about to confine itself.
const argv0 = "portcullis-confined"

// Command is the command that runs l.Program with arguments, confined. Launch must come first in main.
func Command(l Limits, arguments ...string) (*exec.Cmd, error) {
	limits, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encode the limits of %s: %w", l.Program, err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{argv0, string(limits)}, arguments...)
	return cmd, nil
}

// Launch returns at once in a process that Command did not start. In one that it did, it never returns.
func Launch() {
	if os.Args[0] != argv0 || len(os.Args) < 2 {
		return
	}
	fmt.Fprintf(os.Stderr, "%v\n", launch(os.Args[1], os.Args[2:]))
	os.Exit(1)
}

func launch(text string, arguments []string) error {
	var l Limits
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return fmt.Errorf("read the limits of a program: %w", err)
	}
	argv, err := syscall.SlicePtrFromStrings(append([]string{l.Program}, arguments...))
	if err != nil {
		return fmt.Errorf("start %s: %w", l.Program, err)
	}
	path, err := hide(l.Program)
	if err != nil {
		return fmt.Errorf("start %s: %w", l.Program, err)
	}
	// What follows is a thread's, and this is the thread that becomes the program.
	runtime.LockOSThread()
	// Its parent's death must end it, although another thread may be the one that was started with that.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("end with the parent: %w", err)
	}
	// While a thread executes a program, threads that share its working directory and umask cannot be made (EAGAIN from
	// clone), and the Go runtime ends the process when it fails to make one. So this thread shares them with none.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the file system state: %w", err)
	}
	if err := noNewPrivileges(); err != nil {
		return err
	}
	if err := l.restrict(); err != nil {
		return fmt.Errorf("confine %s by Landlock: %w", l.Program, err)
	}
	if err := filterSystemCalls(uint64(uintptr(path))); err != nil {
		return fmt.Errorf("confine %s by seccomp: %w", l.Program, err)
	}
	environment := []*byte{nil} // what the host put into ours is none of its business
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, uintptr(path),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&environment[0])))
	return fmt.Errorf("start %s: %w", l.Program, errno)
}

func noNewPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// Features are what the kernel offers to confine a program with.
type Features struct {
	// Landlock is the version of its interface: 0 without Landlock, at least 4 for ports, 6 for abstract sockets and signals.
	Landlock int
	Seccomp  bool
}

// Available asks the kernel.
func Available() Features { return Features{Landlock: landlockVersion(), Seccomp: hasSeccomp()} }

// Missing names what an Envoy on this kernel is not kept from by Landlock or seccomp.
func (f Features) Missing() (missing []string) {
	for _, m := range []struct {
		there bool
		what  string
	}{
		{f.Seccomp, "system calls (CONFIG_SECCOMP_FILTER)"},
		{f.Landlock >= 1, "files (CONFIG_SECURITY_LANDLOCK, and landlock in lsm=)"},
		{f.Landlock >= 4, "TCP ports (Linux 6.7)"},
		{f.Landlock >= 6, "abstract sockets and signals (Linux 6.12)"},
	} {
		if !m.there {
			missing = append(missing, m.what)
		}
	}
	return missing
}
