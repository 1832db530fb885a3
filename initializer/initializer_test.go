package initializer_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/initializer"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret/secrettest"
	"portcullis.dev/portcullis/tests/netlab"
)

// authority is an honest Coordinator, as far as an Initializer sees one: the real certificates and the real protocol,
// without its judgement. What a host makes of its answers goes into spoil.
type authority struct {
	t        *testing.T
	seed     pki.Seed
	mesh     *pki.MeshCA
	answer   api.CertificateResponse // CAs and transition, to start from
	validity time.Duration
	secretID string
	// successors says whether the manifests that are set from now on allow the next one.
	successors bool
	secrets    secrettest.Set // all that is made here; no pod's log has any of it

	mu       sync.Mutex
	errs     []error // given to the first requests
	spoil    func(*api.CertificateRequest, *api.CertificateResponse)
	requests []api.CertificateRequest
	nonces   int
	after    func(meshCA [32]byte) ([]byte, error)
	followed []time.Time // when somebody asked what came after
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, seed: seed, validity: 30 * 24 * time.Hour}
	a.secrets.AddSeed(seed)
	a.setManifest(1)
	return a
}

// setManifest makes the mesh CA of another manifest.
func (a *authority) setManifest(n byte) {
	a.t.Helper()
	root, err := pki.NewRootCA(a.seed.RootKey(), time.Now())
	if err != nil {
		a.t.Fatal(err)
	}
	transition := [32]byte{n}
	newMeshCA := pki.NewMeshCA
	if a.successors {
		newMeshCA = pki.NewMeshCAWithSuccessors
	}
	if a.mesh, err = newMeshCA(root, a.seed.RootKey(), transition, time.Now()); err != nil {
		a.t.Fatal(err)
	}
	a.secrets.AddKey("the mesh CA's key", a.mesh.Key)
	a.answer = api.CertificateResponse{
		MeshCA: a.mesh.Certificate.Raw, RootCA: root.Raw, TransitionHash: transition[:],
	}
}

func (a *authority) Nonce(context.Context) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.nonces++
	if len(a.errs) > 0 {
		err := a.errs[0]
		a.errs = a.errs[1:]
		return nil, err
	}
	nonce := make([]byte, 32)
	_, err := rand.Read(nonce)
	return nonce, err
}

// asked is how many certificates were asked for.
func (a *authority) asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.requests)
}

func (*authority) Attest(context.Context, []byte) (*api.AttestResponse, error) {
	return nil, errors.New("nobody but a pinned pod asks for the history")
}

// Successor is what was put into after.
func (a *authority) Successor(_ context.Context, meshCA [32]byte) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.followed = append(a.followed, time.Now())
	if a.after == nil {
		return nil, nil
	}
	return a.after(meshCA)
}

func (a *authority) Certificate(_ context.Context, r api.CertificateRequest) (*api.CertificateResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = append(a.requests, r)
	answer, err := a.issue(&r)
	if err != nil {
		return nil, err
	}
	if a.spoil != nil {
		a.spoil(&r, answer)
	}
	return answer, nil
}

func (a *authority) issue(r *api.CertificateRequest) (*api.CertificateResponse, error) {
	pub, err := pki.ParseSPKI(r.PublicKey)
	if err != nil {
		return nil, err
	}
	want := r.ReportData().Bytes()
	if !bytes.Equal(r.Evidence.Report, want[:]) {
		return nil, errors.New("the evidence is not over the request")
	}
	if !r.VerifyProof(pub) {
		return nil, errors.New("the proof of possession is wrong")
	}
	san, err := pki.ParseSAN("web")
	if err != nil {
		return nil, err
	}
	leaf, err := a.mesh.Issue(pub, []pki.SAN{san}, attestation.Claims{PolicyHash: attestation.PolicyHash{1}}, a.validity, time.Now())
	if err != nil {
		return nil, err
	}
	answer := a.answer
	answer.Chain = [][]byte{leaf.Raw, a.mesh.Intermediate.Raw}
	if pki.NamesPredecessor(leaf) {
		answer.Predecessor = a.mesh.Before.Predecessor.Raw
	}
	if a.secretID != "" {
		if err := answer.Seal(r, a.seed.WorkloadSecret(a.secretID)); err != nil {
			return nil, err
		}
	}
	return &answer, nil
}

// echo is a TEE whose report is the report data.
type echo struct{}

func (echo) Issue(_ context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	b := data.Bytes()
	return attestation.Evidence{Platform: attestation.Simulated, Report: b[:]}, nil
}

// pod is a volume, a log, and the Initializer's configuration.
type pod struct {
	initializer.Config
	log *netlab.Log
}

