package sevsnp

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"sync"
	"time"

	"github.com/google/go-sev-guest/kds"
)

// chains are the certificates of chips whose evidence was accepted. To verify them is two signatures of RSA-4096 and four
// times the parsing, and their verdict is the same for every report of a chip: it depends on their bytes, on the root, and
// on the time. So what is remembered is found by all of the bytes, counts for one root, and only while every certificate of
// the chain is within its time; outside of it the library is asked again, and refuses. What does depend on the report is
// never remembered: its signature, CHIP_ID and REPORTED_TCB, and every field. Nor is what the vendor may change its mind
// about: revocations are asked for each time.
//
// Only accepted evidence is remembered, so that chips of strangers do not displace those of the mesh. The zero value
// remembers nothing yet.
type chains struct {
	mu       sync.Mutex
	verified map[chainName]*verifiedChain
}

// maxChains bounds the memory: of some 10 KiB for each chip. A mesh on more chips pays for the verification of some.
const maxChains = 1024

// chainName is SHA-256 of what the library looks at when it verifies a chain, but for root and time.
type chainName [sha256.Size]byte

// verifiedChain is never changed: validations share it.
type verifiedChain struct {
	ek, signedBy *x509.Certificate
	vouch        *kds.Extensions
	root         []byte // DER
	// All certificates, the root included, are valid from here on, until there.
	from, until time.Time
}

// holds says whether the chain needs no verification under root, now. The chain that nobody knows does.
func (c *verifiedChain) holds(root *x509.Certificate, now time.Time) bool {
	return c != nil && bytes.Equal(c.root, root.Raw) && !now.Before(c.from) && !now.After(c.until)
}

func (c *chains) get(name chainName) *verifiedChain {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.verified[name]
}

// remember takes e's certificates for verified: the library just said so.
func (c *chains) remember(e *evidence, root *x509.Certificate) {
	if e.known != nil && bytes.Equal(e.known.root, root.Raw) {
		return
	}
	v := &verifiedChain{
		ek: e.ek, signedBy: e.signedBy, vouch: e.vouch, root: root.Raw, from: root.NotBefore, until: root.NotAfter,
	}
	for _, certificate := range []*x509.Certificate{e.ek, e.signedBy} {
		if certificate.NotBefore.After(v.from) {
			v.from = certificate.NotBefore
		}
		if certificate.NotAfter.Before(v.until) {
			v.until = certificate.NotAfter
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.verified == nil {
		c.verified = make(map[chainName]*verifiedChain)
	}
	if len(c.verified) >= maxChains {
		for any := range c.verified { // whichever comes first
			delete(c.verified, any)
			break
		}
	}
	c.verified[e.chainName()] = v
}

// chainName is of the processor line and the kind of key too, which the report says: the library holds the certificates
// against them.
func (e *evidence) chainName() (name chainName) {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(e.Product), {byte(e.Key)}, *e.endorsement(), e.Table.GetAskCert()} {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write(part)
	}
	return chainName(h.Sum(nil))
}
