package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// Verified is what a Coordinator's answer to Attest proved.
type Verified struct {
	// Claims are the Coordinator's own.
	Claims attestation.Claims
	// History is oldest first, every step signed as it must be. Empty before the first manifest.
	History []*manifest.Transition
	// TransitionHash is that of the last entry of History, all zero before the first manifest.
	TransitionHash [32]byte
	// RootCA and MeshCA are nil before the first manifest.
	RootCA, MeshCA *x509.Certificate
	// HPKEKey is the Coordinator's, raw.
	HPKEKey []byte
	// Shares are the sealed shares of the seed, which the root CA's key signed, in the order of SeedshareOwnerKeys. A host can
	// withhold them: then there are none.
	Shares []SealedShare
	// RecoveryNonce is what seed-share owners sign, nil unless the Coordinator needs recovery.
	RecoveryNonce []byte
	// Reference is the path of the reference value that accepted the evidence, such as ReferenceValues.SNP[0].
	Reference string
	// Checks are what was checked, in the order in which it was. Each has passed.
	Checks []Check
}

// Latest is the active manifest, nil before the first.
func (v *Verified) Latest() *manifest.Manifest {
	if len(v.History) == 0 {
		return nil
	}
	return v.History[len(v.History)-1].Manifest
}

// CheckOwners is the check that the manifests of a history are all of the same owners.
const CheckOwners = "workload owners"

// VerifyError says that a Coordinator is not what it must be.
type VerifyError struct {
	// Check is what was checked.
	Check string
	Err   error
	// Checks are those that were made, where there was more than one: the last one is this, which failed.
	Checks []Check
}

func (e *VerifyError) Error() string {
	return fmt.Sprintf("the Coordinator is refused: %s: %v", e.Check, e.Err)
}

func (e *VerifyError) Unwrap() error { return e.Err }

// ExitCode is that of a check whose answer is no.
func (*VerifyError) ExitCode() int { return 3 }

// VerifyCoordinator judges the answer to Attest(nonce) of a Coordinator that must enforce exactly the manifest trusted,
// byte for byte: its evidence is over this answer and this nonce, it satisfies trusted's reference values, its policy
// has the role of a coordinator in trusted, and each step of the history that led there is signed by the owners of the
// manifest before.
//
// The manifests of the history must be of the same owners. Whoever began it may know the seed, by way of a seed share or of
// a policy that it made a coordinator's, and could have signed the history over to a manifest that looks just right.
// FormerOwners is for a history that changed hands with the caller's knowledge.
//
// Which manifest to trust is the caller's knowledge. A manifest that came with the answer says nothing: a host can run a
// genuine Coordinator with a manifest of its own. The error is a *VerifyError when the answer is no, and has an
// *attestation.Unavailable in it when the hardware's vendor could not be asked.
func VerifyCoordinator(
	ctx context.Context, resp *AttestResponse, nonce []byte, trusted *manifest.Manifest, o manifest.ValidatorOptions,
) (*Verified, error) {
	return FormerOwners(nil).VerifyCoordinator(ctx, resp, nonce, trusted, o)
}

// VerifyRecovery is VerifyCoordinator for a Coordinator that needs recovery, whose answer is to AttestRecovery(nonce). What
// it has shown is that a genuine Coordinator waits for the seed, to go on from this manifest and no earlier one: a host
// that put an old copy of the store in place is found out here.
func VerifyRecovery(
	ctx context.Context, resp *AttestResponse, nonce []byte, trusted *manifest.Manifest, o manifest.ValidatorOptions,
) (*Verified, error) {
	return FormerOwners(nil).VerifyRecovery(ctx, resp, nonce, trusted, o)
}

// FormerOwners are owners of manifests before the trusted one that the caller trusts as well.
type FormerOwners []manifest.OwnersDigest

// VerifyCoordinator is as the function of that name.
func (f FormerOwners) VerifyCoordinator(
	ctx context.Context, resp *AttestResponse, nonce []byte, trusted *manifest.Manifest, o manifest.ValidatorOptions,
) (*Verified, error) {
	v, err := f.VerifyBeforeSet(ctx, resp, nonce, trusted, o)
	if err != nil {
		return nil, err
	}
	if err := v.enforces(trusted); err != nil {
		return nil, err
	}
	return v, nil
}

