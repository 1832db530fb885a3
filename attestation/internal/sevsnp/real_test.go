package sevsnp

import (
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	"github.com/google/go-sev-guest/verify/testdata"
	"github.com/google/go-sev-guest/verify/trust"

	"portcullis.dev/portcullis/attestation"
)

// itsDay is in the first year of the VCEK that go-sev-guest carries.
var itsDay = time.Date(2022, 10, 1, 0, 0, 0, 0, time.UTC)

// real is the report of a Milan that go-sev-guest carries, with its VCEK and AMD's ASK. Its version is 2, from before
// reports said which processor signed, so read refuses it; the rest of the way is gone here by hand.
func real(t *testing.T) (*evidence, *x509.Certificate) {
	t.Helper()
	amd, err := trust.GetDefaultRootCerts("Milan")
	if err != nil {
		t.Fatal(err)
	}
	report, err := abi.ReportToProto(testdata.AttestationBytes)
	if err != nil {
		t.Fatal(err)
	}
	e := &evidence{chains: make(map[string]*attestation.Rejected)}
	e.Product, e.Key, e.Report = "Milan", abi.VcekReportSigner, report
	if e.Table, err = parseTable(nil); err != nil {
		t.Fatal(err)
	}
	e.Table.VcekCert, e.Table.AskCert = testdata.VcekBytes, amd.ProductCerts.Ask.Raw
	if e.policy, err = abi.ParseSnpPolicy(report.GetPolicy()); err != nil {
		t.Fatal(err)
	}
	if r := e.certificates(new(chains)); r != nil {
		t.Fatal(r)
	}
	return e, amd.ProductCerts.Ark
}

func TestARealReportVerifiesUnderAMDsRoot(t *testing.T) {
	e, ark := real(t)
	tcb := kds.TCBParts{BlSpl: 2, SnpSpl: 5, UcodeSpl: 68}
	for _, check := range e.vouched(Reference{Root: ark}, itsDay) {
		if r := check(); r != nil {
			t.Error(r)
		}
	}
	data, err := attestation.ParseReportData(e.Report.GetReportData())
	if err != nil {
		t.Fatal(err)
	}
	// It is of a guest for experiments: debugging is allowed, and there is no initdata. All else is as it should be.
	wrong := map[string]bool{"POLICY.DEBUG": true, "HOST_DATA": true}
	for _, check := range e.fields(Reference{
		Measurement: [48]byte(e.Report.GetMeasurement()), MinimumTCB: tcb, AllowSMT: true,
		Chips: Set{values: [][]byte{e.vouch.HWID}}, IDKeys: None(48), AuthorKeys: None(48),
	}, data) {
		if r := check(); r != nil && !wrong[r.Field] {
			t.Error(r)
		} else if r != nil {
			delete(wrong, r.Field)
		}
	}
	if len(wrong) > 0 {
		t.Errorf("%v passed", wrong)
	}
	if _, r := read(attestation.Evidence{Report: testdata.AttestationBytes}); r == nil || r.Field != "VERSION" {
		t.Errorf("got %v, want VERSION rejected", r)
	}
}

func TestARealReportIsRefusedForWhatIsChanged(t *testing.T) {
	_, ark := real(t)
	genoa, err := trust.GetDefaultRootCerts("Genoa")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		spoil func(*evidence)
		root  *x509.Certificate
		now   time.Time
		field string
	}{
		"before its VCEK":   {func(*evidence) {}, ark, itsDay.AddDate(-1, 0, 0), "CHAIN.VCEK"},
		"after its VCEK":    {func(*evidence) {}, ark, itsDay.AddDate(7, 0, 0), "CHAIN.VCEK"},
		"Genoa's root":      {func(*evidence) {}, genoa.ProductCerts.Ark, itsDay, "CHAIN.ASK"},
		"another image":     {func(e *evidence) { e.Report.Measurement[0] ^= 1 }, ark, itsDay, "SIGNATURE"},
		"another ASK":       {func(e *evidence) { e.Table.AskCert, e.signedBy = ark.Raw, ark }, ark, itsDay, "CHAIN.VCEK"},
		"signature changed": {func(e *evidence) { e.Report.Signature[0] ^= 1 }, ark, itsDay, "SIGNATURE"},
	} {
		t.Run(name, func(t *testing.T) {
			e, _ := real(t)
			tc.spoil(e)
			if r := e.chain(tc.root, tc.now); r == nil || r.Field != tc.field {
				t.Errorf("got %v, want %s rejected", r, tc.field)
			}
		})
	}
}

// AMD's own certificates are as the checks expect them, for both kinds of key.
func TestAMDsSigningKeysAreUnderItsRoots(t *testing.T) {
	for _, tc := range []struct {
		product, signer string
		bundle          []byte
	}{
		{"Milan", "SEV-Milan", trust.AskArkMilanVcekBytes},
		{"Milan", "SEV-VLEK-Milan", trust.AskArkMilanVlekBytes},
		{"Genoa", "SEV-Genoa", trust.AskArkGenoaVcekBytes},
		{"Genoa", "SEV-VLEK-Genoa", trust.AskArkGenoaVlekBytes},
	} {
		t.Run(tc.signer, func(t *testing.T) {
			amd, err := trust.GetDefaultRootCerts(tc.product)
			if err != nil {
				t.Fatal(err)
			}
			der, _, err := kds.ParseProductCertChain(tc.bundle)
			if err != nil {
				t.Fatal(err)
			}
			signer, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			roots := x509.NewCertPool()
			roots.AddCert(amd.ProductCerts.Ark)
			_, err = signer.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)})
			if err != nil || signer.Subject.CommonName != tc.signer || amd.ProductCerts.Ark.KeyUsage&x509.KeyUsageCRLSign == 0 {
				t.Errorf("%s under %s: %v", signer.Subject.CommonName, amd.ProductCerts.Ark.Subject.CommonName, err)
			}
		})
	}
}

func TestTheZeroReferenceAcceptsNothing(t *testing.T) {
	e, ark := real(t)
	data, err := attestation.ParseReportData(e.Report.GetReportData())
	if err != nil {
		t.Fatal(err)
	}
	refused := make(map[string]bool)
	var zero Reference
	for _, check := range slices.Concat(e.about(zero), e.vouched(Reference{Root: ark}, itsDay), e.fields(zero, data)) {
		if r := check(); r != nil {
			refused[r.Field] = true
		}
	}
	for _, field := range []string{"CPUID_FAM_ID", "POLICY.SMT", "CHIP_ID", "ID_KEY_DIGEST", "AUTHOR_KEY_DIGEST", "MEASUREMENT"} {
		if !refused[field] {
			t.Errorf("the zero Reference takes any %s", field)
		}
	}
}
