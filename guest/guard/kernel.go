package guard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const tableName = "podvm_guard"

// What a transition does about a table that is or is not there.
type transition int

const (
	create  transition = iota + 1 // make the table, or replace it
	replace                       // the table must be there: without it the kernel fails the whole batch
)

// apply replaces the whole table in one netlink transaction: the kernel commits all of it or, with an error, nothing.
// The caller closes the socket, later: the kernel destroys the old rules after a grace period, and whoever closes a
// netfilter socket waits for that.
func (t table) apply(ctx context.Context, how transition) (*socket, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	if how == create {
		// At boot there is no table, and so nothing to wait for.
		b := newBatch(tableName)
		b.addTable(unix.NLM_F_CREATE | unix.NLM_F_EXCL)
		if err := b.add(t); err != nil {
			return s, err
		}
		if err := own.commit(s, b); !errors.Is(err, unix.EEXIST) {
			return s, err
		}
	}
	b := newBatch(tableName)
	if how == create {
		b.addTable(unix.NLM_F_CREATE) // so that deleting it cannot fail
	}
	b.deleteTable()
	b.addTable(unix.NLM_F_CREATE)
	if err := b.add(t); err != nil {
		return s, err
	}
	return s, own.commit(s, b)
}

// remove deletes the table and touches nothing else.
func remove(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s, err := openSocket()
	if err != nil {
		return err
	}
	defer s.close()
	b := newBatch(tableName)
	b.deleteTable()
	return own.commit(s, b)
}

// A batch is what the kernel commits as a whole: changes to one table.
type batch struct {
	message
	table string
	sets  uint32
}

func newBatch(table string) *batch {
	b := &batch{table: table}
	b.bracket(unix.NFNL_MSG_BATCH_BEGIN)
	return b
}

// closed adds the batch's last message, and asks for an acknowledgement of the one before.
func (b *batch) closed() message {
	flags := b.raw[b.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	b.bracket(unix.NFNL_MSG_BATCH_END)
	return b.message
}

// bracket's messages name the subsystem where others have zero.
func (b *batch) bracket(kind uint16) {
	b.begin(kind, unix.AF_UNSPEC, 0)
	binary.BigEndian.PutUint16(b.raw[len(b.raw)-2:], unix.NFNL_SUBSYS_NFTABLES)
}

func (b *batch) change(kind, flags uint16) {
	b.begin(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NFPROTO_INET, flags)
}

func (b *batch) addTable(flags uint16) {
	b.change(unix.NFT_MSG_NEWTABLE, flags)
	b.putString(unix.NFTA_TABLE_NAME, b.table)
	b.putNumber(unix.NFTA_TABLE_FLAGS, 0)
}

func (b *batch) deleteTable() {
	b.change(unix.NFT_MSG_DELTABLE, 0)
	b.putString(unix.NFTA_TABLE_NAME, b.table)
}

// add fills the table.
func (b *batch) add(t table) error {
	for _, s := range t.sets {
		b.addPortSet(s)
	}
	for _, c := range t.chains {
		b.addChain(c)
		for _, r := range c.rules {
			if err := b.addRule(c, r); err != nil {
				return fmt.Errorf("chain %s, rule %q: %w", c.name, r, err)
			}
		}
	}
	return nil
}

// addSet makes an empty set and returns the number by which this batch's other messages know it.
func (b *batch) addSet(name string, kind nftables.SetDatatype, flags uint32) (id uint32) {
	b.sets++
	b.change(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	b.putString(unix.NFTA_SET_TABLE, b.table)
	b.putString(unix.NFTA_SET_NAME, name)
	b.putNumber(unix.NFTA_SET_FLAGS, flags)
	b.putNumber(unix.NFTA_SET_KEY_TYPE, kind.GetNFTMagic())
	b.putNumber(unix.NFTA_SET_KEY_LEN, kind.Bytes)
	b.putNumber(unix.NFTA_SET_ID, b.sets)
	return b.sets
}

func (b *batch) addElements(name string, id uint32, elements []element) {
	b.change(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE)
	b.putString(unix.NFTA_SET_ELEM_LIST_TABLE, b.table)
	b.putString(unix.NFTA_SET_ELEM_LIST_SET, name)
	b.putNumber(unix.NFTA_SET_ELEM_LIST_SET_ID, id)
	b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		for _, e := range elements {
			b.nest(unix.NFTA_LIST_ELEM, func() {
				b.nest(unix.NFTA_SET_ELEM_KEY, func() { b.put(unix.NFTA_DATA_VALUE, e.key) })
				if e.flags != 0 {
					b.putNumber(unix.NFTA_SET_ELEM_FLAGS, e.flags)
				}
			})
		}
	})
}

