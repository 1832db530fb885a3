package measure_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/uuid"

	"portcullis.dev/portcullis/measure"
)

// section is one of SEV's metadata.
type section struct{ gpa, size, kind uint32 }

// td is one of TDX' metadata.
type td struct {
	offset, size     uint32
	gpa, inMemory    uint64
	kind, attributes uint32
}

// build is a firmware that is real in all that is measured: pages, a table, and what the table says.
type build struct {
	pages  int
	sev    []section
	hashes []uint32 // address and size of the table of hashes
	reset  uint32
	tdx    []td
	// extra is appended to the table's entries.
	extra []byte
}

func (b build) bytes() []byte {
	raw := make([]byte, b.pages*4096)
	for i := range raw {
		raw[i] = byte(i>>12 + i*7)
	}
	at := len(raw) - 2048 // where metadata goes
	put := func(parts ...any) (offset uint32) {
		start := at
		for _, part := range parts {
			n, err := binary.Encode(raw[at:], binary.LittleEndian, part)
			if err != nil {
				panic(err)
			}
			at += n
		}
		return uint32(len(raw) - start)
	}
	var table []byte
	add := func(id string, words ...uint32) {
		for _, w := range words {
			table = binary.LittleEndian.AppendUint32(table, w)
		}
		table = binary.LittleEndian.AppendUint16(table, uint16(4*len(words)+18))
		table = append(table, guid(id)...)
	}
	if b.sev != nil {
		add("dc886566-984a-4798-a75e-5585a7bf67cc", put(
			[]byte("ASEV"), uint32(16+12*len(b.sev)), uint32(1), uint32(len(b.sev)), b.sev))
	}
	if b.hashes != nil {
		add("7255371f-3a3b-4b04-927b-1da6efa8d454", b.hashes...)
	}
	if b.reset != 0 {
		add("00f771de-1a7e-4fcb-890e-68c77e2fb44e", b.reset)
	}
	if b.tdx != nil {
		add("e47a6535-984a-4798-865e-4685a7bf8ec2", put(
			[]byte("TDVF"), uint32(16+32*len(b.tdx)), uint32(1), uint32(len(b.tdx)), b.tdx))
	}
	table = append(table, b.extra...)
	table = binary.LittleEndian.AppendUint16(table, uint16(len(table)+18))
	table = append(table, guid("96b582de-1fb2-45f7-baea-a366c55a082d")...)
	copy(raw[len(raw)-32-len(table):], table)
	return raw
}

func guid(text string) []byte {
	id := uuid.MustParse(text)
	slices.Reverse(id[:4])
	slices.Reverse(id[4:6])
	slices.Reverse(id[6:8])
	return id[:]
}

func parse(t *testing.T, raw []byte) *measure.Firmware {
	t.Helper()
	f, err := measure.ParseFirmware(raw)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// amdSev is laid out in memory as edk2's AmdSev build, with its hashes of a kernel.
var amdSev = build{
	pages: 3,
	sev: []section{
		{0x800000, 0x9000, 1},
		{0x80a000, 0x3000, 1},
		{0x80d000, 0x1000, 2},
		{0x80e000, 0x1000, 3},
		{0x810000, 0x1000, 0x10},
		{0x80f000, 0x1000, 4},
		{0x811000, 0xf000, 1},
	},
	hashes: []uint32{0x810c00, 0x400},
	reset:  0x80b004,
}