func newPod(t *testing.T, a *authority) *pod {
	t.Helper()
	log := &netlab.Log{}
	p := &pod{log: log, Config: initializer.Config{
		Dir:         t.TempDir(),
		Coordinator: a,
		Issuer:      func() (attestation.Issuer, error) { return echo{}, nil },
		OpenGuard: func(context.Context) error {
			t.Error("the guard was opened")
			return nil
		},
		Log: slog.New(slog.NewJSONHandler(log, nil)),
	}}
	t.Cleanup(func() {
		if c, err := initializer.Load(p.Dir); err == nil {
			a.secrets.AddKey("the leaf's key", c.Key)
			if c.Secret.Len() > 0 {
				a.secrets.AddSecret("the workload secret", c.Secret)
			}
		}
		for _, found := range a.secrets.Find([]byte(log.String())) {
			t.Errorf("the log has %s", found)
		}
	})
	return p
}

// run runs the Initializer until the condition holds, then stops it and sees it end well.
func (p *pod) run(t *testing.T, until func() bool) {
	t.Helper()
	p.runBy(t, 100*time.Millisecond, until)
}

// runBy is run for conditions that take hours, and are looked at every step.
func (p *pod) runBy(t *testing.T, step time.Duration, until func() bool) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- initializer.Run(ctx, p.Config) }()
	deadline := time.Now().Add(24 * time.Hour)
	for synctest.Wait(); !until(); synctest.Wait() {
		if time.Now().After(deadline) {
			t.Errorf("nothing happened for a day; the log:\n%s", p.log)
			break
		}
		select {
		case err := <-done:
			t.Fatalf("Run ended: %v; the log:\n%s", err, p.log)
		case <-time.After(step):
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func (p *pod) ready() bool { return initializer.Ready(p.Dir, time.Now()) == nil }

func (p *pod) logs(text string) func() bool {
	return func() bool { return strings.Contains(p.log.String(), text) }
}

// inBubble runs f, and makes the authority in it: certificates are of the bubble's time.
func inBubble(t *testing.T, f func(*testing.T, *authority, *pod)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		f(t, a, newPod(t, a))
	})
}

func TestCredentialsAppearOnTheVolume(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		a.secretID = "shop"
		p.run(t, p.ready)

		got, err := initializer.Load(p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Secret.Equal(a.seed.WorkloadSecret("shop")) {
			t.Error("the workload secret is another")
		}
		if !got.Chain.MeshCA.Equal(a.mesh.Certificate) || !bytes.Equal(got.Chain.RootCA.Raw, a.answer.RootCA) {
			t.Error("the CAs are others")
		}
		for name, want := range map[string]struct {
			mode    fs.FileMode
			content []byte
		}{
			"tls-config/mesh-ca.pem":             {0o444, pki.EncodeCertificates(a.mesh.Certificate)},
			"tls-config/certChain.pem":           {0o444, got.Chain.PEM()},
			"tls-config/coordinator-root-ca.pem": {0o444, pki.EncodeCertificates(got.Chain.RootCA)},
			"tls-config/key.pem":                 {0o400, nil},
			"secrets/workload-secret-seed":       {0o400, []byte(hex.EncodeToString(a.seed.WorkloadSecret("shop").Reveal()))},
		} {
			path := filepath.Join(p.Dir, name)
			info, err := os.Stat(path)
			if err != nil {
				t.Error(err)
				continue
			}
			if info.Mode() != want.mode {
				t.Errorf("%s has mode %v, want %v", name, info.Mode(), want.mode)
			}
			if content, err := os.ReadFile(path); err != nil || want.content != nil && !bytes.Equal(content, want.content) {
				t.Errorf("%s holds %q, %v", name, content, err)
			}
		}
		for name, want := range map[string]string{"tls-config": "..data/tls-config", "secrets": "..data/secrets"} {
			if got, err := os.Readlink(filepath.Join(p.Dir, name)); err != nil || got != want {
				t.Errorf("%s is a link to %q, want %q: %v", name, got, want, err)
			}
		}
		version, err := os.Readlink(filepath.Join(p.Dir, "..data"))
		if err != nil || filepath.Base(version) != version || !strings.HasPrefix(version, "..") {
			t.Errorf("..data is a link to %q, want a version beside it: %v", version, err)
		}
		if entries := list(t, p.Dir); len(entries) != 4 {
			t.Errorf("the volume holds %q, want ..data, its version, and two links", entries)
		}
	})
}

func TestAPodWithoutASecretHasNoSecretFile(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *authority, p *pod) {
		p.run(t, p.ready)
		if _, err := os.Stat(filepath.Join(p.Dir, "secrets/workload-secret-seed")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v, want no such file", err)
		}
	})
}

