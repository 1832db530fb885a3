package sevsnp

import (
	"crypto/x509"
	"encoding/binary"
	"testing"
	"time"

	spb "github.com/google/go-sev-guest/proto/sevsnp"
)

// Remembered is how many chains v remembers.
func (v *Validator) Remembered() int {
	v.chains.mu.Lock()
	defer v.chains.mu.Unlock()
	return len(v.chains.verified)
}

func TestTheMemoryOfChainsIsBounded(t *testing.T) {
	var c chains
	root := &x509.Certificate{Raw: []byte("root"), NotAfter: time.Now().Add(time.Hour)}
	chip := func(n int) *evidence {
		ek := binary.BigEndian.AppendUint32(nil, uint32(n)+1)
		e := &evidence{ek: &x509.Certificate{Raw: ek, NotAfter: root.NotAfter}, signedBy: root}
		e.Table = &spb.CertificateChain{VcekCert: ek, AskCert: root.Raw}
		return e
	}
	for n := range 2 * maxChains {
		c.remember(chip(n), root)
		if !c.get(chip(n).chainName()).holds(root, time.Now()) {
			t.Fatalf("chip %d is not remembered", n)
		}
	}
	if len(c.verified) != maxChains {
		t.Errorf("%d chains are remembered, want %d", len(c.verified), maxChains)
	}
	if (*verifiedChain)(nil).holds(root, time.Now()) || new(verifiedChain).holds(root, time.Now()) {
		t.Error("a chain that nobody verified holds")
	}
}
