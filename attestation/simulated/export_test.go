package simulated

import (
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/sevsnp"
)

// Broken is a validator without a root, which panics. No evidence is known that makes a library panic; this stands for the
// one that will be.
func Broken() attestation.Validator {
	return &sevsnp.Validator{
		Platform: attestation.Simulated, References: []sevsnp.Reference{{Product: "Milan"}}, Vendor: operator{}, Now: time.Now,
	}
}
