package coordinator

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"portcullis.dev/portcullis/pki"
)

// overlap is what is left of a manifest that let the next one take its place without a gap: its mesh CA, and what that signed
// for the next one before its key was forgotten. Nobody can make it again. It is public, and in memory only: after a recovery
// by its owners the mesh CA is a new one, which nothing was signed for.
type overlap struct {
	Predecessor []byte `json:"predecessor"`
	Cross       []byte `json:"cross"`
}

// overlaps are oldest first. Those before the last are for pods of manifests before the one before: each pod accepts those of
// the manifest after its own, which may run yet, and no later ones.
//
// In JSON they are what one replica hands to another (adopt).
type overlaps []overlap

// maxOverlaps bounds the memory of owners who set one manifest after the other.
const maxOverlaps = 32

// succeed has the mesh CA of before certify g's, if its manifest, the outgoing one, says so: what the new one says is about its
// own successor.
func (g *generation) succeed(before *generation, now time.Time) error {
	if before == nil {
		return nil
	}
	g.overlaps = before.overlaps.at(now)
	d := before.transition.Manifest.Overlap()
	if d == 0 {
		return nil
	}
	if err := g.mesh.Succeed(before.mesh, d, now); err != nil {
		return fmt.Errorf("overlap with the manifest before for %v: %w", d, err)
	}
	g.overlaps = append(g.overlaps, overlap{g.mesh.Before.Predecessor.Raw, g.mesh.Before.Cross.Raw})
	g.overlaps = g.overlaps[max(0, len(g.overlaps)-maxOverlaps):]
	return nil
}

// adopt gives g, whose mesh CA came from another replica, the overlaps that came with it. Each is checked, and the last one is
// g's own if it is for g's mesh CA.
func (g *generation) adopt(o overlaps) error {
	if len(o) > maxOverlaps {
		return fmt.Errorf("adopt %d overlaps, at most %d are allowed", len(o), maxOverlaps)
	}
	for i, each := range o {
		s, err := each.parse()
		if err == nil {
			err = s.Verify()
		}
		if err != nil {
			return fmt.Errorf("adopt overlap %d: %w", i+1, err)
		}
		if i == len(o)-1 && string(s.Cross.RawSubjectPublicKeyInfo) == string(g.mesh.Certificate.RawSubjectPublicKeyInfo) {
			if err := g.mesh.SucceedBy(s); err != nil {
				return fmt.Errorf("adopt overlap %d: %w", i+1, err)
			}
		}
	}
	g.overlaps = o
	return nil
}

func (o overlap) parse() (*pki.Succession, error) {
	predecessor, err := x509.ParseCertificate(o.Predecessor)
	if err != nil {
		return nil, fmt.Errorf("parse the predecessor: %w", err)
	}
	cross, err := x509.ParseCertificate(o.Cross)
	if err != nil {
		return nil, fmt.Errorf("parse the cross-certificate: %w", err)
	}
	return &pki.Succession{Predecessor: predecessor, Cross: cross}, nil
}

// at is o without what is over, in a list of its own.
func (o overlaps) at(now time.Time) (left overlaps) {
	for _, each := range o {
		if s, err := each.parse(); err == nil && now.Before(s.Until()) {
			left = append(left, each)
		}
	}
	return left
}

// after is the cross-certificate by which pods of a mesh CA accept the next one, nil for none.
func (o overlaps) after(meshCA [sha256.Size]byte, now time.Time) []byte {
	for _, each := range o {
		if sha256.Sum256(each.Predecessor) == meshCA {
			if s, err := each.parse(); err == nil && now.Before(s.Until()) {
				return each.Cross
			}
		}
	}
	return nil
}
