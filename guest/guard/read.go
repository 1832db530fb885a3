package guard

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What the kernel really has, decoded from raw netlink attributes: the library that encodes the expressions drops
// `socket` and `tproxy` when it reads, and these are the gate.
//
// A table is compared as a list of lines. The wanted table becomes one through the same code as the live one, from the
// very bytes that are sent, so what the two have in common needs no second description. Whatever this file does not
// know (an expression, an attribute, a flag) becomes a line that no wanted table contains.

// A listing is a table as comparable lines, in the kernel's order.
type listing struct {
	lines    []line
	portSets map[string][]portRange
}

type line struct {
	chain   string   // of a rule
	key     string   // what is compared
	text    string   // of a rule that one of ours has: as nft writes it
	meaning string   // of a rule that one of ours has, and that counts
	drop    bool     // of a rule that ends in drop
	counter *traffic // of a rule that counts
}

type traffic struct{ packets, bytes uint64 }

// difference describes the first line that is not as wanted; it is empty when the tables are equal.
func difference(want, live *listing) string {
	if live == nil {
		return "there is no table"
	}
	for i, w := range want.lines {
		if i >= len(live.lines) {
			return fmt.Sprintf("want %s, which is missing", w.describe())
		}
		if l := live.lines[i]; l.key != w.key {
			return fmt.Sprintf("want %s, got %s", w.describe(), l.describe())
		}
	}
	if len(live.lines) > len(want.lines) {
		return fmt.Sprintf("want no more, got %s", live.lines[len(want.lines)].describe())
	}
	return ""
}

func (l line) describe() string {
	if l.text == "" {
		return l.key
	}
	return fmt.Sprintf("in chain %s the rule %q", l.chain, l.text)
}

func tableLine(flags uint32) line {
	return line{key: fmt.Sprintf("table inet %s flags %#x", tableName, flags)}
}

func setLine(name string, flags, keyType, keyLen uint32, members string) line {
	return line{key: fmt.Sprintf("set %s type %d length %d flags %#x elements %s", name, keyType, keyLen, flags, members)}
}

func chainLine(name, kind string, hook uint32, priority int32, policy, flags uint32) line {
	return line{key: fmt.Sprintf("chain %s type %s hook %d priority %d policy %d flags %#x",
		name, kind, hook, priority, policy, flags)}
}

func ruleLine(chain string, exprs []string) line {
	return line{
		chain: chain, key: fmt.Sprintf("in chain %s the rule [ %s ]", chain, strings.Join(exprs, " ] [ ")),
		drop: len(exprs) > 0 && exprs[len(exprs)-1] == dropExpression,
	}
}

// listing is what the table looks like in the kernel once it is loaded.
func (t table) listing() *listing {
	out := &listing{lines: []line{tableLine(0)}, portSets: map[string][]portRange{}}
	for _, s := range t.sets {
		out.lines = append(out.lines,
			setLine(s.name, unix.NFT_SET_INTERVAL, s.kind.GetNFTMagic(), s.kind.Bytes, rangesText(s.ranges)))
		out.portSets[s.name] = s.ranges
	}
	for _, c := range t.chains {
		out.lines = append(out.lines, chainLine(c.name, "filter", c.hook.number, c.hook.priority, uint32(c.policy), 0))
		for _, r := range c.rules {
			var exprs []string
			meaning := ""
			for _, p := range r {
				meaning += p.meaning
				for _, e := range p.exprs {
					exprs = append(exprs, wantedExpression(e, p.anonymous))
				}
			}
			l := ruleLine(c.name, exprs)
			l.text, l.meaning = r.String(), meaning
			out.lines = append(out.lines, l)
		}
	}
	return out
}

var dropExpression = wantedExpression(drop().exprs[0], nil)

func wantedExpression(e expr.Any, anonymous *set) string {
	raw, err := expr.Marshal(unix.NFPROTO_INET, e)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", e, err)) // the library only fails on values that ruleset.go does not hold
	}
	text, _, err := decodeExpression(raw, func(name string) string {
		if anonymous == nil {
			return "@" + name
		}
		return elementsOf(anonymous.kind.GetNFTMagic(), anonymous.members)
	})
	if err != nil {
		panic(fmt.Sprintf("decode %T: %v", e, err))
	}
	return text
}

