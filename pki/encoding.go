package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"portcullis.dev/portcullis/pki/secret"
)

const (
	pemCertificate = "CERTIFICATE"
	pemPrivateKey  = "PRIVATE KEY"
	pemPublicKey   = "PUBLIC KEY"
)

// EncodeCertificates writes certificates as PEM, in order.
func EncodeCertificates(certificates ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certificates {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw}))
	}
	return b.Bytes()
}

// ParseCertificates reads PEM that holds certificates and nothing else, at least one.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for rest := text; len(bytes.TrimSpace(rest)) > 0; {
		der, next, err := block(rest, pemCertificate)
		if err != nil {
			return nil, fmt.Errorf("read certificate %d: %w", len(certificates)+1, err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("read certificate %d: %w", len(certificates)+1, err)
		}
		certificates = append(certificates, c)
		rest = next
	}
	if len(certificates) == 0 {
		return nil, errors.New("read certificates: there are none")
	}
	return certificates, nil
}

// EncodePrivateKey writes a key as PKCS #8 in PEM.
func EncodePrivateKey(key *ecdsa.PrivateKey) (secret.Bytes, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("encode a private key: %w", err)
	}
	return secret.New(pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: der})), nil
}

// ParsePrivateKey reads what EncodePrivateKey wrote. Its errors never quote the input.
func ParsePrivateKey(text []byte) (*ecdsa.PrivateKey, error) {
	der, err := single(text, pemPrivateKey)
	if err != nil {
		return nil, fmt.Errorf("read a private key: %w", err)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("read a private key: it is not PKCS #8")
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read a private key: it is a %T, want ECDSA", key)
	}
	return k, nil
}

// EncodePublicKey writes a key as SPKI in PEM.
func EncodePublicKey(key *ecdsa.PublicKey) ([]byte, error) {
	der, err := SPKI(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemPublicKey, Bytes: der}), nil
}

// ParsePublicKey reads what EncodePublicKey wrote.
func ParsePublicKey(text []byte) (*ecdsa.PublicKey, error) {
	der, err := single(text, pemPublicKey)
	if err != nil {
		return nil, fmt.Errorf("read a public key: %w", err)
	}
	return ParseSPKI(der)
}

// SPKI is the DER form that keys travel and are compared in (RFC 5280, 4.1.2.7).
func SPKI(key *ecdsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a public key: %w", err)
	}
	return der, nil
}

// ParseSPKI reads an ECDSA key on P-256 or P-384. Only the one DER form that SPKI writes is accepted, so that equal keys
// are equal bytes.
func ParseSPKI(der []byte) (*ecdsa.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("read a public key: %w", err)
	}
	k, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("read a public key: it is a %T, want ECDSA", key)
	}
	if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
		return nil, fmt.Errorf("read a public key: its curve is %s, want P-256 or P-384", k.Curve.Params().Name)
	}
	if canonical, err := SPKI(k); err != nil || !bytes.Equal(canonical, der) {
		return nil, errors.New("read a public key: it is not in the usual DER form")
	}
	return k, nil
}

// single reads PEM that holds one block of the given type and nothing else.
func single(text []byte, kind string) ([]byte, error) {
	der, rest, err := block(text, kind)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("something follows the PEM block")
	}
	return der, nil
}

// block reads the PEM block that text begins with. pem.Decode alone would skip whatever stands before one.
func block(text []byte, kind string) (der, rest []byte, err error) {
	text = bytes.TrimSpace(text)
	if !bytes.HasPrefix(text, []byte("-----BEGIN "+kind+"-----")) {
		return nil, nil, fmt.Errorf("want a PEM block %q", kind)
	}
	b, rest := pem.Decode(text)
	if b == nil || b.Type != kind || len(b.Headers) > 0 {
		return nil, nil, fmt.Errorf("the PEM block %q is malformed", kind)
	}
	return b.Bytes, rest, nil
}
