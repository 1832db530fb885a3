package config_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/meshproxy/internal/anyconfig"
)

func TestWhatIsWrittenReadsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := anyconfig.Config().Draw(t, "values")
		c, err := config.Parse(v.Ingress, v.Egress, v.Admin, v.EgressPolicy)
		if err != nil {
			t.Fatal(err)
		}
		if v.Ingress != c.IngressString() || v.Admin != c.AdminString() {
			t.Fatalf("%+v is written as %s", v, c)
		}
		roundTrip(t, c)
	})
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func roundTrip(t fataler, c *config.Config) {
	t.Helper()
	again, err := config.Parse(c.IngressString(), c.EgressString(), c.AdminString(), c.EgressPolicy.String())
	if err != nil {
		t.Fatalf("%s does not parse: %v", c, err)
	}
	if diff := cmp.Diff(c, again, comparing); diff != "" {
		t.Fatalf("%s reads differently:\n%s", c, diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("web#8080#false##metrics#7890#true##dns#53/udp#true", "billing#127.137.0.1:8081#billing-svc:8080", "9901", "closed")
	f.Add("db#5432#mtls#api.shop.svc,spiffe://shop.example/api,10.0.0.7", "a#127.0.0.1:1#[fd00::7]:8080#any", "", "closed,dns")
	f.Add("DISABLED", "##", "0", "open")
	f.Add("CLOSED##", "a###b", "15006", ",")
	f.Fuzz(func(t *testing.T, ingress, egress, admin, policy string) {
		c, err := config.Parse(ingress, egress, admin, policy)
		if (c == nil) != (err != nil) {
			t.Fatalf("Parse returned %v and %v", c, err)
		}
		if err != nil {
			for _, fault := range err.(*config.Error).Faults {
				if fault.Value == "" || fault.Fault == "" || fault.Want == "" {
					t.Fatalf("a fault explains nothing: %+v", fault)
				}
			}
			return
		}
		plaintextTCP, plaintextUDP, noClientAuth := c.GuardPorts()
		for _, ports := range [][]uint16{plaintextTCP, plaintextUDP, noClientAuth} {
			for _, p := range ports {
				if p == 0 || config.Port(p).Reserved() {
					t.Fatalf("%s tells the guard of port %d", c, p)
				}
			}
		}
		roundTrip(t, c)
	})
}
