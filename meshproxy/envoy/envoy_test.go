package envoy_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/meshproxy/envoy"
	"portcullis.dev/portcullis/meshproxy/internal/anyconfig"
	"portcullis.dev/portcullis/meshproxy/internal/testenvoy"
	"portcullis.dev/portcullis/pki"
)

var update = flag.Bool("update", false, "write the golden files anew")

var golden = []struct{ name, ingress, egress, policy string }{
	{"everything-mtls", "", "", ""},
	{"closed-calls-out", "CLOSED", "billing#127.137.0.1:8081#billing-svc:8080", ""},
	{"locked-calls-out", "CLOSED", "billing#127.137.0.1:8081#billing-svc:8080##cart#127.0.0.1:9000#[fd00::7]:8080#cart", "closed"},
	{"disabled", "DISABLED", "billing#127.137.0.1:8081#billing-svc:8080", ""},
	{
		"shop",
		"web#8080#false##metrics#7890#true##dns#53/udp#true##ssh#22#mtls" +
			"##db#5432#mtls#api.shop.svc,spiffe://shop.example/api,10.0.0.7",
		"billing#127.137.0.1:8081#billing-svc:8080##cart#127.137.0.2:8081#[fd00::7]:8080#cart.shop.svc,fd00::7" +
			"##any#127.0.0.1:9000#10.0.0.9:9000#any",
		"",
	},
}

func TestGoldenBootstraps(t *testing.T) {
	for _, tt := range golden {
		t.Run(tt.name, func(t *testing.T) {
			got := text(t, bootstrap(t, tt.ingress, tt.egress, tt.policy, "/run/portcullis/envoy"))
			file := filepath.Join("testdata", tt.name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v (go test -update writes it)", err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("the bootstrap is not %s (go test -update, then read the difference):\n%s", file, got)
			}
		})
	}
}

func TestEnvoyAcceptsTheGoldenBootstraps(t *testing.T) {
	for _, tt := range golden {
		t.Run(tt.name, func(t *testing.T) { validate(t, tt.ingress, tt.egress, tt.policy) })
	}
}

