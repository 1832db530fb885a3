// Command init is the podVM's first process: it opens the root with the hash that the kernel's command line gives, or turns the
// machine off. The command line is measured, and so is this program; the disk is the host's, and what is read from it is
// believed only as far as dm-verity checks it.
//
// It knows one way to boot and takes no options. There is no shell to fall into.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	systemd = "/usr/lib/systemd/systemd"
	newRoot = "/sysroot"
	// What the partitions of the root's disk are called: that of the data, and that of the tree of hashes.
	dataName, hashName = "root", "root-verity"
	// A disk appears when its driver has found it. A host that has none gets no podVM.
	diskTimeout = 60 * time.Second
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is the first process of a podVM, and of nothing else")
		os.Exit(2)
	}
	signal.Ignore() // nobody but the kernel is there to send any
	err := boot()
	say("init: %v; turning the machine off", err)
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		say("init: turn the machine off: %v", err)
	}
	os.Exit(1) // the kernel panics, and panic=1 ends it
}

// say speaks to the kernel's log, which is all that there is.
func say(format string, args ...any) {
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		defer f.Close()
		fmt.Fprintf(f, format+"\n", args...)
	}
}

func boot() error {
	for _, m := range []struct{ kind, at string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	commandLine, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if err := pinned(string(commandLine), "/cmdline"); err != nil {
		return err
	}
	hash, err := rootHash(string(commandLine))
	if err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	root, err := openRoot(hash)
	if err != nil {
		return err
	}
	if err := unix.Mount(root, newRoot, "erofs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	return switchRoot()
}

// pinned compares the command line with the one that a file of the initrd has, where there is that file. The UKI's initrd has
// it: firmware and boot loaders may hand a UKI words in place of its own, and add-ons lying beside it append some, of which a
// launch measurement need not know. The initrd by itself does not: there the command line is the launcher's, and measured.
func pinned(commandLine, file string) error {
	want, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if strings.TrimSuffix(commandLine, "\n") != string(want) {
		return errors.New("the kernel's command line is not the one that was built in: something was added to it, or put in its place")
	}
	return nil
}

// rootHash finds the one roothash= of the command line. Two are a command line that somebody added to.
func rootHash(commandLine string) (string, error) {
	var found []string
	for word := range strings.FieldsSeq(commandLine) {
		if hash, ok := strings.CutPrefix(word, "roothash="); ok {
			found = append(found, hash)
		}
	}
	switch {
	case len(found) != 1:
		return "", fmt.Errorf("the kernel's command line has %d words roothash=, want one", len(found))
	case len(found[0]) != 64 || strings.Trim(found[0], "0123456789abcdef") != "":
		return "", errors.New("roothash= is not 64 hexadecimal digits")
	}
	return found[0], nil
}

// loadModules loads the modules of a folder, in the order of their names.
func loadModules(folder string) error {
	names, err := filepath.Glob(filepath.Join(folder, "*.ko"))
	if err != nil {
		return err
	}
	for _, name := range names { // Glob sorts
		if err := loadModule(name); err != nil {
			return fmt.Errorf("load %s: %w", filepath.Base(name), err)
		}
	}
	return nil
}

func loadModule(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, syscall.EEXIST) {
		return err
	}
	return nil
}

// openRoot waits for the disk and returns the device whose every block is checked against hash.
func openRoot(hash string) (string, error) {
	deadline := time.Now().Add(diskTimeout)
	data, hashes, err := findDisk("/sys/class/block")
	for err != nil {
		if time.Now().After(deadline) {
			return "", fmt.Errorf("no root disk within %v: %w", diskTimeout, err)
		}
		time.Sleep(20 * time.Millisecond)
		data, hashes, err = findDisk("/sys/class/block")
	}
	header, err := readHeader(hashes)
	if err != nil {
		return "", err
	}
	s, err := parseSuperblock(header)
	if err != nil {
		return "", err
	}
	return createVerity("root", s.table(data, hashes, hash), s.dataBlocks)
}

// findDisk returns the two partitions of the first disk that has both. Which disk that is, the host chooses, and what is on it; the
// hash decides whether it is the root.
func findDisk(class string) (data, hashes string, err error) {
	partitions, err := filepath.Glob(filepath.Join(class, "*"))
	if err != nil {
		return "", "", err
	}
	type disk struct{ data, hashes string }
	disks := map[string]*disk{}
	for _, p := range partitions { // Glob sorts
		device, err := filepath.EvalSymlinks(p) // below its disk
		if err != nil {
			continue // it went
		}
		uevent, err := os.ReadFile(filepath.Join(device, "uevent"))
		if err != nil {
			continue
		}
		d := disks[filepath.Dir(device)]
		if d == nil {
			d = new(disk)
			disks[filepath.Dir(device)] = d
		}
		switch path := filepath.Join("/dev", filepath.Base(p)); property(string(uevent), "PARTNAME") {
		case dataName:
			d.data = path
		case hashName:
			d.hashes = path
		}
		if d.data != "" && d.hashes != "" {
			return d.data, d.hashes, nil
		}
	}
	return "", "", fmt.Errorf("no disk has partitions %s and %s", dataName, hashName)
}

// property is a line of a uevent file: NAME=value.
func property(uevent, name string) string {
	for line := range strings.Lines(uevent) {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func readHeader(device string) ([]byte, error) {
	f, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	header := make([]byte, superblockSize)
	if _, err := f.ReadAt(header, 0); err != nil {
		return nil, fmt.Errorf("read the verity superblock: %w", err)
	}
	return header, nil
}

// switchRoot gives the initrd's memory back and becomes systemd in the new root.
func switchRoot() error {
	for _, at := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(at, newRoot+at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", at, err)
		}
	}
	// The program itself stays until it is replaced: it is open.
	for _, name := range []string{"/modules", "/cmdline", "/init"} {
		if err := os.RemoveAll(name); err != nil {
			return err
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// Nothing of the kernel's unknown words and variables but a path.
	err := unix.Exec(systemd, []string{systemd}, []string{"PATH=/usr/sbin:/usr/bin", "TERM=linux"})
	return fmt.Errorf("become systemd: %w", err)
}
