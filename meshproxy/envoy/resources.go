package envoy

import (
	"fmt"
	"net/netip"
	"time"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	inputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	ipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/ip/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// ageJitter is how many per cent of a connection's age are chance, so that those that began together do not end together.
const ageJitter = 10

func tcpProxy(cluster string, age time.Duration) *tcpproxyv3.TcpProxy {
	return &tcpproxyv3.TcpProxy{
		StatPrefix:       cluster,
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster},
		IdleTimeout:      duration(idleTimeout),
		// Envoy adds the jitter to it.
		MaxDownstreamConnectionDuration:                 duration(age * 100 / (100 + ageJitter)),
		MaxDownstreamConnectionDurationJitterPercentage: &typev3.Percent{Value: ageJitter},
	}
}

func filters(p *tcpproxyv3.TcpProxy) []*listenerv3.Filter {
	return []*listenerv3.Filter{{Name: "tcp_proxy", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(p)}}}
}

func transportSocket(context proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(context)}}
}

func soMark(mark int64) []*corev3.SocketOption {
	return []*corev3.SocketOption{{
		Description: "SO_MARK", Level: unix.SOL_SOCKET, Name: unix.SO_MARK,
		Value: &corev3.SocketOption_IntValue{IntValue: mark},
		State: corev3.SocketOption_STATE_PREBIND,
	}}
}

func dualStack(port uint16) *corev3.Address {
	a := address("::", port)
	a.GetSocketAddress().Ipv4Compat = true
	return a
}

func address(host string, port uint16) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func udpAddress(host string, port uint16) *corev3.Address {
	a := address(host, port)
	a.GetSocketAddress().Protocol = corev3.SocketAddress_UDP
	return a
}

func pipe(path string, mode uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path, Mode: mode}}}
}

// predicate is a condition on a connection, by which a filter chain is chosen.
type predicate = xdsmatcher.Matcher_MatcherList_Predicate_SinglePredicate

func portMatches(regex string) *predicate {
	return &predicate{Input: inputPort(), Matcher: &xdsmatcher.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{
		ValueMatch: &xdsmatcher.StringMatcher{MatchPattern: &xdsmatcher.StringMatcher_SafeRegex{
			SafeRegex: &xdsmatcher.RegexMatcher{
				EngineType: &xdsmatcher.RegexMatcher_GoogleRe2{GoogleRe2: &xdsmatcher.RegexMatcher_GoogleRE2{}},
				Regex:      regex,
			},
		}},
	}}
}

func addressIn(prefixes []netip.Prefix) *predicate {
	m := &ipv3.Ip{StatPrefix: "original_destination"}
	for _, p := range prefixes {
		m.CidrRanges = append(m.CidrRanges, &corev3.CidrRange{
			AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits())),
		})
	}
	return &predicate{
		Input: extension("address", &inputsv3.DestinationIPInput{}),
		Matcher: &xdsmatcher.Matcher_MatcherList_Predicate_SinglePredicate_CustomMatch{
			CustomMatch: extension("ip", m),
		},
	}
}

func inputPort() *xdscore.TypedExtensionConfig {
	return extension("port", &inputsv3.DestinationPortInput{})
}

func extension(name string, m proto.Message) *xdscore.TypedExtensionConfig {
	return &xdscore.TypedExtensionConfig{Name: name, TypedConfig: pack(m)}
}

func when(p *predicate, chain string) *xdsmatcher.Matcher_MatcherList_FieldMatcher {
	return &xdsmatcher.Matcher_MatcherList_FieldMatcher{
		Predicate: &xdsmatcher.Matcher_MatcherList_Predicate{
			MatchType: &xdsmatcher.Matcher_MatcherList_Predicate_SinglePredicate_{SinglePredicate: p},
		},
		OnMatch: takeChain(chain),
	}
}

func takeChain(name string) *xdsmatcher.Matcher_OnMatch {
	return &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Action{
		Action: extension(name, wrapperspb.String(name)),
	}}
}

func duration(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

// pack wraps a message of ours. Validation of the outer message does not look inside, so it happens here; a failure is a
// mistake in this package, which any test of it finds.
func pack(m proto.Message) *anypb.Any {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			panic(fmt.Sprintf("envoy: %T: %v", m, err))
		}
	}
	a, err := anypb.New(m)
	if err != nil {
		panic(fmt.Sprintf("envoy: pack %T: %v", m, err))
	}
	return a
}
