package meshproxy_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"testing"
	"time"

	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/netlab"
)

// newMeshes are those of manifests that follow one another under one root CA. With an overlap each lets the next one take its
// place.
func newMeshes(t testing.TB, n int, overlap time.Duration) []*mesh {
	t.Helper()
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, err := pki.NewRootCA(seed.RootKey(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	newMeshCA := pki.NewMeshCA
	if overlap > 0 {
		newMeshCA = pki.NewMeshCAWithSuccessors
	}
	meshes := make([]*mesh, n)
	for i := range meshes {
		ca, err := newMeshCA(root, seed.RootKey(), [32]byte{byte(i + 1)}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		meshes[i] = &mesh{t, ca}
		if i > 0 && overlap > 0 {
			meshes[i].succeed(meshes[i-1], overlap)
		}
	}
	return meshes
}

// succeed has the mesh before sign for m, once more if it did before, and returns that.
func (m *mesh) succeed(before *mesh, overlap time.Duration) *x509.Certificate {
	m.t.Helper()
	if err := m.ca.Succeed(before.ca, overlap, time.Now()); err != nil {
		m.t.Fatal(err)
	}
	return m.ca.Before.Cross
}

// crossed is a certificate that its holder shows together with cross-certificates.
func crossed(c tls.Certificate, crosses ...*x509.Certificate) tls.Certificate {
	c.Certificate = c.Certificate[:1:1]
	for _, cross := range crosses {
		c.Certificate = append(c.Certificate, cross.Raw)
	}
	return c
}

// forgedCross is a cross-certificate that a mesh CA's key signed, whatever its own path length.
func forgedCross(t *testing.T, by, next *mesh) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: next.ca.Certificate.Subject, SubjectKeyId: next.ca.Certificate.SubjectKeyId,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, by.ca.Certificate, &next.ca.Key.PublicKey, by.ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	cross, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cross
}

// calls is a pod's listener that leads to a peer.
var calls = netip.MustParseAddrPort("127.137.0.1:11001")

// startCalling starts the mesh proxy of a pod that serves on 8080 and calls the other one.
func (p *pod) startCalling(other *pod) {
	p.t.Helper()
	p.serveFirst(8080)
	p.startReady("--admin-port", "9901", "--egress", fmt.Sprintf("peer#%s#%s:8080#%s", calls, other.IPv4, other.Name))
}

// reaches says whether a pod's call comes through to the other one's application: two Envoys agree.
func (p *pod) reaches() error {
	got, err := plaintext(p.Host, calls)
	if err == nil && got != greeting {
		err = fmt.Errorf("got %q", got)
	}
	return err
}

func (p *pod) awaitReach(ok bool) {
	p.t.Helper()
	p.await(fmt.Sprintf("reach %v", ok), func() error {
		if err := p.reaches(); (err == nil) != ok {
			return fmt.Errorf("reaches its peer: %v", err)
		}
		return nil
	})
}

// Real Envoys on both sides: an old pod and a new one, in the order of an update.
func TestPodsOfTwoManifestsReachEachOtherWhileTheyOverlap(t *testing.T) {
	t.Parallel()
	m := newMeshes(t, 3, time.Hour)
	was, is, willBe := m[0], m[1], m[2]
	cross := is.ca.Before.Cross
	peer := netlab.NewHost(t, "peer")
	old, new := newPod(t, "old"), newPod(t, "new")
	was.write(old.contrast, was.issue(time.Hour, "old"))
	is.write(new.contrast, is.issue(time.Hour, "new"), was.ca.Certificate)
	old.startCalling(new)
	new.startCalling(old)
	accepts := func(p *pod, server *mesh, client tls.Certificate) error {
		config := server.showing(client)
		config.ServerName = p.Name
		_, _, err := overTLSIn(peer, p.at(p.IPv4, 8080), config, 10*time.Second)
		return err
	}

	// The old pod has not heard yet.
	for _, p := range []*pod{old, new} {
		if p.reaches() == nil {
			t.Errorf("%s reaches its peer before the old pod has heard of the new manifest", p.Name)
		}
	}
	if err := accepts(new, is, was.issue(time.Hour, "client")); err != nil {
		t.Errorf("a new pod refuses an old client: %v", err)
	}
	if accepts(old, was, is.issue(time.Hour, "client")) == nil {
		t.Error("an old pod accepts a new client without the cross-certificate")
	}
	if accepts(old, was, crossed(is.issue(time.Hour, "client"), cross)) == nil {
		t.Error("an old pod accepts a cross-certificate from whoever shows it")
	}

	envoys := []int{old.envoy(), new.envoy()}
	was.write(old.contrast, was.issue(time.Hour, "old"), cross)
	old.awaitReach(true)
	new.awaitReach(true)
	for _, tt := range []struct {
		name   string
		pod    *pod
		server *mesh
		client tls.Certificate
		ok     bool
	}{
		{"old to old", old, was, was.issue(time.Hour, "client"), true},
		{"new to old", old, was, is.issue(time.Hour, "client"), true},
		{"old to new", new, is, was.issue(time.Hour, "client"), true},
		{"new to new", new, is, is.issue(time.Hour, "client"), true},
		{"newest to old", old, was, willBe.issue(time.Hour, "client"), false},
		{"newest to old, with its cross-certificate", old, was, crossed(willBe.issue(time.Hour, "client"), willBe.ca.Before.Cross), false},
		{"newest to old, with both", old, was, crossed(willBe.issue(time.Hour, "client"), willBe.ca.Before.Cross, cross), false},
		{"newest to new", new, is, willBe.issue(time.Hour, "client"), false},
		{"stranger to old", old, was, newMesh(t).issue(time.Hour, "client"), false},
		{"stranger to new", new, is, newMesh(t).issue(time.Hour, "client"), false},
	} {
		if err := accepts(tt.pod, tt.server, tt.client); (err == nil) != tt.ok {
			t.Errorf("%s: got %v, want accepted %v", tt.name, err, tt.ok)
		}
	}
	// The new pod in its turn becomes an old one.
	is.write(new.contrast, is.issue(time.Hour, "new"), was.ca.Certificate, willBe.ca.Before.Cross)
	new.await("the newest manifest's client", func() error { return accepts(new, is, willBe.issue(time.Hour, "client")) })
	if err := accepts(new, is, was.issue(time.Hour, "client")); err != nil {
		t.Errorf("with manifests on both sides, the one before is refused: %v", err)
	}
	for _, tt := range []struct {
		pod  *pod
		with string
	}{{old, "successor"}, {new, "predecessor"}} {
		tt.pod.awaitMetric("overlap_until_seconds", `with="`+tt.with+`"`, float64(cross.NotAfter.Unix()))
	}

	// It is over: for the old pod by the cross-certificate's own end, for the new one by what its certificate says.
	short := is.succeed(was, 3*time.Second)
	was.write(old.contrast, was.issue(time.Hour, "old"), short)
	is.write(new.contrast, is.issue(time.Hour, "new"), was.ca.Certificate)
	for _, p := range []*pod{old, new} {
		p.awaitReach(false)
		p.awaitMetric("overlap_until_seconds", `with="successor"`, 0)
		p.awaitMetric("overlap_until_seconds", `with="predecessor"`, 0)
	}
	if accepts(old, was, is.issue(time.Hour, "client")) == nil || accepts(new, is, was.issue(time.Hour, "client")) == nil {
		t.Error("the overlap is over, and one of the pods accepts the other's client")
	}
	if accepts(old, was, crossed(is.issue(time.Hour, "client"), short)) == nil {
		t.Error("an old pod accepts a cross-certificate that has ended")
	}
	for _, tt := range []struct {
		pod    *pod
		server *mesh
	}{{old, was}, {new, is}} {
		if err := accepts(tt.pod, tt.server, tt.server.issue(time.Hour, "client")); err != nil {
			t.Errorf("%s refuses its own manifest's client: %v", tt.pod.Name, err)
		}
	}
	if old.envoy() != envoys[0] || new.envoy() != envoys[1] {
		t.Error("an Envoy was restarted for it")
	}
}

func (p *pod) awaitMetric(name, labels string, want float64) {
	p.t.Helper()
	p.await(name, func() error {
		metrics, err := scrape(p)
		if err != nil {
			return err
		}
		got, err := value(metrics, name, labels)
		if err == nil && got != want {
			err = fmt.Errorf("%s{%s} is %v, want %v", name, labels, got, want)
		}
		return err
	})
}

// Without Successors there is none, not even one that the mesh CA's own key signed.
func TestWithoutSuccessorsNoOtherManifestIsAccepted(t *testing.T) {
	t.Parallel()
	m := newMeshes(t, 2, 0)
	was, is := m[0], m[1]
	forged := forgedCross(t, was, is)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	first := was.issue(time.Hour, "web")
	was.write(p.contrast, first)
	p.serveFirst(8080)
	p.startReady()
	try := func(client tls.Certificate) error {
		_, _, err := overTLSIn(peer, p.at(p.IPv4, 8080), was.showing(client), 10*time.Second)
		return err
	}
	for name, client := range map[string]tls.Certificate{
		"the next manifest's":                           is.issue(time.Hour, "client"),
		"the next manifest's, with a cross-certificate": crossed(is.issue(time.Hour, "client"), forged),
	} {
		if try(client) == nil {
			t.Errorf("%s client is accepted", name)
		}
	}
	if err := try(was.issue(time.Hour, "client")); err != nil {
		t.Errorf("its own client is refused: %v", err)
	}
	// Nor is it taken from the trust file, where Envoy would believe it.
	refused := func() int { return len(p.log.Entries("new credentials are refused; the old ones stay in force")) }
	was.write(p.contrast, first, forged)
	p.await("a refusal", func() error {
		if refused() == 0 {
			return errors.New("nothing was refused")
		}
		return nil
	})
	if try(is.issue(time.Hour, "client")) == nil {
		t.Error("a cross-certificate in the trust file of a mesh CA that allows none is believed")
	}
}

// What stands in the trust file behind the mesh CA is what the mesh CA decided, or the whole file is refused.
func TestTheTrustFileHoldsWhatTheMeshCADecided(t *testing.T) {
	t.Parallel()
	m := newMeshes(t, 3, time.Hour)
	was, is := m[0], m[1]
	stranger := newMeshes(t, 2, time.Hour)
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	is.write(p.contrast, is.issue(time.Hour, "web"), was.ca.Certificate)
	p.serveFirst(8080)
	p.startReady()
	refused := func() int { return len(p.log.Entries("new credentials are refused; the old ones stay in force")) }
	for name, others := range map[string][]*x509.Certificate{
		"another Coordinator's mesh CA":           {stranger[0].ca.Certificate},
		"another Coordinator's cross-certificate": {stranger[1].ca.Before.Cross},
		"the next manifest's mesh CA":             {m[2].ca.Certificate},
		"the own cross-certificate":               {is.ca.Before.Cross},
		"the predecessor and a stranger":          {was.ca.Certificate, stranger[0].ca.Certificate},
		"the predecessor twice":                   {was.ca.Certificate, was.ca.Certificate},
	} {
		before := refused()
		is.write(p.contrast, is.issue(time.Hour, "web"), others...)
		p.await("refusal of "+name, func() error {
			if refused() == before {
				return errors.New("nothing was refused")
			}
			return nil
		})
		// So that the next refusal is another, good ones in between.
		published := p.published()
		is.write(p.contrast, is.issue(time.Hour, "web"), was.ca.Certificate)
		p.await("good credentials", func() error {
			if p.published() == published {
				return errors.New("nothing was published")
			}
			return nil
		})
	}
	if _, _, err := overTLSIn(peer, p.at(p.IPv4, 8080), is.showing(stranger[0].issue(time.Hour, "client")), 10*time.Second); err == nil {
		t.Error("a stranger got in")
	}
	if _, _, err := overTLSIn(peer, p.at(p.IPv4, 8080), is.showing(was.issue(time.Hour, "client")), 10*time.Second); err != nil {
		t.Errorf("a client of the manifest before is refused: %v", err)
	}
}

func (p *pod) published() int { return len(p.log.Entries("new credentials are in force")) }

// When the Initializer is gone and its files are no good, what is over is over all the same.
func TestTheOverlapEndsWithoutTheInitializer(t *testing.T) {
	t.Parallel()
	m := newMeshes(t, 2, 30*time.Second)
	was, is := m[0], m[1]
	peer := netlab.NewHost(t, "peer")
	p := newPod(t, "web")
	is.write(p.contrast, is.issue(time.Hour, "web"), was.ca.Certificate)
	p.serveFirst(8080)
	p.startReady()
	is.writeFiles(p.contrast, map[string][]byte{"certChain.pem": nil})
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		_, _, err := overTLSIn(peer, p.at(p.IPv4, 8080), is.showing(was.issue(time.Hour, "client")), 10*time.Second)
		over := time.Now().After(is.ca.Before.Until())
		if err != nil && over {
			break
		}
		if err != nil && time.Until(is.ca.Before.Until()) > 5*time.Second { // nearer to the end, who came first is anybody's guess
			t.Fatalf("before it is over, a client of the manifest before is refused: %v", err)
		}
		if time.Now().After(deadline) {
			t.Fatal("a client of the manifest before is accepted for ever")
		}
	}
	await(t, "own clients", func() error {
		_, _, err := overTLSIn(peer, p.at(p.IPv4, 8080), is.showing(is.issue(time.Hour, "client")), 10*time.Second)
		return err
	})
}

func TestAMetricSaysThatTheManifestHasChanged(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	p := everything(t, m)
	p.awaitMetric("generation_changed", "", 0)
	version, err := os.Readlink(p.contrast + "/..data")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.contrast+"/"+version+"/generation-changed", nil, 0o444); err != nil {
		t.Fatal(err)
	}
	p.awaitMetric("generation_changed", "", 1)
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.awaitMetric("generation_changed", "", 0)
}
