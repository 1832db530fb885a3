package collateral

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	"github.com/google/go-tdx-guest/pcs"
)

// A kind is one sort of document that a vendor publishes. What is no kind of these is never fetched.
type kind struct {
	vendor string
	prefix string         // the library's own
	rest   *regexp.Regexp // all that follows
	// what names the document to people; $1 is the group of rest.
	what string
	// fresh is how long an answer is not asked for again.
	fresh time.Duration
	// read tells the document from a page that a proxy or a vendor in trouble answers with, and finds its NextUpdate, zero
	// where it has none. It judges nothing.
	read func([]byte) (nextUpdate time.Time, err error)
}

// The vendors, as metrics and the log name them.
const (
	amd   = "amd"
	intel = "intel"
)

const (
	// lasting is for certificates. One names the chip and the firmware that it vouches for, and does not change.
	lasting = 30 * 24 * time.Hour
	// passing is for what is issued anew for as long as the vendor lives: the validators judge its NextUpdate, days or
	// weeks ahead, and this is how soon they see a revocation.
	passing = time.Hour
)

// intelRootCRL is the distribution point in the certificate of Intel's SGX Root CA. The library has that certificate
// inside and does not give it out.
const intelRootCRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

// kinds come from the functions that the libraries build their URLs with: scheme, host and folder are in the prefix. Evidence
// is an attacker's, and a URL in it or made from it must not lead anywhere else.
var kinds = []kind{
	{
		amd, vcek, regexp.MustCompile(`^([A-Z][a-z]{2,15})/[0-9a-f]{16,128}\?[A-Za-z0-9=&]{1,128}$`),
		"the VCEK certificate of a chip of $1", lasting, readCertificate,
	},
	{amd, vcek, product("cert_chain"), "the VCEK certificate chain of $1", lasting, readChain},
	{amd, vlek, product("cert_chain"), "the VLEK certificate chain of $1", lasting, readChain},
	{amd, vcek, product("crl"), "the CRL of $1", passing, readCRL},
	{amd, vlek, product("crl"), "the VLEK CRL of $1", passing, readCRL},
	{
		intel, pcs.SgxBaseURL + "/pckcrl?ca=", regexp.MustCompile(`^(platform|processor)&encoding=der$`),
		"the PCK CRL of the $1 CA", passing, readCRL,
	},
	{intel, pcs.TcbInfoURL(""), regexp.MustCompile(`^([0-9a-fA-F]{12})$`), "the TCB info of FMSPC $1", passing, readTCB},
	{intel, pcs.QeIdentityURL(), regexp.MustCompile(`^$`), "the QE identity", passing, readTCB},
	{intel, intelRootCRL, regexp.MustCompile(`^$`), "the CRL of Intel's root", passing, readCRL},
}

var (
	vcek = strings.TrimSuffix(kds.ProductCertChainURL(abi.VcekReportSigner, ""), "/cert_chain")
	vlek = strings.TrimSuffix(kds.ProductCertChainURL(abi.VlekReportSigner, ""), "/cert_chain")
)

func product(document string) *regexp.Regexp {
	return regexp.MustCompile(`^([A-Z][a-z]{2,15})/` + document + `$`)
}

// classify says what kind of document a URL stands for: nil for any URL that is no vendor's.
func classify(address string) *kind {
	for i := range kinds {
		rest, ours := strings.CutPrefix(address, kinds[i].prefix)
		if ours && kinds[i].rest.MatchString(rest) {
			return &kinds[i]
		}
	}
	return nil
}

// name is what the document at a URL of this kind is called.
func (k *kind) name(address string) string {
	rest := strings.TrimPrefix(address, k.prefix)
	return string(k.rest.ExpandString(nil, k.what, rest, k.rest.FindStringSubmatchIndex(rest)))
}

func readCertificate(body []byte) (nextUpdate time.Time, err error) {
	_, err = x509.ParseCertificate(body)
	return nextUpdate, err
}

func readCRL(body []byte) (nextUpdate time.Time, err error) {
	crl, err := x509.ParseRevocationList(body)
	if err != nil {
		return time.Time{}, err
	}
	return crl.NextUpdate, nil
}

// readChain wants the ASK or ASVK and the ARK, one after the other in PEM (AMD document 57230, chapter "Certificate chain").
func readChain(body []byte) (nextUpdate time.Time, err error) {
	for i := range 2 {
		block, rest := pem.Decode(body)
		if block == nil {
			return nextUpdate, fmt.Errorf("%d certificates in PEM, want 2", i)
		}
		if _, err := readCertificate(block.Bytes); err != nil {
			return nextUpdate, err
		}
		body = rest
	}
	return nextUpdate, nil
}

// readTCB reads TCB info or a QE identity (Intel PCS API v4).
func readTCB(body []byte) (nextUpdate time.Time, err error) {
	type signed struct {
		NextUpdate time.Time `json:"nextUpdate"`
	}
	var document struct {
		TCBInfo         *signed `json:"tcbInfo"`
		EnclaveIdentity *signed `json:"enclaveIdentity"`
	}
	switch err := json.Unmarshal(body, &document); {
	case err != nil:
		return time.Time{}, fmt.Errorf("not JSON of Intel's: %w", err)
	case document.TCBInfo != nil:
		return document.TCBInfo.NextUpdate, nil
	case document.EnclaveIdentity != nil:
		return document.EnclaveIdentity.NextUpdate, nil
	default:
		return time.Time{}, errors.New("JSON without tcbInfo or enclaveIdentity")
	}
}
