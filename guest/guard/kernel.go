package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
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
func (t table) apply(ctx context.Context, how transition) error {
	b, err := newBatch(ctx)
	if err != nil {
		return err
	}
	own := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	if how == create {
		b.AddTable(own) // so that deleting it cannot fail
	}
	b.DelTable(own)
	if err := b.build(own, t); err != nil {
		return err
	}
	return b.commit()
}

// remove deletes the table and touches nothing else.
func remove(ctx context.Context) error {
	b, err := newBatch(ctx)
	if err != nil {
		return err
	}
	b.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
	return b.commit()
}

type batch struct {
	*nftables.Conn
	sets uint32
}

func newBatch(ctx context.Context) (*batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		// A batch is one datagram, and its acknowledgements wait in the receive buffer: 5,000 ports must fit.
		return errors.Join(c.SetWriteBuffer(8<<20), c.SetReadBuffer(8<<20), setDeadline(ctx, c))
	}))
	return &batch{Conn: conn}, err
}

func setDeadline(ctx context.Context, c *netlink.Conn) error {
	if d, ok := ctx.Deadline(); ok {
		return c.SetDeadline(d)
	}
	return nil
}

func (b *batch) build(own *nftables.Table, t table) error {
	b.AddTable(own)
	for _, s := range t.sets {
		if err := b.addPortSet(own, s); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
	}
	for _, c := range t.chains {
		added := b.AddChain(&nftables.Chain{
			Name: c.name, Table: own, Type: nftables.ChainTypeFilter,
			Hooknum:  nftables.ChainHookRef(nftables.ChainHook(c.hook.number)),
			Priority: nftables.ChainPriorityRef(nftables.ChainPriority(c.hook.priority)),
			Policy:   new(nftables.ChainPolicy(c.policy)),
		})
		for _, r := range c.rules {
			if err := b.addRule(own, added, r); err != nil {
				return fmt.Errorf("chain %s, rule %q: %w", c.name, r, err)
			}
		}
	}
	return nil
}

// setID numbers the sets of the batch; the library's own counter is shared by all goroutines without a lock.
func (b *batch) setID() uint32 {
	b.sets++
	return b.sets
}

func (b *batch) addPortSet(own *nftables.Table, s set) error {
	added := &nftables.Set{Table: own, ID: b.setID(), Name: s.name, KeyType: s.kind, Interval: true}
	if err := b.AddSet(added, nil); err != nil {
		return err
	}
	// An attribute holds 64 KiB and an interval takes some 44 bytes.
	const perMessage = 1000
	var elements []nftables.SetElement
	for i, r := range s.ranges {
		elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.first)})
		if r.last != 65535 { // an interval without an end goes on to the last port
			elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.last + 1), IntervalEnd: true})
		}
		if (i+1)%perMessage == 0 || i == len(s.ranges)-1 {
			if err := b.SetAddElements(added, elements); err != nil {
				return err
			}
			elements = nil
		}
	}
	return nil
}

func (b *batch) addRule(own *nftables.Table, c *nftables.Chain, r statement) error {
	out := &nftables.Rule{Table: own, Chain: c}
	for _, p := range r {
		anonymous := &nftables.Set{Table: own, Anonymous: true, Constant: true, Name: "__set%d"} // the kernel numbers it
		if p.anonymous != nil {
			anonymous.ID, anonymous.KeyType = b.setID(), p.anonymous.kind
			elements := make([]nftables.SetElement, len(p.anonymous.members))
			for i, key := range p.anonymous.members {
				elements[i].Key = key
			}
			if err := b.AddSet(anonymous, elements); err != nil {
				return err
			}
		}
		for _, e := range p.exprs {
			if l, ok := e.(*expr.Lookup); ok && p.anonymous != nil {
				bound := *l
				bound.SetName, bound.SetID = anonymous.Name, anonymous.ID
				e = &bound
			}
			out.Exprs = append(out.Exprs, e)
		}
	}
	b.AddRule(out)
	return nil
}

// commit sends the batch. The library joins one error per message of it; the first says what there is to say, a bare errno.
func (b *batch) commit() error {
	err := b.Flush()
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return err
}

// tcpLoose decides whether conntrack takes a connection it has not seen from its SYN on for an established one.
// Documentation/networking/nf_conntrack-sysctl.rst
const tcpLoose = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose"

func forbidMidstreamPickup() error {
	if err := os.WriteFile(tcpLoose, []byte("0"), 0); err != nil {
		return fmt.Errorf("forbid conntrack to pick up connections mid-stream: %w", err)
	}
	now, err := os.ReadFile(tcpLoose)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if got := strings.TrimSpace(string(now)); got != "0" {
		return fmt.Errorf("read back %s: want 0, got %q", tcpLoose, got)
	}
	return nil
}

// flushConntrack forgets every connection, so that none from before the table counts as the guest's own.
func flushConntrack(ctx context.Context) error {
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	const ctDelete = 2 // IPCTNL_MSG_CT_DELETE, linux/netfilter/nfnetlink_conntrack.h; without a filter: all
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_CTNETLINK<<8 | ctDelete,
			Flags: netlink.Request | netlink.Acknowledge,
		},
		Data: nfgenmsg(unix.AF_UNSPEC),
	})
	if err != nil {
		return fmt.Errorf("flush conntrack: %w", needs("CONFIG_NF_CT_NETLINK", err))
	}
	return nil
}

func dial(ctx context.Context) (*netlink.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open a netfilter netlink socket: %w", needs("CONFIG_NETFILTER_NETLINK", err))
	}
	if err := errors.Join(c.SetReadBuffer(8<<20), setDeadline(ctx, c)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// nfgenmsg is the header of every nfnetlink message: family, version 0, resource 0 (linux/netfilter/nfnetlink.h).
func nfgenmsg(family byte) []byte { return []byte{family, unix.NFNETLINK_V0, 0, 0} }
