package guard

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// LoadBroken loads the closed table with one rule more, which the kernel refuses: it looks into a set that is not there.
func LoadBroken(ctx context.Context) error {
	t := closed(egress{free: true})
	t.chains[0].rules = append(t.chains[0].rules, rule(tcpDport(in(set{name: "absent"})), accept())...)
	return transact(ctx, t, create)
}

// ExplainWithout explains a failed batch on a pretended kernel that lacks an expression.
func ExplainWithout(expression string) error {
	return explain(unix.ENOENT, mesh(Ports{}, egress{agent: 1}, 1), func(t table) error {
		for _, l := range t.listing().lines {
			if strings.Contains(l.key, "[ "+expression+" ") {
				return unix.ENOENT
			}
		}
		return nil
	})
}

// AbilitiesOf is Abilities of a kernel that answers each batch with an error.
func AbilitiesOf(answer func(listing string) error) ([]Ability, error) {
	return triedAbilities(func(t table) error {
		var lines []string
		for _, l := range t.listing().lines {
			lines = append(lines, l.key)
		}
		return answer(strings.Join(lines, "\n"))
	})
}

// RuleTexts are the rules as status names them, by chain.
func RuleTexts(p *Ports, l *Lock) map[string][]string {
	e := egress{free: true}
	if l != nil {
		e = l.egress()
	}
	t := closed(e)
	if p != nil {
		t = mesh(*p, e, proxyCgroupID())
	}
	out := map[string][]string{}
	for _, c := range t.chains {
		for _, r := range c.rules {
			out[c.name] = append(out[c.name], r.String())
		}
	}
	return out
}

// WatchWithBuffer is Watch with a receive buffer of so many bytes.
func WatchWithBuffer(ctx context.Context, buffer int, f func(Change)) error {
	return watch(ctx, buffer, f)
}

// SetCgroupRoot shows this package another tree of cgroups until the test ends.
func SetCgroupRoot(t *testing.T, root string) {
	before := cgroupRoot
	cgroupRoot = root
	t.Cleanup(func() { cgroupRoot = before })
}
