package tdx

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/google/go-tdx-guest/pcs"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

// maxAnswer bounds what is read of one answer. Most have a few KiB; the list of revoked PCKs grows with each.
const maxAnswer = 8 << 20

// answer is what Intel's provisioning certification service (PCS) says to one question.
type answer struct {
	what   string // for people
	url    string
	header http.Header
	body   []byte
}

// answers are all that one judgement needs. Nothing in them has been verified yet.
type answers struct {
	tcbInfo, qeIdentity, pckCRL, rootCRL answer
}

func (a *answers) all() []*answer { return []*answer{&a.tcbInfo, &a.qeIdentity, &a.pckCRL, &a.rootCRL} }

// ask fetches the collateral for a PCK certificate, which has been verified: nothing is fetched on a stranger's word.
// The root's list of revoked certificates is where the trusted root says it is.
func ask(
	ctx context.Context, from attestation.Getter, extensions *pcs.PckExtensions, root *x509.Certificate,
) (*answers, error) {
	a := &answers{
		tcbInfo:    answer{what: "the TCB info of FMSPC " + extensions.FMSPC, url: pcs.TcbInfoURL(extensions.FMSPC)},
		qeIdentity: answer{what: "the identity of the quoting enclave", url: pcs.QeIdentityURL()},
		pckCRL:     answer{what: "the CRL of the " + caName, url: pcs.PckCrlURL("platform")},
		rootCRL:    answer{what: "the CRL of the " + rootName, url: root.CRLDistributionPoints[0]},
	}
	for _, answer := range a.all() {
		header, body, err := from.Get(ctx, answer.url)
		if err == nil && len(body) > maxAnswer {
			err = fmt.Errorf("the answer has %d bytes, want at most %d", len(body), maxAnswer)
		}
		if err != nil {
			if u, ok := errors.AsType[*attestation.Unavailable](err); ok {
				err = u.Err // what is missing is said once
			}
			return nil, &attestation.Unavailable{What: answer.what, Err: err}
		}
		answer.header, answer.body = header, body
	}
	return a, nil
}

// GetContext gives the library what was fetched already, and nothing else: it never reaches the network.
func (a *answers) GetContext(_ context.Context, url string) (map[string][]string, []byte, error) {
	for _, answer := range a.all() {
		if answer.url == url {
			return answer.header, answer.body, nil
		}
	}
	return nil, nil, fmt.Errorf("%s is not among the collateral", url)
}

// Get is GetContext.
func (a *answers) Get(url string) (map[string][]string, []byte, error) {
	return a.GetContext(context.Background(), url)
}

// collateral is Intel's word on a platform, verified under a root. Whether it is still current depends on the hour and is
// asked anew each time.
type collateral struct {
	tcbInfo         pcs.TcbInfo
	qeIdentity      pcs.EnclaveIdentity
	tcbSigner       *x509.Certificate
	qeSigner        *x509.Certificate
	pckCRL, rootCRL *x509.RevocationList
}

// verify reads the collateral and checks its signatures: under root, and the list of revoked PCKs under ca. All of that
// holds for good, for these bytes.
func (a *answers) verify(ca, root *x509.Certificate) (*collateral, *attestation.Rejected) {
	c := &collateral{}
	var err error
	if c.tcbSigner, err = signedJSON(&a.tcbInfo, "tcbInfo", pcs.TcbInfoIssuerChainPhrase, root, &c.tcbInfo); err != nil {
		return nil, judge.Rejected("TCB_INFO", "one that Intel's root vouches for", err.Error())
	}
	if c.qeSigner, err = signedJSON(&a.qeIdentity, "enclaveIdentity", pcs.SgxQeIdentityIssuerChainPhrase, root,
		&c.qeIdentity); err != nil {
		return nil, judge.Rejected("QE_IDENTITY", "one that Intel's root vouches for", err.Error())
	}
	if c.pckCRL, err = parseCRL(&a.pckCRL, ca); err != nil {
		return nil, judge.Rejected("PCK_CRL", "one of the "+caName, err.Error())
	}
	if c.rootCRL, err = parseCRL(&a.rootCRL, root); err != nil {
		return nil, judge.Rejected("ROOT_CA_CRL", "one of the "+rootName, err.Error())
	}
	if t := c.tcbInfo; t.ID != "TDX" || t.Version != 3 || t.TcbType != 0 {
		return nil, judge.Rejected("TCB_INFO", "id TDX, version 3, tcbType 0",
			fmt.Sprintf("id %.16s, version %d, tcbType %d", t.ID, t.Version, t.TcbType))
	}
	if i := c.qeIdentity; i.ID != "TD_QE" || i.Version != 2 || len(i.Mrsigner.Bytes) != 32 {
		return nil, judge.Rejected("QE_IDENTITY", "id TD_QE, version 2, mrsigner of 32 bytes",
			fmt.Sprintf("id %.16s, version %d, mrsigner of %d bytes", i.ID, i.Version, len(i.Mrsigner.Bytes)))
	}
	return c, nil
}

