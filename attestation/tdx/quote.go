package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tdx-guest/pcs"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

// Sizes in bytes (Intel TDX DCAP quoting library API, appendix 3: "TD Quote Format", version 4).
const (
	headerSize    = 48
	bodySize      = 584
	signatureSize = 64 // r and s of ECDSA on P-256, big-endian
	keySize       = 64 // x and y on P-256, big-endian
	qeReportSize  = 384

	// maxQuote bounds what is looked at: what the kernel has room for. A quote is about 5 KiB, and may be padded with zeros,
	// as Google's guests get it.
	maxQuote = 128 << 10
)

// The two nested certification data types that carry a QE report and a PCK certificate chain.
const (
	certificationQEReport = 6
	certificationPCKChain = 5
)

// intelQE is QE Vendor ID of Intel's quoting enclaves.
var intelQE = []byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}

// quote is what could be read of a TD quote. All slices point into it.
type quote struct {
	raw    []byte // without padding
	signed []byte // header and TD report: what the attestation key signs
	td     tdReport

	signature      []byte
	attestationKey []byte
	qe             enclaveReport
	qeSignature    []byte
	qeAuth         []byte
	chain          []byte // PEM, as it came
	pck, ca, root  *x509.Certificate
	extensions     *pcs.PckExtensions // what the PCK certificate says about the platform
}

// tdReport is the TD quote body: what the TDX module measured.
type tdReport struct {
	teeTCBSVN      []byte // 16
	mrSEAM         []byte // 48, as are all measurements and MROWNER, MROWNERCONFIG, MRCONFIGID
	mrSignerSEAM   []byte
	seamAttributes []byte // 8
	tdAttributes   []byte // 8, a little-endian number
	xfam           []byte // 8, a little-endian number
	mrTD           []byte
	mrConfigID     []byte
	mrOwner        []byte
	mrOwnerConfig  []byte
	rtmrs          [4][]byte
	reportData     []byte // 64
}

// enclaveReport is the REPORT of the quoting enclave (Intel SDM volume 3D, table "Layout of REPORT").
type enclaveReport struct {
	raw        []byte
	miscSelect []byte // 4
	attributes []byte // 16
	mrSigner   []byte // 32
	isvProdID  uint16
	isvSVN     uint16
	reportData []byte // 64
}

// cursor takes fields off the front of b. One that is not there in full is nil and marks the cursor as short.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if c.short || n > len(c.b) {
		c.short = true
		return nil
	}
	field := c.b[:n:n]
	c.b = c.b[n:]
	return field
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// fills wants what is left to be as long as its size says.
func (c *cursor) fills(field string, size uint32) *attestation.Rejected {
	if c.short || uint64(size) != uint64(len(c.b)) {
		return judge.Rejected(field, fmt.Sprintf("%d bytes, as its size says", size), fmt.Sprintf("%d bytes", len(c.b)))
	}
	return nil
}

// readQuote does everything that needs no key: it finds the fields, each of its exact size, and refuses what is not a
// quote of a TD or carries anything unaccounted for. Zeros behind the quote are padding. The library's parser comes
// later, for what it is worth: it slices before it looks, and panics on what is cut in the wrong place.
func readQuote(report []byte) (*quote, *attestation.Rejected) {
	if least := headerSize + bodySize + 4; len(report) < least || len(report) > maxQuote {
		return nil, judge.Rejected("REPORT", fmt.Sprintf("%d to %d bytes", least, maxQuote), fmt.Sprintf("%d bytes", len(report)))
	}
	q := &quote{signed: report[:headerSize+bodySize]}
	c := &cursor{b: report}
	if r := readHeader(c); r != nil {
		return nil, r
	}
	q.td = readTD(c)
	size := c.u32()
	if uint64(size) > uint64(len(c.b)) {
		return nil, judge.Rejected("REPORT", fmt.Sprintf("%d bytes of signature data, as its size says", size),
			fmt.Sprintf("%d bytes", len(c.b)))
	}
	padding := c.b[size:]
	if !judge.AllZero(padding) {
		return nil, judge.Rejected("REPORT", "nothing but zeros behind the signature data",
			fmt.Sprintf("%d other bytes", len(padding)))
	}
	q.raw = report[:len(report)-len(padding)]
	c.b = c.b[:size]
	return q, q.readSignature(c)
}

