package simulated_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/uuid"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/tests/simtee"
)

var (
	measurement = simtee.Measurement(bytes.Repeat([]byte{0xa5}, 48))
	hostData    = [32]byte(bytes.Repeat([]byte{0x17}, 32))
	reportData  = attestation.NewReportData("test", []byte("nonce"))
)

func world(t *testing.T, alterations ...simtee.Alteration) *simtee.World {
	t.Helper()
	w, err := simtee.New(simtee.PublishedKeys(), alterations...)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func validator(t *testing.T, references ...simulated.ReferenceValue) attestation.Validator {
	t.Helper()
	v, err := simulated.NewValidator(references)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func issue(t *testing.T, m *simtee.Machine) attestation.Evidence {
	t.Helper()
	e, err := m.Issue(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestGenuineEvidenceYieldsItsClaims(t *testing.T) {
	w := world(t)
	claims, err := validator(t, w.Reference(measurement)).
		Validate(t.Context(), issue(t, w.Machine(measurement, hostData)), reportData)
	if err != nil {
		t.Fatal(err)
	}
	tcb, _ := kds.ComposeTCBParts(simtee.TCB)
	if claims.Platform != attestation.Simulated || claims.PolicyHash != hostData ||
		!bytes.Equal(claims.Measurement, measurement[:]) || claims.SNP == nil || claims.SNP.ReportedTCB != uint64(tcb) {
		t.Errorf("claims are %+v", claims)
	}
}

// What is signed, and by whom, but for one field.
func TestEveryFieldOfAReportIsChecked(t *testing.T) {
	w := world(t)
	v := validator(t, w.Reference(measurement))
	policy := func(change func(*abi.SnpPolicy)) func(*spb.Report) {
		return func(r *spb.Report) {
			p := abi.SnpPolicy{SMT: true}
			change(&p)
			r.Policy = abi.SnpPolicyToBytes(p)
		}
	}
	tcb := func(change func(*kds.TCBParts)) uint64 {
		parts := simtee.TCB
		change(&parts)
		v, err := kds.ComposeTCBParts(parts)
		if err != nil {
			t.Fatal(err)
		}
		return uint64(v)
	}
	lower := func(p *kds.TCBParts) { p.UcodeSpl-- }
	higher := func(p *kds.TCBParts) { p.UcodeSpl++ }
	for _, tc := range []struct {
		name  string
		alter func(*spb.Report)
		field string
	}{
		{"report data of another request", func(r *spb.Report) { r.ReportData[0] ^= 1 }, "REPORT_DATA"},
		{"report data differs in its last byte", func(r *spb.Report) { r.ReportData[63] ^= 1 }, "REPORT_DATA"},
		{"no report data", func(r *spb.Report) { clear(r.ReportData) }, "REPORT_DATA"},
		{"another image", func(r *spb.Report) { r.Measurement = bytes.Repeat([]byte{1}, 48) }, "MEASUREMENT"},
		{"no image", func(r *spb.Report) { r.Measurement = make([]byte, 48) }, "MEASUREMENT"},
		{"no initdata", func(r *spb.Report) { r.HostData = make([]byte, 32) }, "HOST_DATA"},
		{"asked from VMPL 1", func(r *spb.Report) { r.Vmpl = 1 }, "VMPL"},
		{"asked by the host", func(r *spb.Report) { r.Vmpl = 0xffffffff }, "VMPL"},
		{"debugging allowed", policy(func(p *abi.SnpPolicy) { p.Debug = true }), "POLICY.DEBUG"},
		{"migration allowed", policy(func(p *abi.SnpPolicy) { p.MigrateMA = true }), "POLICY.MIGRATE_MA"},
		{"CXL allowed", policy(func(p *abi.SnpPolicy) { p.CXLAllowed = true }), "POLICY.CXL_ALLOW"},
		{"malformed policy", func(r *spb.Report) { r.Policy = 0 }, "REPORT"},
		{"policy of the future", func(r *spb.Report) { r.Policy |= 1 << 40 }, "REPORT"},
		{"report version 2", func(r *spb.Report) { r.Version, r.Cpuid1EaxFms = 2, 0 }, "VERSION"},
		{"report version 6", func(r *spb.Report) { r.Version = 6 }, "VERSION"},
		{"a Genoa", func(r *spb.Report) { r.Cpuid1EaxFms = abi.FmsToCpuid1Eax(0x19, 0x11, 1) }, "CPUID_FAM_ID"},
		{"no processor", func(r *spb.Report) { r.Cpuid1EaxFms = 0 }, "CPUID_FAM_ID"},
		{"unknown signature algorithm", func(r *spb.Report) { r.SignatureAlgo = 2 }, "SIGNATURE_ALGO"},
		{"signed by a VLEK", func(r *spb.Report) { r.SignerInfo = uint32(abi.VlekReportSigner) << 2 }, "SIGNING_KEY"},
		{"signed by nothing", func(r *spb.Report) { r.SignerInfo = uint32(abi.NoneReportSigner) << 2 }, "SIGNING_KEY"},
		{"another chip", func(r *spb.Report) { r.ChipId[5] ^= 1 }, "CHIP_ID"},
		{"reported TCB is not the VCEK's", func(r *spb.Report) { r.ReportedTcb = tcb(lower) }, "REPORTED_TCB"},
		{"reported TCB above the current", func(r *spb.Report) {
			r.CurrentTcb, r.CommittedTcb = tcb(lower), tcb(lower)
		}, "REPORTED_TCB.MICROCODE"},
		{"firmware not committed", func(r *spb.Report) { r.CommittedTcb = tcb(lower) }, "COMMITTED_TCB"},
		{"current firmware above the committed", func(r *spb.Report) { r.CurrentTcb = tcb(higher) }, "COMMITTED_TCB"},
		{"build not committed", func(r *spb.Report) { r.CommittedBuild-- }, "COMMITTED_BUILD"},
		{"minor version not committed", func(r *spb.Report) { r.CommittedMinor-- }, "COMMITTED_MINOR"},
		{"major version not committed", func(r *spb.Report) { r.CommittedMajor-- }, "COMMITTED_MAJOR"},
		{"launched on an old boot loader", func(r *spb.Report) {
			r.LaunchTcb = tcb(func(p *kds.TCBParts) { p.BlSpl-- })
		}, "LAUNCH_TCB.BOOT_LOADER"},
		{"launched on old SNP firmware", func(r *spb.Report) {
			r.LaunchTcb = tcb(func(p *kds.TCBParts) { p.SnpSpl-- })
		}, "LAUNCH_TCB.SNP"},
		{"launched on old microcode", func(r *spb.Report) { r.LaunchTcb = tcb(lower) }, "LAUNCH_TCB.MICROCODE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := w.Machine(measurement, hostData)
			m.Alter = tc.alter
			rejectedFor(t, v, issue(t, m), tc.field)
		})
	}
}

func TestEveryMinimumIsChecked(t *testing.T) {
	w := world(t)
	e := issue(t, w.Machine(measurement, hostData))
	for field, raise := range map[string]func(*simulated.TCB){
		"REPORTED_TCB.BOOT_LOADER": func(m *simulated.TCB) { *m.BootLoader++ },
		"REPORTED_TCB.TEE":         func(m *simulated.TCB) { *m.TEE++ },
		"REPORTED_TCB.SNP":         func(m *simulated.TCB) { *m.SNP++ },
		"REPORTED_TCB.MICROCODE":   func(m *simulated.TCB) { *m.Microcode++ },
	} {
		t.Run(field, func(t *testing.T) {
			ref := w.Reference(measurement)
			raise(&ref.MinimumTCB)
			rejectedFor(t, validator(t, ref), e, field)
		})
	}
}

func TestAMaskedChipIsAccepted(t *testing.T) {
	w := world(t)
	m := w.Machine(measurement, hostData)
	m.Alter = func(r *spb.Report) { r.ChipId = make([]byte, abi.ChipIDSize) }
	if _, err := validator(t, w.Reference(measurement)).Validate(t.Context(), issue(t, m), reportData); err != nil {
		t.Error(err)
	}
}

// What was changed after it was signed.
func TestCorruptedEvidenceIsRejected(t *testing.T) {
	w := world(t)
	v := validator(t, w.Reference(measurement))
	entry := func(guid string, cert []byte) abi.CertTableEntry {
		return abi.CertTableEntry{GUID: uuid.MustParse(guid), RawCert: cert}
	}
	vcek, ask := entry(abi.VcekGUID, w.VCEK.Raw), entry(abi.AskGUID, w.ASK.Raw)
	for _, tc := range []struct {
		name    string
		corrupt func(*attestation.Evidence)
		field   string
	}{
		{"claims to be real", func(e *attestation.Evidence) { e.Platform = attestation.SNP }, "PLATFORM"},
		{"claims nothing", func(e *attestation.Evidence) { e.Platform = "" }, "PLATFORM"},
		{"no report", func(e *attestation.Evidence) { e.Report = nil }, "REPORT"},
		{"short report", func(e *attestation.Evidence) { e.Report = e.Report[:len(e.Report)-1] }, "REPORT"},
		{"long report", func(e *attestation.Evidence) { e.Report = append(e.Report, 0) }, "REPORT"},
		{"reserved byte set", func(e *attestation.Evidence) { e.Report[0x210] = 1 }, "REPORT"},
		{"image changed", func(e *attestation.Evidence) { copy(e.Report[0x90:], measurement[:47]); e.Report[0xbf] = 1 }, "SIGNATURE"},
		{"policy hash changed", func(e *attestation.Evidence) { e.Report[0xc0] ^= 1 }, "SIGNATURE"},
		{"signature changed", func(e *attestation.Evidence) { e.Report[0x2a0] ^= 1 }, "SIGNATURE"},
		{"signature zero", func(e *attestation.Evidence) { clear(e.Report[0x2a0:]) }, "SIGNATURE"},
		{"no certificates", func(e *attestation.Evidence) { e.Certificates = nil }, "CHAIN"},
		{"table without an end", func(e *attestation.Evidence) { e.Certificates = simtee.Table(vcek, ask)[:48] }, "CHAIN"},
		{"table too large", func(e *attestation.Evidence) { e.Certificates = make([]byte, 1<<20) }, "CHAIN"},
		{"entry past the end", func(e *attestation.Evidence) {
			binary.LittleEndian.PutUint32(e.Certificates[20:], 1<<20)
		}, "CHAIN"},
		{"entry of 4 GiB that wraps around", func(e *attestation.Evidence) {
			binary.LittleEndian.PutUint32(e.Certificates[20:], ^uint32(0)-9)
		}, "CHAIN"},
		{"two VCEKs", func(e *attestation.Evidence) { e.Certificates = simtee.Table(vcek, vcek, ask) }, "CHAIN"},
		{"no VCEK", func(e *attestation.Evidence) { e.Certificates = simtee.Table(ask) }, "CHAIN.VCEK"},
		{"no ASK", func(e *attestation.Evidence) { e.Certificates = simtee.Table(vcek) }, "CHAIN.ASK"},
		{"VCEK is not a certificate", func(e *attestation.Evidence) {
			e.Certificates = simtee.Table(entry(abi.VcekGUID, []byte("no")), ask)
		}, "CHAIN.VCEK"},
		{"VCEK and ASK swapped", func(e *attestation.Evidence) {
			e.Certificates = simtee.Table(entry(abi.VcekGUID, w.ASK.Raw), entry(abi.AskGUID, w.VCEK.Raw))
		}, "CHAIN.VCEK"},
		{"VCEK in place of the ASK", func(e *attestation.Evidence) {
			e.Certificates = simtee.Table(vcek, entry(abi.AskGUID, w.VCEK.Raw))
		}, "CHAIN.ASK"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := w.Machine(measurement, hostData)
			m.Corrupt = tc.corrupt
			rejectedFor(t, v, issue(t, m), tc.field)
		})
	}
}

func TestTheRootIsTheManifests(t *testing.T) {
	w := world(t)
	other, err := simtee.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	forger, err := simtee.New(other)
	if err != nil {
		t.Fatal(err)
	}
	v := validator(t, w.Reference(measurement))
	t.Run("another world", func(t *testing.T) {
		rejectedFor(t, v, issue(t, forger.Machine(measurement, hostData)), "CHAIN.ASK")
	})
	t.Run("another world's VCEK behind the genuine ASK", func(t *testing.T) {
		mixed := *forger
		mixed.ASK, mixed.ARK = w.ASK, w.ARK
		rejectedFor(t, v, issue(t, mixed.Machine(measurement, hostData)), "CHAIN.VCEK")
	})
	t.Run("another world's root in the table", func(t *testing.T) {
		mixed := *forger
		mixed.ARK = w.ARK
		rejectedFor(t, v, issue(t, mixed.Machine(measurement, hostData)), "CHAIN.ASK")
	})
	t.Run("a key that nobody certified", func(t *testing.T) {
		mixed := *w
		if mixed.Keys.VCEK, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
			t.Fatal(err)
		}
		rejectedFor(t, v, issue(t, mixed.Machine(measurement, hostData)), "SIGNATURE")
	})
}

// A chain of the right keys but for one property of a certificate.
func TestEveryCertificateIsChecked(t *testing.T) {
	genuine := world(t)
	past := time.Now().Add(-time.Hour)
	for _, tc := range []struct {
		name  string
		alter simtee.Alteration
		field string
	}{
		{"ASK expired", func(_, ask, _ *x509.Certificate) { ask.NotAfter = past }, "CHAIN.ASK"},
		{"ASK is no CA", func(_, ask, _ *x509.Certificate) { ask.IsCA, ask.MaxPathLenZero = false, false }, "CHAIN.ASK"},
		{"ASK of another product", func(_, ask, _ *x509.Certificate) {
			ask.Subject.CommonName = "SEV-Genoa"
		}, "CHAIN"},
		{"VCEK expired", func(_, _, vcek *x509.Certificate) { vcek.NotAfter = past }, "CHAIN.VCEK"},
		{"VCEK not valid yet", func(_, _, vcek *x509.Certificate) { vcek.NotBefore = time.Now().Add(time.Hour) }, "CHAIN.VCEK"},
		{"VCEK of another name", func(_, _, vcek *x509.Certificate) { vcek.Subject.CommonName = "SEV-VLEK" }, "CHAIN"},
		{"VCEK without AMD's extensions", func(_, _, vcek *x509.Certificate) { vcek.ExtraExtensions = nil }, "CHAIN.VCEK"},
		{"VCEK without its TCB", func(_, _, vcek *x509.Certificate) {
			vcek.ExtraExtensions = vcek.ExtraExtensions[:4]
		}, "CHAIN.VCEK"},
		{"VCEK without its chip", func(_, _, vcek *x509.Certificate) {
			vcek.ExtraExtensions = slices.Delete(vcek.ExtraExtensions, 2, 3)
		}, "CHAIN.VCEK"},
		{"VCEK of another chip", func(_, _, vcek *x509.Certificate) {
			vcek.ExtraExtensions = simtee.VCEKExtensions(simtee.TCB, bytes.Repeat([]byte{9}, abi.ChipIDSize))
		}, "CHIP_ID"},
		{"VCEK of another TCB", func(_, _, vcek *x509.Certificate) {
			older := simtee.TCB
			older.SnpSpl--
			vcek.ExtraExtensions = vcek.ExtraExtensions[:3]
			vcek.ExtraExtensions = simtee.VCEKExtensions(older, vcek.ExtraExtensions[2].Value)
		}, "REPORTED_TCB"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// The same keys: the manifest's root verifies this chain too.
			w := world(t, tc.alter)
			rejectedFor(t, validator(t, genuine.Reference(measurement)), issue(t, w.Machine(measurement, hostData)), tc.field)
		})
	}
	t.Run("ARK expired", func(t *testing.T) {
		w := world(t, func(ark, _, _ *x509.Certificate) { ark.NotAfter = past })
		rejectedFor(t, validator(t, w.Reference(measurement)), issue(t, w.Machine(measurement, hostData)), "CHAIN.ASK")
	})
}

