package coordinator_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/initializer"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/simtdx"
	"portcullis.dev/portcullis/tests/simtee"
)

// hardware is a platform whose evidence is real in all but the root: what its guests are, and who publishes for it.
type hardware struct {
	values  manifest.ReferenceValues
	roots   option
	trust   manifest.ValidatorOptions // as who verifies the Coordinator has it
	vendor  http.RoundTripper
	machine func(attestation.PolicyHash) attestation.Issuer
	// stranger is another image under the same policy; field is where it differs.
	stranger attestation.Issuer
	field    string
	// policyField is where the policy hash stands.
	policyField string
}

// newTDXWorld publishes everything where Intel does: the cache asks nowhere else.
var newTDXWorld = sync.OnceValues(func() (*simtdx.World, error) {
	urls, err := collateral.TDX(strings.Repeat("0", 12))
	if err != nil {
		return nil, err
	}
	ofTheRoot := slices.IndexFunc(urls, func(url string) bool { return strings.HasSuffix(url, ".der") })
	return simtdx.New(time.Now(), func(p *simtdx.Plan) { p.Root.CRLDistributionPoints = []string{urls[ofTheRoot]} })
})

func platforms(t *testing.T) map[string]hardware {
	t.Helper()
	amd := world(t)
	intel, err := newTDXWorld()
	if err != nil {
		t.Fatal(err)
	}
	onSNP := func(m simtee.Measurement, policy attestation.PolicyHash) attestation.Issuer {
		machine := amd.Machine(m, policy)
		machine.Platform = attestation.SNP
		return machine
	}
	otherTD := intel.Machine(webPolicy)
	otherTD.TD.MRTD[0] ^= 1
	roots := manifest.ValidatorOptions{SNPRoots: amd.Roots(), TDXRoots: []*x509.Certificate{intel.Root}}
	inject := func(c *coordinator.Config) { c.SNPRoots, c.TDXRoots = roots.SNPRoots, roots.TDXRoots }
	return map[string]hardware{
		"SNP": {
			values: manifest.ReferenceValues{SNP: []snp.ReferenceValue{amd.SNPReference(measurement)}},
			roots:  inject, trust: roots, vendor: amd.KDS(),
			machine:  func(p attestation.PolicyHash) attestation.Issuer { return onSNP(measurement, p) },
			stranger: onSNP(simtee.Measurement{9}, webPolicy), field: "MEASUREMENT", policyField: "HOST_DATA",
		},
		"TDX": {
			values: manifest.ReferenceValues{TDX: []tdx.ReferenceValue{intel.Machine(webPolicy).Reference()}},
			roots:  inject, trust: roots, vendor: intel,
			machine:  func(p attestation.PolicyHash) attestation.Issuer { return intel.Machine(p) },
			stranger: otherTD, field: "MRTD", policyField: "MRCONFIGID",
		},
	}
}

// network is the way to a vendor.
type network struct {
	vendor http.RoundTripper
	down   atomic.Bool
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	if n.down.Load() {
		return nil, errors.New("no route to host")
	}
	return n.vendor.RoundTrip(r)
}

// clock is one that a test turns.
type clock struct{ ahead atomic.Int64 }

