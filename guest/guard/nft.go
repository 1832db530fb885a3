package guard

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The words of ruleset.go and the expressions that they stand for, as `nft --debug=netlink` shows them. Every word uses
// register 1 only, and compares what it loaded before the next word loads again.

type (
	table struct {
		sets   []set
		chains []chain
	}
	// A set is named (ports of the configuration, as intervals) or anonymous (written out in its rule).
	set struct {
		name    string
		kind    nftables.SetDatatype
		ranges  []portRange // named sets
		members [][]byte    // anonymous sets
	}
	chain struct {
		name   string
		hook   hook
		policy policy
		rules  rules
	}
	rules []statement
	// A statement is one rule: the pieces are what nft prints, in order.
	statement []piece
	piece     struct {
		text      string
		exprs     []expr.Any
		anonymous *set   // what the piece's only lookup looks into, when the set has no name
		meaning   string // of a counter: what it counts, for people
	}

	hook struct {
		number   uint32
		priority int32
	}
	policy nftables.ChainPolicy
)

var (
	atPrerouting = hook{unix.NF_INET_PRE_ROUTING, -150} // priority mangle: conntrack has seen the packet, NAT has not
	atInput      = hook{unix.NF_INET_LOCAL_IN, 0}       // priority filter, as the two below
	atForward    = hook{unix.NF_INET_FORWARD, 0}
	atOutput     = hook{unix.NF_INET_LOCAL_OUT, 0}
)

const (
	policyDrop   = policy(nftables.ChainPolicyDrop)
	policyAccept = policy(nftables.ChainPolicyAccept)
)

func baseChain(name string, h hook, p policy, list ...rules) chain {
	c := chain{name: name, hook: h, policy: p}
	for _, r := range list {
		c.rules = append(c.rules, r...)
	}
	return c
}

func rule(pieces ...piece) rules { return rules{pieces} }

func (s statement) String() string {
	words := make([]string, len(s))
	for i, p := range s {
		words[i] = p.text
	}
	return strings.Join(words, " ")
}

// Protocol numbers, ICMPv6 types, TCP flags and conntrack bits, each printed by the name that nft gives it.
type (
	protocol   byte
	icmpv6Type byte
	tcpFlags   byte
	direction  byte
	ctBits     uint32
)

const (
	icmp   protocol = unix.IPPROTO_ICMP
	tcp    protocol = unix.IPPROTO_TCP
	udp    protocol = unix.IPPROTO_UDP
	icmpv6 protocol = unix.IPPROTO_ICMPV6

	// RFC 2710 section 3, RFC 4861 section 4, RFC 3810 section 5.2.
	mldListenerQuery   icmpv6Type = 130
	mldListenerReport  icmpv6Type = 131
	mldListenerDone    icmpv6Type = 132
	ndRouterSolicit    icmpv6Type = 133
	ndRouterAdvert     icmpv6Type = 134
	ndNeighborSolicit  icmpv6Type = 135
	ndNeighborAdvert   icmpv6Type = 136
	mld2ListenerReport icmpv6Type = 143

	// RFC 9293 section 3.1.
	flagFIN tcpFlags = 0x01
	flagSYN tcpFlags = 0x02
	flagRST tcpFlags = 0x04
	flagACK tcpFlags = 0x10

	reply direction = 1 // enum ip_conntrack_dir

	established = ctBits(expr.CtStateBitESTABLISHED)
	related     = ctBits(expr.CtStateBitRELATED)
	fresh       = ctBits(expr.CtStateBitNEW)
	invalid     = ctBits(expr.CtStateBitINVALID)
)

func (p protocol) String() string {
	return map[protocol]string{icmp: "icmp", tcp: "tcp", udp: "udp", icmpv6: "ipv6-icmp"}[p]
}

func (t icmpv6Type) String() string {
	return map[icmpv6Type]string{
		mldListenerQuery: "mld-listener-query", mldListenerReport: "mld-listener-report",
		mldListenerDone: "mld-listener-done", ndRouterSolicit: "nd-router-solicit", ndRouterAdvert: "nd-router-advert",
		ndNeighborSolicit: "nd-neighbor-solicit", ndNeighborAdvert: "nd-neighbor-advert",
		mld2ListenerReport: "mld2-listener-report",
	}[t]
}

