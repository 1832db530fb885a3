package envoy

import (
	"reflect"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/pki"
)

// A Line is what Envoy writes to its standard output about a connection that has ended, as one JSON object. The listener
// writes it, not a filter: a connection that fails its handshake has no filters yet.
//
// Much of it is the peer's choice, of a peer without any right: its certificate may be its own making, and 100 KiB long.
// Envoy escapes what it writes as JSON demands, and cannot shorten it. It writes the members in the order of their names,
// so they are named such that the short and certain ones come first: the beginning of a line that is too long is still of use.
type Line struct {
	BytesReceived int64  `json:"a_bytes_received" operator:"BYTES_RECEIVED"` // from the one who connected, decrypted
	BytesSent     int64  `json:"a_bytes_sent" operator:"BYTES_SENT"`
	Chain         string `json:"a_chain" operator:"FILTER_CHAIN_NAME"`
	Cluster       string `json:"a_cluster" operator:"UPSTREAM_CLUSTER"`               // empty when it did not come so far
	Details       string `json:"a_details" operator:"CONNECTION_TERMINATION_DETAILS"` // why Envoy ended it
	Duration      int64  `json:"a_duration" operator:"DURATION"`                      // milliseconds
	Flags         string `json:"a_flags" operator:"RESPONSE_FLAGS"`
	Listener      string `json:"a_listener"`
	Local         string `json:"a_local" operator:"DOWNSTREAM_LOCAL_ADDRESS"` // address and port that was connected to
	Remote        string `json:"a_remote" operator:"DOWNSTREAM_REMOTE_ADDRESS"`
	Upstream      string `json:"a_upstream" operator:"UPSTREAM_HOSTS_ATTEMPTED"`
	// Why TLS failed, towards the one who connected and towards where the connection was to go on. Where the identity is
	// the reason, it ends with all names that the certificate had.
	Failure         string `json:"b_failure" operator:"DOWNSTREAM_TRANSPORT_FAILURE_REASON"`
	UpstreamFailure string `json:"b_upstream_failure" operator:"UPSTREAM_TRANSPORT_FAILURE_REASON"`
	// What the certificate of the one who connected says.
	Serial  string `json:"c_serial" operator:"DOWNSTREAM_PEER_SERIAL"`
	DNS     string `json:"d_dns" operator:"DOWNSTREAM_PEER_DNS_SAN"`
	IP      string `json:"d_ip" operator:"DOWNSTREAM_PEER_IP_SAN"`
	Subject string `json:"d_subject" operator:"DOWNSTREAM_PEER_SUBJECT"`
	URI     string `json:"d_uri" operator:"DOWNSTREAM_PEER_URI_SAN"`
	// What the server's certificate says, of connections that came about.
	UpstreamDNS string `json:"e_dns" operator:"UPSTREAM_PEER_DNS_SAN"`
	UpstreamIP  string `json:"e_ip" operator:"UPSTREAM_PEER_IP_SAN"`
	UpstreamURI string `json:"e_uri" operator:"UPSTREAM_PEER_URI_SAN"`
}

// The texts by which Envoy says that it, and not the peer, ended a connection. The filter below and whoever reads the lines
// must agree on them.
const (
	DetailsHandshakeTimeout = "transport socket timeout was reached"
	DetailsDenied           = "rbac_access_denied" // and then which policy
)

// Outbound says whether a listener is one for what the pod calls.
func (l *Line) Outbound() bool { return strings.HasPrefix(l.Listener, egressPrefix) }

// BlackHole says whether the connection was to a destination that no peer may reach.
func (l *Line) BlackHole() bool { return l.Chain == chainBlackHole }

// refused is true for connections that failed to come about, whether in TLS, by RBAC, or because there was nothing to
// connect to. A peer that comes and goes without a word is not among them, nor is one that was cut off for its age.
// Of the two failures only the first is absent where there was none; the other is an empty text then, which has() takes for one.
const refused = `has(connection.transport_failure_reason) || ` +
	`has(upstream.transport_failure_reason) && upstream.transport_failure_reason != "" || ` +
	`has(connection.termination_details) && (connection.termination_details == "` + DetailsHandshakeTimeout + `" || ` +
	`connection.termination_details.startsWith("` + DetailsDenied + `"))`

// failed are the response flags of such connections: no connection, no address, too many connections, no chain, no cluster.
var failed = []string{"UF", "UH", "UO", "NR", "NC"}

// accessLog logs all connections of a listener, or else the ones that were refused.
func accessLog(listener string, all bool) []*accesslogv3.AccessLog {
	fields := map[string]*structpb.Value{"a_listener": structpb.NewStringValue(listener)}
	for field := range reflect.TypeFor[Line]().Fields() {
		if operator := field.Tag.Get("operator"); operator != "" {
			fields[field.Tag.Get("json")] = structpb.NewStringValue("%" + operator + "%")
		}
	}
	l := &accesslogv3.AccessLog{
		Name: "stdout",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(&streamv3.StdoutAccessLog{
			AccessLogFormat: &streamv3.StdoutAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format:          &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: fields}},
				OmitEmptyValues: true,
			}},
		})},
	}
	if !all {
		l.Filter = either(
			&accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
				ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: failed},
			}},
			&accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
				ExtensionFilter: &accesslogv3.ExtensionFilter{
					Name: "refused",
					ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{
						TypedConfig: pack(&celv3.ExpressionFilter{Expression: refused}),
					},
				},
			}},
		)
	}
	return []*accesslogv3.AccessLog{l}
}

func either(filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{
		OrFilter: &accesslogv3.OrFilter{Filters: filters},
	}}
}

// Wanted are the identities that peers must have one of, by filter chain for those who come in and by cluster for those who
// are called. Where there is no list, or an empty one, every identity of the mesh will do.
func Wanted(cfg *config.Config) map[string][]pki.SAN {
	wanted := map[string][]pki.SAN{}
	for _, e := range cfg.Ingress {
		if name, own := chainOf(e); own {
			wanted[name] = e.Identities
		}
	}
	for _, e := range cfg.Egress {
		wanted[egressName(e)] = e.Identities
	}
	return wanted
}

const egressPrefix = "egress-"

func egressName(e config.Egress) string { return egressPrefix + e.Name }
