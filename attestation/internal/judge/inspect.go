package judge

import (
	"fmt"
	"strings"

	"portcullis.dev/portcullis/attestation"
)

// All runs every check and returns what is wrong.
func All(checks ...Check) (wrong []*attestation.Rejected) {
	for _, check := range checks {
		if r := check(); r != nil {
			wrong = append(wrong, r)
		}
	}
	return wrong
}

// Compare says of each field that was checked whether it is right: it is unless it, or a part of it, is among what is wrong.
// What is wrong beside these fields comes last.
func Compare(fields []string, wrong []*attestation.Rejected) (all []attestation.Comparison) {
	told := make([]bool, len(wrong))
	for _, field := range fields {
		right := true
		for i, r := range wrong {
			if !told[i] && (r.Field == field || strings.HasPrefix(r.Field, field+".")) {
				all = append(all, attestation.Comparison{Field: r.Field, Wrong: r})
				told[i], right = true, false
			}
		}
		if right {
			all = append(all, attestation.Comparison{Field: field})
		}
	}
	for i, r := range wrong {
		if !told[i] {
			all = append(all, attestation.Comparison{Field: r.Field, Wrong: r})
		}
	}
	return all
}

// Same is n times the same: what is wrong whatever the reference value.
func Same(n int, wrong ...*attestation.Rejected) [][]attestation.Comparison {
	all := make([][]attestation.Comparison, n)
	for i := range all {
		all[i] = Compare(nil, wrong)
	}
	return all
}

// RecoverComparisons does for Inspect what Recover does for Validate.
func RecoverComparisons(n int, all *[][]attestation.Comparison) {
	if p := recover(); p != nil {
		*all = Same(n, Rejected("REPORT", "a readable report", fmt.Sprintf("a panic: %v", p)))
	}
}
