// Package tdx judges evidence of Intel TDX.
//
// A TD's quote is its TD report, signed by an attestation key that Intel's quoting enclave made on that platform. The
// enclave's own report names that key, the platform's PCK certificate signs the enclave's report, and Intel's SGX root
// vouches for the PCK. What the platform runs, Intel judges in signed collateral: TCB info by platform model (FMSPC), the
// quoting enclave's identity, and lists of revoked certificates. All of it is followed here, from the root down to the
// report data, and then the TD report is compared with reference values.
//
// The threat is a host that forges or replays a quote, launches another TD than the one asked for, runs firmware with
// known holes, or withholds the collateral that would tell. So a quote without current collateral is not judged, and every
// part is compared: MRTD and RTMRs with what was built, MRCONFIGID with the policy hash, the TDX module, its attributes and
// the TD's with what is allowed, and three judgements of Intel's (platform, TDX module, quoting enclave) with an explicit
// list.
//
// Quotes of version 4 are judged. Version 5 is refused: go-tdx-guest can read but not verify it. So are platforms whose PCK
// comes from Intel's PCK Processor CA: the library knows the PCK Platform CA alone.
package tdx

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/pcs"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

//go:embed intel_sgx_root_ca.pem
var intelRootPEM []byte

// intelRoot is Intel's SGX root CA, the same that go-tdx-guest embeds and does not export.
var intelRoot = mustParse(intelRootPEM)

func mustParse(text []byte) *x509.Certificate {
	block, _ := pem.Decode(text)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		panic(err) // the file is embedded
	}
	return certificate
}

// Options are what a validator needs besides reference values.
type Options struct {
	// Collateral gets Intel's collateral. Required.
	Collateral attestation.Getter
	// Roots are the root CAs that are trusted. Nil means Intel's SGX root CA.
	Roots []*x509.Certificate
	// Now tells the time. Nil means time.Now.
	Now func() time.Time
}

// NewValidator accepts evidence that any of the reference values accepts; without any, it refuses everything.
// An error lists every fault of every reference value, and what is wrong with the options.
//
// A Rejected of the validator it returns is named after the field of the quote (Intel TDX DCAP quoting library API,
// appendix 3), with a part of it behind a dot where only that part is wrong (TDATTRIBUTES.DEBUG); after CHAIN and the
// certificate; after TCB_INFO, QE_IDENTITY, PCK_CRL or ROOT_CA_CRL for collateral that is forged or another platform's;
// after TCB and what Intel judged (PLATFORM, MODULE, QE); or after REPORT and PLATFORM where the evidence as a whole is of
// no use. Of several reference values, it tells what was wrong with the one that got furthest.
//
// It is Unavailable while collateral cannot be fetched, and while what was fetched is out of date or not yet valid:
// Intel has, or will have, a better one.
func NewValidator(references []ReferenceValue, o Options) (attestation.Validator, error) {
	v := &validator{
		collateral: o.Collateral,
		roots:      slices.Clone(o.Roots),
		now:        o.Now,
		verified:   memory[*collateral]{most: 32},
		agreed:     memory[struct{}]{most: 1 << 14},
	}
	if v.roots == nil {
		v.roots = []*x509.Certificate{intelRoot}
	}
	if v.now == nil {
		v.now = time.Now
	}
	var faults []string
	if v.collateral == nil {
		faults = append(faults, "collateral: there is nothing to get it with")
	}
	if len(v.roots) == 0 {
		faults = append(faults, "roots: an empty list, want none for Intel's or at least one")
	}
	for i, root := range v.roots {
		if err := checkRoot(root); err != nil {
			faults = append(faults, fmt.Sprintf("root %d: %v", i, err))
		}
	}
	var err error
	if v.references, err = judge.ParseAll(references, ReferenceValue.parse); err != nil {
		faults = append(faults, err.Error())
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("make a TDX validator: %s", strings.Join(faults, "; "))
	}
	return v, nil
}

func checkRoot(root *x509.Certificate) error {
	switch {
	case root == nil:
		return errors.New("there is no certificate")
	case len(root.CRLDistributionPoints) != 1:
		return fmt.Errorf("%d CRL distribution points, want one", len(root.CRLDistributionPoints))
	}
	return issuedBy(root, root, rootName)
}

type validator struct {
	references []reference
	collateral attestation.Getter
	roots      []*x509.Certificate
	now        func() time.Time
	verified   memory[*collateral] // by answers.digest
	agreed     memory[struct{}]    // by digest of what was shown to go-tdx-guest
}

