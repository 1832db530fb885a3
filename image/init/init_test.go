package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const hash = "aedd618c108daf196d8db9b1e43d8ffc6c19f9bc149178e86c8b0c7224f44cca"

// wantError fails the test unless err says text, or is nil where text is empty.
func wantError(t *testing.T, err error, text string) {
	t.Helper()
	if text == "" && err != nil || text != "" && (err == nil || !strings.Contains(err.Error(), text)) {
		t.Errorf("error %v, want %q", err, text)
	}
}

func TestRootHashIsTheOneOfTheCommandLine(t *testing.T) {
	for _, c := range []struct{ name, commandLine, err string }{
		{"one", "panic=1 roothash=" + hash + " quiet\n", ""},
		{"none", "panic=1\n", "0 words roothash="},
		{"two", "roothash=" + hash + " roothash=" + hash, "2 words roothash="},
		{"another beside it", "roothash=" + strings.Repeat("0", 64) + " roothash=" + hash, "2 words roothash="},
		{"empty", "roothash=", "64 hexadecimal digits"},
		{"short", "roothash=" + hash[:62], "64 hexadecimal digits"},
		{"capitals", "roothash=" + strings.ToUpper(hash), "64 hexadecimal digits"},
		{"not a number", "roothash=" + strings.Repeat("g", 64), "64 hexadecimal digits"},
		{"part of a word", "xroothash=" + hash, "0 words roothash="},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := rootHash(c.commandLine)
			wantError(t, err, c.err)
			if c.err == "" && got != hash {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestAPinnedCommandLineTakesNoOther(t *testing.T) {
	const built = "panic=1 roothash=" + hash
	file := filepath.Join(t.TempDir(), "cmdline")
	wantError(t, pinned(built+" anything", file), "") // an initrd without one leaves the line to the launcher
	if err := os.WriteFile(file, []byte(built), 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, pinned(built+"\n", file), "")
	for _, commandLine := range []string{"", "\n", built + " systemd.debug_shell\n", "x " + built, built[1:], built + "\n\n", strings.ToUpper(built)} {
		wantError(t, pinned(commandLine, file), "not the one that was built in")
	}
	wantError(t, pinned(built, t.TempDir()), "is a directory") // what cannot be read is not known to be equal
}

func TestTheRootIsOnTheDiskThatHasBothPartitions(t *testing.T) {
	type partition struct{ disk, name, label string }
	for _, c := range []struct {
		name         string
		partitions   []partition
		data, hashes string
	}{
		{"alone", []partition{{"vda", "vda1", "root"}, {"vda", "vda2", "root-verity"}}, "/dev/vda1", "/dev/vda2"},
		{"behind another disk", []partition{
			{"vda", "vda1", "ESP"}, {"vdb", "vdb1", "root"}, {"vdb", "vdb2", "root-verity"},
		}, "/dev/vdb1", "/dev/vdb2"},
		{"in another order", []partition{{"vda", "vda1", "root-verity"}, {"vda", "vda2", "root"}}, "/dev/vda2", "/dev/vda1"},
		{"two of them", []partition{
			{"vdb", "vdb1", "root"}, {"vdb", "vdb2", "root-verity"}, {"vda", "vda1", "root"}, {"vda", "vda2", "root-verity"},
		}, "/dev/vda1", "/dev/vda2"},
		{"halves of two disks", []partition{{"vda", "vda1", "root"}, {"vdb", "vdb1", "root-verity"}}, "", ""},
		{"other names", []partition{{"vda", "vda1", "roots"}, {"vda", "vda2", "root-verity-sig"}}, "", ""},
		{"none", nil, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			class := filepath.Join(dir, "class")
			if err := os.Mkdir(class, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, p := range c.partitions {
				device := filepath.Join(dir, "devices", p.disk, p.name)
				if err := os.MkdirAll(device, 0o700); err != nil {
					t.Fatal(err)
				}
				uevent := "MAJOR=254\nDEVNAME=" + p.name + "\nDEVTYPE=partition\nPARTNAME=" + p.label + "\n"
				if err := os.WriteFile(filepath.Join(device, "uevent"), []byte(uevent), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(device, filepath.Join(class, p.name)); err != nil {
					t.Fatal(err)
				}
			}
			data, hashes, err := findDisk(class)
			if data != c.data || hashes != c.hashes || (err == nil) != (c.data != "") {
				t.Errorf("%q, %q, %v", data, hashes, err)
			}
		})
	}
}

// written is a superblock as veritysetup writes it.
func written(change func(b []byte)) []byte {
	b := make([]byte, superblockSize)
	copy(b, "verity\x00\x00")
	binary.LittleEndian.PutUint32(b[8:], 1)
	binary.LittleEndian.PutUint32(b[12:], 1)
	copy(b[32:], "sha256")
	binary.LittleEndian.PutUint32(b[64:], blockSize)
	binary.LittleEndian.PutUint32(b[68:], blockSize)
	binary.LittleEndian.PutUint64(b[72:], 24000)
	binary.LittleEndian.PutUint16(b[80:], 32)
	copy(b[88:], bytes.Repeat([]byte{0xab}, 32))
	change(b)
	return b
}

func TestSuperblock(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(b []byte)
		err    string
	}{
		{"as written", func([]byte) {}, ""},
		{"no signature", func(b []byte) { b[0] = 'V' }, "no verity superblock"},
		{"version", func(b []byte) { b[8] = 2 }, "version 2"},
		{"Chromium's type", func(b []byte) { b[12] = 0 }, "type 0"},
		{"weak algorithm", func(b []byte) { copy(b[32:], "sha1\x00\x00") }, `"sha1"`},
		{"algorithm with words", func(b []byte) { copy(b[32:], "sha256 1 ignore_corruption") }, `"sha256 1 ignore`},
		{"data blocks of another size", func(b []byte) { b[65] = 2 }, "blocks of 512"},
		{"hash blocks of another size", func(b []byte) { b[69] = 2 }, "and 512 bytes"},
		{"no data", func(b []byte) { copy(b[72:80], make([]byte, 8)) }, "over 0 blocks"},
		{"more data than a disk has", func(b []byte) { b[79] = 0xff }, "verity over"},
		{"no salt", func(b []byte) { b[80] = 0 }, "salt of 0"},
		{"a salt beyond its field", func(b []byte) { b[81] = 2 }, "salt of 544"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := parseSuperblock(written(c.change))
			wantError(t, err, c.err)
			if c.err != "" {
				return
			}
			const want = "1 /dev/vda1 /dev/vda2 4096 4096 24000 1 sha256 " + hash + " "
			if got := s.table("/dev/vda1", "/dev/vda2", hash); got != want+strings.Repeat("ab", 32)+" 1 panic_on_corruption" {
				t.Errorf("table %q", got)
			}
		})
	}
	for n := range 344 { // what follows the salt means nothing
		if _, err := parseSuperblock(written(func([]byte) {})[:n]); err == nil {
			t.Errorf("%d bytes were enough", n)
		}
	}
}

// The kernel reads these structures by their offsets.
func TestDeviceMapperStructures(t *testing.T) {
	if header, target := binary.Size(dmHeader{}), binary.Size(dmTarget{}); header != dmHeaderSize || target != 40 {
		t.Errorf("a header of %d bytes and a target of %d", header, target)
	}
}
