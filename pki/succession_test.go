package pki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zmap/zlint/v3/lint"

	"portcullis.dev/portcullis/pki"
)

const day = 24 * time.Hour

// succeeded is an authority whose manifests follow one another, each allowing the next.
type succeeded struct {
	root *x509.Certificate
	mesh []*pki.MeshCA
}

func newSuccession(t *testing.T, n int, overlap time.Duration, now time.Time) succeeded {
	t.Helper()
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var s succeeded
	if s.root, err = pki.NewRootCA(seed.RootKey(), now); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		mesh, err := pki.NewMeshCAWithSuccessors(s.root, seed.RootKey(), [32]byte{byte(i + 1)}, now)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if err := mesh.Succeed(s.mesh[i-1], overlap, now); err != nil {
				t.Fatal(err)
			}
		}
		s.mesh = append(s.mesh, mesh)
	}
	return s
}

func (s succeeded) cross(i int) *x509.Certificate { return s.mesh[i].Before.Cross }

func TestACrossCertificateIsTheSuccessorsNameAndKeyForAWhile(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	s := newSuccession(t, 2, day, now)
	cross, next, old := s.cross(1), s.mesh[1].Certificate, s.mesh[0].Certificate
	for what, ok := range map[string]bool{
		"the mesh CA has room for one CA below":    old.MaxPathLen == 1 && pki.AllowsSuccessor(old),
		"it has the successor's name":              slices.Equal(cross.RawSubject, next.RawSubject),
		"it has the successor's key":               slices.Equal(cross.RawSubjectPublicKeyInfo, next.RawSubjectPublicKeyInfo),
		"it has the successor's SKI":               slices.Equal(cross.SubjectKeyId, next.SubjectKeyId),
		"its issuer is the mesh CA before":         slices.Equal(cross.RawIssuer, old.RawSubject) && slices.Equal(cross.AuthorityKeyId, old.SubjectKeyId),
		"no CA is below it":                        cross.IsCA && cross.MaxPathLen == 0 && cross.MaxPathLenZero,
		"it ends with the overlap":                 cross.NotAfter.Equal(now.Add(day)) && s.mesh[1].Before.Until().Equal(cross.NotAfter),
		"the intermediate CA has no room below it": s.mesh[0].Intermediate.MaxPathLen == 0 && s.mesh[0].Intermediate.MaxPathLenZero,
		"it verifies":                              pki.VerifySuccessor(old, cross) == nil,
		"the first manifest has none before it":    s.mesh[0].Before == nil,
	} {
		if !ok {
			t.Errorf("not so: %s", what)
		}
	}
	for name, c := range map[string]*x509.Certificate{"cross-certificate": cross, "mesh CA": old, "leaf": issue(t, s.mesh[1], "web")} {
		for id, r := range lintResults(t, rfc5280(t), c) {
			if r.Status > lint.Pass {
				t.Errorf("%s: %s: %s %s", name, id, r.Status, r.Details)
			}
		}
	}
	late := newSuccession(t, 2, 11*365*day, now)
	if end := late.cross(1).NotAfter; end.After(late.mesh[0].Certificate.NotAfter) {
		t.Errorf("the cross-certificate ends at %v, after its issuer", end)
	}
}

// path is what a peer of some manifest gets to see of a pod, and what it makes of it.
type path struct {
	name  string
	trust []*x509.Certificate
	shown []*x509.Certificate // behind the leaf
	leaf  *x509.Certificate
	at    time.Time
	ok    bool
}