func TestModesDoNotDependOnTheUmask(t *testing.T) {
	// Umask is the process's, so this test is not parallel.
	defer syscall.Umask(syscall.Umask(0o077))
	inBubble(t, func(t *testing.T, _ *authority, p *pod) {
		p.run(t, p.ready)
		for name, want := range map[string]fs.FileMode{
			"..data/": 0o755, "tls-config/": 0o755, "secrets/": 0o755, "tls-config/mesh-ca.pem": 0o444, "tls-config/key.pem": 0o400,
		} {
			info, err := os.Stat(filepath.Join(p.Dir, name))
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
			}
		}
	})
}

// What a host may make of a Coordinator's answers.
func TestAnAnswerIsBelievedAsAWholeOrNotAtAll(t *testing.T) {
	type answer = api.CertificateResponse
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, a, other *authority) func(*api.CertificateRequest, *answer)
		fault string
	}{
		{"all of another Coordinator's answer to another pod", func(t *testing.T, _, other *authority) func(*api.CertificateRequest, *answer) {
			stolen := anotherPodsAnswer(t, other)
			return func(_ *api.CertificateRequest, a *answer) { *a = *stolen }
		}, "not for this key"},
		{"another pod's chain", func(t *testing.T, a, _ *authority) func(*api.CertificateRequest, *answer) {
			stolen := anotherPodsAnswer(t, a)
			return func(_ *api.CertificateRequest, a *answer) { a.Chain = stolen.Chain }
		}, "not for this key"},
		{"another Coordinator's mesh CA", func(_ *testing.T, _, other *authority) func(*api.CertificateRequest, *answer) {
			return func(_ *api.CertificateRequest, a *answer) { a.MeshCA = other.answer.MeshCA }
		}, "not one authority"},
		{"another Coordinator's root CA", func(_ *testing.T, _, other *authority) func(*api.CertificateRequest, *answer) {
			return func(_ *api.CertificateRequest, a *answer) { a.RootCA = other.answer.RootCA }
		}, "under the root CA"},
		{"another Coordinator's chain, CAs of this one", func(t *testing.T, _, other *authority) func(*api.CertificateRequest, *answer) {
			return func(r *api.CertificateRequest, a *answer) {
				stolen, err := other.issue(r)
				if err != nil {
					t.Error(err)
				}
				a.Chain = stolen.Chain
			}
		}, "not one authority"},
		{"another Coordinator's secret", func(t *testing.T, _, other *authority) func(*api.CertificateRequest, *answer) {
			other.secretID = "shop"
			return func(r *api.CertificateRequest, a *answer) {
				stolen, err := other.issue(r)
				if err != nil {
					t.Error(err)
				}
				a.WorkloadSecret = stolen.WorkloadSecret
			}
		}, "open the workload secret"},
		{"the secret of an earlier answer", func(t *testing.T, a, _ *authority) func(*api.CertificateRequest, *answer) {
			a.secretID = "shop"
			return func(r *api.CertificateRequest, answer *answer) {
				earlier, err := a.issue(r)
				if err != nil {
					t.Error(err)
				}
				answer.WorkloadSecret = earlier.WorkloadSecret
			}
		}, "open the workload secret"},
		{"a secret changed", func(_ *testing.T, a, _ *authority) func(*api.CertificateRequest, *answer) {
			a.secretID = "shop"
			return func(_ *api.CertificateRequest, a *answer) { a.WorkloadSecret[len(a.WorkloadSecret)-1] ^= 1 }
		}, "open the workload secret"},
		{"a short secret", func(*testing.T, *authority, *authority) func(*api.CertificateRequest, *answer) {
			return func(_ *api.CertificateRequest, a *answer) { a.WorkloadSecret = []byte("short") }
		}, "it is 5 bytes long"},
		{"another transition", func(*testing.T, *authority, *authority) func(*api.CertificateRequest, *answer) {
			return func(_ *api.CertificateRequest, a *answer) { a.TransitionHash = bytes.Repeat([]byte{9}, 32) }
		}, "not the one of transition 0909"},
		{"no transition", func(*testing.T, *authority, *authority) func(*api.CertificateRequest, *answer) {
			return func(_ *api.CertificateRequest, a *answer) { a.TransitionHash = nil }
		}, "transition hash is 0 bytes"},
		{"no intermediate", func(*testing.T, *authority, *authority) func(*api.CertificateRequest, *answer) {
			return func(_ *api.CertificateRequest, a *answer) { a.Chain = a.Chain[:1] }
		}, "chain of 1"},
		{"the mesh CA in the chain", func(*testing.T, *authority, *authority) func(*api.CertificateRequest, *answer) {
			return func(_ *api.CertificateRequest, a *answer) { a.Chain = append(a.Chain, a.MeshCA) }
		}, "chain of 3"},
		{"the chain the wrong way round", func(*testing.T, *authority, *authority) func(*api.CertificateRequest, *answer) {
			return func(_ *api.CertificateRequest, a *answer) { slices.Reverse(a.Chain) }
		}, "not for this key"},
		{"mesh CA and root CA swapped", func(*testing.T, *authority, *authority) func(*api.CertificateRequest, *answer) {
			return func(_ *api.CertificateRequest, a *answer) { a.MeshCA, a.RootCA = a.RootCA, a.MeshCA }
		}, "not one authority"},
		{"nothing at all", func(*testing.T, *authority, *authority) func(*api.CertificateRequest, *answer) {
			return func(_ *api.CertificateRequest, a *answer) { *a = answer{} }
		}, "chain of 0"},
		{"garbage", func(*testing.T, *authority, *authority) func(*api.CertificateRequest, *answer) {
			return func(_ *api.CertificateRequest, a *answer) { a.Chain[0] = []byte("garbage") }
		}, "parse the leaf"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, a *authority, p *pod) {
				a.spoil = tc.spoil(t, a, newAuthority(t))
				p.run(t, p.logs("answer was refused"))
				if !strings.Contains(p.log.String(), tc.fault) {
					t.Errorf("the log does not say %q:\n%s", tc.fault, p.log)
				}
				if entries := list(t, p.Dir); len(entries) != 0 {
					t.Errorf("the volume holds %q", entries)
				}

				// The host tires of it: the pod comes up.
				a.spoil = nil
				p.run(t, p.ready)
			})
		})
	}
}

func TestAnExpiredCertificateIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		time.Sleep(3 * time.Hour) // after the CAs were made
		a.spoil = func(r *api.CertificateRequest, answer *api.CertificateResponse) {
			pub, err := pki.ParseSPKI(r.PublicKey)
			if err != nil {
				t.Error(err)
			}
			stale, err := a.mesh.Issue(pub, nil, attestation.Claims{PolicyHash: attestation.PolicyHash{1}},
				time.Hour, time.Now().Add(-2*time.Hour))
			if err != nil {
				t.Error(err)
				return
			}
			answer.Chain[0] = stale.Raw
		}
		p.run(t, p.logs("expired"))
		if entries := list(t, p.Dir); len(entries) != 0 {
			t.Errorf("the volume holds %q", entries)
		}
	})
}

func anotherPodsAnswer(t *testing.T, a *authority) *api.CertificateResponse {
	t.Helper()
	p := newPod(t, a)
	var stolen *api.CertificateResponse
	a.spoil = func(_ *api.CertificateRequest, answer *api.CertificateResponse) { c := *answer; stolen = &c }
	p.run(t, p.ready)
	return stolen
}

func TestItAsksUntilItSucceeds(t *testing.T) {
	problem := func(status int, code api.Code, after time.Duration) error {
		return fmt.Errorf("wrapped: %w", &api.Error{
			Problem: api.Problem{Status: status, Code: code, Detail: "told in confidence"}, RetryAfter: after,
		})
	}
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		for range 10 {
			a.errs = append(a.errs,
				errors.New("connection refused"),
				problem(503, api.CodeNoManifest, 0),
				problem(429, api.CodeBusy, 7*time.Second),
				problem(403, api.CodeEvidenceRejected, 0),
				problem(400, api.CodeBadRequest, 0),
				problem(500, "", time.Hour))
		}
		want := len(a.errs) + 1
		begin := time.Now()
		p.run(t, p.ready)
		if a.nonces != want {
			t.Errorf("it asked %d times, want %d", a.nonces, want)
		}
		waits := logged(t, p.log.String(), "retryIn")
		if len(waits) != want-1 {
			t.Fatalf("it waited %d times, want %d:\n%s", len(waits), want-1, p.log)
		}
		var total time.Duration
		for i, s := range waits {
			wait, err := time.ParseDuration(s)
			if err != nil {
				t.Fatal(err)
			}
			total += wait
			most := min(500*time.Millisecond<<min(i, 10), 30*time.Second)
			if i%6 == 2 {
				most = max(most, 7*time.Second)
				if wait < 7*time.Second {
					t.Errorf("wait %d is %v, although the Coordinator asked for 7 s", i, wait)
				}
			}
			if i%6 == 5 {
				most = 30 * time.Second
			}
			if wait < 250*time.Millisecond || wait > most {
				t.Errorf("wait %d is %v, want 250 ms to %v", i, wait, most)
			}
		}
		if took := time.Since(begin); took < total-time.Second || took > total+time.Second {
			t.Errorf("it took %v, but it said that it would wait %v", took, total)
		}
		distinct := map[string]bool{}
		for _, s := range waits[20:] {
			distinct[s] = true
		}
		if len(distinct) < 10 {
			t.Errorf("the waits are not random: %q", waits)
		}
	})
}

