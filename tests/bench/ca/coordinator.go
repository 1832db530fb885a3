package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/simtee"
)

// serveWord makes this program a Coordinator: what the command is, but for a root of hardware that is a test's, and the guard.
const serveWord = "serve"

var (
	image       = simtee.Measurement{1}
	coordPolicy = attestation.PolicyHash{0xc0}
	podPolicy   = attestation.PolicyHash{0x10}
)

func serve(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("ca serve", flag.ContinueOnError)
	listen := flags.String("listen", "", "")
	db := flags.String("db", "", "")
	platform := flags.String("platform", "", "")
	profile := flags.String("cpuprofile", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		return err
	}
	s, err := store.OpenBolt(*db)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	cache, err := collateral.New(collateral.Config{Transport: world.KDS(), Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cache.Close()) }()
	machine := world.Machine(image, coordPolicy)
	machine.Platform = attestation.Platform(*platform)
	c, err := coordinator.New(ctx, coordinator.Config{
		Store: s, Issuer: machine, AllowSimulatedTEE: true, Collateral: cache, SNPRoots: world.Roots(), Log: log,
	})
	if err != nil {
		return err
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	return c.Serve(ctx, listener)
}

// coordinators are the Coordinator on each kind of evidence.
func coordinators(profile string) ([]*authority, error) {
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		return nil, err
	}
	var all []*authority
	for _, kind := range []struct {
		name     string
		platform attestation.Platform
		secret   manifest.SecretID
	}{
		{"Coordinator, SEV-SNP", attestation.SNP, ""},
		{"Coordinator, SEV-SNP, workload secret", attestation.SNP, "bench/secret"},
		{"Coordinator, simulated TEE", attestation.Simulated, ""},
	} {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		text, err := meshOf(world, kind.platform, kind.secret)
		if err != nil {
			return nil, err
		}
		machine := world.Machine(image, podPolicy)
		machine.Platform = kind.platform
		pods := &pods{machine: machine, url: "http://" + address, http: client(nil), secret: kind.secret != ""}
		args := []string{serveWord, "--listen", address, "--platform", string(kind.platform)}
		if profile != "" && len(all) == 0 {
			args = append(args, "--cpuprofile", profile)
		}
		all = append(all, &authority{
			name: kind.name,
			start: func(dir string) (*exec.Cmd, error) {
				cmd := exec.Command(self, append(args, "--db", filepath.Join(dir, "coordinator.db"))...)
				cmd.Env = append(os.Environ(), "GOGC=400", "GOMEMLIMIT=192MiB") // as the command has it
				return cmd, nil
			},
			ready: func() error { return pods.set(text) },
			turn:  pods.turn,
		})
	}
	return all, nil
}

// meshOf is a manifest with one kind of pod.
func meshOf(world *simtee.World, platform attestation.Platform, secret manifest.SecretID) ([]byte, error) {
	san, err := pki.ParseSAN("w.example.org")
	if err != nil {
		return nil, err
	}
	m := manifest.Manifest{Policies: map[attestation.PolicyHash]manifest.Policy{
		coordPolicy: {Role: manifest.RoleCoordinator},
		podPolicy:   {SANs: []pki.SAN{san}, WorkloadSecretID: secret},
	}}
	if platform == attestation.SNP {
		m.ReferenceValues.SNP = []snp.ReferenceValue{world.SNPReference(image)}
	} else {
		m.ReferenceValues.Simulated = []simulated.ReferenceValue{world.Reference(image)}
	}
	return m.Encode()
}

// pods ask for certificates, each as an Initializer does at its first start.
type pods struct {
	machine *simtee.Machine
	url     string
	http    *http.Client
	secret  bool
}

func (p *pods) set(text []byte) error {
	return p.post(context.Background(), api.PathManifest, marshal(api.SetRequest{Manifest: text, Previous: make([]byte, 32)}), nil)
}

// pod is one of them, on its way to a certificate.
type pod struct {
	nonce   []byte
	key     *ecdsa.PrivateKey
	request api.CertificateRequest
	body    []byte
	answer  []byte
}

func (p *pods) turn(n int) []stage {
	all := make([]pod, n)
	return []stage{
		{measured: true, do: func(ctx context.Context, i int) error {
			var answer api.NonceResponse
			err := p.post(ctx, api.PathNonce, []byte("{}"), &answer)
			all[i].nonce = answer.Nonce
			return err
		}},
		{do: func(ctx context.Context, i int) error { return p.prepare(ctx, &all[i]) }},
		{measured: true, do: func(ctx context.Context, i int) (err error) {
			all[i].answer, err = send(ctx, p.http, p.url+api.PathCertificate, "application/json", all[i].body)
			return err
		}},
		{do: func(_ context.Context, i int) error { return p.check(&all[i]) }},
	}
}

func (p *pods) prepare(ctx context.Context, pod *pod) (err error) {
	if pod.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	hpkeKey, err := api.NewHPKEKey()
	if err != nil {
		return err
	}
	r := &pod.request
	r.Nonce, r.HPKEKey = pod.nonce, hpkeKey.PublicKey().Bytes()
	if r.PublicKey, err = pki.SPKI(&pod.key.PublicKey); err != nil {
		return err
	}
	if r.Evidence, err = p.machine.Issue(ctx, r.ReportData()); err != nil {
		return err
	}
	if err := r.Sign(pod.key); err != nil {
		return err
	}
	pod.body = marshal(r)
	return nil
}

func (p *pods) check(pod *pod) error {
	var answer api.CertificateResponse
	if err := json.Unmarshal(pod.answer, &answer); err != nil {
		return err
	}
	if p.secret != (len(answer.WorkloadSecret) > 0) {
		return errors.New("a workload secret is there and should not be, or the other way round")
	}
	chain, err := pki.ParseChain(answer.Chain, answer.MeshCA, answer.RootCA)
	if err != nil {
		return err
	}
	return chain.Verify(&pod.key.PublicKey, time.Now())
}

func (p *pods) post(ctx context.Context, path string, body []byte, into any) error {
	answer, err := send(ctx, p.http, p.url+path, "application/json", body)
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(answer, into)
}

// client is an HTTP client whose connections are as many as its callers, and stay.
func client(transport *http.Transport) *http.Client {
	if transport == nil {
		transport = &http.Transport{}
	}
	transport.MaxIdleConnsPerHost, transport.MaxConnsPerHost = concurrency, concurrency
	transport.IdleConnTimeout = 5 * time.Second // below what the servers have: between two turns they may hang up
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

func send(ctx context.Context, c *http.Client, url, contentType string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s answers %s: %.300s", url, resp.Status, answer)
	}
	return answer, err
}

func marshal(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // none of the types here can fail
	}
	return text
}

// freeAddress is one on loopback that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
