// Package anyconfig generates well-formed mesh configurations for property tests.
package anyconfig

import (
	"fmt"
	"strings"

	"pgregory.net/rapid"
)

// Values are the values of a configuration that config.Parse accepts.
type Values struct{ Ingress, Egress, Admin, EgressPolicy string }

var (
	port     = rapid.IntRange(1, 65535).Filter(func(p int) bool { return p < 15000 || p > 15099 })
	identity = rapid.OneOf(
		rapid.StringMatching(`[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\.svc)?`).Filter(func(s string) bool {
			return s != "any" && !strings.HasPrefix(s, "xn--")
		}),
		rapid.StringMatching(`10\.[1-9][0-9]?\.[1-9][0-9]?\.[1-9][0-9]?`),
		rapid.StringMatching(`fd00::[1-9a-f][0-9a-f]{0,3}`),
		rapid.StringMatching(`spiffe://[a-z]{1,8}\.example(/[a-z0-9]{1,5}){0,3}`),
	)
	identities = rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfNDistinct(identity, 1, 4, rapid.ID).Draw(t, "identities"), ",")
	})
)

// Config draws Values.
func Config() *rapid.Generator[Values] {
	return rapid.Custom(func(t *rapid.T) Values {
		var v Values
		entries := rapid.Custom(ingress)
		v.Ingress = rapid.OneOf(rapid.Just("CLOSED"), rapid.Just("DISABLED"), entries, entries).Draw(t, "ingress")
		taken := map[int]bool{}
		v.Egress = egress(t, taken)
		if rapid.Bool().Draw(t, "with an admin port") {
			v.Admin = fmt.Sprint(port.Filter(func(p int) bool { return !taken[p] }).Draw(t, "admin"))
		}
		if v.Ingress != "DISABLED" {
			v.EgressPolicy = rapid.SampledFrom([]string{"", "open", "closed", "closed,dns"}).Draw(t, "egress policy")
		}
		return v
	})
}

func ingress(t *rapid.T) string {
	var entries []string
	for i, p := range rapid.SliceOfNDistinct(port, 0, 6, rapid.ID).Draw(t, "ports") {
		entry := fmt.Sprintf("in%d#%d#", i, p)
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			entry += "true"
		case 1:
			entry += "false"
		case 2:
			entry += "mtls"
		case 3:
			entry += "mtls#" + identities.Draw(t, "identities")
		case 4:
			entry = fmt.Sprintf("in%d#%d/udp#true", i, p)
		}
		entries = append(entries, entry)
	}
	return strings.Join(entries, "##")
}

func egress(t *rapid.T, taken map[int]bool) string {
	var entries []string
	for i, p := range rapid.SliceOfNDistinct(port, 0, 4, rapid.ID).Draw(t, "listeners") {
		taken[p] = true
		entry := fmt.Sprintf("out%d#127.137.0.%d:%d#", i, i+1, p)
		remote := fmt.Sprint(port.Draw(t, "remote port"))
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			entry += "billing-svc:" + remote
		case 1:
			entry += "cart.shop.svc:" + remote + "#" + identities.Draw(t, "identities")
		case 2:
			entry += "10.0.0.1:" + remote + "#any"
		case 3:
			entry += "[fd00::1]:" + remote + "#" + identities.Draw(t, "identities")
		}
		entries = append(entries, entry)
	}
	return strings.Join(entries, "##")
}
