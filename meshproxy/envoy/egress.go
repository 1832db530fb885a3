package envoy

import (
	"fmt"
	"net/netip"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	dnscommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy/config"
)

// Resolver is where Envoy asks for the names of its egress entries under the egress lock, over UDP.
var Resolver = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 15053)

// egress is a listener on the pod's loopback and a cluster that accepts nobody but the entry's identities. Under the egress
// lock its connections carry the mark that the guard lets out, and names are looked up by the supervisor, since Envoy's
// resolver gives its sockets no mark.
func egress(e config.Egress, locked bool, o Options) (*listenerv3.Listener, *clusterv3.Cluster, error) {
	name := egressName(e)
	if len(e.Identities) == 0 && !e.Any || e.Any && len(e.Identities) > 0 {
		return nil, nil, fmt.Errorf("make Envoy's clusters: egress entry %q does not say which identity the peer must have", e)
	}
	if !e.Listen.Addr().IsLoopback() || e.Remote.Port == 0 || e.Remote.Name == "" && !e.Remote.Addr.IsValid() {
		return nil, nil, fmt.Errorf("make Envoy's clusters: egress entry %q has no listener on loopback, or no remote", e)
	}
	l := listen(name, address(e.Listen.Addr().String(), e.Listen.Port()), corev3.TrafficDirection_OUTBOUND)
	l.FilterChains = []*listenerv3.FilterChain{{Name: name, Filters: filters(tcpProxy(name, o.MaxAge))}}

	c := &clusterv3.Cluster{
		Name:            name,
		TransportSocket: upstreamTLS(o.Dir, e),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
					Address: address(e.Remote.Host(), uint16(e.Remote.Port)),
				}},
			}}}},
		},
		// A peer that vanished without a word is noticed long before the idle time-out.
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveTime: wrapperspb.UInt32(60), KeepaliveInterval: wrapperspb.UInt32(10), KeepaliveProbes: wrapperspb.UInt32(3),
		}},
	}
	if locked {
		c.UpstreamBindConfig = &corev3.BindConfig{SocketOptions: soMark(guard.MarkEgress)}
	}
	if e.Remote.Name == "" {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		return l, c, nil
	}
	dns := &dnsv3.DnsCluster{
		// logical DNS: a new connection takes what the name means now, and those that exist are left alone
		AllAddressesInSingleEndpoint: true,
		DnsLookupFamily:              dnscommonv3.DnsLookupFamily_ALL,
		RespectDnsTtl:                true,
		DnsRefreshRate:               duration(5 * time.Second),
		DnsFailureRefreshRate: &dnsv3.DnsCluster_RefreshRate{
			BaseInterval: duration(time.Second), MaxInterval: duration(5 * time.Second),
		},
	}
	if locked {
		dns.TypedDnsResolverConfig = &corev3.TypedExtensionConfig{
			Name: "envoy.network.dns_resolver.cares",
			TypedConfig: pack(&caresv3.CaresDnsResolverConfig{
				Resolvers: []*corev3.Address{udpAddress(Resolver.Addr().String(), Resolver.Port())},
				// The supervisor knows the names as they are written, and what they are short for.
				DnsResolverOptions: &corev3.DnsResolverOptions{NoDefaultSearchDomain: true},
			}),
		}
	}
	c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
		Name: "envoy.cluster.dns", TypedConfig: pack(dns),
	}}
	// What comes in must not wait for the DNS of what goes out.
	c.WaitForWarmOnInit = wrapperspb.Bool(false)
	return l, c, nil
}