// signedJSON verifies an answer {"NAME": ..., "signature": "hexadecimal r and s"} and decodes what was signed into to:
// exactly those bytes. The library decodes the whole answer instead, where encoding/json lets a second key that differs
// in case replace the signed one.
func signedJSON(a *answer, name, chainHeader string, root *x509.Certificate, to any) (*x509.Certificate, error) {
	if n := len(a.header.Values(chainHeader)); n != 1 {
		return nil, fmt.Errorf("%d headers %s, want one", n, chainHeader)
	}
	text, err := url.QueryUnescape(a.header.Get(chainHeader))
	if err != nil {
		return nil, fmt.Errorf("its issuer chain: %w", err)
	}
	chain, err := parseChain([]byte(text), 2)
	if err != nil {
		return nil, fmt.Errorf("its issuer chain: %w", err)
	}
	signer := chain[0]
	if err := issuedBy(signer, root, tcbSigningName); err != nil {
		return nil, fmt.Errorf("its signer: %w", err)
	}
	var parts map[string]json.RawMessage
	if err := json.Unmarshal(a.body, &parts); err != nil {
		return nil, err
	}
	var encoded string
	if len(parts) != 2 || parts[name] == nil {
		return nil, fmt.Errorf("its parts are not %s and signature", name)
	}
	if err := json.Unmarshal(parts["signature"], &encoded); err != nil {
		return nil, fmt.Errorf("its signature: %w", err)
	}
	signature, err := hex.DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("its signature: %w", err)
	}
	if !signedBy(signer.PublicKey.(*ecdsa.PublicKey), parts[name], signature) {
		return nil, errors.New("its signature is wrong")
	}
	return signer, json.Unmarshal(parts[name], to)
}

// parseCRL reads a complete list of what issuer revoked.
func parseCRL(a *answer, issuer *x509.Certificate) (*x509.RevocationList, error) {
	crl, err := x509.ParseRevocationList(a.body)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(crl.RawIssuer, issuer.RawSubject) {
		return nil, fmt.Errorf("its issuer is %q, want %q", crl.Issuer, issuer.Subject)
	}
	for _, extension := range crl.Extensions {
		if extension.Critical {
			return nil, fmt.Errorf("its critical extension %v is unknown", extension.Id)
		}
	}
	return crl, crl.CheckSignatureFrom(issuer)
}

// current says which part of the collateral is out of date, or too new. The vendor has or will have a better one.
func (c *collateral) current(a *answers, now time.Time) error {
	for _, part := range []struct {
		what     string
		from, to time.Time
	}{
		{a.tcbInfo.what, c.tcbInfo.IssueDate, c.tcbInfo.NextUpdate},
		{"the certificate behind " + a.tcbInfo.what, c.tcbSigner.NotBefore, c.tcbSigner.NotAfter},
		{a.qeIdentity.what, c.qeIdentity.IssueDate, c.qeIdentity.NextUpdate},
		{"the certificate behind " + a.qeIdentity.what, c.qeSigner.NotBefore, c.qeSigner.NotAfter},
		{a.pckCRL.what, c.pckCRL.ThisUpdate, c.pckCRL.NextUpdate},
		{a.rootCRL.what, c.rootCRL.ThisUpdate, c.rootCRL.NextUpdate},
	} {
		if err := within(part.from, part.to, now); err != nil {
			return &attestation.Unavailable{What: part.what, Err: err}
		}
	}
	return nil
}

// revoked looks the platform's certificates up, and those that signed the collateral.
func (c *collateral) revoked(q *quote) *attestation.Rejected {
	for _, lookup := range []struct {
		field  string
		serial *big.Int
		list   *x509.RevocationList
	}{
		{"CHAIN.CA", q.ca.SerialNumber, c.rootCRL},
		{"CHAIN.PCK", q.pck.SerialNumber, c.pckCRL},
		{"TCB_INFO", c.tcbSigner.SerialNumber, c.rootCRL},
		{"QE_IDENTITY", c.qeSigner.SerialNumber, c.rootCRL},
	} {
		for _, entry := range lookup.list.RevokedCertificateEntries {
			if entry.SerialNumber.Cmp(lookup.serial) == 0 {
				return judge.Rejected(lookup.field, "a certificate that is not revoked",
					fmt.Sprintf("%x, revoked at %s", lookup.serial, entry.RevocationTime.Format(time.RFC3339)))
			}
		}
	}
	return nil
}

// digest is SHA-256 over parts, each with its length before it (u64, big-endian).
func digest(parts ...[]byte) [sha256.Size]byte {
	h := sha256.New()
	var length [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(length[:], uint64(len(p)))
		h.Write(length[:])
		h.Write(p)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// digest stands for the answers as verified under ca and root.
func (a *answers) digest(ca, root *x509.Certificate) [sha256.Size]byte {
	return digest(root.Raw, ca.Raw, a.pckCRL.body, a.rootCRL.body,
		a.tcbInfo.body, []byte(a.tcbInfo.header.Get(pcs.TcbInfoIssuerChainPhrase)),
		a.qeIdentity.body, []byte(a.qeIdentity.header.Get(pcs.SgxQeIdentityIssuerChainPhrase)))
}

// memory remembers findings by the digest of every byte that they rest on, so that one can never stand for other bytes.
// Only what was found good goes in. It is bounded: when full, it forgets everything.
type memory[V any] struct {
	sync.Mutex
	most  int
	known map[[sha256.Size]byte]V
}

func (m *memory[V]) get(key [sha256.Size]byte) (V, bool) {
	m.Lock()
	defer m.Unlock()
	v, ok := m.known[key]
	return v, ok
}

func (m *memory[V]) put(key [sha256.Size]byte, v V) {
	m.Lock()
	defer m.Unlock()
	if m.known == nil || len(m.known) >= m.most {
		m.known = map[[sha256.Size]byte]V{}
	}
	m.known[key] = v
}