func TestNothingExpectedIsNothingAccepted(t *testing.T) {
	w := world(t)
	e := issue(t, w.Machine(measurement, hostData))
	t.Run("no reference value", func(t *testing.T) { rejectedFor(t, validator(t), e, "PLATFORM") })
	t.Run("no report data", func(t *testing.T) {
		_, err := validator(t, w.Reference(measurement)).Validate(t.Context(), e, attestation.ReportData{})
		if r, ok := errors.AsType[*attestation.Rejected](err); !ok || r.Field != "REPORT_DATA" {
			t.Errorf("got %v, want REPORT_DATA rejected", err)
		}
	})
	t.Run("zero evidence", func(t *testing.T) {
		rejectedFor(t, validator(t, w.Reference(measurement)), attestation.Evidence{}, "PLATFORM")
	})
}

func TestAnyOfSeveralReferenceValuesAccepts(t *testing.T) {
	w := world(t)
	next := simtee.Measurement(bytes.Repeat([]byte{0x5a}, 48))
	v := validator(t, w.Reference(next), w.Reference(measurement))
	for _, m := range []simtee.Measurement{measurement, next} {
		if _, err := v.Validate(t.Context(), issue(t, w.Machine(m, hostData)), reportData); err != nil {
			t.Errorf("measurement %s: %v", m, err)
		}
	}
}

