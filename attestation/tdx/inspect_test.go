package tdx_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/tests/simtdx"
)

func inspect(t *testing.T, o tdx.Options, e attestation.Evidence, references ...tdx.ReferenceValue) []attestation.Comparison {
	t.Helper()
	all := validator(t, o, references...).(attestation.Inspector).Inspect(t.Context(), e, reportData)
	if len(all) != len(references) {
		t.Fatalf("%d reference values, want %d", len(all), len(references))
	}
	return all[0]
}

// Each field that Inspect calls right is one that it calls wrong when it is changed, and it calls no others wrong.
func TestInspectTellsRightFromWrong(t *testing.T) {
	w := world(t)
	m := w.Machine(attestation.PolicyHash{1})
	reference := m.Reference()
	reference.MinimumTCB.TEETCBSVN = "04010700000000000000000000000000"
	reference.MinimumTCB.QESVN, reference.MinimumTCB.PCESVN = new(4), new(int(w.Plan.Platform.PCESVN))
	good := issue(t, m)
	right, wrong := map[string]bool{}, map[string]bool{}
	for _, c := range inspect(t, options(w), good, reference) {
		if c.Wrong != nil {
			t.Errorf("good evidence: %v", c.Wrong)
		}
		right[c.Field] = true
	}
	note := func(all []attestation.Comparison) {
		for _, c := range all {
			if c.Wrong != nil {
				wrong[c.Field] = true
			}
		}
	}
	flip := func(at int, mask byte) {
		bad := attestation.Evidence{Platform: attestation.TDX, Report: slices.Clone(good.Report)}
		bad.Report[at] ^= mask
		note(inspect(t, options(w), bad, reference))
	}
	for at := 48; at < 48+584; at += 8 { // the TD report
		flip(at, 1)
		flip(at, 4)
	}
	for _, mask := range []byte{0x10, 0x20} { // SEPT_VE_DISABLE and MIGRATABLE
		flip(48+120+3, mask)
	}
	demanding := reference
	demanding.MinimumTCB.QESVN, demanding.MinimumTCB.PCESVN = new(5), new(int(w.Plan.Platform.PCESVN)+1)
	demanding.AcceptedTCBStatuses = []string{"OutOfDate"}
	note(inspect(t, options(w), good, demanding))
	for field := range right {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(wrong)), func(w string) bool { return w == field || strings.HasPrefix(w, field+".") }) &&
			field != "CHAIN" && field != "QE_REPORT_SIGNATURE" { // of which nothing is in the TD report
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
	w, stranger := world(t), world(t)
	m := w.Machine(attestation.PolicyHash{1})
	down := options(w)
	down.Collateral = &simtdx.World{}
	for name, test := range map[string]struct {
		options tdx.Options
		spoil   func(*simtdx.Quote)
		unknown []string
	}{
		"Intel is down":      {down, nil, []string{"TCB.PLATFORM", "TCB.MODULE", "TCB.QE"}},
		"another root":       {options(stranger), nil, []string{"CHAIN", "SIGNATURE", "QE_REPORT_SIGNATURE", "TCB.PLATFORM"}},
		"a forged signature": {options(w), func(q *simtdx.Quote) { q.TD.RTMRs[3][0] ^= 1 }, []string{"CHAIN", "SIGNATURE", "TCB.PLATFORM"}},
		"an unreadable one":  {options(w), func(q *simtdx.Quote) { q.Header.Version = 5 }, []string{"MRTD", "CHAIN", "TCB.PLATFORM"}},
	} {
		spoiled := *m
		spoiled.Spoil = test.spoil
		for _, c := range inspect(t, test.options, issue(t, &spoiled), m.Reference()) {
			if slices.Contains(test.unknown, c.Field) && c.Wrong == nil {
				t.Errorf("%s: %s is called right", name, c.Field)
			}
		}
	}
}

func TestDecodeTakesWhateverHasTheSizeOfAQuote(t *testing.T) {
	good := issue(t, world(t).Machine(attestation.PolicyHash{1})).Report
	for name, report := range map[string][]byte{
		"zeros": make([]byte, 1000), "ones": []byte(strings.Repeat("\xff", 1000)), "truncated": good[:2000], "whole": good,
		"version 4": append([]byte{4, 0}, make([]byte, 1000)...),
	} {
		if fields, err := tdx.Decode(attestation.Evidence{Report: report}); err != nil || len(fields) < 6 {
			t.Errorf("%s: %d fields, %v", name, len(fields), err)
		}
	}
	for _, size := range []int{0, 631} {
		if _, err := tdx.Decode(attestation.Evidence{Report: good[:size]}); err == nil {
			t.Errorf("%d bytes are a quote", size)
		}
	}
}
