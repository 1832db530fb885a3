package measure

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

// Section types and attributes of TDVF's metadata (Intel, "TDX Virtual Firmware Design Guide", table "TDVF Section
// Attributes"; edk2, OvmfPkg/ResetVector/X64/IntelTdxMetadata.asm).
const (
	sectionFirmware  = 0
	sectionVariables = 1
	sectionHOB       = 2
	sectionTemporary = 3

	attributeExtend = 1 << 0 // the contents are measured, not only the place
)

// MRTD computes the measurement of a TD's first memory: for each page that is added, its place, and for each 256 bytes that
// are measured, their place and contents (Intel TDX Module ABI specification, TDH.MEM.PAGE.ADD and TDH.MR.EXTEND). Pages are
// measured as they are added, in the order of the metadata, as KVM does since Linux 6.16; a host that adds all pages before
// it measures any makes another MRTD.
func (f *Firmware) MRTD() (mrtd [sha512.Size384]byte, err error) {
	sections, err := f.descriptor(guidTDXMetadata, "TDX metadata", "TDVF", 32)
	if err != nil {
		return mrtd, err
	}
	h := sha512.New384()
	measured, total := false, uint64(0)
	for _, section := range sections {
		offset, size := binary.LittleEndian.Uint32(section), binary.LittleEndian.Uint32(section[4:])
		gpa, inMemory := binary.LittleEndian.Uint64(section[8:]), binary.LittleEndian.Uint64(section[16:])
		kind, attributes := binary.LittleEndian.Uint32(section[24:]), binary.LittleEndian.Uint32(section[28:])
		if total += min(inMemory, maxMemory+1); total > maxMemory {
			return mrtd, fmt.Errorf("the firmware's sections are larger than %d bytes together", maxMemory)
		}
		switch {
		case kind > sectionTemporary:
			return mrtd, fmt.Errorf("the firmware has a section of type %d, which is unknown", kind)
		case attributes&^attributeExtend != 0:
			return mrtd, fmt.Errorf("the firmware has a section with attributes %#x, which are unknown", attributes)
		case gpa%pageSize != 0 || inMemory%pageSize != 0 || gpa > 1<<52:
			return mrtd, fmt.Errorf("the firmware's section at %#x, %#x bytes, is not of whole pages", gpa, inMemory)
		case uint64(offset)+uint64(size) > uint64(len(f.raw)) || uint64(size) > inMemory:
			return mrtd, fmt.Errorf("the firmware's section of %#x bytes at %#x is not in its %#x bytes", size, offset, len(f.raw))
		case (kind == sectionHOB || kind == sectionTemporary) && size != 0:
			return mrtd, fmt.Errorf("the firmware's section of type %d has contents", kind)
		}
		contents := f.raw[offset:][:size]
		extend := attributes&attributeExtend != 0
		measured = measured || extend && kind == sectionFirmware
		for at := uint64(0); at < inMemory; at += pageSize {
			addPage(h, gpa+at)
			if extend {
				extendPage(h, gpa+at, contents, at)
			}
		}
	}
	if !measured {
		return mrtd, errors.New("the firmware does not ask for its own code to be measured")
	}
	return [sha512.Size384]byte(h.Sum(nil)), nil
}

// operation is the buffer of 128 bytes that stands for one call: its name, and the page's address behind 16 bytes.
func operation(name string, gpa uint64) []byte {
	b := make([]byte, 128)
	copy(b, name)
	binary.LittleEndian.PutUint64(b[16:], gpa)
	return b
}

func addPage(h hash.Hash, gpa uint64) { h.Write(operation("MEM.PAGE.ADD", gpa)) }

// extendPage measures the page of contents at offset, filled up with zeros.
func extendPage(h hash.Hash, gpa uint64, contents []byte, offset uint64) {
	const chunk = 256
	page := make([]byte, pageSize)
	if offset < uint64(len(contents)) {
		copy(page, contents[offset:])
	}
	for at := 0; at < pageSize; at += chunk {
		h.Write(operation("MR.EXTEND", gpa+uint64(at)))
		h.Write(page[at : at+chunk])
	}
}