// VerifyRecovery is as the function of that name.
func (f FormerOwners) VerifyRecovery(
	ctx context.Context, resp *AttestResponse, nonce []byte, trusted *manifest.Manifest, o manifest.ValidatorOptions,
) (*Verified, error) {
	v := new(Verified)
	if resp != nil {
		state := Check{Name: "state", Want: "waiting for its seed", Got: resp.state()}
		if err := v.check(state, failUnless(resp.Recovery != nil && len(resp.Recovery.Nonce) == NonceSize,
			"it does not say that it needs recovery")); err != nil {
			return nil, err
		}
	}
	if err := v.verify(ctx, resp, nonce, trusted, o); err != nil {
		return nil, err
	}
	if err := v.enforces(trusted); err != nil {
		return nil, err
	}
	if err := f.owned(v, trusted); err != nil {
		return nil, err
	}
	v.RecoveryNonce = resp.Recovery.Nonce
	return v, nil
}

// enforces says whether the latest manifest is trusted, byte for byte.
func (v *Verified) enforces(trusted *manifest.Manifest) error {
	c := Check{Name: CheckActiveManifest, Want: fmt.Sprintf("SHA-256 %x, that of the trusted manifest", trusted.Hash()), Got: "none"}
	latest := v.Latest()
	if latest == nil {
		return v.check(c, errors.New("none was set yet"))
	}
	c.Got = fmt.Sprintf("SHA-256 %x", latest.Hash())
	return v.check(c, failUnless(bytes.Equal(latest.Text(), trusted.Text()),
		"its SHA-256 is %x, want %x, that of the trusted manifest", latest.Hash(), trusted.Hash()))
}

// VerifyBeforeSet is VerifyCoordinator for a Coordinator that is about to be given the manifest trusted: it may enforce
// another one yet, or none. All else is checked alike, so that a manifest is not handed to a stranger. Call
// VerifyCoordinator afterwards: only that shows what was set.
func VerifyBeforeSet(
	ctx context.Context, resp *AttestResponse, nonce []byte, trusted *manifest.Manifest, o manifest.ValidatorOptions,
) (*Verified, error) {
	return FormerOwners(nil).VerifyBeforeSet(ctx, resp, nonce, trusted, o)
}

// owned says whether every manifest of the history is of the trusted one's owners, or of former ones.
func (f FormerOwners) owned(v *Verified, trusted *manifest.Manifest) error {
	for i, t := range v.History {
		got := t.Manifest.OwnersDigest()
		known := got == trusted.OwnersDigest() || (got != manifest.OwnersDigest{} && slices.Contains(f, got))
		if err := v.check(Check{
			Name: CheckOwners, Of: fmt.Sprintf("manifest %d of %d", i+1, len(v.History)),
			Want: fmt.Sprintf("those of the trusted manifest, digest %s, or former ones that were named", trusted.OwnersDigest()),
			Got:  fmt.Sprintf("digest %s", got),
		}, failUnless(known, "manifest %d of %d has others, whose digest is %s: they may have learnt the seed",
			i+1, len(v.History), got)); err != nil {
			return err
		}
	}
	return nil
}

// VerifyBeforeSet is as the function of that name.
func (f FormerOwners) VerifyBeforeSet(
	ctx context.Context, resp *AttestResponse, nonce []byte, trusted *manifest.Manifest, o manifest.ValidatorOptions,
) (*Verified, error) {
	v := new(Verified)
	if resp != nil {
		state := Check{Name: "state", Want: "serving", Got: resp.state()}
		if err := v.check(state, failUnless(resp.Recovery == nil, "it was restarted and needs recovery")); err != nil {
			return nil, err
		}
	}
	if err := v.verify(ctx, resp, nonce, trusted, o); err != nil {
		return nil, err
	}
	if len(v.History) == 0 {
		return v, nil
	}
	if err := f.owned(v, trusted); err != nil {
		return nil, err
	}
	var err error
	if v.RootCA, err = v.parseCA("root CA", resp.RootCA); err != nil {
		return nil, err
	}
	if v.MeshCA, err = v.parseCA("mesh CA", resp.MeshCA); err != nil {
		return nil, err
	}
	// Whoever reads in the manifest that it allows no successors must be able to pin its mesh CA for exactly that.
	allowed := v.Latest().Overlap() > 0
	var disagree error
	if pki.AllowsSuccessor(v.MeshCA) != allowed {
		disagree = fmt.Errorf("its path length is %d, and its manifest allows successors: %t", v.MeshCA.MaxPathLen, allowed)
	}
	if err := v.check(Check{
		Name: "successors",
		Want: fmt.Sprintf("allowed by its path length: %t, as by its manifest", allowed),
		Got:  fmt.Sprintf("path length %d", v.MeshCA.MaxPathLen),
	}, disagree); err != nil {
		return nil, err
	}
	if err := v.check(Check{
		Name: "seed shares",
		Want: fmt.Sprintf("none, or one for each of %d seed-share owners, signed by the root CA's key",
			len(v.History[0].Manifest.SeedshareOwnerKeys)),
		Got: fmt.Sprint(len(resp.Shares)),
	}, VerifyShares(resp.Shares, v.History, v.RootCA)); err != nil {
		return nil, err
	}
	v.Shares = resp.Shares
	return v, nil
}