func TestTheRejectionTellsOfTheClosestReferenceValue(t *testing.T) {
	w := world(t)
	tooHigh := w.Reference(measurement)
	*tooHigh.MinimumTCB.SNP++
	other := simtee.Measurement(bytes.Repeat([]byte{0x5a}, 48))
	for _, order := range [][]simulated.ReferenceValue{
		{tooHigh, w.Reference(other)},
		{w.Reference(other), tooHigh},
	} {
		// One is as far as the measurement, the other fails before it.
		rejectedFor(t, validator(t, order...), issue(t, w.Machine(measurement, hostData)), "MEASUREMENT")
	}
}

func TestACallerThatHasGoneGetsUnavailable(t *testing.T) {
	w := world(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := validator(t, w.Reference(measurement)).Validate(ctx, issue(t, w.Machine(measurement, hostData)), reportData)
	if _, ok := errors.AsType[*attestation.Unavailable](err); !ok || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Unavailable because of the context", err)
	}
}

func TestOneValidatorServesManyAtOnce(t *testing.T) {
	w := world(t)
	v := validator(t, w.Reference(measurement))
	good := issue(t, w.Machine(measurement, hostData))
	bad := issue(t, w.Machine(simtee.Measurement{1}, hostData))
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := v.Validate(t.Context(), good, reportData); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if _, err := v.Validate(t.Context(), bad, reportData); err == nil {
				t.Error("bad evidence was accepted")
			}
		})
	}
	all.Wait()
}

