package pki_test

import (
	"strings"
	"testing"
	"time"

	"github.com/zmap/zlint/v3/lint"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/pki"
)

func TestParseSAN(t *testing.T) {
	for _, tc := range []struct {
		in       string
		fault    string // part of the error; "" is accepted
		wildcard bool
	}{
		{in: "web"},
		{in: "billing-svc.shop.svc.cluster.local"},
		{in: "1password.example"},
		{in: "xn--bcher-kva.example"},
		{in: "*.shop.svc", wildcard: true},
		{in: "10.0.0.1"},
		{in: "fd00::1"},
		{in: "spiffe://cluster.local/ns/shop/sa/web"},
		{in: "https://shop.example"},

		{in: "", fault: "empty"},
		{in: "*", fault: `character '*'`},
		{in: "*.", fault: "empty"},
		{in: "a.*.b", fault: `character '*'`},
		{in: "**.b", fault: `character '*'`},
		{in: "Web", fault: `character 'W'`},
		{in: "web.", fault: "label is empty"},
		{in: ".web", fault: "label is empty"},
		{in: "a..b", fault: "label is empty"},
		{in: "-a", fault: "hyphen"},
		{in: "a-.b", fault: "hyphen"},
		{in: "a_b", fault: `character '_'`},
		{in: "a b", fault: `character ' '`},
		{in: "web\n", fault: `character '\n'`},
		{in: "bücher.example", fault: "character 'ü'"},
		{in: "xn--a", fault: "internationalised"},
		{in: "xn--abc-.example", fault: "hyphen"},
		{in: strings.Repeat("a", 64), fault: "at most 63"},
		{in: strings.Repeat("a.", 127) + "aa", fault: "at most 253"},
		{in: "*." + strings.Repeat("a.", 125) + "aa", fault: "at most 253"},
		{in: "*." + strings.Repeat("a.", 125) + "a", wildcard: true},
		{in: "10.0.0.256", fault: "a number"},
		{in: "010.0.0.1", fault: "a number"},
		{in: "10.1", fault: "a number"},
		{in: "FD00::1", fault: "write the address as fd00::1"},
		{in: "fd00:0::1", fault: "write the address as fd00::1"},
		{in: "::ffff:10.0.0.1", fault: "write the address as 10.0.0.1"},
		{in: "fe80::1%eth0", fault: "zone"},
		{in: "0.0.0.0", fault: "unspecified"},
		{in: "[fd00::1]", fault: "character"},
		{in: "web:8080", fault: "character ':'"},
		{in: "://web", fault: "scheme"},
		{in: "SPIFFE://web/a", fault: "plain spelling"},
		{in: "spiffe://Web/a", fault: "character 'W'"},
		{in: "spiffe:///a", fault: "empty"},
		{in: "spiffe://web:80/a", fault: "nothing else"},
		{in: "spiffe://user@web/a", fault: "nothing else"},
		{in: "spiffe://web/a?b", fault: "nothing else"},
		{in: "spiffe://web/a#b", fault: "nothing else"},
		{in: "spiffe://web/a?", fault: "nothing else"},
		{in: "spiffe://web/%61", fault: "plain spelling"},
		{in: "spiffe://web/a b", fault: "spelling"},
		{in: "spiffe://web/../b", fault: "segment"},
		{in: "spiffe://*.web/a", fault: "character '*'"},
		{in: "spiffe://web/a", fault: "fully qualified"},
	} {
		san, err := pki.ParseSAN(tc.in)
		switch {
		case tc.fault == "" && err != nil:
			t.Errorf("%q: %v", tc.in, err)
		case tc.fault == "" && (san.String() != tc.in || san.Wildcard() != tc.wildcard):
			t.Errorf("%q: read as %q, wildcard %v", tc.in, san, san.Wildcard())
		case tc.fault != "" && err == nil:
			t.Errorf("%q: accepted, want an error about %s", tc.in, tc.fault)
		case tc.fault != "" && !strings.Contains(err.Error(), tc.fault):
			t.Errorf("%q: got %q, want an error about %s", tc.in, err, tc.fault)
		}
	}
}

// Whatever is accepted makes a certificate that other parsers accept too.
func TestEveryAcceptedSANPassesZlint(t *testing.T) {
	registry := rfc5280(t)
	mesh := newAuthority(t, time.Now()).mesh[0]
	key := newKey(t)
	label := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?`)
	name := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(label, 1, 5).Draw(t, "labels"), ".")
	})
	// Not any host: zlint tells names from addresses by an expression that fails for "a.a.example".
	host := rapid.SampledFrom([]string{"shop.example", "cluster.local", "billing-svc.shop.svc.cluster.local"})
	san := rapid.OneOf(
		name,
		rapid.Custom(func(t *rapid.T) string { return "*." + name.Draw(t, "name") }),
		rapid.Custom(func(t *rapid.T) string {
			path := rapid.StringMatching(`(/[A-Za-z0-9._~!$&'()*+,;=:@-]{1,6}){0,3}/?`).Draw(t, "path")
			return rapid.StringMatching(`[a-z][a-z0-9+.-]{0,5}`).Draw(t, "scheme") + "://" + host.Draw(t, "host") + path
		}),
		rapid.StringMatching(`xn--[a-z0-9]{1,8}(\.[a-z]{2,4})?`),
	)
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		parsed, err := pki.ParseSAN(san.Draw(t, "san"))
		if err != nil {
			t.Skip("not a SAN")
		}
		accepted++
		leaf, err := mesh.Issue(&key.PublicKey, []pki.SAN{parsed}, claims, month, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for id, r := range lintResults(t, registry, leaf) {
			if r.Status > lint.Pass {
				t.Errorf("%s: %s %s", id, r.Status, r.Details)
			}
		}
	})
	if accepted == 0 {
		t.Error("no SAN was accepted")
	}
}

func TestSANText(t *testing.T) {
	var s pki.SAN
	if err := s.UnmarshalText([]byte("web")); err != nil || s.String() != "web" {
		t.Errorf("got %q, %v", s, err)
	}
	if b, err := s.MarshalText(); err != nil || string(b) != "web" {
		t.Errorf("got %q, %v", b, err)
	}
	if _, err := (pki.SAN{}).MarshalText(); err == nil {
		t.Error("the empty SAN was encoded")
	}
	if err := s.UnmarshalText([]byte("Web")); err == nil {
		t.Error("a malformed SAN was decoded")
	}
}
