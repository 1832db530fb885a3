package tdx_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"testing"
)

// BenchmarkValidate judges good evidence with warm collateral.
func BenchmarkValidate(b *testing.B) {
	w := world(b)
	m := w.Machine(policy)
	v, e := validator(b, options(w), m.Reference()), issue(b, m)
	for b.Loop() {
		if _, err := v.Validate(b.Context(), e, reportData); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSignatures is the bare P-256 verifications that stand behind one judgement, and nothing else: quote, QE report,
// PCK chain (three), TCB info, QE identity, the certificate that signed both, and two lists of revoked certificates.
func BenchmarkSignatures(b *testing.B) {
	const signatures = 10
	key := world(b).Plan.Keys.PCK
	digest := sha256.Sum256([]byte("message"))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for range signatures {
			if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
				b.Fatal("a good signature is refused")
			}
		}
	}
}
