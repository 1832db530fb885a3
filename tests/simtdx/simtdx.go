// Package simtdx is a pretended TDX platform and a pretended Intel, for tests. Nothing that is shipped imports it.
//
// A World stands for Intel and one of its platforms: the SGX root CA, the CA that certifies platforms (PCK Platform CA),
// the platform's own certificate (PCK) with Intel's SGX extension, the signer of collateral, and what Intel's provisioning
// certification service (PCS) publishes: TCB info, the quoting enclave's identity and lists of revoked certificates. It
// answers the service's URLs as an attestation.Getter and as an http.RoundTripper. A Machine stands for one TD on that
// platform, with a quoting enclave; it is an attestation.Issuer, and its quotes are real to the byte.
package simtdx

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/pcs"

	"portcullis.dev/portcullis/attestation"
)

// rootCRLURL is where a world's root says that its CRL is, unless its plan was altered. No such host exists.
const rootCRLURL = "https://pcs.invalid/IntelSGXRootCA.der"

// Keys are the private keys of a world, all P-256.
type Keys struct {
	Root, CA, PCK, TCBSigner *ecdsa.PrivateKey
	Attestation              *ecdsa.PrivateKey // the quoting enclave's
}

// PublishedKeys are the same each time, for anyone to make: for tests that must find the same world again.
func PublishedKeys() Keys {
	key := func(name string) *ecdsa.PrivateKey {
		scalar := sha256.Sum256([]byte("portcullis simtdx " + name))
		k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:])
		if err != nil {
			panic(err) // all five are in range
		}
		return k
	}
	return Keys{
		Root: key("root"), CA: key("PCK CA"), PCK: key("PCK"), TCBSigner: key("TCB signer"), Attestation: key("attestation"),
	}
}

// Plan is everything that a world is made from. A test alters it before anything is signed, so that exactly one thing is
// wrong.
type Plan struct {
	Keys                     Keys
	Root, CA, PCK, TCBSigner *x509.Certificate // templates
	Platform                 Platform
	AlterSGX                 func(der []byte) []byte // changes the finished SGX extension; may be nil
	TCBInfo                  TCBInfo
	QEIdentity               QEIdentity
	RootCRL, PCKCRL          *x509.RevocationList // templates
}

// Platform is what the PCK certificate says (Intel SGX PCK Certificate and Certificate Revocation List Profile
// Specification, "SGX Extensions").
type Platform struct {
	PPID          [16]byte
	TCBComponents [16]byte
	PCESVN        int
	PCEID         [2]byte
	FMSPC         [6]byte
}

// Hex is bytes that stand in JSON as Intel writes them: upper-case hexadecimal digits.
type Hex []byte

// MarshalText encodes h.
func (h Hex) MarshalText() ([]byte, error) {
	return []byte(strings.ToUpper(hex.EncodeToString(h))), nil
}

// TCBInfo is the signed part of PCS' answer to "Get TDX TCB Info", version 3.
type TCBInfo struct {
	ID                      string           `json:"id"`
	Version                 int              `json:"version"`
	IssueDate               time.Time        `json:"issueDate"`
	NextUpdate              time.Time        `json:"nextUpdate"`
	FMSPC                   string           `json:"fmspc"`
	PCEID                   string           `json:"pceId"`
	TCBType                 int              `json:"tcbType"`
	TCBEvaluationDataNumber int              `json:"tcbEvaluationDataNumber"`
	TDXModule               Module           `json:"tdxModule"`
	TDXModuleIdentities     []ModuleIdentity `json:"tdxModuleIdentities,omitempty"`
	TCBLevels               []Level          `json:"tcbLevels"`
}

// Module is Intel's word on all TDX modules.
type Module struct {
	MRSigner       Hex `json:"mrsigner"`
	Attributes     Hex `json:"attributes"`
	AttributesMask Hex `json:"attributesMask"`
}