// verify is what all verifications have in common.
func (v *Verified) verify(
	ctx context.Context, resp *AttestResponse, nonce []byte, trusted *manifest.Manifest, o manifest.ValidatorOptions,
) error {
	if trusted == nil || len(trusted.Text()) == 0 {
		return errors.New("verify a Coordinator: no trusted manifest")
	}
	if resp == nil {
		return errors.New("verify a Coordinator: no answer")
	}
	validator, err := trusted.Validator(o)
	if err != nil {
		return fmt.Errorf("verify a Coordinator: %w", err)
	}
	data, err := resp.ReportData(nonce)
	if err := v.check(Check{
		Name: "answer",
		Want: "parts that one report data can cover, with the nonce that was sent",
		Got:  fmt.Sprintf("%d manifests and their CAs, an HPKE key", len(resp.History)),
	}, err); err != nil {
		return err
	}
	// Evidence first: it binds all the rest, which is not worth reading before.
	if err := v.judge(ctx, validator, resp.Evidence, data); err != nil {
		return err
	}
	coordinators := trusted.CoordinatorPolicies()
	if err := v.check(Check{
		Name: "policy hash",
		Want: fmt.Sprintf("one with the role %q: %s", manifest.RoleCoordinator, joinHashes(coordinators)),
		Got:  v.Claims.PolicyHash.String(),
	}, failUnless(slices.Contains(coordinators, v.Claims.PolicyHash), "it is %s, want a policy with the role %q: %s",
		v.Claims.PolicyHash, manifest.RoleCoordinator, joinHashes(coordinators))); err != nil {
		return err
	}
	v.HPKEKey = resp.HPKEKey
	_, err = ParseHPKEKey(resp.HPKEKey)
	if err := v.check(Check{
		Name: "HPKE key", Want: "a key of MLKEM768X25519", Got: fmt.Sprintf("SHA-256 %x", sha256.Sum256(resp.HPKEKey)),
	}, err); err != nil {
		return err
	}
	return v.verifyHistory(resp.History)
}

// VerifyHistory re-computes every transition hash and checks at every step the signatures of the owners in charge.
func VerifyHistory(entries []HistoryEntry) ([]*manifest.Transition, error) {
	history := make([]*manifest.Transition, len(entries))
	var before *manifest.Transition
	for i, e := range entries {
		var err error
		if history[i], err = e.after(before); err != nil {
			return nil, fmt.Errorf("manifest %d of %d: %w", i+1, len(entries), err)
		}
		before = history[i]
	}
	return history, nil
}

// after checks one step; before is nil for the first.
func (e HistoryEntry) after(before *manifest.Transition) (*manifest.Transition, error) {
	if before == nil {
		return manifest.First(e.Manifest, e.Signatures)
	}
	return before.Next(e.Manifest, e.Signatures)
}

// VerifyShares checks that the root CA's key signed a share for each seed-share owner of the history, which is not empty.
// No shares at all are right, too: who must have them looks whether they are there.
func VerifyShares(shares []SealedShare, history []*manifest.Transition, root *x509.Certificate) error {
	owners := history[0].Manifest.SeedshareOwnerKeys
	if len(shares) > 0 && len(shares) != len(owners) {
		return fmt.Errorf("there are %d for %d SeedshareOwnerKeys", len(shares), len(owners))
	}
	for i := range shares {
		switch s := &shares[i]; {
		case !bytes.Equal(s.Owner, owners[i].SigningKey.SPKI()):
			return fmt.Errorf("number %d is another owner's", i+1)
		case !bytes.Equal(s.TransitionHash, history[0].Hash[:]):
			return fmt.Errorf("number %d is of another history", i+1)
		case !bytes.Equal(s.RootKey, root.RawSubjectPublicKeyInfo):
			return fmt.Errorf("number %d is of another root CA", i+1)
		}
		if err := shares[i].Verify(); err != nil {
			return fmt.Errorf("number %d: %w", i+1, err)
		}
	}
	return nil
}

func joinHashes(hashes []attestation.PolicyHash) string {
	texts := make([]string, len(hashes))
	for i, h := range hashes {
		texts[i] = h.String()
	}
	return strings.Join(texts, ", ")
}
