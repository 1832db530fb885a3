package collateral

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	"github.com/google/go-tdx-guest/pcs"

	"portcullis.dev/portcullis/attestation"
)

// SNP lists the URLs of what AMD publishes about a processor line: Milan, Genoa or Turin.
func SNP(product string) ([]string, error) {
	known := slices.Sorted(maps.Values(kds.ProductLineCpuid))
	if !slices.Contains(known, product) {
		return nil, fmt.Errorf("no processor line is called %q, want one of %s", product, strings.Join(known, ", "))
	}
	var urls []string
	for _, signer := range []abi.ReportSigner{abi.VcekReportSigner, abi.VlekReportSigner} {
		urls = append(urls, kds.ProductCertChainURL(signer, product), kds.CrlLinkByKey(product, signer))
	}
	return urls, nil
}

// TDX lists the URLs of what Intel publishes about a platform model: 12 hexadecimal digits, as the extension FMSPC of its PCK
// certificates has them.
func TDX(fmspc string) ([]string, error) {
	if b, err := hex.DecodeString(fmspc); err != nil || len(b) != 6 {
		return nil, fmt.Errorf("FMSPC %q is not 12 hexadecimal digits", fmspc)
	}
	return []string{
		pcs.TcbInfoURL(strings.ToLower(fmspc)), pcs.QeIdentityURL(),
		pcs.PckCrlURL("platform"), pcs.PckCrlURL("processor"), intelRootCRL,
	}, nil
}

// ForEvidence lists the URLs of what it takes to judge evidence like this one. It believes the evidence.
func ForEvidence(e attestation.Evidence) (urls []string, err error) {
	defer func() {
		if p := recover(); p != nil { // the parsers are a library's
			urls, err = nil, fmt.Errorf("read evidence: a panic: %v", p)
		}
	}()
	switch e.Platform {
	case attestation.SNP:
		return forReport(e.Report)
	case attestation.TDX:
		return forQuote(e.Report)
	default:
		return nil, fmt.Errorf("evidence of platform %q: nobody publishes collateral for that, want snp or tdx", e.Platform)
	}
}

func forReport(raw []byte) ([]string, error) {
	if len(raw) != abi.ReportSize {
		return nil, fmt.Errorf("a report of %d bytes, want %d", len(raw), abi.ReportSize)
	}
	report, err := abi.ReportToProto(raw)
	if err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	signer, err := abi.ParseSignerInfo(report.GetSignerInfo())
	if err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	product := kds.ProductLineFromFms(report.GetCpuid1EaxFms())
	urls, err := SNP(product)
	if err != nil {
		return nil, err
	}
	if signer.SigningKey == abi.VcekReportSigner {
		urls = append(urls, kds.VCEKCertURL(product, report.GetChipId(), kds.TCBVersion(report.GetReportedTcb())))
	}
	return urls, nil
}

// forQuote finds the PCK certificate: the first of the PEM chain that a quote carries (Intel TDX DCAP quoting library API,
// appendix 3, certification data of type 5).
func forQuote(quote []byte) ([]string, error) {
	// Binary data, without a newline, is before it: the decoder would take the next certificate.
	_, chain, found := bytes.Cut(quote, []byte("-----BEGIN CERTIFICATE-----"))
	block, _ := pem.Decode(append([]byte("-----BEGIN CERTIFICATE-----"), chain...))
	if !found || block == nil {
		return nil, errors.New("the quote carries no PCK certificate")
	}
	pck, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the PCK certificate: %w", err)
	}
	extensions, err := pcs.PckCertificateExtensions(pck)
	if err != nil {
		return nil, fmt.Errorf("read the PCK certificate: %w", err)
	}
	return TDX(extensions.FMSPC)
}

// Refresh fetches documents before anybody needs them, whatever their age; certificates only where there are none. Its error
// names each that could not be had.
func (c *Cache) Refresh(ctx context.Context, urls []string) error {
	var errs []error
	for _, url := range urls {
		if err := c.refresh(ctx, url); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (c *Cache) refresh(ctx context.Context, url string) error {
	k := classify(url)
	if k == nil || k.fresh == lasting {
		_, _, err := c.Get(ctx, url)
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	e, err := c.fetch(ctx, url, k)
	if err == nil {
		err = c.store(e)
	}
	if err != nil {
		return &attestation.Unavailable{What: k.name(url), Err: err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remember(e)
	return nil
}