// ModuleIdentity is Intel's word on the TDX modules of one version.
type ModuleIdentity struct {
	ID string `json:"id"`
	Module
	TCBLevels []Level `json:"tcbLevels"`
}

// Level is versions and Intel's judgement of them.
type Level struct {
	TCB         TCB       `json:"tcb"`
	TCBDate     time.Time `json:"tcbDate"`
	TCBStatus   string    `json:"tcbStatus"`
	AdvisoryIDs []string  `json:"advisoryIDs,omitempty"`
}

// TCB is versions: of a platform, or ISVSVN of a TDX module or of an enclave.
type TCB struct {
	SGXComponents []Component `json:"sgxtcbcomponents,omitempty"`
	PCESVN        *int        `json:"pcesvn,omitempty"`
	TDXComponents []Component `json:"tdxtcbcomponents,omitempty"`
	ISVSVN        *int        `json:"isvsvn,omitempty"`
}

// Component is one component's version.
type Component struct {
	SVN byte `json:"svn"`
}

// QEIdentity is the signed part of PCS' answer to "Get TDX QE Identity", version 2.
type QEIdentity struct {
	ID                      string    `json:"id"`
	Version                 int       `json:"version"`
	IssueDate               time.Time `json:"issueDate"`
	NextUpdate              time.Time `json:"nextUpdate"`
	TCBEvaluationDataNumber int       `json:"tcbEvaluationDataNumber"`
	MiscSelect              Hex       `json:"miscselect"`
	MiscSelectMask          Hex       `json:"miscselectMask"`
	Attributes              Hex       `json:"attributes"`
	AttributesMask          Hex       `json:"attributesMask"`
	MRSigner                Hex       `json:"mrsigner"`
	ISVProdID               int       `json:"isvprodid"`
	TCBLevels               []Level   `json:"tcbLevels"`
}

// Answer is what PCS says to one question.
type Answer struct {
	Header http.Header
	Body   []byte
}

// World is a root of trust and one platform under it. It is an attestation.Getter.
type World struct {
	Plan    *Plan
	Root    *x509.Certificate
	CA      *x509.Certificate
	PCK     *x509.Certificate
	Signer  *x509.Certificate // of TCB info and QE identity
	Answers map[string]Answer // by URL
}

// The questions that a World answers.

// TCBInfoURL asks for the TCB info of the platform.
func (w *World) TCBInfoURL() string {
	return pcs.TcbInfoURL(hex.EncodeToString(w.Plan.Platform.FMSPC[:]))
}

// QEIdentityURL asks for the identity of the quoting enclave.
func (*World) QEIdentityURL() string { return pcs.QeIdentityURL() }

// PCKCRLURL asks for the revoked PCK certificates.
func (*World) PCKCRLURL() string { return pcs.PckCrlURL("platform") }

// RootCRLURL asks for the revoked CAs and signers.
func (w *World) RootCRLURL() string {
	if points := w.Plan.Root.CRLDistributionPoints; len(points) > 0 {
		return points[0]
	}
	return rootCRLURL
}

// New makes a world whose collateral is current at now.
func New(now time.Time, alterations ...func(*Plan)) (*World, error) {
	plan, err := newPlan(now)
	if err != nil {
		return nil, fmt.Errorf("make a TDX world: %w", err)
	}
	for _, alter := range alterations {
		alter(plan)
	}
	w := &World{Plan: plan}
	if err := w.certify(); err != nil {
		return nil, fmt.Errorf("make a TDX world: %w", err)
	}
	if err := w.publish(); err != nil {
		return nil, fmt.Errorf("make a TDX world: %w", err)
	}
	return w, nil
}

// Get answers as PCS does.
func (w *World) Get(ctx context.Context, url string) (http.Header, []byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, &attestation.Unavailable{What: url, Err: err}
	}
	answer, ok := w.Answers[url]
	if !ok {
		return nil, nil, &attestation.Unavailable{What: url, Err: fmt.Errorf("status %d", http.StatusNotFound)}
	}
	return answer.Header, answer.Body, nil
}

