// Package vm boots podVM images under qemu: the whole way from firmware or kernel through initrd and dm-verity to the agent,
// which no container can show. Where /dev/kvm works it is used; elsewhere qemu translates, and a boot takes tens of seconds.
//
// A Machine is plugged into a netlab.Lab by a tap device and has no other network. What it is asked and what it says goes over
// a virtio port to its agent, and over QMP to qemu itself, so the image under test needs nothing for its tests. Machines live
// in the lab's namespaces and die with the program, however that ends.
package vm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/tests/netlab"
)

// AgentPort is the name of the virtio port over which an agent for tests speaks ttrpc, beside its own socket.
const AgentPort = "portcullis.agent"

// Firmware is Debian's build of edk2, from its package ovmf.
const (
	Firmware     = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	FirmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// Way is how a machine is started. The zero value starts none.
type Way string

const (
	// Direct loads the image's vmlinuz and initrd with a command line, as Kata does.
	Direct Way = "direct"
	// UKI has the firmware load the image's podvm.efi, handed over by qemu; a command line is then the load options.
	UKI Way = "uki"
	// Disk has the firmware find what to boot on the first disk, by itself.
	Disk Way = "disk"
)

// Spec says what a machine is made of, all of it the host's choice.
type Spec struct {
	// Name is for messages and files.
	Name string
	// Image is a folder of disk.raw, vmlinuz, initrd, cmdline and podvm.efi.
	Image string
	Way   Way
	// Root stands in for the image's disk.raw. Kernel stands in for vmlinuz, or for podvm.efi.
	Root, Kernel string
	// CommandLine stands in for the image's own with Direct, and is handed over as load options with UKI.
	CommandLine string
	// Disks are further disks, in this order: the initdata's, a pretended TEE's. With Disk the first is what boots.
	Disks []string
	// Credentials are for systemd, by SMBIOS strings of type 11: names to contents.
	Credentials map[string]string
	// NoNetwork leaves out the one NIC that there is otherwise.
	NoNetwork bool
	// Dir is a folder for the console, sockets and logs. It must exist.
	Dir string
}

// Machine is a podVM that is running, or has ended.
type Machine struct {
	*netlab.Jack // of its first NIC; nil with NoNetwork
	Spec
	Began time.Time

	lab     *netlab.Lab
	qemu    *exec.Cmd
	monitor *monitor
	done    chan struct{}
	err     error // of qemu's end
	once    sync.Once
	jacks   []*netlab.Jack
}

const memory = 1024 // MiB

// processors is one where qemu translates: with two threads of it, kernels that patch their own code (static keys) were seen to trip over
// half a patch.
func processors() int {
	if Accelerator() == "kvm" {
		return 2
	}
	return 1
}

// Accelerator is "kvm" where the processor virtualises and a virtual machine can be made, and otherwise "tcg". A device that
// opens is not enough, nor is a machine that can be made: a KVM without the processor's help emulates, and gives up at the
// first instruction that it does not know, in the kernel's decompressor.
var Accelerator = sync.OnceValue(func() string {
	processor, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !regexp.MustCompile(`(?m)^flags\s*:.* (vmx|svm)( |$)`).Match(processor) {
		return "tcg"
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg"
	}
	defer kvm.Close()
	const kvmCreateVM = 0xae01 // KVM_CREATE_VM of linux/kvm.h
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, kvm.Fd(), kvmCreateVM, 0)
	if errno != 0 {
		return "tcg"
	}
	unix.Close(int(fd))
	return "kvm"
})

// Start powers a machine on.
func Start(ctx context.Context, lab *netlab.Lab, spec Spec) (*Machine, error) {
	m := &Machine{Spec: spec, lab: lab, done: make(chan struct{})}
	arguments, err := m.arguments()
	if err != nil {
		m.unplug()
		return nil, fmt.Errorf("machine %s: %w", spec.Name, err)
	}
	said := new(bytes.Buffer)
	m.qemu = exec.Command("qemu-system-x86_64", arguments...)
	m.qemu.Stdout, m.qemu.Stderr = said, said
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C is the program's to act on
	m.Began = time.Now()
	if err := m.qemu.Start(); err != nil {
		m.unplug()
		return nil, fmt.Errorf("machine %s: %w (Debian's package is qemu-system-x86)", spec.Name, err)
	}
	go func() {
		if err := m.qemu.Wait(); err != nil {
			m.err = fmt.Errorf("qemu: %w: %s", err, strings.TrimSpace(said.String()))
		}
		close(m.done)
	}()
	for m.monitor == nil {
		if m.monitor, err = dialMonitor(ctx, m.path("qmp")); err == nil {
			break
		}
		select {
		case <-m.done:
			m.unplug()
			return nil, fmt.Errorf("machine %s did not start: %w", spec.Name, errors.Join(m.err, err))
		case <-ctx.Done():
			m.Close()
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond): // qemu makes its sockets within milliseconds, and says nothing when
		}
	}
	return m, nil
}

