package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	sevtest "github.com/google/go-sev-guest/verify/testdata"
	tdxtest "github.com/google/go-tdx-guest/testing/testdata"
	"github.com/rogpeppe/go-internal/testscript"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/audit"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/simtee"
)

var update = flag.Bool("update", false, "write the output that scripts compare with anew")

// TestMain enters network namespaces of this test's own: the TEE's socket has a fixed name, and nobody is to be asked for
// collateral.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "portcullis" {
		netlab.Enter()
	}
	testscript.Main(m, map[string]func(){"portcullis": main})
}

// Each script in testdata/script is one behaviour, named after it. Beside testscript's own commands there are
//
//	exits CODE portcullis ARG...    run portcullis, which must exit with that code
//	coordinator [MEASUREMENT]       start a Coordinator in a pretended TEE, as the pod of manifest.json; $COORDINATOR is its address
//	                                and $STORE the file of its history, $AUDIT that of its audit log
//	restart                         start another one, on a copy of $STORE as it is now: what kill -9 leaves
//	splice ADDRESS OTHER [shareless]  $COORDINATOR is a proxy of ADDRESS that asks OTHER for the evidence of one that serves; it
//	                                may take the seed's shares out of answers
//	certificate [MEASUREMENT]       get a certificate from it, as a pod of manifest.json; certificate.json is the answer. With ! in
//	                                front its evidence must be rejected
//	serve FOLDER                    serve the folder's files over HTTP, whatever the method, at $SERVER, without a Date
//	workload [mtls|plaintext]       serve HTTPS at $WORKLOAD with such a certificate, as the pod web-svc; asking for the client's, or
//	                                in plaintext
//	tee                             serve the pretended TEE's evidence, as the pod of policy aa..aa; for one script alone
//
// and the files shop.yaml, policy.rego (the demo's) and values.json (the pretended TEE's reference values); evidence.json and
// report.bin, the pretended TEE's evidence as JSON and raw; quote.bin, a real quote of TDX, and report2.bin, a real report of
// SEV-SNP; AmdSev.fd and OvmfX64.fd, package measure's two ends of OVMF, and CCEL, a real TD's event log; and hardware.json, reference values of hardware: an SNP machine's, and those of the quote but for RTMR1.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setup,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":       exits,
			"coordinator": startCoordinator,
			"restart":     restartCoordinator,
			"splice":      splice,
			"certificate": getCertificate,
			"tee":         serveEvidence,
			"serve":       serveFolder,
			"workload":    serveWorkload,
		},
		RequireUniqueNames: true,
		UpdateScripts:      *update,
	})
}

var measurement = simtee.Measurement{0x5a, 0x01}

var newWorld = sync.OnceValues(func() (*simtee.World, error) { return simtee.New(simtee.PublishedKeys()) })

