package initdata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The disk that a runtime attaches with a pod's initdata: these bytes, the length of what follows as a little-endian 64-bit number,
// and the document in one gzip member. What is behind that on the disk is padding, and is not read.
const (
	magic      = "initdata"
	headerSize = len(magic) + 8
	// maxCompressed bounds what is read from a disk, in bytes: more cannot have been in an annotation, and gzip does not grow by much.
	maxCompressed = MaxSize
)

// Disk returns the bytes of a disk with document on it, a whole number of sectors.
func Disk(document []byte) ([]byte, error) {
	compressed, err := deflate(document)
	if err != nil {
		return nil, fmt.Errorf("make an initdata disk: %w", err)
	}
	b := binary.LittleEndian.AppendUint64([]byte(magic), uint64(len(compressed)))
	b = append(b, compressed...)
	const sector = 512
	return append(b, make([]byte, (sector-len(b)%sector)%sector)...), nil
}

// ReadDisk reads the document from a disk, front to back: the host may change a byte after it was read, so none is read twice.
// The error is ErrNoInitdata where the disk does not begin as one with initdata.
func ReadDisk(disk io.Reader) ([]byte, error) {
	header := make([]byte, headerSize)
	switch _, err := io.ReadFull(disk, header); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, ErrNoInitdata
	case err != nil:
		return nil, err
	case string(header[:len(magic)]) != magic:
		return nil, ErrNoInitdata
	}
	size := binary.LittleEndian.Uint64(header[len(magic):])
	if size == 0 || size > maxCompressed {
		return nil, fmt.Errorf("the disk says that its initdata has %d bytes, want 1 to %d", size, maxCompressed)
	}
	compressed := make([]byte, size)
	if n, err := io.ReadFull(disk, compressed); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("the disk ends after %d of the %d bytes of its initdata", n, size)
	} else if err != nil {
		return nil, err
	}
	return Inflate(compressed)
}

// ErrNoInitdata says that a disk holds something else, or that no disk holds initdata.
var ErrNoInitdata = errors.New("no initdata")

// Find reads the initdata from the one disk among dev, /dev in a guest, that has it; sys is /sys, which knows what is a partition.
// The error is ErrNoInitdata where there is none, and names the devices where there is more than one.
func Find(dev, sys string) (document []byte, device string, err error) {
	entries, err := os.ReadDir(dev)
	if err != nil {
		return nil, "", err
	}
	for _, entry := range entries {
		path := filepath.Join(dev, entry.Name())
		// Not the entry's own type: a node that is bound there has another.
		info, err := os.Lstat(path)
		if err != nil || info.Mode()&fs.ModeDevice == 0 || info.Mode()&fs.ModeCharDevice != 0 {
			continue
		}
		found, err := readDevice(path, sys)
		switch {
		case errors.Is(err, ErrNoInitdata):
		case err != nil:
			return nil, "", fmt.Errorf("%s: %w", path, err)
		case device != "":
			return nil, "", fmt.Errorf("%s and %s both have initdata: a podVM gets one", device, path)
		default:
			document, device = found, path
		}
	}
	if device == "" {
		return nil, "", ErrNoInitdata
	}
	return document, device, nil
}

func readDevice(path, sys string) ([]byte, error) {
	// Not blocking on a drive that waits for a medium.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENOENT), isNoMedium(err):
		return nil, ErrNoInitdata // nothing is in it, or it went
	case err != nil:
		return nil, err
	}
	defer f.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return nil, err
	}
	number := fmt.Sprintf("%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	if _, err := os.Stat(filepath.Join(sys, "dev/block", number, "partition")); err == nil {
		return nil, ErrNoInitdata // the disk's own bytes are what counts
	}
	document, err := ReadDisk(f)
	if isNoMedium(err) {
		return nil, ErrNoInitdata
	}
	return document, err
}

func isNoMedium(err error) bool { return errors.Is(err, unix.ENOMEDIUM) }

// Deliver writes each string of data to a file of its name in the folder dir, for everyone in the guest to read. The folder
// appears whole: it must not be there yet.
func Deliver(data map[string]string, dir string) error {
	if err := checkData(data); err != nil {
		return fmt.Errorf("deliver initdata: %w", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("deliver initdata: %s is there already", dir)
	}
	fresh, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".*")
	if err != nil {
		return fmt.Errorf("deliver initdata: %w", err)
	}
	defer os.RemoveAll(fresh)
	for name, text := range data {
		path := filepath.Join(fresh, name)
		if err := os.WriteFile(path, []byte(text), 0o444); err != nil {
			return fmt.Errorf("deliver initdata: %w", err)
		}
		if err := os.Chmod(path, 0o444); err != nil { // whatever the umask
			return fmt.Errorf("deliver initdata: %w", err)
		}
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return fmt.Errorf("deliver initdata: %w", err)
	}
	// Onto an empty folder a rename would succeed too; onto one with files, and onto a link, it fails.
	if err := os.Rename(fresh, dir); err != nil {
		return fmt.Errorf("deliver initdata: %w", err)
	}
	return nil
}

// Names lists what a document's data has, for a log: the texts themselves are not for it.
func Names(data map[string]string) string {
	return strings.Join(slices.Sorted(maps.Keys(data)), " ")
}
