package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Chain is what a pod gets from a Coordinator: its certificate and both ways to trust it.
type Chain struct {
	Leaf, Intermediate, MeshCA, RootCA *x509.Certificate
}

// ParseChain reads certificates as they travel: a chain of leaf and intermediate, and the two CAs, all DER.
// What it returns is not verified yet.
func ParseChain(chain [][]byte, meshCA, rootCA []byte) (*Chain, error) {
	if len(chain) != 2 {
		return nil, fmt.Errorf("a chain of %d certificates, want leaf and intermediate", len(chain))
	}
	var c Chain
	for _, part := range []struct {
		name string
		der  []byte
		to   **x509.Certificate
	}{
		{"leaf", chain[0], &c.Leaf},
		{"intermediate CA", chain[1], &c.Intermediate},
		{"mesh CA", meshCA, &c.MeshCA},
		{"root CA", rootCA, &c.RootCA},
	} {
		parsed, err := x509.ParseCertificate(part.der)
		if err != nil {
			return nil, fmt.Errorf("parse the %s: %w", part.name, err)
		}
		*part.to = parsed
	}
	return &c, nil
}

// Verify checks at a time that the leaf is a mesh certificate for pub, that mesh CA and intermediate CA are one
// authority, and that the leaf verifies on both paths: under the mesh CA alone, and under the root CA with the
// intermediate.
func (c *Chain) Verify(pub *ecdsa.PublicKey, at time.Time) error {
	switch {
	case c == nil || c.Leaf == nil || c.Intermediate == nil || c.MeshCA == nil || c.RootCA == nil:
		return errors.New("verify a chain: a certificate is missing")
	case pub == nil || pub.Curve != elliptic.P256() || !pub.Equal(c.Leaf.PublicKey):
		return errors.New("verify a chain: the leaf is not for this key")
	case c.Leaf.IsCA || c.Leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		return errors.New("verify a chain: the leaf is not a mesh certificate")
	case !bytes.Equal(c.MeshCA.RawSubjectPublicKeyInfo, c.Intermediate.RawSubjectPublicKeyInfo),
		!bytes.Equal(c.MeshCA.RawSubject, c.Intermediate.RawSubject):
		return errors.New("verify a chain: mesh CA and intermediate CA are not one authority")
	case bytes.Equal(c.RootCA.RawSubjectPublicKeyInfo, c.MeshCA.RawSubjectPublicKeyInfo):
		return errors.New("verify a chain: the root CA is the mesh CA")
	case !c.MeshCA.IsCA || !c.Intermediate.IsCA || !c.RootCA.IsCA:
		return errors.New("verify a chain: one of the CAs is not a CA")
	}
	// Certificate.Verify takes a trust anchor as it is; that these two sign themselves shows that somebody holds the keys.
	if err := c.MeshCA.CheckSignatureFrom(c.MeshCA); err != nil {
		return fmt.Errorf("verify a chain: the mesh CA is not self-signed: %w", err)
	}
	if err := c.RootCA.CheckSignatureFrom(c.RootCA); err != nil {
		return fmt.Errorf("verify a chain: the root CA is not self-signed: %w", err)
	}
	for _, path := range []struct {
		name          string
		anchor        *x509.Certificate
		intermediates *x509.CertPool
	}{
		{"mesh CA", c.MeshCA, pool()},
		{"root CA", c.RootCA, pool(c.Intermediate)},
	} {
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			if _, err := c.Leaf.Verify(x509.VerifyOptions{
				Roots:         pool(path.anchor),
				Intermediates: path.intermediates,
				CurrentTime:   at,
				KeyUsages:     []x509.ExtKeyUsage{usage},
			}); err != nil {
				return fmt.Errorf("verify a chain under the %s: %w", path.name, err)
			}
		}
	}
	return nil
}

// BelongsTo says whether the mesh CA is the one of the manifest that a transition hash names.
func (c *Chain) BelongsTo(transitionHash [32]byte) bool {
	return c.MeshCA.Subject.SerialNumber == transitionPrefix(transitionHash)
}

// PEM is the chain as it is handed to peers: leaf, then intermediate, never the mesh CA.
func (c *Chain) PEM() []byte { return EncodeCertificates(c.Leaf, c.Intermediate) }

func pool(certificates ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certificates {
		p.AddCert(c)
	}
	return p
}
