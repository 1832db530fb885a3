package attestation

import "context"

// Field is one field of evidence, taken apart for people. Nobody has vouched for it.
type Field struct {
	// Name is the field's name in the platform's specification, with a part of it behind a dot: POLICY.DEBUG.
	Name string `json:"name"`
	// Value is in the specification's usual notation.
	Value string `json:"value"`
	// Meaning says what the value means, where that is not plain.
	Meaning string `json:"meaning,omitempty"`
}

// Comparison is what one reference value says of one field.
type Comparison struct {
	Field string
	// Wrong is nil where the field is right.
	Wrong *Rejected
}

// Inspector is a Validator that says everything that is wrong with evidence, where Validate stops at the first. It helps a
// person to find a wrong reference value, and accepts nothing: only Validate does.
type Inspector interface {
	Validator
	// Inspect compares evidence with each reference value, in their order and by the checks of Validate. Checks that need
	// what cannot be had are not among the comparisons.
	Inspect(ctx context.Context, evidence Evidence, data ReportData) [][]Comparison
}
