package simulated

import "portcullis.dev/portcullis/attestation"

// Broken is a validator without a root, which crypto/x509 panics over. No evidence is known that makes a library panic;
// this stands for the one that will be.
func Broken() attestation.Validator { return &validator{references: []reference{{product: "Milan"}}} }
