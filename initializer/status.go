package initializer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"portcullis.dev/portcullis/pki"
)

// Status is what operators ask about a pod's credentials. All of it is public.
type Status struct {
	// RollOut says that the credentials are not renewed any more: the pod works until NotAfter.
	RollOut bool `json:"rollOut"`
	// ChangedSince is when the pod heard that the manifest has changed.
	ChangedSince time.Time `json:"changedSince,omitzero"`
	NotBefore    time.Time `json:"notBefore"`
	NotAfter     time.Time `json:"notAfter"`
	Renewal      time.Time `json:"renewal"`
	Serial       string    `json:"serial"`
	SANs         []string  `json:"sans"`
	// MeshCA is the SHA-256 of the mesh CA.
	MeshCA string `json:"meshCA"`
	// Successors says whether the manifest lets its pods accept those of the next one.
	Successors bool `json:"successors"`
	// PredecessorUntil and SuccessorUntil are how long pods of the manifests before and after are accepted, if they are.
	PredecessorUntil time.Time `json:"predecessorUntil,omitzero"`
	SuccessorUntil   time.Time `json:"successorUntil,omitzero"`
}

// ReadStatus reads a volume's status. The error is that of Ready where the credentials are not good.
func ReadStatus(dir string, at time.Time) (*Status, error) {
	if err := Ready(dir, at); err != nil {
		return nil, err
	}
	c, err := Load(dir)
	if err != nil {
		return nil, err
	}
	mesh := sha256.Sum256(c.Trust.MeshCA.Raw)
	trust := c.Trust.At(at)
	return &Status{
		RollOut:          !c.Changed.IsZero(),
		ChangedSince:     c.Changed.UTC(),
		NotBefore:        c.Chain.Leaf.NotBefore.UTC(),
		NotAfter:         c.Chain.Leaf.NotAfter.UTC(),
		Renewal:          c.renewal().UTC(),
		Serial:           c.Chain.Leaf.SerialNumber.Text(16),
		SANs:             c.sans(),
		MeshCA:           hex.EncodeToString(mesh[:]),
		Successors:       pki.AllowsSuccessor(c.Trust.MeshCA),
		PredecessorUntil: trust.PredecessorUntil.UTC(),
		SuccessorUntil:   trust.SuccessorUntil().UTC(),
	}, nil
}

// String is for people.
func (s *Status) String() string {
	var b strings.Builder
	when := func(t time.Time) string { return t.Format(time.RFC3339) }
	if s.RollOut {
		fmt.Fprintf(&b, "roll this pod out again before %s: its manifest was replaced, and its certificate is not renewed\n", when(s.NotAfter))
	} else {
		b.WriteString("the credentials are good\n")
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, "  "+name+"\t"+format+"\n", args...) }
	line("names", "%s", strings.Join(s.SANs, ", "))
	line("certificate", "%s, good until %s", s.Serial, when(s.NotAfter))
	if s.RollOut {
		line("renewal", "none, known since %s", when(s.ChangedSince))
	} else {
		line("renewal", "about %s", when(s.Renewal))
	}
	line("mesh CA", "%s", s.MeshCA)
	switch {
	case !s.SuccessorUntil.IsZero():
		line("next manifest", "its pods are accepted until %s", when(s.SuccessorUntil))
	case !s.Successors:
		line("next manifest", "its pods will not be accepted")
	case s.RollOut:
		line("next manifest", "its pods are not accepted")
	default:
		line("next manifest", "its pods will be accepted for a while")
	}
	if !s.PredecessorUntil.IsZero() {
		line("manifest before", "its pods are accepted until %s", when(s.PredecessorUntil))
	}
	w.Flush()
	return b.String()
}