func setup(env *testscript.Env) error {
	// A program with the race detector sleeps for a second before it exits, and scripts run hundreds of them.
	env.Setenv("GORACE", "atexit_sleep_ms=10")
	world, err := newWorld()
	if err != nil {
		return err
	}
	values, err := json.MarshalIndent(map[string]any{"Simulated": []any{world.Reference(measurement)}}, "", "  ")
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"values.json": values, "report2.bin": sevtest.AttestationBytes,
		"quote.bin": bytes.TrimSuffix(tdxtest.RawQuote, []byte("\nextra bytes(only for testing purpose)\n")),
	}
	if err := addEvidence(files, world); err != nil {
		return err
	}
	for name, path := range map[string]string{
		"shop.yaml":   "../../tests/demo/shop.yaml",
		"policy.rego": "../../tests/demo/policy.rego",
		"AmdSev.fd":   "../../measure/testdata/ovmf_AmdSev_suffix.bin",
		"OvmfX64.fd":  "../../measure/testdata/ovmf_OvmfX64_suffix.bin",
		"CCEL":        "../../measure/testdata/cos-113.ccel",
	} {
		if files[name], err = os.ReadFile(path); err != nil {
			return err
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

var policy = attestation.PolicyHash(bytes.Repeat([]byte{0xaa}, 32))

func addEvidence(files map[string][]byte, world *simtee.World) error {
	e, err := world.Machine(measurement, policy).Issue(context.Background(), attestation.NewReportData("test"))
	if err != nil {
		return err
	}
	files["report.bin"] = append(bytes.Clone(e.Report), e.Certificates...)
	if files["evidence.json"], err = json.Marshal(e); err != nil {
		return err
	}
	quote := files["quote.bin"]
	at := func(offset, size int) string { return hex.EncodeToString(quote[48+offset:][:size]) }
	files["hardware.json"], err = json.Marshal(manifest.ReferenceValues{
		SNP: []snp.ReferenceValue{world.SNPReference(measurement)},
		TDX: []tdx.ReferenceValue{{
			MRTD: at(136, 48), RTMR0: at(328, 48), RTMR1: strings.Repeat("ab", 48), RTMR2: at(424, 48), RTMR3: "any",
			MRSEAM: []string{at(16, 48)}, XFAM: at(128, 8),
			MinimumTCB:          tdx.TCB{TEETCBSVN: strings.Repeat("00", 16), QESVN: new(0), PCESVN: new(0)},
			AcceptedTCBStatuses: []string{"UpToDate"},
		}},
	})
	return err
}

func serveEvidence(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: tee")
	}
	world, err := newWorld()
	ts.Check(err)
	listener, err := evidence.Listen(evidence.Socket)
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- evidence.Serve(ctx, listener, world.Machine(measurement, policy)) }()
	ts.Defer(func() {
		cancel()
		ts.Check(<-served)
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		failed, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = failed.ExitCode()
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
	// Whatever fails says what to do about it, but for a command that ran inside and spoke for itself.
	if stderr := ts.ReadFile("stderr"); code != 0 && args[1] == "portcullis" &&
		!strings.Contains(stderr, "\nhint: ") && !strings.Contains(stderr, "ended with exit code") {
		ts.Fatalf("there is no hint in %q", stderr)
	}
}

func startCoordinator(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: coordinator [MEASUREMENT]")
	}
	launched := measurement
	if len(args) == 1 {
		raw, err := hex.DecodeString(args[0])
		ts.Check(err)
		copy(launched[:], raw)
	}
	serveCoordinator(ts, launched, nil)
}

func restartCoordinator(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: restart")
	}
	history, err := os.ReadFile(ts.MkAbs(ts.Getenv("STORE")))
	ts.Check(err)
	serveCoordinator(ts, measurement, history)
}

// serveCoordinator starts a Coordinator on a store of its own, with that history in it.
func serveCoordinator(ts *testscript.TestScript, launched simtee.Measurement, history []byte) {
	m, err := manifest.Parse([]byte(ts.ReadFile("manifest.json")))
	ts.Check(err)
	world, err := newWorld()
	ts.Check(err)
	folder, err := os.MkdirTemp(ts.Getenv("WORK"), "coordinator")
	ts.Check(err)
	path := filepath.Join(folder, "coordinator.db")
	if history != nil {
		ts.Check(os.WriteFile(path, history, 0o600))
	}
	db, err := store.OpenBolt(path)
	ts.Check(err)
	auditPath := filepath.Join(folder, "audit.log")
	audited, err := audit.Open(audit.Config{Path: auditPath, Log: slog.New(slog.DiscardHandler)})
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	c, err := coordinator.New(ctx, coordinator.Config{
		Store:             db,
		Issuer:            world.Machine(launched, m.CoordinatorPolicies()[0]),
		AllowSimulatedTEE: true,
		Audit:             audited,
		Log:               slog.New(slog.DiscardHandler),
	})
	ts.Check(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	served := make(chan error, 1)
	go func() { served <- c.Serve(ctx, listener) }()
	ts.Defer(func() {
		cancel()
		ts.Check(errors.Join(<-served, audited.Close(), db.Close()))
	})
	ts.Setenv("AUDIT", auditPath)
	ts.Setenv("COORDINATOR", fmt.Sprint(listener.Addr()))
	ts.Setenv("STORE", path)
}

func splice(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: splice ADDRESS OTHER [shareless]")
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		body, _ := io.ReadAll(r.In.Body)
		r.Out.Body = io.NopCloser(bytes.NewReader(body))
		to := args[0]
		if r.In.URL.Path == api.PathAttest && !bytes.Contains(body, []byte("recovery")) {
			to = args[1]
		}
		r.SetURL(&url.URL{Scheme: "http", Host: to})
	}}
	if len(args) == 3 {
		proxy.ModifyResponse = withoutShares
	}
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	server := httptest.NewServer(proxy)
	ts.Defer(server.Close)
	ts.Setenv("COORDINATOR", server.Listener.Addr().String())
}

