package api

import (
	"context"

	"portcullis.dev/portcullis/attestation"
)

// Judge is how evidence is judged.
func (v *Verified) Judge(
	ctx context.Context, validator attestation.Inspector, evidence attestation.Evidence, data attestation.ReportData,
) error {
	return v.judge(ctx, validator, evidence, data)
}
