package vm_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"portcullis.dev/portcullis/tests/podvm/vm"
)

// Whoever changes the disk, or says another root hash, gets a machine that ends before its agent starts.
func TestTamperedDiskEndsTheMachine(t *testing.T) {
	for _, c := range []struct {
		name   string
		tamper func(t *testing.T, d *disk)
	}{
		{"superblock", func(t *testing.T, d *disk) { d.flip(t, d.root.offset+1024) }},
		// Read only when the agent is executed, long after the root was mounted.
		{"block of the agent", func(t *testing.T, d *disk) { d.flip(t, d.root.offset+d.extent(t, "/usr/bin/kata-agent")) }},
		{"verity superblock", func(t *testing.T, d *disk) { d.flip(t, d.verity.offset+64) }}, // data block size and on
		{"verity tree, top", func(t *testing.T, d *disk) { d.flip(t, d.verity.offset+4096+100) }},
		{"verity tree, leaves", func(t *testing.T, d *disk) {
			for at := d.verity.offset + 3*4096; at < d.verity.offset+d.verity.size; at += 4096 {
				d.flip(t, at)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := image(t, "plain")
			d := copyDisk(t, filepath.Join(dir, "disk.raw"))
			c.tamper(t, d)
			m := start(t, vm.Spec{Image: dir, Way: vm.Direct, Root: d.path})
			refusedSomehow(t, m)
			t.Logf("\n%s", mentions(m, "verity", " init: ", "panic", "Power down"))
			// Any machine may end early; this one did for that.
			if said := m.Console(); !strings.Contains(said, "verity") {
				t.Errorf("the console says nothing of dm-verity:\n%s", m.LastOfConsole(20))
			}
		})
	}
}

func TestWrongRootHashEndsTheMachine(t *testing.T) {
	dir := image(t, "plain")
	line := commandLine(t, dir)
	hash := regexp.MustCompile(`roothash=[0-9a-f]{64}`)
	if !hash.MatchString(line) {
		t.Fatalf("no root hash in %q", line)
	}
	zeros := "roothash=" + strings.Repeat("0", 64)
	for _, c := range []struct{ name, line, says string }{
		{"another", hash.ReplaceAllString(line, zeros), "verity"},
		{"none", hash.ReplaceAllString(line, ""), "has 0 words roothash="},
		{"a second one after it", line + " " + zeros, "has 2 words roothash="},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := start(t, vm.Spec{Image: dir, Way: vm.Direct, CommandLine: c.line})
			refusedSomehow(t, m)
			t.Logf("\n%s", mentions(m, "verity", " init: ", "panic", "Power down"))
			if !strings.Contains(m.Console(), c.says) {
				t.Errorf("the console does not say %q:\n%s", c.says, m.LastOfConsole(20))
			}
			if !strings.Contains(m.Console(), c.says) {
				t.Errorf("the console does not say %q:\n%s", c.says, m.LastOfConsole(20))
			}
		})
	}
}

// refusedSomehow is refused for what a kernel may end by a panic, and an initrd by powering off.
func refusedSomehow(t *testing.T, m *vm.Machine) {
	t.Helper()
	got, err := m.Wait(within(t, bootTime))
	if err != nil {
		t.Fatal(err)
	}
	if got == vm.Killed {
		t.Errorf("the machine did not end by itself\n%s", m.LastOfConsole(20))
	}
	t.Logf("%s", got)
	if at := m.AgentStarted(); !at.IsZero() {
		t.Errorf("the agent started %.1f s after power-on", at.Sub(m.Began).Seconds())
	}
}

func commandLine(t *testing.T, image string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(image, "cmdline"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// disk is a copy of an image's disk, to be spoilt.
type disk struct {
	path         string
	root, verity partition
}

type partition struct{ offset, size int64 }

func copyDisk(t *testing.T, from string) *disk {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	d := &disk{path: filepath.Join(t.TempDir(), "disk.raw")}
	out, err := os.Create(d.path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	// UEFI specification, 5.3: the entries stand in block 2 and have 128 bytes each; type, then first and last block.
	entries := make([]byte, 4*128)
	if _, err := in.ReadAt(entries, 2*512); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		part *partition
		kind []byte // the first bytes of the type, as they stand there: Discoverable Partitions Specification, x86-64
	}{
		{&d.root, []byte{0xe3, 0xbc, 0x68, 0x4f}}, {&d.verity, []byte{0xed, 0x57, 0x73, 0x2c}},
	} {
		for e := entries; len(e) > 0; e = e[128:] {
			if bytes.HasPrefix(e, p.kind) {
				first, last := int64(binary.LittleEndian.Uint64(e[32:])), int64(binary.LittleEndian.Uint64(e[40:]))
				*p.part = partition{first * 512, (last - first + 1) * 512}
			}
		}
		if p.part.size == 0 {
			t.Fatalf("%s has no partition of type %x...", from, p.kind)
		}
	}
	return d
}

// flip changes one byte.
func (d *disk) flip(t *testing.T, at int64) {
	t.Helper()
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// extent is where, within the root file system, a file's data begins.
func (d *disk) extent(t *testing.T, file string) int64 {
	t.Helper()
	part := filepath.Join(t.TempDir(), "root.erofs")
	out, err := exec.Command("dd", "if="+d.path, "of="+part, "iflag=skip_bytes,count_bytes", "bs=1M",
		fmt.Sprintf("skip=%d", d.root.offset), fmt.Sprintf("count=%d", d.root.size)).CombinedOutput()
	if err != nil {
		t.Fatalf("dd: %v: %s", err, out)
	}
	out, err = exec.Command("dump.erofs", "-e", "--path="+file, part).CombinedOutput()
	if err != nil {
		t.Fatalf("dump.erofs: %v: %s (Debian's package is erofs-utils)", err, out)
	}
	first := regexp.MustCompile(`(?m)^\s*0:\s+0\.\.\s*\d+\s*\|\s*\d+\s*:\s*(\d+)\.\.`).FindSubmatch(out)
	if first == nil {
		t.Fatalf("dump.erofs shows no extent of %s: %s", file, out)
	}
	at, err := strconv.ParseInt(string(first[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s begins %d bytes into the root file system", file, at)
	return at
}
