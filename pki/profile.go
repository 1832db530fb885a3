package pki

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"time"

	"portcullis.dev/portcullis/attestation"
)

const (
	// backdate lets a peer whose clock is a little behind accept a fresh certificate.
	backdate = 5 * time.Minute
	// caLifetime is ten years of 365.25 days.
	caLifetime = 87660 * time.Hour
)

// The five profiles. sign adds what follows from keys and parents: SKI, AKI (keyid only), serial number, and the caps on
// the validity.

func rootCA(now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: organization, CommonName: "Portcullis root CA"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func intermediateCA(transitionHash [32]byte, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:               meshSubject(transitionHash),
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            0,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func meshCA(transitionHash [32]byte, successors bool, now time.Time) *x509.Certificate {
	c := &x509.Certificate{
		Subject:               meshSubject(transitionHash), // the intermediate's: a leaf has one issuer name for both
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            0,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if successors { // room for one CA below: the successor's cross-certificate
		c.MaxPathLen, c.MaxPathLenZero = 1, false
	}
	return c
}

// crossCertificate is the successor's name and key, for a while, under the mesh CA before it. The path ends with it: a
// successor's successor is not accepted through it.
func crossCertificate(successor *x509.Certificate, now time.Time, overlap time.Duration) *x509.Certificate {
	return &x509.Certificate{
		Subject:               successor.Subject,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(overlap),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            0,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func meshCertificate(policy attestation.PolicyHash, claims []byte, now time.Time, validity time.Duration) *x509.Certificate {
	return &x509.Certificate{
		// Never empty, so that the SAN extension may be absent. A policy hash is 64 characters, the most that a common
		// name may have and one more than a DNS label may: no client that still looks at common names takes it for a host.
		Subject:               pkix.Name{Organization: organization, CommonName: policy.String()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		BasicConstraintsValid: true,
		IsCA:                  false,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		ExtraExtensions:       []pkix.Extension{{Id: ClaimsExtension, Critical: false, Value: claims}},
	}
}

var organization = []string{"Portcullis"}

func meshSubject(transitionHash [32]byte) pkix.Name {
	return pkix.Name{
		Organization: organization,
		CommonName:   "Portcullis mesh CA",
		SerialNumber: transitionPrefix(transitionHash),
	}
}

// subjectKeyID is the leftmost 160 bits of SHA-256 of the public key's bit string (RFC 7093, section 2, method 1).
func subjectKeyID(pub *ecdsa.PublicKey) ([]byte, error) {
	point, err := pub.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode the public key: %w", err)
	}
	sum := sha256.Sum256(point)
	return sum[:20], nil
}
