// Package simulated judges evidence of a pretended TEE.
//
// Its reports are real SEV-SNP attestation reports, byte for byte, and they are verified as real ones are: signature,
// certificate chain, guest policy, privilege level, firmware versions, measurement. Only the root of the chain is not
// AMD's but one that a test operator made, and that a manifest has to name. So whatever runs on a laptop has gone through
// the code that judges hardware.
//
// The threat is the one of the real platform, a host that forges, replays or weakens evidence, and one more: evidence of
// a pretended TEE that is taken for real. Therefore such evidence says Platform "simulated", which no other validator
// accepts, and a Coordinator uses this one only when its operator said so.
package simulated

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"portcullis.dev/portcullis/attestation"
)

// NewValidator accepts evidence that any of the reference values accepts; without any, it refuses everything.
// An error lists every fault of every reference value.
//
// A Rejected of the validator it returns is named after the field of ATTESTATION_REPORT (AMD SEV-SNP ABI specification),
// with a part of it behind a dot where only that part is wrong (POLICY.DEBUG), after CHAIN and the certificate, or after
// REPORT and PLATFORM where the evidence as a whole is of no use. Of several reference values, it tells what was wrong
// with the one that got furthest.
func NewValidator(references []ReferenceValue) (attestation.Validator, error) {
	v := &validator{}
	var faults []string
	for i, r := range references {
		ref, f := r.parse()
		for _, fault := range f {
			faults = append(faults, fmt.Sprintf("reference value %d: %s", i, fault))
		}
		v.references = append(v.references, ref)
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("malformed reference values: %s", strings.Join(faults, "; "))
	}
	return v, nil
}

type validator struct {
	references []reference
}

// minVersion is the first report version that says which processor signed (CPUID_FAM_ID).
const minVersion = abi.ReportVersion3

// Validate implements attestation.Validator. It needs nothing but the evidence, so it is Unavailable only to a caller
// that has gone.
func (v *validator) Validate(
	ctx context.Context, evidence attestation.Evidence, data attestation.ReportData,
) (claims attestation.Claims, err error) {
	// The bytes are an attacker's and the parsers are a library's: a panic is a rejection, not the Coordinator's end.
	defer func() {
		if p := recover(); p != nil {
			claims, err = attestation.Claims{}, rejected("REPORT", "a readable report", fmt.Sprintf("a panic: %v", p))
		}
	}()
	if err := ctx.Err(); err != nil {
		return attestation.Claims{}, &attestation.Unavailable{What: "time to judge evidence", Err: err}
	}
	switch {
	case !data.Valid():
		return attestation.Claims{}, rejected("REPORT_DATA", "what the caller expects", "an empty expectation")
	case evidence.Platform != attestation.Simulated:
		return attestation.Claims{}, rejected("PLATFORM", string(attestation.Simulated), fmt.Sprintf("%q", evidence.Platform))
	case len(v.references) == 0:
		return attestation.Claims{}, rejected("PLATFORM", "one that has reference values", string(attestation.Simulated))
	}
	e, r := read(evidence)
	if r != nil {
		return attestation.Claims{}, r
	}

	now := time.Now()
	furthest := -1
	var closest *attestation.Rejected
	for _, ref := range v.references {
		passed, r := judge(e, data, ref, now)
		if r == nil {
			return attestation.Claims{
				Platform:    attestation.Simulated,
				PolicyHash:  attestation.PolicyHash(e.report.GetHostData()),
				Measurement: bytes.Clone(e.report.GetMeasurement()),
				SNP: &attestation.SNPClaims{
					Product:     ref.product,
					ReportedTCB: e.report.GetReportedTcb(),
					SignedBy:    abi.VcekReportSigner.String(),
				},
			}, nil
		}
		if passed > furthest {
			furthest, closest = passed, r
		}
	}
	return attestation.Claims{}, closest
}

// evidence is what could be read of an attestation.Evidence. Only its signature has been checked, under a key that
// nobody has vouched for yet.
type evidence struct {
	raw    []byte
	report *spb.Report
	policy abi.SnpPolicy
	chain  *spb.CertificateChain
	vcek   *x509.Certificate
	ask    *x509.Certificate
	vouch  *kds.Extensions // what the VCEK says about chip and TCB
}

