package coordinator

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// generation is the authority of one manifest. It never changes: a request that began under one generation sees nothing
// of the next.
type generation struct {
	transition *manifest.Transition
	history    []api.HistoryEntry // oldest first, transition's manifest last
	latest     *latest            // what the store says of it
	shares     []api.SealedShare  // of the seed, in the order of the manifest's SeedshareOwnerKeys

	seed      pki.Seed
	nonces    nonces
	root      *x509.Certificate
	mesh      *pki.MeshCA
	meshHash  [32]byte // SHA-256 of the mesh CA
	overlaps  overlaps // with the manifests before
	validator attestation.Validator
}

// successor makes the generation of a transition. g is the one before it, nil for the first, which makes the seed.
func (g *generation) successor(
	t *manifest.Transition, validator attestation.Validator, now time.Time,
) (*generation, error) {
	next := &generation{transition: t, validator: validator}
	var before uint64
	if g == nil {
		seed, err := pki.NewSeed(rand.Reader)
		if err != nil {
			return nil, err
		}
		if err := next.take(seed, now); err != nil {
			return nil, err
		}
		if next.shares, err = sealShares(seed, t); err != nil {
			return nil, err
		}
	} else {
		next.seed, next.root, next.nonces, next.shares = g.seed, g.root, g.nonces, g.shares
		next.history = append(next.history, g.history...)
		before = g.latest.sequence
	}
	next.history = append(next.history, api.HistoryEntry{Manifest: t.Manifest.Text(), Signatures: t.Signatures})
	if err := next.newMeshCA(before+1, now); err != nil {
		return nil, err
	}
	if err := next.succeed(g, now); err != nil {
		return nil, err
	}
	return next, nil
}

// take gives g a seed, and what follows from it whatever the manifest says.
func (g *generation) take(seed pki.Seed, now time.Time) (err error) {
	g.seed, g.nonces = seed, newNonces(seed)
	g.root, err = pki.NewRootCA(seed.RootKey(), now)
	return err
}

// newMeshCA gives g the authority of its manifest, whose key nobody had before, as the store's change number sequence.
func (g *generation) newMeshCA(sequence uint64, now time.Time) (err error) {
	newMeshCA := pki.NewMeshCA
	if g.transition.Manifest.Overlap() > 0 {
		newMeshCA = pki.NewMeshCAWithSuccessors
	}
	if g.mesh, err = newMeshCA(g.root, g.seed.RootKey(), g.transition.Hash, now); err != nil {
		return err
	}
	g.meshHash = sha256.Sum256(g.mesh.Certificate.Raw)
	g.latest, err = newLatest(g.transition.Hash, g.meshHash, sequence, g.seed.TransactionKey())
	return err
}

// sealShares splits the seed that is made for the first transition among the manifest's seed-share owners.
func sealShares(seed pki.Seed, first *manifest.Transition) ([]api.SealedShare, error) {
	owners := first.Manifest.SeedshareOwnerKeys
	if len(owners) == 0 {
		return nil, nil
	}
	shares, err := seed.Split(rand.Reader, first.Manifest.SeedshareThreshold, len(owners))
	if err != nil {
		return nil, err
	}
	sealed := make([]api.SealedShare, len(owners))
	for i, owner := range owners {
		s, err := api.SealShare(shares[i], owner, first.Hash, seed.RootKey())
		if err != nil {
			return nil, err
		}
		sealed[i] = *s
	}
	return sealed, nil
}

// issue answers a request whose evidence proved claims, under a policy of the manifest.
func (g *generation) issue(
	req *api.CertificateRequest, key *ecdsa.PublicKey, claims attestation.Claims, policy manifest.Policy, now time.Time,
) (*api.CertificateResponse, *x509.Certificate, error) {
	leaf, err := g.mesh.Issue(key, policy.SANs, claims, g.transition.Manifest.CertificateValidity.Duration(), now)
	if err != nil {
		return nil, nil, err
	}
	resp := &api.CertificateResponse{
		Chain:          [][]byte{leaf.Raw, g.mesh.Intermediate.Raw},
		MeshCA:         g.mesh.Certificate.Raw,
		RootCA:         g.root.Raw,
		TransitionHash: g.transition.Hash[:],
	}
	if pki.NamesPredecessor(leaf) {
		resp.Predecessor = g.mesh.Before.Predecessor.Raw
	}
	if id := policy.WorkloadSecretID; id != "" {
		if err := resp.Seal(req, g.seed.WorkloadSecret(string(id))); err != nil {
			return nil, nil, fmt.Errorf("seal workload secret %s: %w", id, err)
		}
	}
	return resp, leaf, nil
}

// previous is what the next set must name: the latest transition hash, all zero before the first.
func (g *generation) previous() [32]byte {
	if g == nil {
		return [32]byte{}
	}
	return g.transition.Hash
}

// size is the history's, in bytes of manifests.
func (g *generation) size() (n int) {
	if g == nil {
		return 0
	}
	for _, e := range g.history {
		n += len(e.Manifest)
	}
	return n
}