// paths are the peers of three manifests, each the successor of the one before, and of two without successors.
func paths(t *testing.T) []path {
	now := time.Now()
	s := newSuccession(t, 3, day, now)
	a := newAuthority(t, now) // two manifests that allow none
	leaf := make([]*x509.Certificate, 3)
	for i, mesh := range s.mesh {
		leaf[i] = issue(t, mesh, "web")
	}
	mesh := func(i int) *x509.Certificate { return s.mesh[i].Certificate }
	shown := func(i int) []*x509.Certificate { return []*x509.Certificate{s.mesh[i].Intermediate} }
	// What the key of a manifest that allows no successor would have to sign.
	forged := &pki.MeshCA{Key: a.mesh[1].Key, Certificate: a.mesh[1].Certificate, Intermediate: a.mesh[1].Intermediate}
	crossOfNone := crossBy(t, a.mesh[0], forged, now)
	plain := issue(t, a.mesh[1], "web")
	soon, over := now.Add(day-time.Minute), now.Add(day+time.Minute)
	return []path{
		{"an old pod's peer of the next manifest", []*x509.Certificate{mesh(0), s.cross(1)}, shown(1), leaf[1], now, true},
		{"the same at the end of the overlap", []*x509.Certificate{mesh(0), s.cross(1)}, shown(1), leaf[1], soon, true},
		{"the same after the overlap", []*x509.Certificate{mesh(0), s.cross(1)}, shown(1), leaf[1], over, false},
		{"an old pod that has not heard yet", []*x509.Certificate{mesh(0)}, shown(1), leaf[1], now, false},
		{"an old pod's peer of the manifest after the next", []*x509.Certificate{mesh(0), s.cross(1)}, shown(2), leaf[2], now, false},
		{"the same, showing all cross-certificates", []*x509.Certificate{mesh(0), s.cross(1)}, []*x509.Certificate{s.cross(2), s.cross(1), s.mesh[2].Intermediate}, leaf[2], now, false},
		{"an old pod's peer of its own manifest", []*x509.Certificate{mesh(0), s.cross(1)}, shown(0), leaf[0], over, true},
		{"a new pod's peer of the manifest before", []*x509.Certificate{mesh(1), mesh(0)}, shown(0), leaf[0], now, true},
		{"a new pod that has none before it any more", []*x509.Certificate{mesh(1)}, shown(0), leaf[0], now, false},
		{"a new pod's peer of its own manifest", []*x509.Certificate{mesh(1), mesh(0)}, shown(1), leaf[1], over, true},
		{"the newest pod's peer of the first manifest", []*x509.Certificate{mesh(2), mesh(1)}, shown(0), leaf[0], now, false},
		{"who pinned a mesh CA with successors, and is shown the cross-certificate", []*x509.Certificate{mesh(0)}, []*x509.Certificate{s.cross(1)}, leaf[1], now, true},
		{"the same after the overlap", []*x509.Certificate{mesh(0)}, []*x509.Certificate{s.cross(1)}, leaf[1], over, false},
		{"who pinned the successor does not accept its predecessor", []*x509.Certificate{mesh(1)}, []*x509.Certificate{s.cross(1), s.mesh[0].Intermediate}, leaf[0], now, false},
		{"who pinned a mesh CA without successors, shown what looks like a cross-certificate", []*x509.Certificate{a.mesh[0].Certificate}, []*x509.Certificate{crossOfNone}, plain, now, false},
		{"who pinned a mesh CA without successors", []*x509.Certificate{a.mesh[0].Certificate}, []*x509.Certificate{a.mesh[1].Intermediate}, plain, now, false},
		{"who trusts the root CA", []*x509.Certificate{s.root}, shown(1), leaf[1], now, true},
	}
}

// crossBy is a cross-certificate that a mesh CA's key signed without regard to its path length.
func crossBy(t *testing.T, by, next *pki.MeshCA, now time.Time, change ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: next.Certificate.SerialNumber, Subject: next.Certificate.Subject,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(day), SubjectKeyId: next.Certificate.SubjectKeyId,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for _, c := range change {
		c(template)
	}
	return signed(t, template, by.Certificate, &next.Key.PublicKey, by.Key)
}