// Validate implements attestation.Validator.
func (v *validator) Validate(
	ctx context.Context, evidence attestation.Evidence, data attestation.ReportData,
) (claims attestation.Claims, err error) {
	defer judge.Recover(&claims, &err)
	if err := ctx.Err(); err != nil {
		return attestation.Claims{}, &attestation.Unavailable{What: "time to judge evidence", Err: err}
	}
	switch {
	case !data.Valid():
		return attestation.Claims{}, judge.Rejected("REPORTDATA", "what the caller expects", "an empty expectation")
	case evidence.Platform != attestation.TDX:
		return attestation.Claims{}, judge.Rejected("PLATFORM", string(attestation.TDX), fmt.Sprintf("%q", evidence.Platform))
	case len(v.references) == 0:
		return attestation.Claims{}, judge.Rejected("PLATFORM", "one that has reference values", string(attestation.TDX))
	case len(evidence.Certificates) > 0:
		return attestation.Claims{}, judge.Rejected("CERTIFICATES", "none beside the quote",
			fmt.Sprintf("%d bytes", len(evidence.Certificates)))
	}
	verified, err := v.verify(ctx, evidence.Report, data)
	if err != nil {
		return attestation.Claims{}, err
	}

	if _, r := judge.Any(v.references, verified.judge); r != nil {
		return attestation.Claims{}, r
	}
	return verified.claims(), nil
}

// verified is a quote that is authentic, over the right report data, and sound whatever it runs; and what Intel says of it.
type verified struct {
	*quote
	intel judgement
}

// verify does everything that needs no reference value. Nothing is fetched for a quote that no root vouches for.
func (v *validator) verify(ctx context.Context, report []byte, data attestation.ReportData) (*verified, error) {
	now := v.now() // one time for all parts of one judgement
	q, root, r := v.authentic(report, now)
	if r != nil {
		return nil, r
	}
	if _, r := judge.First(q.td.sound(data)...); r != nil {
		return nil, r
	}
	return v.askIntel(ctx, q, root, now)
}

// authentic reads a quote and follows its signatures up to a trusted root.
func (v *validator) authentic(report []byte, now time.Time) (*quote, *x509.Certificate, *attestation.Rejected) {
	q, r := readQuote(report)
	if r != nil {
		return nil, nil, r
	}
	root, r := v.rootOf(q)
	if r != nil {
		return nil, nil, r
	}
	return q, root, q.signedUnder(root, now)
}

// askIntel judges an authentic quote by Intel's collateral.
func (v *validator) askIntel(ctx context.Context, q *quote, root *x509.Certificate, now time.Time) (*verified, error) {
	answers, err := ask(ctx, v.collateral, q.extensions, root)
	if err != nil {
		return nil, err
	}
	key := answers.digest(q.ca, root)
	c, ok := v.verified.get(key)
	if !ok {
		var r *attestation.Rejected
		if c, r = answers.verify(q.ca, root); r != nil {
			return nil, r
		}
		v.verified.put(key, c)
	}
	if err := c.current(answers, now); err != nil {
		return nil, err
	}
	if r := c.revoked(q); r != nil {
		return nil, r
	}
	intel, r := c.intel(q)
	if r != nil {
		return nil, r
	}
	if r := v.libraryAgrees(ctx, q, root, answers, key, intel, now); r != nil {
		return nil, r
	}
	return &verified{q, intel}, nil
}

// rootOf finds the trusted root whose key the quote's own root has.
func (v *validator) rootOf(q *quote) (*x509.Certificate, *attestation.Rejected) {
	for _, root := range v.roots {
		if root.PublicKey.(*ecdsa.PublicKey).Equal(q.root.PublicKey) {
			return root, nil
		}
	}
	return nil, judge.Rejected("CHAIN.ROOT", "a trusted root", fmt.Sprintf("another one, %q", q.root.Subject))
}

// Bits of TDATTRIBUTES (Intel TDX Module 1.5 ABI specification, "TD ATTRIBUTES").
const (
	attributeDebug         = 1 << 0  // the host reads and writes the TD's memory
	attributeSEPTVEDisable = 1 << 28 // the host cannot inject #VE by taking pages away
	attributeMigratable    = 1 << 29 // another platform may get the TD's memory
	attributePKS           = 1 << 30 // the TD uses supervisor protection keys
	attributePerfmon       = 1 << 63 // the TD uses performance counters
)

// sound is what must be so in every TD, whatever it runs.
func (td *tdReport) sound(data attestation.ReportData) []judge.Check {
	want := data.Bytes()
	attributes := binary.LittleEndian.Uint64(td.tdAttributes)
	known := uint64(attributeSEPTVEDisable | attributePKS | attributePerfmon)
	zeros := make([]byte, 48)
	return []judge.Check{
		func() *attestation.Rejected { return judge.Equal("REPORTDATA", want[:], td.reportData) },
		func() *attestation.Rejected {
			return judge.Number("TDATTRIBUTES.DEBUG", 0, attributes&attributeDebug)
		},
		func() *attestation.Rejected {
			return judge.Number("TDATTRIBUTES.MIGRATABLE", 0, attributes&attributeMigratable)
		},
		func() *attestation.Rejected {
			return judge.Number("TDATTRIBUTES.SEPT_VE_DISABLE", attributeSEPTVEDisable, attributes&attributeSEPTVEDisable)
		},
		func() *attestation.Rejected { return judge.Number("TDATTRIBUTES", attributes&known, attributes) },
		// Zero stands for Intel as the module's signer. Others would have to be trusted first.
		func() *attestation.Rejected { return judge.Equal("MRSIGNERSEAM", zeros, td.mrSignerSEAM) },
		func() *attestation.Rejected { return judge.Equal("SEAMATTRIBUTES", zeros[:8], td.seamAttributes) },
		// Nobody uses the two; values that nobody understands are not accepted.
		func() *attestation.Rejected { return judge.Equal("MROWNER", zeros, td.mrOwner) },
		func() *attestation.Rejected { return judge.Equal("MROWNERCONFIG", zeros, td.mrOwnerConfig) },
		// Kata puts SHA-256 of the initdata there, and fills up with zeros.
		func() *attestation.Rejected {
			return judge.PolicyHash("MRCONFIGID", td.mrConfigID[:32])
		},
		func() *attestation.Rejected {
			hash := td.policyHash()
			return judge.Equal("MRCONFIGID", append(hash[:], zeros[:16]...), td.mrConfigID)
		},
	}
}