// read does everything that needs no reference value.
func read(from attestation.Evidence) (*evidence, *attestation.Rejected) {
	if len(from.Report) != abi.ReportSize {
		return nil, rejected("REPORT", fmt.Sprintf("%d bytes", abi.ReportSize), fmt.Sprintf("%d bytes", len(from.Report)))
	}
	e := &evidence{raw: from.Report}
	var err error
	if e.report, err = abi.ReportToProto(e.raw); err != nil {
		return nil, rejected("REPORT", "an ATTESTATION_REPORT", err.Error())
	}
	if version := e.report.GetVersion(); version < minVersion || version > abi.MaxSupportedReportVersion {
		return nil, rejected("VERSION", fmt.Sprintf("%d to %d", minVersion, abi.MaxSupportedReportVersion), fmt.Sprint(version))
	}
	if algorithm := e.report.GetSignatureAlgo(); algorithm != abi.SignEcdsaP384Sha384 {
		return nil, rejected("SIGNATURE_ALGO", fmt.Sprintf("%d (ECDSA P-384 with SHA-384)", abi.SignEcdsaP384Sha384),
			fmt.Sprint(algorithm))
	}
	signer, err := abi.ParseSignerInfo(e.report.GetSignerInfo())
	if err != nil {
		return nil, rejected("SIGNING_KEY", abi.VcekReportSigner.String(), err.Error())
	}
	if signer.SigningKey != abi.VcekReportSigner {
		return nil, rejected("SIGNING_KEY", abi.VcekReportSigner.String(), signer.SigningKey.String())
	}
	if e.policy, err = abi.ParseSnpPolicy(e.report.GetPolicy()); err != nil {
		return nil, rejected("POLICY", "a guest policy", err.Error())
	}
	if e.chain, err = parseTable(from.Certificates); err != nil {
		return nil, rejected("CHAIN", "a certificate table", err.Error())
	}
	if e.vcek, err = x509.ParseCertificate(e.chain.GetVcekCert()); err != nil {
		return nil, rejected("CHAIN.VCEK", "a certificate", err.Error())
	}
	if e.ask, err = x509.ParseCertificate(e.chain.GetAskCert()); err != nil {
		return nil, rejected("CHAIN.ASK", "a certificate", err.Error())
	}
	if e.vouch, err = kds.VcekCertificateExtensions(e.vcek); err != nil {
		return nil, rejected("CHAIN.VCEK", "the extensions of a VCEK", err.Error())
	}
	if err := verify.SnpReportSignature(e.raw, e.vcek); err != nil {
		return nil, rejected("SIGNATURE", "one of the VCEK", err.Error())
	}
	return e, nil
}

// judge says how many checks passed, and which one did not.
func judge(
	e *evidence, data attestation.ReportData, ref reference, now time.Time,
) (passed int, r *attestation.Rejected) {
	report := e.report
	want := data.Bytes()
	checks := []func() *attestation.Rejected{
		func() *attestation.Rejected { return e.vouchedFor(ref, now) },
		func() *attestation.Rejected { return equal("REPORT_DATA", want[:], report.GetReportData()) },
		func() *attestation.Rejected { return number("VMPL", 0, uint64(report.GetVmpl())) },
		func() *attestation.Rejected { return forbidden("POLICY.DEBUG", e.policy.Debug) },
		func() *attestation.Rejected { return forbidden("POLICY.MIGRATE_MA", e.policy.MigrateMA) },
		func() *attestation.Rejected { return forbidden("POLICY.CXL_ALLOW", e.policy.CXLAllowed) },
		func() *attestation.Rejected {
			if !attestation.PolicyHash(report.GetHostData()).Valid() {
				return rejected("HOST_DATA", "SHA-256 of the initdata", "all zero")
			}
			return nil
		},
		func() *attestation.Rejected {
			// A chip may be told to hide its identity (MASK_CHIP_ID); one that is shown must be the certificate's.
			if chip := report.GetChipId(); !allZero(chip) {
				return equal("CHIP_ID", e.vouch.HWID, chip)
			}
			return nil
		},
		// Firmware that is not committed can be rolled back under the running guest.
		func() *attestation.Rejected {
			return number("COMMITTED_TCB", report.GetCurrentTcb(), report.GetCommittedTcb())
		},
		func() *attestation.Rejected {
			return number("COMMITTED_BUILD", uint64(report.GetCurrentBuild()), uint64(report.GetCommittedBuild()))
		},
		func() *attestation.Rejected {
			return number("COMMITTED_MAJOR", uint64(report.GetCurrentMajor()), uint64(report.GetCommittedMajor()))
		},
		func() *attestation.Rejected {
			return number("COMMITTED_MINOR", uint64(report.GetCurrentMinor()), uint64(report.GetCommittedMinor()))
		},
		func() *attestation.Rejected {
			return number("REPORTED_TCB", uint64(e.vouch.TCBVersion), report.GetReportedTcb())
		},
		func() *attestation.Rejected {
			return atMost("REPORTED_TCB", report.GetCurrentTcb(), report.GetReportedTcb())
		},
		func() *attestation.Rejected { return atLeast("REPORTED_TCB", ref.minimum, report.GetReportedTcb()) },
		func() *attestation.Rejected { return atLeast("LAUNCH_TCB", ref.minimum, report.GetLaunchTcb()) },
		func() *attestation.Rejected {
			return equal("MEASUREMENT", ref.measurement[:], report.GetMeasurement())
		},
		// All of the above once more by the library that knows the real platform, and whatever it knows beyond.
		func() *attestation.Rejected { return e.acceptable(want[:], ref) },
	}
	for i, check := range checks {
		if r := check(); r != nil {
			return i, r
		}
	}
	return len(checks), nil
}