func readHeader(c *cursor) *attestation.Rejected {
	if r := judge.Number("VERSION", abi.QuoteVersionV4, uint64(c.u16())); r != nil {
		return r
	}
	if r := judge.Number("ATTESTATION_KEY_TYPE", abi.AttestationKeyType, uint64(c.u16())); r != nil {
		return r
	}
	if r := judge.Number("TEE_TYPE", abi.TeeTDX, uint64(c.u32())); r != nil {
		return r
	}
	c.take(4) // reserved in version 4
	if r := judge.Equal("QE_VENDOR_ID", intelQE, c.take(len(intelQE))); r != nil {
		return r
	}
	c.take(20) // the quoting enclave's own affair
	return nil
}

func readTD(c *cursor) tdReport {
	td := tdReport{
		teeTCBSVN:      c.take(16),
		mrSEAM:         c.take(48),
		mrSignerSEAM:   c.take(48),
		seamAttributes: c.take(8),
		tdAttributes:   c.take(8),
		xfam:           c.take(8),
		mrTD:           c.take(48),
		mrConfigID:     c.take(48),
		mrOwner:        c.take(48),
		mrOwnerConfig:  c.take(48),
	}
	for i := range td.rtmrs {
		td.rtmrs[i] = c.take(48)
	}
	td.reportData = c.take(64)
	return td
}

// readSignature reads the quote signature data structure: the signature and, nested, who vouches for its key.
func (q *quote) readSignature(c *cursor) *attestation.Rejected {
	q.signature = c.take(signatureSize)
	q.attestationKey = c.take(keySize)
	kind, size := c.u16(), c.u32()
	if r := judge.Number("CERTIFICATION_DATA_TYPE", certificationQEReport, uint64(kind)); r != nil {
		return r
	}
	if r := c.fills("CERTIFICATION_DATA", size); r != nil {
		return r
	}
	q.qe = readEnclave(c.take(qeReportSize))
	q.qeSignature = c.take(signatureSize)
	q.qeAuth = c.take(int(c.u16()))
	kind, size = c.u16(), c.u32()
	if r := judge.Number("QE_CERTIFICATION_DATA_TYPE", certificationPCKChain, uint64(kind)); r != nil {
		return r
	}
	if r := c.fills("QE_CERTIFICATION_DATA", size); r != nil {
		return r
	}
	q.chain = c.b
	return q.readChain()
}

func readEnclave(raw []byte) enclaveReport {
	c := &cursor{b: raw}
	e := enclaveReport{raw: raw}
	c.take(16) // CPUSVN
	e.miscSelect = c.take(4)
	c.take(28)
	e.attributes = c.take(16)
	c.take(32) // MRENCLAVE: Intel vouches for the signer, not for each build
	c.take(32)
	e.mrSigner = c.take(32)
	c.take(96)
	e.isvProdID = c.u16()
	e.isvSVN = c.u16()
	c.take(60)
	e.reportData = c.take(64)
	return e
}

func (q *quote) readChain() *attestation.Rejected {
	// The quoting library ends the PEM with the NUL of a C string.
	certificates, err := parseChain(bytes.TrimSuffix(q.chain, []byte{0}), 3)
	if err != nil {
		return judge.Rejected("CHAIN", "PEM of the PCK certificate, its CA and the root", err.Error())
	}
	q.pck, q.ca, q.root = certificates[0], certificates[1], certificates[2]
	if q.extensions, err = pcs.PckCertificateExtensions(q.pck); err != nil {
		return judge.Rejected("CHAIN.PCK", "the SGX extension of a PCK certificate", err.Error())
	}
	for _, part := range []struct {
		name string
		got  int
		want int
	}{
		{"FMSPC", hex.DecodedLen(len(q.extensions.FMSPC)), 6},
		{"PCEID", hex.DecodedLen(len(q.extensions.PCEID)), 2},
		{"TCB", len(q.extensions.TCB.CPUSvnComponents), 16},
	} {
		if part.got != part.want {
			return judge.Rejected("CHAIN.PCK", fmt.Sprintf("%d bytes of %s in the SGX extension", part.want, part.name),
				fmt.Sprintf("%d bytes", part.got))
		}
	}
	return nil
}

// parseChain reads n certificates in PEM, and nothing else.
func parseChain(text []byte, n int) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for text = bytes.TrimSpace(text); len(text) > 0; text = bytes.TrimSpace(text) {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) > 0 ||
			!bytes.HasPrefix(text, []byte("-----BEGIN CERTIFICATE-----")) {
			return nil, fmt.Errorf("something else after %d certificates", len(chain))
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(chain), err)
		}
		chain, text = append(chain, certificate), rest
	}
	if len(chain) != n {
		return nil, fmt.Errorf("%d certificates instead of %d", len(chain), n)
	}
	return chain, nil
}

