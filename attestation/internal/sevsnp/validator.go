// Package sevsnp judges SEV-SNP attestation reports, for every platform that has them: AMD's own and the pretended one.
//
// go-sev-guest verifies signature and certificates, and has the last word on the fields; what this package adds is that
// nothing is left out. The library checks nothing for an option that is unset, takes roots, clock and network of its own
// where none are given, and says in a sentence what went wrong. Here every check is made, in one order, before the
// library's, and names the field of ATTESTATION_REPORT (AMD document 56860, "SEV Secure Nested Paging Firmware ABI
// Specification") that is wrong.
package sevsnp

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

// Vendor is who publishes certificates and revocations.
type Vendor interface {
	// Complete adds the certificates that the table lacks. The error is a *attestation.Rejected when nobody has them, and
	// an *attestation.Unavailable when they could not be had.
	Complete(ctx context.Context, e Evidence) error
	// NotRevoked says that neither the certificates of a verified chain nor its root are revoked. The error is a
	// *attestation.Rejected when one is, and an *attestation.Unavailable when that is not known.
	NotRevoked(ctx context.Context, c Chain, now time.Time) error
}

// Evidence is a report that was read, and the certificates that came with it.
type Evidence struct {
	// Product is the processor line by CPUID_FAM_ID.
	Product string
	// Key is the kind of key that is said to have signed.
	Key    abi.ReportSigner
	Report *spb.Report
	// Table has the certificate under Key's name and that of its signer as the ASK, be it an ASK or an ASVK.
	Table *spb.CertificateChain
}

// Missing says which certificates are not in the table.
func (e Evidence) Missing() (ek, signer bool) {
	return len(*e.endorsement()) == 0, len(e.Table.GetAskCert()) == 0
}

// endorsement is the entry for the certificate of the key that signed.
func (e Evidence) endorsement() *[]byte {
	if e.Key == abi.VlekReportSigner {
		return &e.Table.VlekCert
	}
	return &e.Table.VcekCert
}

// Names are those of the key that signed and of the one that signed its certificate.
func Names(key abi.ReportSigner) (ek, signer string) {
	if key == abi.VlekReportSigner {
		return "VLEK", "ASVK"
	}
	return "VCEK", "ASK"
}

// Chain is a chain of certificates that was verified.
type Chain struct {
	Product        string
	Key            abi.ReportSigner
	Root, Signer   *x509.Certificate
	EndorsementKey *x509.Certificate
}

// Validator accepts evidence that any of the references accepts; without any, it refuses everything.
type Validator struct {
	Platform   attestation.Platform
	References []Reference
	Vendor     Vendor
	Now        func() time.Time

	chains chains
}

// Validate implements attestation.Validator.
func (v *Validator) Validate(
	ctx context.Context, from attestation.Evidence, data attestation.ReportData,
) (claims attestation.Claims, err error) {
	defer judge.Recover(&claims, &err)
	if err := ctx.Err(); err != nil {
		return attestation.Claims{}, &attestation.Unavailable{What: "time to judge evidence", Err: err}
	}
	switch {
	case !data.Valid():
		return attestation.Claims{}, judge.Rejected("REPORT_DATA", "what the caller expects", "an empty expectation")
	case from.Platform != v.Platform:
		return attestation.Claims{}, judge.Rejected("PLATFORM", string(v.Platform), fmt.Sprintf("%q", from.Platform))
	}
	e, r := read(from)
	if r != nil {
		return attestation.Claims{}, r
	}
	if _, r := v.try(e.about); r != nil {
		return attestation.Claims{}, r
	}
	if err := v.complete(ctx, e, data); err != nil {
		return attestation.Claims{}, err
	}

	now := v.Now()
	i, r := v.try(e.about,
		func(ref Reference) []judge.Check { return e.vouched(ref, now) },
		func(ref Reference) []judge.Check { return e.fields(ref, data) },
		func(ref Reference) []judge.Check {
			return []judge.Check{func() *attestation.Rejected { return e.acceptable(ref, data) }}
		})
	if r != nil {
		return attestation.Claims{}, r
	}
	// Last, so that bad evidence is refused even while the vendor is down.
	if err := v.Vendor.NotRevoked(ctx, Chain{
		Product: e.Product, Key: e.Key, Root: v.References[i].Root, Signer: e.signedBy, EndorsementKey: e.ek,
	}, now); err != nil {
		return attestation.Claims{}, err
	}
	v.chains.remember(e, v.References[i].Root)
	return attestation.Claims{
		Platform:    v.Platform,
		PolicyHash:  attestation.PolicyHash(e.Report.GetHostData()),
		Measurement: bytes.Clone(e.Report.GetMeasurement()),
		SNP: &attestation.SNPClaims{
			Product:     e.Product,
			ReportedTCB: e.Report.GetReportedTcb(),
			SignedBy:    e.Key.String(),
		},
	}, nil
}

// complete sees to it that e has its certificates. Evidence that would be refused even with the best of certificates is
// refused before anybody is asked for them, so that made-up chips do not become requests to the vendor.
func (v *Validator) complete(ctx context.Context, e *evidence, data attestation.ReportData) error {
	if ek, signer := e.Missing(); ek || signer {
		if _, r := v.try(e.about, func(ref Reference) []judge.Check { return e.fields(ref, data) }); r != nil {
			return r
		}
		if err := v.Vendor.Complete(ctx, e.Evidence); err != nil {
			return err
		}
	}
	if r := e.certificates(&v.chains); r != nil {
		return r
	}
	return nil
}

// try finds the first reference that passes all checks.
func (v *Validator) try(checks ...func(Reference) []judge.Check) (int, *attestation.Rejected) {
	return judge.Any(v.References, func(ref Reference) (passed int, r *attestation.Rejected) {
		for _, of := range checks {
			n, r := judge.First(of(ref)...)
			passed += n
			if r != nil {
				return passed, r
			}
		}
		return passed, nil
	})
}
