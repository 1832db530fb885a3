package guard

import (
	"context"
	"strings"

	"golang.org/x/sys/unix"
)

// LoadBroken loads the closed table with one rule more, which the kernel refuses: it looks into a set that is not there.
func LoadBroken(ctx context.Context) error {
	t := closed()
	t.chains[0].rules = append(t.chains[0].rules, rule(tcpDport(in(set{name: "absent"})), accept())...)
	return transact(ctx, t, create)
}

// ExplainWithout explains a failed batch on a pretended kernel that lacks an expression.
func ExplainWithout(expression string) error {
	return explain(unix.ENOENT, func(t table) error {
		for _, l := range t.listing().lines {
			if strings.Contains(l.key, "[ "+expression+" ") {
				return unix.ENOENT
			}
		}
		return nil
	})
}

// RuleTexts are the rules as status names them, by chain.
func RuleTexts(p *Ports) map[string][]string {
	t := closed()
	if p != nil {
		t = mesh(*p)
	}
	out := map[string][]string{}
	for _, c := range t.chains {
		for _, r := range c.rules {
			out[c.name] = append(out[c.name], r.String())
		}
	}
	return out
}
