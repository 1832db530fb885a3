package tdx_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/abi"
	tdxtesting "github.com/google/go-tdx-guest/testing"
	"github.com/google/go-tdx-guest/testing/testdata"
	"github.com/google/go-tdx-guest/validate"
	"github.com/google/go-tdx-guest/verify"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/tests/simtdx"
)

// sampleDay is when the collateral that go-tdx-guest carries was current.
var sampleDay = time.Date(2023, 7, 1, 0, 0, 0, 0, time.UTC)

// sampleQuote is a quote of a production machine. The library's maintainers put some text behind it.
func sampleQuote() []byte {
	return bytes.TrimSuffix(testdata.RawQuote, []byte("\nextra bytes(only for testing purpose)\n"))
}

// sampleCollateral is what PCS said about that machine.
func sampleCollateral() attestation.Getter {
	return getter(func(_ context.Context, url string) (http.Header, []byte, error) {
		header, body, err := tdxtesting.TestGetter.Get(url)
		if err != nil {
			return nil, nil, &attestation.Unavailable{What: url, Err: err}
		}
		return header, body, nil
	})
}

// sampleValidator trusts Intel, and lives on the samples' day. What it would compare with does not matter.
func sampleValidator(t *testing.T, collateral attestation.Getter, day time.Time) attestation.Validator {
	t.Helper()
	return validator(t, tdx.Options{Collateral: collateral, Now: func() time.Time { return day }},
		world(t).Machine(policy).Reference())
}

