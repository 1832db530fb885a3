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

func TestRestoredMeshCAIsWhole(t *testing.T) {
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, err := pki.NewRootCA(seed.RootKey(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	transition := [32]byte{1}
	newCA := func(transition [32]byte) *pki.MeshCA {
		ca, err := pki.NewMeshCA(root, seed.RootKey(), transition, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	ca, sibling, next := newCA(transition), newCA(transition), newCA([32]byte{2})
	got, err := pki.RestoreMeshCA(ca.Key, ca.Certificate.Raw, ca.Intermediate.Raw, root, transition)
	if err != nil || !got.Key.Equal(ca.Key) || !got.Certificate.Equal(ca.Certificate) || !got.Intermediate.Equal(ca.Intermediate) {
		t.Fatalf("restored: %v, %v", got, err)
	}

	// What nobody but a holder of the keys can make.
	intermediate := func(alter func(*x509.Certificate)) []byte {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: ca.Intermediate.Subject, NotBefore: ca.Intermediate.NotBefore, NotAfter: ca.Intermediate.NotAfter,
			BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		}
		alter(template)
		der, err := x509.CreateCertificate(rand.Reader, template, root, &ca.Key.PublicKey, seed.RootKey())
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	strangerSeed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	strangerRoot, err := pki.NewRootCA(strangerSeed.RootKey(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own := func() (*ecdsa.PrivateKey, []byte, []byte, *x509.Certificate, [32]byte) {
		return ca.Key, ca.Certificate.Raw, ca.Intermediate.Raw, root, transition
	}
	for name, test := range map[string]struct {
		alter func(key **ecdsa.PrivateKey, mesh, intermediate *[]byte, root **x509.Certificate, transition *[32]byte)
		want  string
	}{
		"no key":      {func(key **ecdsa.PrivateKey, _, _ *[]byte, _ **x509.Certificate, _ *[32]byte) { *key = nil }, "no key or no root CA"},
		"no root CA":  {func(_ **ecdsa.PrivateKey, _, _ *[]byte, root **x509.Certificate, _ *[32]byte) { *root = nil }, "no key or no root CA"},
		"another key": {func(key **ecdsa.PrivateKey, _, _ *[]byte, _ **x509.Certificate, _ *[32]byte) { *key = stranger }, "not that of the mesh CA"},
		"a sibling": {func(_ **ecdsa.PrivateKey, mesh, _ *[]byte, _ **x509.Certificate, _ *[32]byte) {
			*mesh = sibling.Certificate.Raw
		}, "not that of the mesh CA"},
		"half a sibling": {func(_ **ecdsa.PrivateKey, _, i *[]byte, _ **x509.Certificate, _ *[32]byte) {
			*i = sibling.Intermediate.Raw
		}, "not that of the intermediate CA"},
		"exchanged":         {func(_ **ecdsa.PrivateKey, mesh, i *[]byte, _ **x509.Certificate, _ *[32]byte) { *mesh, *i = *i, *mesh }, "who signed the mesh CA"},
		"twice the mesh CA": {func(_ **ecdsa.PrivateKey, mesh, i *[]byte, _ **x509.Certificate, _ *[32]byte) { *i = *mesh }, "who signed the intermediate CA"},
		"another root CA":   {func(_ **ecdsa.PrivateKey, _, _ *[]byte, root **x509.Certificate, _ *[32]byte) { *root = strangerRoot }, "who signed the intermediate CA"},
		"another transition": {func(_ **ecdsa.PrivateKey, _, _ *[]byte, _ **x509.Certificate, transition *[32]byte) {
			transition[0] = 2
		}, "not of transition"},
		"the next generation": {func(_ **ecdsa.PrivateKey, mesh, i *[]byte, _ **x509.Certificate, _ *[32]byte) {
			*mesh, *i = next.Certificate.Raw, next.Intermediate.Raw
		}, "not that of the mesh CA"},
		"no certificate": {func(_ **ecdsa.PrivateKey, mesh, _ *[]byte, _ **x509.Certificate, _ *[32]byte) { *mesh = nil }, "parse the mesh CA"},
		"an intermediate that is no CA": {func(_ **ecdsa.PrivateKey, _, i *[]byte, _ **x509.Certificate, _ *[32]byte) {
			*i = intermediate(func(c *x509.Certificate) {
				c.IsCA, c.MaxPathLenZero, c.KeyUsage = false, false, x509.KeyUsageDigitalSignature
			})
		}, "is not a CA"},
		"an intermediate of another name": {func(_ **ecdsa.PrivateKey, _, i *[]byte, _ **x509.Certificate, _ *[32]byte) {
			*i = intermediate(func(c *x509.Certificate) {
				c.Subject = pkix.Name{CommonName: "another", SerialNumber: c.Subject.SerialNumber}
			})
		}, "different names"},
	} {
		key, mesh, intermediate, root, transition := own()
		test.alter(&key, &mesh, &intermediate, &root, &transition)
		if got, err := pki.RestoreMeshCA(key, mesh, intermediate, root, transition); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, %v, want %q", name, got, err, test.want)
		}
	}
}
