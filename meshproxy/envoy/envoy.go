// Package envoy writes what Envoy is told: its bootstrap and the secrets that it reads from files.
//
// Envoy is the data plane: it terminates TLS for what comes in and originates it for what goes out. It is trusted with the
// pod's traffic and with nothing else, so it gets a static configuration, made once from a parsed config.Config, and files
// in one directory (Dir) that the supervisor alone writes. There is no xDS server, no path under /contrast, no TCP admin
// port.
//
// The shape of the ingress side answers three attacks that were seen to work against a looser configuration:
//
//   - a peer that never finishes its handshake opens connections to the application: so the upstream connection waits for
//     the handshake (tcpProxy.UpstreamConnectMode);
//   - a session ticket of a port without client certificates resumes on a port that wants one: so every filter chain has
//     ticket keys of its own, and short-lived ones (TicketChains);
//   - the host takes the pod's address away while Envoy connects to the application, so that decrypted bytes leave the
//     guest: so those connections carry a mark that the guard never lets out (guard.MarkDecrypted).
//
// Resources are data: ingress.go and egress.go read like the configuration they make; resources.go has the plumbing.
package envoy

import (
	"errors"
	"fmt"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"portcullis.dev/portcullis/meshproxy/config"
)

const (
	// bufferLimit bounds what Envoy holds of a connection, each way. 32 KiB cost a third of bulk throughput, 1 MiB gained
	// nothing over this.
	bufferLimit = 256 << 10
	// unlimited is for circuit breakers, whose default refuses the 1,025th connection. Descriptors are the real limit.
	unlimited = 1 << 20
	// idleTimeout ends a connection on which nothing moves, either way.
	idleTimeout = time.Hour
	// connectTimeout is for TCP and, towards peers, the TLS handshake after it.
	connectTimeout = 5 * time.Second
	// handshakeTimeout is how long a peer may take for its TLS handshake.
	handshakeTimeout = 10 * time.Second
	// upstreamSessions bounds how many sessions a cluster keeps for resumption.
	upstreamSessions = 64
)

// Options are what the bootstrap needs beside the mesh configuration.
type Options struct {
	// Dir is where the supervisor publishes secrets and Envoy makes its admin socket.
	Dir Dir
	// MaxConnections is how many connections Envoy takes at a time, from peers and from the pod together; more are closed
	// at once. Each costs two descriptors, and Envoy without any could not even read its secrets. Zero is refused.
	MaxConnections int64
	// MaxHeap is how many bytes Envoy's heap may grow to. New connections are closed at once while it is nearly there.
	// Buffers are most of it: bufferLimit each way, for each connection whose peer does not read. Zero is refused.
	MaxHeap int64
	// MaxAge is how old a connection may become: no older than a certificate, so that whoever is no more given one is cut
	// off some time. Zero is refused.
	MaxAge time.Duration
	// AccessLog logs every connection, and not only those that were refused.
	AccessLog bool
}

// Bootstrap is the whole configuration of an Envoy for cfg. It has passed every message's own validation.
func Bootstrap(cfg *config.Config, o Options) (*bootstrapv3.Bootstrap, error) {
	if cfg == nil || o.Dir == "" || o.MaxConnections <= 0 || o.MaxHeap <= 0 || o.MaxAge < time.Second {
		return nil, errors.New("make Envoy's bootstrap: no configuration, no directory for its secrets, no connections, no heap, or no age")
	}
	b := &bootstrapv3.Bootstrap{
		// File SDS wants a node with both names.
		Node: &corev3.Node{Id: "meshproxy", Cluster: "portcullis"},
		Admin: &bootstrapv3.Admin{
			Address:    pipe(o.Dir.AdminSocket(), 0o660),
			AllowPaths: adminPaths(),
		},
		StatsConfig:     statsConfig(),
		OverloadManager: overload(o),
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{},
	}
	s := b.StaticResources
	if cfg.Mode == config.Mesh {
		listeners, clusters, err := ingress(cfg.Ingress, o)
		if err != nil {
			return nil, err
		}
		s.Listeners, s.Clusters = append(s.Listeners, listeners...), append(s.Clusters, clusters...)
	}
	for _, e := range cfg.Egress {
		listener, cluster, err := egress(e, cfg.EgressPolicy != config.EgressOpen, o)
		if err != nil {
			return nil, err
		}
		s.Listeners, s.Clusters = append(s.Listeners, listener), append(s.Clusters, cluster)
	}
	for _, l := range s.Listeners {
		l.StatPrefix = l.Name // or else its address
		l.AccessLog = accessLog(l.Name, o.AccessLog)
		l.PerConnectionBufferLimitBytes = wrapperspb.UInt32(bufferLimit)
		// Workers share one socket: with one each, the kernel would split connections among them, blind to their load.
		l.EnableReusePort = wrapperspb.Bool(false)
		l.ListenerFiltersTimeout = duration(connectTimeout)
	}
	for _, c := range s.Clusters {
		c.PerConnectionBufferLimitBytes = wrapperspb.UInt32(bufferLimit)
		c.ConnectTimeout = duration(connectTimeout)
		c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections:     wrapperspb.UInt32(unlimited),
			MaxPendingRequests: wrapperspb.UInt32(unlimited),
			MaxRequests:        wrapperspb.UInt32(unlimited),
		}}}
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("make Envoy's bootstrap: %w", err)
	}
	return b, nil
}

// adminPaths are all that the admin socket answers. The supervisor is its only caller.
func adminPaths() []*matcherv3.StringMatcher {
	var m []*matcherv3.StringMatcher
	// The query counts as part of the path.
	for _, p := range []string{"/ready", "/stats/prometheus", "/certs", "/listeners", "/clusters", "/server_info"} {
		m = append(m, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: p}})
	}
	for _, p := range []string{"/stats?filter=", "/drain_listeners?"} {
		m = append(m, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: p}})
	}
	return m
}

func listen(name string, addr *corev3.Address, direction corev3.TrafficDirection) *listenerv3.Listener {
	return &listenerv3.Listener{Name: name, Address: addr, TrafficDirection: direction}
}
