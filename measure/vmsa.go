package measure

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// resetVector is where the first vCPU begins. The others begin where the firmware's SEV-ES reset block says.
const resetVector = 0xfffffff0

// vmsa is a vCPU's page of registers as KVM and QEMU leave them at reset (AMD document 24593, table "VMSA Layout, State Save
// Area for SEV-ES"; AMD document 24593, section "Processor Initialization State").
func (s SNP) vmsa(entry uint32) []byte {
	page := make([]byte, pageSize)
	u16 := func(at int, v uint16) { binary.LittleEndian.PutUint16(page[at:], v) }
	u32 := func(at int, v uint32) { binary.LittleEndian.PutUint32(page[at:], v) }
	u64 := func(at int, v uint64) { binary.LittleEndian.PutUint64(page[at:], v) }
	segment := func(at int, selector, attributes uint16, base uint64) {
		u16(at, selector)
		u16(at+2, attributes)
		u32(at+4, 0xffff) // limit
		u64(at+8, base)
	}
	const (
		data     = 0x93 // present, accessed, writable
		code     = 0x9b // present, accessed, readable
		ldt      = 0x82
		busyTask = 0x8b
	)
	segment(0x00, 0, data, 0)                              // ES
	segment(0x10, 0xf000, code, uint64(entry&0xffff_0000)) // CS
	segment(0x20, 0, data, 0)                              // SS
	segment(0x30, 0, data, 0)                              // DS
	segment(0x40, 0, data, 0)                              // FS
	segment(0x50, 0, data, 0)                              // GS
	segment(0x60, 0, 0, 0)                                 // GDTR
	segment(0x70, 0, ldt, 0)                               // LDTR
	segment(0x80, 0, 0, 0)                                 // IDTR
	segment(0x90, 0, busyTask, 0)                          // TR

	u64(0xd0, 1<<12)                  // EFER: SVME
	u64(0x148, 1<<6)                  // CR4: MCE
	u64(0x158, 1<<4)                  // CR0: ET
	u64(0x160, 0x400)                 // DR7
	u64(0x168, 0xffff_0ff0)           // DR6
	u64(0x170, 1<<1)                  // RFLAGS
	u64(0x178, uint64(entry&0xffff))  // RIP
	u64(0x268, 0x0007_0406_0007_0406) // G_PAT
	u64(0x310, uint64(s.CPU))         // RDX
	u64(0x3b0, s.Features)            // SEV_FEATURES
	u64(0x3e8, 1)                     // XCR0: x87
	u32(0x408, 0x1f80)                // MXCSR
	u16(0x410, 0x037f)                // X87_FCW
	return page
}

// CPUSignature is CPUID_1_EAX (AMD document 24594, appendix E, "Function 0000_0001h"): an extended family and model are
// added to the base ones.
func CPUSignature(family, model, stepping int) (uint32, error) {
	const base = 0xf
	if family < base || family > base+0xff || model < 0 || model > 0xff || stepping < 0 || stepping > 0xf {
		return 0, fmt.Errorf("family %d, model %d, stepping %d, want 15 to 270, 0 to 255, 0 to 15", family, model, stepping)
	}
	return uint32(family-base)<<20 | uint32(model>>4)<<16 | base<<8 | uint32(model&0xf)<<4 | uint32(stepping), nil
}

// cpuTypes are QEMU's models of AMD processors by family, model and stepping (QEMU, target/i386/cpu.c). Their versions (-v1
// and so on) differ in features and not in these.
var cpuTypes = map[string][3]int{
	"EPYC":       {23, 1, 2},
	"EPYC-Rome":  {23, 49, 0},
	"EPYC-Milan": {25, 1, 1},
	"EPYC-Genoa": {25, 17, 0},
	"EPYC-Turin": {26, 0, 0},
}

// CPUTypes are the names that CPUType knows, sorted.
func CPUTypes() []string { return slices.Sorted(maps.Keys(cpuTypes)) }

// CPUType is the signature of one of QEMU's models of a processor.
func CPUType(name string) (uint32, error) {
	cpu, ok := cpuTypes[name]
	if !ok {
		return 0, fmt.Errorf("no vCPU type is called %q, want one of %q", name, CPUTypes())
	}
	return CPUSignature(cpu[0], cpu[1], cpu[2])
}
