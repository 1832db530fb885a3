package guard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A MissingAbilityError names the kernel option without which the guard's rules do not load.
type MissingAbilityError struct {
	Option string // as in the kernel's configuration, for example CONFIG_NFT_TPROXY
	Err    error  // what the kernel answered
}

func (e *MissingAbilityError) Error() string {
	return fmt.Sprintf("the kernel lacks %s: %v", e.Option, e.Err)
}

func (e *MissingAbilityError) Unwrap() error { return e.Err }

// Hint says what to do about it.
func (e *MissingAbilityError) Hint() string {
	return fmt.Sprintf("build the guest's kernel with %s=y, or with =m and the module in the image", e.Option)
}

// needs tells "the kernel cannot" from every other error, where nothing else explains these: nfnetlink answers EINVAL or
// EOPNOTSUPP for a subsystem it does not have, nf_tables ENOENT for an expression.
func needs(option string, err error) error {
	for _, errno := range []unix.Errno{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EINVAL, unix.ENOENT} {
		if errors.Is(err, errno) {
			return &MissingAbilityError{Option: option, Err: err}
		}
	}
	return err
}

// An ability is a kernel option, how the words begin that it is for, and the smallest rule that does not load without it.
type ability struct {
	option, words string
	hook          hook
	rule          rules
}

// abilities are in the order in which they build on each other: the first that is missing explains the others.
func abilities() []ability {
	return []ability{
		{"CONFIG_NF_TABLES_INET", "accept", atInput, rule(accept())}, // depends on CONFIG_NF_TABLES
		{"CONFIG_NFT_CT", "ct ", atInput, rule(ctState(established), accept())},
		{"CONFIG_NFT_FIB_INET", "fib ", atInput, rule(fibSaddrLocal(), accept())}, // depends on the options for IPv4 and IPv6
		{"CONFIG_NF_CONNTRACK_MARK", "ct mark ", atOutput, rule(ctMark(markInside), accept())},
		{"CONFIG_NFT_SOCKET", "socket ", atInput, rule(socketTransparent(), accept())},
		{"CONFIG_NFT_TPROXY", "tproxy ", atPrerouting, rule(l4proto(tcp), tproxyTo(PortIngress), accept())},
		// The egress lock, and a mesh proxy that is a service of the image.
		{"CONFIG_SOCK_CGROUP_DATA", "socket cgroupv2 ", atOutput, rule(socketCgroup(agentCgroup, 1), accept())},
	}
}

// uses says whether a rule of the table has a word that begins so.
func (t table) uses(words string) bool {
	for _, c := range t.chains {
		for _, r := range c.rules {
			if slices.ContainsFunc(r, func(p piece) bool { return strings.HasPrefix(p.text, words) }) {
				return true
			}
		}
	}
	return false
}

// explain finds out what a table's batch failed on, since the kernel says only an errno: each ability that the table
// needs is tried in a batch of its own, of which nothing ever exists. load does that; it is a parameter so that a test can
// play a kernel that lacks something.
func explain(failed error, of table, load func(table) error) error {
	if errors.Is(failed, unix.EPERM) {
		return fmt.Errorf("%w: changing the firewall takes CAP_NET_ADMIN in this network namespace", failed)
	}
	for _, a := range abilities() {
		if !of.uses(a.words) {
			continue
		}
		probe := table{chains: []chain{baseChain("probe", a.hook, policyAccept, a.rule)}}
		if missing, ok := errors.AsType[*MissingAbilityError](needs(a.option, load(probe))); ok {
			return missing
		}
	}
	return failed
}

// try makes a table of another name and deletes it again, in one batch.
func try(ctx context.Context, t table) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s, err := openSocket()
	if err != nil {
		return err
	}
	defer s.close()
	b := newBatch(tableName + "_probe")
	b.addTable(unix.NLM_F_CREATE)
	if err := b.add(t); err != nil {
		return err
	}
	b.deleteTable()
	return own.commit(s, b)
}

// Ability is one thing that the kernel must be able to do for the guard's rules.
type Ability struct {
	Option string // as in the kernel's configuration
	Words  string // how the words of rules begin that need it
	Err    error  // nil where the kernel can
}

// Abilities tries each ability on the running kernel, in this network namespace, and changes nothing. The error says that
// nothing could be tried.
func Abilities(ctx context.Context) ([]Ability, error) {
	return triedAbilities(func(t table) error { return try(ctx, t) })
}

func triedAbilities(load func(table) error) ([]Ability, error) {
	var tried []Ability
	for _, a := range abilities() {
		err := load(table{chains: []chain{baseChain("probe", a.hook, policyAccept, a.rule)}})
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("%w: trying a rule takes CAP_NET_ADMIN in this network namespace", err)
		}
		if _, missing := errors.AsType[*MissingAbilityError](needs(a.option, err)); err != nil && !missing {
			return nil, fmt.Errorf("try %s: %w", a.option, err)
		}
		tried = append(tried, Ability{a.option, strings.TrimSpace(a.words), needs(a.option, err)})
	}
	return tried, nil
}