// path is that of a file of the machine's.
func (m *Machine) path(name string) string { return filepath.Join(m.Dir, m.Name+"."+name) }

// arguments are qemu's, in the order of a machine's parts.
func (m *Machine) arguments() ([]string, error) {
	cpu := "max"
	if Accelerator() == "kvm" {
		cpu = "host"
	}
	a := []string{
		"-name", m.Name, "-nodefaults", "-display", "none", "-no-user-config",
		// Without "-no-reboot" a panic would boot for ever: it counts as the end.
		"-no-reboot",
		// sata and smbus cost TCG seconds, and podVMs have neither.
		"-machine", "q35,sata=off,smbus=off,accel=" + Accelerator(), "-cpu", cpu,
		"-smp", fmt.Sprint(processors()), "-m", fmt.Sprint(memory),
		"-serial", "file:" + option(m.path("console")),
		"-qmp", "unix:" + option(m.path("qmp")) + ",server=on,wait=off",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,path=" + option(m.path("agent")) + ",server=on,wait=off",
		"-device", "virtserialport,chardev=agent,id=agent,name=" + AgentPort,
		"-device", "virtio-rng-pci",
		// Where a NIC can be plugged in later.
		"-device", "pcie-root-port,id=spare,slot=1",
	}
	in := func(name string) string { return filepath.Join(m.Image, name) }
	root := cmp.Or(m.Root, in("disk.raw"))
	var disks []string
	switch m.Way {
	case Direct:
		line := m.CommandLine
		if line == "" {
			b, err := os.ReadFile(in("cmdline"))
			if err != nil {
				return nil, err
			}
			line = strings.TrimSpace(string(b))
		}
		a = append(a, "-kernel", cmp.Or(m.Kernel, in("vmlinuz")), "-initrd", in("initrd"), "-append", line)
		disks = append([]string{root}, m.Disks...)
	case UKI:
		a = append(a, "-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+Firmware, "-kernel", cmp.Or(m.Kernel, in("podvm.efi")))
		if m.CommandLine != "" {
			a = append(a, "-append", m.CommandLine)
		}
		disks = append([]string{root}, m.Disks...)
	case Disk:
		// The firmware keeps boot entries, and with them load options, in its variables.
		if _, err := os.Stat(m.path("vars")); errors.Is(err, os.ErrNotExist) {
			vars, err := os.ReadFile(FirmwareVars)
			if err != nil {
				return nil, err
			}
			if err := os.WriteFile(m.path("vars"), vars, 0o600); err != nil {
				return nil, err
			}
		}
		a = append(a, "-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+Firmware,
			"-drive", "if=pflash,unit=1,format=raw,file="+option(m.path("vars")))
		disks = append(slices.Clone(m.Disks), root)
	default:
		return nil, fmt.Errorf("no way to start it: %q", m.Way)
	}
	for i, d := range disks {
		if _, err := os.Stat(d); err != nil {
			return nil, err
		}
		a = append(a, "-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,readonly=on,file=%s", i, option(d)),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", i))
	}
	for name, content := range m.Credentials {
		a = append(a, "-smbios", fmt.Sprintf("type=11,value=io.systemd.credential.binary:%s=%s", name,
			base64.StdEncoding.EncodeToString([]byte(content))))
	}
	if !m.NoNetwork {
		jack, err := m.jack()
		if err != nil {
			return nil, err
		}
		m.Jack = jack
		a = append(a, "-netdev", "tap,id=net0,script=no,downscript=no,ifname="+jack.Device,
			"-device", "virtio-net-pci,romfile=,netdev=net0,mac="+jack.MAC.String())
	}
	return a, nil
}

// option writes a path as the value of one of qemu's options, in which a comma ends the value and two are one.
func option(path string) string { return strings.ReplaceAll(path, ",", ",,") }

func (m *Machine) jack() (*netlab.Jack, error) {
	j, err := m.lab.NewJack()
	if err == nil {
		m.jacks = append(m.jacks, j)
	}
	return j, err
}

// PlugNIC plugs a second NIC into the running machine, once.
func (m *Machine) PlugNIC(ctx context.Context) (*netlab.Jack, error) {
	j, err := m.jack()
	if err != nil {
		return nil, err
	}
	for _, c := range []struct {
		command   string
		arguments any
	}{
		{"netdev_add", map[string]any{"type": "tap", "id": "net1", "ifname": j.Device, "script": "no", "downscript": "no"}},
		{"device_add", map[string]any{
			"driver": "virtio-net-pci", "romfile": "", "id": "nic1", "netdev": "net1", "mac": j.MAC.String(), "bus": "spare",
		}},
	} {
		if _, err := m.monitor.run(ctx, c.command, c.arguments); err != nil {
			return nil, err
		}
	}
	return j, nil
}

// Agent connects to the agent's virtio port. Nothing says whether an agent listens: see AgentStarted.
func (m *Machine) Agent(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", m.path("agent"))
}

// AgentStarted says when a program of the machine first opened the agent's port: never, as the zero time. qemu sees it.
func (m *Machine) AgentStarted() time.Time {
	e, _ := m.monitor.saw(agentOpened)
	if e == nil {
		return time.Time{}
	}
	return e.At
}

func agentOpened(e Event) bool {
	var port struct {
		ID   string
		Open bool
	}
	return e.Name == "VSERPORT_CHANGE" && json.Unmarshal(e.Data, &port) == nil && port.ID == "agent" && port.Open
}

// AwaitAgent returns when the agent has opened its port.
func (m *Machine) AwaitAgent(ctx context.Context) error {
	for {
		e, heard := m.monitor.saw(agentOpened)
		if e != nil {
			return nil
		}
		select {
		case <-heard:
		case <-m.done:
			return fmt.Errorf("machine %s ended before its agent started: %s\n%s", m.Name, m.how(), m.LastOfConsole(20))
		case <-ctx.Done():
			return fmt.Errorf("machine %s: no agent after %s: %w\n%s", m.Name, time.Since(m.Began).Round(time.Second), ctx.Err(), m.LastOfConsole(20))
		}
	}
}

// Ending is how a machine ended.
type Ending string

const (
	// PoweredOff is what a guest does that switches itself off.
	PoweredOff Ending = "powered off"
	// Reset is what a kernel does that panics with panic=1, and a guest that reboots: the console says which.
	Reset Ending = "reset"
	// Killed is what Close does, and whatever else kills qemu.
	Killed Ending = "killed"
)

// Wait returns when the machine has ended by itself.
func (m *Machine) Wait(ctx context.Context) (Ending, error) {
	select {
	case <-m.done:
		return m.how(), nil
	case <-ctx.Done():
		return "", fmt.Errorf("machine %s still runs after %s: %w\n%s", m.Name, time.Since(m.Began).Round(time.Second), ctx.Err(), m.LastOfConsole(20))
	}
}

// Done is closed when the machine has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// how reads what qemu said last. It ends with the machine, and is asked only then.
func (m *Machine) how() Ending {
	<-m.monitor.gone
	e, _ := m.monitor.saw(func(e Event) bool { return e.Name == "SHUTDOWN" })
	if e == nil {
		return Killed
	}
	var why struct{ Reason string }
	if json.Unmarshal(e.Data, &why) != nil {
		return Killed
	}
	switch why.Reason {
	case "guest-shutdown":
		return PoweredOff
	case "guest-reset", "guest-panic":
		return Reset
	default:
		return Killed
	}
}

// Console is what the machine has written to its serial port so far, without the colours of systemd.
func (m *Machine) Console() string {
	b, err := os.ReadFile(m.path("console"))
	if err != nil {
		return ""
	}
	return plain(string(b))
}

// LastOfConsole is for messages.
func (m *Machine) LastOfConsole(lines int) string {
	all := strings.Split(strings.TrimSpace(m.Console()), "\n")
	return "      | " + strings.Join(all[max(0, len(all)-lines):], "\n      | ")
}

// AwaitConsole returns when text stands on the console.
func (m *Machine) AwaitConsole(ctx context.Context, text string) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(m.Console(), text) {
		select {
		case <-tick.C:
		case <-m.done:
			if strings.Contains(m.Console(), text) {
				return nil
			}
			return fmt.Errorf("machine %s ended (%s) without a word of %q\n%s", m.Name, m.how(), text, m.LastOfConsole(20))
		case <-ctx.Done():
			return fmt.Errorf("machine %s: no %q on the console after %s: %w\n%s", m.Name, text, time.Since(m.Began).Round(time.Second), ctx.Err(), m.LastOfConsole(20))
		}
	}
	return nil
}

// Close switches the machine off as a host does, without asking it, and takes it off the network.
func (m *Machine) Close() {
	m.once.Do(func() {
		m.qemu.Process.Kill()
		<-m.done
		if m.monitor != nil {
			m.monitor.conn.Close()
		}
		m.unplug()
	})
}

func (m *Machine) unplug() {
	for _, j := range m.jacks {
		_ = j.Remove() // it went with its qemu
	}
}

// plain drops carriage returns and escape sequences of terminals (ECMA-48, section 5.4).
func plain(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\r':
		case s[i] == 0x1b && i+1 < len(s) && s[i+1] == '[':
			for i += 2; i < len(s) && (s[i] < 0x40 || s[i] > 0x7e); i++ {
			}
		case s[i] == 0x1b:
			i++
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
