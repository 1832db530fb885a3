package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"
)

// PredecessorExtension identifies the non-critical extension of a mesh certificate that names the mesh CA of the manifest
// before, and until when its pods are accepted. It is for the pod itself, not for its peers. The arcs are as in
// ClaimsExtension.
//
// It is why a pod can believe that there is a predecessor: the pod's own mesh CA signed for it, together with the pod's key,
// so whatever protects the certificate protects this too. Anybody can put a CA into an answer, or sign a certificate for
// somebody else's key.
var PredecessorExtension = asn1.ObjectIdentifier{2, 25, 1364025913, 1098022747}

// predecessorExtension is the extension's DER.
type predecessorExtension struct {
	MeshCA []byte    // SHA-256 of the certificate
	Until  time.Time `asn1:"generalized"`
}

// Succession is how the mesh CA of one manifest hands over to that of the next: for a while pods of either accept those of
// the other. All of it is public, and made before the old key is forgotten.
type Succession struct {
	// Predecessor is the mesh CA of the manifest before, which pods of the next one are told to accept until Until.
	Predecessor *x509.Certificate
	// Cross is the next mesh CA's key and name, certified by the predecessor: what pods of the manifest before accept.
	Cross *x509.Certificate
}

// Until is when it is over, in both directions.
func (s *Succession) Until() time.Time { return s.Cross.NotAfter }

func (s *Succession) extension() (pkix.Extension, error) {
	digest := sha256.Sum256(s.Predecessor.Raw)
	der, err := asn1.Marshal(predecessorExtension{MeshCA: digest[:], Until: s.Until().UTC()})
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("encode the predecessor: %w", err)
	}
	return pkix.Extension{Id: PredecessorExtension, Value: der}, nil
}

// Succeed has the mesh CA before certify ca, for the time of the overlap. It is an error where that one allows no successors.
func (ca *MeshCA) Succeed(before *MeshCA, overlap time.Duration, now time.Time) error {
	switch {
	case ca == nil || ca.Key == nil || ca.Intermediate == nil || before == nil || before.Key == nil || before.Certificate == nil:
		return errors.New("succeed a mesh CA: one of the two is missing")
	case !AllowsSuccessor(before.Certificate):
		return errors.New("succeed a mesh CA: it allows no successor")
	case overlap <= 0:
		return fmt.Errorf("succeed a mesh CA: an overlap of %v", overlap)
	}
	template := crossCertificate(ca.Intermediate, now, overlap)
	template.NotAfter = earlier(template.NotAfter, ca.Intermediate.NotAfter)
	cross, err := sign(template, before.Certificate, &ca.Key.PublicKey, before.Key)
	if err != nil {
		return fmt.Errorf("cross-certify a mesh CA: %w", err)
	}
	return ca.SucceedBy(&Succession{Predecessor: before.Certificate, Cross: cross})
}

// SucceedBy takes a succession that was made before, whoever kept it, if it is one to ca. It may be over.
func (ca *MeshCA) SucceedBy(s *Succession) error {
	switch err := s.Verify(); {
	case err != nil:
		return err
	case !bytes.Equal(s.Cross.RawSubjectPublicKeyInfo, ca.Certificate.RawSubjectPublicKeyInfo),
		!bytes.Equal(s.Cross.RawSubject, ca.Certificate.RawSubject):
		return errors.New("the cross-certificate is for another mesh CA")
	}
	ca.Before = s
	return nil
}

// Verify checks that both parts are there and belong together. It does not look at the time.
func (s *Succession) Verify() error {
	if s == nil || s.Predecessor == nil {
		return errors.New("verify a succession: a certificate is missing")
	}
	if err := checkPredecessor(s.Predecessor); err != nil {
		return fmt.Errorf("verify a succession: %w", err)
	}
	return VerifySuccessor(s.Predecessor, s.Cross)
}

// AllowsSuccessor says whether a mesh CA may certify the next one.
func AllowsSuccessor(mesh *x509.Certificate) bool {
	return mesh != nil && mesh.BasicConstraintsValid && mesh.IsCA && mesh.MaxPathLen == 1
}

// VerifySuccessor checks that cross is what a mesh CA signed for the one after it: for another key and name than its own, as
// a CA below which there is no other. It does not look at the time.
func VerifySuccessor(mesh, cross *x509.Certificate) error {
	switch {
	case mesh == nil || cross == nil:
		return errors.New("verify a cross-certificate: a certificate is missing")
	case !AllowsSuccessor(mesh):
		return errors.New("verify a cross-certificate: the mesh CA allows no successor")
	case !cross.BasicConstraintsValid || !cross.IsCA || cross.MaxPathLen != 0 || !cross.MaxPathLenZero ||
		cross.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign:
		return errors.New("verify a cross-certificate: it is not a CA of path length 0")
	case bytes.Equal(cross.RawSubjectPublicKeyInfo, mesh.RawSubjectPublicKeyInfo) || bytes.Equal(cross.RawSubject, mesh.RawSubject):
		return errors.New("verify a cross-certificate: it is for the mesh CA itself")
	case !bytes.Equal(cross.RawIssuer, mesh.RawSubject):
		return errors.New("verify a cross-certificate: another CA issued it")
	}
	if key, ok := cross.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return errors.New("verify a cross-certificate: its key is not ECDSA P-256")
	}
	if err := cross.CheckSignatureFrom(mesh); err != nil {
		return fmt.Errorf("verify a cross-certificate: %w", err)
	}
	return nil
}

