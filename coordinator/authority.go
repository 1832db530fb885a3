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
	latest     []byte             // the store's latest

	seed      pki.Seed
	nonces    nonces
	root      *x509.Certificate
	mesh      *pki.MeshCA
	meshHash  [32]byte // SHA-256 of the mesh CA
	validator attestation.Validator
}

// successor makes the generation of a transition. g is the one before it, nil for the first, which makes the seed.
func (g *generation) successor(
	t *manifest.Transition, validator attestation.Validator, now time.Time,
) (*generation, error) {
	next := &generation{transition: t, validator: validator}
	if g == nil {
		seed, err := pki.NewSeed(rand.Reader)
		if err != nil {
			return nil, err
		}
		root, err := pki.NewRootCA(seed.RootKey(), now)
		if err != nil {
			return nil, err
		}
		next.seed, next.root, next.nonces = seed, root, newNonces(seed)
	} else {
		next.seed, next.root, next.nonces = g.seed, g.root, g.nonces
		next.history = append(next.history, g.history...)
	}
	next.history = append(next.history, api.HistoryEntry{Manifest: t.Manifest.Text(), Signatures: t.Signatures})
	var err error
	if next.mesh, err = pki.NewMeshCA(next.root, next.seed.RootKey(), t.Hash, now); err != nil {
		return nil, err
	}
	next.meshHash = sha256.Sum256(next.mesh.Certificate.Raw)
	if next.latest, err = encodeLatest(t.Hash, next.seed.TransactionKey()); err != nil {
		return nil, err
	}
	return next, nil
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
