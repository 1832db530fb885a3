// Package simulated judges evidence of a pretended TEE.
//
// Its reports are real SEV-SNP attestation reports, byte for byte, and they are judged by the code that judges real ones:
// signature, certificate chain, guest policy, privilege level, firmware versions, measurement. Only the root of the chain
// is not AMD's but one that a test operator made, and that a manifest has to name. And nobody publishes anything: the
// certificates have to come with the report, and there are no revocation lists. Who does not trust a root any more takes
// it out of the manifest.
//
// The threat is the one of the real platform, a host that forges, replays or weakens evidence, and one more: evidence of
// a pretended TEE that is taken for real. Therefore such evidence says Platform "simulated", which no other validator
// accepts, and a Coordinator uses this one only when its operator said so.
package simulated

import (
	"context"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
	"portcullis.dev/portcullis/attestation/internal/sevsnp"
)

// NewValidator accepts evidence that any of the reference values accepts; without any, it refuses everything.
// An error lists every fault of every reference value.
//
// A Rejected of the validator it returns is named after the field of ATTESTATION_REPORT (AMD SEV-SNP ABI specification),
// with a part of it behind a dot where only that part is wrong (POLICY.DEBUG), after CHAIN and the certificate, or after
// REPORT and PLATFORM where the evidence as a whole is of no use. Of several reference values, it tells what was wrong
// with the one that got furthest. It needs nothing but the evidence, so it is Unavailable only to a caller that has gone.
func NewValidator(references []ReferenceValue) (attestation.Validator, error) {
	parsed, err := judge.ParseAll(references, ReferenceValue.parse)
	if err != nil {
		return nil, err
	}
	return &sevsnp.Validator{
		Platform: attestation.Simulated, References: parsed, Vendor: operator{}, Now: time.Now,
	}, nil
}

// operator is who made the root: no vendor, with nothing to publish.
type operator struct{}

func (operator) Complete(_ context.Context, e sevsnp.Evidence) error {
	ek, signer := sevsnp.Names(e.Key)
	switch noEK, noSigner := e.Missing(); {
	case noEK && noSigner:
		return judge.Rejected("CHAIN", "a certificate table", "none")
	case noEK:
		return judge.Rejected("CHAIN."+ek, "one in the certificate table", "none")
	default:
		return judge.Rejected("CHAIN."+signer, "one in the certificate table", "none")
	}
}

// NotRevoked is true of every chain: a pretended vendor has no revocation lists.
func (operator) NotRevoked(context.Context, sevsnp.Chain, time.Time) error { return nil }
