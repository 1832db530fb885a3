package config_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/pki"
)

func san(t testing.TB, s string) pki.SAN {
	t.Helper()
	id, err := pki.ParseSAN(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

var comparing = cmp.Options{
	cmp.Comparer(func(a, b pki.SAN) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func TestParse(t *testing.T) {
	tests := []struct {
		name                   string
		ingress, egress, admin string
		want                   config.Config
	}{
		{"nothing said is mutual TLS everywhere", "", "", "", config.Config{Mode: config.Mesh}},
		{"empty entries are skipped", "####", "##", "", config.Config{Mode: config.Mesh}},
		{"CLOSED", "CLOSED", "", "", config.Config{Mode: config.Closed}},
		{"DISABLED", "DISABLED", "", "", config.Config{Mode: config.Disabled}},
		{"ingress", "web#8080#false##metrics#7890#true##db#5432#mtls##dns#53/udp#true##d2#53#true", "", "", config.Config{
			Mode: config.Mesh,
			Ingress: []config.Ingress{
				{Name: "web", Port: 8080, TLS: config.ServerTLS},
				{Name: "metrics", Port: 7890, TLS: config.Plaintext},
				{Name: "db", Port: 5432, TLS: config.MutualTLS},
				{Name: "dns", Port: 53, UDP: true, TLS: config.Plaintext},
				{Name: "d2", Port: 53, TLS: config.Plaintext},
			},
		}},
		{"the Coordinator's port is a port like any other", "coordinator#1313#true", "", "", config.Config{
			Mode:    config.Mesh,
			Ingress: []config.Ingress{{Name: "coordinator", Port: 1313, TLS: config.Plaintext}},
		}},
		{"identities", "db#5432#mtls#api.shop.svc,spiffe://shop.example/api,10.0.0.7", "", "", config.Config{
			Mode: config.Mesh,
			Ingress: []config.Ingress{{
				Name: "db", Port: 5432,
				Identities: []pki.SAN{san(t, "api.shop.svc"), san(t, "spiffe://shop.example/api"), san(t, "10.0.0.7")},
			}},
		}},
		{"a name is the identity to ask for", "", "billing#127.137.0.1:8081#billing-svc:8080", "", config.Config{
			Mode: config.Mesh,
			Egress: []config.Egress{{
				Name: "billing", Listen: netip.MustParseAddrPort("127.137.0.1:8081"),
				Remote: config.Remote{Name: "billing-svc", Port: 8080}, Identities: []pki.SAN{san(t, "billing-svc")},
			}},
		}},
		{"addresses", "", "a#127.0.0.1:1#[fd00::7]:8080#cart##b#127.0.0.1:2#10.0.0.1:8080#any", "9901", config.Config{
			Mode: config.Mesh, AdminPort: 9901,
			Egress: []config.Egress{
				{
					Name: "a", Listen: netip.MustParseAddrPort("127.0.0.1:1"),
					Remote:     config.Remote{Addr: netip.MustParseAddr("fd00::7"), Port: 8080},
					Identities: []pki.SAN{san(t, "cart")},
				},
				{
					Name: "b", Listen: netip.MustParseAddrPort("127.0.0.1:2"),
					Remote: config.Remote{Addr: netip.MustParseAddr("10.0.0.1"), Port: 8080}, Any: true,
				},
			},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := config.Parse(tt.ingress, tt.egress, tt.admin, "")
			if err != nil {
				t.Fatal(err)
			}
			tt.want.EgressPolicy = config.EgressOpen // what nothing said means
			if diff := cmp.Diff(&tt.want, got, comparing); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	tests := []struct {
		name                   string
		ingress, egress, admin string
		want                   []string // each fault's whole line
	}{
		{"no port", "web#80x80#false", "", "", []string{
			`ingress entry 1 "web#80x80#false": port: "80x80" is not a port: want a number from 1 to 65535`,
		}},
		{"too few fields", "web#8080", "", "", []string{
			`ingress entry 1 "web#8080": it has 2 fields: want name#port[/udp]#disableTLS[#identities]`,
		}},
		{"unknown word", "web#8080#True", "", "", []string{
			`ingress entry 1 "web#8080#True": disableTLS: "True" is unknown: ` +
				`want mtls, false (TLS without a client certificate) or true (plaintext)`,
		}},
		{"reserved", "web#15006#false##x#15099#true", "e#127.0.0.1:15000#h:1", "15050", []string{
			`ingress entry 1 "web#15006#false": port: port 15006 is one of the proxy's own: want a port outside 15000-15099`,
			`ingress entry 2 "x#15099#true": port: port 15099 is one of the proxy's own: want a port outside 15000-15099`,
			`egress entry 1 "e#127.0.0.1:15000#h:1": listener: port 15000 is one of the proxy's own: want a port outside 15000-15099`,
			`admin port "15050": port 15050 is one of the proxy's own: want a port outside 15000-15099`,
		}},
		{"udp cannot be had over TLS", "dns#53/udp#false", "", "", []string{
			`ingress entry 1 "dns#53/udp#false": disableTLS: "false" cannot be had over udp, which the proxy never touches: want true`,
		}},
		{"other protocols", "x#53/tcp#true", "", "", []string{
			`ingress entry 1 "x#53/tcp#true": port: protocol "tcp" is unknown: want port for TCP or port/udp for UDP`,
		}},
		{"duplicates, each with its twin", "a#80#true##a#80#false", "b#127.0.0.1:1#h:1##c#127.0.0.1:1#h:2", "", []string{
			`ingress entry 2 "a#80#false": name: "a" is already in entry 1: want each name once`,
			`ingress entry 2 "a#80#false": port: port 80 is already in entry 1: want each port once`,
			`egress entry 2 "c#127.0.0.1:1#h:2": listener: 127.0.0.1:1 is already in entry 1: want each listener once`,
		}},
		{"identities where nobody shows any", "web#80#false#api", "", "", []string{
			`ingress entry 1 "web#80#false#api": identities: with false no client presents a certificate: want no identities, or mtls`,
		}},
		{"wildcards and emptiness", "web#80#mtls#*.svc,", "", "", []string{
			`ingress entry 1 "web#80#mtls#*.svc,": identities: "*.svc" stands for more than one identity: want each name in full`,
			`ingress entry 1 "web#80#mtls#*.svc,": identities: identity 2 is empty: want DNS names, IP addresses or URIs, separated by commas`,
		}},
		{"any is for egress", "web#80#mtls#any", "", "", []string{
			`ingress entry 1 "web#80#mtls#any": identities: the word any stands among them: ` +
				`want any alone, in an egress entry; an ingress entry without identities admits any`,
		}},
		{"words stand alone", "web#80#true##DISABLED", "", "", []string{
			`ingress entry 2 "DISABLED": the word DISABLED stands alone: want DISABLED as the whole value, in capitals`,
		}},
		{"words are in capitals", "disabled", "", "", []string{
			`ingress entry 1 "disabled": the word DISABLED stands alone: want DISABLED as the whole value, in capitals`,
		}},
		{"not on loopback", "", "b#10.0.0.1:80#h:1##c#[::1]:80#h:1##d#localhost:80#h:1", "", []string{
			`egress entry 1 "b#10.0.0.1:80#h:1": listener: "10.0.0.1" is not an address in 127.0.0.0/8: want 127.x.y.z:port`,
			`egress entry 2 "c#[::1]:80#h:1": listener: "::1" is not an address in 127.0.0.0/8: want 127.x.y.z:port`,
			`egress entry 3 "d#localhost:80#h:1": listener: "localhost" is not an address in 127.0.0.0/8: want 127.x.y.z:port`,
		}},
		{"an address is no identity", "", "b#127.0.0.1:80#10.0.0.1:80", "", []string{
			`egress entry 1 "b#127.0.0.1:80#10.0.0.1:80": identities: an address is not an identity to ask for: ` +
				`want #identities, or #any for every identity of the mesh`,
		}},
		{"remotes that cannot be", "", "b#127.0.0.1:80#h", "", []string{
			`egress entry 1 "b#127.0.0.1:80#h": remote: "h" is not a host and a port: want host:port, with an IPv6 address in brackets`,
		}},
		{"the admin port is its own", "", "b#127.0.0.1:9901#h:1", "9901", []string{
			`admin port "9901": egress entry 1 listens on port 9901 too: want a port of its own`,
		}},
		{"the admin port is a number", "", "", "+9901", []string{
			`admin port "+9901": "+9901" is not a port: want a number from 1 to 65535`,
		}},
		{"every fault of an entry", "-w#0#no#,", "", "", []string{
			`ingress entry 1 "-w#0#no#,": name: "-w" has '-' at byte 1: want 1 to 63 letters, digits, and - _ . between them`,
			`ingress entry 1 "-w#0#no#,": port: "0" is not a port: want a number from 1 to 65535`,
			`ingress entry 1 "-w#0#no#,": disableTLS: "no" is unknown: want mtls, false (TLS without a client certificate) or true (plaintext)`,
			`ingress entry 1 "-w#0#no#,": identities: identity 1 is empty: want DNS names, IP addresses or URIs, separated by commas`,
			`ingress entry 1 "-w#0#no#,": identities: identity 2 is empty: want DNS names, IP addresses or URIs, separated by commas`,
		}},
		{"white space is not trimmed", " web#80#true", "", "", []string{
			`ingress entry 1 " web#80#true": name: " web" has ' ' at byte 1: want 1 to 63 letters, digits, and - _ . between them`,
		}},
		{"leading zero", "web#080#true", "", "", []string{
			`ingress entry 1 "web#080#true": port: "080" is not a port: want a number from 1 to 65535`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := config.Parse(tt.ingress, tt.egress, tt.admin, "")
			e, ok := errors.AsType[*config.Error](err)
			if !ok {
				t.Fatalf("parsed as %v, %v", cfg, err)
			}
			if diff := cmp.Diff(tt.want, strings.Split(e.Error(), "\n")); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
			if e.ExitCode() != 2 || len(e.Faults) != len(tt.want) {
				t.Errorf("exit code %d with %d faults, want 2 with %d", e.ExitCode(), len(e.Faults), len(tt.want))
			}
		})
	}
}

func TestEgressPolicy(t *testing.T) {
	for value, want := range map[string]config.EgressPolicy{
		"": config.EgressOpen, "open": config.EgressOpen,
		"closed": config.EgressClosed, "closed,dns": config.EgressClosedDNS,
	} {
		for _, ingress := range []string{"", "CLOSED", "web#8080#true"} {
			if c, err := config.Parse(ingress, "", "", value); err != nil || c.EgressPolicy != want {
				t.Errorf("egress policy %q with ingress %q: %v, %v, want %v", value, ingress, c, err, want)
			}
		}
	}
	const words = "want open, closed (nothing leaves but through the mesh) or closed,dns (and DNS)"
	for _, c := range []struct{ value, ingress, want string }{
		{"CLOSED", "", `egress policy "CLOSED": it is unknown: ` + words},
		{"dns", "", `egress policy "dns": it is unknown: ` + words},
		{"closed, dns", "", `egress policy "closed, dns": it is unknown: ` + words},
		{"closed", "DISABLED", `egress policy "closed": ingress DISABLED takes the guard away, and the lock with it: ` +
			`want another ingress value, or no egress policy`},
	} {
		if got, err := config.Parse(c.ingress, "", "", c.value); err == nil || err.Error() != c.want {
			t.Errorf("egress policy %q with ingress %q: %v, %v, want the error %s", c.value, c.ingress, got, err, c.want)
		}
	}
	if c, err := config.Parse("DISABLED", "", "", "open"); err != nil {
		t.Errorf("DISABLED and open: %v, %v", c, err)
	}
	if zero := (config.Config{}).EgressPolicy; zero != config.EgressClosed {
		t.Errorf("the zero configuration's egress policy is %v", zero)
	}
}

func TestZeroConfigLetsNothingIn(t *testing.T) {
	var zero config.Config
	if zero.IngressString() != "CLOSED" || config.Ingress.String(config.Ingress{Name: "a", Port: 1}) != "a#1#mtls" {
		t.Errorf("the zero configuration is %s, the zero port %s", &zero, config.Ingress{})
	}
	zero.Ingress = []config.Ingress{{Name: "a", Port: 1, TLS: config.Plaintext}}
	if tcp, udp, open := zero.GuardPorts(); tcp != nil || udp != nil || open != nil {
		t.Errorf("a closed configuration opens %v %v %v", tcp, udp, open)
	}
}

func TestGuardPorts(t *testing.T) {
	c, err := config.Parse("a#9#false##b#8#false##c#7#true##d#6#true##e#5/udp#true##f#4/udp#true##g#3#mtls", "", "", "")
	if err != nil {
		t.Fatal(err)
	}
	tcp, udp, open := c.GuardPorts()
	if !slices.Equal(tcp, []uint16{6, 7}) || !slices.Equal(udp, []uint16{4, 5}) || !slices.Equal(open, []uint16{8, 9}) {
		t.Errorf("got %v %v %v, want [6 7] [4 5] [8 9]", tcp, udp, open)
	}
}
