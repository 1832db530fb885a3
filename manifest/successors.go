package manifest

import (
	"errors"
	"fmt"
	"time"

	"portcullis.dev/portcullis/manifest/strictjson"
)

// Successors is what a manifest's owners say about the manifest after it: that their pods accept its pods, and its pods
// theirs, while the one takes the place of the other. Who trusts the mesh CA of such a manifest trusts these owners'
// next choice, for that long.
type Successors struct {
	// MaxOverlap is how long, from when the next manifest is set.
	MaxOverlap Overlap
}

// Overlap is how long two manifests are in use side by side, a Go duration such as 24h in the manifest. The zero value is
// not at all, and has no text.
type Overlap struct{ d time.Duration }

// The bounds of an Overlap. Less than some minutes would end before every pod has heard of it; what is not rolled out after a
// month never will be.
const (
	MinOverlap = 10 * time.Minute
	MaxOverlap = 30 * 24 * time.Hour
)

// NewOverlap checks the bounds.
func NewOverlap(d time.Duration) (Overlap, error) {
	if d < MinOverlap || d > MaxOverlap {
		return Overlap{}, fmt.Errorf("overlap %v, want %v to %v", d, MinOverlap, MaxOverlap)
	}
	return Overlap{d}, nil
}

// Duration is zero for none.
func (o Overlap) Duration() time.Duration { return o.d }

// MarshalText writes a Go duration.
func (o Overlap) MarshalText() ([]byte, error) {
	if o.d == 0 {
		return nil, errors.New("encode an overlap: there is none")
	}
	return []byte(o.d.String()), nil
}

// UnmarshalText reads a Go duration.
func (o *Overlap) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 24h", b)
	}
	*o, err = NewOverlap(d)
	return err
}

// Overlap is how long pods of m and of the next manifest accept each other; zero is not at all.
func (m *Manifest) Overlap() time.Duration {
	if m == nil || m.Successors == nil {
		return 0
	}
	return m.Successors.MaxOverlap.d
}

func (m *Manifest) checkSuccessors(faults *strictjson.Faults) {
	const path = "Successors.MaxOverlap"
	if m.Successors != nil && m.Successors.MaxOverlap.d == 0 && !faults.At("Successors") {
		faults.Add(path, "is missing; leave Successors out for a manifest whose pods accept no others")
	}
}
