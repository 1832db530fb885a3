// Package snp judges evidence of AMD SEV-SNP.
//
// A report is signed by the processor: by its VCEK, whose certificate an ASK of AMD's signed, or by a VLEK, which AMD gave
// to a cloud and whose certificate an ASVK signed. Above both is the ARK, one for each processor line. It is compiled in;
// what a host sends along as a root is not looked at.
//
// Certificates come with the evidence, or else from AMD's key distribution service (KDS). The revocation list of the
// processor line always comes from there: a host would send the last one that suits it. Both through a Getter, which may
// remember what it got.
//
// Milan and Genoa are supported, in reports of version 3 and up: earlier ones do not say which processor signed. Turin is
// not, as its TCB_VERSION and its VCEK differ and go-sev-guest reads them as Milan's; nor are Bergamo and Siena, whose
// CPUID_FAM_ID and CPUID_MOD_ID go-sev-guest does not know.
package snp

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-sev-guest/verify/trust"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
	"portcullis.dev/portcullis/attestation/internal/sevsnp"
)

// Options are what a validator needs besides reference values.
type Options struct {
	// Collateral gets what AMD's KDS publishes. It is required.
	Collateral attestation.Getter
	// Roots are the ARKs by processor line. nil means AMD's own.
	Roots map[string]*x509.Certificate
	// Now is the time by which certificates and revocation lists are judged. nil means time.Now.
	Now func() time.Time
}

// NewValidator accepts evidence that any of the reference values accepts; without any, it refuses everything.
// An error lists every fault of every reference value, or says what is missing in the options.
//
// A Rejected of the validator it returns is named after the field of ATTESTATION_REPORT (AMD document 56860), with a part
// of it behind a dot where only that part is wrong (POLICY.DEBUG); after CHAIN and the certificate, for one that is revoked
// too; after CRL where the list of revocations is not the vendor's; or after REPORT and PLATFORM where the evidence as a
// whole is of no use. Of several reference values, it tells what was wrong with the one that got furthest.
//
// Unavailable is what the KDS could not be asked, and a revocation list outside its time: the next one may be had later.
// An expired certificate is Rejected, there will be no other. Evidence that is wrong in itself is Rejected without asking.
func NewValidator(references []ReferenceValue, o Options) (attestation.Validator, error) {
	if o.Collateral == nil {
		return nil, errors.New("make a validator for SEV-SNP: there is no source of collateral")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	parsed, err := judge.ParseAll(references, ReferenceValue.parse)
	if err != nil {
		return nil, err
	}
	for i := range parsed {
		if parsed[i].Root, err = root(o.Roots, parsed[i].Product); err != nil {
			return nil, fmt.Errorf("make a validator for SEV-SNP: %w", err)
		}
	}
	return &sevsnp.Validator{
		Platform: attestation.SNP, References: parsed, Vendor: &keyDistribution{get: o.Collateral}, Now: o.Now,
	}, nil
}

func root(roots map[string]*x509.Certificate, product string) (*x509.Certificate, error) {
	if roots != nil {
		if ark := roots[product]; ark != nil {
			return ark, nil
		}
		return nil, fmt.Errorf("there is no root for %s", product)
	}
	amd, err := trust.GetDefaultRootCerts(product)
	if err != nil {
		return nil, err
	}
	return amd.ProductCerts.Ark, nil
}
