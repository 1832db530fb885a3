package sevsnp_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/sevsnp"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/tests/simtee"
)

var (
	image  = simtee.Measurement{1}
	policy = attestation.PolicyHash{2}
	data   = attestation.NewReportData("test", []byte("nonce"))
)

// known is a chip whose chain a validator remembers, and a clock that a test turns.
type known struct {
	*sevsnp.Validator
	world *simtee.World
	ahead atomic.Int64
}

func rememberedChip(t *testing.T) *known {
	t.Helper()
	k := &known{world: newWorld(t, simtee.PublishedKeys(), nil)}
	v, err := snp.NewValidator([]snp.ReferenceValue{k.world.SNPReference(image)}, snp.Options{
		Collateral: k.world.KDS(), Roots: k.world.Roots(),
		Now: func() time.Time { return time.Now().Add(time.Duration(k.ahead.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	k.Validator = v.(*sevsnp.Validator)
	for range 2 { // the second one is judged by what is remembered of the first
		k.want(t, k.machine(), "")
	}
	if n := k.Remembered(); n != 1 {
		t.Fatalf("%d chains are remembered, want 1", n)
	}
	return k
}

func newWorld(t *testing.T, keys simtee.Keys, alter func(*simtee.Certificates)) *simtee.World {
	t.Helper()
	w, err := simtee.NewProduct("Milan", keys, alter)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (k *known) machine() *simtee.Machine {
	m := k.world.Machine(image, policy)
	m.Platform = attestation.SNP
	return m
}

// want validates a machine's evidence and wants field rejected, or nothing.
func (k *known) want(t *testing.T, m *simtee.Machine, field string) {
	t.Helper()
	e, err := m.Issue(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	wantField(t, k.Validator, e, field)
}

func wantField(t *testing.T, v attestation.Validator, e attestation.Evidence, field string) {
	t.Helper()
	_, err := v.Validate(t.Context(), e, data)
	if field == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	if r, ok := errors.AsType[*attestation.Rejected](err); !ok || r.Field != field {
		t.Errorf("got %v, want %s rejected", err, field)
	}
}

func TestARememberedChainEndsWithItsCertificates(t *testing.T) {
	k := rememberedChip(t)
	for _, tc := range []struct {
		name  string
		at    time.Time
		field string
	}{
		{"the VCEK's last second", k.world.VCEK.NotAfter.Add(-time.Second), "unavailable"},
		{"after the VCEK", k.world.VCEK.NotAfter.Add(time.Hour), "CHAIN.VCEK"},
		{"before all of them", k.world.VCEK.NotBefore.Add(-time.Hour), "CHAIN.ASK"},
		{"after all of them", k.world.ARK.NotAfter.Add(time.Hour), "CHAIN.ASK"},
	} {
		k.ahead.Store(int64(time.Until(tc.at)))
		e, err := k.machine().Issue(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.Validate(t.Context(), e, data)
		if tc.field == "unavailable" { // the revocation list ended long before
			if _, ok := errors.AsType[*attestation.Unavailable](err); !ok {
				t.Errorf("%s: got %v, want the revocation list to be missing", tc.name, err)
			}
			continue
		}
		if r, ok := errors.AsType[*attestation.Rejected](err); !ok || r.Field != tc.field {
			t.Errorf("%s: got %v, want %s rejected", tc.name, err, tc.field)
		}
	}
	k.ahead.Store(0)
	k.want(t, k.machine(), "")
}

func TestARememberedChainVouchesForNothingElse(t *testing.T) {
	stranger, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		spoil func(*testing.T, *known, *simtee.Machine)
		field string
	}{
		{"the signature changed", func(_ *testing.T, _ *known, m *simtee.Machine) {
			m.Corrupt = func(e *attestation.Evidence) { e.Report[0x2a0] ^= 1 }
		}, "SIGNATURE"},
		{"a field changed after it was signed", func(_ *testing.T, _ *known, m *simtee.Machine) {
			m.Corrupt = func(e *attestation.Evidence) { e.Report[0xc0] ^= 1 } // HOST_DATA
		}, "SIGNATURE"},
		{"another key signed", func(_ *testing.T, _ *known, m *simtee.Machine) {
			m.Corrupt = func(e *attestation.Evidence) {
				digest := sha512.Sum384(abi.SignedComponent(e.Report))
				r, s, err := ecdsa.Sign(rand.Reader, stranger, digest[:])
				if err == nil {
					err = abi.SetSignature(r, s, e.Report)
				}
				if err != nil {
					panic(err)
				}
			}
		}, "SIGNATURE"},
		{"a certificate of another key, signed by another ASK", func(t *testing.T, _ *known, m *simtee.Machine) {
			keys := simtee.PublishedKeys()
			keys.ASK, keys.VCEK = keys.ASVK, stranger
			forged := newWorld(t, keys, nil)
			m.World = &simtee.World{Product: "Milan", Keys: keys, Certificates: forged.Certificates}
			m.World.ASK = newWorld(t, simtee.PublishedKeys(), nil).ASK // the genuine one did not sign it
		}, "CHAIN.VCEK"},
		{"the VCEK's last bit", func(_ *testing.T, k *known, m *simtee.Machine) {
			m.Corrupt = func(e *attestation.Evidence) {
				at := bytes.Index(e.Certificates, k.world.VCEK.Raw) + len(k.world.VCEK.Raw) - 1
				e.Certificates[at] ^= 1
			}
		}, "CHAIN.VCEK"},
		{"the ASK's last bit", func(_ *testing.T, k *known, m *simtee.Machine) {
			m.Corrupt = func(e *attestation.Evidence) {
				at := bytes.Index(e.Certificates, k.world.ASK.Raw) + len(k.world.ASK.Raw) - 1
				e.Certificates[at] ^= 1
			}
		}, "CHAIN.ASK"},
		{"another chip", func(_ *testing.T, _ *known, m *simtee.Machine) {
			m.Alter = func(r *spb.Report) { r.ChipId[0] ^= 1 }
		}, "CHIP_ID"},
		{"another TCB", func(_ *testing.T, _ *known, m *simtee.Machine) {
			m.Alter = func(r *spb.Report) { r.ReportedTcb-- }
		}, "REPORTED_TCB"},
		{"another product", func(_ *testing.T, _ *known, m *simtee.Machine) {
			m.Alter = func(r *spb.Report) { r.Cpuid1EaxFms = abi.FmsToCpuid1Eax(0x19, 0x11, 0x01) }
		}, "CPUID_FAM_ID"},
		{"another image", func(_ *testing.T, _ *known, m *simtee.Machine) { m.Measurement[0] ^= 1 }, "MEASUREMENT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := rememberedChip(t)
			m := k.machine()
			tc.spoil(t, k, m)
			k.want(t, m, tc.field)
			if n := k.Remembered(); n != 1 {
				t.Errorf("%d chains are remembered after a refusal, want 1", n)
			}
			k.want(t, k.machine(), "")
		})
	}
}

// Who revokes an ASK need not change the list's place or wait for a restart: the list is asked for each time.
func TestARememberedChainCanBeRevoked(t *testing.T) {
	w := newWorld(t, simtee.PublishedKeys(), nil)
	var revoked atomic.Bool
	before, after := w.KDS(), w.KDS()
	after.Alter = func(l *x509.RevocationList) {
		l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: w.ASK.SerialNumber, RevocationTime: time.Now()}}
	}
	v, err := snp.NewValidator([]snp.ReferenceValue{w.SNPReference(image)}, snp.Options{
		Roots: w.Roots(), Collateral: getter(func(ctx context.Context, url string) (http.Header, []byte, error) {
			if revoked.Load() {
				return after.Get(ctx, url)
			}
			return before.Get(ctx, url)
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	k := &known{Validator: v.(*sevsnp.Validator), world: w}
	k.want(t, k.machine(), "")
	k.want(t, k.machine(), "")
	revoked.Store(true)
	k.want(t, k.machine(), "CHAIN.ASK")
	revoked.Store(false)
	k.want(t, k.machine(), "")
}

type getter func(context.Context, string) (http.Header, []byte, error)

func (g getter) Get(ctx context.Context, url string) (http.Header, []byte, error) { return g(ctx, url) }

// Two roots, each with an image of its own: what is remembered under one says nothing under the other.
func TestARememberedChainCountsForItsRootAlone(t *testing.T) {
	ours := newWorld(t, simtee.PublishedKeys(), nil)
	keys := simtee.PublishedKeys()
	keys.ARK, keys.ASVK = keys.ASVK, keys.ARK // another root that certified nothing of ours
	theirs := newWorld(t, keys, nil)
	other := simtee.Measurement{7}
	v, err := simulated.NewValidator([]simulated.ReferenceValue{ours.Reference(image), theirs.Reference(other)})
	if err != nil {
		t.Fatal(err)
	}
	issue := func(m simtee.Measurement) attestation.Evidence {
		e, err := ours.Machine(m, policy).Issue(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	wantRefused := func() {
		t.Helper()
		if _, err := v.Validate(t.Context(), issue(other), data); err == nil {
			t.Error("an image that only the other root's reference value admits was accepted")
		}
	}
	wantRefused()
	wantField(t, v, issue(image), "")
	wantRefused()
	wantField(t, v, issue(image), "")
}

func TestChainsOfStrangersAreNotRemembered(t *testing.T) {
	w := newWorld(t, simtee.PublishedKeys(), nil)
	for name, spoil := range map[string]func(*simtee.Machine, *simtee.KDS){
		"another image": func(m *simtee.Machine, _ *simtee.KDS) { m.Measurement[0] ^= 1 },
		"a revoked ASK": func(_ *simtee.Machine, k *simtee.KDS) {
			k.Alter = func(l *x509.RevocationList) {
				l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: w.ASK.SerialNumber, RevocationTime: time.Now()}}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, lists := w.Machine(image, policy), w.KDS()
			m.Platform = attestation.SNP
			spoil(m, lists)
			v, err := snp.NewValidator([]snp.ReferenceValue{w.SNPReference(image)},
				snp.Options{Collateral: lists, Roots: w.Roots()})
			if err != nil {
				t.Fatal(err)
			}
			e, err := m.Issue(t.Context(), data)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := v.Validate(t.Context(), e, data); err == nil {
				t.Fatal("accepted")
			}
			if n := v.(*sevsnp.Validator).Remembered(); n != 0 {
				t.Errorf("%d chains are remembered, want none", n)
			}
		})
	}
}
