package meshproxy_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"portcullis.dev/portcullis/tests/netlab"
)

// san is a subject alternative name as it stands in a certificate (RFC 5280, 4.2.1.6), well-formed or not.
type san = asn1.RawValue

func general(tag int, value string) san {
	return san{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(value)}
}

func email(s string) san { return general(1, s) }
func dns(s string) san   { return general(2, s) }
func uri(s string) san   { return general(6, s) }
func ip(b ...byte) san   { return general(7, string(b)) }

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// forge makes a certificate that no Coordinator would issue: with any names, and changed at will.
func (m *mesh) forge(names []san, change func(*x509.Certificate)) tls.Certificate {
	m.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "forged"},
		NotBefore:    time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if len(names) > 0 {
		encoded, err := asn1.Marshal(names)
		if err != nil {
			m.t.Fatal(err)
		}
		template.ExtraExtensions = []pkix.Extension{{Id: oidSAN, Value: encoded}}
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, m.ca.Intermediate, &key.PublicKey, m.ca.Key)
	if err != nil {
		m.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, m.ca.Intermediate.Raw}, PrivateKey: key}
}

// showing is a client that shows its certificate without looking at it.
func (m *mesh) showing(c tls.Certificate) *tls.Config {
	config := m.client()
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
	return config
}

// many is n names that are nobody's, and then the given ones.
func many(n int, names ...san) []san {
	var all []san
	for i := range n {
		all = append(all, dns(fmt.Sprintf("name-%d.shop.svc", i)))
	}
	return append(all, names...)
}

const (
	nameIdentity = "billing.shop.svc"
	ip4Identity  = "10.0.0.7"
	ip6Identity  = "fd00::7"
	uriIdentity  = "spiffe://shop.example/api"
)

