package measure_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"portcullis.dev/portcullis/measure"
)

// inteltdx is laid out as edk2's, at a smaller size: code that is measured, variables that are only added, memory.
var inteltdx = build{
	pages: 4,
	tdx: []td{
		{0x1000, 0x3000, 0xfffff000 - 0x2000, 0x3000, 0, 1},
		{0, 0x1000, 0xffffc000, 0x1000, 1, 0},
		{0, 0, 0x810000, 0x2000, 3, 0},
		{0, 0, 0x809000, 0x1000, 2, 0},
	},
}

// MRTD is SHA-384 over the calls of the specification, written down one by one.
func TestMRTDIsTheSpecifications(t *testing.T) {
	raw := inteltdx.bytes()
	h := sha512.New384()
	call := func(name string, gpa uint64) {
		h.Write(append([]byte(name), make([]byte, 16-len(name))...))
		h.Write(binary.LittleEndian.AppendUint64(nil, gpa))
		h.Write(make([]byte, 104))
	}
	for page := range 3 {
		gpa := uint64(0xffffd000 + page*0x1000)
		call("MEM.PAGE.ADD", gpa)
		for chunk := 0; chunk < 0x1000; chunk += 0x100 {
			call("MR.EXTEND", gpa+uint64(chunk))
			h.Write(raw[0x1000+page*0x1000+chunk:][:0x100])
		}
	}
	for _, gpa := range []uint64{0xffffc000, 0x810000, 0x811000, 0x809000} {
		call("MEM.PAGE.ADD", gpa)
	}
	got, err := parse(t, raw).MRTD()
	if err != nil || !bytes.Equal(got[:], h.Sum(nil)) {
		t.Errorf("got %x, %v, want %x", got, err, h.Sum(nil))
	}
}

func TestMRTDThatCannotBeIsExplained(t *testing.T) {
	code := inteltdx.tdx[0]
	change := func(f func(*td)) []td {
		changed := code
		f(&changed)
		return []td{changed}
	}
	for name, test := range map[string]struct {
		sections []td
		want     string
	}{
		"no metadata":         {nil, "has no TDX metadata"},
		"unknown type":        {change(func(s *td) { s.kind = 7 }), "section of type 7, which is unknown"},
		"unknown attribute":   {change(func(s *td) { s.attributes = 2 }), "attributes 0x2, which are unknown"},
		"half a page":         {change(func(s *td) { s.gpa++ }), "is not of whole pages"},
		"outside of the file": {change(func(s *td) { s.offset = 0x2000 }), "is not in its"},
		"larger than memory":  {change(func(s *td) { s.inMemory = 0x1000 }), "is not in its"},
		"endless":             {change(func(s *td) { s.inMemory = 1 << 40 }), "larger than 268435456 bytes together"},
		"memory with data":    {change(func(s *td) { s.kind = 3 }), "of type 3 has contents"},
		"code not measured":   {change(func(s *td) { s.attributes = 0 }), "does not ask for its own code to be measured"},
	} {
		t.Run(name, func(t *testing.T) {
			b := build{pages: 4, reset: 1, tdx: test.sections}
			if got, err := parse(t, b.bytes()).MRTD(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %x, %v, want %q", got, err, test.want)
			}
		})
	}
}

// ccel is the event log of a TD on Google's cloud, and the quote of the same TD.
func ccel(t *testing.T) (log, quote []byte) {
	t.Helper()
	for path, to := range map[string]*[]byte{
		"testdata/cos-113.ccel": &log, "../attestation/tdx/testdata/cos-113.quote": &quote,
	} {
		var err error
		if *to, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return log, quote
}

func TestRTMRsOfARealLogAreThoseOfItsQuote(t *testing.T) {
	log, quote := ccel(t)
	rtmrs, events, err := measure.RTMRs(log)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range rtmrs {
		if want := quote[48+328+48*i:][:48]; !bytes.Equal(got[:], want) {
			t.Errorf("RTMR%d is %x, want %s", i, got, hex.EncodeToString(want))
		}
	}
	if len(events) < 10 {
		t.Errorf("%d events", len(events))
	}
}

// A log that is cut off anywhere, or changed, has other RTMRs or none.
func TestRTMRsOfABrokenLogAreOthers(t *testing.T) {
	log, _ := ccel(t)
	want, _, err := measure.RTMRs(log)
	if err != nil {
		t.Fatal(err)
	}
	end := len(bytes.TrimRight(bytes.TrimRight(log, "\xff"), "\x00"))
	for n := range end - 64 {
		if got, _, err := measure.RTMRs(log[:n]); err == nil && got == want {
			t.Fatalf("the first %d of %d bytes have all RTMRs", n, end)
		}
	}
	for _, text := range []string{"", "Spec ID Event03", strings.Repeat("\xff", 100), strings.Repeat("\x00", 100)} {
		if _, _, err := measure.RTMRs([]byte(text)); err == nil {
			t.Errorf("%q is an event log", text)
		}
	}
}

func FuzzFirmwareAndLog(f *testing.F) {
	f.Add(amdSev.bytes())
	f.Add(inteltdx.bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _, _ = measure.RTMRs(raw)
		firmware, err := measure.ParseFirmware(raw)
		if err != nil {
			return
		}
		_, _ = firmware.MRTD()
		_, _ = measure.SNP{Firmware: firmware, VCPUs: 1, CPU: epyc, Features: 1, Boot: boot("", "", "")}.Measure()
	})
}
