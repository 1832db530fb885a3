package vm_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// addon is a UKI addon for the command line, as ukify makes them: a PE image of nothing but sections.
// systemd-stub(7), "Companion files".
func addon(words string) []byte {
	const fileAlignment, sectionAlignment = 0x200, 0x1000
	sections := []struct {
		name string
		data []byte
	}{
		{".text", []byte{0xc3}}, // ret: nobody calls it, but an entry point must be somewhere
		{".sdmagic", []byte("#### LoaderInfo: systemd-addon 257 ####\x00")},
		{".cmdline", []byte(words)},
	}
	round := func(n, to int) int { return (n + to - 1) / to * to }
	var image, bodies bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			_ = binary.Write(&image, binary.LittleEndian, v) // to a buffer
		}
	}
	const headers = 0x400
	size := sectionAlignment * (len(sections) + 1)
	// PE Format, Microsoft: MS-DOS stub, COFF header, optional header of PE32+, section table
	image.WriteString("MZ")
	image.Write(make([]byte, 58))
	put(uint32(64))
	image.WriteString("PE\x00\x00")
	put(uint16(0x8664), uint16(len(sections)), uint32(0), uint32(0), uint32(0), uint16(112+16*8), uint16(0x0022))
	put(uint16(0x20b), uint16(0), uint32(fileAlignment), uint32(fileAlignment*2), uint32(0), uint32(sectionAlignment), uint32(sectionAlignment))
	put(uint64(0), uint32(sectionAlignment), uint32(fileAlignment), [6]uint16{}, uint32(0), uint32(size), uint32(headers), uint32(0))
	put(uint16(10), uint16(0), [4]uint64{}, uint32(0), uint32(16), [16]uint64{}) // subsystem 10 is an EFI application
	for i, s := range sections {
		var name [8]byte
		copy(name[:], s.name)
		raw := round(len(s.data), fileAlignment)
		put(name, uint32(len(s.data)), uint32(sectionAlignment*(i+1)), uint32(raw), uint32(headers+bodies.Len()), [3]uint32{}, uint32(0x60000020))
		bodies.Write(s.data)
		bodies.Write(make([]byte, raw-len(s.data)))
	}
	image.Write(make([]byte, headers-image.Len()))
	image.Write(bodies.Bytes())
	return image.Bytes()
}

// esp makes a disk that is one FAT file system with these files, which a firmware boots from as from an EFI system partition.
func esp(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "esp")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	mtools := func(args ...string) {
		cmd := exec.Command(args[0], args[1:]...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s (Debian's package is mtools)", args, err, out)
		}
	}
	mtools("mformat", "-i", disk, "-F", "::")
	made := map[string]bool{".": true}
	for name, content := range files {
		var missing []string
		for d := filepath.Dir(name); !made[d]; d = filepath.Dir(d) {
			missing = append([]string{d}, missing...)
			made[d] = true
		}
		for _, d := range missing {
			mtools("mmd", "-i", disk, "::"+d)
		}
		source := filepath.Join(dir, "file")
		if err := os.WriteFile(source, content, 0o600); err != nil {
			t.Fatal(err)
		}
		mtools("mcopy", "-i", disk, source, "::"+name)
	}
	return disk
}
