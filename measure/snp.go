package measure

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// SNP is what is launched as a guest of SEV-SNP by QEMU.
type SNP struct {
	Firmware *Firmware
	// Boot is measured direct boot. Nil for a guest that boots from its disk.
	Boot *DirectBoot
	// VCPUs is their number, at least 1.
	VCPUs int
	// CPU is CPUID_1_EAX of the vCPUs, which each finds in its register RDX. See CPUSignature.
	CPU uint32
	// Features are SEV_FEATURES of the vCPUs (AMD document 24593, appendix B): bit 0, SNP, must be set.
	Features uint64
}

// DirectBoot is what QEMU hands to the firmware, by hash.
type DirectBoot struct {
	// Kernel and Initrd are SHA-256 of the files; without an initrd, that of nothing.
	Kernel, Initrd [sha256.Size]byte
	CommandLine    string
}

const (
	maxVCPUs   = 4096
	featureSNP = 1 << 0
)

// Page types of SNP_LAUNCH_UPDATE (AMD document 56860, table "PAGE_TYPE").
const (
	pageNormal  = 1
	pageVMSA    = 2
	pageZero    = 3
	pageSecrets = 5
	pageCPUID   = 6
)

// Section types of OVMF's SEV metadata (edk2, OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
const (
	sectionMemory  = 1
	sectionSecrets = 2
	sectionCPUID   = 3
	sectionCAA     = 4
	sectionHashes  = 0x10
)

// gpaVMSA is where KVM measures the vCPUs' registers: the last page of 48 bits.
const gpaVMSA = 1<<48 - pageSize

// Measure computes MEASUREMENT. The error says what is missing or cannot be.
func (s SNP) Measure() ([sha512.Size384]byte, error) {
	var none [sha512.Size384]byte
	switch {
	case s.Firmware == nil:
		return none, errors.New("no firmware is given")
	case s.VCPUs < 1 || s.VCPUs > maxVCPUs:
		return none, fmt.Errorf("%d vCPUs, want 1 to %d", s.VCPUs, maxVCPUs)
	case s.CPU == 0:
		return none, errors.New("the type of the vCPUs is not given")
	case s.Features&featureSNP == 0:
		return none, fmt.Errorf("SEV features %#x are those of no SNP guest, want bit 0", s.Features)
	}
	reset, err := s.Firmware.words(guidResetBlock, "SEV-ES reset block", 1)
	if err != nil {
		return none, err
	}
	var d launchDigest
	d.content(s.Firmware.gpa(), s.Firmware.raw)
	if err := s.sections(&d); err != nil {
		return none, err
	}
	d.page(pageVMSA, gpaVMSA, s.vmsa(resetVector))
	for range s.VCPUs - 1 {
		d.page(pageVMSA, gpaVMSA, s.vmsa(reset[0]))
	}
	return d, nil
}

// sections measures the pages that the firmware asks for, in its order.
func (s SNP) sections(d *launchDigest) error {
	sections, err := s.Firmware.descriptor(guidSEVMetadata, "SEV metadata", "ASEV", 12)
	if err != nil {
		return err
	}
	hashed, total := false, uint64(0)
	for _, section := range sections {
		gpa, size := uint64(binary.LittleEndian.Uint32(section)), uint64(binary.LittleEndian.Uint32(section[4:]))
		kind := binary.LittleEndian.Uint32(section[8:])
		if total += size; total > maxMemory {
			return fmt.Errorf("the firmware's sections are larger than %d bytes together", maxMemory)
		}
		if gpa%pageSize != 0 || size%pageSize != 0 || size == 0 {
			return fmt.Errorf("a section of the firmware at %#x, %#x bytes, is not of whole pages", gpa, size)
		}
		if (kind == sectionSecrets || kind == sectionCPUID || kind == sectionHashes) && size != pageSize {
			return fmt.Errorf("the firmware's section %d has %#x bytes, want one page", kind, size)
		}
		switch kind {
		case sectionMemory, sectionCAA:
			for at := uint64(0); at < size; at += pageSize {
				d.page(pageZero, gpa+at, nil)
			}
		case sectionSecrets:
			d.page(pageSecrets, gpa, nil)
		case sectionCPUID:
			d.page(pageCPUID, gpa, nil)
		case sectionHashes:
			hashed = true
			if s.Boot == nil {
				d.page(pageZero, gpa, nil)
				continue
			}
			page, err := s.hashes(gpa)
			if err != nil {
				return err
			}
			d.page(pageNormal, gpa, page)
		default:
			return fmt.Errorf("the firmware has a section of type %#x, which is unknown", kind)
		}
	}
	if s.Boot != nil && !hashed {
		return errors.New("the firmware has no place for the hashes of a kernel, so it would boot any: want a build for " +
			"measured direct boot (edk2's AmdSev), or no kernel")
	}
	return nil
}

