// Package nspawn boots the root of a podVM image as a container of systemd-nspawn, in seconds: everything of a boot but kernel, initrd,
// dm-verity and command line, which package vm has. The guest has a network of its own with one NIC, at whose other end somebody
// knocks.
//
// It needs root on the machine itself: a loop device, a cgroup tree of its own, and namespaces.
package nspawn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"

	"portcullis.dev/portcullis/tests/podvm/kata"
)

// The guest's NIC, and what is given to it.
var (
	MAC   = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x15}
	Guest = []netip.Prefix{netip.MustParsePrefix("10.138.0.15/24"), netip.MustParsePrefix("fd00:138::15/64")}
	peers = []string{"10.138.0.2/24", "fd00:138::2/64"}
)

// Root is an image's root, mounted read-only. Two boots may share it.
type Root struct{ Dir string }

// Mount mounts the root of an image folder; unmount takes it away. A folder with a folder "root" has it there already.
func Mount(image string) (root Root, unmount func(), err error) {
	if dir := filepath.Join(image, "root"); exists(dir) {
		return Root{dir}, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "podvm-root-")
	if err != nil {
		return Root{}, nil, err
	}
	const first = 1 << 20 // the first partition
	out, err := exec.Command("mount", "-t", "erofs", "-o", fmt.Sprintf("ro,loop,offset=%d", first), filepath.Join(image, "disk.raw"), dir).CombinedOutput()
	if err != nil {
		os.Remove(dir)
		return Root{}, nil, fmt.Errorf("mount the root of %s: %w: %s", image, err, out)
	}
	return Root{dir}, func() {
		exec.Command("umount", dir).Run()
		os.Remove(dir)
	}, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Spec is a boot.
type Spec struct {
	Root Root
	// Disks are block devices' contents: each is attached as a disk.
	Disks [][]byte
	// TEE is the disk of a pretended one, which an image for tests looks for in a folder.
	TEE []byte
	// Units are files of /run/systemd/system, which come before those of the image. A "-> TARGET" is a link.
	Units map[string]string
	// NoNetAdmin takes CAP_NET_ADMIN from the whole guest.
	NoNetAdmin bool
}

// Machine is a boot that runs, or has ended.
type Machine struct {
	dir  string
	name string
	cmd  *exec.Cmd
	done chan struct{}
	once sync.Once

	loops  []string
	Agent  *kata.Agent // after AwaitAgent
	Booted time.Time
}

var number struct {
	sync.Mutex
	n int
}

// script enters a cgroup tree of its own, as systemd 257 wants it, and becomes nspawn under script(1), which gives it a terminal.
const script = `
mount --make-rprivate /
umount -R /sys && mount -t sysfs -o ro none /sys # read-only: there is no udev; that of the peer's network, in which nspawn looks for the NIC
mkdir -p /run/systemd && mount -t tmpfs none /run/systemd
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/$NAME && echo $$ >/sys/fs/cgroup/$NAME/cgroup.procs
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_LOG_LEVEL=warning
exec script -qefc "systemd-nspawn $ARGUMENTS" "$CONSOLE" >/dev/null 2>&1 </dev/null
`

// Boot starts a machine. Close ends it.
func Boot(spec Spec) (*Machine, error) {
	number.Lock()
	number.n++
	name := fmt.Sprintf("pv%d-%d", os.Getpid()%100000, number.n)
	number.Unlock()
	dir, err := os.MkdirTemp("", "podvm-nspawn-")
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: dir, name: name, done: make(chan struct{})}
	arguments, err := m.prepare(spec)
	if err != nil {
		close(m.done)
		m.Close()
		return nil, err
	}
	m.cmd = exec.Command("nsenter", "--net=/run/netns/"+m.peer(), "unshare", "--mount", "bash", "-euc", script)
	m.cmd.Env = append(os.Environ(), "NAME="+name, "CONSOLE="+filepath.Join(dir, "console"), "ARGUMENTS="+strings.Join(arguments, " "))
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	m.cmd.Stderr = &said
	m.Booted = time.Now()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is about this thread
		err := m.cmd.Start()
		started <- err
		if err == nil {
			m.cmd.Wait()
			close(m.done)
		}
	}()
	if err := <-started; err != nil {
		close(m.done)
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Machine) prepare(spec Spec) (arguments []string, err error) {
	run := func(args ...string) error {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	peer := m.peer()
	steps := [][]string{
		{"ip", "netns", "add", peer},
		{"ip", "-n", peer, "link", "add", "guest", "address", MAC.String(), "type", "veth", "peer", "name", "peer"},
		{"ip", "-n", peer, "link", "set", "peer", "up"},
		{"ip", "-n", peer, "link", "set", "lo", "up"},
	}
	for _, a := range peers {
		steps = append(steps, []string{"ip", "-n", peer, "address", "add", a, "dev", "peer", "nodad"})
	}
	for _, s := range steps {
		if err := run(s...); err != nil {
			return nil, err
		}
	}
	arguments = []string{
		"--directory=" + spec.Root.Dir, "--machine=" + m.name, "--register=no", "--keep-unit", "--read-only", "--tmpfs=/var", "--timezone=off",
		"--resolv-conf=off", "--link-journal=no", "--console=interactive", "--private-network", "--network-interface=guest",
	}
	if spec.NoNetAdmin {
		arguments = append(arguments, "--drop-capability=CAP_NET_ADMIN")
	}
	units := map[string]string{
		// The kernel's command line is this machine's; the guest's says what an image for tests has there.
		"podvm-initdata.service.d/test.conf": "[Service]\nBindReadOnlyPaths=/run/test/cmdline:/proc/cmdline\n",
		"kata-agent.service.d/test.conf":     "[Service]\nEnvironment=KATA_AGENT_SERVER_ADDR=unix:///run/test/agent\n",
	}
	for name, text := range spec.Units {
		units[name] = text
	}
	for name, text := range units {
		path := filepath.Join(m.dir, "units", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		target, link := strings.CutPrefix(text, "-> ")
		if link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			return nil, err
		}
	}
	test := filepath.Join(m.dir, "test")
	if err := errors.Join(os.Mkdir(test, 0o755), os.WriteFile(filepath.Join(test, "cmdline"), []byte("podvm.allow_simulated_tee=1\n"), 0o644)); err != nil {
		return nil, err
	}
	arguments = append(arguments, "--bind-ro="+filepath.Join(m.dir, "units")+":/run/systemd/system", "--bind="+test+":/run/test")
	for i, content := range spec.Disks {
		file := filepath.Join(m.dir, fmt.Sprintf("disk%d", i))
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return nil, err
		}
		out, err := exec.Command("losetup", "--find", "--show", "--read-only", file).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("losetup: %w: %s", err, out)
		}
		loop := strings.TrimSpace(string(out))
		m.loops = append(m.loops, loop)
		arguments = append(arguments, fmt.Sprintf("--bind-ro=%s:/dev/vd%c", loop, 'b'+i))
	}
	if spec.TEE != nil {
		folder := filepath.Join(m.dir, "tee")
		if err := errors.Join(os.Mkdir(folder, 0o755), os.WriteFile(filepath.Join(folder, "disk"), spec.TEE, 0o644)); err != nil {
			return nil, err
		}
		arguments = append(arguments, "--bind-ro="+folder+":/run/simtee")
	}
	// In a container, systemd takes its arguments for the kernel's command line.
	return append(arguments, "--boot", "systemd.unit=kata-containers.target", "systemd.log_color=0", "systemd.show_status=1"), nil
}