func signed(t *testing.T, template, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWhoAcceptsWhomWhileManifestsOverlap(t *testing.T) {
	for _, p := range paths(t) {
		roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
		for _, c := range p.trust {
			roots.AddCert(c)
		}
		for _, c := range p.shown {
			intermediates.AddCert(c)
		}
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			_, err := p.leaf.Verify(x509.VerifyOptions{
				Roots: roots, Intermediates: intermediates, CurrentTime: p.at, KeyUsages: []x509.ExtKeyUsage{usage},
			})
			if (err == nil) != p.ok {
				t.Errorf("Go: %s: got %v, want accepted %v", p.name, err, p.ok)
			}
		}
	}
}

func TestOpensslAgreesWhileManifestsOverlap(t *testing.T) {
	for _, p := range paths(t) {
		dir := t.TempDir()
		write := func(name string, certificates ...*x509.Certificate) string {
			file := filepath.Join(dir, name)
			if err := os.WriteFile(file, pki.EncodeCertificates(certificates...), 0o600); err != nil {
				t.Fatal(err)
			}
			return file
		}
		for _, purpose := range []string{"sslserver", "sslclient"} {
			out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-check_ss_sig", "-no-CApath", "-no-CAstore",
				"-attime", strconv.FormatInt(p.at.Unix(), 10), "-purpose", purpose, "-CAfile", write("trust.pem", p.trust...),
				"-untrusted", write("shown.pem", append([]*x509.Certificate{p.leaf}, p.shown...)...), write("leaf.pem", p.leaf)).CombinedOutput()
			if (err == nil) != p.ok {
				t.Errorf("%s, as %s: got %v, want accepted %v\n%s", p.name, purpose, err, p.ok, out)
			}
		}
	}
}

func TestWhatIsNoCrossCertificate(t *testing.T) {
	now := time.Now()
	s := newSuccession(t, 2, day, now)
	other, without := newSuccession(t, 2, day, now), newAuthority(t, now)
	old, next := s.mesh[0], s.mesh[1]
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name        string
		mesh, cross *x509.Certificate
		fault       string
	}{
		{"nothing", old.Certificate, nil, "missing"},
		{"no mesh CA", nil, s.cross(1), "missing"},
		{"another Coordinator's", old.Certificate, other.cross(1), "verification failure"},
		{"of a mesh CA that allows none", without.mesh[0].Certificate, crossBy(t, without.mesh[0], without.mesh[1], now), "allows no successor"},
		{"the mesh CA itself", old.Certificate, old.Certificate, "not a CA of path length 0"},
		{"the successor's mesh CA", old.Certificate, next.Certificate, "not a CA of path length 0"},
		{"the successor's intermediate CA", old.Certificate, next.Intermediate, "another CA issued it"},
		{"a mesh certificate", old.Certificate, issue(t, old, "web"), "not a CA of path length 0"},
		{"with room below", old.Certificate, crossBy(t, old, next, now, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 1, false }), "path length 0"},
		{"without a path length", old.Certificate, crossBy(t, old, next, now, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = -1, false }), "path length 0"},
		{"not for signing certificates", old.Certificate, crossBy(t, old, next, now, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), "path length 0"},
		{"for its own name", old.Certificate, crossBy(t, old, next, now, func(c *x509.Certificate) { c.Subject = old.Certificate.Subject }), "for the mesh CA itself"},
		{"for its own key", old.Certificate, crossBy(t, old, old, now, func(c *x509.Certificate) { c.Subject = next.Certificate.Subject }), "for the mesh CA itself"},
		{"for a key of another kind", old.Certificate, signed(t, &x509.Certificate{
			SerialNumber: next.Certificate.SerialNumber, Subject: next.Certificate.Subject, NotBefore: now, NotAfter: now.Add(day),
			BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}, old.Certificate, &p384.PublicKey, old.Key), "P-256"},
	} {
		if err := pki.VerifySuccessor(tc.mesh, tc.cross); err == nil || !strings.Contains(err.Error(), tc.fault) {
			t.Errorf("%s: got %v, want an error about %q", tc.name, err, tc.fault)
		}
	}
}