// RoundTrip answers as PCS does, for those who bring an HTTP client.
func (w *World) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, ok := w.Answers[r.URL.String()]
	status := http.StatusOK
	if !ok {
		status = http.StatusNotFound
	}
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: answer.Header.Clone(), Body: io.NopCloser(bytes.NewReader(answer.Body)),
		ContentLength: int64(len(answer.Body)), Request: r,
	}, nil
}

func newPlan(now time.Time) (*Plan, error) {
	p := &Plan{}
	for _, to := range []**ecdsa.PrivateKey{
		&p.Keys.Root, &p.Keys.CA, &p.Keys.PCK, &p.Keys.TCBSigner, &p.Keys.Attestation,
	} {
		var err error
		if *to, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
	}
	p.Platform = Platform{
		PPID:          [16]byte(repeat(0x9d, 16)),
		TCBComponents: [16]byte{5, 5, 2, 2, 3, 1, 0, 3},
		PCESVN:        13,
		FMSPC:         [6]byte{0x50, 0x80, 0x6f},
	}
	p.templates(now)
	p.judgement(now)
	return p, nil
}

// templates are the certificates and lists of Intel's profile specification, with its names and terms.
func (p *Plan) templates(now time.Time) {
	template := func(serial int64, commonName, crl string, years int) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber:          big.NewInt(serial),
			Subject:               intelName(commonName),
			NotBefore:             now.AddDate(-1, 0, 0),
			NotAfter:              now.AddDate(years, 0, 0),
			SignatureAlgorithm:    x509.ECDSAWithSHA256,
			BasicConstraintsValid: true,
			CRLDistributionPoints: []string{crl},
		}
	}
	p.Root = template(0x1001, "Intel SGX Root CA", rootCRLURL, 30)
	p.Root.IsCA, p.Root.MaxPathLen, p.Root.KeyUsage = true, 1, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	p.CA = template(0x1002, "Intel SGX PCK Platform CA", rootCRLURL, 15)
	p.CA.IsCA, p.CA.MaxPathLenZero, p.CA.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	p.PCK = template(0x1003, "Intel SGX PCK Certificate", pcs.PckCrlURL("platform"), 7)
	p.PCK.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment
	p.TCBSigner = template(0x1004, "Intel SGX TCB Signing", rootCRLURL, 7)
	p.TCBSigner.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment

	p.RootCRL = &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: now.AddDate(0, -1, 0), NextUpdate: now.AddDate(1, 0, 0),
	}
	p.PCKCRL = &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: now.AddDate(0, 0, -1), NextUpdate: now.AddDate(0, 0, 29),
		RevokedCertificateEntries: []x509.RevocationListEntry{
			{SerialNumber: big.NewInt(0xbad), RevocationTime: now.AddDate(0, -1, 0)}, // some other platform
		},
	}
}

