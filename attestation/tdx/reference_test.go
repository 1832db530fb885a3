package tdx_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"portcullis.dev/portcullis/attestation/tdx"
)

func TestEveryFaultOfAReferenceValueIsNamed(t *testing.T) {
	w := world(t)
	n := func(v int) *int { return &v }
	type spoilt struct {
		name  string
		spoil func(*tdx.ReferenceValue)
		fault string
	}
	cases := []spoilt{
		{"RTMR3 of another word", func(r *tdx.ReferenceValue) { r.RTMR3 = "Any" }, "RTMR3: \"Any\" is not 96"},
		{"RTMR2 of a word", func(r *tdx.ReferenceValue) { r.RTMR2 = "any" }, "RTMR2: \"any\" is not 96"},
		{"RTMR3 missing", func(r *tdx.ReferenceValue) {
			r.RTMR3 = ""
		}, "RTMR3: is missing, want 96 lower-case hexadecimal digits, or the word any"},
		{"all-zero MRTD", func(r *tdx.ReferenceValue) { r.MRTD = strings.Repeat("0", 96) }, "MRTD: is all zero"},
		{"no MRSEAM", func(r *tdx.ReferenceValue) { r.MRSEAM = nil }, "MRSEAM: is missing"},
		{"empty MRSEAM", func(r *tdx.ReferenceValue) { r.MRSEAM = []string{} }, "MRSEAM: is missing"},
		{"all-zero MRSEAM", func(r *tdx.ReferenceValue) { r.MRSEAM[0] = strings.Repeat("0", 96) }, "MRSEAM[0]: is all zero"},
		{"second MRSEAM missing", func(r *tdx.ReferenceValue) { r.MRSEAM = append(r.MRSEAM, "") }, "MRSEAM[1]: is missing"},
		{"XFAM without SSE", func(r *tdx.ReferenceValue) { r.XFAM = "e502060000000000" }, "XFAM: e502060000000000 lacks"},
		{"XFAM with a reserved bit", func(r *tdx.ReferenceValue) { r.XFAM = "e702060000000001" }, "XFAM: e702060000000001 has bits"},
		{"XFAM in the other order", func(r *tdx.ReferenceValue) { r.XFAM = "00000000000602e7" }, "XFAM: 00000000000602e7 lacks"},
		{"all-zero XFAM", func(r *tdx.ReferenceValue) { r.XFAM = strings.Repeat("0", 16) }, "XFAM: "},
		{"no minimum", func(r *tdx.ReferenceValue) { r.MinimumTCB = tdx.TCB{} }, "MinimumTCB.TEETCBSVN: is missing"},
		{"no QE SVN", func(r *tdx.ReferenceValue) { r.MinimumTCB.QESVN = nil }, "MinimumTCB.QESVN: is missing"},
		{"negative QE SVN", func(r *tdx.ReferenceValue) { r.MinimumTCB.QESVN = n(-1) }, "MinimumTCB.QESVN: is -1, want 0 to 65535"},
		{"QE SVN would wrap around", func(r *tdx.ReferenceValue) { r.MinimumTCB.QESVN = n(65536) }, "is 65536, want 0 to 65535"},
		{"no PCE SVN", func(r *tdx.ReferenceValue) { r.MinimumTCB.PCESVN = nil }, "MinimumTCB.PCESVN: is missing"},
		{"negative PCE SVN", func(r *tdx.ReferenceValue) { r.MinimumTCB.PCESVN = n(-1) }, "MinimumTCB.PCESVN: is -1"},
		{"PCE SVN would wrap around", func(r *tdx.ReferenceValue) {
			r.MinimumTCB.PCESVN = n(1 << 16)
		}, "MinimumTCB.PCESVN: is 65536"},
		{"no statuses", func(r *tdx.ReferenceValue) { r.AcceptedTCBStatuses = nil }, "AcceptedTCBStatuses: is missing"},
		{"empty statuses", func(r *tdx.ReferenceValue) { r.AcceptedTCBStatuses = []string{} }, "AcceptedTCBStatuses: is missing"},
		{"empty status", func(r *tdx.ReferenceValue) {
			r.AcceptedTCBStatuses = []string{"UpToDate", ""}
		}, `AcceptedTCBStatuses[1]: "" is not one of`},
		{"Revoked", func(r *tdx.ReferenceValue) {
			r.AcceptedTCBStatuses[0] = "Revoked"
		}, `AcceptedTCBStatuses[0]: "Revoked" is not one of`},
		{"status in the wrong case", func(r *tdx.ReferenceValue) {
			r.AcceptedTCBStatuses[0] = "uptodate"
		}, `"uptodate" is not one of UpToDate,`},
	}
	// What every field of hexadecimal digits refuses.
	for name, field := range map[string]func(*tdx.ReferenceValue) *string{
		"MRTD":                 func(r *tdx.ReferenceValue) *string { return &r.MRTD },
		"RTMR0":                func(r *tdx.ReferenceValue) *string { return &r.RTMR0 },
		"RTMR1":                func(r *tdx.ReferenceValue) *string { return &r.RTMR1 },
		"RTMR2":                func(r *tdx.ReferenceValue) *string { return &r.RTMR2 },
		"RTMR3":                func(r *tdx.ReferenceValue) *string { return &r.RTMR3 },
		"MRSEAM[0]":            func(r *tdx.ReferenceValue) *string { return &r.MRSEAM[0] },
		"XFAM":                 func(r *tdx.ReferenceValue) *string { return &r.XFAM },
		"MinimumTCB.TEETCBSVN": func(r *tdx.ReferenceValue) *string { return &r.MinimumTCB.TEETCBSVN },
	} {
		for how, change := range map[string]func(string) string{
			"missing":         func(string) string { return "" },
			"short":           func(s string) string { return s[2:] },
			"odd":             func(s string) string { return s[1:] },
			"long":            func(s string) string { return s + "00" },
			"upper-case":      func(s string) string { return "AB" + s[2:] },
			"not hexadecimal": func(s string) string { return strings.Repeat("x", len(s)) },
			"spaced":          func(s string) string { return " " + s[1:] },
		} {
			cases = append(cases, spoilt{how + " " + name, func(r *tdx.ReferenceValue) { *field(r) = change(*field(r)) }, name + ": "})
		}
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			ref := w.Machine(policy).Reference()
			tc.spoil(&ref)
			if faults := ref.Validate(); !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, tc.fault) }) {
				t.Errorf("got %q, want %q among them", faults, tc.fault)
			}
			v, err := tdx.NewValidator([]tdx.ReferenceValue{w.Machine(policy).Reference(), ref}, options(w))
			if err == nil || v != nil || !strings.Contains(err.Error(), "reference value 1: ") {
				t.Errorf("a validator was made: %v", err)
			}
		})
	}
}

func TestAllFaultsAreReportedAtOnce(t *testing.T) {
	if faults := (tdx.ReferenceValue{}).Validate(); len(faults) != 11 {
		t.Errorf("the empty reference value has %d faults, want one for each of 11 fields: %q", len(faults), faults)
	}
	if faults := world(t).Machine(policy).Reference().Validate(); len(faults) != 0 {
		t.Errorf("a good reference value has faults: %q", faults)
	}
}

func TestReferenceValueInAManifest(t *testing.T) {
	text := `{"MRTD":"aa","RTMR0":"b0","RTMR1":"b1","RTMR2":"b2","RTMR3":"any","MRSEAM":["cc"],"XFAM":"e7",` +
		`"MinimumTCB":{"TEETCBSVN":"04","QESVN":4,"PCESVN":0},"AcceptedTCBStatuses":["UpToDate"]}`
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	var ref tdx.ReferenceValue
	if err := d.Decode(&ref); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(ref)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, []byte(text)) {
		t.Errorf("got %s, want %s", again, text)
	}
}
