package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
)

// RestoreMeshCA puts together what NewMeshCA made, from parts that came from somewhere else. Nothing is believed of them: the
// key must be that of both certificates, which have one name, that of the transition; one must be self-signed, and the
// other signed by the root CA.
func RestoreMeshCA(
	key *ecdsa.PrivateKey, mesh, intermediate []byte, root *x509.Certificate, transitionHash [32]byte,
) (*MeshCA, error) {
	if key == nil || root == nil {
		return nil, errors.New("restore a mesh CA: no key or no root CA")
	}
	ca := &MeshCA{Key: key}
	for _, part := range []struct {
		name   string
		der    []byte
		to     **x509.Certificate
		issuer func() *x509.Certificate
	}{
		{"mesh CA", mesh, &ca.Certificate, func() *x509.Certificate { return ca.Certificate }},
		{"intermediate CA", intermediate, &ca.Intermediate, func() *x509.Certificate { return root }},
	} {
		c, err := x509.ParseCertificate(part.der)
		if err != nil {
			return nil, fmt.Errorf("restore a mesh CA: parse the %s: %w", part.name, err)
		}
		*part.to = c
		switch {
		case !key.PublicKey.Equal(c.PublicKey):
			return nil, fmt.Errorf("restore a mesh CA: the key is not that of the %s", part.name)
		case c.Subject.SerialNumber != transitionPrefix(transitionHash):
			return nil, fmt.Errorf("restore a mesh CA: the %s is not of transition %x", part.name, transitionHash)
		case !c.IsCA:
			return nil, fmt.Errorf("restore a mesh CA: the %s is not a CA", part.name)
		}
		if err := c.CheckSignatureFrom(part.issuer()); err != nil {
			return nil, fmt.Errorf("restore a mesh CA: who signed the %s: %w", part.name, err)
		}
	}
	if !bytes.Equal(ca.Certificate.RawSubject, ca.Intermediate.RawSubject) {
		return nil, errors.New("restore a mesh CA: mesh CA and intermediate CA have different names")
	}
	return ca, nil
}