// Names of Intel's certificates (Intel SGX PCK Certificate and Certificate Revocation List Profile Specification).
const (
	rootName       = "Intel SGX Root CA"
	caName         = "Intel SGX PCK Platform CA"
	pckName        = "Intel SGX PCK Certificate"
	tcbSigningName = "Intel SGX TCB Signing"
)

// signedUnder follows the signatures from root to the TD report. Which root the quote itself carries proves nothing; it is
// only compared.
func (q *quote) signedUnder(root *x509.Certificate, now time.Time) *attestation.Rejected {
	for _, link := range []struct {
		field, name         string
		certificate, issuer *x509.Certificate
	}{
		{"CHAIN.CA", caName, q.ca, root},
		{"CHAIN.PCK", pckName, q.pck, q.ca},
	} {
		if err := issuedBy(link.certificate, link.issuer, link.name); err != nil {
			return judge.Rejected(link.field, fmt.Sprintf("one of the %s", link.issuer.Subject.CommonName), err.Error())
		}
	}
	for _, dated := range []struct {
		field       string
		certificate *x509.Certificate
	}{{"CHAIN.ROOT", root}, {"CHAIN.CA", q.ca}, {"CHAIN.PCK", q.pck}} {
		if err := within(dated.certificate.NotBefore, dated.certificate.NotAfter, now); err != nil {
			return judge.Rejected(dated.field, "one that is valid now", err.Error())
		}
	}

	pck, ok := q.pck.PublicKey.(*ecdsa.PublicKey)
	if !ok || !signedBy(pck, q.qe.raw, q.qeSignature) {
		return judge.Rejected("QE_REPORT_SIGNATURE", "one of the PCK", hex.EncodeToString(q.qeSignature))
	}
	// The QE report binds the attestation key: its report data is SHA-256 of key and authentication data, then zeros.
	bound := sha256.Sum256(append(bytes.Clone(q.attestationKey), q.qeAuth...))
	if r := judge.Equal("QE_REPORT.REPORTDATA", append(bound[:], make([]byte, 32)...), q.qe.reportData); r != nil {
		return r
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, q.attestationKey...))
	if err != nil {
		return judge.Rejected("ATTESTATION_KEY", "a point on P-256", err.Error())
	}
	if !signedBy(key, q.signed, q.signature) {
		return judge.Rejected("SIGNATURE", "one of the attestation key", hex.EncodeToString(q.signature))
	}
	return nil
}

// issuedBy wants a certificate as Intel makes them: X.509 version 3, P-256 throughout.
func issuedBy(certificate, issuer *x509.Certificate, name string) error {
	key, ok := certificate.PublicKey.(*ecdsa.PublicKey)
	switch {
	case certificate.Subject.CommonName != name:
		return fmt.Errorf("its common name is %q, want %q", certificate.Subject.CommonName, name)
	case !bytes.Equal(certificate.RawIssuer, issuer.RawSubject):
		return fmt.Errorf("its issuer is %q, want %q", certificate.Issuer, issuer.Subject)
	case !ok || key.Curve != elliptic.P256() || certificate.SignatureAlgorithm != x509.ECDSAWithSHA256:
		return fmt.Errorf("its key is %s, signed with %s; want P-256 and SHA-256",
			certificate.PublicKeyAlgorithm, certificate.SignatureAlgorithm)
	case len(certificate.UnhandledCriticalExtensions) > 0:
		return fmt.Errorf("its critical extension %v is unknown", certificate.UnhandledCriticalExtensions[0])
	}
	return certificate.CheckSignatureFrom(issuer)
}

func signedBy(key *ecdsa.PublicKey, message, signature []byte) bool {
	if len(signature) != signatureSize {
		return false
	}
	digest := sha256.Sum256(message)
	r, s := new(big.Int).SetBytes(signature[:signatureSize/2]), new(big.Int).SetBytes(signature[signatureSize/2:])
	return ecdsa.Verify(key, digest[:], r, s)
}

// within refuses a time outside both bounds, and bounds that are not there.
func within(from, to, now time.Time) error {
	switch {
	case from.IsZero() || to.IsZero():
		return fmt.Errorf("it does not say from when to when it is valid")
	case now.Before(from):
		return fmt.Errorf("it is valid from %s, and now is %s", from.Format(time.RFC3339), now.Format(time.RFC3339))
	case now.After(to):
		return fmt.Errorf("it was valid until %s, and now is %s", to.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	return nil
}
