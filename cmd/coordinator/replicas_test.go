package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/cluster"
	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/simtee"
)

// replica is a Coordinator's life, and its address.
type replica struct {
	*api.Client
	cmd *exec.Cmd
	log *netlab.Log
}

func (p *replica) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // killed, as wanted
}

// mesh is a deployment of three replicas: real processes, which find each other by a name as a headless Service gives it, on
// a real API server, with the rights of their service account.
type mesh struct {
	world     *simtee.World
	env       []string
	addresses []string
	replicas  []*replica
	owner     *ecdsa.PrivateKey
	seedshare *pki.SeedshareKey
}

func newMesh(t *testing.T, c *cluster.Cluster) *mesh {
	t.Helper()
	ips := []string{"127.0.1.1", "127.0.1.2", "127.0.1.3"}
	peersAt(t, ips...)
	m := &mesh{world: serveWorld(t), replicas: make([]*replica, len(ips)), env: os.Environ()}
	for _, ip := range ips {
		m.addresses = append(m.addresses, ip+":1313")
	}
	for name, value := range deployed(t, c) {
		m.env = append(m.env, name+"="+value)
	}
	var err error
	if m.owner, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if m.seedshare, err = pki.NewSeedshareKey(); err != nil {
		t.Fatal(err)
	}
	return m
}

// start starts number i and waits until it answers.
func (m *mesh) start(t *testing.T, i int) *replica {
	t.Helper()
	p := &replica{log: &netlab.Log{}}
	p.cmd = exec.Command("coordinator", "--no-guard", "--allow-simulated-tee", "--store", "kubernetes", // #nosec: this binary
		"--listen", m.addresses[i], "--peers", peersName)
	p.cmd.Env, p.cmd.Stderr = m.env, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	var err error
	if p.Client, err = api.New(m.addresses[i]); err != nil {
		t.Fatal(err)
	}
	m.replicas[i] = p
	m.eventually(t, "an answer", func() bool {
		_, err := fetch(p.String() + api.PathHealth)
		return err == nil
	})
	return p
}

func (m *mesh) eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			var logs strings.Builder
			for _, p := range m.replicas {
				if p != nil {
					logs.WriteString(p.String() + ":\n" + p.log.String() + "\n")
				}
			}
			t.Fatalf("not in a minute: %s\n%s", what, logs.String())
		}
	}
}

