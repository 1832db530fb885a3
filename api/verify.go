package api

import (
	"bytes"
	"context"
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
	if resp != nil && (resp.Recovery == nil || len(resp.Recovery.Nonce) != NonceSize) {
		return nil, &VerifyError{"state", errors.New("it does not say that it needs recovery")}
	}
	v, err := verify(ctx, resp, nonce, trusted, o)
	if err != nil {
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
	switch latest := v.Latest(); {
	case latest == nil:
		return &VerifyError{"active manifest", errors.New("none was set yet")}
	case !bytes.Equal(latest.Text(), trusted.Text()):
		return &VerifyError{"active manifest", fmt.Errorf("its SHA-256 is %x, want %x, that of the trusted manifest",
			latest.Hash(), trusted.Hash())}
	}
	return nil
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
		if got != trusted.OwnersDigest() && (got == manifest.OwnersDigest{} || !slices.Contains(f, got)) {
			return &VerifyError{CheckOwners, fmt.Errorf("manifest %d of %d has others, whose digest is %s: they may have learnt the seed",
				i+1, len(v.History), got)}
		}
	}
	return nil
}

// VerifyBeforeSet is as the function of that name.
func (f FormerOwners) VerifyBeforeSet(
	ctx context.Context, resp *AttestResponse, nonce []byte, trusted *manifest.Manifest, o manifest.ValidatorOptions,
) (*Verified, error) {
	if resp != nil && resp.Recovery != nil {
		return nil, &VerifyError{"state", errors.New("it was restarted and needs recovery")}
	}
	v, err := verify(ctx, resp, nonce, trusted, o)
	if err != nil {
		return nil, err
	}
	if len(v.History) == 0 {
		return v, nil
	}
	if err := f.owned(v, trusted); err != nil {
		return nil, err
	}
	if v.RootCA, err = parseCA(resp.RootCA); err != nil {
		return nil, &VerifyError{"root CA", err}
	}
	if v.MeshCA, err = parseCA(resp.MeshCA); err != nil {
		return nil, &VerifyError{"mesh CA", err}
	}
	// Whoever reads in the manifest that it allows no successors must be able to pin its mesh CA for exactly that.
	if allowed := v.Latest().Overlap() > 0; pki.AllowsSuccessor(v.MeshCA) != allowed {
		return nil, &VerifyError{"mesh CA", fmt.Errorf("its path length is %d, and its manifest allows successors: %t",
			v.MeshCA.MaxPathLen, allowed)}
	}
	if err := VerifyShares(resp.Shares, v.History, v.RootCA); err != nil {
		return nil, &VerifyError{"seed shares", err}
	}
	v.Shares = resp.Shares
	return v, nil
}

// verify is what all verifications have in common.
func verify(
	ctx context.Context, resp *AttestResponse, nonce []byte, trusted *manifest.Manifest, o manifest.ValidatorOptions,
) (*Verified, error) {
	if trusted == nil || len(trusted.Text()) == 0 {
		return nil, errors.New("verify a Coordinator: no trusted manifest")
	}
	if resp == nil {
		return nil, errors.New("verify a Coordinator: no answer")
	}
	validator, err := trusted.Validator(o)
	if err != nil {
		return nil, fmt.Errorf("verify a Coordinator: %w", err)
	}
	data, err := resp.ReportData(nonce)
	if err != nil {
		return nil, &VerifyError{"answer", err}
	}
	// Evidence first: it binds all the rest, which is not worth reading before.
	claims, err := validator.Validate(ctx, resp.Evidence, data)
	if err != nil {
		if _, rejected := errors.AsType[*attestation.Rejected](err); rejected {
			return nil, &VerifyError{"evidence", err}
		}
		return nil, fmt.Errorf("judge the Coordinator's evidence: %w", err)
	}
	if !slices.Contains(trusted.CoordinatorPolicies(), claims.PolicyHash) {
		return nil, &VerifyError{"policy hash", fmt.Errorf("it is %s, want a policy with the role %q: %s",
			claims.PolicyHash, manifest.RoleCoordinator, joinHashes(trusted.CoordinatorPolicies()))}
	}
	v := &Verified{Claims: claims, HPKEKey: resp.HPKEKey}
	if _, err := ParseHPKEKey(resp.HPKEKey); err != nil {
		return nil, &VerifyError{"HPKE key", err}
	}
	if v.History, err = VerifyHistory(resp.History); err != nil {
		return nil, &VerifyError{"history", err}
	}
	if len(v.History) == 0 {
		return v, nil
	}
	v.TransitionHash = v.History[len(v.History)-1].Hash
	return v, nil
}

// VerifyHistory re-computes every transition hash and checks at every step the signatures of the owners in charge.
func VerifyHistory(entries []HistoryEntry) ([]*manifest.Transition, error) {
	history := make([]*manifest.Transition, len(entries))
	for i, e := range entries {
		var err error
		if i == 0 {
			history[i], err = manifest.First(e.Manifest, e.Signatures)
		} else {
			history[i], err = history[i-1].Next(e.Manifest, e.Signatures)
		}
		if err != nil {
			return nil, fmt.Errorf("manifest %d of %d: %w", i+1, len(entries), err)
		}
	}
	return history, nil
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

func parseCA(der []byte) (*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if !c.IsCA {
		return nil, errors.New("it is not a CA")
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		return nil, fmt.Errorf("it is not self-signed: %w", err)
	}
	return c, nil
}

func joinHashes(hashes []attestation.PolicyHash) string {
	texts := make([]string, len(hashes))
	for i, h := range hashes {
		texts[i] = h.String()
	}
	return strings.Join(texts, ", ")
}
