// Package pki makes and checks every key and certificate of the mesh.
//
// There are five profiles (profile.go) and two ways to trust a mesh certificate:
//
//	root CA ── intermediate CA ──┐
//	                             ├── mesh certificate
//	mesh CA (same key and name) ─┘
//
// and, where the manifest before allowed it and as long as it said, a third (succession.go):
//
//	mesh CA of the manifest before ── cross-certificate (again the same key and name) ── mesh certificate
//
// The root CA's key comes from the Coordinator's seed and outlives every manifest: who trusts the root CA trusts whatever
// manifest the workload owner sets next. The mesh CA's key is made for one manifest and dies with it: who trusts the mesh
// CA trusts the pods of that manifest and nobody else, unless the manifest names Successors. The intermediate CA is the mesh CA's key certified by the root CA,
// so one leaf, handed out together with the intermediate, verifies for both kinds of peers.
//
// The threat is a host that presents a certificate of another manifest, another Coordinator or its own making. So names
// carry the transition hash, keys are compared by SPKI, and Chain.Verify checks both paths before anything is stored.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/pki/secret"
)

// ClaimsExtension identifies the non-critical extension of a mesh certificate that holds the JSON of the
// attestation.Claims it was issued for. The two arcs below 2.25 (ITU-T X.667) are random 31-bit numbers: one larger arc
// would be more usual there, but encoding/asn1 and crypto/x509 refuse arcs of more than 31 bits.
var ClaimsExtension = asn1.ObjectIdentifier{2, 25, 1364025913, 1729846302}

// MeshCA is the authority of one manifest.
type MeshCA struct {
	// Key signs mesh certificates. It lives in memory only and dies with the manifest.
	Key *ecdsa.PrivateKey
	// Certificate is self-signed: the trust anchor of this manifest.
	Certificate *x509.Certificate
	// Intermediate is the same key and name, certified by the root CA.
	Intermediate *x509.Certificate
	// Before is how the mesh CA of the manifest before hands over to this one. Nil where it does not: then nobody is told of it.
	Before *Succession
}

// NewRootCA certifies the root key (Seed.RootKey). The certificate differs with every call, in serial number and
// signature; the root CA is known by its key.
func NewRootCA(key *ecdsa.PrivateKey, now time.Time) (*x509.Certificate, error) {
	if key == nil || key.Curve != elliptic.P384() {
		return nil, errors.New("make a root CA: the key is not ECDSA P-384")
	}
	root, err := sign(rootCA(now), nil, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make a root CA: %w", err)
	}
	return root, nil
}

// NewMeshCA makes the key of a new manifest and its two certificates. The transition hash names the manifest; its first
// 16 bytes become part of both subjects, so that two manifests never share a distinguished name.
func NewMeshCA(root *x509.Certificate, rootKey *ecdsa.PrivateKey, transitionHash [32]byte, now time.Time) (*MeshCA, error) {
	return newMeshCA(root, rootKey, transitionHash, false, now)
}

// NewMeshCAWithSuccessors is NewMeshCA for a manifest that allows successors: the mesh CA may certify the next one.
func NewMeshCAWithSuccessors(
	root *x509.Certificate, rootKey *ecdsa.PrivateKey, transitionHash [32]byte, now time.Time,
) (*MeshCA, error) {
	return newMeshCA(root, rootKey, transitionHash, true, now)
}

func newMeshCA(
	root *x509.Certificate, rootKey *ecdsa.PrivateKey, transitionHash [32]byte, successors bool, now time.Time,
) (*MeshCA, error) {
	switch {
	case root == nil || rootKey == nil:
		return nil, errors.New("make a mesh CA: no root CA")
	case !rootKey.PublicKey.Equal(root.PublicKey):
		return nil, errors.New("make a mesh CA: the root key is not the root CA's")
	case transitionHash == [32]byte{}:
		return nil, errors.New("make a mesh CA: the transition hash is all zero")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a mesh CA key: %w", err)
	}
	intermediate, err := sign(intermediateCA(transitionHash, now), root, &key.PublicKey, rootKey)
	if err != nil {
		return nil, fmt.Errorf("make an intermediate CA: %w", err)
	}
	template := meshCA(transitionHash, successors, now)
	template.NotAfter = earlier(template.NotAfter, intermediate.NotAfter)
	mesh, err := sign(template, nil, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make a mesh CA: %w", err)
	}
	return &MeshCA{Key: key, Certificate: mesh, Intermediate: intermediate}, nil
}

