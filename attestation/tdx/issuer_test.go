package tdx

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-tdx-guest/testing/testdata"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/tsm"
	"portcullis.dev/portcullis/tests/faketsm"
)

// quoted is a real quote with other report data.
func quoted(quote []byte, at int, data []byte) []byte {
	quote = bytes.Clone(quote)
	copy(quote[at:], data)
	return quote
}

func throughConfigfs(t *testing.T, quote func(in []byte) []byte) attestation.Issuer {
	t.Helper()
	source, err := tsm.Through(&faketsm.Kernel{Provider: tsm.TDX, Report: func(in []byte) ([]byte, []byte, error) {
		return quote(in), nil, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := NewIssuer(source)
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

func TestEvidenceIsTheWholeQuote(t *testing.T) {
	for name, tc := range map[string]struct {
		quote []byte
		at    int
	}{
		"version 4": {testdata.RawQuote, atReportDataV4},
		"version 5": {testdata.RawQuoteV5, atReportDataV5},
	} {
		data := attestation.NewReportData("test")
		want := data.Bytes()
		e, err := throughConfigfs(t, func(in []byte) []byte { return quoted(tc.quote, tc.at, in) }).Issue(t.Context(), data)
		if err != nil || e.Platform != attestation.TDX || len(e.Certificates) > 0 ||
			!bytes.Equal(e.Report, quoted(tc.quote, tc.at, want[:])) {
			t.Errorf("%s: got %d bytes, %d of certificates, %v", name, len(e.Report), len(e.Certificates), err)
		}
	}
}

func TestPaddingStaysBehind(t *testing.T) {
	whole := testdata.RawQuote[:atSignatureSizeV4+4+int(binary.LittleEndian.Uint32(testdata.RawQuote[atSignatureSizeV4:]))]
	for name, tc := range map[string]struct{ behind, want []byte }{
		"nothing":        {nil, nil},
		"zeros":          {make([]byte, 60<<10), nil},
		"something else": {[]byte{0, 0, 1, 0}, []byte{0, 0, 1, 0}},
	} {
		data := attestation.NewReportData("test")
		want := data.Bytes()
		e, err := throughConfigfs(t, func(in []byte) []byte {
			return append(quoted(whole, atReportDataV4, in), tc.behind...)
		}).Issue(t.Context(), data)
		if err != nil || !bytes.Equal(e.Report, append(quoted(whole, atReportDataV4, want[:]), tc.want...)) {
			t.Errorf("%s behind the quote: got %d bytes of %d, %v", name, len(e.Report), len(whole), err)
		}
	}
	// A length that leads beyond the quote cuts nothing off.
	e, err := throughConfigfs(t, func(in []byte) []byte {
		q := quoted(whole, atReportDataV4, in)
		binary.LittleEndian.PutUint32(q[atSignatureSizeV4:], 1<<32-1)
		return q
	}).Issue(t.Context(), attestation.NewReportData("test"))
	if err != nil || len(e.Report) != len(whole) {
		t.Errorf("got %d bytes of %d, %v", len(e.Report), len(whole), err)
	}
}

func TestAQuoteThatCannotBeTheGuestsIsRefused(t *testing.T) {
	good := func(in []byte) []byte { return quoted(testdata.RawQuote, atReportDataV4, in) }
	for name, tc := range map[string]struct {
		quote func(in []byte) []byte
		fault string
	}{
		"empty":             {func([]byte) []byte { return nil }, "the report is empty"},
		"short":             {func(in []byte) []byte { return good(in)[:637] }, "637 bytes long, want 638 to 131072"},
		"long":              {func(in []byte) []byte { return append(good(in), make([]byte, 128<<10)...) }, "bytes long, want"},
		"other report data": {func([]byte) []byte { return testdata.RawQuote }, "about other report data"},
		"an SGX quote": {func(in []byte) []byte {
			q := good(in)
			binary.LittleEndian.PutUint32(q[atTEEType:], 0)
			return q
		}, "TEE type 0x0, want 0x81"},
		"version 3": {func(in []byte) []byte {
			q := good(in)
			binary.LittleEndian.PutUint16(q, 3)
			return q
		}, "version 3, want 4 or 5"},
	} {
		e, err := throughConfigfs(t, tc.quote).Issue(t.Context(), attestation.NewReportData("test"))
		if err == nil || !strings.Contains(err.Error(), tc.fault) || e.Report != nil {
			t.Errorf("%s: got %v, want %q", name, err, tc.fault)
		}
	}
}

func TestNoReportDataIsNotAsked(t *testing.T) {
	asked := false
	issuer := throughConfigfs(t, func(in []byte) []byte {
		asked = true
		return in
	})
	if _, err := issuer.Issue(t.Context(), attestation.ReportData{}); err == nil || asked {
		t.Errorf("got %v; asked the hardware: %v", err, asked)
	}
}

func TestAnotherPlatformIsNoSource(t *testing.T) {
	source, err := tsm.Through(&faketsm.Kernel{Provider: tsm.SNP})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*tsm.Source{nil, source} {
		if _, err := NewIssuer(s); err == nil || !strings.Contains(err.Error(), tsm.TDX) {
			t.Errorf("got %v", err)
		}
	}
}
