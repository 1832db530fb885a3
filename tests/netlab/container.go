package netlab

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Container is one process of a pod with what a container runtime gives it: a mount namespace with its volumes, a user,
// capabilities. It shares everything else with its podVM, as the containers of a pod do.
type Container struct {
	Name    string
	Command []string
	Env     []string
	// Image is the name of the folder of BootSpec.Images that is the container's root. Empty for the podVM's own root.
	Image string
	// Mounts are seen by this container only.
	Mounts []Mount
	User   int
	// Capabilities are all that the container may ever have, without the prefix CAP_.
	Capabilities    []string
	NoNewPrivileges bool
	ReadOnlyRoot    bool
	// Log receives standard output and standard error.
	Log io.Writer `json:"-"`

	cmd  *exec.Cmd
	done chan struct{}
}

// Mount shows a volume, a directory of the podVM, in a container.
type Mount struct {
	Volume, Target string
	ReadOnly       bool
}

const (
	containerPath = "/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	specVar       = "NETLAB_CONTAINER"
)

// Volume makes a volume in memory, as an emptyDir with medium Memory is, and returns its path inside the podVM.
func (vm *PodVM) Volume(name string) (string, error) {
	path := "/run/volumes/" + name
	// 0777 is what the kubelet gives an emptyDir
	script := `mkdir -p "$1" && mountpoint -q "$1" || mount -t tmpfs -o nosuid,nodev,mode=0777 "$2" "$1"`
	if out, err := vm.Command("sh", "-c", script, "sh", path, name).CombinedOutput(); err != nil {
		return "", fmt.Errorf("make volume %s of %s: %w: %s", name, vm.Name, err, strings.TrimSpace(string(out)))
	}
	return path, nil
}

// Start starts c in vm.
func (vm *PodVM) Start(c *Container) error {
	cmd, err := vm.containerCommand(c)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start container %s of %s: %w", c.Name, vm.Name, err)
	}
	c.cmd, c.done = cmd, make(chan struct{})
	go func() {
		cmd.Wait()
		close(c.done)
	}()
	return nil
}

// Exec runs a command in a container like c to its end and returns what it printed: an exec probe.
func (vm *PodVM) Exec(c *Container, command []string) ([]byte, error) {
	probe := *c
	probe.Command = command
	cmd, err := vm.containerCommand(&probe)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = nil, nil
	return cmd.CombinedOutput()
}

// Done is closed when the container's process has ended.
func (c *Container) Done() <-chan struct{} { return c.done }

// ExitCode is the ended process's exit code.
func (c *Container) ExitCode() int { return c.cmd.ProcessState.ExitCode() }

// Signal reaches the container's first process.
func (c *Container) Signal(sig syscall.Signal) error {
	// nsenter forks for the PID namespace: the process is its only child.
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", c.cmd.Process.Pid))
	if err != nil {
		return err
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		return fmt.Errorf("container %s is not running", c.Name)
	}
	return syscall.Kill(pid, sig)
}

func (vm *PodVM) containerCommand(c *Container) (*exec.Cmd, error) {
	spec, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	cmd := vm.Command(argvSelf)
	// this variable is what makes the program runContainer: nsenter cannot set argv[0]
	cmd.Env = append(cmd.Env, specVar+"="+string(spec))
	cmd.Stdout, cmd.Stderr = c.Log, c.Log
	return cmd, nil
}

// runContainer becomes the container's process.
func runContainer() error {
	runtime.LockOSThread() // capabilities and mount namespaces are a thread's
	var c Container
	if err := json.Unmarshal([]byte(os.Getenv(specVar)), &c); err != nil {
		return err
	}
	if err := containerRoot(c); err != nil {
		return fmt.Errorf("container %s: %w", c.Name, err)
	}
	if err := confine(c); err != nil {
		return fmt.Errorf("container %s: %w", c.Name, err)
	}
	os.Setenv("PATH", containerPath)
	path, err := exec.LookPath(c.Command[0])
	if err != nil {
		return err
	}
	env := append([]string{"PATH=" + containerPath, "HOME=/"}, c.Env...)
	return fmt.Errorf("exec %s: %w", path, syscall.Exec(path, c.Command, env))
}

func containerRoot(c Container) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	// The image's root, or the podVM's where there is no image, is copied as a mount tree; volumes and a fresh /run and /tmp
	// lie over it.
	from := "/"
	if c.Image != "" {
		from = filepath.Join(imagesFolder, c.Image)
	}
	root, err := os.MkdirTemp("/tmp", c.Name)
	if err != nil {
		return err
	}
	if err := mountTmpfs(root); err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		target := filepath.Join(root, e.Name())
		switch {
		case e.Type()&os.ModeSymlink != 0:
			link, err := os.Readlink(filepath.Join(from, e.Name()))
			if err == nil {
				err = os.Symlink(link, target)
			}
			if err != nil {
				return err
			}
		case e.IsDir() && !slices.Contains([]string{"run", "tmp"}, e.Name()):
			if err := os.Mkdir(target, 0o755); err != nil {
				return err
			}
			if err := bind(filepath.Join(from, e.Name()), target, false); err != nil {
				return err
			}
		}
	}
	for _, dir := range []string{"run", "tmp"} {
		if err := mountTmpfs(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	if c.Image != "" { // what a container runtime mounts into every root
		for _, name := range []string{"dev", "proc", "etc/resolv.conf", "etc/hosts"} {
			if err := bind("/"+name, filepath.Join(root, name), false); err != nil {
				return err
			}
		}
	}
	for _, m := range c.Mounts {
		target := filepath.Join(root, m.Target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := bind(m.Volume, target, m.ReadOnly); err != nil {
			return err
		}
	}
	if c.ReadOnlyRoot {
		if err := remountReadOnly(root); err != nil {
			return err
		}
	}
	return pivot(root)
}

// confine drops every capability that c does not name, for ever, and becomes c's user.
func confine(c Container) error {
	var want uint64
	for _, name := range c.Capabilities {
		n := slices.Index(capabilityNames, name)
		if n < 0 {
			return fmt.Errorf("unknown capability %q", name)
		}
		want |= 1 << n
	}
	for n := range capabilityNames {
		if want&(1<<n) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil {
				return fmt.Errorf("drop CAP_%s: %w", capabilityNames[n], err)
			}
		}
	}
	if c.User != 0 {
		if err := setUser(c.User); err != nil {
			return err
		}
	} else {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		lo, hi := uint32(want), uint32(want>>32)
		data := [2]unix.CapUserData{{Effective: lo, Permitted: lo}, {Effective: hi, Permitted: hi}}
		if err := unix.Capset(&header, &data[0]); err != nil {
			return fmt.Errorf("set capabilities: %w", err)
		}
	}
	if c.NoNewPrivileges {
		return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	return nil
}

func setUser(id int) error {
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setresgid(id, id, id); err != nil {
		return err
	}
	return syscall.Setresuid(id, id, id)
}

// capabilityNames are in the kernel's order (linux/capability.h).
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO",
	"SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
	"SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
	"WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// DefaultCapabilities are what container runtimes give a container that asks for nothing.
var DefaultCapabilities = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP",
	"SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}
