package guard

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A field says how to read one attribute of an expression, and the name it gets.
type field struct {
	name string
	kind kind
}

type kind int

const (
	number  kind = iota + 1 // u32 in network order, or u8; zero is the same as absent
	setName                 // of a lookup
	data                    // a nest that holds a value or a verdict
	ignored                 // means nothing for what the rule does
)

// fields are the attributes that the guard's expressions have, named as in linux/netfilter/nf_tables.h. One that is not
// here is shown verbatim, and so is never equal to anything wanted.
var fields = map[string]map[uint16]field{
	"meta": {unix.NFTA_META_DREG: {"dreg", number}, unix.NFTA_META_KEY: {"key", number}},
	"cmp": {
		unix.NFTA_CMP_SREG: {"sreg", number},
		unix.NFTA_CMP_OP:   {"op", number},
		unix.NFTA_CMP_DATA: {"data", data},
	},
	"payload": {
		unix.NFTA_PAYLOAD_DREG:   {"dreg", number},
		unix.NFTA_PAYLOAD_BASE:   {"base", number},
		unix.NFTA_PAYLOAD_OFFSET: {"offset", number},
		unix.NFTA_PAYLOAD_LEN:    {"len", number},
	},
	"bitwise": {
		unix.NFTA_BITWISE_SREG: {"sreg", number},
		unix.NFTA_BITWISE_DREG: {"dreg", number},
		unix.NFTA_BITWISE_LEN:  {"len", number},
		unix.NFTA_BITWISE_MASK: {"mask", data},
		unix.NFTA_BITWISE_XOR:  {"xor", data},
		6:                      {"op", number}, // NFTA_BITWISE_OP: 0 is mask and xor
	},
	"ct": {
		unix.NFTA_CT_DREG: {"dreg", number},
		unix.NFTA_CT_KEY:  {"key", number},
		unix.NFTA_CT_SREG: {"sreg", number},
	},
	"lookup": {
		unix.NFTA_LOOKUP_SET:    {"set", setName},
		unix.NFTA_LOOKUP_SREG:   {"sreg", number},
		unix.NFTA_LOOKUP_FLAGS:  {"flags", number},
		unix.NFTA_LOOKUP_SET_ID: {"", ignored}, // names the set within its batch
	},
	"immediate": {unix.NFTA_IMMEDIATE_DREG: {"dreg", number}, unix.NFTA_IMMEDIATE_DATA: {"data", data}},
	"counter": {
		unix.NFTA_COUNTER_BYTES:   {"", ignored},
		unix.NFTA_COUNTER_PACKETS: {"", ignored},
		unix.NFTA_COUNTER_PAD:     {"", ignored},
	},
	"socket": {
		expr.NFTA_SOCKET_KEY:   {"key", number},
		expr.NFTA_SOCKET_DREG:  {"dreg", number},
		expr.NFTA_SOCKET_LEVEL: {"level", number},
	},
	"fib": {
		unix.NFTA_FIB_DREG:   {"dreg", number},
		unix.NFTA_FIB_RESULT: {"result", number},
		unix.NFTA_FIB_FLAGS:  {"flags", number},
	},
	"tproxy": {
		expr.NFTA_TPROXY_FAMILY:   {"family", number},
		expr.NFTA_TPROXY_REG_ADDR: {"addr-reg", number},
		expr.NFTA_TPROXY_REG_PORT: {"port-reg", number},
	},
}

// decodeExpression turns one element of NFTA_RULE_EXPRESSIONS into text that is equal exactly when the expressions do
// the same. lookupName is how a set's name reads.
func decodeExpression(raw []byte, lookupName func(string) string) (string, *traffic, error) {
	e, err := decodeAttributes(raw)
	if err != nil {
		return "", nil, err
	}
	name := e.str(unix.NFTA_EXPR_NAME)
	attrs, err := decodeAttributes(e[unix.NFTA_EXPR_DATA])
	if err != nil {
		return "", nil, fmt.Errorf("expression %s: %w", name, err)
	}
	words := []string{name}
	known, ok := fields[name]
	if !ok {
		words = append(words, "(unknown)")
	}
	for _, t := range slices.Sorted(maps.Keys(attrs)) {
		text, err := attribute(known[t].kind, attrs[t], lookupName)
		if err != nil {
			return "", nil, fmt.Errorf("expression %s, attribute %d: %w", name, t, err)
		}
		if text != "" {
			words = append(words, fmt.Sprintf("%s=%s", cmp.Or(known[t].name, fmt.Sprint(t)), text))
		}
	}
	if name != "counter" {
		return strings.Join(words, " "), nil, nil
	}
	count := &traffic{packets: attrs.u64(unix.NFTA_COUNTER_PACKETS), bytes: attrs.u64(unix.NFTA_COUNTER_BYTES)}
	return strings.Join(words, " "), count, nil
}

func attribute(k kind, b []byte, lookupName func(string) string) (string, error) {
	switch k {
	case ignored:
		return "", nil
	case number:
		var n uint64
		for _, octet := range b {
			n = n<<8 | uint64(octet)
		}
		if n == 0 {
			return "", nil
		}
		return fmt.Sprint(n), nil
	case setName:
		return lookupName(strings.TrimRight(string(b), "\x00")), nil
	case data:
		value, err := decodeAttributes(b)
		if err != nil {
			return "", err
		}
		verdict, err := decodeAttributes(value[unix.NFTA_DATA_VERDICT])
		if err != nil {
			return "", err
		}
		if len(verdict) == 0 {
			return fmt.Sprintf("0x%x", value[unix.NFTA_DATA_VALUE]), nil
		}
		code, target := int32(verdict.u32(unix.NFTA_VERDICT_CODE)), verdict.str(unix.NFTA_VERDICT_CHAIN)
		verdictNames := map[int32]string{0: "drop", 1: "accept"}
		return strings.TrimSpace(cmp.Or(verdictNames[code], fmt.Sprint(code)) + " " + target), nil
	default:
		return fmt.Sprintf("%x", b), nil
	}
}
