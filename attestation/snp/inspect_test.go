package snp_test

import (
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/tests/simtee"
)

// Each field that Inspect calls right is one that it calls wrong when it is changed, and it calls no others wrong.
func TestInspectTellsRightFromWrong(t *testing.T) {
	w, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	machine := w.Machine(simtee.Measurement{1}, [32]byte{1})
	machine.Platform = attestation.SNP
	reference := w.SNPReference(machine.Measurement)
	reference.AllowSMT, reference.MinimumABI.Minor = new(false), new(1)
	machine.Alter = func(r *spb.Report) {
		r.Policy = abi.SnpPolicyToBytes(abi.SnpPolicy{ABIMinor: 1})
		reference.AllowedChipIDs = []string{hex.EncodeToString(r.GetChipId())}
	}
	data := attestation.NewReportData("test")
	good, err := machine.Issue(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	v, err := snp.NewValidator([]snp.ReferenceValue{reference}, snp.Options{Collateral: w.KDS(), Roots: w.Roots(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	inspect := func(e attestation.Evidence) []attestation.Comparison {
		all := v.(attestation.Inspector).Inspect(t.Context(), e, data)
		if len(all) != 1 {
			t.Fatalf("%d reference values, want 1", len(all))
		}
		return all[0]
	}
	right, wrong := map[string]bool{}, map[string]bool{}
	for _, c := range inspect(good) {
		if c.Wrong != nil {
			t.Errorf("good evidence: %v", c.Wrong)
		}
		right[c.Field] = true
	}
	flip := func(at int, mask byte) {
		bad := good
		bad.Report = slices.Clone(good.Report)
		bad.Report[at] ^= mask
		for _, c := range inspect(bad) {
			if c.Wrong != nil {
				wrong[c.Field] = true
			}
		}
	}
	for at := 0; at < 0x2a8; at += 8 { // up to and into the signature
		flip(at, 1)
	}
	for at := 0x180; at < 0x200; at++ { // fields of one byte
		flip(at, 1)
	}
	for _, at := range []int{0x08, 0x09, 0x0a, 0x48} { // bits with names of their own
		for bit := range 8 {
			flip(at, 1<<bit)
		}
	}
	// Evidence that cannot be read is compared with nothing.
	for _, unreadable := range []string{"REPORT", "VERSION", "SIGNATURE_ALGO", "POLICY"} {
		delete(wrong, unreadable)
	}
	for field := range right {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(wrong)), func(w string) bool { return w == field || strings.HasPrefix(w, field+".") }) &&
			field != "CHAIN" { // of which nothing is in the report
			t.Errorf("%s is never wrong", field)
		}
	}
	for field := range wrong {
		parent, _, _ := strings.Cut(field, ".")
		if !right[field] && !right[parent] {
			t.Errorf("%s is never right", field)
		}
	}
}

// What Inspect cannot look at, it does not call right.
func TestInspectClaimsNothingAboutWhatItHasNot(t *testing.T) {
	w, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	machine := w.Machine(simtee.Measurement{1}, [32]byte{2})
	machine.Platform = attestation.SNP
	data := attestation.NewReportData("test")
	for name, test := range map[string]struct {
		spoil     func(*attestation.Evidence)
		reference simtee.Measurement
	}{
		"certificates that cannot be had":        {func(e *attestation.Evidence) { e.Certificates = nil }, machine.Measurement},
		"certificates that are not worth a call": {func(e *attestation.Evidence) { e.Certificates = nil }, simtee.Measurement{9}},
		"a forged signature":                     {func(e *attestation.Evidence) { e.Report[0x2a0] ^= 1 }, machine.Measurement},
		"a table that cannot be read":            {func(e *attestation.Evidence) { e.Certificates = []byte{1} }, machine.Measurement},
		"a report that cannot be read":           {func(e *attestation.Evidence) { e.Report = e.Report[1:] }, machine.Measurement},
	} {
		e, err := machine.Issue(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		test.spoil(&e)
		down := &simtee.KDS{} // of no world: it has nothing
		v, err := snp.NewValidator([]snp.ReferenceValue{w.SNPReference(test.reference)}, snp.Options{Collateral: down, Roots: w.Roots()})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range v.(attestation.Inspector).Inspect(t.Context(), e, data)[0] {
			if (c.Field == "CHAIN" || c.Field == "SIGNATURE") && c.Wrong == nil {
				t.Errorf("%s: %s is called right", name, c.Field)
			}
		}
		if asked := len(down.Asked()); asked > 0 && test.reference != machine.Measurement {
			t.Errorf("%s: the vendor was asked", name)
		}
	}
}

func TestDecodeTakesWhateverHasTheSizeOfAReport(t *testing.T) {
	for name, e := range map[string]attestation.Evidence{
		"zeros": {Report: make([]byte, 1184)},
		"ones":  {Report: []byte(strings.Repeat("\xff", 1184)), Certificates: []byte(strings.Repeat("\xff", 4096))},
	} {
		if fields, err := snp.Decode(e); err != nil || len(fields) < 60 {
			t.Errorf("%s: %d fields, %v", name, len(fields), err)
		}
	}
	for _, size := range []int{0, 1183, 1185} {
		if _, err := snp.Decode(attestation.Evidence{Report: make([]byte, size)}); err == nil {
			t.Errorf("%d bytes are a report", size)
		}
	}
}