// bootstrap parses and makes.
func bootstrap(t *testing.T, ingress, egress, policy string, dir envoy.Dir) *bootstrapv3.Bootstrap {
	t.Helper()
	cfg, err := config.Parse(ingress, egress, "", policy)
	if err != nil {
		t.Fatal(err)
	}
	b, err := envoy.Bootstrap(cfg, envoy.Options{Dir: dir, MaxConnections: 8000, MaxHeap: 128 << 20, MaxAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// text is b as JSON in one spelling: protojson varies its white space on purpose.
func text(t *testing.T, b *bootstrapv3.Bootstrap) []byte {
	t.Helper()
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		t.Fatal(err)
	}
	out.WriteByte('\n')
	return out.Bytes()
}

// validate shows the bootstrap for a configuration, with its secrets, to Envoy itself.
func validate(t testing.TB, ingress, egress, policy string) {
	t.Helper()
	cfg, err := config.Parse(ingress, egress, "", policy)
	if err != nil {
		t.Fatal(err)
	}
	dir := envoy.Dir(t.TempDir())
	b, err := envoy.Bootstrap(cfg, envoy.Options{Dir: dir, MaxConnections: 8000, MaxHeap: 128 << 20, MaxAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir.Bootstrap(), raw)
	chain, key := selfSigned(t)
	for name, content := range envoy.CredentialFiles(chain, key, chain) {
		write(t, filepath.Join(string(dir.Credentials()), envoy.DataLink, name), content)
	}
	for _, chain := range envoy.TicketChains(cfg) {
		var k [envoy.TicketKeyLen]byte
		rand.Read(k[:])
		write(t, dir.Tickets().File(chain), envoy.TicketFile(chain, k))
	}
	out, err := exec.Command(testenvoy.Path(t), "--mode", "validate", "-c", dir.Bootstrap(), "-l", "warning").CombinedOutput()
	if err != nil {
		t.Fatalf("envoy refuses ingress %q egress %q: %v\n%s", ingress, egress, err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.TrimSpace(line) != "" && !strings.Contains(line, "OK") {
			t.Errorf("envoy warns: %s", line)
		}
	}
}

func write(t testing.TB, file string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func selfSigned(t testing.TB) (chain, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	der8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der8})
}

func TestEnvoyAcceptsRandomConfigurations(t *testing.T) {
	n := 20
	if os.Getenv("PORTCULLIS_SOAK") != "" {
		n = 500
	}
	for i := range n {
		v := anyconfig.Config().Example(i)
		validate(t, v.Ingress, v.Egress, v.EgressPolicy)
	}
}

func TestUnspokenConfigurationsAreRefused(t *testing.T) {
	identity, err := pki.ParseSAN("web")
	if err != nil {
		t.Fatal(err)
	}
	listener := netip.MustParseAddrPort("127.0.0.1:80")
	remote := config.Remote{Name: "web", Port: 80}
	whole := envoy.Options{Dir: "/run", MaxConnections: 1, MaxHeap: 1, MaxAge: time.Hour}
	for name, tt := range map[string]struct {
		cfg     *config.Config
		options envoy.Options
	}{
		"no configuration":             {nil, whole},
		"no directory":                 {&config.Config{}, envoy.Options{MaxConnections: 1, MaxHeap: 1, MaxAge: time.Hour}},
		"no connections":               {&config.Config{}, envoy.Options{Dir: "/run", MaxHeap: 1, MaxAge: time.Hour}},
		"no age":                       {&config.Config{}, envoy.Options{Dir: "/run", MaxConnections: 1, MaxHeap: 1}},
		"no heap":                      {&config.Config{}, envoy.Options{Dir: "/run", MaxConnections: 1, MaxAge: time.Hour}},
		"an egress without identities": {&config.Config{Egress: []config.Egress{{Listen: listener, Remote: remote}}}, whole},
		"an egress without remote": {&config.Config{
			Egress: []config.Egress{{Listen: listener, Identities: []pki.SAN{identity}}},
		}, whole},
		"an egress outside loopback": {&config.Config{Egress: []config.Egress{{
			Listen: netip.MustParseAddrPort("0.0.0.0:80"), Remote: remote, Identities: []pki.SAN{identity},
		}}}, whole},
		"an unknown kind of TLS": {&config.Config{Mode: config.Mesh, Ingress: []config.Ingress{{Port: 80, TLS: 9}}}, whole},
		"TLS over UDP": {&config.Config{
			Mode: config.Mesh, Ingress: []config.Ingress{{Port: 80, UDP: true, TLS: config.ServerTLS}},
		}, whole},
	} {
		if b, err := envoy.Bootstrap(tt.cfg, tt.options); err == nil {
			t.Errorf("%s: got a bootstrap:\n%s", name, text(t, b))
		}
	}
	b, err := envoy.Bootstrap(&config.Config{}, whole)
	if err != nil || len(b.StaticResources.Listeners) != 0 {
		t.Errorf("the zero configuration listens: %v, %v", b, err)
	}
}

func TestEveryChainHasItsOwnTicketKeys(t *testing.T) {
	cfg, err := config.Parse("a#1#false##b#2#false##c#3#mtls#api##d#4#mtls##e#5#true", "", "", "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"mtls", "tls-1", "tls-2", "mtls-3"}
	if got := envoy.TicketChains(cfg); !slices.Equal(got, want) {
		t.Errorf("chains with ticket keys: %v, want %v", got, want)
	}
	b := string(text(t, bootstrap(t, "a#1#false##b#2#false##c#3#mtls#api##d#4#mtls##e#5#true", "", "", "/run")))
	for _, chain := range want {
		if n := strings.Count(b, "/run/tickets/..data/"+chain+".json"); n != 1 {
			t.Errorf("the ticket keys of %s are used by %d chains", chain, n)
		}
	}
}