func (td *tdReport) policyHash() attestation.PolicyHash {
	return attestation.PolicyHash(td.mrConfigID[:32])
}

// judge says how many checks passed, and which one did not.
func (q *verified) judge(ref reference) (passed int, r *attestation.Rejected) {
	checks := slices.Concat(q.measured(ref), q.intel.accepted(ref), []judge.Check{
		// All fields once more by the library that knows the real platform, and whatever it knows beyond.
		func() *attestation.Rejected { return q.libraryAccepts(ref) },
	})
	return judge.First(checks...)
}

// measured is what the quote itself says of what runs.
func (q *quote) measured(ref reference) []judge.Check {
	return []judge.Check{
		func() *attestation.Rejected { return judge.Equal("MRTD", ref.mrTD, q.td.mrTD) },
		func() *attestation.Rejected { return judge.Equal("RTMR0", ref.rtmrs[0], q.td.rtmrs[0]) },
		func() *attestation.Rejected { return judge.Equal("RTMR1", ref.rtmrs[1], q.td.rtmrs[1]) },
		func() *attestation.Rejected { return judge.Equal("RTMR2", ref.rtmrs[2], q.td.rtmrs[2]) },
		func() *attestation.Rejected {
			if ref.rtmrs[3] == nil {
				return nil
			}
			return judge.Equal("RTMR3", ref.rtmrs[3], q.td.rtmrs[3])
		},
		func() *attestation.Rejected { return judge.Equal("XFAM", ref.xfam, q.td.xfam) },
		func() *attestation.Rejected {
			if slices.ContainsFunc(ref.mrSEAMs, func(m []byte) bool { return bytes.Equal(m, q.td.mrSEAM) }) {
				return nil
			}
			return judge.Rejected("MRSEAM", fmt.Sprintf("one of %x", ref.mrSEAMs), hex.EncodeToString(q.td.mrSEAM))
		},
		func() *attestation.Rejected {
			for i, minimum := range ref.tcbSVN {
				if r := atLeast(fmt.Sprintf("TEE_TCB_SVN.%d", i), int(minimum), int(q.td.teeTCBSVN[i])); r != nil {
					return r
				}
			}
			return nil
		},
		func() *attestation.Rejected { return atLeast("QE_REPORT.ISVSVN", ref.qeSVN, int(q.qe.isvSVN)) },
		func() *attestation.Rejected { return atLeast("PCESVN", ref.pceSVN, int(q.extensions.TCB.PCESvn)) },
	}
}

// accepted is what Intel says of it.
func (j judgement) accepted(ref reference) []judge.Check {
	status := func(field string, got pcs.TcbComponentStatus) *attestation.Rejected {
		if slices.Contains(ref.statuses, got) {
			return nil
		}
		return judge.Rejected(field, fmt.Sprintf("one of %v", ref.statuses), fmt.Sprintf("%q", string(got)))
	}
	return []judge.Check{
		func() *attestation.Rejected { return status("TCB.PLATFORM", j.platform) },
		func() *attestation.Rejected { return status("TCB.MODULE", j.module) },
		func() *attestation.Rejected { return status("TCB.QE", j.qe) },
	}
}

func atLeast(field string, minimum, got int) *attestation.Rejected {
	if got >= minimum {
		return nil
	}
	return judge.Rejected(field, fmt.Sprintf("at least %d", minimum), fmt.Sprint(got))
}

// claims copies, so that evidence does not stay in memory for the sake of a few fields.
func (q *verified) claims() attestation.Claims {
	claims := &attestation.TDXClaims{
		MRSEAM:            bytes.Clone(q.td.mrSEAM),
		PlatformTCBStatus: string(q.intel.platform),
		ModuleTCBStatus:   string(q.intel.module),
		QETCBStatus:       string(q.intel.qe),
		Advisories:        q.intel.advisories,
	}
	claims.FMSPC, _ = hex.DecodeString(q.extensions.FMSPC) // the library's own encoding
	for i, rtmr := range q.td.rtmrs {
		claims.RTMRs[i] = bytes.Clone(rtmr)
	}
	return attestation.Claims{
		Platform:    attestation.TDX,
		PolicyHash:  q.td.policyHash(),
		Measurement: bytes.Clone(q.td.mrTD),
		TDX:         claims,
	}
}
