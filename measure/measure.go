// Package measure computes what a TEE will measure when it launches an image, from the image's files: the reference values
// of a manifest, without asking a machine for them.
//
// A launch measurement is a hash over everything that is in memory before the first instruction. On SEV-SNP that is the
// firmware, the pages that the firmware's metadata ask for, a page with the hashes of kernel, initrd and command line, and
// the registers of each vCPU. On TDX it is the firmware alone (MRTD); what comes later is measured into RTMRs by whoever
// loads it, and an event log says what.
//
// What a machine reports proves what it launched, and not that this is what one wanted; that is what these computations are
// for. They follow the vendors' specifications and hypervisors' habits: QEMU's for both. Where the order or content of pages
// is another hypervisor's own, the result is another, and nobody is told which: compare with a machine that is trusted.
package measure

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// pageSize is that of everything measured here, in bytes.
const pageSize = 4096

// maxFirmware bounds a firmware, in bytes: it ends at 4 GiB, below which chipsets leave it 16 MiB.
const maxFirmware = 16 << 20

// maxMemory bounds the sections of a firmware together, in bytes. OVMF's are its own size and some hundred pages.
const maxMemory = 256 << 20

// Firmware is a build of edk2's OvmfPkg, as OVMF.fd or the code half of it.
type Firmware struct {
	raw   []byte
	table map[uuid.UUID][]byte
}

// The entries of the table at OVMF's end (edk2, OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm).
var (
	guidFooter       = uuid.MustParse("96b582de-1fb2-45f7-baea-a366c55a082d")
	guidSEVMetadata  = uuid.MustParse("dc886566-984a-4798-a75e-5585a7bf67cc")
	guidSEVHashTable = uuid.MustParse("7255371f-3a3b-4b04-927b-1da6efa8d454")
	guidResetBlock   = uuid.MustParse("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
	guidTDXMetadata  = uuid.MustParse("e47a6535-984a-4798-865e-4685a7bf8ec2")
)

const (
	guidSize = 16
	// tableEnd is where the table ends, before the end of the file: behind it is the reset vector.
	tableEnd = 32
	// entryTail is what follows an entry's data: its whole length (u16) and its GUID.
	entryTail = 2 + guidSize
)

// ParseFirmware finds the table of metadata. The error says what is missing.
func ParseFirmware(raw []byte) (*Firmware, error) {
	if len(raw) == 0 || len(raw)%pageSize != 0 || len(raw) > maxFirmware {
		return nil, fmt.Errorf("a firmware of %d bytes, want whole pages of %d, at most %d bytes", len(raw), pageSize, maxFirmware)
	}
	f := &Firmware{raw: raw, table: map[uuid.UUID][]byte{}}
	rest := raw[:len(raw)-tableEnd]
	footer, length, ok := lastEntry(rest)
	if !ok || footer != guidFooter || length < entryTail || length > len(rest) {
		return nil, errors.New("this is no OVMF: it has no table of GUIDs before the reset vector")
	}
	rest = rest[len(rest)-length : len(rest)-entryTail]
	for len(rest) > 0 {
		id, length, ok := lastEntry(rest)
		if !ok || length < entryTail || length > len(rest) {
			return nil, errors.New("the firmware's table of GUIDs is cut off")
		}
		if _, twice := f.table[id]; twice {
			return nil, fmt.Errorf("the firmware's table has %s twice", id)
		}
		f.table[id] = rest[len(rest)-length : len(rest)-entryTail]
		rest = rest[:len(rest)-length]
	}
	return f, nil
}

// lastEntry reads the table from behind, as it is meant to be.
func lastEntry(b []byte) (id uuid.UUID, length int, ok bool) {
	if len(b) < entryTail {
		return id, 0, false
	}
	tail := b[len(b)-entryTail:]
	return parseGUID(tail[2:]), int(binary.LittleEndian.Uint16(tail)), true
}

// A GUID in firmware has its first three parts in little-endian order (UEFI specification, appendix A).
func parseGUID(b []byte) (id uuid.UUID) {
	copy(id[:], []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6]})
	copy(id[8:], b[8:guidSize])
	return id
}

func encodeGUID(id uuid.UUID) []byte {
	swapped := parseGUID(id[:])
	return swapped[:]
}

// words reads an entry of n numbers of 32 bits.
func (f *Firmware) words(id uuid.UUID, what string, n int) ([]uint32, error) {
	b, ok := f.table[id]
	switch {
	case !ok:
		return nil, fmt.Errorf("the firmware has no %s", what)
	case len(b) != 4*n:
		return nil, fmt.Errorf("the firmware's %s has %d bytes, want %d", what, len(b), 4*n)
	}
	words := make([]uint32, n)
	for i := range words {
		words[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return words, nil
}

// descriptor finds a list of sections: an entry says how far before the firmware's end it begins, with a signature, its
// length, version 1 and the number of sections.
func (f *Firmware) descriptor(id uuid.UUID, what, signature string, sectionSize int) ([][]byte, error) {
	offset, err := f.words(id, what, 1)
	if err != nil {
		return nil, err
	}
	const header = 16
	from := len(f.raw) - int(offset[0])
	if offset[0] < header || from < 0 || string(f.raw[from:from+4]) != signature {
		return nil, fmt.Errorf("the firmware's %s is not where its table says", what)
	}
	b := f.raw[from:]
	length, version, n := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	if version != 1 {
		return nil, fmt.Errorf("the firmware's %s is of version %d, want 1", what, version)
	}
	if uint64(length) > uint64(len(b)) || uint64(length) != header+uint64(n)*uint64(sectionSize) {
		return nil, fmt.Errorf("the firmware's %s has %d bytes for %d sections", what, length, n)
	}
	sections := make([][]byte, n)
	for i := range sections {
		sections[i] = b[header+i*sectionSize:][:sectionSize]
	}
	return sections, nil
}

// gpa is where the firmware is in the guest's memory: it ends at 4 GiB.
func (f *Firmware) gpa() uint64 { return 1<<32 - uint64(len(f.raw)) }
