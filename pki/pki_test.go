package pki_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret"
)

const month = 30 * 24 * time.Hour

var claims = attestation.Claims{
	Platform:    attestation.Simulated,
	PolicyHash:  attestation.PolicyHash(bytes.Repeat([]byte{0x17}, 32)),
	Measurement: bytes.Repeat([]byte{0xa5}, 48),
	SNP:         &attestation.SNPClaims{Product: "Milan", ReportedTCB: 1, SignedBy: "VCEK"},
}

// authority is the CAs of one Coordinator: a seed, a root CA, and a mesh CA for each of two manifests.
type authority struct {
	seed pki.Seed
	root *x509.Certificate
	mesh [2]*pki.MeshCA
}

func newAuthority(t *testing.T, now time.Time) authority {
	t.Helper()
	var a authority
	var err error
	if a.seed, err = pki.NewSeed(rand.Reader); err != nil {
		t.Fatal(err)
	}
	if a.root, err = pki.NewRootCA(a.seed.RootKey(), now); err != nil {
		t.Fatal(err)
	}
	for i := range a.mesh {
		if a.mesh[i], err = pki.NewMeshCA(a.root, a.seed.RootKey(), [32]byte{byte(i + 1)}, now); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func parseSANs(t *testing.T, names ...string) []pki.SAN {
	t.Helper()
	var sans []pki.SAN
	for _, n := range names {
		san, err := pki.ParseSAN(n)
		if err != nil {
			t.Fatal(err)
		}
		sans = append(sans, san)
	}
	return sans
}

func issue(t *testing.T, ca *pki.MeshCA, names ...string) *x509.Certificate {
	t.Helper()
	leaf, err := ca.Issue(&newKey(t).PublicKey, parseSANs(t, names...), claims, month, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// The kinds of SAN lists that policies have.
var sanLists = map[string][]string{
	"a service":   {"billing-svc", "billing-svc.shop", "billing-svc.shop.svc", "billing-svc.shop.svc.cluster.local"},
	"no name":     nil,
	"an address":  {"10.4.7.1"},
	"IPv6":        {"fd00::7"},
	"a SPIFFE ID": {"spiffe://cluster.local/ns/shop/sa/billing"},
	"punycode":    {"xn--bcher-kva.example"},
	"a wildcard":  {"*.shop.svc"},
	"everything":  {"web", "10.4.7.1", "fd00::7", "spiffe://cluster.local/x", "*.shop.svc"},
	"a hundred":   hundred(),
}

func hundred() []string {
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("svc-%d.shop.svc", i))
	}
	return names
}

func TestEveryCertificatePassesZlint(t *testing.T) {
	registry := rfc5280(t)
	check := func(name string, c *x509.Certificate) {
		t.Run(name, func(t *testing.T) {
			passed := 0
			for id, r := range lintResults(t, registry, c) {
				if r.Status > lint.Pass {
					t.Errorf("%s: %s %s", id, r.Status, r.Details)
				} else if r.Status == lint.Pass {
					passed++
				}
			}
			if passed < 20 {
				t.Errorf("only %d lints applied", passed)
			}
		})
	}
	a := newAuthority(t, time.Now())
	check("root CA", a.root)
	check("intermediate CA", a.mesh[0].Intermediate)
	check("mesh CA", a.mesh[0].Certificate)
	for name, sans := range sanLists {
		check("mesh certificate, "+name, issue(t, a.mesh[0], sans...))
	}
}

func rfc5280(t *testing.T) lint.Registry {
	t.Helper()
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{lint.RFC5280}})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(registry.Names()); n < 100 {
		t.Fatalf("zlint knows %d lints of RFC 5280, too few to mean anything", n)
	}
	return registry
}