func (f tcpFlags) String() string {
	var names []string
	for _, b := range []struct {
		flag tcpFlags
		name string
	}{{flagFIN, "fin"}, {flagSYN, "syn"}, {flagRST, "rst"}, {flagACK, "ack"}} {
		if f&b.flag != 0 {
			names = append(names, b.name)
		}
	}
	return strings.Join(names, ",")
}

func (b ctBits) String() string {
	return map[ctBits]string{established: "established", related: "related", fresh | invalid: "invalid,new"}[b]
}

func accept() piece {
	return piece{text: "accept", exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
}

func drop() piece {
	return piece{text: "drop", exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}}
}

// counter counts what matched so far, which meaning says in words.
func counter(meaning string) piece {
	return piece{text: "counter", exprs: []expr.Any{&expr.Counter{}}, meaning: meaning}
}

func iifLoopback() piece {
	return piece{text: "meta iiftype loopback", exprs: equal(meta(expr.MetaKeyIIFTYPE), native16(unix.ARPHRD_LOOPBACK))}
}

// fibSaddrLocal: the packet's source is one of the guest's own addresses.
func fibSaddrLocal() piece {
	return piece{text: "fib saddr type local", exprs: equal(fibSaddrType(), native32(unix.RTN_LOCAL))}
}

func fibSaddrNotLocal() piece {
	return piece{text: "fib saddr type != local", exprs: differ(fibSaddrType(), native32(unix.RTN_LOCAL))}
}

func fibSaddrType() expr.Any { return &expr.Fib{Register: 1, ResultADDRTYPE: true, FlagSADDR: true} }

func oifLoopback() piece {
	return piece{text: "meta oiftype loopback", exprs: equal(meta(expr.MetaKeyOIFTYPE), native16(unix.ARPHRD_LOOPBACK))}
}

func l4proto(p protocol) piece {
	return piece{text: "meta l4proto " + p.String(), exprs: equal(meta(expr.MetaKeyL4PROTO), []byte{byte(p)})}
}

func l4protoNot(p protocol) piece {
	return piece{text: "meta l4proto != " + p.String(), exprs: differ(meta(expr.MetaKeyL4PROTO), []byte{byte(p)})}
}

func l4protoIn(list ...protocol) piece {
	s := anonymousSet(nftables.TypeInetProto, list)
	return piece{
		text: "meta l4proto " + s.name, exprs: []expr.Any{meta(expr.MetaKeyL4PROTO), lookup(s, false)},
		anonymous: &s,
	}
}

func icmpv6TypeIn(list ...icmpv6Type) piece {
	s := anonymousSet(nftables.TypeICMP6Type, list)
	exprs := equal(meta(expr.MetaKeyNFPROTO), []byte{unix.NFPROTO_IPV6})
	exprs = append(exprs, l4proto(icmpv6).exprs...)
	return piece{
		text: "icmpv6 type " + s.name, exprs: append(exprs, transport(0, 1), lookup(s, false)),
		anonymous: &s,
	}
}

func ipDaddr127() piece {
	exprs := equal(meta(expr.MetaKeyNFPROTO), []byte{unix.NFPROTO_IPV4})
	daddr := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 1}
	return piece{text: "ip daddr 127.0.0.0/8", exprs: append(exprs, equal(daddr, []byte{127})...)}
}

// tcpFlagsNot matches TCP segments whose flags under the mask are others than these.
func tcpFlagsNot(flags, mask tcpFlags) piece {
	masked := append(l4proto(tcp).exprs, transport(13, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{byte(mask)}, Xor: []byte{0}})
	return piece{
		text:  fmt.Sprintf("tcp flags != %s / %s", flags, mask),
		exprs: append(masked, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{byte(flags)}}),
	}
}

func ctDirection(d direction) piece {
	load := &expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}
	return piece{text: "ct direction reply", exprs: equal(load, []byte{byte(d)})}
}

func ctState(b ctBits) piece {
	load := &expr.Ct{Key: expr.CtKeySTATE, Register: 1}
	masked := &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(uint32(b)), Xor: native32(0),
	}
	return piece{
		text:  "ct state " + b.String(),
		exprs: append([]expr.Any{load}, differ(masked, native32(0))...),
	}
}

