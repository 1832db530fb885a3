package envoy

import (
	"fmt"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	inputsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy/config"
)

const (
	clusterIngress   = "ingress"
	clusterBlackHole = "black-hole"
	chainBlackHole   = "black-hole"
	chainMutualTLS   = "mtls"
	// ownPorts matches config.FirstReserved to config.LastReserved.
	ownPorts = "150[0-9][0-9]"
)

// ingress is a listener for each mark that the guard knows. What the guard hands to the one without client certificates
// was listed for it; everything else it hands to the other, whose default chain wants a certificate of the mesh.
func ingress(entries []config.Ingress, dir Dir) ([]*listenerv3.Listener, []*clusterv3.Cluster, error) {
	mutual := intercepting("ingress", guard.PortIngress, guard.MarkIngress)
	server := intercepting("ingress-no-client-auth", guard.PortIngressNoClientAuth, guard.MarkIngressNoClientAuth)

	// A connection to the proxy's own ports would be one to itself, round and round.
	mutual.FilterChains = []*listenerv3.FilterChain{{Name: chainBlackHole, Filters: filters(tcpProxy(clusterBlackHole))}}
	mutual.DefaultFilterChain = tlsChain(chainMutualTLS, mutualTLS(dir, chainMutualTLS, nil))
	chainByPort := map[string]string{}
	for _, e := range entries {
		name, own := chainOf(e)
		switch {
		case !own:
		case e.TLS == config.ServerTLS && !e.UDP:
			chain := tlsChain(name, serverTLS(dir, name))
			chain.FilterChainMatch = &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(uint32(e.Port))}
			server.FilterChains = append(server.FilterChains, chain)
		case e.TLS == config.MutualTLS && !e.UDP:
			mutual.FilterChains = append(mutual.FilterChains, tlsChain(name, mutualTLS(dir, name, e.Identities)))
			chainByPort[fmt.Sprint(e.Port)] = name
		default:
			return nil, nil, fmt.Errorf("make Envoy's listeners: ingress entry %q is none that can be served", e)
		}
	}
	mutual.FilterChainMatcher = blackHoleOr(chainByPort)

	listeners := []*listenerv3.Listener{mutual}
	if len(server.FilterChains) > 0 {
		listeners = append(listeners, server)
	}
	return listeners, []*clusterv3.Cluster{application(), blackHole()}, nil
}

// chainOf names the filter chain that an entry has of its own, if it has one.
func chainOf(e config.Ingress) (name string, own bool) {
	switch e.TLS {
	case config.Plaintext:
		return "", false // never reaches Envoy
	case config.MutualTLS:
		return fmt.Sprintf("mtls-%d", e.Port), len(e.Identities) > 0
	default:
		return fmt.Sprintf("tls-%d", e.Port), true
	}
}

// TicketChains names the filter chains that resume TLS sessions. Each reads ticket keys of its own: with a key that two
// chains share, a ticket made by one is good on the other, whatever client certificate that one asks for.
func TicketChains(cfg *config.Config) []string {
	if cfg.Mode != config.Mesh {
		return nil
	}
	names := []string{chainMutualTLS}
	for _, e := range cfg.Ingress {
		if name, own := chainOf(e); own {
			names = append(names, name)
		}
	}
	return names
}

// intercepting listens, on both address families, for connections to any port that the guard's tproxy hands over.
func intercepting(name string, port uint16, mark int64) *listenerv3.Listener {
	l := listen(name, dualStack(port), corev3.TrafficDirection_INBOUND)
	l.Transparent = wrapperspb.Bool(true)
	l.SocketOptions = soMark(mark)
	l.ListenerFilters = []*listenerv3.ListenerFilter{{
		Name:       "original_dst",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(&originaldstv3.OriginalDst{})},
	}}
	return l
}

func tlsChain(name string, socket *corev3.TransportSocket) *listenerv3.FilterChain {
	proxy := tcpProxy(clusterIngress)
	// The application hears of a peer only after the peer's handshake, client certificate included.
	proxy.UpstreamConnectMode = tcpproxyv3.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
	proxy.MaxEarlyDataBytes = wrapperspb.UInt32(0)
	return &listenerv3.FilterChain{
		Name:                          name,
		TransportSocket:               socket,
		TransportSocketConnectTimeout: duration(handshakeTimeout),
		Filters:                       filters(proxy),
	}
}

// application is wherever the peer meant to connect to. The mark keeps what was decrypted inside the guest, and with it
// the connection from every address that is not the pod's own.
func application() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 clusterIngress,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
		UpstreamBindConfig:   &corev3.BindConfig{SocketOptions: soMark(guard.MarkDecrypted)},
	}
}

// blackHole has no endpoint: Envoy closes the connection.
func blackHole() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 clusterBlackHole,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment:       &endpointv3.ClusterLoadAssignment{ClusterName: clusterBlackHole},
	}
}

// blackHoleOr chooses a filter chain by the original destination port: none of the proxy's own, a port's own chain, or
// (no match) the default chain.
func blackHoleOr(chainByPort map[string]string) *xdsmatcher.Matcher {
	port := &xdscore.TypedExtensionConfig{Name: "port", TypedConfig: pack(&inputsv3.DestinationPortInput{})}
	m := &xdsmatcher.Matcher{MatcherType: &xdsmatcher.Matcher_MatcherList_{MatcherList: &xdsmatcher.Matcher_MatcherList{
		Matchers: []*xdsmatcher.Matcher_MatcherList_FieldMatcher{{
			Predicate: &xdsmatcher.Matcher_MatcherList_Predicate{
				MatchType: &xdsmatcher.Matcher_MatcherList_Predicate_SinglePredicate_{
					SinglePredicate: &xdsmatcher.Matcher_MatcherList_Predicate_SinglePredicate{
						Input: port,
						Matcher: &xdsmatcher.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{
							ValueMatch: &xdsmatcher.StringMatcher{MatchPattern: &xdsmatcher.StringMatcher_SafeRegex{
								SafeRegex: &xdsmatcher.RegexMatcher{
									EngineType: &xdsmatcher.RegexMatcher_GoogleRe2{GoogleRe2: &xdsmatcher.RegexMatcher_GoogleRE2{}},
									Regex:      ownPorts,
								},
							}},
						},
					},
				},
			},
			OnMatch: takeChain(chainBlackHole),
		}},
	}}}
	if len(chainByPort) > 0 {
		chains := map[string]*xdsmatcher.Matcher_OnMatch{}
		for p, name := range chainByPort {
			chains[p] = takeChain(name)
		}
		m.OnNoMatch = &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Matcher{Matcher: &xdsmatcher.Matcher{
			MatcherType: &xdsmatcher.Matcher_MatcherTree_{MatcherTree: &xdsmatcher.Matcher_MatcherTree{
				Input: port,
				TreeType: &xdsmatcher.Matcher_MatcherTree_ExactMatchMap{
					ExactMatchMap: &xdsmatcher.Matcher_MatcherTree_MatchMap{Map: chains},
				},
			}},
		}}}
	}
	return m
}

func takeChain(name string) *xdsmatcher.Matcher_OnMatch {
	return &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Action{
		Action: &xdscore.TypedExtensionConfig{Name: name, TypedConfig: pack(wrapperspb.String(name))},
	}}
}
