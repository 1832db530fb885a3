package snp_test

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"testing"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
)

// One core, warm collateral, certificates in the evidence.
func BenchmarkValidate(b *testing.B) {
	s := set("Milan")
	v, e := s.validator(b), s.issue(b)
	for b.Loop() {
		if _, err := v.Validate(b.Context(), e, reportData); err != nil {
			b.Fatal(err)
		}
	}
}

// The signatures that BenchmarkValidate's evidence rests on, and nothing else: the limit.
func BenchmarkSignatures(b *testing.B) {
	s := set("Milan")
	e, w := s.issue(b), s.machine.World
	report := must(abi.ReportToProto(e.Report))
	_, body, err := s.kds.Get(b.Context(), kds.CrlLinkByKey("Milan", abi.VcekReportSigner))
	if err != nil {
		b.Fatal(err)
	}
	list := must(x509.ParseRevocationList(body))
	digest := sha512.Sum384(abi.SignedComponent(e.Report))
	r, sig := abi.AmdBigInt(report.Signature[:0x48]), abi.AmdBigInt(report.Signature[0x48:0x90])
	key := w.VCEK.PublicKey.(*ecdsa.PublicKey)
	for b.Loop() {
		switch {
		case !ecdsa.Verify(key, digest[:], r, sig),
			w.VCEK.CheckSignatureFrom(w.ASK) != nil,
			w.ASK.CheckSignatureFrom(w.ARK) != nil,
			list.CheckSignatureFrom(w.ARK) != nil:
			b.Fatal("a signature is wrong")
		}
	}
}

// Evidence that is refused for its last check: what an attacker with a chip of his own can make a Coordinator spend.
func BenchmarkReject(b *testing.B) {
	s := set("Milan")
	e := s.issue(b)
	s.reference.Measurement = s.reference.Measurement[:94] + "00"
	v := s.validator(b)
	for b.Loop() {
		if _, err := v.Validate(b.Context(), e, reportData); err == nil {
			b.Fatal("another image was accepted")
		}
	}
}
