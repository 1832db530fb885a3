package pki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/pki"
)

func newChain(t *testing.T, a authority, manifest int, key *ecdsa.PrivateKey, at time.Time) *pki.Chain {
	t.Helper()
	ca := a.mesh[manifest]
	leaf, err := ca.Issue(&key.PublicKey, parseSANs(t, "web"), claims, month, at)
	if err != nil {
		t.Fatal(err)
	}
	return &pki.Chain{Leaf: leaf, Intermediate: ca.Intermediate, MeshCA: ca.Certificate, RootCA: a.root}
}

func TestAChainTravelsAndVerifies(t *testing.T) {
	key := newKey(t)
	want := newChain(t, newAuthority(t, time.Now()), 0, key, time.Now())
	got, err := pki.ParseChain([][]byte{want.Leaf.Raw, want.Intermediate.Raw}, want.MeshCA.Raw, want.RootCA.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Verify(&key.PublicKey, time.Now()); err != nil {
		t.Error(err)
	}
	if !got.BelongsTo([32]byte{1}) || got.BelongsTo([32]byte{2}) {
		t.Error("the chain belongs to another transition")
	}
	handedOut, err := pki.ParseCertificates(got.PEM())
	if err != nil {
		t.Fatal(err)
	}
	if len(handedOut) != 2 || !handedOut[0].Equal(want.Leaf) || !handedOut[1].Equal(want.Intermediate) {
		t.Error("peers are handed something else than leaf and intermediate")
	}
}

func TestChainsOfSeveralPartsAreRefused(t *testing.T) {
	now := time.Now()
	a, b := newAuthority(t, now), newAuthority(t, now)
	key := newKey(t)
	for _, tc := range []struct {
		name   string
		change func(*pki.Chain)
		at     time.Time
		fault  string
	}{
		{"leaf for another key", func(c *pki.Chain) { *c = *newChain(t, a, 0, newKey(t), now) }, now, "not for this key"},
		{"no leaf", func(c *pki.Chain) { c.Leaf = nil }, now, "missing"},
		{"no intermediate", func(c *pki.Chain) { c.Intermediate = nil }, now, "missing"},
		{"no mesh CA", func(c *pki.Chain) { c.MeshCA = nil }, now, "missing"},
		{"no root CA", func(c *pki.Chain) { c.RootCA = nil }, now, "missing"},
		{"leaf of another manifest", func(c *pki.Chain) { c.Leaf = newChain(t, a, 1, key, now).Leaf }, now, "under the mesh CA"},
		{"leaf of another Coordinator", func(c *pki.Chain) { c.Leaf = newChain(t, b, 0, key, now).Leaf }, now, "under the mesh CA"},
		{"mesh CA of another manifest", func(c *pki.Chain) { c.MeshCA = a.mesh[1].Certificate }, now, "not one authority"},
		{"mesh CA of another Coordinator", func(c *pki.Chain) { c.MeshCA = b.mesh[0].Certificate }, now, "not one authority"},
		{"intermediate of another manifest", func(c *pki.Chain) { c.Intermediate = a.mesh[1].Intermediate }, now, "not one authority"},
		{"mesh CA in place of the intermediate", func(c *pki.Chain) { c.Intermediate = c.MeshCA }, now, "under the root CA"},
		{"intermediate in place of the mesh CA", func(c *pki.Chain) { c.MeshCA = c.Intermediate }, now, "mesh CA is not self-signed"},
		{"root CA of another Coordinator", func(c *pki.Chain) { c.RootCA = b.root }, now, "under the root CA"},
		{"mesh CA in place of the root CA", func(c *pki.Chain) { c.RootCA = c.MeshCA }, now, "the root CA is the mesh CA"},
		{"a CA in place of the leaf", func(c *pki.Chain) { c.Leaf = c.Intermediate }, now, "not for this key"},
		{"expired", func(*pki.Chain) {}, now.Add(month + time.Hour), "expired"},
		{"not valid yet", func(*pki.Chain) {}, now.Add(-time.Hour), "not yet valid"},
		{"leaf for servers only", func(c *pki.Chain) { c.Leaf = serverOnly(t, a.mesh[0], key) }, now, "incompatible key usage"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			chain := newChain(t, a, 0, key, now)
			tc.change(chain)
			if err := chain.Verify(&key.PublicKey, tc.at); err == nil || !strings.Contains(err.Error(), tc.fault) {
				t.Errorf("got %v, want an error about %q", err, tc.fault)
			}
		})
	}
	t.Run("a CA's own key", func(t *testing.T) {
		chain := newChain(t, a, 0, key, now)
		chain.Leaf = chain.Intermediate
		if err := chain.Verify(&a.mesh[0].Key.PublicKey, now); err == nil {
			t.Error("a CA passed for a mesh certificate")
		}
	})
	t.Run("no key", func(t *testing.T) {
		if err := newChain(t, a, 0, key, now).Verify(nil, now); err == nil {
			t.Error("a chain verified for no key")
		}
	})
	t.Run("nothing", func(t *testing.T) {
		for _, c := range []*pki.Chain{nil, {}} {
			if err := c.Verify(&key.PublicKey, now); err == nil {
				t.Error("nothing verified")
			}
		}
	})
}

