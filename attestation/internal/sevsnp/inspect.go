package sevsnp

import (
	"context"
	"errors"
	"slices"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

// What the checks of about, fields and vouched read, in the order of the report.
var (
	ofFields = []string{
		"POLICY.ABI", "POLICY.SMT", "POLICY.MIGRATE_MA", "POLICY.DEBUG", "POLICY.CXL_ALLOW", "VMPL", "AUTHOR_KEY_EN",
		"SIGNING_KEY", "REPORT_DATA", "MEASUREMENT", "HOST_DATA", "ID_KEY_DIGEST", "AUTHOR_KEY_DIGEST", "REPORTED_TCB",
		"CPUID_FAM_ID", "CHIP_ID", "COMMITTED_TCB", "COMMITTED_BUILD", "COMMITTED_MINOR", "COMMITTED_MAJOR", "LAUNCH_TCB",
	}
	ofChain = []string{"SIGNATURE", "CHAIN"}
)

// Inspect implements attestation.Inspector. Certificates that are not with the report are asked for only when the report
// itself satisfies some reference value.
func (v *Validator) Inspect(
	ctx context.Context, from attestation.Evidence, data attestation.ReportData,
) (all [][]attestation.Comparison) {
	defer judge.RecoverComparisons(len(v.References), &all)
	e, r := read(from)
	if r != nil {
		return judge.Same(len(v.References), r)
	}
	chained, missing := v.chained(ctx, e, data)
	for _, ref := range v.References {
		checks, fields := slices.Concat(e.about(ref), e.fields(ref, data)), ofFields
		if chained {
			now := v.Now()
			checks = append(checks, e.vouched(ref, now)...)
			if e.chain(ref.Root, now) == nil { // or else it names one link, and the others were not followed
				fields = slices.Concat(fields, ofChain)
			}
		}
		all = append(all, judge.Compare(fields, append(judge.All(checks...), missing...)))
	}
	return all
}

// chained says whether e has readable certificates, or what is wrong with them.
func (v *Validator) chained(ctx context.Context, e *evidence, data attestation.ReportData) (bool, []*attestation.Rejected) {
	err := v.complete(ctx, e, data)
	if err == nil {
		return true, nil
	}
	ek, signer := e.Missing()
	if rejected, ok := errors.AsType[*attestation.Rejected](err); ok && !ek && !signer {
		return false, []*attestation.Rejected{rejected}
	}
	return false, nil
}
