package report

import "portcullis.dev/portcullis/manifest"

// Explain explains reference values that need not be a manifest's.
func Explain(r manifest.ReferenceValues) []ReferenceValue { return referenceValues(r, "") }