func TestARejectionIsLoggedWithItsReason(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		a.errs = []error{&api.Error{Problem: api.Problem{
			Status: 403, Code: api.CodeEvidenceRejected, Detail: "evidence rejected: MEASUREMENT",
		}}}
		p.run(t, p.ready)
		line, _, _ := strings.Cut(p.log.String(), "\n")
		var entry struct {
			Level, Msg string
			Answer     struct{ Code, Detail string }
			Hint       string
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry.Level != "ERROR" || entry.Answer.Code != "evidence-rejected" || entry.Answer.Detail != "evidence rejected: MEASUREMENT" ||
			entry.Hint == "" {
			t.Errorf("got %s", line)
		}
	})
}

func TestTheTEEMayComeLate(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *authority, p *pod) {
		tries := 0
		p.Issuer = func() (attestation.Issuer, error) {
			if tries++; tries < 5 {
				return nil, &evidence.NotFoundError{
					TEE: evidence.Auto, Missing: []evidence.Missing{{Where: evidence.Socket, Err: errors.New("connection refused")}},
				}
			}
			return echo{}, nil
		}
		p.run(t, p.ready)
		if !strings.Contains(p.log.String(), evidence.Socket) {
			t.Errorf("the log does not name what was looked for:\n%s", p.log)
		}
	})
}

func TestAnUnknownTEEEndsIt(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		p.Issuer = func() (attestation.Issuer, error) { return evidence.NewIssuer("crystal ball") }
		err := initializer.Run(t.Context(), p.Config)
		if _, ok := errors.AsType[*evidence.NameError](err); !ok || a.nonces != 0 {
			t.Errorf("got %v after %d nonces", err, a.nonces)
		}
	})
}

func TestNoMeshOpensTheGuardFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		opened := 0
		p.NoMesh = true
		p.OpenGuard = func(context.Context) error {
			if a.nonces > 0 || len(list(t, p.Dir)) > 0 {
				t.Error("something was done before")
			}
			opened++
			return nil
		}
		a.errs = []error{errors.New("unreachable")}
		p.run(t, p.ready)
		if opened != 1 {
			t.Errorf("the guard was opened %d times", opened)
		}
	})
}

func TestAGuardThatDoesNotOpenEndsIt(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		broken := errors.New("operation not permitted")
		p.NoMesh = true
		p.OpenGuard = func(context.Context) error { return broken }
		if err := initializer.Run(t.Context(), p.Config); !errors.Is(err, broken) || a.nonces != 0 {
			t.Errorf("got %v after %d nonces", err, a.nonces)
		}
	})
}

func TestNoMeshOnceMoreAfterARestart(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *authority, p *pod) {
		p.NoMesh = true
		p.OpenGuard = func(context.Context) error { return fmt.Errorf("open: %w", guard.ErrNoGuard) }
		p.run(t, p.ready)
	})
}

func TestGoodCredentialsAreKept(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		p.run(t, p.ready)
		before := snapshot(t, p.Dir)
		p.run(t, p.logs("holds credentials already"))
		if a.nonces != 1 {
			t.Errorf("the Coordinator was asked %d times, want once", a.nonces)
		}
		if after := snapshot(t, p.Dir); after != before {
			t.Errorf("the volume changed from\n%s\nto\n%s", before, after)
		}
	})
}

func TestOldCredentialsAreReplacedUnderTheSameMeshCA(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		p.run(t, p.ready)
		old, err := initializer.Load(p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * 24 * time.Hour)
		p.run(t, p.logs(`2000-02-25`)) // 30 days after the replacement
		replaced, err := initializer.Load(p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if replaced.Key.Equal(old.Key) || replaced.Chain.Leaf.Equal(old.Chain.Leaf) {
			t.Error("the credentials are the old ones")
		}
		if !replaced.Chain.MeshCA.Equal(old.Chain.MeshCA) {
			t.Error("the mesh CA changed")
		}
		digest := sha256.Sum256(old.Chain.MeshCA.Raw)
		if n := len(a.requests); n != 2 || len(a.requests[0].MeshCA) != 0 || !bytes.Equal(a.requests[1].MeshCA, digest[:]) {
			t.Errorf("of %d requests the second does not name the mesh CA that the pod holds", n)
		}
		if entries := list(t, p.Dir); len(entries) != 4 {
			t.Errorf("the old version was left behind: %q", entries)
		}
	})
}