// The table of hashes that QEMU puts where the firmware says (edk2, OvmfPkg/AmdSev/BlobVerifierLibSevHashes).
var (
	guidHashes      = uuid.MustParse("9438d606-4f22-4cc9-b479-a793d411fd21")
	guidCommandLine = uuid.MustParse("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
	guidInitrd      = uuid.MustParse("44baf731-3a2f-4bd7-9af1-41e29169781d")
	guidKernel      = uuid.MustParse("4de79437-abd2-427f-b835-d5b172d2045b")
)

// hashes is the page with the table, which need not begin at the page's beginning.
func (s SNP) hashes(gpa uint64) ([]byte, error) {
	place, err := s.Firmware.words(guidSEVHashTable, "place for a table of hashes", 2)
	if err != nil {
		return nil, err
	}
	commandLine := sha256.Sum256(append([]byte(s.Boot.CommandLine), 0)) // a C string
	var table []byte
	for _, entry := range []struct {
		id   uuid.UUID
		hash [sha256.Size]byte
	}{{guidCommandLine, commandLine}, {guidInitrd, s.Boot.Initrd}, {guidKernel, s.Boot.Kernel}} {
		table = append(table, entryOf(entry.id, entry.hash[:])...)
	}
	table = entryOf(guidHashes, table)
	page := make([]byte, pageSize)
	at, size := uint64(place[0]), uint64(place[1])
	if at < gpa || at+size > gpa+pageSize || size < uint64(len(table)) {
		return nil, fmt.Errorf("the firmware's table of hashes at %#x, %#x bytes, is not in its section at %#x", at, size, gpa)
	}
	copy(page[at-gpa:], table)
	return page, nil
}

func entryOf(id uuid.UUID, data []byte) []byte {
	length := guidSize + 2 + len(data)
	return append(binary.LittleEndian.AppendUint16(encodeGUID(id), uint16(length)), data...)
}

// launchDigest is GCTX.LD of a guest that is being launched, all zero at first.
type launchDigest [sha512.Size384]byte

// page measures one page: the digest becomes that of PAGE_INFO (AMD document 56860, table "PAGE_INFO Structure"), in which
// no VMPL but 0 has any permission. Contents are nil for pages that the firmware fills.
func (d *launchDigest) page(kind byte, gpa uint64, contents []byte) {
	const size = 0x70
	info := make([]byte, 0, size)
	info = append(info, d[:]...)
	var digest [sha512.Size384]byte
	if contents != nil {
		digest = sha512.Sum384(contents)
	}
	info = append(info, digest[:]...)
	info = binary.LittleEndian.AppendUint16(info, size)
	info = append(info, kind, 0, 0, 0, 0, 0)
	info = binary.LittleEndian.AppendUint64(info, gpa)
	*d = sha512.Sum384(info)
}

// content measures pages from gpa on.
func (d *launchDigest) content(gpa uint64, b []byte) {
	for at := 0; at < len(b); at += pageSize {
		d.page(pageNormal, gpa+uint64(at), b[at:at+pageSize])
	}
}
