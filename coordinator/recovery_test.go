package coordinator_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

func seedshareOwners(t *testing.T, n int) []*pki.SeedshareKey {
	t.Helper()
	owners := make([]*pki.SeedshareKey, n)
	for i := range owners {
		var err error
		if owners[i], err = pki.NewSeedshareKey(); err != nil {
			t.Fatal(err)
		}
		secrets.AddKey("a seed-share owner's signing key", owners[i].Signing)
		secrets.AddHPKE("a seed-share owner's HPKE key", owners[i].HPKE)
	}
	return owners
}

func sharedAmong(t *testing.T, threshold int, owners ...*pki.SeedshareKey) func(*manifest.Manifest) {
	t.Helper()
	return func(m *manifest.Manifest) {
		for _, key := range owners {
			owner, err := manifest.NewSeedshareOwner(key.Public())
			if err != nil {
				t.Fatal(err)
			}
			m.SeedshareOwnerKeys = append(m.SeedshareOwnerKeys, owner)
		}
		m.SeedshareThreshold = threshold
	}
}

// shares asks for the sealed shares and verifies them, as `portcullis set` does.
func (f *fixture) shares(t *testing.T, text []byte) []api.SealedShare {
	t.Helper()
	nonce := random(t, api.NonceSize)
	resp, err := f.Attest(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	v, err := api.VerifyCoordinator(t.Context(), resp, nonce, parse(t, text), manifest.ValidatorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v.Shares
}

// verifyRecovery is an owner who looks at a Coordinator before giving it anything.
func (f *fixture) verifyRecovery(t *testing.T, text []byte) (*api.Verified, error) {
	t.Helper()
	nonce := random(t, api.NonceSize)
	resp, err := f.AttestRecovery(t.Context(), nonce)
	if err != nil {
		return nil, err
	}
	return api.VerifyRecovery(t.Context(), resp, nonce, parse(t, text), manifest.ValidatorOptions{})
}

func (f *fixture) mustVerifyRecovery(t *testing.T, text []byte) *api.Verified {
	t.Helper()
	v, err := f.verifyRecovery(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// share is an owner's share, sealed to the Coordinator that v verified and signed.
func share(t *testing.T, sealed api.SealedShare, owner *pki.SeedshareKey, v *api.Verified) *api.RecoverRequest {
	t.Helper()
	opened, err := sealed.Open(owner.HPKE)
	if err != nil {
		t.Fatal(err)
	}
	req, err := api.NewRecoverRequest(opened, owner.Signing, v)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// snapshot is the file of a store that somebody is using: what is there after kill -9.
func snapshot(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	snap := filepath.Join(t.TempDir(), "coordinator.db")
	if err := os.WriteFile(snap, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return snap
}

// restart starts a Coordinator on a copy of the store at path, as it is now.
func restart(t *testing.T, path string, options ...option) *fixture {
	t.Helper()
	snap := snapshot(t, path)
	return start(t, append([]option{onStore(t, snap)}, options...)...)
}

func onStore(t *testing.T, path string) option {
	return func(c *coordinator.Config) { c.Store = openStore(t, path) }
}

func TestRecoveredCoordinatorIsTheOneOfBeforeWithANewMeshCA(t *testing.T) {
	for _, split := range []struct{ k, n int }{{1, 1}, {1, 2}, {2, 2}, {2, 3}, {3, 3}, {3, 5}} {
		t.Run(fmt.Sprintf("%d of %d", split.k, split.n), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "coordinator.db")
			first := start(t, onStore(t, path))
			owners := seedshareOwners(t, split.n)
			text := newManifest(t, sharedAmong(t, split.k, owners...))
			first.mustSet(t, text)
			shares := first.shares(t, text)
			if len(shares) != split.n {
				t.Fatalf("%d shares for %d owners", len(shares), split.n)
			}
			p := newPod(t, dbPolicy)
			req, resp, before := first.certify(t, p)
			secret, err := resp.Open(req, p.hpkeKey)
			if err != nil {
				t.Fatal(err)
			}

			f := restart(t, path)
			_, err = f.Nonce(t.Context())
			wantCode(t, err, api.CodeNeedsRecovery)
			v := f.mustVerifyRecovery(t, text)
			// The last owners, in reverse, so that no order is special.
			for given := range split.k {
				i := split.n - 1 - given
				got, err := f.Recover(t.Context(), *share(t, shares[i], owners[i], v))
				if err != nil {
					t.Fatalf("%v\n%s", err, f.log)
				}
				want := api.RecoverResponse{Collected: given + 1, Threshold: split.k, Recovered: given+1 == split.k}
				if *got != want {
					t.Errorf("answer %+v, want %+v", *got, want)
				}
			}
			again, err := f.Recover(t.Context(), *share(t, shares[0], owners[0], v))
			if err == nil {
				t.Errorf("a share after the recovery: %+v", again)
			}
			wantCode(t, err, api.CodeNoRecovery)
			_, err = f.AttestRecovery(t.Context(), random(t, api.NonceSize))
			wantCode(t, err, api.CodeNoRecovery)

			// A pod of before trusts the root CA as it has it, and cannot renew under its mesh CA.
			req, resp, after := f.certify(t, p)
			if recovered, err := resp.Open(req, p.hpkeKey); err != nil || !recovered.Equal(secret) {
				t.Errorf("the workload secret is another one, %v", err)
			}
			if !bytes.Equal(after.RootCA.RawSubjectPublicKeyInfo, before.RootCA.RawSubjectPublicKeyInfo) {
				t.Error("the root CA has another key")
			}
			if bytes.Equal(after.MeshCA.RawSubjectPublicKeyInfo, before.MeshCA.RawSubjectPublicKeyInfo) {
				t.Error("the mesh CA has the key of before")
			}
			mixed := *after
			mixed.RootCA = before.RootCA
			if err := mixed.Verify(&p.key.PublicKey, time.Now()); err != nil {
				t.Errorf("the new leaf under the root CA of before: %v", err)
			}
			renewal := p.request(t, f.freshNonce(t))
			old := hashOf(before.MeshCA.Raw)
			renewal.MeshCA = old[:]
			_, err = f.Certificate(t.Context(), *renewal)
			wantCode(t, err, api.CodeGenerationChanged)
			if got := f.shares(t, text); len(got) != split.n || !bytes.Equal(got[0].Sealed, shares[0].Sealed) {
				t.Error("the recovered Coordinator shows other shares")
			}
			last(t, f.log, "recovered")
		})
	}
}

func hashOf(b []byte) [32]byte { return sha256.Sum256(b) }

func TestSharesOfTheFirstManifestAreGoodForLaterOnes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	first := start(t, onStore(t, path))
	alice, owners := newKey(t, elliptic.P256()), seedshareOwners(t, 2)
	common := []func(*manifest.Manifest){ownedBy(t, 1, alice), sharedAmong(t, 2, owners...)}
	text := newManifest(t, common...)
	first.mustSet(t, text, alice)
	shares := first.shares(t, text)
	latest := newManifest(t, append(common, func(m *manifest.Manifest) { delete(m.Policies, barePolicy) })...)
	first.mustSet(t, latest, alice)

	f := restart(t, path)
	v := f.mustVerifyRecovery(t, latest)
	for i, owner := range owners {
		if _, err := f.Recover(t.Context(), *share(t, shares[i], owner, v)); err != nil {
			t.Fatal(err)
		}
	}
	// It goes on from there: the next manifest is its, and the one after another recovery.
	third := newManifest(t, append(common, func(m *manifest.Manifest) { delete(m.Policies, dbPolicy) })...)
	f.mustSet(t, third, alice)
	again := start(t, func(c *coordinator.Config) { c.Store = f.store })
	v = again.mustVerifyRecovery(t, third)
	for i, owner := range owners {
		if _, err := again.Recover(t.Context(), *share(t, shares[i], owner, v)); err != nil {
			t.Fatal(err)
		}
	}
	if got := again.latest(t); got != v.TransitionHash || len(v.History) != 3 {
		t.Errorf("recovered at transition %x of %d, want %x of 3", got, len(v.History), v.TransitionHash)
	}
}

var emptyShare = api.RecoverRequest{
	Nonce: []byte{}, TransitionHash: []byte{}, PublicKey: []byte{}, Share: []byte{}, Signature: []byte{},
}

func TestSharesThatAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	first := start(t, onStore(t, path))
	owners := seedshareOwners(t, 3)
	text := newManifest(t, sharedAmong(t, 3, owners...))
	first.mustSet(t, text)
	shares := first.shares(t, text)
	mallory := seedshareOwners(t, 1)[0]
	crashed := restart(t, path)
	seenByCrashed := crashed.mustVerifyRecovery(t, text)

	f := restart(t, path)
	v := f.mustVerifyRecovery(t, text)
	another := func(alter func(*api.Verified)) *api.Verified {
		altered := *v
		alter(&altered)
		return &altered
	}
	mallorys, err := newSeed(t).Split(rand.Reader, 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	forged := func(s pki.Share, signer *pki.SeedshareKey) *api.RecoverRequest {
		req, err := api.NewRecoverRequest(s, signer.Signing, v)
		if err != nil {
			t.Fatal(err)
		}
		return req
	}
	tests := map[string]struct {
		request func() *api.RecoverRequest
		code    api.Code
		reason  string
	}{
		"forged: sealed by who is no owner": {
			func() *api.RecoverRequest { return forged(mallorys[0], mallory) }, api.CodeBadSignature, "not the signing key",
		},
		"forged in an owner's name": {
			func() *api.RecoverRequest {
				req := forged(mallorys[0], mallory)
				req.PublicKey = spki(t, &owners[0].Signing.PublicKey)
				return req
			}, api.CodeBadSignature, "signature is not the owner's",
		},
		"unsigned": {
			func() *api.RecoverRequest {
				req := share(t, shares[0], owners[0], v)
				req.Signature = []byte{}
				return req
			}, api.CodeBadSignature, "signature is not the owner's",
		},
		"of nobody": {
			func() *api.RecoverRequest {
				req := share(t, shares[0], owners[0], v)
				req.PublicKey = []byte{}
				return req
			}, api.CodeBadSignature, "not the signing key",
		},
		"another owner's share": {
			func() *api.RecoverRequest {
				opened, err := shares[1].Open(owners[1].HPKE)
				if err != nil {
					t.Fatal(err)
				}
				return forged(opened, owners[0])
			}, api.CodeBadRequest, "gave the share number 2, want 1",
		},
		"replayed: given to the process before": {
			func() *api.RecoverRequest { return share(t, shares[0], owners[0], seenByCrashed) },
			api.CodeBadSignature, "signature is not the owner's",
		},
		"replayed: for another nonce": {
			func() *api.RecoverRequest {
				return share(t, shares[0], owners[0], another(func(v *api.Verified) { v.RecoveryNonce = random(t, api.NonceSize) }))
			}, api.CodeBadNonce, "nonce",
		},
		"nonce exchanged": {
			func() *api.RecoverRequest {
				req := share(t, shares[0], owners[0], another(func(v *api.Verified) { v.RecoveryNonce = random(t, api.NonceSize) }))
				req.Nonce = v.RecoveryNonce
				return req
			}, api.CodeBadSignature, "signature is not the owner's",
		},
		"without a nonce": {
			func() *api.RecoverRequest {
				return share(t, shares[0], owners[0], another(func(v *api.Verified) { v.RecoveryNonce = []byte{} }))
			}, api.CodeBadNonce, "nonce",
		},
		"of another transition": {
			func() *api.RecoverRequest {
				return share(t, shares[0], owners[0], another(func(v *api.Verified) { v.TransitionHash[0] ^= 1 }))
			}, api.CodeConflict, "not the latest transition",
		},
		"of no transition": {
			func() *api.RecoverRequest {
				req := share(t, shares[0], owners[0], v)
				req.TransitionHash = []byte{}
				return req
			}, api.CodeBadSignature, "signature is not the owner's",
		},
		"sealed to another HPKE key": {
			func() *api.RecoverRequest {
				return share(t, shares[0], owners[0], another(func(v *api.Verified) { v.HPKEKey = mallory.HPKE.PublicKey().Bytes() }))
			}, api.CodeBadSignature, "signature is not the owner's",
		},
		"share altered": {
			func() *api.RecoverRequest {
				req := share(t, shares[0], owners[0], v)
				req.Share[len(req.Share)-1] ^= 1
				return req
			}, api.CodeBadSignature, "signature is not the owner's",
		},
		"empty": {func() *api.RecoverRequest { return &emptyShare }, api.CodeBadSignature, "not the signing key"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := f.Recover(t.Context(), *test.request())
			if err == nil {
				t.Fatalf("taken: %+v", got)
			}
			wantCode(t, err, test.code)
			if entry := last(t, f.log, "seed share refused"); !strings.Contains(fmt.Sprint(entry["reason"]), test.reason) {
				t.Errorf("log %v, want %q", entry, test.reason)
			}
		})
	}
	if entries := f.log.Entries("seed share taken"); len(entries) > 0 {
		t.Fatalf("shares were taken: %v", entries)
	}
	t.Run("the same owner twice", func(t *testing.T) {
		if _, err := f.Recover(t.Context(), *share(t, shares[0], owners[0], v)); err != nil {
			t.Fatal(err)
		}
		_, err := f.Recover(t.Context(), *share(t, shares[0], owners[0], v))
		wantCode(t, err, api.CodeShareRepeated)
	})
	// None of it was in the way of those who are entitled.
	for i := 1; i < 3; i++ {
		if _, err := f.Recover(t.Context(), *share(t, shares[i], owners[i], v)); err != nil {
			t.Fatal(err)
		}
	}
	f.certify(t, newPod(t, webPolicy))
}

// newSeed is one of the test's own choosing.
func newSeed(t *testing.T) pki.Seed {
	t.Helper()
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return seed
}

// A seed that does not verify latest is thrown away with all shares of it, whoever's they are, and those who gave them are
// named. The shares must be given anew, for another nonce.
func TestSharesThatAreNotTheSeedAreDiscarded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	first := start(t, onStore(t, path))
	owners := seedshareOwners(t, 3)
	text := newManifest(t, sharedAmong(t, 2, owners...))
	first.mustSet(t, text)
	shares := first.shares(t, text)

	f := restart(t, path)
	v := f.mustVerifyRecovery(t, text)
	wrong, err := newSeed(t).Split(rand.Reader, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Recover(t.Context(), *share(t, shares[0], owners[0], v)); err != nil {
		t.Fatal(err)
	}
	bad, err := api.NewRecoverRequest(wrong[1], owners[1].Signing, v)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Recover(t.Context(), *bad)
	wantCode(t, err, api.CodeSharesDiscarded)
	reason := fmt.Sprint(last(t, f.log, "seed share refused")["reason"])
	for i := range 2 {
		if hash := hashOf(spki(t, &owners[i].Signing.PublicKey)); !strings.Contains(reason, hex.EncodeToString(hash[:8])) {
			t.Errorf("the log does not name owner %d: %s", i, reason)
		}
	}
	if hash := hashOf(spki(t, &owners[2].Signing.PublicKey)); strings.Contains(reason, hex.EncodeToString(hash[:8])) {
		t.Errorf("the log names an owner who gave nothing: %s", reason)
	}
	_, err = f.Nonce(t.Context())
	wantCode(t, err, api.CodeNeedsRecovery)

	_, err = f.Recover(t.Context(), *share(t, shares[2], owners[2], v))
	wantCode(t, err, api.CodeBadNonce)
	v = f.mustVerifyRecovery(t, text)
	for _, i := range []int{0, 2} {
		if _, err := f.Recover(t.Context(), *share(t, shares[i], owners[i], v)); err != nil {
			t.Fatal(err)
		}
	}
	f.certify(t, newPod(t, webPolicy))
}

// The host puts an old copy of the store in place. Shares are good for every manifest of the seed, so the Coordinator
// cannot tell; the owner, who knows the newest manifest, can.
func TestRolledBackStoreIsNoticedByTheOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	first := start(t, onStore(t, path))
	alice, owners := newKey(t, elliptic.P256()), seedshareOwners(t, 1)
	common := []func(*manifest.Manifest){ownedBy(t, 1, alice), sharedAmong(t, 1, owners...)}
	text := newManifest(t, common...)
	first.mustSet(t, text, alice)
	old := snapshot(t, path)
	latest := newManifest(t, append(common, func(m *manifest.Manifest) { delete(m.Policies, barePolicy) })...)
	first.mustSet(t, latest, alice)

	f := start(t, onStore(t, old))
	_, err := f.verifyRecovery(t, latest)
	if refused, ok := errors.AsType[*api.VerifyError](err); !ok || refused.Check != "active manifest" {
		t.Errorf("VerifyRecovery of a rolled back store: %v", err)
	}
	// A signature for the newest transition, as an owner would make it, is of no use there.
	v := f.mustVerifyRecovery(t, text)
	v.TransitionHash = manifest.TransitionHash(latest, manifest.TransitionHash(text, [32]byte{}))
	_, err = f.Recover(t.Context(), *share(t, first.shares(t, latest)[0], owners[0], v))
	wantCode(t, err, api.CodeConflict)
}

// A store and a seed of the host's choosing: the history is public, so the host copies it, and signs latest with a seed of
// its own. Owners give genuine shares, which do not verify that latest; and the host's shares no owner signs.
func TestStoreWithASeedOfTheHostsChoosingIsNotRecovered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	hostPath := filepath.Join(t.TempDir(), "host.db")
	owners := seedshareOwners(t, 1)
	text := newManifest(t, sharedAmong(t, 1, owners...))
	genuine := start(t, onStore(t, path))
	genuine.mustSet(t, text)
	hosts := start(t, onStore(t, hostPath))
	hosts.mustSet(t, text)

	f := restart(t, hostPath)
	v := f.mustVerifyRecovery(t, text)
	_, err := f.Recover(t.Context(), *share(t, genuine.shares(t, text)[0], owners[0], v))
	wantCode(t, err, api.CodeSharesDiscarded)
}