func TestCertificatesAreRenewedForEver(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		began := time.Now()
		p.runBy(t, 10*time.Minute, func() bool {
			// The pod is ready from its first certificate on, at every moment.
			return p.ready() && time.Since(began) > 20*time.Hour
		})
		if a.asked() != 1 {
			t.Fatalf("a certificate of 30 days was renewed within a day")
		}
	})
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		a.validity = time.Hour
		began, unready := time.Now(), 0
		p.runBy(t, time.Minute, func() bool {
			if !p.ready() && a.asked() > 0 {
				unready++
			}
			return time.Since(began) > 4*time.Hour
		})
		// Certificates of 65 minutes, for they are backdated by five, last 32 to 39 minutes each.
		if n := a.asked(); n < 6 || n > 8 {
			t.Errorf("in four hours %d certificates of an hour were asked for", n)
		}
		if unready > 1 {
			t.Errorf("it was not ready %d times", unready)
		}
		digest := sha256.Sum256(a.mesh.Certificate.Raw)
		keys := map[string]bool{}
		for i, r := range a.requests {
			keys[string(r.PublicKey)] = true
			if i > 0 && !bytes.Equal(r.MeshCA, digest[:]) {
				t.Errorf("request %d does not name the mesh CA that the pod holds", i)
			}
		}
		if len(keys) != len(a.requests) {
			t.Error("a key served two certificates")
		}
	})
}

func TestWhileARenewalFailsTheOldCertificateStays(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		a.validity = time.Hour
		p.run(t, p.ready)
		before := snapshot(t, p.Dir)
		down := make([]error, 10)
		for i := range down {
			down[i] = errors.New("nobody answers")
		}
		a.errs = down
		p.runBy(t, 10*time.Second, func() bool {
			if a.asked() == 1 && snapshot(t, p.Dir) != before {
				t.Error("the volume changed without an answer")
			}
			return a.asked() == 2
		})
		if n := strings.Count(p.log.String(), "nobody answers"); n != len(down) {
			t.Errorf("it failed %d times", n)
		}
		if !p.ready() || snapshot(t, p.Dir) == before {
			t.Error("the Coordinator came back, and nothing was renewed")
		}
	})
}

func TestAPodOfAnOldManifestSaysSo(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		a.validity = time.Hour
		p.run(t, p.ready)
		before := files(t, p.Dir)
		for range 1000 {
			a.errs = append(a.errs, &api.Error{Problem: api.Problem{Status: 409, Code: api.CodeGenerationChanged}})
		}
		began := time.Now()
		p.runBy(t, time.Minute, func() bool { return time.Since(began) > 2*time.Hour })
		if n := strings.Count(p.log.String(), "roll it out again"); n < 5 || n > 24 {
			t.Errorf("in two hours it said %d times that it must be rolled out", n)
		}
		mark := filepath.Join(p.Dir, "..data", "generation-changed")
		c, err := initializer.Load(p.Dir)
		if err != nil || c.Changed.Before(began) || time.Since(c.Changed) > 2*time.Hour {
			t.Fatalf("it is not marked that the manifest has changed: %v, %v", c.Changed, err)
		}
		if files(t, p.Dir) != before {
			t.Error("more changed than the mark")
		}
		version := readlink(t, filepath.Join(p.Dir, "..data"))
		p.runBy(t, time.Minute, func() bool { return time.Since(began) > 3*time.Hour })
		if readlink(t, filepath.Join(p.Dir, "..data")) != version {
			t.Error("the mark was made again")
		}
		// Whoever said so may not have been the Coordinator.
		a.errs = nil
		p.run(t, func() bool {
			_, err := os.Stat(mark)
			return p.ready() && errors.Is(err, fs.ErrNotExist)
		})
	})
}

func TestTheShortestCertificatesHaveNoGapBetweenThem(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		a.validity = manifest.MinValidity
		p.run(t, p.ready)
		began := time.Now()
		p.runBy(t, 2*time.Second, func() bool {
			if !p.ready() {
				t.Fatalf("after %v the certificate has ended", time.Since(began))
			}
			return time.Since(began) > 5*time.Minute
		})
	})
}

func TestCertificatesOfNoLifeAreNotAskedForInCircles(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		a.validity = 10 * time.Second
		began := time.Now()
		p.runBy(t, time.Minute, func() bool { return time.Since(began) > 5*time.Minute })
		if n := a.asked(); n < 25 || n > 45 {
			t.Errorf("in five minutes %d certificates were asked for, want one in ten seconds", n)
		}
	})
}

func TestTheMeshCAOnTheVolumeIsThePin(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		p.run(t, p.ready)
		before := snapshot(t, p.Dir)
		time.Sleep(40 * 24 * time.Hour)
		a.setManifest(2)
		p.run(t, p.logs("is not the one that this pod holds"))
		if after := snapshot(t, p.Dir); after != before {
			t.Errorf("the volume changed from\n%s\nto\n%s", before, after)
		}
	})
}

