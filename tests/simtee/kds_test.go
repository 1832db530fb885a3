package simtee_test

import (
	"crypto/x509"
	"io"
	"net/http"
	"testing"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	"github.com/google/go-sev-guest/verify/trust"

	"portcullis.dev/portcullis/tests/simtee"
)

// The client is the library's own: what it understands is what AMD sends.
func TestTheKDSAnswersAsAMDsDoes(t *testing.T) {
	w, err := simtee.NewProduct("Genoa", simtee.PublishedKeys(), nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: w.KDS()}
	get := func(url string) (int, []byte) {
		t.Helper()
		answer, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, body
	}

	for key, signer := range map[abi.ReportSigner]*x509.Certificate{abi.VcekReportSigner: w.ASK, abi.VlekReportSigner: w.ASVK} {
		_, body := get(kds.ProductCertChainURL(key, "Genoa"))
		root := trust.AMDRootCertsProduct("Genoa")
		if err := root.FromKDSCertBytes(body); err != nil || !root.ProductCerts.Ark.Equal(w.ARK) {
			t.Errorf("%v: the chain is not this world's: %v", key, err)
		}
		got := root.ProductCerts.Ask
		if key == abi.VlekReportSigner {
			got = root.ProductCerts.Asvk
		}
		if !got.Equal(signer) {
			t.Errorf("%v: the chain is not that of the key", key)
		}
		_, body = get(kds.CrlLinkByKey("Genoa", key))
		if list, err := x509.ParseRevocationList(body); err != nil || list.CheckSignatureFrom(w.ARK) != nil {
			t.Errorf("%v: the revocation list is not this world's: %v", key, err)
		}
	}

	vouch, err := kds.VcekCertificateExtensions(w.VCEK)
	if err != nil {
		t.Fatal(err)
	}
	if _, body := get(kds.VCEKCertURL("Genoa", vouch.HWID, vouch.TCBVersion)); string(body) != string(w.VCEK.Raw) {
		t.Error("the VCEK is not this world's")
	}
	for _, url := range []string{
		kds.VCEKCertURL("Genoa", vouch.HWID, vouch.TCBVersion+1),
		kds.VCEKCertURL("Genoa", make([]byte, abi.ChipIDSize), vouch.TCBVersion),
		kds.CrlLinkByKey("Milan", abi.VcekReportSigner),
	} {
		if status, _ := get(url); status != http.StatusNotFound {
			t.Errorf("%s: got status %d, want %d", url, status, http.StatusNotFound)
		}
	}
}