// judgement is TCB info and QE identity. For platform, module and quoting enclave there is one level that is UpToDate,
// which DefaultMachine has, and one below that is OutOfDate.
func (p *Plan) judgement(now time.Time) {
	number := func(n int) *int { return &n }
	date := func(days int) time.Time { return now.AddDate(0, 0, days).UTC().Truncate(time.Second) }
	platform := func(status string, pcesvn int, tdx [16]byte, advisories ...string) Level {
		return Level{
			TCB: TCB{
				SGXComponents: components(p.Platform.TCBComponents), PCESVN: number(pcesvn), TDXComponents: components(tdx),
			},
			TCBDate: date(-100), TCBStatus: status, AdvisoryIDs: advisories,
		}
	}
	isv := func(status string, svn int, advisories ...string) Level {
		return Level{TCB: TCB{ISVSVN: number(svn)}, TCBDate: date(-100), TCBStatus: status, AdvisoryIDs: advisories}
	}
	module := Module{MRSigner: make(Hex, 48), Attributes: make(Hex, 8), AttributesMask: repeat(0xff, 8)}
	p.TCBInfo = TCBInfo{
		ID: "TDX", Version: 3, IssueDate: date(-1), NextUpdate: date(29),
		FMSPC: hex.EncodeToString(p.Platform.FMSPC[:]), PCEID: hex.EncodeToString(p.Platform.PCEID[:]),
		TCBEvaluationDataNumber: 17,
		TDXModule:               module,
		TDXModuleIdentities: []ModuleIdentity{
			{ID: "TDX_03", Module: module, TCBLevels: []Level{isv("UpToDate", 3)}},
			{ID: "TDX_01", Module: module, TCBLevels: []Level{
				isv("UpToDate", 4), isv("OutOfDate", 2, "INTEL-SA-01036"),
			}},
		},
		TCBLevels: []Level{
			platform("UpToDate", 13, [16]byte{5, 0, 7}),
			platform("OutOfDate", 5, [16]byte{3, 0, 5}, "INTEL-SA-00837", "INTEL-SA-00960"),
		},
	}
	p.QEIdentity = QEIdentity{
		ID: "TD_QE", Version: 2, IssueDate: date(-1), NextUpdate: date(29), TCBEvaluationDataNumber: 17,
		MiscSelect: make(Hex, 4), MiscSelectMask: repeat(0xff, 4),
		Attributes:     append(Hex{0x11}, make(Hex, 15)...),
		AttributesMask: append(append(Hex{0xfb}, repeat(0xff, 7)...), make(Hex, 8)...),
		MRSigner:       qeSigner[:], ISVProdID: 2,
		TCBLevels: []Level{isv("UpToDate", 4), isv("OutOfDate", 2, "INTEL-SA-00999")},
	}
}

func components(svns [16]byte) []Component {
	c := make([]Component, len(svns))
	for i, svn := range svns {
		c[i].SVN = svn
	}
	return c
}

func repeat(b byte, n int) []byte {
	s := make([]byte, n)
	for i := range s {
		s[i] = b
	}
	return s
}

func intelName(commonName string) pkix.Name {
	return pkix.Name{
		CommonName:   commonName,
		Organization: []string{"Intel Corporation"},
		Locality:     []string{"Santa Clara"},
		Province:     []string{"CA"},
		Country:      []string{"US"},
	}
}

// certify signs the certificates.
func (w *World) certify() error {
	p := w.Plan
	extension, err := p.Platform.extension()
	if err != nil {
		return err
	}
	if p.AlterSGX != nil {
		extension.Value = p.AlterSGX(extension.Value)
	}
	p.PCK.ExtraExtensions = append(p.PCK.ExtraExtensions, extension)
	for _, c := range []struct {
		template, parent *x509.Certificate
		of, by           *ecdsa.PrivateKey
		to               **x509.Certificate
	}{
		{p.Root, p.Root, p.Keys.Root, p.Keys.Root, &w.Root},
		{p.CA, p.Root, p.Keys.CA, p.Keys.Root, &w.CA},
		{p.PCK, p.CA, p.Keys.PCK, p.Keys.CA, &w.PCK},
		{p.TCBSigner, p.Root, p.Keys.TCBSigner, p.Keys.Root, &w.Signer},
	} {
		if c.template.SubjectKeyId, err = keyID(&c.of.PublicKey); err != nil {
			return err
		}
		parent := *c.parent
		if parent.SubjectKeyId, err = keyID(&c.by.PublicKey); err != nil {
			return err
		}
		c.template.AuthorityKeyId = parent.SubjectKeyId // Go leaves it out of a root, Intel does not
		der, err := x509.CreateCertificate(deterministic, c.template, &parent, &c.of.PublicKey, c.by)
		if err != nil {
			return fmt.Errorf("%s: %w", c.template.Subject.CommonName, err)
		}
		if *c.to, err = x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("%s: %w", c.template.Subject.CommonName, err)
		}
	}
	return nil
}

func keyID(key *ecdsa.PublicKey) ([]byte, error) {
	b, err := key.Bytes()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	return sum[:20], nil
}