// vouchedFor checks the chain from the VCEK to the root that the manifest names, and the signature once more.
func (e *evidence) vouchedFor(ref reference, now time.Time) *attestation.Rejected {
	if product := kds.ProductLineFromFms(e.report.GetCpuid1EaxFms()); product != ref.product {
		return rejected("CPUID_FAM_ID", ref.product, product)
	}
	roots, signers := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(ref.root)
	signers.AddCert(e.ask)
	anyUsage := []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	if !e.ask.IsCA {
		return rejected("CHAIN.ASK", "a CA", "another certificate")
	}
	if _, err := e.ask.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: anyUsage}); err != nil {
		return rejected("CHAIN.ASK", "one of the manifest's RootCA", err.Error())
	}
	if _, err := e.vcek.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: signers, CurrentTime: now, KeyUsages: anyUsage,
	}); err != nil {
		return rejected("CHAIN.VCEK", "one of the manifest's RootCA", err.Error())
	}
	// Fresh options per call: the library writes into them. Never without TrustedRoots: it would fall back to AMD's.
	root := trust.AMDRootCertsProduct(ref.product)
	root.ProductCerts = &trust.ProductCerts{Ark: ref.root, Ask: e.ask}
	if err := verify.SnpAttestation(&spb.Attestation{Report: e.report, CertificateChain: e.chain}, &verify.Options{
		DisableCertFetching: true,
		Now:                 now,
		TrustedRoots:        map[string][]*trust.AMDRootCerts{ref.product: {root}},
	}); err != nil {
		return rejected("CHAIN", "what go-sev-guest verifies", err.Error())
	}
	return nil
}

// acceptable is the library's judgement of the report's fields.
func (e *evidence) acceptable(reportData []byte, ref reference) *attestation.Rejected {
	vmpl := 0
	if err := validate.SnpAttestation(&spb.Attestation{Report: e.report, CertificateChain: e.chain}, &validate.Options{
		// The most that a policy may allow: threads of one core in different guests, as every cloud has it.
		GuestPolicy:      abi.SnpPolicy{SMT: true},
		ReportData:       reportData,
		Measurement:      ref.measurement[:],
		MinimumTCB:       ref.minimum,
		MinimumLaunchTCB: ref.minimum,
		VMPL:             &vmpl,
	}); err != nil {
		return rejected("REPORT", "what go-sev-guest accepts", err.Error())
	}
	return nil
}

func rejected(field, want, got string) *attestation.Rejected {
	return &attestation.Rejected{Field: field, Want: want, Got: got}
}

func equal(field string, want, got []byte) *attestation.Rejected {
	if bytes.Equal(want, got) {
		return nil
	}
	return rejected(field, hex.EncodeToString(want), hex.EncodeToString(got))
}

func number(field string, want, got uint64) *attestation.Rejected {
	if want == got {
		return nil
	}
	return rejected(field, fmt.Sprintf("%#x", want), fmt.Sprintf("%#x", got))
}

func forbidden(field string, set bool) *attestation.Rejected {
	if !set {
		return nil
	}
	return rejected(field, "0", "1")
}

func atLeast(field string, minimum kds.TCBParts, got uint64) *attestation.Rejected {
	return compare(field, minimum, kds.DecomposeTCBVersion(kds.TCBVersion(got)),
		"at least", func(bound, got uint8) bool { return got >= bound })
}

func atMost(field string, maximum, got uint64) *attestation.Rejected {
	return compare(field, kds.DecomposeTCBVersion(kds.TCBVersion(maximum)), kds.DecomposeTCBVersion(kds.TCBVersion(got)),
		"at most", func(bound, got uint8) bool { return got <= bound })
}

// compare names the component of TCB_VERSION that is wrong.
func compare(
	field string, bound, got kds.TCBParts, how string, ok func(bound, got uint8) bool,
) *attestation.Rejected {
	for _, part := range []struct {
		name       string
		bound, got uint8
	}{
		{"BOOT_LOADER", bound.BlSpl, got.BlSpl},
		{"TEE", bound.TeeSpl, got.TeeSpl},
		{"SNP", bound.SnpSpl, got.SnpSpl},
		{"MICROCODE", bound.UcodeSpl, got.UcodeSpl},
	} {
		if !ok(part.bound, part.got) {
			return rejected(field+"."+part.name, fmt.Sprintf("%s %d", how, part.bound), fmt.Sprint(part.got))
		}
	}
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