// peer is the network namespace at the other end of the guest's NIC.
func (m *Machine) peer() string { return m.name + "p" }

// AwaitAgent returns when the agent answers. The error is an *Ended where the machine ended before that.
func (m *Machine) AwaitAgent(ctx context.Context) error {
	for {
		conn, err := net.Dial("unix", filepath.Join(m.dir, "test", "agent"))
		if err == nil {
			m.Agent = kata.Dial(conn)
			return m.Agent.Check(ctx)
		}
		select {
		case <-m.done:
			return &Ended{m.Console()}
		case <-ctx.Done():
			return fmt.Errorf("no agent: %w\n%s", ctx.Err(), m.Console())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Ended says that a machine ended by itself without an agent.
type Ended struct{ Console string }

func (e *Ended) Error() string { return "the machine ended without its agent:\n" + e.Console }

var escapes = regexp.MustCompile(`\x1b(\[[0-9;:?]*[A-Za-z]|[^\[])|\r`)

// Console is what the machine has said.
func (m *Machine) Console() string {
	b, _ := os.ReadFile(filepath.Join(m.dir, "console"))
	return escapes.ReplaceAllString(string(b), "")
}

// Dial connects from the other end of the guest's NIC.
func (m *Machine) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = m.inPeer(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Neighbours are the guest's addresses that have answered on the link.
func (m *Machine) Neighbours() string {
	out, _ := exec.Command("ip", "-n", m.peer(), "neigh", "show", "nud", "reachable", "nud", "stale", "nud", "delay", "nud", "probe").Output()
	return string(out)
}

func (m *Machine) inPeer(f func() error) error {
	ns, err := netns.GetFromName(m.peer())
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// Close ends the machine, and removes all that it was made of.
func (m *Machine) Close() {
	m.once.Do(func() {
		if m.Agent != nil {
			m.Agent.Close()
		}
		if m.cmd != nil && m.cmd.Process != nil {
			syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
		}
		<-m.done
		// nspawn's container is in a process group of its own, under script's terminal, and dies with it; its cgroup is empty then.
		for range 100 {
			if m.removeCgroup() {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		exec.Command("ip", "netns", "delete", m.peer()).Run()
		for _, loop := range m.loops {
			exec.Command("losetup", "--detach", loop).Run()
		}
		os.RemoveAll(m.dir)
	})
}

// removeCgroup kills whatever is left in the machine's cgroup and removes it, in a mount of the cgroup tree of its own.
func (m *Machine) removeCgroup() bool {
	err := exec.Command("unshare", "--mount", "bash", "-c", `
		umount -R /sys/fs/cgroup 2>/dev/null
		mount -t cgroup2 none /sys/fs/cgroup || exit 1
		cd /sys/fs/cgroup && [ -d "$1" ] || exit 0
		[ ! -e "$1/cgroup.kill" ] || echo 1 >"$1/cgroup.kill"
		find "$1" -depth -type d -exec rmdir {} + 2>/dev/null
		[ ! -d "$1" ]`, "-", m.name).Run()
	return err == nil
}