func TestAVolumeThatCannotBeReadIsNoReasonToJoinAnotherMesh(t *testing.T) {
	for name, spoil := range map[string]func(version string) error{
		"no mesh CA":      func(v string) error { return os.Remove(filepath.Join(v, "tls-config/mesh-ca.pem")) },
		"garbage mesh CA": func(v string) error { return overwrite(filepath.Join(v, "tls-config/mesh-ca.pem"), "garbage") },
		"another mesh CA beside it": func(v string) error {
			stranger, err := os.ReadFile(filepath.Join(v, "tls-config/coordinator-root-ca.pem"))
			if err != nil {
				return err
			}
			own, err := os.ReadFile(filepath.Join(v, "tls-config/mesh-ca.pem"))
			if err != nil {
				return err
			}
			return overwrite(filepath.Join(v, "tls-config/mesh-ca.pem"), string(own)+string(stranger))
		},
		"garbage mark": func(v string) error { return overwrite(filepath.Join(v, "generation-changed"), "yes") },
		"garbage key":  func(v string) error { return overwrite(filepath.Join(v, "tls-config/key.pem"), "garbage") },
		"no version":   os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, a *authority, p *pod) {
				p.run(t, p.ready)
				if err := spoil(filepath.Join(p.Dir, readlink(t, filepath.Join(p.Dir, "..data")))); err != nil {
					t.Fatal(err)
				}
				if err := initializer.Run(t.Context(), p.Config); err == nil || !strings.Contains(err.Error(), "read the credentials") {
					t.Errorf("got %v", err)
				}
				if a.nonces != 1 {
					t.Error("the Coordinator was asked again")
				}
			})
		})
	}
}

func TestReadersSeeTheOldOrTheNew(t *testing.T) {
	// No bubble: reader and writer race for real. Certificates of a minute are past two thirds of their lifetime, for
	// they are backdated by five: each run replaces the last one's.
	a := newAuthority(t)
	a.validity = time.Minute
	a.secretID = "shop"
	p := newPod(t, a)
	runOnce := func() {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		done := make(chan error, 1)
		stored := strings.Count(p.log.String(), "stored mesh credentials")
		go func() { done <- initializer.Run(ctx, p.Config) }()
		for deadline := time.Now().Add(time.Minute); strings.Count(p.log.String(), "stored mesh credentials") == stored; {
			if time.Now().After(deadline) {
				t.Fatalf("nothing was stored; the log:\n%s", p.log)
			}
			time.Sleep(time.Millisecond)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	runOnce()
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	reads := 0
	readers.Go(func() {
		for ctx.Err() == nil {
			reads++
			c, err := initializer.Load(p.Dir)
			if err != nil {
				t.Errorf("a reader saw: %v", err)
				return
			}
			if err := c.Chain.Verify(&c.Key.PublicKey, time.Now()); err != nil {
				t.Errorf("a reader saw a mixture: %v", err)
				return
			}
		}
	})
	readers.Go(func() {
		for ctx.Err() == nil {
			if _, err := os.Readlink(filepath.Join(p.Dir, "..data")); err != nil {
				t.Errorf("for a moment there was nothing: %v", err)
				return
			}
		}
	})
	for range 30 {
		runOnce()
	}
	stop()
	readers.Wait()
	if reads < 10 {
		t.Errorf("only %d reads", reads)
	}
}

func TestWhatAKilledInitializerLeftIsRemoved(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *authority, p *pod) {
		for _, d := range []string{"..half/tls-config", "..older"} {
			if err := os.MkdirAll(filepath.Join(p.Dir, d), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("..half", filepath.Join(p.Dir, "..data.next")); err != nil {
			t.Fatal(err)
		}
		p.run(t, p.ready)
		if entries := list(t, p.Dir); len(entries) != 4 {
			t.Errorf("the volume holds %q", entries)
		}
	})
}

func TestAnotherMountIsNotOverwritten(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *authority, p *pod) {
		if err := os.Mkdir(filepath.Join(p.Dir, "tls-config"), 0o755); err != nil {
			t.Fatal(err)
		}
		err := initializer.Run(t.Context(), p.Config)
		if err == nil || !strings.Contains(err.Error(), "tls-config is there already") {
			t.Errorf("got %v", err)
		}
		if entries := list(t, p.Dir); len(entries) != 1 {
			t.Errorf("the volume holds %q", entries)
		}
	})
}

func TestAVolumeIsAFolder(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		for name, dir := range map[string]string{"nothing": filepath.Join(p.Dir, "nowhere"), "a file": file(t), "unset": ""} {
			p.Dir = dir
			if err := initializer.Run(t.Context(), p.Config); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		if a.nonces != 0 {
			t.Error("the Coordinator was asked")
		}
	})
}

