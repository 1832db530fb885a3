package coordinator

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/coordinator/audit"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// recovery is a Coordinator that has a history and waits for its seed.
//
// The history is the host's word. That its seed's Coordinator reached it, latest's signature shows once the seed is there;
// that it is the newest one, only the owners know, who verify it before they give a share and sign for which transition
// they give it. The shares are the owners' word, not anybody's who can seal something to a public key: a seed of the
// host's choosing would make the root CA the host's.
type recovery struct {
	history   []*manifest.Transition // oldest first, never empty
	entries   []api.HistoryEntry     // the same
	latest    *latest                // the store's latest
	sealed    []api.SealedShare      // as the store has them
	validator attestation.Validator
	overtaken bool // another replica made the end of this history while this process ran

	mutex  sync.Mutex
	nonce  []byte            // what owners sign, so that no share counts twice
	shares map[int]pki.Share // by their owners' place in the manifest
}

// newRecovery reads the store's history and checks all that can be checked without the seed.
func (c *Coordinator) newRecovery(ctx context.Context, l *latest) (r *recovery, err error) {
	r = &recovery{latest: l}
	if r.entries, err = readHistory(ctx, c.store, l.transition); err != nil {
		return nil, err
	}
	if len(r.entries) == 0 {
		return nil, fmt.Errorf("latest names no transition")
	}
	if r.history, err = api.VerifyHistory(r.entries); err != nil {
		return nil, err
	}
	if r.validator, err = c.validator(r.transition().Manifest); err != nil {
		return nil, err
	}
	if err := readJSON(ctx, c.store, store.Name{Kind: store.Shares, Hash: r.history[0].Hash}, &r.sealed); err != nil {
		return nil, err
	}
	r.startOver()
	return r, nil
}

// startOver forgets the shares, and what owners signed for them.
func (r *recovery) startOver() {
	r.shares = make(map[int]pki.Share)
	r.nonce = make([]byte, api.NonceSize)
	rand.Read(r.nonce) // never fails (crypto/rand)
}

func (r *recovery) transition() *manifest.Transition { return r.history[len(r.history)-1] }
func (r *recovery) owners() []manifest.SeedshareOwner {
	return r.transition().Manifest.SeedshareOwnerKeys
}

func (r *recovery) threshold() int { return r.transition().Manifest.SeedshareThreshold }

func (r *recovery) progress() *api.Recovery {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return &api.Recovery{Nonce: r.nonce, Collected: len(r.shares), Threshold: r.threshold()}
}

// code is what those are told who want more of the Coordinator than its recovery.
func (r *recovery) code() api.Code {
	if r.overtaken {
		return api.CodeNeedsPeer
	}
	return api.CodeNeedsRecovery
}

