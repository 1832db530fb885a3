package tdx

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"time"

	"github.com/google/go-tdx-guest/pcs"
	"github.com/google/go-tdx-guest/validate"
	tdxverify "github.com/google/go-tdx-guest/verify"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

// libraryAgrees has go-tdx-guest verify the quote and its collateral once more, with every check on: the library that
// knows the real platform may know something beyond. Its judgement takes 19 signature verifications, of which all but two
// are of certificates and collateral; so what it agreed to, by the bytes of both, is not shown to it again. Signatures of
// quote and QE report, and everything that depends on the hour, have been checked before, each time.
//
// The library accepts nothing but UpToDate. Where Intel says otherwise, a reference value may still list that, and the
// library can only be asked about signatures and certificates.
func (v *validator) libraryAgrees(
	ctx context.Context, q *quote, root *x509.Certificate, answers *answers, collateral [sha256.Size]byte,
	intel judgement, now time.Time,
) *attestation.Rejected {
	upToDate := intel.platform == pcs.TcbComponentStatusUpToDate && intel.module == pcs.TcbComponentStatusUpToDate &&
		intel.qe == pcs.TcbComponentStatusUpToDate
	shown := digest(collateral[:], q.chain)
	if _, ok := v.agreed.get(shown); ok {
		return nil
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	// Fresh options per call: the library writes into them. Never without TrustedRoots: it would fall back to Intel's.
	// Never without Now: it would keep the time of its first use.
	if err := tdxverify.RawTdxQuoteContext(ctx, q.raw, &tdxverify.Options{
		GetCollateral:    upToDate,
		CheckRevocations: upToDate,
		Getter:           answers,
		TrustedRoots:     roots,
		Now:              &tdxverify.TimeSet{PckCertChain: now, TcbInfo: now, QeIdentity: now, PckCrl: now, RootCaCrl: now},
	}); err != nil {
		return judge.Rejected("REPORT", "what go-tdx-guest verifies", err.Error())
	}
	if upToDate {
		v.agreed.put(shown, struct{}{})
	}
	return nil
}

// libraryAccepts is the library's judgement of the quote's fields.
func (q *verified) libraryAccepts(ref reference) *attestation.Rejected {
	zeros := make([]byte, 48)
	hash := q.td.policyHash()
	if err := validate.RawTdxQuote(q.raw, &validate.Options{
		HeaderOptions: validate.HeaderOptions{QeVendorID: intelQE},
		TdQuoteBodyOptions: validate.TdQuoteBodyOptions{
			MinimumTeeTcbSvn:   ref.tcbSVN,
			MrSeam:             q.td.mrSEAM, // is on the list
			TdAttributes:       q.td.tdAttributes,
			Xfam:               ref.xfam,
			MrTd:               ref.mrTD,
			MrConfigID:         append(hash[:], zeros[:16]...),
			MrOwner:            zeros,
			MrOwnerConfig:      zeros,
			Rtmrs:              ref.rtmrs[:],
			ReportData:         q.td.reportData, // is the caller's
			EnableTdDebugCheck: true,
		},
	}); err != nil {
		return judge.Rejected("REPORT", "what go-tdx-guest accepts", err.Error())
	}
	return nil
}
