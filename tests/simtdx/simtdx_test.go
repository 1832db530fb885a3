package simtdx_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/abi"
	tdxtesting "github.com/google/go-tdx-guest/testing"
	"github.com/google/go-tdx-guest/testing/testdata"
	"github.com/google/go-tdx-guest/verify"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/tests/simtdx"
)

var (
	now    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	policy = attestation.PolicyHash{1}
	data   = attestation.NewReportData("test")
)

func world(t *testing.T) *simtdx.World {
	t.Helper()
	w, err := simtdx.New(now)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func quote(t *testing.T, w *simtdx.World) []byte {
	t.Helper()
	e, err := w.Machine(policy).Issue(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	if e.Platform != attestation.TDX || e.Certificates != nil {
		t.Errorf("platform %s, certificates %x", e.Platform, e.Certificates)
	}
	return e.Report
}

type getter struct{ *simtdx.World }

func (g getter) Get(url string) (map[string][]string, []byte, error) {
	return g.World.Get(context.Background(), url)
}

// What Google's library takes for real, with every check on, has the real format.
func TestTheWorldIsRealToTheLibrary(t *testing.T) {
	w := world(t)
	roots := x509.NewCertPool()
	roots.AddCert(w.Root)
	if err := verify.RawTdxQuote(quote(t, w), &verify.Options{
		GetCollateral: true, CheckRevocations: true, Getter: getter{w}, TrustedRoots: roots,
		Now: &verify.TimeSet{PckCertChain: now, TcbInfo: now, QeIdentity: now, PckCrl: now, RootCaCrl: now},
	}); err != nil {
		t.Error(err)
	}
}

func TestAQuoteIsTheLibrarysToTheByte(t *testing.T) {
	raw := quote(t, world(t))
	parsed, err := abi.QuoteToProto(raw)
	if err != nil {
		t.Fatal(err)
	}
	again, err := abi.QuoteToAbiBytes(parsed)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, raw) {
		t.Error("the library lays the quote out differently")
	}
}

func TestCertificatesHaveTheExtensionsOfIntels(t *testing.T) {
	w := world(t)
	real, err := abi.QuoteToProto(testdata.RawQuote)
	if err != nil {
		t.Fatal(err)
	}
	intel, err := verify.ExtractChainFromQuote(real)
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]*x509.Certificate{
		{w.Root, intel.RootCertificate}, {w.CA, intel.IntermediateCertificate}, {w.PCK, intel.PCKCertificate},
	} {
		ours, theirs := extensions(pair[0]), extensions(pair[1])
		if !slices.Equal(ours, theirs) {
			t.Errorf("%s: %v, want %v", pair[0].Subject.CommonName, ours, theirs)
		}
		if ours, theirs := pair[0].Subject.String(), pair[1].Subject.String(); ours != theirs {
			t.Errorf("subject %s, want %s", ours, theirs)
		}
	}
}

func extensions(c *x509.Certificate) []string {
	var ids []string
	for _, e := range c.Extensions {
		ids = append(ids, e.Id.String())
	}
	slices.Sort(ids)
	return ids
}

func TestCollateralHasTheKeysOfIntels(t *testing.T) {
	w := world(t)
	for _, tc := range []struct {
		url, part string
		intel     []byte
		beyond    []string
	}{
		{w.TCBInfoURL(), "tcbInfo", testdata.TcbInfoBody, []string{"tdxModuleIdentities"}}, // since TDX 1.5
		{w.QEIdentityURL(), "enclaveIdentity", testdata.QeIdentityBody, nil},
	} {
		ours, theirs := keys(t, w.Answers[tc.url].Body, tc.part), append(keys(t, tc.intel, tc.part), tc.beyond...)
		slices.Sort(theirs)
		if !slices.Equal(ours, theirs) {
			t.Errorf("%s has %v, want %v", tc.part, ours, theirs)
		}
	}
	for url := range w.Answers {
		if url == w.RootCRLURL() {
			continue
		}
		intel, _, err := tdxtesting.TestGetter.Get(url)
		if err != nil {
			t.Errorf("nobody asks Intel for %s: %v", url, err)
		}
		for header := range intel {
			if chain := w.Answers[url].Header.Values(header); len(chain) != 1 || bytes.ContainsAny([]byte(chain[0]), " +\n") {
				t.Errorf("%s: header %s is %q", url, header, chain)
			}
		}
	}
}

func keys(t *testing.T, body []byte, part string) []string {
	t.Helper()
	var parts map[string]json.RawMessage
	if err := json.Unmarshal(body, &parts); err != nil {
		t.Fatal(err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(parts[part], &fields); err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(fields))
}

func TestAWorldOfPublishedKeysIsTheSameEachTime(t *testing.T) {
	published := func(p *simtdx.Plan) { p.Keys = simtdx.PublishedKeys() }
	one, err := simtdx.New(now, published)
	if err != nil {
		t.Fatal(err)
	}
	other, err := simtdx.New(now, published)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(quote(t, one), quote(t, other)) {
		t.Error("two quotes differ")
	}
	for url := range one.Answers {
		if !bytes.Equal(one.Answers[url].Body, other.Answers[url].Body) {
			t.Errorf("two answers to %s differ", url)
		}
	}
	if world(t).Root.Equal(one.Root) {
		t.Error("a new world has the published root")
	}
}

func TestNoEvidenceOverNothing(t *testing.T) {
	if _, err := world(t).Machine(policy).Issue(t.Context(), attestation.ReportData{}); err == nil {
		t.Error("evidence over no report data was issued")
	}
}

func TestWhatIsNotPublishedIsUnavailable(t *testing.T) {
	w := world(t)
	var u *attestation.Unavailable
	if _, _, err := w.Get(t.Context(), w.RootCRLURL()+"x"); !errors.As(err, &u) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := w.Get(ctx, w.RootCRLURL()); !errors.As(err, &u) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAnHTTPClientGetsTheSame(t *testing.T) {
	w := world(t)
	client := http.Client{Transport: w}
	for url, want := range w.Answers {
		r, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != http.StatusOK || !bytes.Equal(body, want.Body) ||
			!maps.EqualFunc(r.Header, want.Header, slices.Equal) {
			t.Errorf("%s: %s %v: %v", url, r.Status, r.Header, err)
		}
	}
	if r, err := client.Get(w.RootCRLURL() + "x"); err != nil || r.StatusCode != http.StatusNotFound {
		t.Errorf("got %v: %v", r, err)
	}
}

func TestPEMIsOneAfterTheOther(t *testing.T) {
	w := world(t)
	text := simtdx.PEM(w.PCK, w.CA)
	first, rest := pem.Decode(text)
	second, rest := pem.Decode(rest)
	if !bytes.Equal(first.Bytes, w.PCK.Raw) || !bytes.Equal(second.Bytes, w.CA.Raw) || len(rest) != 0 {
		t.Error("not the two certificates")
	}
}
