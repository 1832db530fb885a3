package tdx

import (
	"bytes"
	"encoding/hex"
	"fmt"

	"portcullis.dev/portcullis/attestation"
)

func rejected(field, want, got string) *attestation.Rejected {
	return &attestation.Rejected{Field: field, Want: want, Got: got}
}

func equal(field string, want, got []byte) *attestation.Rejected {
	switch {
	case bytes.Equal(want, got):
		return nil
	case len(want) != len(got):
		return rejected(field, fmt.Sprintf("%d bytes, %x", len(want), want), fmt.Sprintf("%d bytes, %x", len(got), got))
	}
	return rejected(field, hex.EncodeToString(want), hex.EncodeToString(got))
}

func number(field string, want, got uint64) *attestation.Rejected {
	if want == got {
		return nil
	}
	return rejected(field, fmt.Sprintf("%#x", want), fmt.Sprintf("%#x", got))
}

func atLeast(field string, minimum, got int) *attestation.Rejected {
	if got >= minimum {
		return nil
	}
	return rejected(field, fmt.Sprintf("at least %d", minimum), fmt.Sprint(got))
}

// masked compares the bits that mask has set.
func masked(field string, want, mask, got []byte) *attestation.Rejected {
	if len(mask) != len(got) || len(want) != len(got) {
		return rejected(field, fmt.Sprintf("a value and a mask of %d bytes in Intel's word", len(got)),
			fmt.Sprintf("%d and %d bytes", len(want), len(mask)))
	}
	bits := make([]byte, len(got))
	for i := range got {
		bits[i] = got[i] & mask[i]
	}
	return equal(field, want, bits)
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