func TestTruncatedEvidenceIsRejectedAtEveryLength(t *testing.T) {
	w := world(t)
	v := validator(t, w.Reference(measurement))
	e := issue(t, w.Machine(measurement, hostData))
	for n := range e.Report {
		if _, err := v.Validate(t.Context(), attestation.Evidence{
			Platform: e.Platform, Report: e.Report[:n], Certificates: e.Certificates,
		}, reportData); !isRejected(err) {
			t.Fatalf("a report of %d bytes: got %v, want a rejection", n, err)
		}
	}
	// The table's last entry is the ARK, which is not looked at: the manifest's counts.
	for n := range len(e.Certificates) - 1 {
		if _, err := v.Validate(t.Context(), attestation.Evidence{
			Platform: e.Platform, Report: e.Report, Certificates: e.Certificates[:n],
		}, reportData); !isRejected(err) {
			t.Fatalf("a certificate table of %d bytes: got %v, want a rejection", n, err)
		}
	}
}

func FuzzValidator(f *testing.F) {
	w, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		f.Fatal(err)
	}
	v, err := simulated.NewValidator([]simulated.ReferenceValue{w.Reference(measurement)})
	if err != nil {
		f.Fatal(err)
	}
	genuine, err := w.Machine(measurement, hostData).Issue(f.Context(), reportData)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(genuine.Report, genuine.Certificates)
	f.Fuzz(func(t *testing.T, report, certificates []byte) {
		claims, err := v.Validate(t.Context(),
			attestation.Evidence{Platform: attestation.Simulated, Report: report, Certificates: certificates}, reportData)
		if err == nil && (!bytes.Equal(report[:0x2a0], genuine.Report[:0x2a0]) || claims.PolicyHash != hostData) {
			t.Error("forged evidence was accepted")
		}
		if err != nil && !isRejected(err) {
			t.Errorf("got %v, want a rejection", err)
		}
		if r, ok := errors.AsType[*attestation.Rejected](err); ok && strings.Contains(r.Got, "panic") {
			t.Errorf("the validator panicked: %v", err)
		}
	})
}

