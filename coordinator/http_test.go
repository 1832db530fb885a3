package coordinator_test

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/tests/netlab"
)

func TestRequestsThatAreNotTheProtocols(t *testing.T) {
	f := start(t)
	nonce := `"` + strings.Repeat("A", 43) + `="`
	tests := map[string]struct {
		method, path, mediaType, body string
		status                        int
		code                          api.Code
		detail                        string
	}{
		"as it should be":     {"POST", api.PathAttest, "application/json", `{"nonce":` + nonce + `}`, 200, "", ""},
		"with a charset":      {"POST", api.PathAttest, "application/json; charset=utf-8", `{"nonce":` + nonce + `}`, 200, "", ""},
		"GET":                 {"GET", api.PathAttest, "application/json", ``, 405, api.CodeMethodNotAllowed, ""},
		"PUT":                 {"PUT", api.PathManifest, "application/json", `{}`, 405, api.CodeMethodNotAllowed, ""},
		"POST to metrics":     {"POST", api.PathMetrics, "application/json", `{}`, 405, api.CodeMethodNotAllowed, ""},
		"POST to readiness":   {"POST", api.PathReady, "application/json", `{}`, 405, api.CodeMethodNotAllowed, ""},
		"unknown route":       {"POST", "/v1/recover-all", "application/json", `{}`, 404, api.CodeNotFound, ""},
		"route with a slash":  {"POST", api.PathAttest + "/", "application/json", `{}`, 404, api.CodeNotFound, ""},
		"root":                {"GET", "/", "", ``, 404, api.CodeNotFound, ""},
		"a form":              {"POST", api.PathAttest, "application/x-www-form-urlencoded", `nonce=1`, 400, api.CodeBadRequest, "Content-Type"},
		"no media type":       {"POST", api.PathAttest, "", `{"nonce":` + nonce + `}`, 400, api.CodeBadRequest, "Content-Type"},
		"no body":             {"POST", api.PathAttest, "application/json", ``, 400, api.CodeBadRequest, "malformed"},
		"an array":            {"POST", api.PathAttest, "application/json", `[]`, 400, api.CodeBadRequest, "malformed"},
		"no nonce":            {"POST", api.PathAttest, "application/json", `{}`, 400, api.CodeBadRequest, "nonce is 0 bytes long, want 32"},
		"short nonce":         {"POST", api.PathAttest, "application/json", `{"nonce":"AAAA"}`, 400, api.CodeBadRequest, "nonce is 3 bytes long, want 32"},
		"not base64":          {"POST", api.PathAttest, "application/json", `{"nonce":"*"}`, 400, api.CodeBadRequest, "malformed"},
		"unknown field":       {"POST", api.PathAttest, "application/json", `{"nonce":` + nonce + `,"x":1}`, 400, api.CodeBadRequest, "malformed"},
		"duplicate field":     {"POST", api.PathAttest, "application/json", `{"nonce":` + nonce + `,"nonce":` + nonce + `}`, 400, api.CodeBadRequest, "malformed"},
		"another case":        {"POST", api.PathAttest, "application/json", `{"Nonce":` + nonce + `}`, 400, api.CodeBadRequest, "malformed"},
		"trailing data":       {"POST", api.PathAttest, "application/json", `{"nonce":` + nonce + `}{}`, 400, api.CodeBadRequest, "malformed"},
		"nonce with a field":  {"POST", api.PathNonce, "application/json", `{"nonce":"AAAA"}`, 400, api.CodeBadRequest, "malformed"},
		"large attest":        {"POST", api.PathAttest, "application/json", strings.Repeat(" ", 5<<10), 413, api.CodeTooLarge, "4096"},
		"large nonce request": {"POST", api.PathNonce, "application/json", strings.Repeat(" ", 5<<10), 413, api.CodeTooLarge, "4096"},
		"large certificate":   {"POST", api.PathCertificate, "application/json", strings.Repeat(" ", 65<<10), 413, api.CodeTooLarge, "65536"},
		"large peer request":  {"POST", api.PathPeerState, "application/json", strings.Repeat(" ", 65<<10), 413, api.CodeTooLarge, "65536"},
		"GET of a state":      {"GET", api.PathPeerState, "application/json", ``, 405, api.CodeMethodNotAllowed, ""},
		"state of nothing":    {"POST", api.PathPeerState, "application/json", `{}`, 503, api.CodeNoManifest, ""},
		"large manifest":      {"POST", api.PathManifest, "application/json", strings.Repeat(" ", 2<<20), 413, api.CodeTooLarge, "larger than"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), test.method, f.server.URL+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			if test.mediaType != "" {
				req.Header.Set("Content-Type", test.mediaType)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != test.status {
				t.Fatalf("status %d, want %d: %s", resp.StatusCode, test.status, body)
			}
			if test.status == http.StatusOK {
				return
			}
			var problem api.Problem
			if err := json.Unmarshal(body, &problem); err != nil {
				t.Fatal(err)
			}
			if got := resp.Header.Get("Content-Type"); got != api.ProblemType {
				t.Errorf("Content-Type %q", got)
			}
			if problem.Code != test.code || problem.Status != test.status || problem.Type != "about:blank" || problem.Title == "" {
				t.Errorf("problem %+v, want the code %s", problem, test.code)
			}
			if !strings.Contains(problem.Detail, test.detail) || problem.Detail == "" {
				t.Errorf("detail %q, want %q in it", problem.Detail, test.detail)
			}
			if test.status == http.StatusMethodNotAllowed && resp.Header.Get("Allow") == "" {
				t.Error("no Allow header")
			}
		})
	}
}