// serverOnly is a leaf that the mesh CA's key signed, but not by the profile.
func serverOnly(t *testing.T, ca *pki.MeshCA, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7),
		Subject:      pkix.Name{CommonName: "web"},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca.Intermediate, &key.PublicKey, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestParseChainWantsLeafAndIntermediate(t *testing.T) {
	c := newChain(t, newAuthority(t, time.Now()), 0, newKey(t), time.Now())
	for name, parts := range map[string]struct {
		chain      [][]byte
		mesh, root []byte
	}{
		"nothing":               {nil, nil, nil},
		"leaf alone":            {[][]byte{c.Leaf.Raw}, c.MeshCA.Raw, c.RootCA.Raw},
		"with the mesh CA":      {[][]byte{c.Leaf.Raw, c.Intermediate.Raw, c.MeshCA.Raw}, c.MeshCA.Raw, c.RootCA.Raw},
		"no mesh CA":            {[][]byte{c.Leaf.Raw, c.Intermediate.Raw}, nil, c.RootCA.Raw},
		"no root CA":            {[][]byte{c.Leaf.Raw, c.Intermediate.Raw}, c.MeshCA.Raw, nil},
		"trailing data":         {[][]byte{append(c.Leaf.Raw, 0), c.Intermediate.Raw}, c.MeshCA.Raw, c.RootCA.Raw},
		"garbage for leaf":      {[][]byte{[]byte("no"), c.Intermediate.Raw}, c.MeshCA.Raw, c.RootCA.Raw},
		"empty in the chain":    {[][]byte{c.Leaf.Raw, {}}, c.MeshCA.Raw, c.RootCA.Raw},
		"truncated certificate": {[][]byte{c.Leaf.Raw, c.Intermediate.Raw[:100]}, c.MeshCA.Raw, c.RootCA.Raw},
	} {
		if _, err := pki.ParseChain(parts.chain, parts.mesh, parts.root); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestKeysAndCertificatesSurviveTheirText(t *testing.T) {
	key := newKey(t)
	text, err := pki.EncodePrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pki.ParsePrivateKey(text.Reveal()); err != nil || !got.Equal(key) {
		t.Errorf("the private key was read as another: %v", err)
	}
	public, err := pki.EncodePublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pki.ParsePublicKey(public); err != nil || !got.Equal(&key.PublicKey) {
		t.Errorf("the public key was read as another: %v", err)
	}
	certificate := pki.EncodeCertificates(newAuthority(t, time.Now()).root)
	for name, parse := range map[string]func() error{
		"private key behind text":   func() error { _, err := pki.ParsePrivateKey(append([]byte("x"), text.Reveal()...)); return err },
		"private key before text":   func() error { _, err := pki.ParsePrivateKey(append(text.Reveal(), 'x')); return err },
		"public key as private key": func() error { _, err := pki.ParsePrivateKey(public); return err },
		"private key as public key": func() error { _, err := pki.ParsePublicKey(text.Reveal()); return err },
		"empty private key":         func() error { _, err := pki.ParsePrivateKey(nil); return err },
		"empty public key":          func() error { _, err := pki.ParsePublicKey(nil); return err },
		"no certificates":           func() error { _, err := pki.ParseCertificates(nil); return err },
		"certificates behind text":  func() error { _, err := pki.ParseCertificates(append([]byte("x\n"), certificate...)); return err },
		"certificates before text":  func() error { _, err := pki.ParseCertificates(append(certificate, 'x')); return err },
		"key among certificates":    func() error { _, err := pki.ParseCertificates(append(certificate, text.Reveal()...)); return err },
	} {
		if parse() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSPKIHasOneForm(t *testing.T) {
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	der, err := pki.SPKI(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pki.ParseSPKI(der); err != nil || !got.Equal(&key.PublicKey) {
		t.Errorf("read as another key: %v", err)
	}
	unusual, err := x509.MarshalPKIXPublicKey(&p521.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "trailing data": append(der, 0), "P-521": unusual, "truncated": der[:len(der)-1],
	} {
		if _, err := pki.ParseSPKI(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
