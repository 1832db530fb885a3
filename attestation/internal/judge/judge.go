// Package judge is what the validators of all platforms have in common: checks that name the field that is wrong, and the
// order in which several reference values are tried.
package judge

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"portcullis.dev/portcullis/attestation"
)

// Rejected says which field is wrong, in the vendor's notation.
func Rejected(field, want, got string) *attestation.Rejected {
	return &attestation.Rejected{Field: field, Want: want, Got: got}
}

// Equal compares bytes.
func Equal(field string, want, got []byte) *attestation.Rejected {
	if bytes.Equal(want, got) {
		return nil
	}
	return Rejected(field, hex.EncodeToString(want), hex.EncodeToString(got))
}

// Number compares numbers.
func Number(field string, want, got uint64) *attestation.Rejected {
	if want == got {
		return nil
	}
	return Rejected(field, fmt.Sprintf("%#x", want), fmt.Sprintf("%#x", got))
}

// Forbidden wants a bit to be 0.
func Forbidden(field string, set bool) *attestation.Rejected {
	if !set {
		return nil
	}
	return Rejected(field, "0", "1")
}

// PolicyHash wants the field that holds a pod's policy hash to hold one.
func PolicyHash(field string, got []byte) *attestation.Rejected {
	if len(got) == len(attestation.PolicyHash{}) && !AllZero(got) {
		return nil
	}
	return Rejected(field, "SHA-256 of the initdata", hex.EncodeToString(got))
}

// AllZero says whether b is nothing but zeros. So is the empty one.
func AllZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// Check is one thing that may be wrong; nil means that it is not.
type Check func() *attestation.Rejected

// First runs checks in order. It says how many passed, and which one did not.
func First(checks ...Check) (passed int, r *attestation.Rejected) {
	for i, check := range checks {
		if r := check(); r != nil {
			return i, r
		}
	}
	return len(checks), nil
}

// Any tries reference values until one accepts and returns its index. When none does, the rejection is that of the
// reference value that passed the most checks: the one that was meant. None at all reject the platform.
func Any[R any](references []R, try func(R) (passed int, r *attestation.Rejected)) (int, *attestation.Rejected) {
	closest := Rejected("PLATFORM", "one that has reference values", "one that has none")
	furthest := -1
	for i, reference := range references {
		passed, r := try(reference)
		if r == nil {
			return i, nil
		}
		if passed > furthest {
			furthest, closest = passed, r
		}
	}
	return -1, closest
}

// Recover makes a panic a rejection. The bytes are an attacker's and the parsers are a library's: what they cannot cope
// with is bad evidence and not the Coordinator's end. It is deferred, with the results of Validate.
func Recover(claims *attestation.Claims, err *error) {
	if p := recover(); p != nil {
		*claims, *err = attestation.Claims{}, Rejected("REPORT", "a readable report", fmt.Sprintf("a panic: %v", p))
	}
}

// ParseAll parses reference values, each by parse, which lists the faults of one. The error lists those of all.
func ParseAll[V, R any](values []V, parse func(V) (R, []string)) ([]R, error) {
	var (
		references []R
		faults     []string
	)
	for i, value := range values {
		reference, f := parse(value)
		for _, fault := range f {
			faults = append(faults, fmt.Sprintf("reference value %d: %s", i, fault))
		}
		references = append(references, reference)
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("malformed reference values: %s", strings.Join(faults, "; "))
	}
	return references, nil
}

// ParseHex reads exactly size bytes of a reference value, in lower-case hexadecimal digits. All zero is refused: a TEE
// writes that where it has nothing to say.
func ParseHex(text string, size int) ([]byte, error) {
	if text == "" {
		return nil, fmt.Errorf("is missing, want %d lower-case hexadecimal digits", 2*size)
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != size || hex.EncodeToString(b) != text {
		return nil, fmt.Errorf("%q is not %d lower-case hexadecimal digits", text, 2*size)
	}
	if AllZero(b) {
		return nil, errors.New("is all zero")
	}
	return b, nil
}

// ParseNumber reads a number of a reference value, which may be zero but not left out.
func ParseNumber(value *int, most int) (int, error) {
	switch {
	case value == nil:
		return 0, fmt.Errorf("is missing, want 0 to %d", most)
	case *value < 0 || *value > most:
		return 0, fmt.Errorf("is %d, want 0 to %d", *value, most)
	}
	return *value, nil
}
