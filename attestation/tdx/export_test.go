package tdx

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	"github.com/google/go-tdx-guest/pcs"

	"portcullis.dev/portcullis/attestation"
)

// IntelRoot is the root that Options.Roots defaults to.
func IntelRoot() *x509.Certificate { return intelRoot }

// Verify judges a quote without comparing the TD in it with anything: signatures, certificates and Intel's word.
func Verify(
	ctx context.Context, v attestation.Validator, report []byte, now time.Time,
) (platform, module, qe pcs.TcbComponentStatus, err error) {
	validator := v.(*validator)
	q, root, r := validator.authentic(report, now)
	if r != nil {
		return "", "", "", r
	}
	verified, err := validator.askIntel(ctx, q, root, now)
	if err != nil {
		return "", "", "", err
	}
	return verified.intel.platform, verified.intel.module, verified.intel.qe, nil
}

// Remembered counts what a validator remembers.
func Remembered(v attestation.Validator) (collateral, agreed int) {
	return len(v.(*validator).verified.known), len(v.(*validator).agreed.known)
}

// Meaning is a quote without the freedom that its PEM has: two of the same meaning differ in spelling only.
func Meaning(report []byte) []byte {
	q, r := readQuote(report)
	if r != nil {
		return nil
	}
	return slices.Concat(q.signed, q.signature, q.attestationKey, q.qe.raw, q.qeSignature, q.qeAuth,
		q.pck.Raw, q.ca.Raw, q.root.Raw)
}

// Broken is a validator without anything to ask. No evidence is known that makes a library panic; this stands for the one
// that will be.
func Broken() attestation.Validator { return &validator{references: make([]reference, 1)} }