// elementsOf is how a lookup into an anonymous set reads: the kernel chose its name and order.
func elementsOf(keyType uint32, keys [][]byte) string {
	sorted := slices.SortedFunc(slices.Values(keys), bytes.Compare)
	return fmt.Sprintf("{type %d %x}", keyType, sorted)
}

// read returns the live table, or nil when there is none, and its generation. The kernel answers in several messages
// between which another process may change the rules; the generation, which every change increments, tells.
func read(ctx context.Context) (*listing, uint32, error) {
	s, err := openSocket()
	if err != nil {
		return nil, 0, err
	}
	defer s.close()
	r := reader{s}
	for range 100 {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		before, err := r.generation()
		if err != nil {
			return nil, 0, err
		}
		l, tableErr := r.table()
		after, err := r.generation()
		if err != nil {
			return nil, 0, err
		}
		if before == after {
			return l, after, tableErr
		}
	}
	return nil, 0, errors.New("the rules changed a hundred times while they were read")
}

// A reader asks nftables over a socket.
type reader struct{ *socket }

func (r reader) generation() (uint32, error) {
	var gen uint32
	err := r.get(unix.NFT_MSG_GETGEN, unix.NFPROTO_UNSPEC, 0, nil, func(a attributes) error {
		gen = a.u32(unix.NFTA_GEN_ID)
		return nil
	})
	if err != nil {
		return 0, needs("CONFIG_NF_TABLES", err)
	}
	return gen, nil
}

