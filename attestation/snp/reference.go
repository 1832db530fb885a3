package snp

import (
	"errors"
	"fmt"

	"github.com/google/go-sev-guest/abi"

	"portcullis.dev/portcullis/attestation/internal/judge"
	"portcullis.dev/portcullis/attestation/internal/sevsnp"
)

// ReferenceValue is what evidence is compared with, as it stands in a manifest. Every field must be written down:
// what is missing is a fault, never a check left out.
type ReferenceValue struct {
	// Product is the processor line: Milan or Genoa.
	Product string
	// SigningKey is the kind of key that must have signed: VCEK, the chip's own, or VLEK, which AMD gives to a cloud for all
	// its chips. A VLEK hides from the vendor and from the verifier on which chip a guest runs.
	SigningKey string
	// Measurement is the launch measurement: 96 lower-case hexadecimal digits.
	Measurement string
	// MinimumTCB bounds REPORTED_TCB and LAUNCH_TCB from below, component by component. COMMITTED_TCB must be the
	// CURRENT_TCB and that no less than the REPORTED_TCB, so all four are bounded.
	MinimumTCB TCB
	// MinimumABI bounds the firmware's ABI version that POLICY asks for. Hypervisors ask for 0.0 unless told otherwise.
	MinimumABI ABI
	// AllowSMT says whether POLICY may allow that the two threads of a core run different guests.
	AllowSMT *bool
	// AllowedChipIDs are the chips that may have signed: ["any"], or CHIP_IDs of 128 lower-case hexadecimal digits each.
	// With a list, a chip that hides its identity is accepted for its VCEK's only.
	AllowedChipIDs []string
	// IDKeyDigests are the keys that may have signed the guest's ID block, and AuthorKeyDigests those that may have signed
	// these keys: ["none"], or SHA-384 digests of 96 lower-case hexadecimal digits each (AMD document 56860, ID_KEY_DIGEST
	// and AUTHOR_KEY_DIGEST). An ID block says who made an image and lets its maker tell versions apart. It makes nothing
	// less safe, but one that nobody expects is a launch that nobody planned, so it is refused like any other surprise.
	IDKeyDigests, AuthorKeyDigests []string
}

// TCB is the components of TCB_VERSION.
type TCB = sevsnp.TCB

// ABI is a version of the SEV-SNP ABI, each part 0 to 255. Zero may be written; it may not be left out.
type ABI struct {
	Major *int
	Minor *int
}

// Validate lists every fault, each as "Field: what is wrong and what would be right". None means that the value is usable.
func (r ReferenceValue) Validate() []string {
	_, faults := r.parse()
	return faults
}

const (
	anyChip = "any"
	noKey   = "none"
)

// parse leaves Root to the validator.
func (r ReferenceValue) parse() (ref sevsnp.Reference, faults []string) {
	fault := func(field string, errs ...error) {
		for _, err := range errs {
			if err != nil {
				faults = append(faults, fmt.Sprintf("%s: %v", field, err))
			}
		}
	}
	ref.Product = r.Product
	fault("Product", sevsnp.CheckProduct(r.Product))

	var err error
	ref.SigningKey, err = parseSigningKey(r.SigningKey)
	fault("SigningKey", err)
	ref.Measurement, err = sevsnp.ParseMeasurement(r.Measurement)
	fault("Measurement", err)

	var tcbFaults []string
	ref.MinimumTCB, tcbFaults = r.MinimumTCB.Parse()
	for _, f := range tcbFaults {
		faults = append(faults, "MinimumTCB"+f)
	}
	major, err := judge.ParseNumber(r.MinimumABI.Major, 255)
	fault("MinimumABI.Major", err)
	minor, err := judge.ParseNumber(r.MinimumABI.Minor, 255)
	fault("MinimumABI.Minor", err)
	ref.MinimumABI = sevsnp.ABIVersion{Major: uint8(major), Minor: uint8(minor)}
	if r.AllowSMT == nil {
		fault("AllowSMT", errors.New("is missing, want true or false"))
	} else {
		ref.AllowSMT = *r.AllowSMT
	}

	var errs []error
	ref.Chips, errs = sevsnp.ParseSet(r.AllowedChipIDs, abi.ChipIDSize, anyChip, sevsnp.Any)
	fault("AllowedChipIDs", errs...)
	ref.IDKeys, errs = sevsnp.ParseSet(r.IDKeyDigests, abi.IDKeyDigestSize, noKey, sevsnp.None(abi.IDKeyDigestSize))
	fault("IDKeyDigests", errs...)
	ref.AuthorKeys, errs = sevsnp.ParseSet(r.AuthorKeyDigests, abi.AuthorKeyDigestSize, noKey,
		sevsnp.None(abi.AuthorKeyDigestSize))
	fault("AuthorKeyDigests", errs...)
	return ref, faults
}

func parseSigningKey(name string) (abi.ReportSigner, error) {
	switch name {
	case "":
		return abi.NoneReportSigner, errors.New(`is missing, want "VCEK" or "VLEK"`)
	case "VCEK":
		return abi.VcekReportSigner, nil
	case "VLEK":
		return abi.VlekReportSigner, nil
	default:
		return abi.NoneReportSigner, fmt.Errorf(`%q is no signing key, want "VCEK" or "VLEK"`, name)
	}
}