// takeShare takes one owner's share. With the last one that it takes, the Coordinator is the authority again.
func (c *Coordinator) takeShare(ctx context.Context, req *api.RecoverRequest) (*api.RecoverResponse, error) {
	r := c.recovering.Load()
	if r == nil {
		return nil, problem(api.CodeNoRecovery)
	}
	owner := r.transition().Manifest.SeedshareOwner(req.PublicKey)
	if owner < 0 {
		return nil, problem(api.CodeBadSignature).saying("publicKey is not the signing key of one of the manifest's SeedshareOwnerKeys")
	}
	key, err := pki.ParseSPKI(req.PublicKey)
	if err != nil {
		return nil, problem(api.CodeBadRequest).saying("publicKey is not the SPKI of an ECDSA key").because(err)
	}
	if !req.VerifySignature(key, c.hpkeKey.PublicKey().Bytes()) {
		return nil, problem(api.CodeBadSignature).saying(
			"signature is not the owner's over this share, nonce and transition, for this Coordinator since its last restart")
	}
	if hash := r.transition().Hash; !bytes.Equal(req.TransitionHash, hash[:]) {
		return nil, problem(api.CodeConflict).saying("transitionHash is not the latest transition of this Coordinator")
	}
	share, err := req.Open(c.hpkeKey)
	if err != nil {
		return nil, problem(api.CodeBadRequest).saying("share is not sealed to this Coordinator").because(err)
	}
	if share.Index() != owner+1 {
		return nil, problem(api.CodeBadRequest).saying("share is not this owner's").
			because(fmt.Errorf("%s gave the share number %d, want %d", fingerprint(req.PublicKey), share.Index(), owner+1))
	}
	c.setMutex.Lock()
	defer c.setMutex.Unlock()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	switch _, repeated := r.shares[owner]; {
	case c.recovering.Load() == nil:
		return nil, problem(api.CodeNoRecovery)
	case c.recovering.Load() != r:
		return nil, problem(api.CodeBadNonce)
	case !bytes.Equal(req.Nonce, r.nonce):
		return nil, problem(api.CodeBadNonce)
	case repeated:
		return nil, problem(api.CodeShareRepeated).because(fmt.Errorf("%s gave a share already", fingerprint(req.PublicKey)))
	}
	r.shares[owner] = share
	if err := c.audit.Record(&audit.ShareTaken{
		Owner: fingerprint(req.PublicKey), Collected: len(r.shares), Threshold: r.threshold(),
	}); err != nil {
		delete(r.shares, owner) // to be given again
		return nil, unrecorded(err)
	}
	resp := &api.RecoverResponse{Collected: len(r.shares), Threshold: r.threshold()}
	c.log.Info("seed share taken", "owner", fingerprint(req.PublicKey), "collected", resp.Collected, "threshold", resp.Threshold)
	if resp.Collected < resp.Threshold {
		return resp, nil
	}
	g, err := r.recover(time.Now(), c.log)
	if err != nil {
		err = fmt.Errorf("shares of %v: %w", r.givers(), err)
		r.startOver()
		return nil, problem(api.CodeSharesDiscarded).because(err)
	}
	if err := c.auditRecovery(g); err != nil {
		delete(r.shares, owner)
		return nil, err
	}
	// Nobody is served under the new mesh CA before the store names it: then it is the only one.
	if err := c.commit(ctx, nil, r.latest.text, g); err != nil {
		c.auditNotKept(g.transition, err)
		r.startOver()
		if errors.Is(err, store.ErrConflict) {
			return nil, problem(api.CodeConflict).because(err).saying(
				"another replica was recovered, or was given a manifest, meanwhile; this one asks it for what it has")
		}
		return nil, fmt.Errorf("keep the recovered authority of transition %x: %w", g.transition.Hash, err)
	}
	r.shares = nil
	c.log.Info("recovered", "generation", len(g.history), "transition", hex.EncodeToString(g.transition.Hash[:]))
	resp.Recovered = true
	return resp, nil
}

// recover makes the generation that the history ends with, if the shares are those of its seed. The mesh CA is a new one:
// the key of the one before was in the memory of the process that died, and pods that it certified are to be rolled out
// again.
func (r *recovery) recover(now time.Time, log *slog.Logger) (*generation, error) {
	seed, err := pki.Combine(slices.Collect(maps.Values(r.shares)))
	if err != nil {
		return nil, err
	}
	t := r.transition()
	if !r.latest.signedBy(&seed.TransactionKey().PublicKey) {
		return nil, fmt.Errorf("they make a seed whose transaction key did not sign transition %x", t.Hash)
	}
	g, err := r.generation(seed, now, log)
	if err != nil {
		return nil, err
	}
	if err := g.newMeshCA(r.latest.sequence+1, now); err != nil {
		return nil, err
	}
	return g, nil
}

// generation is the one that the history ends with, but for its mesh CA.
func (r *recovery) generation(seed pki.Seed, now time.Time, log *slog.Logger) (*generation, error) {
	g := &generation{transition: r.transition(), history: r.entries, latest: r.latest, validator: r.validator}
	if err := g.take(seed, now); err != nil {
		return nil, err
	}
	if err := api.VerifyShares(r.sealed, r.history, g.root); err != nil {
		log.Warn("the store's seed shares are not this seed's; the owners' own copies are as good as ever", "reason", err)
	} else {
		g.shares = r.sealed
	}
	return g, nil
}

// givers names the owners of the shares that are here.
func (r *recovery) givers() []string {
	var names []string
	for _, i := range slices.Sorted(maps.Keys(r.shares)) {
		names = append(names, fingerprint(r.owners()[i].SigningKey.SPKI()))
	}
	return names
}

// fingerprint is how people tell owners apart: the first 8 bytes of SHA-256 of the SPKI, as `portcullis set` names files.
func fingerprint(spki []byte) string {
	hash := sha256.Sum256(spki)
	return hex.EncodeToString(hash[:8])
}
