package netlab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// PodVM is a pretended podVM: a Host whose processes also have a root file system and a PID 1 of their own. It boots like
// the real image: PID 1 runs Boot's commands in order before any interface, even loopback, is up; when one fails, the
// podVM is off, as FailureAction=poweroff-force would have it. Only then is it plugged into the lab.
type PodVM struct {
	*Host
	boot BootSpec
	init *exec.Cmd
	log  io.Writer
}

// BootSpec is what a podVM is made of.
type BootSpec struct {
	// Name is the host name.
	Name string
	// Binaries are files that the podVM and its containers find in /opt/bin, by their base names.
	Binaries []string
	// Images is a folder of unpacked images, one folder each, in which the podVM's containers may have their roots. Empty
	// for none.
	Images string
	// Boot is run by PID 1, each command to its end, before loopback is up and before a network exists.
	Boot [][]string
	// Resolver is written to /etc/resolv.conf.
	Resolver string
	// Log receives what PID 1 and the boot commands print. Nil discards it.
	Log io.Writer
}

const (
	argvInit     = "netlab-init"
	argvSelf     = "/opt/netlab" // the program itself, inside a podVM
	imagesFolder = "/opt/images" // BootSpec.Images, inside a podVM
	bootDeadline = 20 * time.Second
)

// Boot makes and boots a podVM and plugs it in. The error is the last line that a failed boot printed.
func (l *Lab) Boot(spec BootSpec) (*PodVM, error) {
	if spec.Log == nil {
		spec.Log = io.Discard
	}
	in, err := json.Marshal(spec.forInit(self()))
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	last := &lastLine{to: spec.Log}
	cmd := exec.Command(self())
	cmd.Args = []string{argvInit}
	cmd.Env = []string{"PATH=" + containerPath}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(string(in)), last, last
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("boot %s: %w", spec.Name, err)
	}
	vm := &PodVM{boot: spec, init: cmd, log: spec.Log}
	r.SetReadDeadline(time.Now().Add(bootDeadline))
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != "booted\n" {
		vm.PowerOff()
		return nil, fmt.Errorf("%s did not boot: %s", spec.Name, last.line())
	}
	ns, err := netns.GetFromPid(cmd.Process.Pid)
	if err != nil {
		vm.PowerOff()
		return nil, err
	}
	vm.Host = l.host(spec.Name, ns)
	if err := vm.Plug("eth0"); err != nil {
		vm.PowerOff()
		return nil, err
	}
	return vm, nil
}

// PowerOff kills every process of the podVM. It may be called twice.
func (vm *PodVM) PowerOff() {
	vm.init.Process.Kill()
	vm.init.Wait()
	if vm.Host != nil && vm.ns.IsOpen() {
		vm.Close()
	}
}

// Command is exec.Command inside the podVM, outside any container: what the image itself or its host would run.
func (vm *PodVM) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{
		"--target", fmt.Sprint(vm.init.Process.Pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd=/", "--", name,
	}, args...)...)
	cmd.Env = []string{"PATH=" + containerPath, "HOME=/root"}
	return cmd
}

// initSpec is what PID 1 is told on its standard input.
type initSpec struct {
	Name, Resolver, Self string
	Images               string
	Binaries             []string
	Boot                 [][]string
}

func (b BootSpec) forInit(self string) initSpec {
	return initSpec{Name: b.Name, Resolver: b.Resolver, Self: self, Binaries: b.Binaries, Boot: b.Boot, Images: b.Images}
}