func TestOurRootIsTheLibrarys(t *testing.T) {
	const fingerprint = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
	if sum := sha256.Sum256(tdx.IntelRoot().Raw); hex.EncodeToString(sum[:]) != fingerprint {
		t.Errorf("SHA-256 %x, want %s", sum, fingerprint)
	}
	// The library does not export its own, but says what it does not know.
	roots := x509.NewCertPool()
	roots.AddCert(tdx.IntelRoot())
	for name, pool := range map[string]*x509.CertPool{"the library's": nil, "ours": roots} {
		if err := verify.RawTdxQuote(sampleQuote(), &verify.Options{
			TrustedRoots: pool, Now: &verify.TimeSet{PckCertChain: sampleDay},
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	quote, err := abi.QuoteToProto(sampleQuote())
	if err != nil {
		t.Fatal(err)
	}
	chain, err := verify.ExtractChainFromQuote(quote)
	if err != nil {
		t.Fatal(err)
	}
	if !chain.RootCertificate.Equal(tdx.IntelRoot()) {
		t.Error("the root in the sample is not ours")
	}
}

// A real quote, real collateral and Intel's real root. All signatures, certificates, lists and dates are good, and so is
// the quoting enclave; then it stops: the collateral that the library carries is younger than the machine's firmware and
// knows no level that low (the library says the same), its TD was launched without a policy and lets the host inject #VE.
func TestARealQuote(t *testing.T) {
	v := sampleValidator(t, sampleCollateral(), sampleDay)
	_, _, _, err := tdx.Verify(t.Context(), v, sampleQuote(), sampleDay)
	wantRejected(t, "TCB.PLATFORM", attestation.Claims{}, err)
	if !strings.Contains(err.Error(), "none: CPUSVN 03030202020100020000000000000000, PCESVN 11, TEE_TCB_SVN 0300040000") {
		t.Error(err)
	}
	if collateral, _ := tdx.Remembered(v); collateral != 1 {
		t.Error("the collateral was not found good")
	}
	data, err := attestation.ParseReportData(sampleQuote()[568:632])
	if err != nil {
		t.Fatal(err)
	}
	claims, err := v.Validate(t.Context(), attestation.Evidence{Platform: attestation.TDX, Report: sampleQuote()}, data)
	wantRejected(t, "TDATTRIBUTES.SEPT_VE_DISABLE", claims, err)
	claims, err = v.Validate(t.Context(), attestation.Evidence{Platform: attestation.TDX, Report: testdata.RawQuote}, data)
	wantRejected(t, "REPORT", claims, err) // with the maintainers' text

	const chain = 636 + 134 + 384 + 64 + 2 + 32 + 6
	for i := range chain {
		forged := bytes.Clone(sampleQuote())
		forged[i] ^= 1
		_, _, _, err := tdx.Verify(t.Context(), v, forged, sampleDay)
		var r *attestation.Rejected
		if !errors.As(err, &r) || strings.HasPrefix(r.Field, "TCB") {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
}

func TestARealQuoteOnAnotherDay(t *testing.T) {
	for day, what := range map[time.Time]string{
		sampleDay.AddDate(0, -1, 0): "TCB info",
		sampleDay.AddDate(0, 0, 10): "identity of the quoting enclave",
		sampleDay.AddDate(0, 1, 0):  "TCB info",
	} {
		_, _, _, err := tdx.Verify(t.Context(), sampleValidator(t, sampleCollateral(), day), sampleQuote(), day)
		wantUnavailable(t, what, attestation.Claims{}, err)
	}
}

// A quote as Google's guests get it, of a TDX module of version 1.5 and padded to 8000 bytes. The library carries no
// collateral for its platform, so it verifies up to there.
func TestARealQuoteOfAnotherPlatform(t *testing.T) {
	quote, err := os.ReadFile("testdata/cos-113.quote")
	if err != nil {
		t.Fatal(err)
	}
	day := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	_, _, _, err = tdx.Verify(t.Context(), sampleValidator(t, sampleCollateral(), day), quote, day)
	wantUnavailable(t, "TCB info of FMSPC", attestation.Claims{}, err)

	quote[48] ^= 1
	_, _, _, err = tdx.Verify(t.Context(), sampleValidator(t, sampleCollateral(), day), quote, day)
	wantRejected(t, "SIGNATURE", attestation.Claims{}, err)
}

func TestQuotesOfVersion5AreRefused(t *testing.T) {
	quote, err := abi.QuoteToProto(testdata.RawQuoteV5)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify.TdxQuote(quote, &verify.Options{}); err == nil || !strings.Contains(err.Error(), "unsupported quote type") {
		t.Errorf("the library can verify version 5 now (%v): so should we", err)
	}
	_, _, _, err = tdx.Verify(t.Context(), sampleValidator(t, sampleCollateral(), sampleDay), testdata.RawQuoteV5, sampleDay)
	wantRejected(t, "VERSION", attestation.Claims{}, err)
}

// What follows are holes of the library, or of using it without care. Each test shows the hole first, where it can be
// shown, and then that it is closed here.

func panics(f func()) (panicked bool) {
	defer func() { panicked = recover() != nil }()
	f()
	return false
}

func TestLibraryHoleShortTEETCBSVN(t *testing.T) {
	// A minimum that is shorter than TEE_TCB_SVN panics in the library.
	w := world(t)
	m := w.Machine(policy)
	for n := range 16 {
		minimum := make([]byte, n)
		if n > 0 && !panics(func() {
			_ = validate.RawTdxQuote(sampleQuote(), &validate.Options{
				TdQuoteBodyOptions: validate.TdQuoteBodyOptions{MinimumTeeTcbSvn: minimum},
			})
		}) {
			t.Log("the library no longer panics on a short minimum")
		}
		ref := m.Reference()
		ref.MinimumTCB.TEETCBSVN = hex.EncodeToString(minimum)
		if faults := ref.Validate(); len(faults) != 1 || !strings.HasPrefix(faults[0], "MinimumTCB.TEETCBSVN: ") {
			t.Errorf("%d bytes: faults %q", n, faults)
		}
	}
	// From bytes, signature data that is too short for its own fields panics in the parser.
	cut := bytes.Clone(sampleQuote()[:1100])
	copy(cut[632:], []byte{10, 0, 0, 0})
	if !panics(func() { _, _ = abi.QuoteToProto(cut) }) {
		t.Log("the library no longer panics on short signature data")
	}

	v := validator(t, options(w), m.Reference())
	e := issue(t, m)
	for _, n := range []int{48, 49, 63, 64} { // inside and right behind TEE_TCB_SVN
		claims, err := v.Validate(t.Context(), attestation.Evidence{Platform: attestation.TDX, Report: e.Report[:n]}, reportData)
		wantRejected(t, "REPORT", claims, err)
	}
	for size := range 134 + 384 + 64 + 2 + 6 {
		e.Report[632], e.Report[633] = byte(size), byte(size>>8)
		for i := 636 + size; i < len(e.Report); i++ {
			e.Report[i] = 0
		}
		_, err := v.Validate(t.Context(), attestation.Evidence{Platform: attestation.TDX, Report: bytes.Clone(e.Report)}, reportData)
		if err == nil || strings.Contains(err.Error(), "panic") {
			t.Errorf("%d bytes of signature data: %v", size, err)
		}
		e = issue(t, m)
	}
}

func TestLibraryHoleNilTrustedRoots(t *testing.T) {
	// The library falls back to Intel's root where an operator named none. Here, a validator under other roots refuses
	// Intel's, and one that was told nothing refuses all others.
	if err := verify.RawTdxQuote(sampleQuote(), &verify.Options{Now: &verify.TimeSet{PckCertChain: sampleDay}}); err != nil {
		t.Fatal(err)
	}
	w := world(t)
	_, _, _, err := tdx.Verify(t.Context(), validator(t, options(w)), sampleQuote(), sampleDay)
	wantRejected(t, "CHAIN.ROOT", attestation.Claims{}, err)

	m := w.Machine(policy)
	o := options(w)
	o.Roots = nil
	claims, err := validator(t, o, m.Reference()).Validate(t.Context(), issue(t, m), reportData)
	wantRejected(t, "CHAIN.ROOT", claims, err)
}

func TestLibraryHoleFrozenNow(t *testing.T) {
	// The library's Options keep the time of their first use.
	o := &verify.Options{}
	_ = verify.RawTdxQuote(sampleQuote(), o)
	if o.Now == nil {
		t.Log("the library no longer writes the time into its options")
	}

	w := world(t)
	m := w.Machine(policy)
	opts := options(w)
	day := now
	opts.Now = func() time.Time { return day }
	v, e := validator(t, opts, m.Reference()), issue(t, m)
	if _, err := v.Validate(t.Context(), e, reportData); err != nil {
		t.Fatal(err)
	}
	day = now.AddDate(0, 0, 30)
	claims, err := v.Validate(t.Context(), e, reportData)
	wantUnavailable(t, "TCB info", claims, err)
	day = now.AddDate(8, 0, 0)
	claims, err = v.Validate(t.Context(), e, reportData)
	wantRejected(t, "CHAIN.PCK", claims, err)
	day = now
	if _, err := v.Validate(t.Context(), e, reportData); err != nil {
		t.Error(err)
	}
}

func TestLibraryHoleSharedOptions(t *testing.T) {
	// The library writes chain, collateral and platform into its Options, so that two goroutines that share them judge
	// one another's. Two platforms under one root, judged at once by one validator, must keep their own.
	one := world(t)
	other := world(t, func(p *simtdx.Plan) {
		p.Keys.Root, p.Keys.CA, p.Keys.TCBSigner = one.Plan.Keys.Root, one.Plan.Keys.CA, one.Plan.Keys.TCBSigner
		p.PCK.SerialNumber.SetInt64(0x2003)
		p.Platform.FMSPC = [6]byte{0x90, 0xc0, 0x6f}
		p.TCBInfo.FMSPC = "90c06f000000"
		p.TCBInfo.TCBLevels[0].TCBStatus = "SWHardeningNeeded"
	})
	one.Answers[other.TCBInfoURL()] = other.Answers[other.TCBInfoURL()]
	machines := []*simtdx.Machine{one.Machine(policy), other.Machine(policy)}
	ref := machines[0].Reference()
	ref.AcceptedTCBStatuses = []string{"UpToDate", "SWHardeningNeeded"}
	v := validator(t, options(one), ref)
	var group sync.WaitGroup
	for i, m := range machines {
		e := issue(t, m)
		for range 50 {
			group.Go(func() {
				claims, err := v.Validate(t.Context(), e, reportData)
				if err != nil {
					t.Error(err)
					return
				}
				got := fmt.Sprintf("%x %s", claims.TDX.FMSPC, claims.TDX.PlatformTCBStatus)
				if want := []string{"50806f000000 UpToDate", "90c06f000000 SWHardeningNeeded"}[i]; got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		}
	}
	group.Wait()
}

func TestLibraryHoleOneTCBLevel(t *testing.T) {
	// Of platform and module, the library reports and judges one: with a module of version 1.5, the platform may be out of
	// date unnoticed.
	w := world(t)
	m := w.Machine(policy)
	m.TD.TEETCBSVN[2] = 6
	e := issue(t, m)
	roots := x509.NewCertPool()
	roots.AddCert(w.Root)
	if err := verify.RawTdxQuote(e.Report, &verify.Options{
		GetCollateral: true, CheckRevocations: true, Getter: libraryGetter{w}, TrustedRoots: roots,
		Now: &verify.TimeSet{PckCertChain: now, TcbInfo: now, QeIdentity: now, PckCrl: now, RootCaCrl: now},
	}); err != nil {
		t.Logf("the library now notices that the platform is out of date: %v", err)
	}
	claims, err := validator(t, options(w), m.Reference()).Validate(t.Context(), e, reportData)
	wantRejected(t, "TCB.PLATFORM", claims, err)
}

func TestLibraryHoleUnsignedTCBInfoBesideTheSigned(t *testing.T) {
	// The library checks the signature of "tcbInfo" and then reads whichever key comes last that is tcbInfo in any case.
	w := world(t)
	m := w.Machine(policy)
	m.TD.TEETCBSVN[2] = 6 // out of date, says the signed one
	m.TD.TEETCBSVN[0], m.TD.TEETCBSVN[1] = 3, 0
	a := w.Answers[w.TCBInfoURL()]
	forged := w.Plan.TCBInfo
	forged.TCBLevels = append(forged.TCBLevels[:0:0], forged.TCBLevels...)
	forged.TCBLevels[1].TCBStatus = "UpToDate"
	text, err := json.Marshal(forged)
	if err != nil {
		t.Fatal(err)
	}
	a.Body = append(append(append(bytes.TrimSuffix(a.Body, []byte("}")), `,"TCBINFO":`...), text...), '}')
	w.Answers[w.TCBInfoURL()] = a
	e := issue(t, m)
	roots := x509.NewCertPool()
	roots.AddCert(w.Root)
	if err := verify.RawTdxQuote(e.Report, &verify.Options{
		GetCollateral: true, CheckRevocations: true, Getter: libraryGetter{w}, TrustedRoots: roots,
		Now: &verify.TimeSet{PckCertChain: now, TcbInfo: now, QeIdentity: now, PckCrl: now, RootCaCrl: now},
	}); err != nil {
		t.Logf("the library no longer reads the unsigned one: %v", err)
	}
	claims, err := validator(t, options(w), m.Reference()).Validate(t.Context(), e, reportData)
	wantRejected(t, "TCB_INFO", claims, err)
}

// libraryGetter is a world as the library asks it.
type libraryGetter struct{ *simtdx.World }

func (g libraryGetter) Get(url string) (map[string][]string, []byte, error) {
	return g.World.Get(context.Background(), url)
}