// A nonce is good for 60 seconds by a clock that only this process moves.
func TestNonceExpiresAfterSixtySeconds(t *testing.T) {
	world(t) // its certificates are of the real time
	text := newManifest(t)
	path := filepath.Join(t.TempDir(), "coordinator.db")
	synctest.Test(t, func(t *testing.T) {
		s, err := store.OpenBolt(path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		log := &netlab.Log{}
		c, err := coordinator.New(t.Context(), coordinator.Config{
			Store: s, Issuer: world(t).Machine(measurement, coordPolicy), AllowSimulatedTEE: true, Log: jsonLog(log),
		})
		if err != nil {
			t.Fatal(err)
		}
		post := func(path string, request, into any) *api.Problem {
			t.Helper()
			body, err := json.Marshal(request)
			if err != nil {
				t.Fatal(err)
			}
			req := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
			req.Header.Set("Content-Type", "application/json")
			answer := httptest.NewRecorder()
			c.Handler().ServeHTTP(answer, req)
			if answer.Code != http.StatusOK {
				p := new(api.Problem)
				if err := json.Unmarshal(answer.Body.Bytes(), p); err != nil {
					t.Fatal(err)
				}
				return p
			}
			if err := json.Unmarshal(answer.Body.Bytes(), into); err != nil {
				t.Fatal(err)
			}
			return nil
		}
		if p := post(api.PathManifest, api.SetRequest{Manifest: text, Previous: make([]byte, 32)}, new(api.SetResponse)); p != nil {
			t.Fatalf("set: %+v", p)
		}
		for _, test := range []struct {
			age  time.Duration
			want api.Code
		}{
			// A nonce that is accepted leads to the next check, which this request fails.
			{0, api.CodeBadSignature},
			{59 * time.Second, api.CodeBadSignature},
			{60 * time.Second, api.CodeBadSignature},
			{60*time.Second + 1, api.CodeBadNonce},
			{time.Hour, api.CodeBadNonce},
		} {
			var nonce api.NonceResponse
			if p := post(api.PathNonce, api.NonceRequest{}, &nonce); p != nil {
				t.Fatalf("nonce: %+v", p)
			}
			time.Sleep(test.age)
			req := newPod(t, webPolicy).request(t, nonce.Nonce)
			req.Proof = []byte("none")
			if p := post(api.PathCertificate, req, new(api.CertificateResponse)); p == nil || p.Code != test.want {
				t.Errorf("after %v: %+v, want %s", test.age, p, test.want)
			}
		}
		if entry := last(t, log, "certificate refused"); entry["reason"] != "the nonce has expired" {
			t.Errorf("log %v", entry)
		}
	})
}

// slow is a TEE that answers when it is told to.
type slow struct {
	attestation.Issuer
	asked  chan struct{}
	answer chan struct{}
}

func newSlow(issuer attestation.Issuer) *slow {
	return &slow{Issuer: issuer, asked: make(chan struct{}, 100), answer: make(chan struct{})}
}

func (s *slow) Issue(ctx context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	s.asked <- struct{}{}
	select {
	case <-s.answer:
		return s.Issuer.Issue(ctx, data)
	case <-ctx.Done():
		return attestation.Evidence{}, ctx.Err()
	}
}

func TestFullQueueIsToldToComeBack(t *testing.T) {
	tee := newSlow(world(t).Machine(measurement, coordPolicy))
	f := start(t, func(c *coordinator.Config) { c.Issuer = tee })
	// More than the Coordinator lets in and lets wait, so at least one is turned away while the TEE has answered nobody.
	const requests = 40
	results := make(chan error, requests)
	for range requests {
		go func() {
			_, err := f.Attest(t.Context(), make([]byte, api.NonceSize))
			results <- err
		}()
	}
	select {
	case err := <-results:
		if refused := wantCode(t, err, api.CodeBusy); refused.Status != 429 || refused.RetryAfter <= 0 {
			t.Errorf("%+v", refused)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nobody was turned away")
	}
	close(tee.answer)
	answered := 0
	for range requests - 1 {
		switch err := <-results; {
		case err == nil:
			answered++
		default:
			wantCode(t, err, api.CodeBusy)
		}
	}
	if answered < 2 {
		t.Errorf("%d requests were answered in the end", answered)
	}
	if _, err := f.Attest(t.Context(), make([]byte, api.NonceSize)); err != nil {
		t.Errorf("after the rush: %v", err)
	}
}

type broken struct{ err error }

func (b broken) Issue(context.Context, attestation.ReportData) (attestation.Evidence, error) {
	if b.err == nil {
		panic("the TEE's driver went wrong at /dev/secret-name")
	}
	return attestation.Evidence{}, b.err
}

func TestBrokenTEEIsToldToTheLogOnly(t *testing.T) {
	for name, test := range map[string]struct {
		issuer broken
		code   api.Code
		log    string
	}{
		"error": {broken{errors.New("no answer from /dev/secret-name")}, api.CodeUnavailable, "attestation refused"},
		"panic": {broken{}, api.CodeInternal, "panic"},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, func(c *coordinator.Config) { c.Issuer = test.issuer })
			_, err := f.Attest(t.Context(), make([]byte, api.NonceSize))
			refused := wantCode(t, err, test.code)
			if strings.Contains(refused.Error(), "secret-name") {
				t.Errorf("the client is told %v", refused)
			}
			last(t, f.log, test.log)
			if !strings.Contains(f.log.String(), "/dev/secret-name") {
				t.Errorf("the log does not say why:\n%s", f.log)
			}
			// A gate that a broken TEE left shut would answer nobody any more.
			for range 5 {
				_, err := f.Attest(t.Context(), make([]byte, api.NonceSize))
				wantCode(t, err, test.code)
			}
		})
	}
}

