package tdx

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

// What the checks of sound and measured, of signedUnder, and of intel and accepted read, in the order of the quote.
var (
	ofQuote = []string{
		"TEE_TCB_SVN", "MRSEAM", "MRSIGNERSEAM", "SEAMATTRIBUTES", "TDATTRIBUTES.DEBUG", "TDATTRIBUTES.MIGRATABLE",
		"TDATTRIBUTES.SEPT_VE_DISABLE", "TDATTRIBUTES", "XFAM", "MRTD", "MRCONFIGID", "MROWNER", "MROWNERCONFIG",
		"RTMR0", "RTMR1", "RTMR2", "RTMR3", "REPORTDATA", "QE_REPORT.ISVSVN", "PCESVN",
	}
	ofChain = []string{"SIGNATURE", "QE_REPORT_SIGNATURE", "CHAIN"}
	ofIntel = []string{"TCB.PLATFORM", "TCB.MODULE", "TCB.QE"}
)

// Inspect implements attestation.Inspector. Intel is asked only about an authentic quote.
func (v *validator) Inspect(
	ctx context.Context, evidence attestation.Evidence, data attestation.ReportData,
) (all [][]attestation.Comparison) {
	defer judge.RecoverComparisons(len(v.references), &all)
	if n := len(evidence.Certificates); n > 0 {
		return judge.Same(len(v.references), judge.Rejected("CERTIFICATES", "none beside the quote", fmt.Sprintf("%d bytes", n)))
	}
	q, r := readQuote(evidence.Report)
	if r != nil {
		return judge.Same(len(v.references), r)
	}
	now := v.now()
	common, fields := judge.All(q.td.sound(data)...), ofQuote
	root, r := v.rootOf(q)
	if r == nil {
		r = q.signedUnder(root, now)
	}
	var intel *judgement
	if r == nil { // or else it names one link, and the others were not followed
		fields = slices.Concat(fields, ofChain)
		verified, err := v.askIntel(ctx, q, root, now)
		if err == nil {
			intel = &verified.intel
		}
		r, _ = errors.AsType[*attestation.Rejected](err)
	}
	if r != nil {
		common = append(common, r)
	}
	for _, ref := range v.references {
		checks, compared := q.measured(ref), fields
		if intel != nil {
			checks, compared = append(checks, intel.accepted(ref)...), slices.Concat(fields, ofIntel)
		}
		all = append(all, judge.Compare(compared, slices.Concat(common, judge.All(checks...))))
	}
	return all
}