func ctMark(mark uint32) piece {
	load := &expr.Ct{Key: expr.CtKeyMARK, Register: 1}
	return piece{text: fmt.Sprintf("ct mark 0x%08x", mark), exprs: equal(load, native32(mark))}
}

func setCtMark(mark uint32) piece {
	return piece{text: fmt.Sprintf("ct mark set 0x%08x", mark), exprs: []expr.Any{
		&expr.Immediate{Register: 1, Data: native32(mark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	}}
}

// socketTransparent: a socket of this guest will get the packet, and it has IP_TRANSPARENT, which takes CAP_NET_ADMIN
// or CAP_NET_RAW. A tproxy listener has it, and what it accepts inherits it.
func socketTransparent() piece {
	load := &expr.Socket{Key: expr.SocketKeyTransparent, Register: 1}
	return piece{text: "socket transparent 1", exprs: equal(load, []byte{1})}
}

func socketMark(mark uint32) piece {
	load := &expr.Socket{Key: expr.SocketKeyMark, Register: 1}
	return piece{text: fmt.Sprintf("socket mark 0x%08x", mark), exprs: equal(load, native32(mark))}
}

// socketMarkNot does not match request and time-wait sockets, which have no mark to compare.
func socketMarkNot(mark uint32) piece {
	load := &expr.Socket{Key: expr.SocketKeyMark, Register: 1}
	return piece{text: fmt.Sprintf("socket mark != 0x%08x", mark), exprs: differ(load, native32(mark))}
}

// socketCgroup matches packets of sockets that were made in a cgroup, or below it. The kernel knows a cgroup by its number.
func socketCgroup(path string, id uint64) piece {
	level := 1 + strings.Count(path, "/")
	load := &expr.Socket{Key: expr.SocketKeyCgroupv2, Level: uint32(level), Register: 1}
	return piece{
		text:  fmt.Sprintf("socket cgroupv2 level %d %q", level, path),
		exprs: equal(load, binary.NativeEndian.AppendUint64(nil, id)),
	}
}

func tproxyTo(port uint16) piece {
	return piece{text: fmt.Sprintf("tproxy to :%d", port), exprs: []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.TProxy{Family: unix.NFPROTO_UNSPEC, TableFamily: unix.NFPROTO_INET, RegPort: 1},
	}}
}

// A membership is the right side of "tcp dport": in a named set, not in it, or one of some numbers.
type membership struct {
	set    set
	invert bool
}

func in(s set) membership    { return membership{set: s} }
func notIn(s set) membership { return membership{set: s, invert: true} }

func oneOf(ports ...uint16) membership {
	return membership{set: anonymousSet(nftables.TypeInetService, ports)}
}

func tcpDport(m membership) piece { return dport(tcp, m) }
func udpDport(m membership) piece { return dport(udp, m) }

// thDport matches the destination port of a protocol that has one, which the word before it says.
func thDport(port uint16) piece {
	return piece{text: fmt.Sprintf("th dport %d", port), exprs: equal(transport(2, 2), binaryutil.BigEndian.PutUint16(port))}
}

func dport(p protocol, m membership) piece {
	words := []string{p.String(), "dport"}
	if m.invert {
		words = append(words, "!=")
	}
	out := piece{exprs: append(l4proto(p).exprs, transport(2, 2), lookup(m.set, m.invert))}
	if m.set.members != nil {
		out.anonymous = &m.set
		words = append(words, m.set.name)
	} else {
		words = append(words, "@"+m.set.name)
	}
	out.text = strings.Join(words, " ")
	return out
}

func portSet(name string, ports []uint16) set {
	return set{name: name, kind: nftables.TypeInetService, ranges: rangesOf(ports)}
}

// anonymousSet's name is its text; the kernel gives it another one.
func anonymousSet[T ~byte | ~uint16](kind nftables.SetDatatype, list []T) set {
	s := set{kind: kind}
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = fmt.Sprint(v)
		key := binaryutil.BigEndian.PutUint16(uint16(v))
		s.members = append(s.members, key[2-kind.Bytes:])
	}
	s.name = "{ " + strings.Join(texts, ", ") + " }"
	return s
}

func lookup(s set, invert bool) *expr.Lookup {
	return &expr.Lookup{SourceRegister: 1, SetName: s.name, Invert: invert}
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }

func transport(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

func equal(load expr.Any, data []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

func differ(load expr.Any, data []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data}}
}

func native16(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }
func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