func lintResults(t interface{ Fatal(...any) }, registry lint.Registry, c *x509.Certificate) map[string]*lint.LintResult {
	parsed, err := zx509.ParseCertificate(c.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return zlint.LintCertificateEx(parsed, registry).Results
}

func TestOpensslVerifiesBothPathsStrictly(t *testing.T) {
	a := newAuthority(t, time.Now())
	other := newAuthority(t, time.Now())
	for name, sans := range sanLists {
		t.Run(name, func(t *testing.T) {
			leaf := issue(t, a.mesh[0], sans...)
			for _, tc := range []struct {
				name      string
				anchor    *x509.Certificate
				untrusted []*x509.Certificate
				ok        bool
			}{
				{"mesh CA alone", a.mesh[0].Certificate, nil, true},
				{"mesh CA, with the chain that peers hand out", a.mesh[0].Certificate, []*x509.Certificate{leaf, a.mesh[0].Intermediate}, true},
				{"root CA with the intermediate", a.root, []*x509.Certificate{a.mesh[0].Intermediate}, true},
				{"root CA without the intermediate", a.root, nil, false},
				{"root CA with the mesh CA in its place", a.root, []*x509.Certificate{a.mesh[0].Certificate}, false},
				{"the next manifest's mesh CA", a.mesh[1].Certificate, []*x509.Certificate{leaf, a.mesh[0].Intermediate}, false},
				{"another Coordinator's mesh CA", other.mesh[0].Certificate, []*x509.Certificate{leaf, a.mesh[0].Intermediate}, false},
				{"another Coordinator's root CA", other.root, []*x509.Certificate{a.mesh[0].Intermediate}, false},
			} {
				for _, purpose := range []string{"sslserver", "sslclient"} {
					out, err := openssl(t, purpose, tc.anchor, tc.untrusted, leaf)
					if (err == nil) != tc.ok {
						t.Errorf("%s, as %s: got %v, want accepted %v\n%s", tc.name, purpose, err, tc.ok, out)
					}
				}
			}
		})
	}
	t.Run("a CA is no mesh certificate", func(t *testing.T) {
		if out, err := openssl(t, "sslserver", a.mesh[0].Certificate, nil, a.mesh[1].Intermediate); err == nil {
			t.Errorf("accepted\n%s", out)
		}
	})
}

func openssl(t *testing.T, purpose string, anchor *x509.Certificate, untrusted []*x509.Certificate, leaf *x509.Certificate) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, certificates ...*x509.Certificate) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pki.EncodeCertificates(certificates...), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := []string{
		"verify", "-x509_strict", "-check_ss_sig", "-no-CApath", "-no-CAstore", "-purpose", purpose,
		"-CAfile", write("anchor.pem", anchor),
	}
	if len(untrusted) > 0 {
		args = append(args, "-untrusted", write("untrusted.pem", untrusted...))
	}
	return exec.CommandContext(t.Context(), "openssl", append(args, write("leaf.pem", leaf))...).CombinedOutput()
}

