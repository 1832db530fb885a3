package attestation_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"portcullis.dev/portcullis/attestation"
)

func TestReportDataIsTheHashOfItsTuple(t *testing.T) {
	var tuple []byte
	for _, part := range []string{"label", "a", "", "bc"} {
		tuple = binary.BigEndian.AppendUint64(tuple, uint64(len(part)))
		tuple = append(tuple, part...)
	}
	got := attestation.NewReportData("label", []byte("a"), nil, []byte("bc"))
	if got.Bytes() != sha512.Sum512(tuple) || !got.Valid() {
		t.Errorf("got %x", got.Bytes())
	}
}

func TestTuplesThatDifferHaveDifferentReportData(t *testing.T) {
	seen := map[[64]byte]int{}
	for i, data := range []attestation.ReportData{
		attestation.NewReportData("l"),
		attestation.NewReportData("l", nil),
		attestation.NewReportData("l", nil, nil),
		attestation.NewReportData("l", []byte("ab")),
		attestation.NewReportData("l", []byte("a"), []byte("b")),
		attestation.NewReportData("l", []byte("ab"), nil),
		attestation.NewReportData("l", nil, []byte("ab")),
		attestation.NewReportData("la", []byte("b")),
		attestation.NewReportData("m", []byte("ab")),
	} {
		if j, ok := seen[data.Bytes()]; ok {
			t.Errorf("tuples %d and %d have the same report data", j, i)
		}
		seen[data.Bytes()] = i
	}
}

func TestTheZeroValuesAreInvalid(t *testing.T) {
	if (attestation.ReportData{}).Valid() || attestation.NewReportData("").Valid() {
		t.Error("report data of nothing is valid")
	}
	if (attestation.PolicyHash{}).Valid() {
		t.Error("the zero policy hash is valid")
	}
}

func TestParseReportData(t *testing.T) {
	b := bytes.Repeat([]byte{1}, 64)
	if got, err := attestation.ParseReportData(b); err != nil || got.Bytes() != [64]byte(b) || !got.Valid() {
		t.Errorf("got %x, %v", got.Bytes(), err)
	}
	for name, b := range map[string][]byte{
		"none": nil, "short": b[:63], "long": append(b, 1), "all zero": make([]byte, 64),
	} {
		if got, err := attestation.ParseReportData(b); err == nil || got.Valid() {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestPolicyHashAsText(t *testing.T) {
	good := strings.Repeat("a5", 32)
	p, err := attestation.ParsePolicyHash(good)
	if err != nil || p.String() != good {
		t.Errorf("got %s, %v", p, err)
	}
	for name, s := range map[string]string{
		"empty": "", "short": good[2:], "long": good + "00", "odd": good[1:], "upper case": strings.ToUpper(good),
		"not hexadecimal": strings.Repeat("xy", 32), "all zero": strings.Repeat("00", 32), "space": " " + good[1:],
	} {
		if p, err := attestation.ParsePolicyHash(s); err == nil || p.Valid() {
			t.Errorf("%s: accepted", name)
		}
		var decoded map[attestation.PolicyHash]int
		if err := json.Unmarshal([]byte(`{"`+s+`": 1}`), &decoded); err == nil {
			t.Errorf("%s: decoded as a key of a JSON object", name)
		}
	}
}

func TestTheDigestCoversAllOfTheEvidence(t *testing.T) {
	e := attestation.Evidence{Platform: attestation.SNP, Report: []byte("report"), Certificates: []byte("table")}
	others := []attestation.Evidence{
		{Platform: attestation.Simulated, Report: e.Report, Certificates: e.Certificates},
		{Platform: e.Platform, Report: []byte("reportt"), Certificates: []byte("able")},
		{Platform: e.Platform, Report: e.Report},
		{},
	}
	if slices.ContainsFunc(others, func(o attestation.Evidence) bool { return o.Digest() == e.Digest() }) {
		t.Error("different evidence has the same digest")
	}
	if e.Digest() != (attestation.Evidence{Platform: "snp", Report: []byte("report"), Certificates: []byte("table")}).Digest() {
		t.Error("the same evidence has different digests")
	}
}

func TestErrorsTellRejectedFromUnavailable(t *testing.T) {
	var err error = &attestation.Rejected{Field: "VMPL", Want: "0", Got: "1"}
	if got := err.Error(); got != "evidence rejected: VMPL: want 0, got 1" {
		t.Errorf("got %q", got)
	}
	err = &attestation.Unavailable{What: "the CRL", Err: io.ErrUnexpectedEOF}
	if got := err.Error(); got != "the CRL is not available: unexpected EOF" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %q", got)
	}
}
