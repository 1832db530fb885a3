package manifest_test

import (
	"errors"
	"testing"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/tests/simtee"
)

// Evidence is judged by the reference values of its own platform, and by no others.
func TestEachPlatformIsJudgedByItsOwnReferenceValues(t *testing.T) {
	amd, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	policy := attestation.PolicyHash{0xaa}
	onSNP := amd.Machine(simtee.Measurement{1}, policy)
	onSNP.Platform = attestation.SNP
	onTDX := tdxWorld().Machine(policy)
	values := manifest.ReferenceValues{
		SNP: []snp.ReferenceValue{amd.SNPReference(simtee.Measurement{1})}, TDX: []tdx.ReferenceValue{onTDX.Reference()},
	}
	data := attestation.NewReportData("test")
	for name, test := range map[string]struct {
		values     manifest.ReferenceValues
		collateral attestation.Getter
		issuer     attestation.Issuer
		field      string // that is rejected, or none
	}{
		"SNP":               {values, amd.KDS(), onSNP, ""},
		"TDX":               {values, tdxWorld(), onTDX, ""},
		"SNP, TDX wanted":   {manifest.ReferenceValues{TDX: values.TDX}, tdxWorld(), onSNP, "PLATFORM"},
		"TDX, SNP wanted":   {manifest.ReferenceValues{SNP: values.SNP}, amd.KDS(), onTDX, "PLATFORM"},
		"simulated":         {values, amd.KDS(), amd.Machine(simtee.Measurement{1}, policy), "PLATFORM"},
		"another SNP guest": {values, amd.KDS(), &simtee.Machine{World: amd, HostData: policy, Platform: attestation.SNP}, "MEASUREMENT"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &manifest.Manifest{ReferenceValues: test.values}
			v, err := m.Validator(manifest.ValidatorOptions{
				Collateral: test.collateral, SNPRoots: amd.Roots(), TDXRoots: tdxRoots(), Now: time.Now,
			})
			if err != nil {
				t.Fatal(err)
			}
			evidence, err := test.issuer.Issue(t.Context(), data)
			if err != nil {
				t.Fatal(err)
			}
			claims, err := v.Validate(t.Context(), evidence, data)
			if test.field == "" {
				if err != nil || claims.PolicyHash != policy {
					t.Errorf("got %+v, %v", claims, err)
				}
				return
			}
			if rejected, ok := errors.AsType[*attestation.Rejected](err); !ok || rejected.Field != test.field {
				t.Errorf("got %v, want %s rejected", err, test.field)
			}
		})
	}
}

// The vendors' own roots are in charge unless a test says otherwise.
func TestPretendedHardwareIsNotTheVendors(t *testing.T) {
	amd, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	onSNP := amd.Machine(simtee.Measurement{1}, attestation.PolicyHash{0xaa})
	onSNP.Platform = attestation.SNP
	onTDX := tdxWorld().Machine(attestation.PolicyHash{0xaa})
	m := &manifest.Manifest{ReferenceValues: manifest.ReferenceValues{
		SNP: []snp.ReferenceValue{amd.SNPReference(simtee.Measurement{1})}, TDX: []tdx.ReferenceValue{onTDX.Reference()},
	}}
	v, err := m.Validator(manifest.ValidatorOptions{Collateral: amd.KDS()})
	if err != nil {
		t.Fatal(err)
	}
	data := attestation.NewReportData("test")
	for field, issuer := range map[string]attestation.Issuer{"CHAIN.ASK": onSNP, "CHAIN.ROOT": onTDX} {
		evidence, err := issuer.Issue(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Validate(t.Context(), evidence, data)
		if rejected, ok := errors.AsType[*attestation.Rejected](err); !ok || rejected.Field != field {
			t.Errorf("got %v, want %s rejected", err, field)
		}
	}
}

func TestHardwareIsNotJudgedWithoutCollateral(t *testing.T) {
	for name, values := range map[string]manifest.ReferenceValues{
		"SNP": {SNP: []snp.ReferenceValue{snpReference()}},
		"TDX": {TDX: []tdx.ReferenceValue{tdxReference()}},
	} {
		m := &manifest.Manifest{ReferenceValues: values}
		if v, err := m.Validator(manifest.ValidatorOptions{}); !errors.Is(err, manifest.ErrNoCollateral) || v != nil {
			t.Errorf("%s: got %v, %v", name, v, err)
		}
	}
}

func TestFaultyReferenceValuesMakeNoValidator(t *testing.T) {
	for name, values := range map[string]manifest.ReferenceValues{
		"SNP": {SNP: make([]snp.ReferenceValue, 1)},
		"TDX": {TDX: make([]tdx.ReferenceValue, 1)},
	} {
		m := &manifest.Manifest{ReferenceValues: values}
		if v, err := m.Validator(manifest.ValidatorOptions{Collateral: tdxWorld()}); err == nil || v != nil {
			t.Errorf("%s: got %v, %v", name, v, err)
		}
	}
}