func (b *batch) addPortSet(s set) {
	id := b.addSet(s.name, s.kind, unix.NFT_SET_INTERVAL)
	// An attribute holds 64 KiB, and an interval takes 40 bytes.
	for ranges := range slices.Chunk(s.ranges, 1000) {
		var elements []element
		for _, r := range ranges {
			elements = append(elements, element{key: binary.BigEndian.AppendUint16(nil, r.first)})
			if r.last != 65535 { // an interval without an end goes on to the last port
				end := binary.BigEndian.AppendUint16(nil, r.last+1)
				elements = append(elements, element{key: end, flags: unix.NFT_SET_ELEM_INTERVAL_END})
			}
		}
		b.addElements(s.name, id, elements)
	}
}

func (b *batch) addChain(c chain) {
	b.change(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	b.putString(unix.NFTA_CHAIN_TABLE, b.table)
	b.putString(unix.NFTA_CHAIN_NAME, c.name)
	b.nest(unix.NFTA_CHAIN_HOOK, func() {
		b.putNumber(unix.NFTA_HOOK_HOOKNUM, c.hook.number)
		b.putNumber(unix.NFTA_HOOK_PRIORITY, uint32(c.hook.priority))
	})
	b.putNumber(unix.NFTA_CHAIN_POLICY, uint32(c.policy))
	b.putString(unix.NFTA_CHAIN_TYPE, "filter")
}

func (b *batch) addRule(c chain, r statement) error {
	var exprs [][]byte
	for _, p := range r {
		const anonymous = "__set%d" // the kernel numbers it
		var id uint32
		if p.anonymous != nil {
			id = b.addSet(anonymous, p.anonymous.kind, unix.NFT_SET_ANONYMOUS|unix.NFT_SET_CONSTANT)
			var elements []element
			for _, key := range p.anonymous.members {
				elements = append(elements, element{key: key})
			}
			b.addElements(anonymous, id, elements)
		}
		for _, e := range p.exprs {
			if l, ok := e.(*expr.Lookup); ok && p.anonymous != nil {
				bound := *l
				bound.SetName, bound.SetID = anonymous, id
				e = &bound
			}
			raw, err := expr.Marshal(unix.NFPROTO_INET, e)
			if err != nil {
				return err
			}
			exprs = append(exprs, raw)
		}
	}
	b.change(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
	b.putString(unix.NFTA_RULE_TABLE, b.table)
	b.putString(unix.NFTA_RULE_CHAIN, c.name)
	b.nest(unix.NFTA_RULE_EXPRESSIONS, func() {
		for _, raw := range exprs {
			b.put(unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, raw)
		}
	})
	return nil
}

// tcpLoose decides whether conntrack takes a connection it has not seen from its SYN on for an established one.
// Documentation/networking/nf_conntrack-sysctl.rst
const tcpLoose = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose"

func forbidMidstreamPickup() error {
	// System calls, since package os would set up a poller for the one file: a tenth of what podvm-guard takes at boot.
	fd, err := unix.Open(tcpLoose, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("forbid conntrack to pick up connections mid-stream: open %s: %w", tcpLoose, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("0")); err != nil {
		return fmt.Errorf("forbid conntrack to pick up connections mid-stream: write %s: %w", tcpLoose, err)
	}
	now := make([]byte, 16)
	n, err := unix.Pread(fd, now, 0)
	if err != nil {
		return fmt.Errorf("read back %s: %w", tcpLoose, err)
	}
	if got := strings.TrimSpace(string(now[:n])); got != "0" {
		return fmt.Errorf("read back %s: want 0, got %q", tcpLoose, got)
	}
	return nil
}

// flushConntrack forgets every connection, so that none from before the table counts as the guest's own.
func flushConntrack(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s, err := openSocket()
	if err != nil {
		return err
	}
	defer s.close()
	const ctDelete = 2 // IPCTNL_MSG_CT_DELETE, linux/netfilter/nfnetlink_conntrack.h; without a filter: all
	var m message
	m.begin(unix.NFNL_SUBSYS_CTNETLINK<<8|ctDelete, unix.AF_UNSPEC, unix.NLM_F_ACK)
	if err := s.ask(m, func([]byte) error { return nil }); err != nil {
		return fmt.Errorf("flush conntrack: %w", needs("CONFIG_NF_CT_NETLINK", err))
	}
	return nil
}
