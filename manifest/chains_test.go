package manifest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// authority is a Coordinator's, as far as certificates go: one root CA, and the manifests that it is given.
type authority struct {
	seed  pki.Seed
	root  *x509.Certificate
	at    time.Time
	mesh  []*pki.MeshCA
	cases []issuance
}

// issuance is one certificate, with all that it is to verify under.
type issuance struct {
	name  string
	key   *ecdsa.PrivateKey
	mesh  *pki.MeshCA
	chain pki.Chain
}

// The names that policies may have. Hosts of URIs are a few, since zlint tells names from addresses by an expression that
// fails for "a.a.example".
var (
	label   = rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?`)
	dnsName = rapid.Custom(func(t *rapid.T) string {
		switch rapid.IntRange(0, 9).Draw(t, "kind of name") {
		case 0: // as long as a name may be
			full := func(n int) string { return rapid.StringMatching(fmt.Sprintf(`[a-z]{%d}`, n)).Draw(t, "long label") }
			return full(63) + "." + full(63) + "." + full(63) + "." + full(61)
		case 1:
			return rapid.SampledFrom([]string{"xn--bcher-kva", "xn--80akhbyknj4f", "xn--fiqs8s", "xn--mgbh0fb", "xn--nxasmq6b"}).Draw(t, "punycode") +
				"." + label.Draw(t, "label") + ".example"
		case 2:
			return label.Draw(t, "only label")
		default:
			return strings.Join(rapid.SliceOfN(label, 2, 5).Draw(t, "labels"), ".")
		}
	})
	san = rapid.Custom(func(t *rapid.T) string {
		switch rapid.IntRange(0, 7).Draw(t, "kind of SAN") {
		case 0:
			return "*." + dnsName.Draw(t, "name")
		case 1:
			return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, rapid.Uint32().Draw(t, "IPv4")))).String()
		case 2:
			b := binary.BigEndian.AppendUint64([]byte{0xfd, 0, 0, 0, 0, 0, 0, 0}, rapid.Uint64().Draw(t, "IPv6"))
			return netip.AddrFrom16([16]byte(b)).String()
		case 3:
			return "spiffe://" + rapid.SampledFrom([]string{"shop.example", "cluster.local"}).Draw(t, "host") +
				rapid.StringMatching(`(/[A-Za-z0-9._~-]{1,8}){1,3}`).Draw(t, "path")
		default:
			return dnsName.Draw(t, "name")
		}
	})
	sanList = rapid.Custom(func(t *rapid.T) (all []string) {
		n := rapid.SampledFrom([]int{0, 1, 1, 2, 3, 5, 100}).Draw(t, "how many")
		for len(all) < n {
			s := san.Draw(t, "SAN")
			if _, err := pki.ParseSAN(s); err != nil {
				continue // such as one whose last label is a number
			}
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
		return all
	})
	// An hour more or less of a validity says nothing; its ends do.
	validity = rapid.OneOf(rapid.Just(manifest.MinValidity), rapid.Just(manifest.MaxValidity), rapid.Just(time.Duration(0)),
		rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.Int64Range(int64(manifest.MinValidity), int64(manifest.MaxValidity)).Draw(t, "validity"))
		}))
	platform = rapid.SampledFrom([]attestation.Platform{attestation.SNP, attestation.TDX, attestation.Simulated})
	wish     = rapid.Custom(func(t *rapid.T) wanted {
		return wanted{
			platform: platform.Draw(t, "platform"), validity: validity.Draw(t, "validity"),
			policies: rapid.SliceOfN(sanList, 1, 4).Draw(t, "policies"),
		}
	})
)

// wanted is what a manifest is made from.
type wanted struct {
	platform attestation.Platform
	validity time.Duration
	policies [][]string
}

// parse makes the manifest, writes it as an owner would, and reads it as a Coordinator does.
func (w wanted) parse(t *testing.T) *manifest.Manifest {
	t.Helper()
	m := manifest.Manifest{Policies: map[attestation.PolicyHash]manifest.Policy{}}
	switch w.platform {
	case attestation.SNP:
		m.ReferenceValues.SNP = []snp.ReferenceValue{snpReference()}
	case attestation.TDX:
		m.ReferenceValues.TDX = []tdx.ReferenceValue{tdxReference()}
	default:
		m.ReferenceValues.Simulated = []simulated.ReferenceValue{reference()}
	}
	var err error
	if w.validity > 0 {
		if m.CertificateValidity, err = manifest.NewValidity(w.validity); err != nil {
			t.Fatal(err)
		}
	}
	taken := map[string]bool{}
	for i, texts := range w.policies {
		var mine []string
		for _, s := range texts { // one SAN under two policies is an error
			if !taken[s] {
				mine = append(mine, s)
			}
			taken[s] = true
			m.AllowWildcardSANs = m.AllowWildcardSANs || strings.HasPrefix(s, "*.")
		}
		p := manifest.Policy{SANs: sans(t, mine...)}
		if i == 0 {
			p.Role = manifest.RoleCoordinator
		}
		m.Policies[attestation.PolicyHash{byte(i + 1), 0xfe}] = p
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := manifest.Parse(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return parsed
}

func claimsOf(p attestation.Platform, hash attestation.PolicyHash) attestation.Claims {
	c := attestation.Claims{Platform: p, PolicyHash: hash, Measurement: bytes.Repeat([]byte{0xa5}, 48)}
	if p != attestation.TDX {
		c.SNP = &attestation.SNPClaims{Product: "Genoa", ReportedTCB: 1 << 63, SignedBy: "VLEK"}
		return c
	}
	c.TDX = &attestation.TDXClaims{
		MRSEAM: make([]byte, 48), FMSPC: make([]byte, 6), PlatformTCBStatus: "SWHardeningNeeded", ModuleTCBStatus: "UpToDate",
		QETCBStatus: "UpToDate", Advisories: []string{"INTEL-SA-00615", "INTEL-SA-01036"},
	}
	for i := range c.TDX.RTMRs {
		c.TDX.RTMRs[i] = bytes.Repeat([]byte{byte(i)}, 48)
	}
	return c
}

// newAuthority makes a root CA at one time and gives it manifests at another.
func newAuthority(t *testing.T, rootAt, at time.Time) *authority {
	t.Helper()
	a := &authority{at: at}
	var err error
	if a.seed, err = pki.NewSeed(rand.Reader); err != nil {
		t.Fatal(err)
	}
	if a.root, err = pki.NewRootCA(a.seed.RootKey(), rootAt); err != nil {
		t.Fatal(err)
	}
	return a
}

// set issues for every policy of a manifest.
func (a *authority) set(t *testing.T, w wanted) {
	t.Helper()
	m := w.parse(t)
	transition, err := manifest.First(m.Text(), nil)
	if err != nil {
		t.Fatal(err)
	}
	mesh, err := pki.NewMeshCA(a.root, a.seed.RootKey(), transition.Hash, a.at)
	if err != nil {
		t.Fatal(err)
	}
	a.mesh = append(a.mesh, mesh)
	for hash, policy := range m.Policies {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := mesh.Issue(&key.PublicKey, policy.SANs, claimsOf(w.platform, hash), m.CertificateValidity.Duration(), a.at)
		if err != nil {
			t.Fatalf("%v: %v", policy.SANs, err)
		}
		a.cases = append(a.cases, issuance{
			name: fmt.Sprintf("manifest %d, policy %s", len(a.mesh), hash), key: key, mesh: mesh,
			chain: pki.Chain{Leaf: leaf, Intermediate: mesh.Intermediate, MeshCA: mesh.Certificate, RootCA: a.root},
		})
	}
}

// jury is what each of the jurors has against an authority's certificates.
func (a *authority) jury(t *testing.T, jurors ...string) map[string][]string {
	t.Helper()
	verdicts := map[string][]string{}
	for _, j := range jurors {
		judge, known := map[string]func(*testing.T) []string{
			"go": a.judgedByGo, "openssl": a.judgedByOpenssl, "zlint": a.judgedByZlint, "gnutls": a.judgedByGnuTLS, "sense": a.judgedBySense,
		}[j]
		if !known {
			t.Fatalf("no juror is called %s", j)
		}
		if complaints := judge(t); len(complaints) > 0 {
			verdicts[j] = complaints
		}
	}
	return verdicts
}

func (a *authority) judgedByGo(*testing.T) (complaints []string) {
	for _, c := range a.cases {
		if err := c.chain.Verify(&c.key.PublicKey, a.at); err != nil {
			complaints = append(complaints, fmt.Sprintf("%s: %v", c.name, err))
		}
	}
	return complaints
}

// judgedByOpenssl asks one process for each path and purpose: mesh CAs have a name each, so each leaf finds its own.
func (a *authority) judgedByOpenssl(t *testing.T) (complaints []string) {
	t.Helper()
	dir := t.TempDir()
	var meshCAs, intermediates []*x509.Certificate
	for _, c := range a.cases {
		if !slices.Contains(meshCAs, c.chain.MeshCA) {
			meshCAs, intermediates = append(meshCAs, c.chain.MeshCA), append(intermediates, c.chain.Intermediate)
		}
	}
	files := a.leaves(t, dir)
	root := pemFile(t, dir, "root.pem", a.cases[0].chain.RootCA)
	for _, path := range [][]string{
		{"-CAfile", root, "-untrusted", pemFile(t, dir, "intermediates.pem", intermediates...)},
		{"-CAfile", pemFile(t, dir, "mesh.pem", meshCAs...)},
	} {
		for _, purpose := range []string{"sslserver", "sslclient"} {
			args := append([]string{
				"verify", "-x509_strict", "-check_ss_sig", "-no-CApath", "-no-CAstore",
				"-attime", fmt.Sprint(a.at.Unix()), "-purpose", purpose,
			}, path...)
			out, err := exec.CommandContext(t.Context(), "openssl", append(args, files...)...).CombinedOutput()
			if good := strings.Count(string(out), ": OK\n"); err != nil || good != len(files) {
				complaints = append(complaints, fmt.Sprintf("%s: %d of %d are good (%v): %.600s", purpose, good, len(files), err, notOK(out)))
			}
		}
	}
	return complaints
}

func (a *authority) leaves(t *testing.T, dir string) (files []string) {
	t.Helper()
	for i, c := range a.cases {
		files = append(files, pemFile(t, dir, fmt.Sprintf("leaf-%d.pem", i), c.chain.Leaf))
	}
	return files
}

func notOK(out []byte) string {
	var bad strings.Builder
	for line := range strings.Lines(string(out)) {
		if !strings.HasSuffix(line, ": OK\n") {
			bad.WriteString(line)
		}
	}
	return bad.String()
}

func pemFile(t *testing.T, dir, name string, certificates ...*x509.Certificate) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, pki.EncodeCertificates(certificates...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (a *authority) judgedByZlint(t *testing.T) (complaints []string) {
	t.Helper()
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{lint.RFC5280}})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[*x509.Certificate]bool{}
	for _, c := range a.cases {
		for _, certificate := range []*x509.Certificate{c.chain.Leaf, c.chain.Intermediate, c.chain.MeshCA, c.chain.RootCA} {
			if seen[certificate] {
				continue
			}
			seen[certificate] = true
			parsed, err := zx509.ParseCertificate(certificate.Raw)
			if err != nil {
				complaints = append(complaints, fmt.Sprintf("%s: %v", c.name, err))
				continue
			}
			for id, r := range zlint.LintCertificateEx(parsed, registry).Results {
				if r.Status > lint.Pass {
					complaints = append(complaints, fmt.Sprintf("%s: %s: %s %s %s", c.name, certificate.Subject, id, r.Status, r.Details))
				}
			}
		}
	}
	return complaints
}

// judgedByGnuTLS asks for one leaf of each manifest, since it takes a process for each chain, and only of the present: it has no
// other clock.
func (a *authority) judgedByGnuTLS(t *testing.T) (complaints []string) {
	t.Helper()
	certtool, err := exec.LookPath("certtool")
	if err != nil {
		t.Log("GnuTLS' certtool (Debian: gnutls-bin) is missing: three judges instead of four")
		return nil
	}
	if time.Since(a.at).Abs() > time.Minute/2 {
		return nil
	}
	dir := t.TempDir()
	asked := map[*pki.MeshCA]bool{}
	for i, c := range a.cases {
		if asked[c.mesh] {
			continue
		}
		asked[c.mesh] = true
		for name, path := range map[string][2]string{
			"root CA": {
				pemFile(t, dir, fmt.Sprintf("root-%d.pem", i), c.chain.RootCA),
				pemFile(t, dir, fmt.Sprintf("chain-%d.pem", i), c.chain.Leaf, c.chain.Intermediate),
			},
			"mesh CA": {
				pemFile(t, dir, fmt.Sprintf("mesh-%d.pem", i), c.chain.MeshCA),
				pemFile(t, dir, fmt.Sprintf("alone-%d.pem", i), c.chain.Leaf),
			},
		} {
			out, err := exec.CommandContext(t.Context(), certtool, "--verify", "--verify-purpose", "1.3.6.1.5.5.7.3.1",
				"--load-ca-certificate", path[0], "--infile", path[1]).CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("The certificate is trusted.")) {
				complaints = append(complaints, fmt.Sprintf("%s under the %s: %v: %.400s", c.name, name, err, out))
			}
		}
	}
	return complaints
}

// judgedBySense is what no verifier looks at.
func (a *authority) judgedBySense(*testing.T) (complaints []string) {
	serials := map[string]*x509.Certificate{}
	for _, c := range a.cases {
		for _, certificate := range []*x509.Certificate{c.chain.Leaf, c.chain.Intermediate, c.chain.MeshCA, c.chain.RootCA} {
			serial := certificate.SerialNumber.String()
			if other := serials[serial]; other != nil && !other.Equal(certificate) {
				complaints = append(complaints, fmt.Sprintf("%s: two certificates have the serial number %s", c.name, serial))
			}
			serials[serial] = certificate
		}
		for _, ca := range []*x509.Certificate{c.chain.Intermediate, c.chain.MeshCA} {
			if c.chain.Leaf.NotAfter.After(ca.NotAfter) || c.chain.Leaf.NotBefore.Before(ca.NotBefore) {
				complaints = append(complaints, c.name+": it is valid when its issuer is not")
			}
			if ca.MaxPathLen != 0 || !ca.MaxPathLenZero {
				complaints = append(complaints, c.name+": the CA's path length is not 0")
			}
		}
		if c.chain.RootCA.MaxPathLen != 1 {
			complaints = append(complaints, c.name+": the root CA's path length is not 1")
		}
	}
	return complaints
}

var allJurors = []string{"go", "openssl", "zlint", "gnutls", "sense"}

// Whatever manifest owners think of, its certificates verify everywhere: 500 of them with PORTCULLIS_SOAK, a tenth otherwise. The
// times are now, those about which certificates change the form of their dates, and the last day of a root CA.
func TestChainsOfRandomManifestsVerifyEverywhere(t *testing.T) {
	each := 10
	if os.Getenv("PORTCULLIS_SOAK") != "" {
		each = 100
	}
	now := time.Now()
	tenYears := 87660 * time.Hour
	seen := map[string]int{}
	for i, times := range [][2]time.Time{
		{now, now},
		{now, now.Add(tenYears - 24*time.Hour)},
		{date(2040, 1, 2), date(2040, 1, 2)},
		{date(2049, 12, 31), date(2049, 12, 31)},
		{date(2050, 1, 1), date(2050, 1, 1)},
	} {
		t.Run(times[1].Format(time.DateOnly), func(t *testing.T) {
			a := newAuthority(t, times[0], times[1])
			for n := range each {
				w := wish.Example(1000*i + n)
				if n == 0 {
					w.policies = append(w.policies, nil, []string{"10.0.0.1"}, []string{"spiffe://shop.example/x"}) // no DNS name at all
				}
				a.set(t, w)
			}
			for juror, complaints := range a.jury(t, allJurors...) {
				t.Errorf("%s: %d complaints, such as %s", juror, len(complaints), complaints[0])
			}
			for _, c := range a.cases {
				l := c.chain.Leaf
				for what, there := range map[string]bool{
					"no name": len(l.DNSNames)+len(l.IPAddresses)+len(l.URIs) == 0, "a hundred": len(l.DNSNames)+len(l.IPAddresses)+len(l.URIs) == 100,
					"no DNS name": len(l.DNSNames) == 0 && len(l.IPAddresses)+len(l.URIs) > 0,
					"a wildcard":  slices.ContainsFunc(l.DNSNames, func(n string) bool { return strings.HasPrefix(n, "*.") }),
					"253 octets":  slices.ContainsFunc(l.DNSNames, func(n string) bool { return len(n) == 253 }),
					"punycode":    slices.ContainsFunc(l.DNSNames, func(n string) bool { return strings.HasPrefix(n, "xn--") }),
					"one label":   slices.ContainsFunc(l.DNSNames, func(n string) bool { return !strings.Contains(n, ".") }),
					"a URI":       len(l.URIs) > 0,
					"IPv4":        len(l.IPAddresses) > 0 && l.IPAddresses[0].To4() != nil,
					"IPv6":        len(l.IPAddresses) > 0 && l.IPAddresses[0].To4() == nil,
				} {
					if there {
						seen[what]++
					}
				}
			}
			// The control: nobody of this Coordinator passes for one of another.
			stranger := newAuthority(t, times[0], times[1])
			stranger.set(t, wish.Example(1000*i))
			for n := range a.cases {
				a.cases[n].chain.RootCA, a.cases[n].chain.MeshCA = stranger.root, stranger.mesh[0].Certificate
			}
			for _, juror := range []string{"go", "openssl"} {
				if a.jury(t, juror)[juror] == nil {
					t.Errorf("%s takes certificates of one Coordinator for another's", juror)
				}
			}
		})
	}
	if len(seen) != 10 {
		t.Errorf("not all kinds of names were tried: %v", seen)
	}
}

func date(y int, m time.Month, d int) time.Time { return time.Date(y, m, d, 12, 0, 0, 0, time.UTC) }

// reissue makes a certificate anew, altered, so that one thing is wrong with it and nothing else.
func reissue(
	t *testing.T, c, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey, alter func(template, parent *x509.Certificate),
) *x509.Certificate {
	t.Helper()
	template, issuer := *c, *parent
	template.ExtraExtensions = nil
	for _, e := range c.Extensions {
		if e.Id.Equal(pki.ClaimsExtension) {
			template.ExtraExtensions = []pkix.Extension{e}
		}
	}
	alter(&template, &issuer)
	signer := &issuer
	if c == parent { // self-signed
		signer = &template
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, signer, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// A profile with one thing wrong is noticed, by each of the jurors that are there to notice it.
func TestMutatedProfilesAreNoticed(t *testing.T) {
	type alter = func(template, parent *x509.Certificate)
	leaf := func(alter alter) func(*testing.T, *authority) {
		return func(t *testing.T, a *authority) {
			for i := range a.cases {
				c := &a.cases[i]
				c.chain.Leaf = reissue(t, c.chain.Leaf, c.chain.Intermediate, &c.key.PublicKey, c.mesh.Key, alter)
			}
		}
	}
	intermediate := func(alter alter) func(*testing.T, *authority) {
		return func(t *testing.T, a *authority) {
			for i := range a.cases {
				c := &a.cases[i]
				c.chain.Intermediate = reissue(t, c.chain.Intermediate, a.root, &c.mesh.Key.PublicKey, a.seed.RootKey(), alter)
			}
		}
	}
	mesh := func(alter alter) func(*testing.T, *authority) {
		return func(t *testing.T, a *authority) {
			for i := range a.cases {
				c := &a.cases[i]
				c.chain.MeshCA = reissue(t, c.chain.MeshCA, c.chain.MeshCA, &c.mesh.Key.PublicKey, c.mesh.Key, alter)
			}
		}
	}
	root := func(alter alter) func(*testing.T, *authority) {
		return func(t *testing.T, a *authority) {
			key := a.seed.RootKey()
			made := reissue(t, a.root, a.root, &key.PublicKey, key, alter)
			for i := range a.cases {
				a.cases[i].chain.RootCA = made
			}
		}
	}
	for name, test := range map[string]struct {
		mutate func(*testing.T, *authority)
		by     []string
	}{
		"the root CA's path length is 0": {root(func(c, _ *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }), []string{"go", "openssl", "gnutls", "sense"}},
		"the mesh CA has no path length": {mesh(func(c, _ *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = -1, false }), []string{"sense"}},
		"the intermediate is no CA":      {intermediate(func(c, _ *x509.Certificate) { c.IsCA, c.MaxPathLen, c.MaxPathLenZero = false, -1, false }), []string{"go", "openssl", "zlint", "gnutls", "sense"}},
		"the intermediate has no keyCertSign": {
			intermediate(func(c, _ *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }),
			[]string{"go", "openssl", "zlint", "gnutls"},
		},
		"the leaf has no SKI": {leaf(func(c, _ *x509.Certificate) { c.SubjectKeyId = nil }), []string{"zlint"}},
		"the leaf has no AKI": {leaf(func(c, p *x509.Certificate) { c.AuthorityKeyId, p.SubjectKeyId = nil, nil }), []string{"openssl", "zlint"}},
		"the leaf's AKI is another's": {
			leaf(func(_, p *x509.Certificate) { p.SubjectKeyId = bytes.Repeat([]byte{7}, 20) }),
			[]string{"openssl", "gnutls"},
		},
		"the leaf's issuer has another name": {
			leaf(func(_, p *x509.Certificate) { p.RawSubject = nil; p.Subject = pkix.Name{CommonName: "somebody"} }),
			[]string{"go", "openssl", "gnutls"},
		},
		"the leaf is a CA":              {leaf(func(c, _ *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }), []string{"go", "openssl"}},
		"the leaf does not call":        {leaf(func(c, _ *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), []string{"go", "openssl"}},
		"the leaf has expired":          {leaf(func(c, _ *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Minute) }), []string{"go", "openssl", "gnutls"}},
		"the leaf outlives its issuers": {leaf(func(c, p *x509.Certificate) { c.NotAfter = p.NotAfter.Add(time.Hour) }), []string{"sense"}},
		"the claims are critical":       {leaf(func(c, _ *x509.Certificate) { c.ExtraExtensions[0].Critical = true }), []string{"go", "openssl", "gnutls"}},
		"a DNS name is empty":           {leaf(func(c, _ *x509.Certificate) { c.DNSNames = []string{"web", ""} }), []string{"zlint", "gnutls"}},
		"a DNS name is too long": {
			leaf(func(c, _ *x509.Certificate) { c.DNSNames = []string{strings.Repeat("a", 64) + ".example"} }),
			[]string{"zlint"},
		},
		"all leaves have one serial number": {
			func(t *testing.T, a *authority) {
				serial := a.cases[0].chain.Leaf.SerialNumber
				leaf(func(c, _ *x509.Certificate) { c.SerialNumber = serial })(t, a)
			},
			[]string{"sense"},
		},
		"the leaf is signed by another manifest's key": {
			func(t *testing.T, a *authority) {
				for i := range a.cases {
					c := &a.cases[i]
					c.chain.Leaf = reissue(t, c.chain.Leaf, c.chain.Intermediate, &c.key.PublicKey, a.mesh[1].Key,
						func(_, p *x509.Certificate) { p.PublicKey = &a.mesh[1].Key.PublicKey })
				}
				a.cases = slices.DeleteFunc(a.cases, func(c issuance) bool { return c.mesh == a.mesh[1] })
			},
			[]string{"go", "openssl", "gnutls"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			now := time.Now()
			a := newAuthority(t, now, now)
			for range 2 {
				a.set(t, wanted{attestation.SNP, 0, [][]string{{fmt.Sprintf("svc-%d.shop.svc", len(a.mesh))}}})
			}
			if verdicts := a.jury(t, allJurors...); len(verdicts) > 0 {
				t.Fatalf("before: %v", verdicts)
			}
			test.mutate(t, a)
			verdicts := a.jury(t, allJurors...)
			for _, juror := range allJurors {
				if _, missing := exec.LookPath("certtool"); juror == "gnutls" && missing != nil {
					continue
				}
				if noticed := verdicts[juror] != nil; noticed != slices.Contains(test.by, juror) {
					t.Errorf("%s: noticed %v: %v", juror, noticed, verdicts[juror])
				}
			}
		})
	}
}