// withoutShares takes the sealed shares out of an answer.
func withoutShares(r *http.Response) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	var answer map[string]json.RawMessage
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	delete(answer, "shares")
	if body, err = json.Marshal(answer); err != nil {
		return err
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

func serveFolder(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve FOLDER")
	}
	files := http.FileServer(http.Dir(ts.MkAbs(args[0])))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil
		files.ServeHTTP(w, r)
	}))
	ts.Defer(server.Close)
	ts.Setenv("SERVER", server.Listener.Addr().String())
}

func getCertificate(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) > 1 {
		ts.Fatalf("usage: certificate [MEASUREMENT]")
	}
	launched := measurement
	if len(args) == 1 {
		raw, err := hex.DecodeString(args[0])
		ts.Check(err)
		copy(launched[:], raw)
	}
	resp, _, err := certify(ts, launched)
	if neg {
		if refused, ok := errors.AsType[*api.Error](err); !ok || refused.Code != api.CodeEvidenceRejected {
			ts.Fatalf("got %v, want the evidence rejected", err)
		}
		return
	}
	ts.Check(err)
	text, err := json.Marshal(resp)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("certificate.json"), text, 0o644))
}

// certify gets a certificate as the pod of manifest.json that is called web-svc, or else as another of its pods.
func certify(ts *testscript.TestScript, launched simtee.Measurement) (*api.CertificateResponse, *ecdsa.PrivateKey, error) {
	m, err := manifest.Parse([]byte(ts.ReadFile("manifest.json")))
	ts.Check(err)
	world, err := newWorld()
	ts.Check(err)
	c, err := api.New(ts.Getenv("COORDINATOR"))
	ts.Check(err)
	ctx := context.Background()
	nonce, err := c.Nonce(ctx)
	ts.Check(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	spki, err := pki.SPKI(&key.PublicKey)
	ts.Check(err)
	sealing, err := api.NewHPKEKey()
	ts.Check(err)
	req := &api.CertificateRequest{Nonce: nonce, PublicKey: spki, HPKEKey: sealing.PublicKey().Bytes()}
	var pod attestation.PolicyHash
	for hash, p := range m.Policies {
		isWeb := slices.ContainsFunc(p.SANs, func(s pki.SAN) bool { return s.String() == "web-svc" })
		if p.Role == manifest.RoleNone && (!pod.Valid() || isWeb) {
			pod = hash
		}
	}
	req.Evidence, err = world.Machine(launched, pod).Issue(ctx, req.ReportData())
	ts.Check(err)
	ts.Check(req.Sign(key))
	resp, err := c.Certificate(ctx, *req)
	return resp, key, err
}

// serveWorkload serves HTTPS as the pod web-svc does behind its mesh proxy.
func serveWorkload(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: workload [mtls|plaintext]")
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "from the workload\n")
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	ts.Defer(server.Close)
	if len(args) == 1 && args[0] == "plaintext" {
		server.Start()
	} else {
		resp, key, err := certify(ts, measurement)
		ts.Check(err)
		server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: resp.Chain, PrivateKey: key}}}
		if len(args) == 1 {
			server.TLS.ClientAuth = tls.RequireAndVerifyClientCert
			server.TLS.ClientCAs = x509.NewCertPool()
		}
		server.StartTLS()
	}
	ts.Setenv("WORKLOAD", server.Listener.Addr().String())
}