// Who is who: the identity of an annotation and the names of a certificate. DNS names are the same in any case (RFC 4343),
// a certificate's "*" stands for one label; nothing else is ever anything but equal, byte by byte.
var whoIsWho = []struct {
	identity, name string
	sans           []san
	change         func(*x509.Certificate)
	want           bool
}{
	{nameIdentity, "the name", []san{dns("billing.shop.svc")}, nil, true},
	{nameIdentity, "the name as the last of 100", many(99, dns("billing.shop.svc")), nil, true},
	{nameIdentity, "the name beside malformed ones", []san{dns("\x00"), uri(""), dns("billing.shop.svc")}, nil, true},
	{nameIdentity, "the name in capitals", []san{dns("Billing.SHOP.svc")}, nil, true},
	{nameIdentity, "a wildcard for its first label", []san{dns("*.shop.svc")}, nil, true},
	{nameIdentity, "a wildcard in its first label", []san{dns("bill*.shop.svc")}, nil, true},
	{nameIdentity, "100 other names", many(100), nil, false},
	{nameIdentity, "a wildcard above", []san{dns("*.svc")}, nil, false},
	{nameIdentity, "two wildcards", []san{dns("*.*.svc")}, nil, false},
	{nameIdentity, "a wildcard for all", []san{dns("*")}, nil, false},
	{nameIdentity, "a wildcard inside", []san{dns("billing.*.svc")}, nil, false},
	{nameIdentity, "a wildcard below", []san{dns("*.billing.shop.svc")}, nil, false},
	{nameIdentity, "a final dot", []san{dns("billing.shop.svc.")}, nil, false},
	{nameIdentity, "a wildcard with a final dot", []san{dns("*.shop.svc.")}, nil, false},
	{nameIdentity, "a first dot", []san{dns(".billing.shop.svc")}, nil, false},
	{nameIdentity, "the domain", []san{dns("shop.svc")}, nil, false},
	{nameIdentity, "the domain with a first dot", []san{dns(".shop.svc")}, nil, false},
	{nameIdentity, "a longer name before", []san{dns("xbilling.shop.svc")}, nil, false},
	{nameIdentity, "a longer name after", []san{dns("billing.shop.svcx")}, nil, false},
	{nameIdentity, "a subdomain", []san{dns("eu.billing.shop.svc")}, nil, false},
	{nameIdentity, "another domain that begins with it", []san{dns("billing.shop.svc.evil.example")}, nil, false},
	{nameIdentity, "NUL and another domain", []san{dns("billing.shop.svc\x00.evil.example")}, nil, false},
	{nameIdentity, "NUL at the end", []san{dns("billing.shop.svc\x00")}, nil, false},
	{nameIdentity, "a comma and another name", []san{dns("billing.shop.svc,evil.example")}, nil, false},
	{nameIdentity, "another name, a comma", []san{dns("evil.example,billing.shop.svc")}, nil, false},
	{nameIdentity, "another name, a comma and DNS:", []san{dns("evil.example, DNS:billing.shop.svc")}, nil, false},
	{nameIdentity, "a line end", []san{dns("billing.shop.svc\n")}, nil, false},
	{nameIdentity, "a blank", []san{dns(" billing.shop.svc")}, nil, false},
	{nameIdentity, "a look-alike", []san{dns("bılling.shop.svc")}, nil, false},
	{nameIdentity, "the name as a URI", []san{uri("billing.shop.svc")}, nil, false},
	{nameIdentity, "the name in a URI", []san{uri("spiffe://billing.shop.svc")}, nil, false},
	{nameIdentity, "the name as an e-mail address", []san{email("billing.shop.svc")}, nil, false},
	{nameIdentity, "the name as an address", []san{general(7, "billing.shop.svc")}, nil, false},
	{nameIdentity, "the name as the common name alone", nil, func(c *x509.Certificate) {
		c.Subject.CommonName = "billing.shop.svc"
	}, false},
	{nameIdentity, "no name at all", nil, nil, false},

	{ip4Identity, "the address", []san{ip(10, 0, 0, 7)}, nil, true},
	{ip4Identity, "another address", []san{ip(10, 0, 0, 70)}, nil, false},
	{ip4Identity, "the address, mapped into IPv6", []san{ip(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 7)}, nil, false},
	{ip4Identity, "the address, compatible with IPv6", []san{ip(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 7)}, nil, false},
	{ip4Identity, "the address as a name", []san{dns("10.0.0.7")}, nil, false},
	{ip4Identity, "the address as a URI", []san{uri("10.0.0.7")}, nil, false},
	{ip4Identity, "the address's letters", []san{general(7, "10.0.0.7")}, nil, false},
	{ip4Identity, "the address with a mask", []san{ip(10, 0, 0, 7, 255, 255, 255, 255)}, nil, false},
	{ip4Identity, "an address of three bytes", []san{ip(10, 0, 7)}, nil, false},
	{ip4Identity, "a wildcard name", []san{dns("*.0.0.7")}, nil, false},

	{ip6Identity, "the address", []san{ip(0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7)}, nil, true},
	{ip6Identity, "another address", []san{ip(0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8)}, nil, false},
	{ip6Identity, "the address as a name", []san{dns("fd00::7")}, nil, false},

	{uriIdentity, "the URI", []san{uri("spiffe://shop.example/api")}, nil, true},
	{uriIdentity, "the URI among others", []san{uri("spiffe://shop.example/web"), uri("spiffe://shop.example/api")}, nil, true},
	{uriIdentity, "a longer path", []san{uri("spiffe://shop.example/api/admin")}, nil, false},
	{uriIdentity, "a shorter path", []san{uri("spiffe://shop.example/ap")}, nil, false},
	{uriIdentity, "a final slash", []san{uri("spiffe://shop.example/api/")}, nil, false},
	{uriIdentity, "another scheme", []san{uri("https://shop.example/api")}, nil, false},
	{uriIdentity, "capitals in the host", []san{uri("spiffe://Shop.example/api")}, nil, false},
	{uriIdentity, "capitals in the path", []san{uri("spiffe://shop.example/API")}, nil, false},
	{uriIdentity, "a percent sign", []san{uri("spiffe://shop.example/%61pi")}, nil, false},
	{uriIdentity, "a query", []san{uri("spiffe://shop.example/api?")}, nil, false},
	{uriIdentity, "a wildcard", []san{uri("spiffe://shop.example/*")}, nil, false},
	{uriIdentity, "NUL", []san{uri("spiffe://shop.example/api\x00/x")}, nil, false},
	{uriIdentity, "a comma", []san{uri("spiffe://shop.example/web,spiffe://shop.example/api")}, nil, false},
	{uriIdentity, "the URI as a name", []san{dns("spiffe://shop.example/api")}, nil, false},
	{uriIdentity, "the URI's host as a name", []san{dns("shop.example")}, nil, false},

	{nameIdentity, "expired", []san{dns("billing.shop.svc")}, func(c *x509.Certificate) {
		c.NotAfter = time.Now().Add(-time.Second)
	}, false},
	{nameIdentity, "not valid yet", []san{dns("billing.shop.svc")}, func(c *x509.Certificate) {
		c.NotBefore = time.Now().Add(time.Minute)
	}, false},
	{nameIdentity, "for another purpose", []san{dns("billing.shop.svc")}, func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	}, false},
	{nameIdentity, "with a critical extension that nobody knows", []san{dns("billing.shop.svc")}, func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 9999, 1}, Critical: true, Value: []byte{5, 0}})
	}, false},
}

var whoIsWhoIdentities = []string{nameIdentity, ip4Identity, ip6Identity, uriIdentity}

func portOf(identity string) uint16 {
	for i, id := range whoIsWhoIdentities {
		if id == identity {
			return uint16(7000 + i)
		}
	}
	return 0
}