// extension is Intel's SGX extension: a SEQUENCE of pairs of object identifier and value.
func (p Platform) extension() (pkix.Extension, error) {
	type pair struct {
		ID    asn1.ObjectIdentifier
		Value any
	}
	under := func(parent asn1.ObjectIdentifier, n int) asn1.ObjectIdentifier {
		return append(append(asn1.ObjectIdentifier{}, parent...), n)
	}
	var tcb []pair
	for i, svn := range p.TCBComponents {
		tcb = append(tcb, pair{under(pcs.OidTCB, i+1), int(svn)})
	}
	tcb = append(tcb, pair{pcs.OidPCESvn, p.PCESVN}, pair{pcs.OidCPUSvn, p.TCBComponents[:]})
	der, err := asn1.Marshal([]pair{
		{pcs.OidPPID, p.PPID[:]},
		{pcs.OidTCB, tcb},
		{pcs.OidPCEID, p.PCEID[:]},
		{pcs.OidFMSPC, p.FMSPC[:]},
		{under(pcs.OidSgxExtension, 5), asn1.Enumerated(1)}, // SGX type: scalable
	})
	return pkix.Extension{Id: pcs.OidSgxExtension, Value: der}, err
}

// publish signs the collateral and lays the answers out.
func (w *World) publish() error {
	p := w.Plan
	signers := w.IssuerChain(w.Signer, w.Root)
	tcbInfo, err := w.Sign("tcbInfo", p.TCBInfo)
	if err != nil {
		return err
	}
	qeIdentity, err := w.Sign("enclaveIdentity", p.QEIdentity)
	if err != nil {
		return err
	}
	rootCRL, err := x509.CreateRevocationList(deterministic, p.RootCRL, w.Root, p.Keys.Root)
	if err != nil {
		return fmt.Errorf("CRL of the root: %w", err)
	}
	pckCRL, err := x509.CreateRevocationList(deterministic, p.PCKCRL, w.CA, p.Keys.CA)
	if err != nil {
		return fmt.Errorf("CRL of the PCK CA: %w", err)
	}
	w.Answers = map[string]Answer{
		w.TCBInfoURL():    {http.Header{pcs.TcbInfoIssuerChainPhrase: {signers}}, tcbInfo},
		w.QEIdentityURL(): {http.Header{pcs.SgxQeIdentityIssuerChainPhrase: {signers}}, qeIdentity},
		w.PCKCRLURL():     {http.Header{pcs.SgxPckCrlIssuerChainPhrase: {w.IssuerChain(w.CA, w.Root)}}, pckCRL},
		w.RootCRLURL():    {http.Header{}, rootCRL},
	}
	return nil
}

// Sign lays out {"name": value, "signature": hexadecimal}, signed over the bytes of value.
func (w *World) Sign(name string, value any) ([]byte, error) {
	body, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	signature, err := sign(w.Plan.Keys.TCBSigner, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return fmt.Appendf(nil, `{"%s":%s,"signature":"%x"}`, name, body, signature), nil
}

// deterministic, in place of a source of randomness, makes signatures as RFC 6979 has them: a world of PublishedKeys is the
// same to the byte each time.
var deterministic io.Reader

// sign is ECDSA with SHA-256, as r and s of 32 bytes each.
func sign(key *ecdsa.PrivateKey, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	der, err := key.Sign(deterministic, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var parts struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &parts); err != nil {
		return nil, err
	}
	signature := make([]byte, 64)
	parts.R.FillBytes(signature[:32])
	parts.S.FillBytes(signature[32:])
	return signature, nil
}

// IssuerChain is certificates as PCS puts them into a header: PEM, percent-encoded.
func (*World) IssuerChain(certificates ...*x509.Certificate) string {
	return strings.ReplaceAll(url.QueryEscape(string(PEM(certificates...))), "+", "%20")
}

// PEM is certificates one after the other.
func PEM(certificates ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}
