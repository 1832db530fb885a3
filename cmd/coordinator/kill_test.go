package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/killpoint"
	"portcullis.dev/portcullis/tests/simtee"
)

// These tests kill the Coordinator as the host may, with a signal that no process sees, and start it again on what is in
// its file. Wherever it was killed, it must go on from the manifest before or from the one after, as a whole; and from the
// one after if somebody was told that it was set.

// killed is a deployment whose Coordinator gets killed: two manifests, their owner, and the seed's.
type killed struct {
	machine       attestation.Issuer
	first, second *manifest.Manifest
	owner         *ecdsa.PrivateKey
	seedOwner     *pki.SeedshareKey
	share         *api.SealedShare // as the owner got it after the first set
	root          []byte           // the root CA's SPKI, which outlives every restart
}

func newKilled(t *testing.T) *killed {
	t.Helper()
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	k := &killed{machine: world.Machine(measurement, policy)}
	serveEvidence(t, k.machine)
	if k.owner, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if k.seedOwner, err = pki.NewSeedshareKey(); err != nil {
		t.Fatal(err)
	}
	owner, err := manifest.NewOwnerKey(&k.owner.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	seedOwner, err := manifest.NewSeedshareOwner(k.seedOwner.Public())
	if err != nil {
		t.Fatal(err)
	}
	for i, to := range []**manifest.Manifest{&k.first, &k.second} {
		m := manifest.Manifest{
			Policies: map[attestation.PolicyHash]manifest.Policy{
				policy:       {Role: manifest.RoleCoordinator},
				{2, byte(i)}: {},
			},
			ReferenceValues:        manifest.ReferenceValues{Simulated: []simulated.ReferenceValue{world.Reference(measurement)}},
			WorkloadOwnerKeys:      []manifest.OwnerKey{owner},
			WorkloadOwnerThreshold: 1,
			SeedshareOwnerKeys:     []manifest.SeedshareOwner{seedOwner},
			SeedshareThreshold:     1,
		}
		text, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if *to, err = manifest.Parse(text); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// The states that a Coordinator may start in, by their transition.
func (k *killed) none() [32]byte     { return [32]byte{} }
func (k *killed) afterOne() [32]byte { return manifest.TransitionHash(k.first.Text(), [32]byte{}) }
func (k *killed) afterTwo() [32]byte { return manifest.TransitionHash(k.second.Text(), k.afterOne()) }

func (k *killed) manifestOf(transition [32]byte) *manifest.Manifest {
	if transition == k.afterTwo() {
		return k.second
	}
	return k.first
}

// process is a real Coordinator.
type process struct {
	*api.Client
	*killpoint.Process
}

// launch starts a Coordinator on a store. p may be armed already; nil is one that never kills. It returns nil when the
// process ended before it listened.
func launch(t *testing.T, db string, p *killpoint.Process) *process {
	t.Helper()
	if p == nil {
		p = killpoint.New(db)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("coordinator", "--listen", "127.0.0.1:0", "--no-guard", "--allow-simulated-tee", "--tee", "socket", "--db", db)
	cmd.Stderr = log
	if err := p.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill(); <-p.Ended() })
	for deadline := time.Now().Add(time.Minute); ; {
		text, err := os.ReadFile(log.Name())
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(text) {
			var entry struct{ Msg, Address string }
			if json.Unmarshal(line, &entry) == nil && entry.Msg == "listening" {
				client, err := api.New(entry.Address)
				if err != nil {
					t.Fatal(err)
				}
				return &process{client, p}
			}
		}
		select {
		case <-p.Ended():
			if r, err := p.Wait(); err != nil || !r.Status.Signaled() {
				t.Fatalf("the Coordinator ended by itself: %v\n%s", err, text)
			}
			return nil
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the Coordinator does not listen:\n%s", text)
		}
	}
}

// kill kills the process, if it is not dead yet, and returns how it ended.
func (p *process) kill(t *testing.T) *killpoint.Result {
	t.Helper()
	p.Kill()
	r, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ctxFor(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// set makes m the active manifest after previous. The error is that of an answer that did not come.
func (k *killed) set(t *testing.T, c *api.Client, m *manifest.Manifest, previous [32]byte) error {
	t.Helper()
	digest := sha256.Sum256(manifest.SignedMessage(manifest.TransitionHash(m.Text(), previous)))
	signature, err := ecdsa.SignASN1(rand.Reader, k.owner, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	spki, err := pki.SPKI(&k.owner.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Set(ctxFor(t), api.SetRequest{
		Manifest: m.Text(), Previous: previous[:],
		Signatures: []api.Signature{{PublicKey: spki, Signature: signature}},
	})
	return err
}

// verify wants an active Coordinator with that manifest, and returns what it is.
func (k *killed) verify(t *testing.T, c *api.Client, m *manifest.Manifest) *api.Verified {
	t.Helper()
	nonce := make([]byte, api.NonceSize)
	resp, err := c.Attest(ctxFor(t), nonce)
	if err != nil {
		t.Fatal(err)
	}
	v, err := api.VerifyCoordinator(ctxFor(t), resp, nonce, m, manifest.ValidatorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// state says from which transition a Coordinator that was started goes on, zero for none.
func (k *killed) state(t *testing.T, c *api.Client) [32]byte {
	t.Helper()
	if resp, err := c.AttestRecovery(ctxFor(t), make([]byte, api.NonceSize)); err == nil {
		return resp.TransitionHash()
	}
	resp, err := c.Attest(ctxFor(t), make([]byte, api.NonceSize))
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.History) > 0 {
		t.Fatal("a Coordinator that was started serves a manifest without its seed")
	}
	return [32]byte{}
}

// recover gives the Coordinator the owner's share, and wants it to be the authority that it was.
func (k *killed) recover(t *testing.T, c *api.Client, m *manifest.Manifest) {
	t.Helper()
	nonce := make([]byte, api.NonceSize)
	resp, err := c.AttestRecovery(ctxFor(t), nonce)
	if err != nil {
		t.Fatal(err)
	}
	v, err := api.VerifyRecovery(ctxFor(t), resp, nonce, m, manifest.ValidatorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	share, err := k.share.Open(k.seedOwner.HPKE)
	if err != nil {
		t.Fatal(err)
	}
	req, err := api.NewRecoverRequest(share, k.seedOwner.Signing, v)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Recover(ctxFor(t), *req); err != nil {
		t.Fatal(err)
	}
	if got := k.verify(t, c, m); !bytes.Equal(got.RootCA.RawSubjectPublicKeyInfo, k.root) {
		t.Error("the root CA has another key")
	}
}

// on runs a Coordinator of the same code in this process, for the many states of a disk that nobody needs a process for.
func (k *killed) on(t *testing.T, disk []byte) [32]byte {
	t.Helper()
	db := filepath.Join(t.TempDir(), "coordinator.db")
	if err := os.WriteFile(db, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenBolt(db)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := coordinator.New(t.Context(), coordinator.Config{
		Store: s, Issuer: k.machine, AllowSimulatedTEE: true, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(c.Handler())
	defer server.Close()
	client, err := api.New(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	got := k.state(t, client)
	if got != k.none() && k.share != nil {
		k.recover(t, client, k.manifestOf(got))
	}
	return got
}

// places calls scene with n from 1 up, until the Coordinator was not killed any more. A scene returns how the process ended.
func (k *killed) places(t *testing.T, allowed [][32]byte, scene func(t *testing.T, n int) (db string, r *killpoint.Result, killed bool)) {
	seen := make(map[[32]byte]bool)
	disks, places := 0, 0
	for more := true; more; places++ {
		if places == 100 {
			t.Fatal("there is no end of changes")
		}
		t.Run(strconv.Itoa(places+1), func(t *testing.T) {
			more = false
			db, r, killed := scene(t, places+1)
			if !killed {
				for i, disk := range r.Disks() {
					if got := k.on(t, disk); got != allowed[len(allowed)-1] {
						t.Errorf("power failure %d after the answer: goes on from transition %x", i, got)
					}
				}
				return
			}
			if len(r.Calls) != places+1 {
				t.Fatalf("it failed for another reason, after %v", r.Calls)
			}
			more = true
			t.Logf("killed before %v", r.Calls[len(r.Calls)-1])
			if _, err := os.Stat(db); errors.Is(err, os.ErrNotExist) {
				seen[k.none()] = true // nor is there anything to lose
				return
			}
			for i, disk := range r.Disks() {
				disks++
				got := k.on(t, disk)
				seen[got] = true
				if !contains(allowed, got) {
					t.Errorf("power failure %d before %v: goes on from transition %x", i, r.Calls[len(r.Calls)-1], got)
				}
			}
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("%d places, %d disks, %d states", places-1, disks, len(seen))
	if places < 4 {
		t.Errorf("killed in %d places: were the changes seen?", places-1)
	}
	if len(seen) != len(allowed) {
		t.Errorf("%d states were seen, want all %d", len(seen), len(allowed))
	}
}

func contains(all [][32]byte, one [32]byte) bool {
	for _, a := range all {
		if a == one {
			return true
		}
	}
	return false
}

func copyOf(t *testing.T, data []byte) string {
	t.Helper()
	db := filepath.Join(t.TempDir(), "coordinator.db")
	if data != nil {
		if err := os.WriteFile(db, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// prepare makes the stores that the sets begin with: one without a manifest, and one with the first, whose share its owner
// has got.
func (k *killed) prepare(t *testing.T) (empty, one []byte) {
	t.Helper()
	db := copyOf(t, nil)
	p := launch(t, db, nil)
	p.kill(t)
	empty = read(t, db)
	p = launch(t, db, nil)
	if err := k.set(t, p.Client, k.first, k.none()); err != nil {
		t.Fatal(err)
	}
	v := k.verify(t, p.Client, k.first)
	k.share, k.root = &v.Shares[0], v.RootCA.RawSubjectPublicKeyInfo
	p.kill(t)
	return empty, read(t, db)
}

func TestKilledBeforeEveryChangeOfItsStore(t *testing.T) {
	k := newKilled(t)
	empty, one := k.prepare(t)
	share := k.share

	t.Run("first start", func(t *testing.T) {
		k.share = nil // of another seed
		defer func() { k.share = share }()
		k.places(t, [][32]byte{k.none()}, func(t *testing.T, n int) (string, *killpoint.Result, bool) {
			db := copyOf(t, nil)
			p := killpoint.New(db)
			p.KillBefore(n)
			if started := launch(t, db, p); started != nil {
				return db, started.kill(t), false
			}
			r, err := p.Wait()
			if err != nil {
				t.Fatal(err)
			}
			again := launch(t, db, nil)
			if err := k.set(t, again.Client, k.first, k.state(t, again.Client)); err != nil {
				t.Errorf("set afterwards: %v", err)
			}
			return db, r, true
		})
	})

	t.Run("first set", func(t *testing.T) {
		k.share = nil // each of these sets makes a seed, and the killed ones give nobody a share
		defer func() { k.share = share }()
		k.places(t, [][32]byte{k.none(), k.afterOne()}, func(t *testing.T, n int) (string, *killpoint.Result, bool) {
			db := copyOf(t, empty)
			p := launch(t, db, nil)
			p.KillBefore(n)
			if k.set(t, p.Client, k.first, k.none()) == nil { // answered
				r := p.kill(t)
				if got := k.state(t, launch(t, db, nil).Client); got != k.afterOne() {
					t.Errorf("the set was answered, and is lost: transition %x", got)
				}
				return db, r, false
			}
			r := p.kill(t)
			again := launch(t, db, nil)
			switch got := k.state(t, again.Client); got {
			case k.none():
				if err := k.set(t, again.Client, k.first, got); err != nil {
					t.Errorf("set again: %v", err)
				}
			case k.afterOne(): // with a seed that nobody has, and under which nobody was told anything: a new deployment
			default:
				t.Errorf("goes on from transition %x", got)
			}
			return db, r, true
		})
	})

	t.Run("second set", func(t *testing.T) {
		k.places(t, [][32]byte{k.afterOne(), k.afterTwo()}, func(t *testing.T, n int) (string, *killpoint.Result, bool) {
			db := copyOf(t, one)
			p := launch(t, db, nil)
			k.recover(t, p.Client, k.first)
			p.KillBefore(n)
			answered := k.set(t, p.Client, k.second, k.afterOne()) == nil
			r := p.kill(t)
			k.goesOn(t, db, answered)
			return db, r, !answered
		})
	})
}

// goesOn starts a Coordinator after the second set was killed or answered, and wants its owner to bring it back, from one
// of the manifests.
func (k *killed) goesOn(t *testing.T, db string, answered bool) {
	t.Helper()
	p := launch(t, db, nil)
	got := k.state(t, p.Client)
	switch {
	case answered && got != k.afterTwo():
		t.Errorf("the second set was answered, and is lost: transition %x", got)
		return
	case got != k.afterOne() && got != k.afterTwo():
		t.Errorf("goes on from transition %x", got)
		return
	}
	k.recover(t, p.Client, k.manifestOf(got))
	if got == k.afterOne() {
		if err := k.set(t, p.Client, k.second, got); err != nil {
			t.Errorf("set again: %v", err)
		}
	}
	p.kill(t)
}

// The other moments: while it reads, judges, signs and answers. CI kills a few times, a soak test a thousand times.
func TestKilledAtRandom(t *testing.T) {
	kills := 4
	if os.Getenv("PORTCULLIS_SOAK") != "" {
		kills = 1000
	}
	k := newKilled(t)
	empty, one := k.prepare(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	longest := 200 * time.Millisecond // after which it is killed, about twice what a set takes
	var answers, news int
	for i := range kills {
		ok := t.Run(strconv.Itoa(i), func(t *testing.T) {
			from, m, old, new := empty, k.first, k.none(), k.afterOne()
			if i%2 == 1 {
				from, m, old, new = one, k.second, k.afterOne(), k.afterTwo()
			}
			db := copyOf(t, from)
			p := launch(t, db, nil)
			if old != k.none() {
				k.recover(t, p.Client, k.first)
			}
			after := time.Duration(random.Int64N(int64(longest)))
			timer := time.AfterFunc(after, p.Kill)
			begin := time.Now()
			answered := k.set(t, p.Client, m, old) == nil
			if answered {
				answers++
				longest = min(2*time.Since(begin), time.Second)
			}
			timer.Stop()
			p.kill(t)
			if old != k.none() {
				k.goesOn(t, db, answered)
				return
			}
			p = launch(t, db, nil)
			got := k.state(t, p.Client)
			p.kill(t)
			if got == new {
				news++
			}
			if got != new && (answered || got != old) {
				t.Errorf("answered %t, and goes on from transition %s", answered, hex.EncodeToString(got[:]))
			}
		})
		if !ok {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d kills: %d sets were answered before; of the first sets %d were kept", kills, answers, news)
}