func TestAMeshCAIsOfOneManifestAndTheRootCAOfAll(t *testing.T) {
	a := newAuthority(t, time.Now())
	leaves := [2]*x509.Certificate{issue(t, a.mesh[0], "web"), issue(t, a.mesh[1], "web")}
	verify := func(leaf, anchor *x509.Certificate, intermediates ...*x509.Certificate) error {
		options := x509.VerifyOptions{
			Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		options.Roots.AddCert(anchor)
		for _, c := range intermediates {
			options.Intermediates.AddCert(c)
		}
		_, err := leaf.Verify(options)
		return err
	}
	for i, leaf := range leaves {
		for j, ca := range a.mesh {
			// Peers hand out their intermediate, and a hostile one whatever it has.
			err := verify(leaf, ca.Certificate, a.mesh[0].Intermediate, a.mesh[1].Intermediate, a.mesh[i].Certificate)
			if (err == nil) != (i == j) {
				t.Errorf("leaf of manifest %d under the mesh CA of manifest %d: %v", i+1, j+1, err)
			}
		}
		if err := verify(leaf, a.root, a.mesh[i].Intermediate); err != nil {
			t.Errorf("leaf of manifest %d under the root CA: %v", i+1, err)
		}
	}
}

func TestProfiles(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	a := newAuthority(t, now)
	mesh, intermediate := a.mesh[0].Certificate, a.mesh[0].Intermediate
	leaf, err := a.mesh[0].Issue(&newKey(t).PublicKey, parseSANs(t, "web", "10.0.0.1", "spiffe://shop.example/web"), claims, month, now)
	if err != nil {
		t.Fatal(err)
	}
	must := func(what string, ok bool) {
		t.Helper()
		if !ok {
			t.Error(what)
		}
	}
	curve := func(c *x509.Certificate) elliptic.Curve { return c.PublicKey.(*ecdsa.PublicKey).Curve }

	must("the root CA's key is P-384", curve(a.root) == elliptic.P384())
	must("the root CA's path length is 1", a.root.MaxPathLen == 1)
	must("the root CA's key comes from the seed", a.seed.RootKey().PublicKey.Equal(a.root.PublicKey))
	must("the root CA lives ten years", a.root.NotAfter.Sub(now).Round(24*time.Hour) == 3653*24*time.Hour ||
		a.root.NotAfter.Sub(now) == 87660*time.Hour)
	for name, c := range map[string]*x509.Certificate{"mesh CA": mesh, "intermediate CA": intermediate} {
		must(name+": key is P-256", curve(c) == elliptic.P256())
		must(name+": path length is 0", c.MaxPathLen == 0 && c.MaxPathLenZero)
		must(name+": subject carries the transition", c.Subject.SerialNumber == hex.EncodeToString(append([]byte{1}, make([]byte, 15)...)))
	}
	for name, c := range map[string]*x509.Certificate{"root CA": a.root, "mesh CA": mesh, "intermediate CA": intermediate} {
		must(name+": is a CA", c.IsCA && c.BasicConstraintsValid)
		must(name+": key usage", c.KeyUsage == x509.KeyUsageCertSign|x509.KeyUsageCRLSign)
		must(name+": no extended key usage", len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0)
	}
	must("mesh CA and intermediate CA share their key", bytes.Equal(mesh.RawSubjectPublicKeyInfo, intermediate.RawSubjectPublicKeyInfo))
	must("mesh CA and intermediate CA share their name", bytes.Equal(mesh.RawSubject, intermediate.RawSubject))
	must("mesh CA and intermediate CA share their SKI", bytes.Equal(mesh.SubjectKeyId, intermediate.SubjectKeyId))
	must("two manifests share no name", !bytes.Equal(mesh.RawSubject, a.mesh[1].Certificate.RawSubject))
	must("two manifests share no key", !bytes.Equal(mesh.RawSubjectPublicKeyInfo, a.mesh[1].Certificate.RawSubjectPublicKeyInfo))

	must("the leaf is no CA", !leaf.IsCA && leaf.BasicConstraintsValid)
	must("the leaf's key usage", leaf.KeyUsage == x509.KeyUsageDigitalSignature)
	must("the leaf serves and calls", slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}))
	must("the leaf is backdated", leaf.NotBefore.Equal(now.Add(-5*time.Minute)))
	must("the leaf ends when asked", leaf.NotAfter.Equal(now.Add(month)))
	must("the leaf has a SKI", len(leaf.SubjectKeyId) == 20)
	must("the leaf's AKI is the issuer's SKI", bytes.Equal(leaf.AuthorityKeyId, mesh.SubjectKeyId))
	must("the leaf's DNS names", slices.Equal(leaf.DNSNames, []string{"web"}))
	must("the leaf's addresses", len(leaf.IPAddresses) == 1 && leaf.IPAddresses[0].String() == "10.0.0.1")
	must("the leaf's URIs", len(leaf.URIs) == 1 && leaf.URIs[0].String() == "spiffe://shop.example/web")
	for _, e := range leaf.Extensions {
		if e.Id.Equal(pki.ClaimsExtension) {
			must("the claims are not critical", !e.Critical)
		}
		// AuthorityKeyIdentifier ::= SEQUENCE { keyIdentifier [0] OPTIONAL, ... }: 2 + 2 + 20 bytes is keyid only.
		if e.Id.String() == "2.5.29.35" {
			must("the AKI is keyid only", len(e.Value) == 24 && e.Value[2] == 0x80)
		}
	}
	got, err := pki.Claims(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, claims) {
		t.Errorf("the leaf's claims are %+v, want %+v", got, claims)
	}
	if _, err := pki.Claims(mesh); err == nil {
		t.Error("the mesh CA has claims")
	}
	serials := map[string]bool{}
	for _, c := range []*x509.Certificate{a.root, mesh, intermediate, leaf, a.mesh[1].Certificate, a.mesh[1].Intermediate} {
		must("serial numbers are long", c.SerialNumber.BitLen() > 100)
		serials[c.SerialNumber.String()] = true
	}
	must("serial numbers differ", len(serials) == 6)
}

