package collateral_test

import (
	"crypto/x509"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/tests/simtdx"
	"portcullis.dev/portcullis/tests/simtee"
)

// An outage is the way to a vendor, which may be cut.
type outage struct {
	vendor http.RoundTripper
	cut    atomic.Bool
	asked  atomic.Int64
}

func (o *outage) RoundTrip(r *http.Request) (*http.Response, error) {
	if o.cut.Load() {
		return nil, errors.New("the network is unreachable")
	}
	o.asked.Add(1)
	return o.vendor.RoundTrip(r)
}

// A platform is a pretended vendor, a machine of its, and a validator that believes both.
type platform struct {
	vendor    http.RoundTripper
	machine   attestation.Issuer
	validator func(attestation.Getter, func() time.Time) (attestation.Validator, error)
	documents int64 // that a validation needs
}

func platforms(t *testing.T) map[string]platform {
	t.Helper()
	amd, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	snpMachine := amd.Machine(simtee.Measurement{1}, [32]byte{1})
	snpMachine.Platform = attestation.SNP
	snpMachine.Corrupt = func(e *attestation.Evidence) { e.Certificates = nil } // all of it is AMD's to give
	urls, err := collateral.TDX("000000000000")
	if err != nil {
		t.Fatal(err)
	}
	intel, err := simtdx.New(time.Now(), func(p *simtdx.Plan) {
		p.Root.CRLDistributionPoints = urls[len(urls)-1:] // where Intel's is
	})
	if err != nil {
		t.Fatal(err)
	}
	tdxMachine := intel.Machine(attestation.PolicyHash{1})
	return map[string]platform{
		"SNP": {amd.KDS(), snpMachine, func(g attestation.Getter, now func() time.Time) (attestation.Validator, error) {
			return snp.NewValidator([]snp.ReferenceValue{amd.SNPReference(simtee.Measurement{1})},
				snp.Options{Collateral: g, Roots: amd.Roots(), Now: now})
		}, 3},
		"TDX": {intel, tdxMachine, func(g attestation.Getter, now func() time.Time) (attestation.Validator, error) {
			return tdx.NewValidator([]tdx.ReferenceValue{tdxMachine.Reference()},
				tdx.Options{Collateral: g, Roots: []*x509.Certificate{intel.Root}, Now: now})
		}, 4},
	}
}

// Validators judge through the cache: each document is fetched once, and an outage is bridged until NextUpdate.
func TestValidatorsBridgeAnOutage(t *testing.T) {
	for name, p := range platforms(t) {
		t.Run(name, func(t *testing.T) {
			way := &outage{vendor: p.vendor}
			var ahead atomic.Int64
			now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
			c, err := collateral.New(collateral.Config{Transport: way, Now: now})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			validator, err := p.validator(c, now)
			if err != nil {
				t.Fatal(err)
			}
			data := attestation.NewReportData("test")
			e, err := p.machine.Issue(t.Context(), data)
			if err != nil {
				t.Fatal(err)
			}
			judge := func() error {
				_, err := validator.Validate(t.Context(), e, data)
				return err
			}

			var all sync.WaitGroup
			for range 200 {
				all.Go(func() {
					if err := judge(); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if n := way.asked.Load(); n != p.documents {
				t.Errorf("200 validations took %d requests, want %d", n, p.documents)
			}
			way.cut.Store(true)
			ahead.Store(int64(20 * time.Hour))
			if err := judge(); err != nil {
				t.Errorf("in an outage: %v", err)
			}
			ahead.Store(int64(100 * 24 * time.Hour))
			if _, ok := errors.AsType[*attestation.Unavailable](judge()); !ok {
				t.Errorf("in an outage, after NextUpdate: %v, want Unavailable", judge())
			}
		})
	}
}
