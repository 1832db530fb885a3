package guard

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
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

// An ability is a kernel option and the smallest table that does not load without it.
type ability struct {
	option string
	table  table
}

// abilities are in the order in which they build on each other: the first that is missing explains the others.
func abilities() []ability {
	with := func(h hook, pieces ...piece) table {
		return table{chains: []chain{baseChain("probe", h, policyAccept, rule(pieces...))}}
	}
	return []ability{
		{"CONFIG_NF_TABLES_INET", with(atInput, accept())}, // depends on CONFIG_NF_TABLES
		{"CONFIG_NFT_CT", with(atInput, ctState(established), accept())},
		{"CONFIG_NFT_SOCKET", with(atInput, socketTransparent(), accept())},
		{"CONFIG_NFT_TPROXY", with(atPrerouting, l4proto(tcp), tproxyTo(PortIngress), accept())},
	}
}

// explain finds out what a batch failed on, since the kernel says only an errno: each ability's table is made and
// deleted again in one batch of its own, of which nothing ever exists. load does that; it is a parameter so that a test
// can play a kernel that lacks something.
func explain(failed error, load func(table) error) error {
	if errors.Is(failed, unix.EPERM) {
		return fmt.Errorf("%w: changing the firewall takes CAP_NET_ADMIN in this network namespace", failed)
	}
	for _, a := range abilities() {
		if missing, ok := errors.AsType[*MissingAbilityError](needs(a.option, load(a.table))); ok {
			return missing
		}
	}
	return failed
}

// try makes a table of another name and deletes it again, in one batch.
func try(ctx context.Context, t table) error {
	b, err := newBatch(ctx)
	if err != nil {
		return err
	}
	probe := &nftables.Table{Name: tableName + "_probe", Family: nftables.TableFamilyINet}
	if err := b.build(probe, t); err != nil {
		return err
	}
	b.DelTable(probe)
	return b.commit()
}
