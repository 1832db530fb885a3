package manifest

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
)

// ValidatorOptions are what judging evidence takes besides a manifest. The zero value judges simulated evidence only.
type ValidatorOptions struct {
	// Collateral gets what the vendors publish. Required where the manifest has reference values of hardware.
	Collateral attestation.Getter
	// SNPRoots and TDXRoots are for tests, which have no vendor's key. Nil means the vendors' own, as in snp.Options and
	// tdx.Options.
	SNPRoots map[string]*x509.Certificate
	TDXRoots []*x509.Certificate
	// Now tells the time. Nil means time.Now.
	Now func() time.Time
}

// ErrNoCollateral says that evidence of hardware is to be judged without any way to get what its vendor publishes.
var ErrNoCollateral = errors.New("the manifest has reference values of hardware, and there is no source of collateral")

// Validator judges evidence by m's reference values: each platform's by its own, and that of a platform without any is
// rejected. The error is ErrNoCollateral, or says what is wrong with the reference values.
func (m *Manifest) Validator(o ValidatorOptions) (attestation.Inspector, error) {
	v := make(platforms)
	if m.Hardware() && o.Collateral == nil {
		return nil, ErrNoCollateral
	}
	var errs []error
	add := func(platform attestation.Platform, validator attestation.Validator, err error) {
		v[platform] = validator
		errs = append(errs, err)
	}
	if references := m.ReferenceValues.SNP; len(references) > 0 {
		validator, err := snp.NewValidator(references, snp.Options{Collateral: o.Collateral, Roots: o.SNPRoots, Now: o.Now})
		add(attestation.SNP, validator, err)
	}
	if references := m.ReferenceValues.TDX; len(references) > 0 {
		validator, err := tdx.NewValidator(references, tdx.Options{Collateral: o.Collateral, Roots: o.TDXRoots, Now: o.Now})
		add(attestation.TDX, validator, err)
	}
	if references := m.ReferenceValues.Simulated; len(references) > 0 {
		validator, err := simulated.NewValidator(references)
		add(attestation.Simulated, validator, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("use the manifest's reference values: %w", err)
	}
	return v, nil
}

// Simulated says whether m trusts evidence that no hardware made.
func (m *Manifest) Simulated() bool { return len(m.ReferenceValues.Simulated) > 0 }

// Hardware says whether m trusts evidence that hardware made.
func (m *Manifest) Hardware() bool {
	return len(m.ReferenceValues.SNP) > 0 || len(m.ReferenceValues.TDX) > 0
}

// platforms is a validator for each platform that has reference values. Which of them judges, the evidence says itself: it
// is signed under another root on each.
type platforms map[attestation.Platform]attestation.Validator

// Validate implements attestation.Validator.
func (p platforms) Validate(
	ctx context.Context, evidence attestation.Evidence, data attestation.ReportData,
) (attestation.Claims, error) {
	v, err := p.of(evidence)
	if err != nil {
		return attestation.Claims{}, err
	}
	return v.Validate(ctx, evidence, data)
}

func (p platforms) of(evidence attestation.Evidence) (attestation.Validator, error) {
	if v := p[evidence.Platform]; v != nil {
		return v, nil
	}
	return nil, &attestation.Rejected{
		Field: "PLATFORM", Want: fmt.Sprintf("one of %q", slices.Sorted(maps.Keys(p))), Got: fmt.Sprintf("%q", evidence.Platform),
	}
}

// Inspect implements attestation.Inspector, with the reference values of the evidence's platform.
func (p platforms) Inspect(
	ctx context.Context, evidence attestation.Evidence, data attestation.ReportData,
) [][]attestation.Comparison {
	v, err := p.of(evidence)
	if err != nil {
		return nil
	}
	inspector, ok := v.(attestation.Inspector)
	if !ok {
		return nil
	}
	return inspector.Inspect(ctx, evidence, data)
}