func TestWhichClientsAreAnIdentity(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	apps := map[string]*app{}
	var entries []string
	for i, id := range whoIsWhoIdentities {
		apps[id] = p.serveFirst(int(portOf(id)))
		entries = append(entries, fmt.Sprintf("in%d#%d#mtls#%s", i, portOf(id), id))
	}
	p.startReady("--ingress", strings.Join(entries, "##"))
	for _, tt := range whoIsWho {
		want := ""
		if tt.want {
			want = greeting
		}
		before := apps[tt.identity].accepted.Load()
		got, _, err := overTLS(peer, p.at(p.IPv4, portOf(tt.identity)), m.showing(m.forge(tt.sans, tt.change)))
		if got != want {
			t.Errorf("%s, %s: got %q (%v), want %q", tt.identity, tt.name, got, err, want)
		}
		if !tt.want && apps[tt.identity].accepted.Load() != before {
			t.Errorf("%s, %s: the application saw a connection", tt.identity, tt.name)
		}
	}
}

func TestWhichServersAreAnIdentity(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer, caller := netlab.NewHost(t, "peer"), newPod(t, "caller")
	m.write(caller.contrast, m.issue(time.Hour, "caller"))
	s := m.serveTLS(peer, 8080)
	var entries []string
	for i, id := range whoIsWhoIdentities {
		entries = append(entries, fmt.Sprintf("out%d#127.137.0.1:%d#%s:8080#%s", i, portOf(id), peer.IPv4, id))
	}
	caller.startReady("--ingress", "CLOSED", "--egress", strings.Join(entries, "##"))
	refused := map[string]*atomic.Int64{}
	for _, tt := range whoIsWho {
		want := ""
		if tt.want {
			want = greeting
		}
		received := s.show(m.forge(tt.sans, tt.change))
		conn, err := caller.Dial(t.Context(), "tcp", fmt.Sprintf("127.137.0.1:%d", portOf(tt.identity)))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "a secret\n") // some protocols do not wait
		if got, err := readGreeting(conn); got != want {
			t.Errorf("%s, %s: got %q (%v), want %q", tt.identity, tt.name, got, err, want)
		}
		conn.Close()
		if !tt.want {
			refused[tt.identity+", "+tt.name] = received
		}
	}
	for name, received := range refused { // now that there was time enough
		if n := received.Load(); n != 0 {
			t.Errorf("%s: the server received %d bytes", name, n)
		}
	}
}

// tlsServer is an impostor, or not: it greets and counts what it is told.
type tlsServer struct {
	mu          sync.Mutex
	certificate tls.Certificate
	received    *atomic.Int64
}

// show changes the certificate, and returns how many bytes come in for it.
func (s *tlsServer) show(c tls.Certificate) (received *atomic.Int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.certificate, s.received = c, &atomic.Int64{}
	return s.received
}

func (m *mesh) serveTLS(h *netlab.Host, port int) *tlsServer {
	m.t.Helper()
	l, err := h.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { l.Close() })
	s := &tlsServer{}
	clients := x509.NewCertPool()
	clients.AddCert(m.ca.Certificate)
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			conn, received := tls.Server(raw, &tls.Config{
				Certificates: []tls.Certificate{s.certificate},
				ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: clients,
				SessionTicketsDisabled: true, // each certificate is to be looked at
			}), s.received
			s.mu.Unlock()
			go func() {
				defer raw.Close()
				if conn.Handshake() != nil {
					return
				}
				io.WriteString(conn, greeting)
				for b := make([]byte, 512); ; {
					n, err := conn.Read(b)
					received.Add(int64(n))
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return s
}

// clientFirst is an application that waits for its client, and keeps what it hears.
type clientFirst struct {
	mu    sync.Mutex
	heard bytes.Buffer
}

func (c *clientFirst) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard.String()
}

func (p *pod) serveClientFirst(port int) *clientFirst {
	p.t.Helper()
	l, err := p.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { l.Close() })
	c := &clientFirst{}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b := make([]byte, len(greeting))
				n, err := io.ReadFull(conn, b)
				c.mu.Lock()
				c.heard.Write(b[:n])
				c.mu.Unlock()
				if err == nil {
					io.WriteString(conn, greeting)
				}
			}()
		}
	}()
	return c
}

// speakFirst says something over TLS, and reads what it gets for it.
func speakFirst(from *netlab.Host, addr netip.AddrPort, config *tls.Config, word string) (string, error) {
	conn, err := openTLS(from, addr, config)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	io.WriteString(conn, word)
	return readGreetingIn(conn, patience)
}