func (c *clock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// startOn runs a Coordinator on a platform, which trusts no simulated TEE, with a manifest for the platform.
func startOn(t *testing.T, h hardware, n *network, c *clock) (*fixture, []byte) {
	t.Helper()
	cache, err := collateral.New(collateral.Config{Transport: n, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close() })
	f := start(t, h.roots, func(cfg *coordinator.Config) {
		cfg.AllowSimulatedTEE, cfg.Collateral, cfg.Issuer = false, cache, h.machine(coordPolicy)
	})
	text := newManifest(t, func(m *manifest.Manifest) { m.ReferenceValues = h.values })
	f.mustSet(t, text)
	return f, text
}

// newcomer is a running Initializer.
type newcomer struct {
	dir   string
	log   *netlab.Log
	stop  context.CancelFunc
	ended chan error
}

func (f *fixture) join(t *testing.T, issuer attestation.Issuer) *newcomer {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(stop)
	n := &newcomer{dir: t.TempDir(), log: &netlab.Log{}, stop: stop, ended: make(chan error, 1)}
	go func() {
		n.ended <- initializer.Run(ctx, initializer.Config{
			Dir: n.dir, Coordinator: f.Client, Issuer: func() (attestation.Issuer, error) { return issuer, nil },
			OpenGuard: func(context.Context) error { return nil }, Log: jsonLog(n.log),
		})
	}()
	return n
}

// says waits for a line of the Initializer's log.
func (n *newcomer) says(t *testing.T, message string) map[string]any {
	t.Helper()
	for len(n.log.Entries(message)) == 0 {
		select {
		case err := <-n.ended:
			t.Fatalf("the Initializer ended before it said %q: %v\n%s", message, err, n.log)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return last(t, n.log, message)
}

// credentials stops the Initializer and returns what it has stored, if anything.
func (n *newcomer) credentials(t *testing.T) *initializer.Credentials {
	t.Helper()
	n.stop()
	if err := <-n.ended; err != nil {
		t.Fatal(err)
	}
	got, err := initializer.Load(n.dir)
	if err != nil && !errors.Is(err, initializer.ErrNone) {
		t.Fatal(err)
	}
	return got
}

const (
	stored   = "stored mesh credentials"
	notYet   = "the Coordinator cannot issue a certificate yet"
	rejected = "the Coordinator rejected this pod"
)

func TestPodsOfHardwareJoin(t *testing.T) {
	for name, h := range platforms(t) {
		t.Run(name, func(t *testing.T) {
			f, text := startOn(t, h, &network{vendor: h.vendor}, &clock{})

			// Its owner knows it.
			nonce := random(t, api.NonceSize)
			attested, err := f.Attest(t.Context(), nonce)
			if err != nil {
				t.Fatal(err)
			}
			cache, err := collateral.New(collateral.Config{Transport: h.vendor})
			if err != nil {
				t.Fatal(err)
			}
			defer cache.Close()
			trust := h.trust
			trust.Collateral = cache
			v, err := api.VerifyCoordinator(t.Context(), attested, nonce, parse(t, text), trust)
			if err != nil {
				t.Fatal(err)
			}
			if v.Claims.PolicyHash != coordPolicy || string(v.Claims.Platform) != strings.ToLower(name) {
				t.Errorf("claims %+v", v.Claims)
			}
			if _, err := api.VerifyCoordinator(t.Context(), attested, nonce, parse(t, text), manifest.ValidatorOptions{}); !errors.Is(err, manifest.ErrNoCollateral) {
				t.Errorf("verified without collateral: %v", err)
			}

			n := f.join(t, h.machine(webPolicy))
			n.says(t, stored)
			got := n.credentials(t)
			claims, err := pki.Claims(got.Chain.Leaf)
			if err != nil || claims.PolicyHash != webPolicy || string(claims.Platform) != strings.ToLower(name) {
				t.Errorf("the certificate claims %+v, %v", claims, err)
			}
		})
	}
}

func TestAnotherImageOnTheSameHardwareIsRefused(t *testing.T) {
	for name, h := range platforms(t) {
		t.Run(name, func(t *testing.T) {
			f, _ := startOn(t, h, &network{vendor: h.vendor}, &clock{})
			n := f.join(t, h.stranger)
			n.says(t, rejected)
			if n.credentials(t) != nil {
				t.Fatal("it got credentials")
			}
			entry := last(t, f.log, "certificate refused")
			if entry["field"] != h.field || entry["claimedPolicyHash"] != webPolicy.String() {
				t.Errorf("log %v", entry)
			}
		})
	}
}

func TestPolicyThatIsNotInTheManifestIsRefusedOnHardwareToo(t *testing.T) {
	for name, h := range platforms(t) {
		t.Run(name, func(t *testing.T) {
			f, _ := startOn(t, h, &network{vendor: h.vendor}, &clock{})
			unknown := attestation.PolicyHash{0x99}
			n := f.join(t, h.machine(unknown))
			n.says(t, rejected)
			if n.credentials(t) != nil {
				t.Fatal("it got credentials")
			}
			entry := last(t, f.log, "certificate refused")
			if entry["field"] != h.policyField || entry["claimedPolicyHash"] != unknown.String() {
				t.Errorf("log %v", entry)
			}
		})
	}
}

// While the vendor is down, a pod is told to come back, not that it was refused; and it does come back.
func TestPodsWaitForTheVendor(t *testing.T) {
	for name, h := range platforms(t) {
		t.Run(name, func(t *testing.T) {
			n, c := &network{vendor: h.vendor}, &clock{}
			n.down.Store(true)
			f, _ := startOn(t, h, n, c)
			pod := f.join(t, h.machine(webPolicy))
			answer := pod.says(t, notYet)["answer"].(map[string]any)
			if answer["code"] != string(api.CodeUnavailable) || answer["status"] != float64(http.StatusServiceUnavailable) {
				t.Errorf("answer %v", answer)
			}
			if reason, _ := last(t, f.log, "certificate refused")["reason"].(string); !strings.Contains(reason, "is not available") {
				t.Errorf("reason %q", reason)
			}
			vendor := map[attestation.Platform]string{attestation.SNP: "amd", attestation.TDX: "intel"}[attestation.Platform(strings.ToLower(name))]
			if got := sample(t, f.scrape(t), "evidence_unavailable_total", "vendor", vendor); got < 1 {
				t.Errorf("the vendor %s was not available %v times", vendor, got)
			}

			n.down.Store(false)
			c.ahead.Store(int64(time.Hour)) // the time that a vendor is left alone is over
			pod.says(t, stored)

			n.down.Store(true) // what was fetched will do
			f.join(t, h.machine(webPolicy)).says(t, stored)
		})
	}
}

func TestManifestOfHardwareNeedsCollateral(t *testing.T) {
	for name, h := range platforms(t) {
		f := start(t, h.roots, func(cfg *coordinator.Config) { cfg.Issuer = h.machine(coordPolicy) })
		_, err := f.set(t, newManifest(t, func(m *manifest.Manifest) { m.ReferenceValues = h.values }))
		refused := wantCode(t, err, api.CodeBadManifest)
		if len(refused.Faults) != 1 || !strings.Contains(refused.Faults[0], "cannot ask the vendors") {
			t.Errorf("%s: faults %q", name, refused.Faults)
		}
	}
}

// Without a test's roots, only the vendors' own count.
func TestPretendedHardwareIsRefusedUnderTheVendorsRoots(t *testing.T) {
	for name, h := range platforms(t) {
		t.Run(name, func(t *testing.T) {
			h.roots = func(*coordinator.Config) {}
			f, _ := startOn(t, h, &network{vendor: h.vendor}, &clock{})
			f.join(t, h.machine(webPolicy)).says(t, rejected)
			if field, _ := last(t, f.log, "certificate refused")["field"].(string); !strings.HasPrefix(field, "CHAIN") {
				t.Errorf("field %q", field)
			}
		})
	}
}
