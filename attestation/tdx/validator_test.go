package tdx_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/pcs"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/tests/simtdx"
)

var (
	now        = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	policy     = attestation.PolicyHash(bytes.Repeat([]byte{0x17}, 32))
	reportData = attestation.NewReportData("test", []byte("nonce"))
)

func world(t testing.TB, alterations ...func(*simtdx.Plan)) *simtdx.World {
	t.Helper()
	w, err := simtdx.New(now, alterations...)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func options(w *simtdx.World) tdx.Options {
	return tdx.Options{Collateral: w, Roots: []*x509.Certificate{w.Root}, Now: func() time.Time { return now }}
}

func validator(t testing.TB, o tdx.Options, references ...tdx.ReferenceValue) attestation.Validator {
	t.Helper()
	v, err := tdx.NewValidator(references, o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func issue(t testing.TB, m *simtdx.Machine) attestation.Evidence {
	t.Helper()
	e, err := m.Issue(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// wantRejected wants a rejection that names field, and no claims.
func wantRejected(t testing.TB, field string, claims attestation.Claims, err error) {
	t.Helper()
	var r *attestation.Rejected
	if !errors.As(err, &r) {
		t.Fatalf("got %v, want a rejection of %s", err, field)
	}
	if r.Field != field || r.Want == "" || r.Got == "" {
		t.Errorf("got %q, want a rejection of %s", err, field)
	}
	wantNoClaims(t, claims)
}

// wantUnavailable wants an Unavailable that names what.
func wantUnavailable(t testing.TB, what string, claims attestation.Claims, err error) {
	t.Helper()
	var u *attestation.Unavailable
	if !errors.As(err, &u) {
		t.Fatalf("got %v, want an Unavailable of %s", err, what)
	}
	if !strings.Contains(u.What, what) || u.Err == nil {
		t.Errorf("got %q, want an Unavailable of %s", err, what)
	}
	wantNoClaims(t, claims)
}

func wantNoClaims(t testing.TB, claims attestation.Claims) {
	t.Helper()
	if claims.Platform != "" || claims.PolicyHash.Valid() || claims.Measurement != nil || claims.TDX != nil {
		t.Errorf("claims of refused evidence: %+v", claims)
	}
}

func TestGoodEvidence(t *testing.T) {
	w := world(t)
	m := w.Machine(policy)
	claims, err := validator(t, options(w), m.Reference()).Validate(t.Context(), issue(t, m), reportData)
	if err != nil {
		t.Fatal(err)
	}
	if claims.Platform != attestation.TDX || claims.PolicyHash != policy || !bytes.Equal(claims.Measurement, m.TD.MRTD[:]) ||
		claims.SNP != nil || claims.TDX == nil {
		t.Fatalf("claims %+v", claims)
	}
	c := claims.TDX
	if !bytes.Equal(c.MRSEAM, m.TD.MRSEAM[:]) || hex.EncodeToString(c.FMSPC) != "50806f000000" ||
		c.PlatformTCBStatus != "UpToDate" || c.ModuleTCBStatus != "UpToDate" || c.QETCBStatus != "UpToDate" ||
		len(c.Advisories) != 0 {
		t.Errorf("claims %+v", c)
	}
	for i := range c.RTMRs {
		if !bytes.Equal(c.RTMRs[i], m.TD.RTMRs[i][:]) {
			t.Errorf("RTMR%d %x", i, c.RTMRs[i])
		}
	}
}

// wrong makes exactly one thing wrong. All hooks may be nil.
type wrong struct {
	name        string
	plan        func(*simtdx.Plan)
	world       func(t *testing.T, w *simtdx.World)
	machine     func(t *testing.T, m *simtdx.Machine)
	reference   func(*tdx.ReferenceValue)
	field       string // of the rejection, or
	unavailable string
}

func alter(f func(*simtdx.Quote)) func(*testing.T, *simtdx.Machine) {
	return func(_ *testing.T, m *simtdx.Machine) { m.Alter = f }
}

func spoil(f func(*simtdx.Quote)) func(*testing.T, *simtdx.Machine) {
	return func(_ *testing.T, m *simtdx.Machine) { m.Spoil = f }
}

func corrupt(f func(*attestation.Evidence)) func(*testing.T, *simtdx.Machine) {
	return func(_ *testing.T, m *simtdx.Machine) { m.Corrupt = f }
}

func chain(f func(t *testing.T, w *simtdx.World) []byte) func(*testing.T, *simtdx.Machine) {
	return func(t *testing.T, m *simtdx.Machine) {
		m.Spoil = func(q *simtdx.Quote) { q.Chain = f(t, m.World) }
	}
}

// answer changes one answer of the world.
func answer(
	url func(*simtdx.World) string, f func(t *testing.T, w *simtdx.World, a *simtdx.Answer),
) func(*testing.T, *simtdx.World) {
	return func(t *testing.T, w *simtdx.World) {
		a, ok := w.Answers[url(w)]
		if !ok {
			t.Fatal("no such answer")
		}
		a.Header = a.Header.Clone()
		f(t, w, &a)
		w.Answers[url(w)] = a
	}
}

func tcbInfo(f func(*testing.T, *simtdx.World, *simtdx.Answer)) func(*testing.T, *simtdx.World) {
	return answer((*simtdx.World).TCBInfoURL, f)
}

func qeIdentity(f func(*testing.T, *simtdx.World, *simtdx.Answer)) func(*testing.T, *simtdx.World) {
	return answer((*simtdx.World).QEIdentityURL, f)
}

func pckCRL(f func(*testing.T, *simtdx.World, *simtdx.Answer)) func(*testing.T, *simtdx.World) {
	return answer((*simtdx.World).PCKCRLURL, f)
}

func rootCRL(f func(*testing.T, *simtdx.World, *simtdx.Answer)) func(*testing.T, *simtdx.World) {
	return answer((*simtdx.World).RootCRLURL, f)
}

func replace(old, changed string) func(*testing.T, *simtdx.World, *simtdx.Answer) {
	return func(t *testing.T, _ *simtdx.World, a *simtdx.Answer) {
		if !bytes.Contains(a.Body, []byte(old)) {
			t.Fatalf("no %q in the answer", old)
		}
		a.Body = bytes.Replace(a.Body, []byte(old), []byte(changed), 1)
	}
}

func garbage(_ *testing.T, _ *simtdx.World, a *simtdx.Answer) { a.Body = []byte("no") }

// sibling is a world with the same keys as w.
func sibling(t *testing.T, w *simtdx.World, alterations ...func(*simtdx.Plan)) *simtdx.World {
	t.Helper()
	return world(t, append([]func(*simtdx.Plan){func(p *simtdx.Plan) { p.Keys = w.Plan.Keys }}, alterations...)...)
}

// signer puts another certificate of the TCB signer's key before an answer.
func signer(header string, f func(*simtdx.Plan)) func(*testing.T, *simtdx.World, *simtdx.Answer) {
	return func(t *testing.T, w *simtdx.World, a *simtdx.Answer) {
		a.Header.Set(header, w.IssuerChain(sibling(t, w, f).Signer, w.Root))
	}
}

// unsigned takes the signature out of an answer.
func unsigned(_ *testing.T, _ *simtdx.World, a *simtdx.Answer) {
	at := bytes.Index(a.Body, []byte(`"signature":"`))
	a.Body = append(a.Body[:at:at], `"signature":""}`...)
}

// strangers gives the answer of another Intel.
func strangers(url func(*simtdx.World) string) func(*testing.T, *simtdx.World) {
	return answer(url, func(t *testing.T, _ *simtdx.World, a *simtdx.Answer) {
		stranger := world(t)
		*a = stranger.Answers[url(stranger)]
	})
}

func revoked(serial *big.Int) x509.RevocationListEntry {
	return x509.RevocationListEntry{SerialNumber: serial, RevocationTime: now.Add(-time.Hour)}
}

func newKey(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return key, public[1:]
}

func unknownExtension() pkix.Extension {
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}
}

func p384(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestEveryFieldIsChecked(t *testing.T) {
	p384 := p384(t)
	one := 1
	for _, tc := range []wrong{
		// The evidence around the quote.
		{name: "other platform", machine: corrupt(func(e *attestation.Evidence) {
			e.Platform = attestation.SNP
		}), field: "PLATFORM"},
		{name: "no platform", machine: corrupt(func(e *attestation.Evidence) { e.Platform = "" }), field: "PLATFORM"},
		{name: "certificates", machine: corrupt(func(e *attestation.Evidence) {
			e.Certificates = []byte{0}
		}), field: "CERTIFICATES"},
		{name: "no report", machine: corrupt(func(e *attestation.Evidence) { e.Report = nil }), field: "REPORT"},
		{name: "huge report", machine: corrupt(func(e *attestation.Evidence) {
			e.Report = append(e.Report, make([]byte, 128<<10)...)
		}), field: "REPORT"},
		{name: "something behind the quote", machine: corrupt(func(e *attestation.Evidence) {
			e.Report = append(e.Report, 1)
		}), field: "REPORT"},

		// The header.
		{name: "version 3", machine: alter(func(q *simtdx.Quote) { q.Header.Version = 3 }), field: "VERSION"},
		{name: "version 5", machine: alter(func(q *simtdx.Quote) { q.Header.Version = 5 }), field: "VERSION"},
		{name: "key type", machine: alter(func(q *simtdx.Quote) { q.Header.AttestationKeyType = 3 }), field: "ATTESTATION_KEY_TYPE"},
		{name: "SGX", machine: alter(func(q *simtdx.Quote) { q.Header.TEEType = 0 }), field: "TEE_TYPE"},
		{name: "QE vendor", machine: alter(func(q *simtdx.Quote) { q.Header.QEVendorID[3] ^= 1 }), field: "QE_VENDOR_ID"},
		{name: "reserved bytes changed", machine: spoil(func(q *simtdx.Quote) { q.Header.Reserved[0] ^= 1 }), field: "SIGNATURE"},
		{name: "user data changed", machine: spoil(func(q *simtdx.Quote) { q.Header.UserData[0] ^= 1 }), field: "SIGNATURE"},

		// The TD report.
		{name: "report data", machine: alter(func(q *simtdx.Quote) { q.TD.ReportData[63] ^= 1 }), field: "REPORTDATA"},
		{name: "debug", machine: alter(func(q *simtdx.Quote) { q.TD.TDAttributes |= 1 }), field: "TDATTRIBUTES.DEBUG"},
		{name: "migratable", machine: alter(func(q *simtdx.Quote) {
			q.TD.TDAttributes |= 1 << 29
		}), field: "TDATTRIBUTES.MIGRATABLE"},
		{name: "SEPT_VE_DISABLE", machine: alter(func(q *simtdx.Quote) {
			q.TD.TDAttributes = 0
		}), field: "TDATTRIBUTES.SEPT_VE_DISABLE"},
		{name: "key locker", machine: alter(func(q *simtdx.Quote) { q.TD.TDAttributes |= 1 << 31 }), field: "TDATTRIBUTES"},
		{name: "other debug bit", machine: alter(func(q *simtdx.Quote) { q.TD.TDAttributes |= 1 << 1 }), field: "TDATTRIBUTES"},
		{name: "reserved attribute", machine: alter(func(q *simtdx.Quote) { q.TD.TDAttributes |= 1 << 40 }), field: "TDATTRIBUTES"},
		{name: "XFAM without SSE", machine: alter(func(q *simtdx.Quote) { q.TD.XFAM &^= 2 }), field: "XFAM"},
		{name: "XFAM with a reserved bit", machine: alter(func(q *simtdx.Quote) { q.TD.XFAM |= 1 << 40 }), field: "XFAM"},
		{name: "XFAM with less than wanted", machine: alter(func(q *simtdx.Quote) { q.TD.XFAM = 3 }), field: "XFAM"},
		{name: "XFAM with more than wanted", machine: alter(func(q *simtdx.Quote) { q.TD.XFAM |= 0x100 }), field: "XFAM"},
		{name: "MRSIGNERSEAM", machine: alter(func(q *simtdx.Quote) { q.TD.MRSignerSEAM[0] = 1 }), field: "MRSIGNERSEAM"},
		{name: "SEAMATTRIBUTES", machine: alter(func(q *simtdx.Quote) { q.TD.SEAMAttributes[7] = 1 }), field: "SEAMATTRIBUTES"},
		{name: "MROWNER", machine: alter(func(q *simtdx.Quote) { q.TD.MROwner[47] = 1 }), field: "MROWNER"},
		{name: "MROWNERCONFIG", machine: alter(func(q *simtdx.Quote) { q.TD.MROwnerConfig[0] = 1 }), field: "MROWNERCONFIG"},
		{name: "MRCONFIGID all zero", machine: alter(func(q *simtdx.Quote) { q.TD.MRConfigID = [48]byte{} }), field: "MRCONFIGID"},
		{name: "MRCONFIGID zero where the hash is", machine: alter(func(q *simtdx.Quote) {
			q.TD.MRConfigID = [48]byte{40: 1}
		}), field: "MRCONFIGID"},
		{name: "MRCONFIGID longer than a hash", machine: alter(func(q *simtdx.Quote) {
			q.TD.MRConfigID[32] = 1
		}), field: "MRCONFIGID"},
		{name: "MRTD", machine: alter(func(q *simtdx.Quote) { q.TD.MRTD[0] ^= 1 }), field: "MRTD"},
		{name: "RTMR0", machine: alter(func(q *simtdx.Quote) { q.TD.RTMRs[0][0] ^= 1 }), field: "RTMR0"},
		{name: "RTMR1", machine: alter(func(q *simtdx.Quote) { q.TD.RTMRs[1][47] ^= 1 }), field: "RTMR1"},
		{name: "RTMR2", machine: alter(func(q *simtdx.Quote) { q.TD.RTMRs[2][1] ^= 1 }), field: "RTMR2"},
		{name: "RTMR3", machine: alter(func(q *simtdx.Quote) { q.TD.RTMRs[3][0] ^= 1 }), field: "RTMR3"},
		{name: "MRSEAM", machine: alter(func(q *simtdx.Quote) { q.TD.MRSEAM[0] ^= 1 }), field: "MRSEAM"},
		{name: "TEE_TCB_SVN below the minimum", reference: func(r *tdx.ReferenceValue) {
			r.MinimumTCB.TEETCBSVN = "00000800000000000000000000000000"
		}, field: "TEE_TCB_SVN.2"},
		{name: "last byte of TEE_TCB_SVN below the minimum", reference: func(r *tdx.ReferenceValue) {
			r.MinimumTCB.TEETCBSVN = "00000000000000000000000000000001"
		}, field: "TEE_TCB_SVN.15"},
		{name: "QE's SVN below the minimum", reference: func(r *tdx.ReferenceValue) {
			five := 5
			r.MinimumTCB.QESVN = &five
		}, field: "QE_REPORT.ISVSVN"},
		{name: "PCE's SVN below the minimum", reference: func(r *tdx.ReferenceValue) {
			fourteen := 14
			r.MinimumTCB.PCESVN = &fourteen
		}, field: "PCESVN"},

		// The signatures.
		{name: "signature", machine: spoil(func(q *simtdx.Quote) { q.Signature[0] ^= 1 }), field: "SIGNATURE"},
		{name: "no signature", machine: spoil(func(q *simtdx.Quote) { clear(q.Signature) }), field: "SIGNATURE"},
		{name: "TD report changed", machine: spoil(func(q *simtdx.Quote) { q.TD.MRTD[0] ^= 1 }), field: "SIGNATURE"},
		{name: "signed with another key", machine: func(t *testing.T, m *simtdx.Machine) {
			key, _ := newKey(t)
			m.Spoil = func(q *simtdx.Quote) {
				if err := q.Sign(key); err != nil {
					t.Fatal(err)
				}
			}
		}, field: "SIGNATURE"},
		{name: "attestation key that the QE did not bind", machine: func(t *testing.T, m *simtdx.Machine) {
			key, public := newKey(t)
			m.Spoil = func(q *simtdx.Quote) {
				q.AttestationKey = public
				if err := q.Sign(key); err != nil {
					t.Fatal(err)
				}
			}
		}, field: "QE_REPORT.REPORTDATA"},
		{name: "authentication data that the QE did not bind", machine: spoil(func(q *simtdx.Quote) {
			q.AuthData[0] ^= 1
		}), field: "QE_REPORT.REPORTDATA"},
		{name: "attestation key that is not on the curve", machine: alter(func(q *simtdx.Quote) {
			q.AttestationKey = bytes.Repeat([]byte{1}, 64)
		}), field: "ATTESTATION_KEY"},
		{name: "QE report signature", machine: spoil(func(q *simtdx.Quote) {
			q.QESignature[63] ^= 1
		}), field: "QE_REPORT_SIGNATURE"},
		{name: "QE report changed", machine: spoil(func(q *simtdx.Quote) { q.QE.ISVSVN++ }), field: "QE_REPORT_SIGNATURE"},
		{name: "QE report signed by the attestation key itself", machine: func(t *testing.T, m *simtdx.Machine) {
			m.Spoil = func(q *simtdx.Quote) {
				if err := q.Bind(m.World.Plan.Keys.Attestation); err != nil {
					t.Fatal(err)
				}
			}
		}, field: "QE_REPORT_SIGNATURE"},
		{name: "certification data of another type", machine: spoil(func(q *simtdx.Quote) {
			q.DataType = 5
		}), field: "CERTIFICATION_DATA_TYPE"},
		{name: "chain of another type", machine: spoil(func(q *simtdx.Quote) {
			q.ChainType = 6
		}), field: "QE_CERTIFICATION_DATA_TYPE"},
		{name: "size of the certification data", machine: corrupt(func(e *attestation.Evidence) {
			e.Report[636+130]++
		}), field: "CERTIFICATION_DATA"},
		{name: "size of the authentication data", machine: corrupt(func(e *attestation.Evidence) {
			e.Report[636+134+448+1] = 0xff
		}), field: "QE_CERTIFICATION_DATA_TYPE"},
		{name: "size of the chain", machine: corrupt(func(e *attestation.Evidence) {
			e.Report[636+134+450+32+2]++
		}), field: "QE_CERTIFICATION_DATA"},
		{name: "size of the signature data", machine: corrupt(func(e *attestation.Evidence) {
			e.Report[635] = 0xff
		}), field: "REPORT"},

		// The quoting enclave.
		{name: "QE's MRSIGNER", machine: alter(func(q *simtdx.Quote) { q.QE.MRSigner[0] ^= 1 }), field: "QE_REPORT.MRSIGNER"},
		{name: "QE's ISVPRODID", machine: alter(func(q *simtdx.Quote) { q.QE.ISVProdID = 1 }), field: "QE_REPORT.ISVPRODID"},
		{name: "QE's MISCSELECT", machine: alter(func(q *simtdx.Quote) { q.QE.MiscSelect = 1 }), field: "QE_REPORT.MISCSELECT"},
		{name: "QE in debug mode", machine: alter(func(q *simtdx.Quote) { q.QE.Attributes[0] |= 2 }), field: "QE_REPORT.ATTRIBUTES"},
		{name: "QE out of date", machine: alter(func(q *simtdx.Quote) { q.QE.ISVSVN = 3 }), field: "TCB.QE"},
		{name: "QE of no known level", machine: alter(func(q *simtdx.Quote) { q.QE.ISVSVN = 1 }), field: "TCB.QE"},

		// The certificate chain.
		{name: "no chain", machine: spoil(func(q *simtdx.Quote) { q.Chain = nil }), field: "CHAIN"},
		{name: "chain is not PEM", machine: spoil(func(q *simtdx.Quote) { q.Chain = []byte("chain") }), field: "CHAIN"},
		{name: "text before the chain", machine: spoil(func(q *simtdx.Quote) {
			q.Chain = append([]byte("x\n"), q.Chain...)
		}), field: "CHAIN"},
		{name: "two NULs behind the chain", machine: spoil(func(q *simtdx.Quote) { q.Chain = append(q.Chain, 0) }), field: "CHAIN"},
		{name: "no root", machine: chain(func(_ *testing.T, w *simtdx.World) []byte {
			return simtdx.PEM(w.PCK, w.CA)
		}), field: "CHAIN"},
		{name: "a fourth certificate", machine: chain(func(_ *testing.T, w *simtdx.World) []byte {
			return simtdx.PEM(w.PCK, w.CA, w.Root, w.Signer)
		}), field: "CHAIN"},
		{name: "PCK and CA swapped", machine: chain(func(_ *testing.T, w *simtdx.World) []byte {
			return simtdx.PEM(w.CA, w.PCK, w.Root)
		}), field: "CHAIN.PCK"},
		{name: "CA and root swapped", machine: chain(func(_ *testing.T, w *simtdx.World) []byte {
			return simtdx.PEM(w.PCK, w.Root, w.CA)
		}), field: "CHAIN.ROOT"},
		{name: "chain of the TCB signer", machine: chain(func(_ *testing.T, w *simtdx.World) []byte {
			return simtdx.PEM(w.PCK, w.Signer, w.Root)
		}), field: "CHAIN.CA"},
		{name: "forged chain", machine: chain(func(t *testing.T, _ *simtdx.World) []byte {
			s := world(t)
			return simtdx.PEM(s.PCK, s.CA, s.Root)
		}), field: "CHAIN.ROOT"},
		{name: "forged chain under the true root", machine: chain(func(t *testing.T, w *simtdx.World) []byte {
			s := world(t)
			return simtdx.PEM(s.PCK, s.CA, w.Root)
		}), field: "CHAIN.CA"},
		{name: "forged PCK under the true CA", machine: chain(func(t *testing.T, w *simtdx.World) []byte {
			return simtdx.PEM(world(t).PCK, w.CA, w.Root)
		}), field: "CHAIN.PCK"},
		{name: "PCK of a CA of another name", machine: chain(func(t *testing.T, w *simtdx.World) []byte {
			s := sibling(t, w, func(p *simtdx.Plan) { p.CA.Subject.Organization = []string{"Another"} })
			return simtdx.PEM(s.PCK, w.CA, w.Root)
		}), field: "CHAIN.PCK"},
		{name: "PCK signed with another hash", plan: func(p *simtdx.Plan) {
			p.PCK.SignatureAlgorithm = x509.ECDSAWithSHA384
		}, field: "CHAIN.PCK"},
		{name: "PCK CA of another name", plan: func(p *simtdx.Plan) {
			p.CA.Subject.CommonName = "Intel SGX PCK Processor CA"
		}, field: "CHAIN.CA"},
		{name: "PCK of another name", plan: func(p *simtdx.Plan) {
			p.PCK.Subject.CommonName = "Intel SGX TCB Signing"
		}, field: "CHAIN.PCK"},
		{name: "PCK CA is no CA", plan: func(p *simtdx.Plan) { p.CA.IsCA, p.CA.MaxPathLenZero = false, false }, field: "CHAIN.PCK"},
		{name: "PCK CA on another curve", plan: func(p *simtdx.Plan) { p.Keys.CA = p384 }, field: "CHAIN.CA"},
		{name: "unknown critical extension", plan: func(p *simtdx.Plan) {
			p.CA.ExtraExtensions = []pkix.Extension{unknownExtension()}
		}, field: "CHAIN.CA"},
		{name: "expired PCK", plan: func(p *simtdx.Plan) { p.PCK.NotAfter = now.Add(-time.Second) }, field: "CHAIN.PCK"},
		{name: "PCK of tomorrow", plan: func(p *simtdx.Plan) { p.PCK.NotBefore = now.Add(time.Hour) }, field: "CHAIN.PCK"},
		{name: "expired PCK CA", plan: func(p *simtdx.Plan) { p.CA.NotAfter = now.Add(-time.Second) }, field: "CHAIN.CA"},
		{name: "expired root", plan: func(p *simtdx.Plan) { p.Root.NotAfter = now.Add(-time.Second) }, field: "CHAIN.ROOT"},
		{name: "no SGX extension", plan: func(p *simtdx.Plan) {
			p.AlterSGX = func([]byte) []byte {
				return nil
			}
		}, field: "CHAIN.PCK"},
		{name: "garbled SGX extension", plan: func(p *simtdx.Plan) {
			p.AlterSGX = func(der []byte) []byte { return der[:len(der)/2] }
		}, field: "CHAIN.PCK"},
		{name: "SGX extension without FMSPC", plan: func(p *simtdx.Plan) {
			p.AlterSGX = func(der []byte) []byte { return renumbered(der, pcs.OidFMSPC) }
		}, field: "CHAIN.PCK"},
		{name: "SGX extension without PCEID", plan: func(p *simtdx.Plan) {
			p.AlterSGX = func(der []byte) []byte { return renumbered(der, pcs.OidPCEID) }
		}, field: "CHAIN.PCK"},

		// Revocation.
		{name: "revoked PCK", plan: func(p *simtdx.Plan) {
			p.PCKCRL.RevokedCertificateEntries = append(p.PCKCRL.RevokedCertificateEntries, revoked(p.PCK.SerialNumber))
		}, field: "CHAIN.PCK"},
		{name: "revoked PCK CA", plan: func(p *simtdx.Plan) {
			p.RootCRL.RevokedCertificateEntries = append(p.RootCRL.RevokedCertificateEntries, revoked(p.CA.SerialNumber))
		}, field: "CHAIN.CA"},
		{name: "revoked TCB signer", plan: func(p *simtdx.Plan) {
			p.RootCRL.RevokedCertificateEntries = append(p.RootCRL.RevokedCertificateEntries, revoked(p.TCBSigner.SerialNumber))
		}, field: "TCB_INFO"},
		{name: "PCK CRL is garbage", world: pckCRL(garbage), field: "PCK_CRL"},
		{name: "PCK CRL of another Intel", world: strangers((*simtdx.World).PCKCRLURL), field: "PCK_CRL"},
		{name: "PCK CRL is the root's", world: pckCRL(func(_ *testing.T, w *simtdx.World, a *simtdx.Answer) {
			a.Body = w.Answers[w.RootCRLURL()].Body
		}), field: "PCK_CRL"},
		{name: "PCK CRL of a CA of another name", world: pckCRL(func(t *testing.T, w *simtdx.World, a *simtdx.Answer) {
			s := sibling(t, w, func(p *simtdx.Plan) { p.CA.Subject.Organization = []string{"Another"} })
			a.Body = s.Answers[s.PCKCRLURL()].Body
		}), field: "PCK_CRL"},
		{name: "PCK CRL changed", world: pckCRL(func(_ *testing.T, _ *simtdx.World, a *simtdx.Answer) {
			a.Body = bytes.Replace(a.Body, []byte{0x0b, 0xad}, []byte{0x0b, 0xae}, 1)
		}), field: "PCK_CRL"},
		{name: "PCK CRL of a part", plan: func(p *simtdx.Plan) {
			p.PCKCRL.ExtraExtensions = []pkix.Extension{unknownExtension()}
		}, field: "PCK_CRL"},
		{name: "PCK CRL expired", plan: func(p *simtdx.Plan) {
			p.PCKCRL.NextUpdate = now.Add(-time.Second)
		}, unavailable: "CRL of the Intel SGX PCK"},
		{name: "PCK CRL of tomorrow", plan: func(p *simtdx.Plan) {
			p.PCKCRL.ThisUpdate = now.Add(time.Hour)
		}, unavailable: "CRL of the Intel SGX PCK"},
		{name: "root CRL is garbage", world: rootCRL(garbage), field: "ROOT_CA_CRL"},
		{name: "root CRL of another Intel", world: strangers((*simtdx.World).RootCRLURL), field: "ROOT_CA_CRL"},
		{name: "root CRL is the PCK CA's", world: rootCRL(func(_ *testing.T, w *simtdx.World, a *simtdx.Answer) {
			a.Body = w.Answers[w.PCKCRLURL()].Body
		}), field: "ROOT_CA_CRL"},
		{name: "root CRL expired", plan: func(p *simtdx.Plan) {
			p.RootCRL.NextUpdate = now.Add(-time.Second)
		}, unavailable: "CRL of the Intel SGX Root"},

		// TCB info.
		{name: "TCB info is garbage", world: tcbInfo(garbage), field: "TCB_INFO"},
		{name: "TCB info of another Intel", world: strangers((*simtdx.World).TCBInfoURL), field: "TCB_INFO"},
		{name: "TCB info changed", world: tcbInfo(replace("UpToDate", "Revoked!")), field: "TCB_INFO"},
		{name: "TCB info unsigned", world: tcbInfo(unsigned), field: "TCB_INFO"},
		{name: "TCB info's signature", world: tcbInfo(replace(`"signature":"`, `"signature":"00`)), field: "TCB_INFO"},
		{name: "TCB info's signature not in hex", world: tcbInfo(replace(`"signature":"`, `"signature":"x`)), field: "TCB_INFO"},
		{name: "TCB info's signature is no text", world: tcbInfo(func(_ *testing.T, _ *simtdx.World, a *simtdx.Answer) {
			a.Body = []byte(`{"tcbInfo":{},"signature":1}`)
		}), field: "TCB_INFO"},
		{name: "TCB info without signature", world: tcbInfo(replace("signature", "signatura")), field: "TCB_INFO"},
		{name: "TCB info under another name", world: tcbInfo(replace("tcbInfo", "tcbinfo")), field: "TCB_INFO"},
		{name: "no issuer chain", world: tcbInfo(func(_ *testing.T, _ *simtdx.World, a *simtdx.Answer) {
			a.Header = nil
		}), field: "TCB_INFO"},
		{name: "two issuer chains", world: tcbInfo(func(_ *testing.T, _ *simtdx.World, a *simtdx.Answer) {
			a.Header[pcs.TcbInfoIssuerChainPhrase] = append(a.Header[pcs.TcbInfoIssuerChainPhrase], "x")
		}), field: "TCB_INFO"},
		{name: "issuer chain is not encoded", world: tcbInfo(func(_ *testing.T, _ *simtdx.World, a *simtdx.Answer) {
			a.Header.Set(pcs.TcbInfoIssuerChainPhrase, "%zz")
		}), field: "TCB_INFO"},
		{name: "issuer chain swapped", world: tcbInfo(func(_ *testing.T, w *simtdx.World, a *simtdx.Answer) {
			a.Header.Set(pcs.TcbInfoIssuerChainPhrase, w.IssuerChain(w.Root, w.Signer))
		}), field: "TCB_INFO"},
		{name: "issuer is the PCK CA", world: tcbInfo(func(_ *testing.T, w *simtdx.World, a *simtdx.Answer) {
			a.Header.Set(pcs.TcbInfoIssuerChainPhrase, w.IssuerChain(w.CA, w.Root))
		}), field: "TCB_INFO"},
		{name: "issuer without its root", world: tcbInfo(func(_ *testing.T, w *simtdx.World, a *simtdx.Answer) {
			a.Header.Set(pcs.TcbInfoIssuerChainPhrase, w.IssuerChain(w.Signer))
		}), field: "TCB_INFO"},
		{name: "TCB info for SGX", plan: func(p *simtdx.Plan) { p.TCBInfo.ID = "SGX" }, field: "TCB_INFO"},
		{name: "TCB info of version 2", plan: func(p *simtdx.Plan) { p.TCBInfo.Version = 2 }, field: "TCB_INFO"},
		{name: "TCB info of another kind", plan: func(p *simtdx.Plan) { p.TCBInfo.TCBType = 1 }, field: "TCB_INFO"},
		{name: "TCB info expired", plan: func(p *simtdx.Plan) {
			p.TCBInfo.NextUpdate = now.Add(-time.Second)
		}, unavailable: "TCB info of FMSPC 50806f000000"},
		{name: "TCB info of tomorrow", plan: func(p *simtdx.Plan) {
			p.TCBInfo.IssueDate = now.Add(time.Hour)
		}, unavailable: "TCB info of FMSPC"},
		{name: "TCB info without a beginning", plan: func(p *simtdx.Plan) {
			p.TCBInfo.IssueDate = time.Time{}
		}, unavailable: "TCB info of FMSPC"},
		{name: "TCB info signed by an expired certificate", world: tcbInfo(signer(pcs.TcbInfoIssuerChainPhrase,
			func(p *simtdx.Plan) { p.TCBSigner.NotAfter = now.Add(-time.Second) },
		)), unavailable: "the certificate behind the TCB info"},
		{name: "QE identity signed by an expired certificate", world: qeIdentity(signer(pcs.SgxQeIdentityIssuerChainPhrase,
			func(p *simtdx.Plan) { p.TCBSigner.NotAfter = now.Add(-time.Second) },
		)), unavailable: "the certificate behind the identity"},
		{name: "QE identity signed by a revoked certificate", plan: func(p *simtdx.Plan) {
			p.RootCRL.RevokedCertificateEntries = append(p.RootCRL.RevokedCertificateEntries, revoked(big.NewInt(0x2004)))
		}, world: qeIdentity(signer(pcs.SgxQeIdentityIssuerChainPhrase,
			func(p *simtdx.Plan) { p.TCBSigner.SerialNumber = big.NewInt(0x2004) },
		)), field: "QE_IDENTITY"},
		{name: "TCB info without an end", plan: func(p *simtdx.Plan) {
			p.TCBInfo.NextUpdate = time.Time{}
		}, unavailable: "TCB info of FMSPC"},
		{name: "TCB signer expired", plan: func(p *simtdx.Plan) {
			p.TCBSigner.NotAfter = now.Add(-time.Second)
		}, unavailable: "the certificate behind"},
		{name: "TCB info of another FMSPC", plan: func(p *simtdx.Plan) { p.TCBInfo.FMSPC = "00906ed50000" }, field: "FMSPC"},
		{name: "TCB info of no FMSPC", plan: func(p *simtdx.Plan) { p.TCBInfo.FMSPC = "" }, field: "FMSPC"},
		{name: "TCB info of another PCE", plan: func(p *simtdx.Plan) { p.TCBInfo.PCEID = "0001" }, field: "PCEID"},
		{name: "module's signer", plan: func(p *simtdx.Plan) {
			p.TCBInfo.TDXModule.MRSigner = bytes.Repeat([]byte{1}, 48)
		}, field: "MRSIGNERSEAM"},
		{name: "a module that Intel did not sign and yet vouches for", plan: func(p *simtdx.Plan) {
			p.TCBInfo.TDXModule.MRSigner = bytes.Repeat([]byte{1}, 48)
			p.TCBInfo.TDXModuleIdentities[1].MRSigner = p.TCBInfo.TDXModule.MRSigner
		}, machine: alter(func(q *simtdx.Quote) {
			q.TD.MRSignerSEAM = [48]byte(bytes.Repeat([]byte{1}, 48))
		}), field: "MRSIGNERSEAM"},
		{name: "attributes of a module that Intel does not look at", plan: func(p *simtdx.Plan) {
			p.TCBInfo.TDXModule.AttributesMask = make([]byte, 8)
			p.TCBInfo.TDXModuleIdentities[1].AttributesMask = make([]byte, 8)
		}, machine: alter(func(q *simtdx.Quote) { q.TD.SEAMAttributes[0] = 1 }), field: "SEAMATTRIBUTES"},
		{name: "signer of the module's version", plan: func(p *simtdx.Plan) {
			p.TCBInfo.TDXModuleIdentities[1].MRSigner = bytes.Repeat([]byte{1}, 48)
		}, field: "MRSIGNERSEAM"},
		{name: "module's attributes", plan: func(p *simtdx.Plan) {
			p.TCBInfo.TDXModule.Attributes = append(make([]byte, 7), 1)
		}, field: "SEAMATTRIBUTES"},
		{name: "a mask that is not there", plan: func(p *simtdx.Plan) {
			p.TCBInfo.TDXModule.Attributes, p.TCBInfo.TDXModule.AttributesMask = nil, nil
		}, field: "SEAMATTRIBUTES"},

		// Intel's judgement.
		{name: "module out of date, platform up to date", machine: alter(func(q *simtdx.Quote) {
			q.TD.TEETCBSVN[0] = 3
		}), field: "TCB.MODULE"},
		{name: "platform out of date, module up to date", machine: alter(func(q *simtdx.Quote) {
			q.TD.TEETCBSVN[2] = 6
		}), field: "TCB.PLATFORM"},
		{name: "platform out of date by microcode", plan: func(p *simtdx.Plan) {
			p.Platform.TCBComponents[0] = 4
			for i := range p.TCBInfo.TCBLevels[1].TCB.SGXComponents {
				p.TCBInfo.TCBLevels[1].TCB.SGXComponents[i].SVN = 0
			}
		}, field: "TCB.PLATFORM"},
		{name: "platform out of date by PCE", plan: func(p *simtdx.Plan) { p.Platform.PCESVN = 12 }, field: "TCB.PLATFORM"},
		{name: "platform of no known level", machine: alter(func(q *simtdx.Quote) { q.TD.TEETCBSVN[2] = 4 }), field: "TCB.PLATFORM"},
		{name: "no levels", plan: func(p *simtdx.Plan) { p.TCBInfo.TCBLevels = nil }, field: "TCB.PLATFORM"},
		{name: "levels of fewer components", plan: func(p *simtdx.Plan) {
			for i := range p.TCBInfo.TCBLevels {
				p.TCBInfo.TCBLevels[i].TCB.TDXComponents = p.TCBInfo.TCBLevels[i].TCB.TDXComponents[:2]
			}
		}, field: "TCB.PLATFORM"},
		{name: "platform revoked", plan: func(p *simtdx.Plan) {
			p.TCBInfo.TCBLevels[0].TCBStatus = "Revoked"
		}, field: "TCB.PLATFORM"},
		{name: "unknown status", plan: func(p *simtdx.Plan) { p.TCBInfo.TCBLevels[0].TCBStatus = "Splendid" }, field: "TCB_INFO"},
		{name: "no status", plan: func(p *simtdx.Plan) { p.TCBInfo.TCBLevels[0].TCBStatus = "" }, field: "TCB_INFO"},
		{name: "module of an unknown version", machine: alter(func(q *simtdx.Quote) { q.TD.TEETCBSVN[1] = 9 }), field: "TCB.MODULE"},
		{name: "module of no known level", machine: alter(func(q *simtdx.Quote) { q.TD.TEETCBSVN[0] = 1 }), field: "TCB.MODULE"},
		{name: "no module identities", plan: func(p *simtdx.Plan) { p.TCBInfo.TDXModuleIdentities = nil }, field: "TCB.MODULE"},
		{name: "module revoked", plan: func(p *simtdx.Plan) {
			p.TCBInfo.TDXModuleIdentities[1].TCBLevels[0].TCBStatus = "Revoked"
		}, field: "TCB.MODULE"},
		{name: "old module out of date with its platform", machine: alter(func(q *simtdx.Quote) {
			q.TD.TEETCBSVN[0], q.TD.TEETCBSVN[1] = 4, 0
		}), field: "TCB.PLATFORM"},
		{name: "status not on the list", plan: func(p *simtdx.Plan) {
			p.TCBInfo.TCBLevels[0].TCBStatus = "SWHardeningNeeded"
		}, field: "TCB.PLATFORM"},

		// QE identity.
		{name: "QE identity is garbage", world: qeIdentity(garbage), field: "QE_IDENTITY"},
		{name: "QE identity of another Intel", world: strangers((*simtdx.World).QEIdentityURL), field: "QE_IDENTITY"},
		{name: "QE identity changed", world: qeIdentity(replace("UpToDate", "Revoked!")), field: "QE_IDENTITY"},
		{name: "QE identity is the TCB info", world: qeIdentity(func(_ *testing.T, w *simtdx.World, a *simtdx.Answer) {
			a.Body = w.Answers[w.TCBInfoURL()].Body
		}), field: "QE_IDENTITY"},
		{name: "identity of SGX' quoting enclave", plan: func(p *simtdx.Plan) { p.QEIdentity.ID = "QE" }, field: "QE_IDENTITY"},
		{name: "QE identity of version 1", plan: func(p *simtdx.Plan) { p.QEIdentity.Version = 1 }, field: "QE_IDENTITY"},
		{name: "QE identity expired", plan: func(p *simtdx.Plan) {
			p.QEIdentity.NextUpdate = now.Add(-time.Second)
		}, unavailable: "identity of the quoting enclave"},
		{name: "QE identity of tomorrow", plan: func(p *simtdx.Plan) {
			p.QEIdentity.IssueDate = now.Add(time.Hour)
		}, unavailable: "identity of the quoting enclave"},
		{name: "QE identity without a mask", plan: func(p *simtdx.Plan) {
			p.QEIdentity.AttributesMask = nil
		}, field: "QE_REPORT.ATTRIBUTES"},
		{name: "QE identity without MRSIGNER", plan: func(p *simtdx.Plan) { p.QEIdentity.MRSigner = nil }, field: "QE_IDENTITY"},
		{name: "QE identity without levels", plan: func(p *simtdx.Plan) { p.QEIdentity.TCBLevels = nil }, field: "TCB.QE"},
		{name: "QE revoked", plan: func(p *simtdx.Plan) { p.QEIdentity.TCBLevels[0].TCBStatus = "Revoked" }, field: "TCB.QE"},

		// Reference values that want something else.
		{name: "another MRTD wanted", reference: func(r *tdx.ReferenceValue) { r.MRTD = strings.Repeat("77", 48) }, field: "MRTD"},
		{name: "another module wanted", reference: func(r *tdx.ReferenceValue) {
			r.MRSEAM = []string{strings.Repeat("77", 48)}
		}, field: "MRSEAM"},
		{name: "an RTMR3 wanted", reference: func(r *tdx.ReferenceValue) { r.RTMR3 = strings.Repeat("77", 48) }, field: "RTMR3"},
		{name: "another status wanted", reference: func(r *tdx.ReferenceValue) {
			r.AcceptedTCBStatuses = []string{"OutOfDate"}
		}, field: "TCB.PLATFORM"},
		{name: "a higher module wanted", reference: func(r *tdx.ReferenceValue) {
			r.MinimumTCB = tdx.TCB{TEETCBSVN: "05000000000000000000000000000000", QESVN: &one, PCESVN: &one}
		}, field: "TEE_TCB_SVN.0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var alterations []func(*simtdx.Plan)
			if tc.plan != nil {
				alterations = append(alterations, tc.plan)
			}
			w := world(t, alterations...)
			if tc.world != nil {
				tc.world(t, w)
			}
			m := w.Machine(policy)
			ref := m.Reference()
			if tc.machine != nil {
				tc.machine(t, m)
			}
			if tc.reference != nil {
				tc.reference(&ref)
			}
			v := validator(t, options(w), ref)
			e := issue(t, m)
			for range 2 { // what is remembered of the first time changes nothing
				claims, err := v.Validate(t.Context(), e, reportData)
				if tc.unavailable != "" {
					wantUnavailable(t, tc.unavailable, claims, err)
				} else {
					wantRejected(t, tc.field, claims, err)
				}
			}
		})
	}
}

// renumbered gives a part of the SGX extension an identifier that nobody knows.
func renumbered(der []byte, id asn1.ObjectIdentifier) []byte {
	encoded, err := asn1.Marshal(id)
	if err != nil {
		panic(err)
	}
	other := bytes.Clone(encoded)
	other[len(other)-1] = 0x7f
	return bytes.Replace(der, encoded, other, 1)
}

func TestTruncatedAtEveryLength(t *testing.T) {
	w := world(t)
	m := w.Machine(policy)
	v := validator(t, options(w), m.Reference())
	e := issue(t, m)
	report := e.Report
	for n := range report {
		e.Report = report[:n]
		claims, err := v.Validate(t.Context(), e, reportData)
		wantRejected(t, "REPORT", claims, err)
	}
	for _, size := range []int{len(report) + 1, 8000, 128 << 10} {
		e.Report = append(bytes.Clone(report), make([]byte, size-len(report))...)
		if _, err := v.Validate(t.Context(), e, reportData); err != nil {
			t.Errorf("padded to %d bytes: %v", size, err)
		}
	}
}

func TestReportDataMustBeExpected(t *testing.T) {
	w := world(t)
	m := w.Machine(policy)
	v := validator(t, options(w), m.Reference())
	e := issue(t, m)
	claims, err := v.Validate(t.Context(), e, attestation.ReportData{})
	wantRejected(t, "REPORTDATA", claims, err)
	claims, err = v.Validate(t.Context(), e, attestation.NewReportData("test", []byte("another nonce")))
	wantRejected(t, "REPORTDATA", claims, err)
	m.Alter = func(q *simtdx.Quote) { q.TD.ReportData = [64]byte{} }
	claims, err = v.Validate(t.Context(), issue(t, m), attestation.ReportData{})
	wantRejected(t, "REPORTDATA", claims, err)
}

func TestWithoutReferenceValuesEverythingIsRefused(t *testing.T) {
	w := world(t)
	o := options(w)
	o.Collateral = getter(func(_ context.Context, url string) (http.Header, []byte, error) {
		t.Errorf("%s is fetched", url)
		return nil, nil, errors.New("no")
	})
	claims, err := validator(t, o).Validate(t.Context(), issue(t, w.Machine(policy)), reportData)
	wantRejected(t, "PLATFORM", claims, err)
}

func TestAnyReferenceValueMayAccept(t *testing.T) {
	w := world(t)
	m := w.Machine(policy)
	good, far, near := m.Reference(), m.Reference(), m.Reference()
	far.MRTD = strings.Repeat("77", 48)
	near.MRSEAM = []string{strings.Repeat("77", 48)}
	if _, err := validator(t, options(w), far, good, near).Validate(t.Context(), issue(t, m), reportData); err != nil {
		t.Error(err)
	}
	for _, order := range [][]tdx.ReferenceValue{{far, near}, {near, far}} {
		claims, err := validator(t, options(w), order...).Validate(t.Context(), issue(t, m), reportData)
		wantRejected(t, "MRSEAM", claims, err)
	}
}

func TestAnyOfTheModulesIsAllowed(t *testing.T) {
	w := world(t)
	m := w.Machine(policy)
	ref := m.Reference()
	ref.MRSEAM = append([]string{strings.Repeat("77", 48)}, ref.MRSEAM...)
	ref.RTMR3 = "any"
	m.TD.RTMRs[3] = [48]byte{1}
	if _, err := validator(t, options(w), ref).Validate(t.Context(), issue(t, m), reportData); err != nil {
		t.Error(err)
	}
}

func TestStatusesThatAreListedAreAccepted(t *testing.T) {
	w := world(t)
	m := w.Machine(policy)
	ref := m.Reference()
	m.TD.TEETCBSVN[0], m.TD.TEETCBSVN[2], m.QE.ISVSVN = 3, 6, 3
	ref.AcceptedTCBStatuses = []string{"UpToDate", "OutOfDate"}
	v := validator(t, options(w), ref)
	claims, err := v.Validate(t.Context(), issue(t, m), reportData)
	if err != nil {
		t.Fatal(err)
	}
	if _, agreed := tdx.Remembered(v); agreed != 0 {
		t.Error("the library is said to have agreed to what it was not shown")
	}
	if c := claims.TDX; c.PlatformTCBStatus != "OutOfDate" || c.ModuleTCBStatus != "OutOfDate" || c.QETCBStatus != "OutOfDate" ||
		!slices.Equal(c.Advisories, []string{"INTEL-SA-00837", "INTEL-SA-00960", "INTEL-SA-00999", "INTEL-SA-01036"}) {
		t.Errorf("claims %+v", c)
	}
}

func TestAModuleOfVersionZeroIsJudgedWithItsPlatform(t *testing.T) {
	w := world(t)
	m := w.Machine(policy)
	m.TD.TEETCBSVN = [16]byte{5, 0, 7}
	claims, err := validator(t, options(w), m.Reference()).Validate(t.Context(), issue(t, m), reportData)
	if err != nil || claims.TDX.ModuleTCBStatus != "UpToDate" {
		t.Errorf("claims %+v: %v", claims.TDX, err)
	}
}

func TestEveryFaultOfTheOptionsIsNamed(t *testing.T) {
	w := world(t)
	for _, tc := range []struct {
		name  string
		spoil func(*tdx.Options)
		fault string
	}{
		{"no collateral", func(o *tdx.Options) { o.Collateral = nil }, "collateral: "},
		{"empty roots", func(o *tdx.Options) { o.Roots = []*x509.Certificate{} }, "roots: an empty list"},
		{"no certificate", func(o *tdx.Options) { o.Roots = append(o.Roots, nil) }, "root 1: "},
		{"not a root", func(o *tdx.Options) { o.Roots = []*x509.Certificate{w.CA} }, "root 0: "},
		{"a root without CRL", func(o *tdx.Options) {
			o.Roots = []*x509.Certificate{world(t, func(p *simtdx.Plan) { p.Root.CRLDistributionPoints = nil }).Root}
		}, "root 0: 0 CRL distribution points"},
	} {
		o := options(w)
		tc.spoil(&o)
		if v, err := tdx.NewValidator(nil, o); err == nil || v != nil || !strings.Contains(err.Error(), tc.fault) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if _, err := tdx.NewValidator(nil, tdx.Options{Collateral: w}); err != nil {
		t.Errorf("Intel's root and the clock are defaults: %v", err)
	}
}

// getter is a function that gets.
type getter func(ctx context.Context, url string) (http.Header, []byte, error)

func (g getter) Get(ctx context.Context, url string) (http.Header, []byte, error) { return g(ctx, url) }

func TestNothingIsFetchedForAStranger(t *testing.T) {
	w, stranger := world(t), world(t)
	o := options(w)
	var fetches atomic.Int32
	o.Collateral = getter(func(ctx context.Context, url string) (http.Header, []byte, error) {
		fetches.Add(1)
		return w.Get(ctx, url)
	})
	m := w.Machine(policy)
	v := validator(t, o, m.Reference())
	claims, err := v.Validate(t.Context(), issue(t, stranger.Machine(policy)), reportData)
	wantRejected(t, "CHAIN.ROOT", claims, err)
	if n := fetches.Load(); n != 0 {
		t.Errorf("%d fetches", n)
	}
	if _, err := v.Validate(t.Context(), issue(t, m), reportData); err != nil || fetches.Load() != 4 {
		t.Errorf("%d fetches for a good quote, want 4: %v", fetches.Load(), err)
	}
}

func TestWithoutTheVendorNothingIsJudged(t *testing.T) {
	w := world(t)
	m := w.Machine(policy)
	e := issue(t, m)
	for url := range w.Answers {
		o := options(w)
		for name, failing := range map[string]getter{
			"down": func(context.Context, string) (http.Header, []byte, error) {
				return nil, nil, &attestation.Unavailable{What: "PCS", Err: errors.New("connection refused")}
			},
			"untyped error": func(context.Context, string) (http.Header, []byte, error) {
				return nil, nil, errors.New("connection refused")
			},
			"too much": func(context.Context, string) (http.Header, []byte, error) {
				return http.Header{}, make([]byte, 8<<20+1), nil
			},
		} {
			o.Collateral = getter(func(ctx context.Context, u string) (http.Header, []byte, error) {
				if u == url {
					return failing(ctx, u)
				}
				return w.Get(ctx, u)
			})
			claims, err := validator(t, o, m.Reference()).Validate(t.Context(), e, reportData)
			if err == nil {
				t.Fatalf("%s, %s: accepted", url, name)
			}
			wantUnavailable(t, "the ", claims, err)
			if strings.Count(err.Error(), "not available") != 1 {
				t.Errorf("%s, %s: got %q, want what is missing said once", url, name, err)
			}
		}
	}
}

func TestAnAnswerThatIsEmptyIsRefused(t *testing.T) {
	for _, tc := range []struct {
		url   func(*simtdx.World) string
		field string
	}{
		{(*simtdx.World).TCBInfoURL, "TCB_INFO"},
		{(*simtdx.World).QEIdentityURL, "QE_IDENTITY"},
		{(*simtdx.World).PCKCRLURL, "PCK_CRL"},
		{(*simtdx.World).RootCRLURL, "ROOT_CA_CRL"},
	} {
		w := world(t)
		w.Answers[tc.url(w)] = simtdx.Answer{}
		m := w.Machine(policy)
		claims, err := validator(t, options(w), m.Reference()).Validate(t.Context(), issue(t, m), reportData)
		wantRejected(t, tc.field, claims, err)
	}
}

func TestACancelledCallerStopsTheFetch(t *testing.T) {
	w := world(t)
	o := options(w)
	fetching := make(chan struct{})
	o.Collateral = getter(func(ctx context.Context, url string) (http.Header, []byte, error) {
		close(fetching)
		<-ctx.Done()
		return nil, nil, &attestation.Unavailable{What: url, Err: ctx.Err()}
	})
	m := w.Machine(policy)
	v, e := validator(t, o, m.Reference()), issue(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := v.Validate(ctx, e, reportData)
		done <- err
	}()
	<-fetching
	cancel()
	select {
	case err := <-done:
		wantUnavailable(t, "TCB info", attestation.Claims{}, err)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the context's error", err)
		}
	case <-time.After(100 * time.Millisecond):
		t.Error("the fetch goes on for a caller that has gone")
	}
	claims, err := v.Validate(ctx, e, reportData)
	wantUnavailable(t, "time to judge", claims, err)
}

func TestARevocationIsSeenAtOnce(t *testing.T) {
	w := world(t)
	m := w.Machine(policy)
	v, e := validator(t, options(w), m.Reference()), issue(t, m)
	if _, err := v.Validate(t.Context(), e, reportData); err != nil {
		t.Fatal(err)
	}
	if collateral, agreed := tdx.Remembered(v); collateral != 1 || agreed != 1 {
		t.Errorf("remembered %d, %d, want 1, 1", collateral, agreed)
	}
	newer := *w.Plan
	newer.PCKCRL.RevokedCertificateEntries = append(newer.PCKCRL.RevokedCertificateEntries, revoked(w.PCK.SerialNumber))
	crl, err := x509.CreateRevocationList(rand.Reader, newer.PCKCRL, w.CA, w.Plan.Keys.CA)
	if err != nil {
		t.Fatal(err)
	}
	w.Answers[w.PCKCRLURL()] = simtdx.Answer{Header: w.Answers[w.PCKCRLURL()].Header, Body: crl}
	claims, err := v.Validate(t.Context(), e, reportData)
	wantRejected(t, "CHAIN.PCK", claims, err)
}

func TestTheRootOfTheQuoteIsTheRootOfTheCollateral(t *testing.T) {
	w, other := world(t), world(t)
	o := options(w)
	o.Roots = append(o.Roots, other.Root)
	for _, m := range []*simtdx.Machine{w.Machine(policy), other.Machine(policy)} {
		o.Collateral = m.World
		v := validator(t, o, m.Reference())
		if _, err := v.Validate(t.Context(), issue(t, m), reportData); err != nil {
			t.Errorf("both roots are trusted: %v", err)
		}
	}
	o.Collateral = other
	m := w.Machine(policy)
	claims, err := validator(t, o, m.Reference()).Validate(t.Context(), issue(t, m), reportData)
	wantRejected(t, "TCB_INFO", claims, err)
}

func TestWhatIsRememberedHoldsForOneCA(t *testing.T) {
	w := world(t)
	other := world(t, func(p *simtdx.Plan) {
		p.Keys.Root, p.Keys.TCBSigner = w.Plan.Keys.Root, w.Plan.Keys.TCBSigner
		p.CA.SerialNumber.SetInt64(0x2002)
	})
	m := w.Machine(policy)
	v := validator(t, options(w), m.Reference())
	if _, err := v.Validate(t.Context(), issue(t, m), reportData); err != nil {
		t.Fatal(err)
	}
	claims, err := v.Validate(t.Context(), issue(t, other.Machine(policy)), reportData)
	wantRejected(t, "PCK_CRL", claims, err)
}

// A certificate that was issued anew for the root's key serves as the old one did; what is trusted is ours.
func TestARenewedRootInTheQuote(t *testing.T) {
	w := world(t)
	renewed := world(t, func(p *simtdx.Plan) {
		p.Keys.Root = w.Plan.Keys.Root
		p.Root.SerialNumber.SetInt64(0x2001)
	})
	m := w.Machine(policy)
	m.Spoil = func(q *simtdx.Quote) { q.Chain = simtdx.PEM(w.PCK, w.CA, renewed.Root) }
	if _, err := validator(t, options(w), m.Reference()).Validate(t.Context(), issue(t, m), reportData); err != nil {
		t.Error(err)
	}
}

func TestAPanicIsARejection(t *testing.T) {
	w := world(t)
	claims, err := tdx.Broken().Validate(t.Context(), issue(t, w.Machine(policy)), reportData)
	wantRejected(t, "REPORT", claims, err)
}

func TestManyAtOnce(t *testing.T) {
	w := world(t)
	m := w.Machine(policy)
	v := validator(t, options(w), m.Reference())
	good, bad := issue(t, m), issue(t, m)
	bad.Report[48+136] ^= 1 // MRTD
	var group sync.WaitGroup
	for i := range 200 {
		group.Go(func() {
			if i%2 == 0 {
				if _, err := v.Validate(t.Context(), good, reportData); err != nil {
					t.Error(err)
				}
				return
			}
			var r *attestation.Rejected
			if _, err := v.Validate(t.Context(), bad, reportData); !errors.As(err, &r) || r.Field != "SIGNATURE" {
				t.Errorf("got %v, want a rejection of SIGNATURE", err)
			}
		})
	}
	group.Wait()
}