func checkPredecessor(mesh *x509.Certificate) error {
	if !AllowsSuccessor(mesh) {
		return errors.New("the predecessor is not a mesh CA that allows a successor")
	}
	if err := mesh.CheckSignatureFrom(mesh); err != nil {
		return fmt.Errorf("the predecessor is not self-signed: %w", err)
	}
	return nil
}

// Trust is what a pod accepts peers under: its own mesh CA, and while two manifests overlap one CA more on either side. The
// zero value accepts nobody.
type Trust struct {
	// MeshCA is the pod's own, for its life.
	MeshCA *x509.Certificate
	// Predecessor is the mesh CA of the manifest before, accepted until PredecessorUntil; nil without one.
	Predecessor      *x509.Certificate
	PredecessorUntil time.Time
	// Successor is the cross-certificate of the mesh CA after; nil without one. It ends by itself.
	Successor *x509.Certificate
}

// NewTrust is what the holder of a mesh certificate accepts. predecessor is nil where the certificate names none, and
// the one that it names otherwise.
func NewTrust(mesh, leaf, predecessor *x509.Certificate) (*Trust, error) {
	if mesh == nil || leaf == nil {
		return nil, errors.New("a certificate is missing")
	}
	// Before anything in it is believed.
	if err := leaf.CheckSignatureFrom(mesh); err != nil {
		return nil, fmt.Errorf("the mesh certificate is not the mesh CA's: %w", err)
	}
	named, err := predecessorOf(leaf)
	switch {
	case err != nil:
		return nil, err
	case named == nil && predecessor == nil:
		return &Trust{MeshCA: mesh}, nil
	case named == nil:
		return nil, errors.New("there is a predecessor, and the mesh certificate names none")
	case predecessor == nil:
		return nil, errors.New("the mesh certificate names a predecessor, and there is none")
	}
	if digest := sha256.Sum256(predecessor.Raw); !bytes.Equal(digest[:], named.MeshCA) {
		return nil, fmt.Errorf("the predecessor has SHA-256 %x, want %x, which the mesh certificate names", digest, named.MeshCA)
	}
	if err := checkPredecessor(predecessor); err != nil {
		return nil, err
	}
	return &Trust{
		MeshCA: mesh, Predecessor: predecessor, PredecessorUntil: earlier(named.Until, predecessor.NotAfter),
	}, nil
}

// NamesPredecessor says whether a mesh certificate names a predecessor.
func NamesPredecessor(leaf *x509.Certificate) bool {
	named, err := predecessorOf(leaf)
	return err == nil && named != nil
}

// predecessorOf is nil where a mesh certificate names none.
func predecessorOf(leaf *x509.Certificate) (*predecessorExtension, error) {
	for _, e := range leaf.Extensions {
		if !e.Id.Equal(PredecessorExtension) {
			continue
		}
		var named predecessorExtension
		if rest, err := asn1.Unmarshal(e.Value, &named); err != nil || len(rest) > 0 || len(named.MeshCA) != sha256.Size {
			return nil, errors.New("the mesh certificate names a predecessor in a form that is not known")
		}
		return &named, nil
	}
	return nil, nil
}

// ParseTrust reads a pod's trust file: its own mesh CA first, then, each at most once, the predecessor that its mesh
// certificate names, and a cross-certificate that its mesh CA signed. Whoever may write the file of a running pod could
// also use the pod's key; what is checked here is that nothing else got in by mistake. What is over may still be in it (At),
// and the predecessor may be missing: it was taken out when it was over.
func ParseTrust(text []byte, leaf *x509.Certificate) (*Trust, error) {
	certificates, err := ParseCertificates(text)
	if err != nil {
		return nil, err
	}
	mesh := certificates[0]
	var predecessor, successor *x509.Certificate
	for i, c := range certificates[1:] {
		kind := &predecessor
		if bytes.Equal(c.RawIssuer, mesh.RawSubject) {
			kind = &successor
		}
		if *kind != nil {
			return nil, fmt.Errorf("certificate %d: there is another of its kind already", i+2)
		}
		*kind = c
	}
	t := &Trust{MeshCA: mesh}
	if predecessor != nil {
		if t, err = NewTrust(mesh, leaf, predecessor); err != nil {
			return nil, err
		}
	}
	if successor != nil {
		if err := VerifySuccessor(mesh, successor); err != nil {
			return nil, err
		}
		t.Successor = successor
	}
	return t, nil
}

// At is t without what is over.
func (t Trust) At(now time.Time) *Trust {
	if t.Predecessor != nil && !now.Before(t.PredecessorUntil) {
		t.Predecessor, t.PredecessorUntil = nil, time.Time{}
	}
	if t.Successor != nil && !now.Before(t.Successor.NotAfter) {
		t.Successor = nil
	}
	return &t
}

// SuccessorUntil is zero without a successor.
func (t *Trust) SuccessorUntil() time.Time {
	if t.Successor == nil {
		return time.Time{}
	}
	return t.Successor.NotAfter
}

// PEM is the trust file.
func (t *Trust) PEM() []byte {
	certificates := []*x509.Certificate{t.MeshCA}
	for _, c := range []*x509.Certificate{t.Predecessor, t.Successor} {
		if c != nil {
			certificates = append(certificates, c)
		}
	}
	return EncodeCertificates(certificates...)
}