// runInit is PID 1 of a podVM.
func runInit() error {
	var spec initSpec
	if err := json.NewDecoder(os.Stdin).Decode(&spec); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return err
	}
	if err := podVMRoot(spec); err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	for _, argv := range spec.Boot {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w: powering off", strings.Join(argv, " "), err)
		}
	}
	if err := linkUp("lo"); err != nil {
		return err
	}
	ready := os.NewFile(3, "ready")
	fmt.Fprintln(ready, "booted")
	ready.Close()

	children := make(chan os.Signal, 16)
	signal.Notify(children, syscall.SIGCHLD)
	for range children {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

// podVMRoot builds the podVM's root on a tmpfs: this machine's programs and libraries, read-only, and nothing of its state.
func podVMRoot(spec initSpec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	const root = "/run"
	if err := unix.Mount("podvm", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"usr", "etc", "proc", "dev", "opt/bin", "var", "root"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"run", "tmp"} {
		if err := mountTmpfs(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		if target, err := os.Readlink("/" + link); err == nil {
			if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
				return err
			}
		}
	}
	if err := bind("/usr", filepath.Join(root, "usr"), true); err != nil {
		return err
	}
	for _, dev := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := bindFile("/dev/"+dev, filepath.Join(root, "dev", dev), false); err != nil {
			return err
		}
	}
	files := append([]string{spec.Self}, spec.Binaries...)
	for i, file := range files {
		target := filepath.Join(root, "opt/bin", filepath.Base(file))
		if i == 0 {
			target = filepath.Join(root, argvSelf)
		}
		if err := bindFile(file, target, true); err != nil {
			return err
		}
	}
	if spec.Images != "" {
		target := filepath.Join(root, imagesFolder)
		if err := os.Mkdir(target, 0o755); err != nil {
			return err
		}
		if err := bind(spec.Images, target, true); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"passwd":        "root:x:0:0:root:/root:/bin/sh\nenvoy:x:1337:1337::/:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
		"group":         "root:x:0:\nenvoy:x:1337:\nnogroup:x:65534:\n",
		"hosts":         "127.0.0.1 localhost\n::1 localhost\n",
		"nsswitch.conf": "hosts: files dns\n",
		"resolv.conf":   spec.Resolver,
		"ld.so.cache":   "",
	} {
		if name == "ld.so.cache" {
			b, err := os.ReadFile("/etc/ld.so.cache")
			if err != nil {
				continue
			}
			content = string(b)
		}
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", filepath.Join(root, "proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	return pivot(root)
}

// pivot makes dir, a mount point, the root and forgets the old root.
func pivot(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root to %s: %w", dir, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return os.Chdir("/")
}

func mountTmpfs(target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", target, err)
	}
	return nil
}

// bind shows source, with what is mounted below it, at target.
func bind(source, target string, readOnly bool) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	return remountReadOnly(target)
}

func bindFile(source, target string, readOnly bool) error {
	if err := os.WriteFile(target, nil, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return bind(source, target, readOnly)
}

// remountReadOnly keeps the flags that a mount already has: in a user namespace they are locked.
func remountReadOnly(target string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return err
	}
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY)
	for have, set := range map[int64]uintptr{
		unix.ST_NOSUID: unix.MS_NOSUID, unix.ST_NODEV: unix.MS_NODEV, unix.ST_NOEXEC: unix.MS_NOEXEC,
		unix.ST_NOATIME: unix.MS_NOATIME, unix.ST_NODIRATIME: unix.MS_NODIRATIME, unix.ST_RELATIME: unix.MS_RELATIME,
	} {
		if st.Flags&have != 0 {
			flags |= set
		}
	}
	if err := unix.Mount("", target, "", flags, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}

// lastLine passes everything on and remembers the last line that was not empty.
type lastLine struct {
	to      io.Writer
	partial string
	last    string
}

func (l *lastLine) Write(p []byte) (int, error) {
	l.partial += string(p)
	for {
		line, rest, ok := strings.Cut(l.partial, "\n")
		if !ok {
			break
		}
		if strings.TrimSpace(line) != "" {
			l.last = line
		}
		l.partial = rest
	}
	return l.to.Write(p)
}

func (l *lastLine) line() string {
	if l.last == "" {
		return strings.TrimSpace(l.partial)
	}
	return l.last
}

// Processes returns the processes of the podVM that run a program of that name (the first 15 bytes count), by their pids
// outside it.
func (vm *PodVM) Processes(name string) ([]*os.Process, error) {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", vm.init.Process.Pid))
	if err != nil {
		return nil, err
	}
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, err
	}
	var found []*os.Process
	for _, comm := range comms {
		dir := filepath.Dir(comm)
		b, err := os.ReadFile(comm)
		ns, nsErr := os.Readlink(dir + "/ns/pid")
		if err != nil || nsErr != nil || ns != own || strings.TrimSpace(string(b)) != name[:min(len(name), 15)] {
			continue // another's, or gone meanwhile
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			return nil, err
		}
		found = append(found, p)
	}
	return found, nil
}

// Listens says whether a TCP socket of the podVM listens on port.
func (vm *PodVM) Listens(port uint16) (bool, error) {
	for _, table := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", vm.init.Process.Pid, table))
		if err != nil {
			return false, err
		}
		for line := range strings.Lines(string(b)) {
			// sl local_address rem_address st ...; state 0A is LISTEN
			f := strings.Fields(line)
			if len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				return true, nil
			}
		}
	}
	return false, nil
}
