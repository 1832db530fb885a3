package envoy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	xdsmatcher "github.com/cncf/xds/go/xds/type/matcher/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	mtlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rbac/principals/mtls_authenticated/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/pki"
)

const (
	clusterIngress   = "ingress"
	clusterBlackHole = "black-hole"
	chainBlackHole   = "black-hole"
	chainMutualTLS   = "mtls"
	// ownPorts matches config.FirstReserved to config.LastReserved.
	ownPorts = "150[0-9][0-9]"
)

// insideOnly are addresses that the kernel takes to loopback whoever has them: to connect there would show a peer what the
// pod keeps to itself, such as its egress listeners. No packet should come in with them, but a host may give the pod any
// address and any route.
var insideOnly = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("::/128"),
	netip.MustParsePrefix("::1/128"),
}

// ingress is a listener for each mark that the guard knows. What the guard hands to the one without client certificates
// was listed for it; everything else it hands to the other, whose default chain wants a certificate of the mesh.
func ingress(entries []config.Ingress, o Options) ([]*listenerv3.Listener, []*clusterv3.Cluster, error) {
	mutual := intercepting("ingress", guard.PortIngress, guard.MarkIngress)
	server := intercepting("ingress-no-client-auth", guard.PortIngressNoClientAuth, guard.MarkIngressNoClientAuth)

	mutual.DefaultFilterChain = tlsChain(chainMutualTLS, o.MaxAge, mutualTLS(o.Dir, chainMutualTLS, nil))
	mutualByPort, serverByPort := map[string]string{}, map[string]string{}
	for _, e := range entries {
		name, own := chainOf(e)
		switch port := fmt.Sprint(e.Port); {
		case !own:
		case e.TLS == config.ServerTLS && !e.UDP:
			server.FilterChains = append(server.FilterChains, tlsChain(name, o.MaxAge, serverTLS(o.Dir, name)))
			serverByPort[port] = name
		case e.TLS == config.MutualTLS && !e.UDP:
			socket := mutualTLS(o.Dir, name, e.Identities)
			mutual.FilterChains = append(mutual.FilterChains, tlsChain(name, o.MaxAge, socket, allow(e.Identities)))
			mutualByPort[port] = name
		default:
			return nil, nil, fmt.Errorf("make Envoy's listeners: ingress entry %q is none that can be served", e)
		}
	}
	take(mutual, mutualByPort)
	take(server, serverByPort)

	listeners := []*listenerv3.Listener{mutual}
	if len(serverByPort) > 0 {
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
		if name, own := chainOf(e); own && resumes(e.Identities) {
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

func tlsChain(
	name string, age time.Duration, socket *corev3.TransportSocket, before ...*listenerv3.Filter,
) *listenerv3.FilterChain {
	proxy := tcpProxy(clusterIngress, age)
	// The application hears of a peer only after the peer's handshake, client certificate included.
	proxy.UpstreamConnectMode = tcpproxyv3.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
	proxy.MaxEarlyDataBytes = wrapperspb.UInt32(0)
	return &listenerv3.FilterChain{
		Name:                          name,
		TransportSocket:               socket,
		TransportSocketConnectTimeout: duration(handshakeTimeout),
		Filters:                       append(before, filters(proxy)...),
	}
}

// allow is the second line behind a chain's TLS, with the same list: it drops what a peer of another identity says. It must
// not be the first, since it looks at a connection only when the peer's first byte comes, and by then the application
// of a server-first protocol has spoken.
func allow(identities []pki.SAN) *listenerv3.Filter {
	policy := &rbacv3.Policy{Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}}}
	for _, id := range identities {
		switch kind(id) {
		case tlsv3.SubjectAltNameMatcher_URI:
			policy.Principals = append(policy.Principals, named(id.String(), false))
		case tlsv3.SubjectAltNameMatcher_DNS:
			policy.Principals = append(policy.Principals, named(id.String(), true))
			if _, domain, found := strings.Cut(id.String(), "."); found {
				policy.Principals = append(policy.Principals, named("*."+domain, true))
			}
		default:
			policy.Principals = append(policy.Principals, verified(exactly([]pki.SAN{id})[0]))
		}
	}
	return &listenerv3.Filter{Name: "rbac", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(&rbacfilterv3.RBAC{
		StatPrefix: "identities.",
		Rules: &rbacv3.RBAC{
			Action:   rbacv3.RBAC_ALLOW, // and deny everybody else
			Policies: map[string]*rbacv3.Policy{"identities": policy},
		},
	})}}
}

// named is a peer whose certificate carries a name, as a DNS name or a URI.
func named(name string, ignoreCase bool) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{
		PrincipalName: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}, IgnoreCase: ignoreCase,
		},
	}}}
}

// verified is a peer whose certificate carries any kind of name, and was verified in this connection's own handshake: of a
// resumed session Envoy does not remember that it was.
func verified(m *tlsv3.SubjectAltNameMatcher) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Custom{Custom: &corev3.TypedExtensionConfig{
		Name: "envoy.rbac.principals.mtls_authenticated", TypedConfig: pack(&mtlsv3.Config{SanMatcher: m}),
	}}}
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

// take lets l choose a filter chain by the original destination: none of what is the proxy's own or the pod's loopback, a
// port's own chain, or (no match) the default chain. Where there is no default, Envoy closes the connection.
func take(l *listenerv3.Listener, chainByPort map[string]string) {
	hole := &listenerv3.FilterChain{Name: chainBlackHole, Filters: filters(tcpProxy(clusterBlackHole, idleTimeout))}
	l.FilterChains = append([]*listenerv3.FilterChain{hole}, l.FilterChains...)
	m := &xdsmatcher.Matcher{MatcherType: &xdsmatcher.Matcher_MatcherList_{MatcherList: &xdsmatcher.Matcher_MatcherList{
		Matchers: []*xdsmatcher.Matcher_MatcherList_FieldMatcher{
			// A connection to the proxy's own ports would be one to itself, round and round.
			when(portMatches(ownPorts), chainBlackHole),
			when(addressIn(insideOnly), chainBlackHole),
		},
	}}}
	if len(chainByPort) > 0 {
		chains := map[string]*xdsmatcher.Matcher_OnMatch{}
		for p, name := range chainByPort {
			chains[p] = takeChain(name)
		}
		m.OnNoMatch = &xdsmatcher.Matcher_OnMatch{OnMatch: &xdsmatcher.Matcher_OnMatch_Matcher{Matcher: &xdsmatcher.Matcher{
			MatcherType: &xdsmatcher.Matcher_MatcherTree_{MatcherTree: &xdsmatcher.Matcher_MatcherTree{
				Input: inputPort(),
				TreeType: &xdsmatcher.Matcher_MatcherTree_ExactMatchMap{
					ExactMatchMap: &xdsmatcher.Matcher_MatcherTree_MatchMap{Map: chains},
				},
			}},
		}}}
	}
	l.FilterChainMatcher = m
}