func BenchmarkValidate(b *testing.B) {
	w, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		b.Fatal(err)
	}
	v, err := simulated.NewValidator([]simulated.ReferenceValue{w.Reference(measurement)})
	if err != nil {
		b.Fatal(err)
	}
	e, err := w.Machine(measurement, hostData).Issue(b.Context(), reportData)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := v.Validate(b.Context(), e, reportData); err != nil {
			b.Fatal(err)
		}
	}
}

func rejectedFor(t *testing.T, v attestation.Validator, e attestation.Evidence, field string) {
	t.Helper()
	claims, err := v.Validate(t.Context(), e, reportData)
	r, ok := errors.AsType[*attestation.Rejected](err)
	if !ok || r.Field != field {
		t.Errorf("got %v, want %s rejected", err, field)
		return
	}
	if r.Want == "" || r.Got == "" {
		t.Errorf("the rejection %+v does not say what was wanted and got", r)
	}
	if strings.Contains(r.Got, "panic") {
		t.Errorf("it was rejected because of a panic: %v", r)
	}
	if claims.PolicyHash.Valid() {
		t.Errorf("the claims of rejected evidence are %+v, want none", claims)
	}
}

func isRejected(err error) bool {
	_, ok := errors.AsType[*attestation.Rejected](err)
	return ok
}

func TestAPanicIsARejection(t *testing.T) {
	claims, err := simulated.Broken().Validate(t.Context(), issue(t, world(t).Machine(measurement, hostData)), reportData)
	r, ok := errors.AsType[*attestation.Rejected](err)
	if !ok || r.Field != "REPORT" || !strings.Contains(r.Got, "a panic: ") || claims.PolicyHash.Valid() {
		t.Errorf("got %v and %+v, want a rejection because of a panic, and no claims", err, claims)
	}
}
