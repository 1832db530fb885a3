package sevsnp

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"

	"portcullis.dev/portcullis/attestation/internal/judge"
)

// Reference is a reference value that cannot hold a wrong value: the packages of the platforms parse theirs into one. The
// zero Reference accepts nothing.
type Reference struct {
	// Root is the ARK.
	Root *x509.Certificate
	// Product is the processor line that Root vouches for, Milan or Genoa.
	Product string
	// SigningKey is the kind of key that must have signed.
	SigningKey  abi.ReportSigner
	Measurement [abi.MeasurementSize]byte
	// MinimumTCB bounds REPORTED_TCB and LAUNCH_TCB.
	MinimumTCB kds.TCBParts
	MinimumABI ABIVersion
	AllowSMT   bool
	// Chips are CHIP_IDs. IDKeys and AuthorKeys are digests; all zero is that of a guest without the key.
	Chips, IDKeys, AuthorKeys Set
}

// Set is the values that a field may have. The zero Set has none.
type Set struct {
	any    bool
	values [][]byte
}

// Any has every value.
var Any = Set{any: true}

// None has the value that stands for none, which is size zero bytes.
func None(size int) Set { return Set{values: [][]byte{make([]byte, size)}} }

// Has says whether value is in s.
func (s Set) Has(value []byte) bool {
	if s.any {
		return true
	}
	for _, v := range s.values {
		if bytes.Equal(v, value) {
			return true
		}
	}
	return false
}

func (s Set) String() string {
	switch {
	case s.any:
		return "any"
	case len(s.values) == 1:
		return fmt.Sprintf("%x", s.values[0])
	default:
		return fmt.Sprintf("one of %d: %x", len(s.values), s.values)
	}
}

// ParseSet reads a list of values, size bytes each, or of nothing but the word that stands for meaning. The list cannot be
// left empty, so that nobody has to know what empty would mean. Faults do not name the field.
func ParseSet(list []string, size int, word string, meaning Set) (Set, []error) {
	switch {
	case len(list) == 0:
		return Set{}, []error{fmt.Errorf("is missing, want [%q] or values of %d lower-case hexadecimal digits", word, 2*size)}
	case len(list) == 1 && list[0] == word:
		return meaning, nil
	}
	var (
		s      Set
		faults []error
	)
	for _, text := range list {
		if text == word {
			faults = append(faults, fmt.Errorf("%q stands beside other values, want it alone or not at all", word))
			continue
		}
		value, err := judge.ParseHex(text, size)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		s.values = append(s.values, value)
	}
	if len(faults) > 0 {
		return Set{}, faults
	}
	return s, nil
}

// TCB is the components of TCB_VERSION on Milan and Genoa (AMD SEV-SNP ABI specification, table "TCB_VERSION"), each 0 to
// 127, and to 255 for Microcode. Zero may be written; it may not be left out.
type TCB struct {
	BootLoader *int
	TEE        *int
	SNP        *int
	Microcode  *int
}

// Parse returns t's components, or faults that begin with the component's name behind a dot.
func (t TCB) Parse() (parts kds.TCBParts, faults []string) {
	for _, part := range []struct {
		name  string
		value *int
		most  int
		to    *uint8
	}{
		{"BootLoader", t.BootLoader, 127, &parts.BlSpl},
		{"TEE", t.TEE, 127, &parts.TeeSpl},
		{"SNP", t.SNP, 127, &parts.SnpSpl},
		{"Microcode", t.Microcode, 255, &parts.UcodeSpl},
	} {
		n, err := judge.ParseNumber(part.value, part.most)
		if err != nil {
			faults = append(faults, fmt.Sprintf(".%s: %v", part.name, err))
		}
		*part.to = uint8(n)
	}
	return parts, faults
}

// ABIVersion is a version of the SEV-SNP ABI, such as 1.55.
type ABIVersion struct{ Major, Minor uint8 }

func (v ABIVersion) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

func (v ABIVersion) less(than ABIVersion) bool {
	return v.Major < than.Major || v.Major == than.Major && v.Minor < than.Minor
}

// ParseMeasurement reads a launch measurement.
func ParseMeasurement(text string) (m [abi.MeasurementSize]byte, err error) {
	b, err := judge.ParseHex(text, len(m))
	if err != nil {
		return m, err
	}
	return [abi.MeasurementSize]byte(b), nil
}

// Products are the processor lines whose reports can be judged. Turin is none of them: its TCB_VERSION has another layout,
// with the component FMC in front (AMD document 56860, table "TCB_VERSION"), and its VCEK a chip identity of 8 bytes.
// go-sev-guest reads both as on Milan, so that a minimum would bound the wrong component.
var Products = []string{"Milan", "Genoa"}

// CheckProduct refuses what is not among Products.
func CheckProduct(product string) error {
	want := fmt.Sprintf("want one of %q", Products)
	switch {
	case slices.Contains(Products, product):
		return nil
	case product == "":
		return fmt.Errorf("is missing, %s", want)
	case product == "Turin":
		return fmt.Errorf("%q cannot be judged yet, its TCB_VERSION has another layout; %s", product, want)
	default:
		return fmt.Errorf("%q is no processor line, %s", product, want)
	}
}
