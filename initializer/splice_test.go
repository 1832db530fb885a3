package initializer_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// coordinatorOn starts a Coordinator on a store that is there.
func coordinatorOn(t *testing.T, path string) *api.Client {
	t.Helper()
	db, err := store.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	amd, err := collateral.New(collateral.Config{Transport: world(t).KDS()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { amd.Close() })
	c, err := coordinator.New(t.Context(), coordinator.Config{
		Store: db, Issuer: machine(t, measurement, coordPolicy), Collateral: amd, SNPRoots: world(t).Roots(),
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(c.Handler())
	t.Cleanup(server.Close)
	client, err := api.New(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// twins are two Coordinators of one seed and one manifest, with different mesh CAs: what a host gets that copies the store
// and has owners recover each of two replicas. One accepts the other's nonces, so both answer the same request.
func twins(t *testing.T, m *manifest.Manifest, owner *ecdsa.PrivateKey) (a, b *api.Client) {
	t.Helper()
	keys, err := pki.NewSeedshareKey()
	if err != nil {
		t.Fatal(err)
	}
	seedshares, err := manifest.NewSeedshareOwner(keys.Public())
	if err != nil {
		t.Fatal(err)
	}
	m.SeedshareOwnerKeys, m.SeedshareThreshold = []manifest.SeedshareOwner{seedshares}, 1
	path := filepath.Join(t.TempDir(), "coordinator.db")
	a = coordinatorOn(t, path)
	set(t, a, m, owner)
	told, err := a.Attest(t.Context(), make([]byte, api.NonceSize))
	if err != nil {
		t.Fatal(err)
	}
	copied, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "coordinator.db")
	if err := os.WriteFile(other, copied, 0o600); err != nil {
		t.Fatal(err)
	}
	b = coordinatorOn(t, other)
	nonce := make([]byte, api.NonceSize)
	recovering, err := b.AttestRecovery(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := manifest.Parse(told.History[0].Manifest)
	if err != nil {
		t.Fatal(err)
	}
	v, err := api.VerifyRecovery(t.Context(), recovering, nonce, trusted,
		manifest.ValidatorOptions{Collateral: world(t).KDS(), SNPRoots: world(t).Roots()})
	if err != nil {
		t.Fatal(err)
	}
	share, err := told.Shares[0].Open(keys.HPKE)
	if err != nil {
		t.Fatal(err)
	}
	request, err := api.NewRecoverRequest(share, keys.Signing, v)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Recover(t.Context(), *request); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// The host asks two Coordinators the pod's one question and puts the answer together from both: all that is of two
// authorities is refused. Of a pod without a secret and without a pin, one exchange is not noticed and changes nothing: that of
// the root CA's certificate for another one of the same key.
func TestCertificateAnswerSplicedFromTwoCoordinators(t *testing.T) {
	owner := newOwner(t)
	owners := []*ecdsa.PrivateKey{owner}
	type answer = api.CertificateResponse
	parts := []struct {
		name string
		take func(to, from *answer)
	}{
		{"leaf", func(to, from *answer) { to.Chain[0] = from.Chain[0] }},
		{"intermediate CA", func(to, from *answer) { to.Chain[1] = from.Chain[1] }},
		{"mesh CA", func(to, from *answer) { to.MeshCA = from.MeshCA }},
		{"root CA", func(to, from *answer) { to.RootCA = from.RootCA }},
		{"secret", func(to, from *answer) { to.WorkloadSecret = from.WorkloadSecret }},
		{"evidence", func(to, from *answer) { to.Evidence = from.Evidence }},
	}
	const leaf, intermediate, mesh, root, secret, evidence = 1, 2, 4, 8, 16, 32
	all := leaf | intermediate | mesh | root | secret | evidence
	for name, tc := range map[string]struct {
		secretID manifest.SecretID
		pinned   bool
		same     int // what the two answers have in common, both having none
		harmless int // what may be exchanged
	}{
		"with a secret":    {secretID: "web", same: evidence},
		"without a secret": {same: secret | evidence, harmless: root},
		"with a pin":       {pinned: true, same: secret},
		"with both":        {secretID: "web", pinned: true},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := twins(t, meshManifest(t, owners, func(m *manifest.Manifest) {
				policy := m.Policies[webPolicy]
				policy.WorkloadSecretID = tc.secretID
				m.Policies[webPolicy] = policy
			}), owner)
			// Each part alone, and all but that part, from the other one; and the two whole answers.
			splices := []int{0, all}
			for i := range parts {
				splices = append(splices, 1<<i, all&^(1<<i))
			}
			splices = append(splices, leaf|intermediate, leaf|mesh, intermediate|mesh, leaf|intermediate|mesh)
			for _, splice := range splices {
				var rootKeys [2][]byte
				w := &way{to: a, certificate: func(ctx context.Context, r api.CertificateRequest) (*answer, error) {
					got, err := a.Certificate(ctx, r)
					if err != nil {
						return nil, err
					}
					other, err := b.Certificate(ctx, r)
					if err != nil {
						return nil, err
					}
					if bytes.Equal(got.MeshCA, other.MeshCA) || bytes.Equal(got.RootCA, other.RootCA) {
						t.Error("there is nothing to splice")
					}
					rootKeys = [2][]byte{rootKey(t, got), rootKey(t, other)}
					for i, p := range parts {
						if splice&(1<<i) != 0 {
							p.take(got, other)
						}
					}
					return got, nil
				}}
				p := newPinnedPod(t, w, owners)
				if !tc.pinned {
					p.Pin = nil
				}
				refused := p.logs("answer was refused")
				p.runUntil(t, func() bool { return refused() || p.ready() })
				significant := all &^ tc.same &^ tc.harmless
				whole := splice&significant == 0 || splice&significant == significant
				if whole != p.ready() {
					t.Errorf("the parts %06b of the other answer (from leaf, right, to evidence): accepted is %v, want %v\n%s",
						splice, p.ready(), whole, p.log)
				}
				if !bytes.Equal(rootKeys[0], rootKeys[1]) {
					t.Error("the two have different root keys")
				}
				if !whole && len(list(t, p.Dir)) != 0 {
					t.Error("something of a refused answer was kept")
				}
			}
		})
	}
}

func rootKey(t *testing.T, a *api.CertificateResponse) []byte {
	t.Helper()
	certificates, err := pki.ParseChain(a.Chain, a.MeshCA, a.RootCA)
	if err != nil {
		t.Error(err)
		return nil
	}
	return certificates.RootCA.RawSubjectPublicKeyInfo
}