// openTLS connects and shakes hands.
func openTLS(from *netlab.Host, addr netip.AddrPort, config *tls.Config) (*tls.Conn, error) {
	raw, err := dialFrom(from, addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	conn.SetDeadline(time.Now().Add(patience))
	if err := conn.Handshake(); err != nil {
		raw.Close()
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	return conn, nil
}

// A port's allow-list is held by two lines, and each holds it alone as far as it can.
func TestTwoLinesRefuseTheWrongIdentity(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer := netlab.NewHost(t, "peer")
	wrong := m.client(m.issue(time.Hour, "other", "xapi", "api.other", "10.0.0.8", "spiffe://shop.example/web"))
	api := m.issue(time.Hour, "api")
	// Names are read from the certificate, addresses are not, behind a session that is resumed.
	right := []struct {
		name  string
		quiet uint16
		tls   *tls.Config
	}{
		{"a name", 5433, m.client(api)},
		{"a name in capitals", 5433, m.showing(m.forge([]san{dns("API")}, nil))},
		{"a wildcard", 5433, m.client(m.issue(time.Hour, "*.shop.svc"))},
		{"a URI", 5433, m.client(m.issue(time.Hour, "other", "spiffe://shop.example/api"))},
		{"an address", 5434, m.client(m.issue(time.Hour, "other", "10.0.0.7"))},
		{"a name beside an address", 5434, m.client(api)},
	}
	for i := range right {
		right[i].tls.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	}
	for _, tt := range []struct {
		name        string
		without     func(*testing.T, *listenerv3.FilterChain)
		firstStands bool
	}{
		{"both", func(*testing.T, *listenerv3.FilterChain) {}, true},
		{"TLS alone", withoutRBAC, true},
		{"RBAC alone", withoutSANs, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t, "web")
			m.write(p.contrast, m.issue(time.Hour, "web"))
			banner := p.serveFirst(5432)
			quiet := map[uint16]*clientFirst{5433: p.serveClientFirst(5433), 5434: p.serveClientFirst(5434)}
			const names = "api,spiffe://shop.example/api,db.shop.svc"
			p.startReady("--ingress", "db#5432#mtls#10.0.0.7,"+names+"##names#5433#mtls#"+names+"##address#5434#mtls#10.0.0.7,api")
			p.patch(func(b *bootstrapv3.Bootstrap) {
				changed := 0
				for _, c := range b.StaticResources.Listeners[0].FilterChains {
					if strings.HasPrefix(c.Name, "mtls-") {
						tt.without(t, c)
						changed++
					}
				}
				if changed != 3 {
					t.Fatalf("%d filter chains have identities, want 3", changed)
				}
			})
			for _, addr := range p.Addresses() {
				for _, r := range right {
					if got, _, err := overTLS(peer, p.at(addr, 5432), r.tls); got != greeting {
						t.Errorf("%s: %s answers %q, %v", r.name, addr, got, err)
					}
					for range 2 { // the second time the session is resumed
						if got, err := speakFirst(peer, p.at(addr, r.quiet), r.tls, greeting); got != greeting {
							t.Errorf("%s: %s answers %q, %v", r.name, addr, got, err)
						}
					}
				}
				seen := banner.accepted.Load()
				for port, app := range quiet {
					heard := app.String()
					if got, err := speakFirst(peer, p.at(addr, port), wrong, "an attack\n"); got != "" {
						t.Errorf("the wrong identity, speaking first: %s port %d answers %q, %v", addr, port, got, err)
					}
					if got := app.String(); got != heard {
						t.Errorf("the wrong identity, speaking first: the application at %s port %d heard %q", addr, port, strings.TrimPrefix(got, heard))
					}
				}
				// What RBAC cannot do, and TLS is there for.
				if got, _, err := overTLS(peer, p.at(addr, 5432), wrong); tt.firstStands && (got != "" || banner.accepted.Load() != seen) {
					t.Errorf("the wrong identity, listening: %s answers %q (%v), and its application saw %d connections",
						addr, got, err, banner.accepted.Load()-seen)
				}
			}
		})
	}
}

func withoutRBAC(t *testing.T, c *listenerv3.FilterChain) {
	if len(c.Filters) != 2 || c.Filters[0].Name != "rbac" {
		t.Fatalf("chain %s has no RBAC before its proxy", c.Name)
	}
	c.Filters = c.Filters[1:]
}

func withoutSANs(t *testing.T, c *listenerv3.FilterChain) {
	d := &tlsv3.DownstreamTlsContext{}
	if err := c.TransportSocket.GetTypedConfig().UnmarshalTo(d); err != nil {
		t.Fatal(err)
	}
	names := &d.CommonTlsContext.GetCombinedValidationContext().DefaultValidationContext.MatchTypedSubjectAltNames
	if len(*names) == 0 {
		t.Fatalf("chain %s wants no name", c.Name)
	}
	*names = nil
	c.TransportSocket.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: packed(t, d)}
}
