package initdata_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"portcullis.dev/portcullis/guest/initdata"
)

func document(t testing.TB) []byte {
	t.Helper()
	b, err := initdata.Build(map[string]string{"policy.rego": "package agent_policy\n", "other": "x"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func disk(t testing.TB) []byte {
	t.Helper()
	b, err := initdata.Disk(document(t))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A once is a disk that nobody reads twice: it changes what was read.
type once struct {
	b  []byte
	at int
}

func (o *once) Read(p []byte) (int, error) {
	if o.at == len(o.b) {
		return 0, io.EOF
	}
	n := copy(p, o.b[o.at:])
	clear(o.b[o.at : o.at+n])
	o.at += n
	return n, nil
}

func TestADiskIsReadOnce(t *testing.T) {
	b := disk(t)
	if len(b)%512 != 0 {
		t.Errorf("%d bytes are no whole number of sectors", len(b))
	}
	for name, r := range map[string]io.Reader{
		"at once":          &once{b: bytes.Clone(b)},
		"byte by byte":     iotest.OneByteReader(&once{b: bytes.Clone(b)}),
		"with a large end": &once{b: append(bytes.Clone(b), make([]byte, 1<<20)...)},
		"end with data":    iotest.DataErrReader(bytes.NewReader(b)),
	} {
		got, err := initdata.ReadDisk(r)
		if err != nil || !bytes.Equal(got, document(t)) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// header is a disk that says that size bytes follow.
func header(size uint64, rest []byte) []byte {
	return append(binary.LittleEndian.AppendUint64([]byte("initdata"), size), rest...)
}

func TestWhatIsNoDiskWithInitdata(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty": nil, "short": []byte("initdata"), "cut in the length": []byte("initdata\x00\x00"),
		"zeros": make([]byte, 4096), "capitals": append([]byte("INITDATA"), disk(t)[8:]...),
	} {
		if _, err := initdata.ReadDisk(bytes.NewReader(b)); !errors.Is(err, initdata.ErrNoInitdata) {
			t.Errorf("%s: error %v, want ErrNoInitdata", name, err)
		}
	}
}

func TestBrokenDisksAreRefused(t *testing.T) {
	whole := disk(t)
	size := binary.LittleEndian.Uint64(whole[8:])
	bomb, err := initdata.Disk(bytes.Repeat([]byte("#"), initdata.MaxSize))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		b    []byte
		err  string
	}{
		{"no bytes", header(0, whole[16:]), "has 0 bytes"},
		{"more than a document has", header(initdata.MaxSize+1, whole[16:]), "bytes, want 1 to"},
		{"a length beyond memory", header(1<<63, whole[16:]), "bytes, want 1 to"},
		{"longer than the disk", header(uint64(len(whole)), whole[16:]), "the disk ends after"},
		{"nothing but a header", header(100, nil), "the disk ends after 0 of the 100"},
		{"cut", header(size-1, whole[16:]), "gzip"},
		{"padding counted as data", header(size+1, whole[16:]), "follow the end"},
		{"not gzip", header(64, bytes.Repeat([]byte("x"), 64)), "gzip"},
		{"two members", header(2*size, bytes.Repeat(whole[16:16+size], 2)), "follow the end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := initdata.ReadDisk(bytes.NewReader(c.b)); err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
	if _, err := initdata.ReadDisk(bytes.NewReader(bomb)); err != nil {
		t.Errorf("the largest document: %v", err)
	}
	broken := errors.New("broken")
	if _, err := initdata.ReadDisk(io.MultiReader(bytes.NewReader(whole[:20]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("a disk that fails: %v", err)
	}
}

func FuzzReadDisk(f *testing.F) {
	whole := disk(f)
	f.Add(whole)
	f.Add(header(100, nil))
	f.Add(header(0, whole[16:]))
	f.Fuzz(func(t *testing.T, b []byte) {
		if document, err := initdata.ReadDisk(bytes.NewReader(b)); err == nil && len(document) > initdata.MaxSize {
			t.Errorf("%d bytes", len(document))
		}
	})
}

// devices makes loop devices of real files, and a folder like /dev with their nodes.
func devices(t *testing.T, contents ...[]byte) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("block devices are root's: run as root")
	}
	dev := t.TempDir()
	for i, content := range contents {
		file := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("losetup", "--find", "--show", "--read-only", file).CombinedOutput()
		if err != nil {
			t.Fatalf("losetup: %v: %s", err, out)
		}
		loop := strings.TrimSpace(string(out))
		t.Cleanup(func() { exec.Command("losetup", "--detach", loop).Run() })
		if out, err := exec.Command("cp", "-a", loop, filepath.Join(dev, "vd"+strconv.Itoa(i))).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	return dev
}

func TestFindTakesTheOneDisk(t *testing.T) {
	zeros := make([]byte, 4096)
	dev := devices(t, zeros, disk(t), zeros)
	// What lies in /dev and is no disk is not opened: a pipe would never answer.
	if err := exec.Command("mkfifo", filepath.Join(dev, "pipe")).Run(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dev, "file"), disk(t), 0o600); err != nil {
		t.Fatal(err)
	}
	// Nor is what would answer: the kernel's log, which refuses so short a read. Others act on being opened, as watchdogs do.
	if err := exec.Command("mknod", filepath.Join(dev, "kmsg"), "c", "1", "11").Run(); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("vd1", filepath.Join(dev, "link")); err != nil {
		t.Fatal(err)
	}
	got, device, err := initdata.Find(dev, "/sys")
	if err != nil || !bytes.Equal(got, document(t)) || filepath.Base(device) != "vd1" {
		t.Errorf("%q from %s, %v", got, device, err)
	}
}

func TestFindRefusesTwoDisks(t *testing.T) {
	_, _, err := initdata.Find(devices(t, disk(t), disk(t)), "/sys")
	if err == nil || !strings.Contains(err.Error(), "both have initdata") {
		t.Errorf("error %v", err)
	}
}

func TestFindSaysThatThereIsNone(t *testing.T) {
	if _, _, err := initdata.Find(devices(t, make([]byte, 4096)), "/sys"); !errors.Is(err, initdata.ErrNoInitdata) {
		t.Errorf("error %v", err)
	}
	if _, _, err := initdata.Find(filepath.Join(t.TempDir(), "none"), "/sys"); err == nil || errors.Is(err, initdata.ErrNoInitdata) {
		t.Errorf("a folder that cannot be read: error %v", err)
	}
}

func TestFindNamesABrokenDisk(t *testing.T) {
	_, _, err := initdata.Find(devices(t, make([]byte, 4096), header(0, make([]byte, 496))), "/sys")
	if err == nil || !strings.Contains(err.Error(), "vd1: the disk says that its initdata has 0 bytes") {
		t.Errorf("error %v", err)
	}
}

// A partition is part of a disk, whose own first bytes count: the host cannot hide a second document in one.
func TestFindLeavesPartitionsOut(t *testing.T) {
	dev := devices(t, disk(t))
	out, err := exec.Command("stat", "-c", "%Hr:%Lr", filepath.Join(dev, "vd0")).Output()
	if err != nil {
		t.Fatal(err)
	}
	sys := t.TempDir()
	folder := filepath.Join(sys, "dev/block", strings.TrimSpace(string(out)))
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "partition"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := initdata.Find(dev, sys); !errors.Is(err, initdata.ErrNoInitdata) {
		t.Errorf("error %v", err)
	}
}

func TestDeliver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "podvm")
	data := map[string]string{"policy.rego": "p\n", "coordinator-pin": "c"}
	if err := initdata.Deliver(data, dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(data) {
		t.Fatalf("%v, %v", entries, err)
	}
	for name, text := range data {
		b, err := os.ReadFile(filepath.Join(dir, name))
		info, _ := os.Stat(filepath.Join(dir, name))
		if err != nil || string(b) != text || info.Mode() != 0o444 {
			t.Errorf("%s: %q, %v, %v", name, b, info.Mode(), err)
		}
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v", info.Mode())
	}
	if err := initdata.Deliver(data, dir); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("a second time: %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the folder: %v, %v", left, err)
	}
}

func TestDeliverNeverLeavesHalf(t *testing.T) {
	for name, data := range map[string]map[string]string{
		"no names": {}, "a way out": {"../x": "x"}, "hidden": {".x": "x"}, "not text": {"x": "\xff"},
	} {
		dir := filepath.Join(t.TempDir(), "podvm")
		if err := initdata.Deliver(data, dir); err == nil {
			t.Errorf("%s: delivered", name)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something is there: %v", name, err)
		}
	}
	// Whatever else is there, a link above all, is not followed and not replaced.
	dir := filepath.Join(t.TempDir(), "podvm")
	if err := os.Symlink(t.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	if err := initdata.Deliver(map[string]string{"x": "x"}, dir); err == nil {
		t.Error("delivered through a link")
	}
}
