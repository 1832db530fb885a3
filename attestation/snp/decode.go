package snp

import (
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/sevsnp"
)

// Decode takes evidence with an ATTESTATION_REPORT apart for people, SNP's or simulated, whatever it says and whoever signed
// it. The error says that the report has another size.
func Decode(e attestation.Evidence) ([]attestation.Field, error) {
	return sevsnp.Decode(e.Report, e.Certificates)
}
