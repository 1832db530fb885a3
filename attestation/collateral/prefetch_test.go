package collateral_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	"github.com/google/go-tdx-guest/testing/testdata"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/tests/simtee"
)

func TestEvidenceSaysWhatItTakesToJudgeIt(t *testing.T) {
	simulated, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	report, err := simulated.Machine(simtee.Measurement{1}, [32]byte{1}).Issue(t.Context(), attestation.NewReportData("test"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		evidence attestation.Evidence
		want     []string
	}{
		{"a Milan", attestation.Evidence{Platform: attestation.SNP, Report: report.Report}, []string{
			kds.ProductCertChainURL(abi.VcekReportSigner, "Milan"), kds.CrlLinkByKey("Milan", abi.VcekReportSigner),
			kds.ProductCertChainURL(abi.VlekReportSigner, "Milan"), kds.CrlLinkByKey("Milan", abi.VlekReportSigner),
		}},
		{"Intel's sample", attestation.Evidence{Platform: attestation.TDX, Report: testdata.RawQuote}, []string{
			tcbInfo, qe, pckCRL,
		}},
	} {
		got, err := collateral.ForEvidence(tc.evidence)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		for _, url := range tc.want {
			if !slices.Contains(got, url) {
				t.Errorf("%s: got %q, want %q among them", tc.name, got, url)
			}
		}
	}
	urls, err := collateral.ForEvidence(attestation.Evidence{Platform: attestation.SNP, Report: report.Report})
	if err != nil || !slices.ContainsFunc(urls, func(url string) bool { return strings.Contains(url, "ucodeSPL=115") }) {
		t.Errorf("got %q, %v, want the chip's own certificate among them", urls, err)
	}
}

// What the lists name, a cache fetches: the network is down here, and that is all that is wrong.
func TestEverythingThatIsListedMayBeFetched(t *testing.T) {
	w := newWorld(t)
	w.setDown(true)
	for _, product := range []string{"Milan", "Genoa", "Turin"} {
		urls, err := collateral.SNP(product)
		if err != nil {
			t.Fatal(err)
		}
		for _, url := range urls {
			refused(t, w.cache(""), url, "unreachable")
		}
	}
	urls, err := collateral.TDX("50806F000000")
	if err != nil || !slices.Contains(urls, tcbInfo) {
		t.Fatalf("got %q, %v", urls, err)
	}
	for _, url := range urls {
		refused(t, w.cache(""), url, "unreachable")
	}
}

func TestWhatIsUnknownIsNotListed(t *testing.T) {
	for _, product := range []string{"", "milan", "Rome", "../Milan"} {
		if urls, err := collateral.SNP(product); err == nil || urls != nil {
			t.Errorf("product %q: got %q, %v", product, urls, err)
		}
	}
	for _, fmspc := range []string{"", "50806f00000", "50806f00000000", "50806g000000"} {
		if urls, err := collateral.TDX(fmspc); err == nil || urls != nil {
			t.Errorf("FMSPC %q: got %q, %v", fmspc, urls, err)
		}
	}
	for name, e := range map[string]attestation.Evidence{
		"nothing":               {},
		"simulated":             {Platform: attestation.Simulated, Report: make([]byte, abi.ReportSize)},
		"short report":          {Platform: attestation.SNP, Report: make([]byte, abi.ReportSize-1)},
		"zeros":                 {Platform: attestation.SNP, Report: make([]byte, abi.ReportSize)},
		"no quote":              {Platform: attestation.TDX},
		"quote without a PCK":   {Platform: attestation.TDX, Report: testdata.RawQuote[:632]},
		"quote with half of it": {Platform: attestation.TDX, Report: testdata.RawQuote[:2000]},
		"another certificate": {
			Platform: attestation.TDX, Report: documents().pem,
		},
	} {
		if urls, err := collateral.ForEvidence(e); err == nil || urls != nil {
			t.Errorf("%s: got %q, %v", name, urls, err)
		}
	}
}