func TestNoCertificateOutlivesItsIssuers(t *testing.T) {
	nineYears := 9 * 365 * 24 * time.Hour
	start := time.Now()
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, err := pki.NewRootCA(seed.RootKey(), start)
	if err != nil {
		t.Fatal(err)
	}
	mesh, err := pki.NewMeshCA(root, seed.RootKey(), [32]byte{1}, start.Add(nineYears))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := mesh.Issue(&newKey(t).PublicKey, nil, claims, nineYears, start.Add(nineYears))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*x509.Certificate{"mesh CA": mesh.Certificate, "intermediate": mesh.Intermediate, "leaf": leaf} {
		if c.NotAfter.After(root.NotAfter) {
			t.Errorf("the %s ends at %v, after the root CA's %v", name, c.NotAfter, root.NotAfter)
		}
	}
	early, err := mesh.Issue(&newKey(t).PublicKey, nil, claims, month, start.Add(nineYears-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if early.NotBefore.Before(mesh.Certificate.NotBefore) {
		t.Error("a leaf begins before its issuer")
	}
	if _, err := mesh.Issue(&newKey(t).PublicKey, nil, claims, month, start.Add(2*nineYears)); err == nil {
		t.Error("an expired mesh CA issued a certificate")
	}
	if _, err := pki.NewMeshCA(root, seed.RootKey(), [32]byte{1}, start.Add(2*nineYears)); err == nil {
		t.Error("an expired root CA issued a certificate")
	}
}

func TestNothingIsIssuedForNothing(t *testing.T) {
	a := newAuthority(t, time.Now())
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now, pub := time.Now(), &newKey(t).PublicKey
	for name, issue := range map[string]func() error{
		"no authority":       func() error { _, err := (*pki.MeshCA)(nil).Issue(pub, nil, claims, month, now); return err },
		"empty authority":    func() error { _, err := (&pki.MeshCA{}).Issue(pub, nil, claims, month, now); return err },
		"no key":             func() error { _, err := a.mesh[0].Issue(nil, nil, claims, month, now); return err },
		"P-384 leaf":         func() error { _, err := a.mesh[0].Issue(&p384.PublicKey, nil, claims, month, now); return err },
		"no claims":          func() error { _, err := a.mesh[0].Issue(pub, nil, attestation.Claims{}, month, now); return err },
		"no validity":        func() error { _, err := a.mesh[0].Issue(pub, nil, claims, 0, now); return err },
		"empty SAN":          func() error { _, err := a.mesh[0].Issue(pub, make([]pki.SAN, 1), claims, month, now); return err },
		"root of P-256":      func() error { _, err := pki.NewRootCA(newKey(t), now); return err },
		"no root key":        func() error { _, err := pki.NewRootCA(nil, now); return err },
		"another root's key": func() error { _, err := pki.NewMeshCA(a.root, p384, [32]byte{1}, now); return err },
		"no transition":      func() error { _, err := pki.NewMeshCA(a.root, a.seed.RootKey(), [32]byte{}, now); return err },
		"no root":            func() error { _, err := pki.NewMeshCA(nil, a.seed.RootKey(), [32]byte{1}, now); return err },
	} {
		if issue() == nil {
			t.Errorf("%s: something was issued", name)
		}
	}
}

func TestNoKeyIsPrinted(t *testing.T) {
	a := newAuthority(t, time.Now())
	ca := a.mesh[0]
	d, err := ca.Key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for what, value := range map[string]struct {
		secret []byte
		values []any
	}{
		"mesh CA": {d, []any{ca, *ca}},
		"seed":    {a.seed.Reveal(), []any{a.seed, &a.seed, struct{ Seed pki.Seed }{a.seed}}},
		"secret":  {a.seed.NonceKey().Reveal(), []any{a.seed.NonceKey(), map[string]secret.Bytes{"key": a.seed.NonceKey()}}},
	} {
		for _, v := range value.values {
			printed := printedForms(t, v)
			for _, form := range []string{
				string(value.secret), hex.EncodeToString(value.secret), fmt.Sprint(value.secret), fmt.Sprintf("%#v", value.secret),
				new(big.Int).SetBytes(value.secret).String(), // what a careless %v prints of a private key
			} {
				if strings.Contains(strings.ToLower(printed), strings.ToLower(form)) {
					t.Errorf("%s as %T prints its secret: %s", what, v, printed)
				}
			}
			if !strings.Contains(printed, secret.Redacted) {
				t.Errorf("%s as %T does not say that something is withheld: %s", what, v, printed)
			}
		}
	}
}

func printedForms(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&b, verb+"\n", v)
	}
	fmt.Fprintln(&b, v)
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewJSONHandler(&b, nil)).Info("test", "value", v)
	slog.New(slog.NewTextHandler(&b, nil)).Info("test", "value", v)
	return b.String()
}