func TestNoSuccessionWhereNoneIsAllowed(t *testing.T) {
	now := time.Now()
	s, without := newSuccession(t, 2, day, now), newAuthority(t, now)
	for name, succeed := range map[string]func() error{
		"the manifest before allows none": func() error { return s.mesh[1].Succeed(without.mesh[0], day, now) },
		"no overlap":                      func() error { return s.mesh[1].Succeed(s.mesh[0], 0, now) },
		"an overlap below zero":           func() error { return s.mesh[1].Succeed(s.mesh[0], -day, now) },
		"nothing before":                  func() error { return s.mesh[1].Succeed(nil, day, now) },
		"a mesh CA after itself":          func() error { return s.mesh[0].Succeed(s.mesh[0], day, now) },
		"nothing taken":                   func() error { return s.mesh[1].SucceedBy(nil) },
		"another's succession":            func() error { return without.mesh[1].SucceedBy(s.mesh[1].Before) },
		"half a succession":               func() error { return s.mesh[1].SucceedBy(&pki.Succession{Predecessor: s.mesh[0].Certificate}) },
		"the other half":                  func() error { return s.mesh[1].SucceedBy(&pki.Succession{Cross: s.cross(1)}) },
	} {
		if succeed() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if without.mesh[1].Before != nil || s.mesh[0].Before != nil {
		t.Error("a refused succession is in force")
	}
}

// The mesh certificate says who was before; nobody else can.
func TestAPredecessorIsTheOneThatTheMeshCertificateNames(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	s, other := newSuccession(t, 3, day, now), newSuccession(t, 2, day, now)
	leaf := issue(t, s.mesh[1], "web")
	trust, err := pki.NewTrust(s.mesh[1].Certificate, leaf, s.mesh[0].Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if !trust.Predecessor.Equal(s.mesh[0].Certificate) || !trust.PredecessorUntil.Equal(now.Add(day)) {
		t.Errorf("trusts %v until %v", trust.Predecessor.Subject, trust.PredecessorUntil)
	}
	if !pki.NamesPredecessor(leaf) || pki.NamesPredecessor(issue(t, s.mesh[0], "web")) {
		t.Error("the wrong certificate names a predecessor")
	}
	after, err := s.mesh[1].Issue(&newKey(t).PublicKey, nil, claims, month, now.Add(day))
	if err != nil {
		t.Fatal(err)
	}
	if pki.NamesPredecessor(after) {
		t.Error("a certificate of after the overlap names a predecessor")
	}
	digest := sha256.Sum256(s.mesh[0].Certificate.Raw)
	named := func(value any, trailing ...byte) *x509.Certificate {
		der, err := asn1.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return signed(t, &x509.Certificate{
			SerialNumber: leaf.SerialNumber, Subject: leaf.Subject, NotBefore: now, NotAfter: now.Add(day),
			ExtraExtensions: []pkix.Extension{{Id: pki.PredecessorExtension, Value: append(der, trailing...)}},
		}, s.mesh[1].Certificate, &newKey(t).PublicKey, s.mesh[1].Key)
	}
	type extension struct {
		MeshCA []byte
		Until  time.Time `asn1:"generalized"`
	}
	mesh := s.mesh[1].Certificate
	for _, tc := range []struct {
		name                    string
		mesh, leaf, predecessor *x509.Certificate
		fault                   string
	}{
		{"another Coordinator's mesh CA", mesh, leaf, other.mesh[0].Certificate, "which the mesh certificate names"},
		{"the mesh CA before that", s.mesh[2].Certificate, issue(t, s.mesh[2], "web"), s.mesh[0].Certificate, "which the mesh certificate names"},
		{"none, though one is named", mesh, leaf, nil, "there is none"},
		{"one, though none is named", s.mesh[0].Certificate, issue(t, s.mesh[0], "web"), other.mesh[0].Certificate, "names none"},
		{"one, named by another mesh CA", s.mesh[0].Certificate, leaf, s.mesh[0].Certificate, "not the mesh CA's"},
		{"a CA without room for a successor", mesh, named(extension{sum(s.mesh[0].Intermediate), now}), s.mesh[0].Intermediate, "allows a successor"},
		{"no mesh CA", nil, leaf, s.mesh[0].Certificate, "missing"},
		{"no mesh certificate", mesh, nil, s.mesh[0].Certificate, "missing"},
		{"half a digest", mesh, named(extension{digest[:16], now}), s.mesh[0].Certificate, "form that is not known"},
		{"something behind it", mesh, named(extension{digest[:], now}, 0), s.mesh[0].Certificate, "form that is not known"},
		{"another type", mesh, named("web"), s.mesh[0].Certificate, "form that is not known"},
	} {
		if _, err := pki.NewTrust(tc.mesh, tc.leaf, tc.predecessor); err == nil || !strings.Contains(err.Error(), tc.fault) {
			t.Errorf("%s: got %v, want an error about %q", tc.name, err, tc.fault)
		}
	}
}

func sum(c *x509.Certificate) []byte {
	digest := sha256.Sum256(c.Raw)
	return digest[:]
}

func TestTrustFile(t *testing.T) {
	now := time.Now()
	s, other := newSuccession(t, 3, day, now), newSuccession(t, 2, day, now)
	leaf := issue(t, s.mesh[1], "web")
	own, before, after := s.mesh[1].Certificate, s.mesh[0].Certificate, s.cross(2)
	file := func(certificates ...*x509.Certificate) []byte { return pki.EncodeCertificates(certificates...) }

	whole, err := pki.ParseTrust(file(own, before, after), leaf)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(whole.PEM(), file(own, before, after)) || !slices.Equal(whole.At(now).PEM(), whole.PEM()) {
		t.Error("the file is written otherwise than it was read")
	}
	over := whole.At(now.Add(day))
	if !slices.Equal(over.PEM(), file(own)) || !over.PredecessorUntil.IsZero() || !over.SuccessorUntil().IsZero() {
		t.Error("after the overlap, there is more than the own mesh CA")
	}
	if !whole.SuccessorUntil().Equal(after.NotAfter) || whole.Predecessor == nil {
		t.Error("At changed what it was asked of")
	}
	if turned, err := pki.ParseTrust(file(own, after, before), leaf); err != nil || !slices.Equal(turned.PEM(), whole.PEM()) {
		t.Errorf("in the other order: %v", err)
	}
	for name, text := range map[string][]byte{
		"the own mesh CA alone": file(own), "with the predecessor": file(own, before), "with the successor": file(own, after),
	} {
		if trust, err := pki.ParseTrust(text, leaf); err != nil || !slices.Equal(trust.PEM(), text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string][]byte{
		"nothing":                       nil,
		"the predecessor first":         file(before, own),
		"another Coordinator's mesh CA": file(own, other.mesh[0].Certificate),
		"another cross-certificate":     file(own, other.cross(1)),
		"the predecessor's own cross":   file(own, s.cross(1)),
		"the successor's mesh CA":       file(own, s.mesh[2].Certificate),
		"the predecessor twice":         file(own, before, before),
		"the successor twice":           file(own, after, after),
		"the own mesh CA twice":         file(own, own),
		"the intermediate CA":           file(own, s.mesh[1].Intermediate),
		"the root CA":                   file(own, s.root),
		"a mesh certificate":            file(own, leaf),
		"something behind":              append(file(own, before), 'x'),
	} {
		if trust, err := pki.ParseTrust(text, leaf); err == nil {
			t.Errorf("%s: accepted as %q", name, trust.PEM())
		}
	}
}
