package simtee

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// A pretended TEE in a virtual machine is a disk: who attaches it plays the hardware, and says what was launched, with what
// HOSTDATA, and by whose keys that is signed. It holds these bytes, the length of what follows as a little-endian 64-bit number, and
// JSON.
const diskMagic = "simtee01"

// maxDisk bounds the JSON, in bytes.
const maxDisk = 1 << 20

type launch struct {
	Measurement string            `json:"measurement"` // 96 hexadecimal digits
	HostData    []byte            `json:"hostData"`
	World       map[string][]byte `json:"world"` // the files that Save writes
}

// Disk is the bytes of such a disk: a whole number of sectors.
func (w *World) Disk(measurement Measurement, hostData [32]byte) ([]byte, error) {
	dir, err := os.MkdirTemp("", "simtee")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	world := filepath.Join(dir, "world")
	if err := w.Save(world); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(world)
	if err != nil {
		return nil, err
	}
	l := launch{Measurement: measurement.String(), HostData: hostData[:], World: map[string][]byte{}}
	for _, e := range entries {
		if l.World[e.Name()], err = os.ReadFile(filepath.Join(world, e.Name())); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint64([]byte(diskMagic), uint64(len(text)))
	b = append(b, text...)
	const sector = 512
	return append(b, make([]byte, (sector-len(b)%sector)%sector)...), nil
}

// ErrNoDisk says that a disk holds something else.
var ErrNoDisk = errors.New("no pretended TEE")

// ReadDisk returns the machine that a disk plays.
func ReadDisk(disk io.Reader) (*Machine, error) {
	header := make([]byte, len(diskMagic)+8)
	if _, err := io.ReadFull(disk, header); err != nil || string(header[:len(diskMagic)]) != diskMagic {
		return nil, ErrNoDisk
	}
	size := binary.LittleEndian.Uint64(header[len(diskMagic):])
	if size > maxDisk {
		return nil, fmt.Errorf("the disk of a pretended TEE has %d bytes, the limit is %d", size, maxDisk)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(disk, text); err != nil {
		return nil, err
	}
	var l launch
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, err
	}
	measurement, err := ParseMeasurement(l.Measurement)
	if err != nil {
		return nil, err
	}
	if len(l.HostData) != 32 {
		return nil, fmt.Errorf("HOSTDATA has %d bytes, want 32", len(l.HostData))
	}
	dir, err := os.MkdirTemp("", "simtee")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for name, content := range l.World {
		if name != filepath.Base(name) {
			return nil, fmt.Errorf("a file of the world is called %q", name)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	w, err := Load(dir)
	if err != nil {
		return nil, err
	}
	return w.Machine(measurement, [32]byte(l.HostData)), nil
}

// FindDisk looks for such a disk among the block devices and files of dir.
func FindDisk(dir string) (*Machine, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Type()&os.ModeCharDevice != 0 || e.Type()&os.ModeDevice == 0 && !e.Type().IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // an empty drive
		}
		machine, err := ReadDisk(f)
		f.Close()
		if !errors.Is(err, ErrNoDisk) {
			return machine, err
		}
	}
	return nil, fmt.Errorf("%s: %w", dir, ErrNoDisk)
}