func TestStopFinishesRequestsInProgress(t *testing.T) {
	tee := newSlow(world(t).Machine(measurement, coordPolicy))
	f := start(t, func(c *coordinator.Config) { c.Issuer = tee })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- f.coordinator.Serve(ctx, listener) }()
	client, err := api.New(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := client.Attest(t.Context(), make([]byte, api.NonceSize))
		answered <- err
	}()
	<-tee.asked
	stop()
	// The listener is closed first; then nobody new gets in, and the request in progress still waits for the TEE.
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			break
		}
		conn.Close()
		if time.Now().After(deadline) {
			t.Fatal("still listening")
		}
	}
	select {
	case err := <-served:
		t.Fatalf("Serve returned %v while a request was in progress", err)
	default:
	}
	close(tee.answer)
	if err := <-answered; err != nil {
		t.Errorf("the request in progress: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeEndsWhenItsListenerFails(t *testing.T) {
	f := start(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.coordinator.Serve(t.Context(), listener); err == nil {
			t.Error("Serve returned nil, though its listener failed")
		}
	})
	listener.Close()
	wg.Wait()
}

func TestCertificateOfAManifestThatWasReplacedMeanwhileIsNotHandedOut(t *testing.T) {
	owner := newKey(t, elliptic.P256())
	tee := newSlow(world(t).Machine(measurement, coordPolicy))
	f := start(t, func(c *coordinator.Config) { c.Issuer = tee })
	set := func(text []byte, previous [32]byte) [32]byte {
		t.Helper()
		next := manifest.TransitionHash(text, previous)
		if _, err := f.Set(t.Context(), api.SetRequest{
			Manifest: text, Previous: previous[:], Signatures: sign(t, next, owner),
		}); err != nil {
			t.Fatal(err)
		}
		return next
	}
	first := set(newManifest(t, ownedBy(t, 1, owner)), [32]byte{})
	req := newPod(t, dbPolicy).request(t, f.freshNonce(t))
	req.WantEvidence = true // so that the slow TEE is asked while the certificate exists already
	refused := make(chan error, 1)
	go func() {
		_, err := f.Certificate(t.Context(), *req)
		refused <- err
	}()
	<-tee.asked
	set(newManifest(t, ownedBy(t, 1, owner), func(m *manifest.Manifest) { delete(m.Policies, dbPolicy) }), first)
	close(tee.answer)
	wantCode(t, <-refused, api.CodeUnavailable)
	if strings.Contains(f.log.String(), "certificate issued") {
		t.Error("the log says that a certificate was issued")
	}
}

// patient is a store that refuses to begin what its caller might give up.
type patient struct{ store.Store }

func (p patient) Commit(ctx context.Context, objects []store.Object, old, new []byte) error {
	if ctx.Done() != nil {
		return errors.New("this commit could be cancelled halfway")
	}
	return p.Store.Commit(ctx, objects, old, new)
}

func TestClientThatGoesAwayDoesNotCancelACommit(t *testing.T) {
	f := start(t, func(c *coordinator.Config) {
		c.Store = patient{openStore(t, filepath.Join(t.TempDir(), "coordinator.db"))}
	})
	f.mustSet(t, newManifest(t))
}