// Issue makes a mesh certificate for a key that attested evidence vouches for. It ends with its issuers at the latest.
func (ca *MeshCA) Issue(
	pub *ecdsa.PublicKey, sans []SAN, claims attestation.Claims, validity time.Duration, now time.Time,
) (*x509.Certificate, error) {
	switch {
	case ca == nil || ca.Key == nil || ca.Certificate == nil || ca.Intermediate == nil:
		return nil, errors.New("issue a mesh certificate: no mesh CA")
	case pub == nil || pub.Curve != elliptic.P256():
		return nil, errors.New("issue a mesh certificate: the key is not ECDSA P-256")
	case !claims.PolicyHash.Valid():
		return nil, errors.New("issue a mesh certificate: the claims carry no policy hash")
	case validity <= 0:
		return nil, fmt.Errorf("issue a mesh certificate: the validity is %v", validity)
	}
	encoded, err := json.Marshal(claims)
	if err != nil {
		return nil, fmt.Errorf("encode the claims: %w", err)
	}
	template := meshCertificate(claims.PolicyHash, encoded, now, validity)
	if before := ca.Before; before != nil && now.Before(before.Until()) {
		extension, err := before.extension()
		if err != nil {
			return nil, err
		}
		template.ExtraExtensions = append(template.ExtraExtensions, extension)
	}
	for _, san := range sans {
		if err := san.addTo(template); err != nil {
			return nil, fmt.Errorf("issue a mesh certificate: %w", err)
		}
	}
	// The parent by either path has the same name and key; the later start and the earlier end of both bind the leaf.
	template.NotBefore = later(template.NotBefore, ca.Certificate.NotBefore)
	template.NotAfter = earlier(template.NotAfter, ca.Certificate.NotAfter)
	leaf, err := sign(template, ca.Intermediate, pub, ca.Key)
	if err != nil {
		return nil, fmt.Errorf("issue a mesh certificate: %w", err)
	}
	return leaf, nil
}

// Claims reads the claims that a mesh certificate was issued for. It does not verify the certificate.
func Claims(leaf *x509.Certificate) (attestation.Claims, error) {
	for _, e := range leaf.Extensions {
		if e.Id.Equal(ClaimsExtension) {
			var c attestation.Claims
			if err := json.Unmarshal(e.Value, &c); err != nil {
				return attestation.Claims{}, fmt.Errorf("decode the certificate's claims: %w", err)
			}
			return c, nil
		}
	}
	return attestation.Claims{}, errors.New("the certificate carries no attestation claims")
}

// Format shows which manifest the authority belongs to, and never its key.
func (ca MeshCA) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(ca.public())) }

// MarshalJSON does as Format.
func (ca MeshCA) MarshalJSON() ([]byte, error) { return json.Marshal(ca.public()) }

// LogValue does as Format.
func (ca MeshCA) LogValue() slog.Value { return slog.StringValue(ca.public()) }

func (ca MeshCA) public() string {
	if ca.Certificate == nil {
		return "mesh CA (none)"
	}
	return "mesh CA " + ca.Certificate.Subject.SerialNumber + ", key " + secret.Redacted
}

// sign completes a template with what follows from the keys and the parent, nil meaning self-signed.
func sign(
	template, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey,
) (*x509.Certificate, error) {
	// CreateCertificate would choose a SKI of its own for CAs and none for leaves.
	ski, err := subjectKeyID(pub)
	if err != nil {
		return nil, err
	}
	template.SubjectKeyId = ski
	if parent == nil {
		parent = template
		template.AuthorityKeyId = ski
	} else {
		template.NotBefore = later(template.NotBefore, parent.NotBefore)
		template.NotAfter = earlier(template.NotAfter, parent.NotAfter)
	}
	if !template.NotBefore.Before(template.NotAfter) {
		return nil, fmt.Errorf("the issuer has expired: a certificate from %s to %s would never be valid",
			template.NotBefore.Format(time.RFC3339), template.NotAfter.Format(time.RFC3339))
	}
	if template.SerialNumber, err = serialNumber(); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		return nil, err
	}
	// The parsed form, not the template: only it has Raw, and later signatures need the issuer's exact bytes.
	return x509.ParseCertificate(der)
}

// serialNumber is positive and 159 random bits long: at most 20 octets (RFC 5280, 4.1.2.2).
func serialNumber() (*big.Int, error) {
	for {
		n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159))
		if err != nil {
			return nil, fmt.Errorf("make a serial number: %w", err)
		}
		if n.Sign() > 0 {
			return n, nil
		}
	}
}

func transitionPrefix(h [32]byte) string { return hex.EncodeToString(h[:16]) }

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