func TestReady(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, version string) error
		after time.Duration
		ok    bool
	}{
		{"complete", nil, 0, true},
		{"expired", nil, 31 * 24 * time.Hour, false},
		{"the clock is before the certificate", nil, -time.Hour, false},
		{"no key", func(_ *testing.T, v string) error { return os.Remove(filepath.Join(v, "tls-config/key.pem")) }, 0, false},
		{"no chain", func(_ *testing.T, v string) error { return os.Remove(filepath.Join(v, "tls-config/certChain.pem")) }, 0, false},
		{"no mesh CA", func(_ *testing.T, v string) error { return os.Remove(filepath.Join(v, "tls-config/mesh-ca.pem")) }, 0, false},
		{"no root CA", func(_ *testing.T, v string) error {
			return os.Remove(filepath.Join(v, "tls-config/coordinator-root-ca.pem"))
		}, 0, false},
		{"another key", func(t *testing.T, v string) error {
			other := newPod(t, newAuthority(t))
			other.run(t, other.ready)
			key, err := os.ReadFile(filepath.Join(other.Dir, "tls-config/key.pem"))
			if err != nil {
				return err
			}
			return overwrite(filepath.Join(v, "tls-config/key.pem"), string(key))
		}, 0, false},
		{"another mesh CA", func(t *testing.T, v string) error {
			return overwrite(filepath.Join(v, "tls-config/mesh-ca.pem"), string(pki.EncodeCertificates(newAuthority(t).mesh.Certificate)))
		}, 0, false},
		{"two mesh CAs", func(_ *testing.T, v string) error {
			path := filepath.Join(v, "tls-config/mesh-ca.pem")
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return overwrite(path, string(text)+string(text))
		}, 0, false},
		{"garbage secret", func(_ *testing.T, v string) error {
			return overwrite(filepath.Join(v, "secrets/workload-secret-seed"), "xyz")
		}, 0, false},
		{"no version", func(_ *testing.T, v string) error { return os.RemoveAll(v) }, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, _ *authority, p *pod) {
				p.run(t, p.ready)
				if tc.spoil != nil {
					if err := tc.spoil(t, filepath.Join(p.Dir, readlink(t, filepath.Join(p.Dir, "..data")))); err != nil {
						t.Fatal(err)
					}
				}
				answerIs(t, initializer.Ready(p.Dir, time.Now().Add(tc.after)), tc.ok)
			})
		})
	}
	t.Run("empty volume", func(t *testing.T) {
		err := initializer.Ready(t.TempDir(), time.Now())
		answerIs(t, err, false)
		if !errors.Is(err, initializer.ErrNone) {
			t.Errorf("got %v, want ErrNone", err)
		}
	})
	t.Run("no volume", func(t *testing.T) {
		answerIs(t, initializer.Ready(filepath.Join(t.TempDir(), "nowhere"), time.Now()), false)
	})
}

func answerIs(t *testing.T, err error, ok bool) {
	t.Helper()
	if ok && err != nil {
		t.Errorf("got %v, want ready", err)
	}
	if e, is := errors.AsType[interface {
		error
		ExitCode() int
	}](err); !ok && (!is || e.ExitCode() != 3) {
		t.Errorf("got %v, want not ready with exit code 3", err)
	}
}

func TestSecretsArePrintedNowhere(t *testing.T) {
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		a.secretID = "shop"
		a.errs = []error{errors.New("unreachable"), &api.Error{Problem: api.Problem{Status: 403, Code: api.CodeEvidenceRejected}}}
		p.run(t, p.ready)
		p.run(t, p.logs("holds credentials already"))
		c, err := initializer.Load(p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		printed := &bytes.Buffer{}
		printed.WriteString(p.log.String())
		for _, v := range []any{c, *c, []any{c}, struct{ C *initializer.Credentials }{c}} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
				fmt.Fprintf(printed, verb+"\n", v)
			}
			slog.New(slog.NewJSONHandler(printed, nil)).Info("log", "value", v)
			slog.New(slog.NewTextHandler(printed, nil)).Info("log", "value", v)
			if err := json.NewEncoder(printed).Encode(v); err != nil {
				t.Fatal(err)
			}
		}
		key, err := c.Key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		file, err := os.ReadFile(filepath.Join(p.Dir, "tls-config/key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		var known secrettest.Set
		known.Add("key", key)
		known.AddSecret("workload secret", c.Secret)
		for _, leak := range [][]byte{file, c.Secret.Reveal()} { // the control
			if len(known.Find(leak)) == 0 {
				t.Error("nobody would find a secret")
			}
		}
		for _, found := range known.Find(printed.Bytes()) {
			t.Errorf("printed was the %s", found)
		}
		if !strings.Contains(printed.String(), "REDACTED") {
			t.Error("nothing was printed")
		}
	})
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// snapshot is every file and link of a folder with its content.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v ", path, d.Type())
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			b.WriteString(readlink(t, path))
		case d.Type().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%x", sha256.Sum256(content))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func readlink(t *testing.T, path string) string {
	t.Helper()
	target, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func overwrite(path, content string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o400)
}

func file(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// logged is the values of one attribute, line by line.
func logged(t *testing.T, log, attribute string) []string {
	t.Helper()
	var values []string
	for line := range strings.Lines(log) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if v, ok := entry[attribute].(string); ok {
			values = append(values, v)
		}
	}
	return values
}