func (r reader) table() (*listing, error) {
	out := &listing{portSets: map[string][]portRange{}}
	err := r.inet(unix.NFT_MSG_GETTABLE, 0, []name{{unix.NFTA_TABLE_NAME, tableName}}, func(a attributes) error {
		out.lines = append(out.lines, tableLine(a.u32(unix.NFTA_TABLE_FLAGS)))
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	lookupName, err := r.sets(out)
	if err != nil {
		return nil, err
	}
	rules, err := r.rules(lookupName)
	if err != nil {
		return nil, err
	}
	err = r.inet(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, nil, func(a attributes) error {
		if a.str(unix.NFTA_CHAIN_TABLE) != tableName {
			return nil
		}
		hook, err := decodeAttributes(a[unix.NFTA_CHAIN_HOOK])
		if err != nil {
			return err
		}
		const (
			chainFlags = 10 // NFTA_CHAIN_FLAGS
			isBase     = 1  // NFT_CHAIN_BASE; says what the hook says, and not every kernel reports it
		)
		chain := a.str(unix.NFTA_CHAIN_NAME)
		out.lines = append(out.lines, chainLine(chain, a.str(unix.NFTA_CHAIN_TYPE), hook.u32(unix.NFTA_HOOK_HOOKNUM),
			int32(hook.u32(unix.NFTA_HOOK_PRIORITY)), a.u32(unix.NFTA_CHAIN_POLICY), a.u32(chainFlags)&^isBase))
		out.lines = append(out.lines, rules[chain]...)
		return nil
	})
	return out, err
}

// sets adds the named sets to the listing and returns how a lookup reads.
func (r reader) sets(out *listing) (func(name string) string, error) {
	type header struct {
		name                   string
		flags, keyType, keyLen uint32
	}
	var headers []header
	err := r.inet(unix.NFT_MSG_GETSET, unix.NLM_F_DUMP, []name{{unix.NFTA_SET_TABLE, tableName}}, func(a attributes) error {
		headers = append(headers, header{
			a.str(unix.NFTA_SET_NAME), a.u32(unix.NFTA_SET_FLAGS),
			a.u32(unix.NFTA_SET_KEY_TYPE), a.u32(unix.NFTA_SET_KEY_LEN),
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	anonymous := map[string]string{}
	for _, h := range headers {
		elements, err := r.elements(h.name)
		if err != nil {
			return nil, fmt.Errorf("set %s: %w", h.name, err)
		}
		switch h.flags {
		case unix.NFT_SET_INTERVAL:
			ranges, err := intervals(elements)
			members := rangesText(ranges)
			if err != nil {
				members = err.Error()
			}
			out.lines = append(out.lines, setLine(h.name, h.flags, h.keyType, h.keyLen, members))
			out.portSets[h.name] = ranges
		case unix.NFT_SET_ANONYMOUS | unix.NFT_SET_CONSTANT:
			keys := make([][]byte, len(elements))
			for i, e := range elements {
				keys[i] = e.key
				if e.flags != 0 {
					keys[i] = nil // not an element that ours could have
				}
			}
			anonymous[h.name] = elementsOf(h.keyType, keys)
		case unix.NFT_SET_ANONYMOUS | unix.NFT_SET_CONSTANT | unix.NFT_SET_INTERVAL:
			anonymous[h.name] = "{intervals}" // ours lists numbers only
		default:
			out.lines = append(out.lines, setLine(h.name, h.flags, h.keyType, h.keyLen, "unknown"))
		}
	}
	return func(name string) string {
		if text, ok := anonymous[name]; ok {
			return text
		}
		return "@" + name
	}, nil
}

type element struct {
	key   []byte
	flags uint32
}

func (r reader) elements(set string) ([]element, error) {
	var out []element
	err := r.inet(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, []name{
		{unix.NFTA_SET_ELEM_LIST_TABLE, tableName},
		{unix.NFTA_SET_ELEM_LIST_SET, set},
	}, func(a attributes) error {
		return eachAttribute(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(_ uint16, raw []byte) error {
			var e element
			err := eachAttribute(raw, func(t uint16, b []byte) error {
				switch t {
				case unix.NFTA_SET_ELEM_KEY:
					return eachAttribute(b, func(t uint16, b []byte) error {
						if t == unix.NFTA_DATA_VALUE {
							e.key = bytes.Clone(b)
						}
						return nil
					})
				case unix.NFTA_SET_ELEM_FLAGS:
					e.flags = u32(b)
				}
				return nil
			})
			out = append(out, e)
			return err
		})
	})
	return out, err
}

// intervals joins the elements of an interval set, which are the first port of each interval and the first one after
// it. A last interval without an end goes on to port 65535, and nft marks the beginning of the numbers with an end at 0.
func intervals(elements []element) ([]portRange, error) {
	type edge struct {
		port uint16
		end  bool
	}
	var edges []edge
	for _, e := range elements {
		if len(e.key) != 2 || e.flags&^unix.NFT_SET_ELEM_INTERVAL_END != 0 {
			return nil, fmt.Errorf("an element %x with flags %#x", e.key, e.flags)
		}
		edges = append(edges, edge{binary.BigEndian.Uint16(e.key), e.flags != 0})
	}
	slices.SortFunc(edges, func(a, b edge) int {
		if a.port == b.port && a.end != b.end {
			if a.end {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.port, b.port)
	})
	var ports []portRange
	open := false
	for _, e := range edges {
		switch {
		case e.end && open:
			ports[len(ports)-1].last = e.port - 1
			open = false
		case !e.end && !open:
			ports = append(ports, portRange{e.port, 65535})
			open = true
		case e.end && e.port == 0:
		default:
			return nil, fmt.Errorf("an interval that overlaps another at port %d", e.port)
		}
	}
	return ports, nil
}

func (r reader) rules(lookupName func(string) string) (map[string][]line, error) {
	out := map[string][]line{}
	err := r.inet(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, []name{{unix.NFTA_RULE_TABLE, tableName}}, func(a attributes) error {
		var exprs []string
		var count *traffic
		err := eachAttribute(a[unix.NFTA_RULE_EXPRESSIONS], func(_ uint16, raw []byte) error {
			text, c, err := decodeExpression(raw, lookupName)
			exprs = append(exprs, text)
			count = cmp.Or(c, count)
			return err
		})
		if err != nil {
			return err
		}
		chain := a.str(unix.NFTA_RULE_CHAIN)
		l := ruleLine(chain, exprs)
		l.counter = count
		out[chain] = append(out[chain], l)
		return nil
	})
	return out, err
}

// inet is get for messages of the table's family.
func (r reader) inet(kind uint16, flags uint16, query []name, each func(attributes) error) error {
	return r.get(kind, unix.NFPROTO_INET, flags, query, each)
}

func (r reader) get(
	kind uint16, family byte, flags uint16, query []name, each func(attributes) error,
) error {
	var m message
	m.begin(unix.NFNL_SUBSYS_NFTABLES<<8|kind, family, flags)
	for _, q := range query {
		m.put(q.name, []byte(q.value+"\x00"))
	}
	return r.ask(m, func(data []byte) error {
		a, err := decodeAttributes(data)
		if err != nil {
			return err
		}
		return each(a)
	})
}

// A name is an attribute that says which table or set is meant.
type name struct {
	name  uint16
	value string
}