// manifest is one whose certificates live so many hours.
func (m *mesh) manifest(t *testing.T, hours int) *manifest.Manifest {
	t.Helper()
	owner, err := manifest.NewOwnerKey(&m.owner.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	seedshare, err := manifest.NewSeedshareOwner(m.seedshare.Public())
	if err != nil {
		t.Fatal(err)
	}
	validity, err := manifest.NewValidity(time.Duration(hours) * time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	made := manifest.Manifest{
		Policies:          map[attestation.PolicyHash]manifest.Policy{policy: {Role: manifest.RoleCoordinator}},
		ReferenceValues:   manifest.ReferenceValues{Simulated: []simulated.ReferenceValue{m.world.Reference(measurement)}},
		WorkloadOwnerKeys: []manifest.OwnerKey{owner}, WorkloadOwnerThreshold: 1,
		SeedshareOwnerKeys: []manifest.SeedshareOwner{seedshare}, SeedshareThreshold: 1,
		CertificateValidity: validity,
	}
	text, err := made.Encode()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := manifest.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func (m *mesh) set(t *testing.T, p *replica, next *manifest.Manifest, previous [32]byte) (*api.SetResponse, error) {
	spki, err := pki.SPKI(&m.owner.PublicKey)
	if err != nil {
		t.Error(err)
	}
	digest := sha256.Sum256(manifest.SignedMessage(manifest.TransitionHash(next.Text(), previous)))
	signature, err := ecdsa.SignASN1(rand.Reader, m.owner, digest[:])
	if err != nil {
		t.Error(err)
	}
	return p.Set(t.Context(), api.SetRequest{
		Manifest: next.Text(), Previous: previous[:], Signatures: []api.Signature{{PublicKey: spki, Signature: signature}},
	})
}

// verified is what a replica proves of itself, as `portcullis verify` sees it; nil while it does not enforce the manifest.
func (p *replica) verified(t *testing.T, trusted *manifest.Manifest) *api.Verified {
	nonce := make([]byte, api.NonceSize)
	resp, err := p.Attest(t.Context(), nonce)
	if err != nil {
		return nil
	}
	v, err := api.VerifyCoordinator(t.Context(), resp, nonce, trusted, manifest.ValidatorOptions{})
	if err != nil {
		return nil
	}
	return v
}

// agree waits until all replicas enforce the manifest, and sees that they are one authority. It returns that.
func (m *mesh) agree(t *testing.T, trusted *manifest.Manifest) *api.Verified {
	t.Helper()
	var all [3]*api.Verified
	m.eventually(t, "one authority", func() bool {
		for i, p := range m.replicas {
			if all[i] = p.verified(t, trusted); all[i] == nil {
				return false
			}
		}
		return bytes.Equal(all[0].MeshCA.Raw, all[1].MeshCA.Raw) && bytes.Equal(all[1].MeshCA.Raw, all[2].MeshCA.Raw)
	})
	for _, v := range all[1:] {
		if !bytes.Equal(v.RootCA.Raw, all[0].RootCA.Raw) {
			t.Error("the replicas show different root CA certificates")
		}
	}
	return all[0]
}

// certify has a pod certified, and returns the mesh CA.
func (m *mesh) certify(ctx context.Context, p *replica) ([]byte, error) {
	nonce, err := p.Nonce(ctx)
	if err != nil {
		return nil, err
	}
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	sealed, err := api.NewHPKEKey()
	if err != nil {
		return nil, err
	}
	req := api.CertificateRequest{Nonce: nonce, HPKEKey: sealed.PublicKey().Bytes()}
	if req.PublicKey, err = pki.SPKI(&leaf.PublicKey); err != nil {
		return nil, err
	}
	if req.Evidence, err = m.world.Machine(measurement, policy).Issue(ctx, req.ReportData()); err != nil {
		return nil, err
	}
	if err := req.Sign(leaf); err != nil {
		return nil, err
	}
	resp, err := p.Certificate(ctx, req)
	if err != nil {
		return nil, err
	}
	return resp.MeshCA, nil
}

func code(err error) api.Code {
	if refused, ok := errors.AsType[*api.Error](err); ok {
		return refused.Code
	}
	return ""
}

// A day of a deployment: replicas are killed, owners race, the API server is away, and at last everything is lost but what
// is in it and with the seed's owner.
func TestReplicasInACluster(t *testing.T) {
	c := cluster.Shared(t)
	m := newMesh(t, c)
	for i := range m.replicas {
		m.start(t, i)
	}
	first := m.manifest(t, 1)
	set, err := m.set(t, m.replicas[0], first, [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	v := m.agree(t, first)
	if !bytes.Equal(v.MeshCA.Raw, set.MeshCA) {
		t.Error("the replicas have another mesh CA than the one that was answered")
	}
	shares := v.Shares

	// While any of them lives, certificates are issued; who was killed has the state again from the others.
	for i := range m.replicas {
		m.replicas[i].kill()
		m.replicas[(i+1)%3].kill()
		if ca, err := m.certify(t.Context(), m.replicas[(i+2)%3]); err != nil || !bytes.Equal(ca, set.MeshCA) {
			t.Errorf("the last replica certifies: %v", err)
		}
		for _, dead := range []int{i, (i + 1) % 3} {
			began := time.Now()
			p := m.start(t, dead)
			m.eventually(t, "the state", func() bool { return p.verified(t, first) != nil })
			took := time.Since(began)
			t.Logf("replica %d, killed and restarted, served after %v", dead, took.Round(time.Millisecond))
			if took > 10*time.Second {
				t.Errorf("replica %d took %v", dead, took)
			}
		}
	}
	if v := m.agree(t, first); !bytes.Equal(v.MeshCA.Raw, set.MeshCA) {
		t.Error("after all that the mesh CA is another one")
	}

	// Two owners at two replicas.
	candidates := []*manifest.Manifest{m.manifest(t, 2), m.manifest(t, 3)}
	answers, errs := make([]*api.SetResponse, 2), make([]error, 2)
	var race sync.WaitGroup
	for i, next := range candidates {
		race.Go(func() { answers[i], errs[i] = m.set(t, m.replicas[i], next, [32]byte(set.TransitionHash)) })
	}
	race.Wait()
	winner := slices.Index(errs, nil)
	if winner < 0 || code(errs[1-winner]) != api.CodeConflict {
		t.Fatalf("two owners at once: %v", errs)
	}
	enforced := candidates[winner]
	v = m.agree(t, enforced)
	if !bytes.Equal(v.MeshCA.Raw, answers[winner].MeshCA) {
		t.Error("the mesh CA is not the winner's")
	}

	// The API server is away. Pods notice nothing; owners are told.
	c.KillAPIServer()
	for i, p := range m.replicas {
		if ca, err := m.certify(t.Context(), p); err != nil || !bytes.Equal(ca, v.MeshCA.Raw) {
			t.Errorf("replica %d without the API server: %v", i, err)
		}
	}
	if _, err := m.set(t, m.replicas[0], m.manifest(t, 4), v.TransitionHash); code(err) != api.CodeUnavailable {
		t.Errorf("set without the API server: %v", err)
	}
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	last := m.manifest(t, 5)
	m.eventually(t, "a set, with the API server back", func() bool {
		_, err := m.set(t, m.replicas[1], last, v.TransitionHash)
		return err == nil || m.replicas[1].verified(t, last) != nil // one that failed may have been done, and be found later
	})
	before := m.agree(t, last)

	// All die. The owner of the seed gives a share to two of them at once: that makes one new mesh CA.
	for _, p := range m.replicas {
		p.kill()
	}
	requests := make([]*api.RecoverRequest, 3)
	for i := range m.replicas {
		p := m.start(t, i)
		nonce := make([]byte, api.NonceSize)
		resp, err := p.AttestRecovery(t.Context(), nonce)
		if err != nil {
			t.Fatal(err)
		}
		v, err := api.VerifyRecovery(t.Context(), resp, nonce, last, manifest.ValidatorOptions{})
		if err != nil {
			t.Fatal(err)
		}
		share, err := shares[0].Open(m.seedshare.HPKE)
		if err != nil {
			t.Fatal(err)
		}
		if requests[i], err = api.NewRecoverRequest(share, m.seedshare.Signing, v); err != nil {
			t.Fatal(err)
		}
	}
	recovered := make([]*api.RecoverResponse, 2)
	for i := range recovered {
		race.Go(func() { recovered[i], errs[i] = m.replicas[i].Recover(t.Context(), *requests[i]) })
	}
	race.Wait()
	winners := 0
	for i, r := range recovered {
		switch {
		case errs[i] == nil && r.Recovered:
			winners++
		case !slices.Contains([]api.Code{api.CodeConflict, api.CodeNoRecovery, api.CodeBadNonce}, code(errs[i])):
			t.Errorf("the other owner is told %v", errs[i])
		}
	}
	if winners != 1 {
		t.Errorf("%d replicas say that their owner recovered them: %v", winners, errs)
	}
	after := m.agree(t, last)
	if bytes.Equal(after.MeshCA.Raw, before.MeshCA.Raw) || !bytes.Equal(after.RootCA.RawSubjectPublicKeyInfo, before.RootCA.RawSubjectPublicKeyInfo) {
		t.Error("after the recovery the mesh CA is the one of before, or the root CA has another key")
	}
}
