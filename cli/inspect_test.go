package cli

import (
	"bytes"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/tests/simtdx"
	"portcullis.dev/portcullis/tests/simtee"
)

// The exit code is the validator's verdict, also where only the vendor's word could have made it another.
func TestInspectionOfHardware(t *testing.T) {
	amd, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	intel, err := simtdx.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	guest := amd.Machine(simtee.Measurement{1}, [32]byte{2})
	guest.Platform = attestation.SNP
	td := intel.Machine(attestation.PolicyHash{2})
	onSNP := manifest.ReferenceValues{SNP: []snp.ReferenceValue{amd.SNPReference(simtee.Measurement{9}), amd.SNPReference(guest.Measurement)}}
	onTDX := manifest.ReferenceValues{TDX: []tdx.ReferenceValue{td.Reference()}}
	outdated := td.Reference()
	outdated.AcceptedTCBStatuses = []string{"OutOfDate"}

	for name, test := range map[string]struct {
		issuer     attestation.Issuer
		values     manifest.ReferenceValues
		collateral attestation.Getter
		code       int
		says       []string
		saysNot    string
	}{
		"SNP": {
			guest, onSNP, amd.KDS(), 0,
			[]string{"ReferenceValues.SNP[0]: 1 of", "ReferenceValues.SNP[1]: 0 of", "verdict: accepted"},
			"REPORTED_TCB  WRONG",
		},
		"SNP, AMD down": {
			guest, onSNP, &simtee.KDS{}, exitFailed, []string{"ReferenceValues.SNP[1]: 0 of", "verdict: unavailable"}, "accepted",
		},
		"SNP, wrong": {
			guest, manifest.ReferenceValues{SNP: onSNP.SNP[:1]}, &simtee.KDS{}, exitNo, []string{"want 09", "verdict: rejected"}, "accepted",
		},
		"TDX": {td, onTDX, intel, 0, []string{"ReferenceValues.TDX[0]: 0 of", "TCB.MODULE", "verdict: accepted", "Intel says: platform UpToDate"}, "WRONG"},
		"TDX, Intel down": {
			td, onTDX, &simtdx.World{}, exitFailed, []string{"ReferenceValues.TDX[0]: 0 of", "verdict: unavailable"}, "TCB.MODULE",
		},
		"TDX, another status": {
			td,
			manifest.ReferenceValues{TDX: []tdx.ReferenceValue{outdated}},
			intel, exitNo,
			[]string{"ReferenceValues.TDX[0]: 3 of", "want one of [OutOfDate]", "verdict: rejected"},
			"accepted",
		},
		"SNP, TDX wanted": {guest, onTDX, intel, exitNo, []string{"verdict: rejected"}, "ReferenceValues"},
	} {
		t.Run(name, func(t *testing.T) {
			data := attestation.NewReportData("test")
			evidence, err := test.issuer.Issue(t.Context(), data)
			if err != nil {
				t.Fatal(err)
			}
			i := &inspection{
				Platform: evidence.Platform, Fresh: true, evidence: evidence, data: data,
				manifest: &manifest.Manifest{ReferenceValues: test.values},
			}
			if err := i.judge(t.Context(), manifest.ValidatorOptions{
				Collateral: test.collateral, SNPRoots: amd.Roots(), TDXRoots: []*x509.Certificate{intel.Root},
			}); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := i.write(&b); err != nil {
				t.Fatal(err)
			}
			for _, want := range test.says {
				if !strings.Contains(b.String(), want) {
					t.Errorf("no %q in\n%s", want, &b)
				}
			}
			if strings.Contains(b.String(), test.saysNot) {
				t.Errorf("%q in\n%s", test.saysNot, &b)
			}
			code := 0
			if err := i.outcome(); err != nil {
				coded, ok := errors.AsType[*problem](err)
				if !ok {
					t.Fatal(err)
				}
				code = coded.ExitCode()
			}
			if code != test.code {
				t.Errorf("exit code %d, want %d: %v", code, test.code, i.outcome())
			}
		})
	}
}

// Evidence over nothing is never accepted, not even when it is compared with itself.
func TestInspectionOfEvidenceOverNothing(t *testing.T) {
	i := &inspection{evidence: attestation.Evidence{Platform: attestation.SNP, Report: make([]byte, snpReportSize)}}
	if i.ownReportData().Valid() {
		t.Error("report data of zeros is valid")
	}
}

func FuzzEvidenceOfAnyForm(f *testing.F) {
	f.Add([]byte(`{"platform": "tdx", "report": "BAACAIEAAAA="}`))
	f.Add(append([]byte{4, 0, 2, 0, 0x81, 0, 0, 0}, make([]byte, 1000)...))
	f.Add(append([]byte{3, 0, 0, 0}, make([]byte, 3000)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := parseEvidence(raw, nil)
		if err != nil {
			return
		}
		fields, err := api.DecodeEvidence(e)
		if err != nil {
			return
		}
		i := &inspection{Platform: e.Platform, Fields: fields, evidence: e}
		i.data = i.ownReportData()
		if err := i.write(new(bytes.Buffer)); err != nil {
			t.Error(err)
		}
	})
}
