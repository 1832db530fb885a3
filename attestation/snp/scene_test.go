package snp_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/tests/simtee"
)

var (
	measurement = simtee.Measurement(bytes.Repeat([]byte{0xa5}, 48))
	hostData    = [32]byte(bytes.Repeat([]byte{0x17}, 32))
	reportData  = attestation.NewReportData("test", []byte("nonce"))
)

// worlds are the genuine ones, by product.
var worlds = map[string]func() *simtee.World{
	"Milan": sync.OnceValue(func() *simtee.World { return must(simtee.NewProduct("Milan", simtee.PublishedKeys(), nil)) }),
	"Genoa": sync.OnceValue(func() *simtee.World { return must(simtee.NewProduct("Genoa", simtee.PublishedKeys(), nil)) }),
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// scene is everything that a validation depends on, all of it genuine until a test spoils one thing.
type scene struct {
	machine   *simtee.Machine
	kds       *simtee.KDS
	reference snp.ReferenceValue
	roots     map[string]*x509.Certificate
	now       func() time.Time
	expect    attestation.ReportData
}

// set makes a scene of a chip and its VCEK.
func set(product string) *scene {
	w := worlds[product]()
	m := w.Machine(measurement, hostData)
	m.Platform = attestation.SNP
	return &scene{
		machine: m, kds: w.KDS(), reference: w.SNPReference(measurement), roots: w.Roots(), now: time.Now, expect: reportData,
	}
}

// cloud lets the cloud's key sign.
func (s *scene) cloud() *scene {
	s.machine.SignedBy = abi.VlekReportSigner
	s.reference.SigningKey = "VLEK"
	return s
}

// alter changes the report before it is signed.
func (s *scene) alter(alter func(*spb.Report)) { s.machine.Alter = alter }

// corrupt changes the evidence after it was signed.
func (s *scene) corrupt(corrupt func(*attestation.Evidence)) { s.machine.Corrupt = corrupt }

// without leaves the certificate table out, as many hosts do.
func (s *scene) without() *scene {
	s.corrupt(func(e *attestation.Evidence) { e.Certificates = nil })
	return s
}

// certify gives the machine certificates of the same keys but for what alter changes. The root stays the genuine one.
func (s *scene) certify(alter func(*simtee.Certificates)) {
	s.machine.World = must(simtee.NewProduct(s.machine.World.Product, simtee.PublishedKeys(), alter))
}

// revoke puts serial numbers into the revocation list.
func (s *scene) revoke(certificates ...*x509.Certificate) {
	s.kds.Alter = func(list *x509.RevocationList) {
		for _, c := range certificates {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
		}
	}
}

func (s *scene) validator(t testing.TB) attestation.Validator {
	t.Helper()
	v, err := snp.NewValidator([]snp.ReferenceValue{s.reference}, snp.Options{Collateral: s.kds, Roots: s.roots, Now: s.now})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (s *scene) issue(t testing.TB) attestation.Evidence {
	t.Helper()
	e, err := s.machine.Issue(context.Background(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// chip is the CHIP_ID as a reference value has it.
func (s *scene) chip(t testing.TB) string {
	t.Helper()
	return hex.EncodeToString(must(abi.ReportToProto(s.issue(t).Report)).GetChipId())
}

func (s *scene) accepted(t testing.TB) attestation.Claims {
	t.Helper()
	claims, err := s.validator(t).Validate(t.Context(), s.issue(t), s.expect)
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

// refused wants a rejection that names field, or "unavailable: " and what is.
func (s *scene) refused(t testing.TB, want string) {
	t.Helper()
	claims, err := s.validator(t).Validate(t.Context(), s.issue(t), s.expect)
	if claims.PolicyHash.Valid() || claims.SNP != nil {
		t.Errorf("the claims of refused evidence are %+v, want none", claims)
	}
	if what, ok := strings.CutPrefix(want, "unavailable: "); ok {
		if u, ok := errors.AsType[*attestation.Unavailable](err); !ok || u.What != what || u.Err == nil {
			t.Errorf("got %v, want %s unavailable", err, what)
		}
		return
	}
	r, ok := errors.AsType[*attestation.Rejected](err)
	if !ok || r.Field != want {
		t.Errorf("got %v, want %s rejected", err, want)
		return
	}
	if r.Want == "" || r.Got == "" || strings.Contains(r.Got, "panic") {
		t.Errorf("the rejection %+v does not say what was wanted and got", r)
	}
}

// getter is a Getter that looks at nothing but the URL.
type getter func(url string) ([]byte, error)

func (g getter) Get(_ context.Context, url string) (http.Header, []byte, error) {
	body, err := g(url)
	if err != nil {
		return nil, nil, &attestation.Unavailable{What: url, Err: err}
	}
	return http.Header{}, body, nil
}