func TestSharesOfAnotherHandAreFoundOut(t *testing.T) {
	f := start(t)
	owners := seedshareOwners(t, 2)
	text := newManifest(t, sharedAmong(t, 1, owners...))
	f.mustSet(t, text)
	nonce := random(t, api.NonceSize)
	resp, err := f.Attest(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	trusted := parse(t, text)
	root := newKey(t, elliptic.P384())
	hosts, err := newSeed(t).Split(rand.Reader, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := api.SealShare(hosts[0], trusted.SeedshareOwnerKeys[0], [32]byte(resp.Shares[0].TransitionHash), root)
	if err != nil {
		t.Fatal(err)
	}
	type shares = []api.SealedShare
	for name, test := range map[string]struct {
		alter func(s shares) shares
		want  string // empty: accepted
	}{
		"none":                  {func(shares) shares { return nil }, ""},
		"as they are":           {func(s shares) shares { return s }, ""},
		"of the host's root":    {func(s shares) shares { s[0] = *forged; return s }, "number 1 is of another root CA"},
		"in the genuine's name": {func(s shares) shares { r := s[0].RootKey; s[0] = *forged; s[0].RootKey = r; return s }, "not signed"},
		"exchanged":             {func(s shares) shares { s[0], s[1] = s[1], s[0]; return s }, "number 1 is another owner's"},
		"one left out":          {func(s shares) shares { return s[:1] }, "there are 1 for 2"},
		"one too many":          {func(s shares) shares { return append(s, s[0]) }, "there are 3 for 2"},
		"altered":               {func(s shares) shares { s[1].Sealed = bytes.Repeat([]byte{1}, 1200); return s }, "number 2: the seed share is not signed"},
		"unsigned":              {func(s shares) shares { s[0].Signature = nil; return s }, "not signed"},
		"of another transition": {func(s shares) shares { s[0].TransitionHash = make([]byte, 32); return s }, "number 1 is of another history"},
		"without anything":      {func(s shares) shares { s[0] = api.SealedShare{}; return s }, "number 1 is another owner's"},
	} {
		t.Run(name, func(t *testing.T) {
			altered := *resp
			altered.Shares = test.alter(slices.Clone(resp.Shares))
			v, err := api.VerifyCoordinator(t.Context(), &altered, nonce, trusted, manifest.ValidatorOptions{})
			if test.want == "" {
				if err != nil || len(v.Shares) != len(altered.Shares) {
					t.Errorf("VerifyCoordinator: %v", err)
				}
				return
			}
			refused, ok := errors.AsType[*api.VerifyError](err)
			if !ok || refused.Check != "seed shares" || !strings.Contains(refused.Err.Error(), test.want) {
				t.Errorf("VerifyCoordinator: %v, want the check of the seed shares to fail with %q", err, test.want)
			}
		})
	}
	if _, err := resp.Shares[0].Open(owners[1].HPKE); err == nil {
		t.Error("another owner opened the share")
	}
}

func TestAnswersOfRecoveryAndOfServiceAreNotTakenForEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	first := start(t, onStore(t, path))
	owners := seedshareOwners(t, 1)
	text := newManifest(t, sharedAmong(t, 1, owners...))
	first.mustSet(t, text)
	f := restart(t, path)
	trusted, nonce := parse(t, text), random(t, api.NonceSize)
	recovering, err := f.AttestRecovery(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	serving, err := first.Attest(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	o := manifest.ValidatorOptions{}
	if _, err := api.VerifyRecovery(t.Context(), recovering, nonce, trusted, o); err != nil {
		t.Fatal(err)
	}
	altered := func(alter func(r *api.AttestResponse)) *api.AttestResponse {
		r := *recovering
		alter(&r)
		return &r
	}
	for name, test := range map[string]struct {
		err   error
		check string
	}{
		"verify of one that recovers": {second(api.VerifyCoordinator(t.Context(), recovering, nonce, trusted, o)), "state"},
		"set to one that recovers":    {second(api.VerifyBeforeSet(t.Context(), recovering, nonce, trusted, o)), "state"},
		"recovery of one that serves": {second(api.VerifyRecovery(t.Context(), serving, nonce, trusted, o)), "state"},
		"recovery mark taken off": {
			second(api.VerifyBeforeSet(t.Context(), altered(func(r *api.AttestResponse) { r.Recovery = nil }), nonce, trusted, o)), "answer",
		},
		"recovery mark put on": {
			second(api.VerifyRecovery(t.Context(), func() *api.AttestResponse {
				r := *serving
				r.Recovery = &api.Recovery{Nonce: nonce}
				return &r
			}(), nonce, trusted, o)), "answer",
		},
		"another recovery nonce": {
			second(api.VerifyRecovery(t.Context(), altered(func(r *api.AttestResponse) {
				r.Recovery = &api.Recovery{Nonce: random(t, api.NonceSize)}
			}), nonce, trusted, o)), "evidence",
		},
		"no recovery nonce": {
			second(api.VerifyRecovery(t.Context(), altered(func(r *api.AttestResponse) { r.Recovery = &api.Recovery{} }), nonce, trusted, o)), "state",
		},
		"another HPKE key": {
			second(api.VerifyRecovery(t.Context(), altered(func(r *api.AttestResponse) {
				r.HPKEKey = owners[0].HPKE.PublicKey().Bytes()
			}), nonce, trusted, o)), "evidence",
		},
		"another nonce": {second(api.VerifyRecovery(t.Context(), recovering, random(t, api.NonceSize), trusted, o)), "evidence"},
	} {
		if refused, ok := errors.AsType[*api.VerifyError](test.err); !ok || refused.Check != test.check {
			t.Errorf("%s: %v, want the check %q to fail", name, test.err, test.check)
		}
	}
	if _, err := api.VerifyRecovery(t.Context(), nil, nonce, trusted, o); err == nil {
		t.Error("no answer is accepted")
	}
}

func TestWithoutSeedshareOwnersNobodyRecovers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	first := start(t, onStore(t, path))
	text := newManifest(t)
	first.mustSet(t, text)
	if shares := first.shares(t, text); len(shares) != 0 {
		t.Errorf("%d shares without owners", len(shares))
	}
	f := restart(t, path)
	_, err := f.AttestRecovery(t.Context(), random(t, api.NonceSize))
	if refused := wantCode(t, err, api.CodeNeedsRecovery); !strings.Contains(refused.Detail, "no SeedshareOwnerKeys") {
		t.Errorf("answer %v", refused)
	}
	owner := seedshareOwners(t, 1)[0]
	shares, err := newSeed(t).Split(rand.Reader, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	req, err := api.NewRecoverRequest(shares[0], owner.Signing, &api.Verified{
		HPKEKey: owner.HPKE.PublicKey().Bytes(), RecoveryNonce: random(t, api.NonceSize),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Recover(t.Context(), *req)
	wantCode(t, err, api.CodeBadSignature)
}

func TestSharesForOneThatIsFreshOrServesAreRefused(t *testing.T) {
	f := start(t)
	refused := func() {
		t.Helper()
		_, err := f.Recover(t.Context(), emptyShare)
		wantCode(t, err, api.CodeNoRecovery)
		_, err = f.AttestRecovery(t.Context(), random(t, api.NonceSize))
		wantCode(t, err, api.CodeNoRecovery)
	}
	refused()
	f.mustSet(t, newManifest(t))
	refused()
}

// A store that is not what it says stops the Coordinator where somebody looks.
func TestDamagedHistoryIsNamedAtTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	first := start(t, onStore(t, path))
	alice := newKey(t, elliptic.P256())
	text := newManifest(t, ownedBy(t, 1, alice))
	set := first.mustSet(t, text, alice)
	transition := [32]byte(set.TransitionHash)
	latest, err := first.store.Latest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name := func(kind store.Kind, hash [32]byte) store.Name { return store.Name{Kind: kind, Hash: hash} }
	for what, test := range map[string]struct {
		object store.Object
		latest []byte
		want   string
	}{
		"manifest":            {object: store.Object{Name: name(store.Manifest, hashOf(text)), Data: []byte("{}")}, want: "holds something else"},
		"transition":          {object: store.Object{Name: name(store.Transition, transition), Data: make([]byte, 64)}, want: "holds something else"},
		"signatures":          {object: store.Object{Name: name(store.Signatures, transition), Data: []byte("[]")}, want: "signed by 0 of the 1 keys"},
		"signatures not JSON": {object: store.Object{Name: name(store.Signatures, transition), Data: []byte("x")}, want: "signatures/"},
		"shares not JSON":     {object: store.Object{Name: name(store.Shares, transition), Data: []byte("x")}, want: "shares/"},
		"latest not JSON":     {latest: []byte("x"), want: "read latest"},
		"latest short":        {latest: []byte(`{"transitionHash":"AAAA","meshCa":"","sequence":1,"signature":""}`), want: "3 bytes, want 32"},
		"latest no mesh CA":   {latest: alteredLatest(t, latest, func(l map[string]any) { l["meshCa"] = "AAAA" }), want: "a mesh CA hash of 3 bytes"},
		"latest uncounted":    {latest: alteredLatest(t, latest, func(l map[string]any) { l["sequence"] = 0 }), want: "the sequence is 0"},
		"latest of version 1": {latest: alteredLatest(t, latest, func(l map[string]any) { delete(l, "meshCa"); delete(l, "sequence") }), want: "a mesh CA hash of 0 bytes"},
		"latest of nothing":   {latest: latestOf(t, [32]byte{}), want: "names no transition"},
		"latest unknown":      {latest: latestOf(t, [32]byte{1}), want: "not found in the store"},
	} {
		t.Run(what, func(t *testing.T) {
			damaged := openStore(t, snapshot(t, path))
			if test.latest == nil {
				test.latest = latest
			}
			var objects []store.Object
			if test.object.Data != nil {
				objects = append(objects, test.object)
			}
			if err := damaged.Commit(t.Context(), objects, latest, test.latest); err != nil {
				t.Fatal(err)
			}
			_, err := coordinator.New(t.Context(), coordinator.Config{
				Store: damaged, Issuer: world(t).Machine(measurement, coordPolicy), AllowSimulatedTEE: true, Log: slog.New(slog.DiscardHandler),
			})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("New: %v, want %q", err, test.want)
			}
		})
	}
	_, err = coordinator.New(t.Context(), coordinator.Config{
		Store: openStore(t, snapshot(t, path)), Issuer: world(t).Machine(measurement, coordPolicy), Log: slog.New(slog.DiscardHandler),
	})
	if err == nil || !strings.Contains(err.Error(), "--allow-simulated-tee") {
		t.Errorf("New without leave for simulated evidence: %v", err)
	}
}

func latestOf(t *testing.T, hash [32]byte) []byte {
	t.Helper()
	text, err := json.Marshal(map[string]any{
		"transitionHash": hash[:], "meshCa": make([]byte, 32), "sequence": 1, "signature": []byte{1},
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// alteredLatest is latest with its fields altered, not signed anew.
func alteredLatest(t *testing.T, latest []byte, alter func(map[string]any)) []byte {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal(latest, &fields); err != nil {
		t.Fatal(err)
	}
	alter(fields)
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestSharesInTheStoreThatAreNotTheSeedsAreNotShown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	first := start(t, onStore(t, path))
	owners := seedshareOwners(t, 2)
	text := newManifest(t, sharedAmong(t, 1, owners...))
	set := first.mustSet(t, text)
	shares := first.shares(t, text)
	altered := slices.Clone(shares)
	altered[1].Sealed = altered[0].Sealed
	for name, kept := range map[string][]api.SealedShare{"none": {}, "one left out": shares[:1], "altered": altered} {
		t.Run(name, func(t *testing.T) {
			f := restart(t, path, func(c *coordinator.Config) {
				latest, err := c.Store.Latest(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				data, err := json.Marshal(kept)
				if err != nil {
					t.Fatal(err)
				}
				object := store.Object{Name: store.Name{Kind: store.Shares, Hash: [32]byte(set.TransitionHash)}, Data: data}
				if err := c.Store.Commit(t.Context(), []store.Object{object}, latest, latest); err != nil {
					t.Fatal(err)
				}
			})
			if _, err := f.Recover(t.Context(), *share(t, shares[0], owners[0], f.mustVerifyRecovery(t, text))); err != nil {
				t.Fatal(err)
			}
			if got := f.shares(t, text); len(got) != 0 { // verified, and so an error if they were shown
				t.Errorf("%d shares are shown", len(got))
			}
		})
	}
}

// Whatever happens, no log and no store has a seed or a share of one.
func TestNoSeedAndNoShareIsLoggedOrStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.db")
	first := start(t, onStore(t, path))
	owners := seedshareOwners(t, 3)
	text := newManifest(t, sharedAmong(t, 2, owners...))
	first.mustSet(t, text)
	var opened []pki.Share
	shares := first.shares(t, text)
	for i := range shares {
		s, err := shares[i].Open(owners[i].HPKE)
		if err != nil {
			t.Fatal(err)
		}
		opened = append(opened, s)
	}
	seed, err := pki.Combine(opened)
	if err != nil {
		t.Fatal(err)
	}
	f := restart(t, path)
	v := f.mustVerifyRecovery(t, text)
	wrong, err := api.NewRecoverRequest(opened[1], owners[0].Signing, v)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Recover(t.Context(), *wrong); err == nil {
		t.Fatal("taken")
	}
	for i := range 2 {
		if _, err := f.Recover(t.Context(), *share(t, shares[i], owners[i], v)); err != nil {
			t.Fatal(err)
		}
	}
	// The clean-up searches logs, answers and stores for whatever is known to be secret. That it knows:
	for i, s := range opened {
		secrets.Add("an opened share of the seed", s.Reveal()[1:])
		if found := secrets.Find([]byte(hex.EncodeToString(s.Reveal()))); len(found) == 0 {
			t.Errorf("nobody would find share %d", i+1)
		}
	}
	key, err := pki.EncodePrivateKey(seed.TransactionKey())
	if err != nil {
		t.Fatal(err)
	}
	for name, leak := range map[string]string{
		"the seed":            fmt.Sprintf("%q", seed.Reveal()),
		"the transaction key": string(key.Reveal()),
		"the root CA's key":   fmt.Sprint(seed.RootKey()),
		"the nonce key":       base64.RawURLEncoding.EncodeToString(seed.NonceKey().Reveal()),
		"the workload secret": string(seed.WorkloadSecret("shop/db").Reveal()),
	} {
		if found := secrets.Find([]byte(leak)); len(found) == 0 || !strings.HasPrefix(found[0], name) {
			t.Errorf("nobody would find %s: %v", name, found)
		}
	}
}
