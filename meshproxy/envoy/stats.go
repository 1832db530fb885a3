package envoy

import (
	"bufio"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Envoy counts some two hundred things per cluster and listener. It keeps those that are named here, and does not even
// allocate the others. Whatever reads a statistic of Envoy must have it in this file: one that is not kept reads as absent.

// A Metric is what Envoy's statistics become for whoever scrapes the mesh proxy: names that say what they count for this
// proxy, and that do not change when Envoy renames its own.
type Metric struct {
	Name    string
	Counter bool // or else a gauge
	Help    string
	// Of is what there is one series for each of, as a label of that name: a listener, a cluster, a secret. Empty for the
	// whole Envoy.
	Of string
	// By is a second label. Its values are those of From.
	By string
	// From are Envoy's names, without what Of prefixes them with, and the value of By. Those with the same value add up.
	From map[string]string
}

const (
	ofListener = "listener"
	ofCluster  = "cluster"
	ofSecret   = "secret"
	ofContext  = "context" // a listener or a cluster that speaks TLS
)

// WorkersStarted is 1 when the workers accept connections, DownstreamCxActive counts a listener's connections and CxActive a
// cluster's: what the supervisor itself asks for, before it lifts the gate and while it drains.
const (
	WorkersStarted     = "listener_manager.workers_started"
	DownstreamCxActive = "downstream_cx_active"
	CxActive           = "upstream_cx_active"
)

// Metrics are all that a scrape shows of Envoy.
var Metrics = []Metric{
	// Who comes, and who is sent away and why: the first thing to look at when a peer complains, or attacks.
	{
		Name: "connections_total", Counter: true, Of: ofListener,
		Help: "Connections that a listener accepted, before any handshake.",
		From: map[string]string{"downstream_cx_total": ""},
	},
	{
		Name: "connections_active", Of: ofListener,
		Help: "Connections that a listener has now.",
		From: map[string]string{DownstreamCxActive: ""},
	},
	{
		Name: "connections_refused_total", Counter: true, Of: ofListener, By: "reason",
		Help: "Connections that a listener closed before the application heard of them, by reason.",
		From: map[string]string{
			"ssl.fail_verify_no_cert":                        "no_certificate",
			"ssl.fail_verify_error":                          "untrusted",
			"ssl.fail_verify_san":                            "identity",
			"ssl.connection_error":                           "handshake",
			"downstream_cx_transport_socket_connect_timeout": "handshake_timeout",
			"no_filter_chain_match":                          "no_chain",
			"downstream_cx_overflow":                         "limit",
			"downstream_cx_overload_reject":                  "limit",
			"downstream_global_cx_overflow":                  "limit",
		},
	},
	// Never anything but zero: this check stands behind TLS with the same list.
	{
		Name: "second_line_denied_total", Counter: true,
		Help: "Connections that TLS let in and that the check of identities behind it closed: there should be none, ever.",
		From: map[string]string{"identities.rbac.denied": ""},
	},
	// What cryptography costs: a resumed handshake is a third cheaper, so a peer that never resumes shows here.
	{
		Name: "handshakes_total", Counter: true, Of: ofListener,
		Help: "TLS handshakes that peers completed with a listener.",
		From: map[string]string{"ssl.handshake": ""},
	},
	{
		Name: "handshakes_resumed_total", Counter: true, Of: ofListener,
		Help: "Those of the handshakes that resumed a session.",
		From: map[string]string{"ssl.session_reused": ""},
	},
	// The other side of each connection: the application for the cluster ingress, peers for egress clusters.
	{
		Name: "upstream_connections_total", Counter: true, Of: ofCluster,
		Help: "Connections that Envoy opened: to the application for the cluster ingress, to a peer for an egress cluster.",
		From: map[string]string{"upstream_cx_total": ""},
	},
	{
		Name: "upstream_connections_active", Of: ofCluster,
		Help: "Connections of a cluster that are open now.",
		From: map[string]string{CxActive: ""},
	},
	{
		Name: "upstream_connect_failures_total", Counter: true, Of: ofCluster,
		Help: "Connections of a cluster that did not come about, peers that were refused and time-outs among them.",
		From: map[string]string{"upstream_cx_connect_fail": ""},
	},
	{
		Name: "upstream_connect_timeouts_total", Counter: true, Of: ofCluster,
		Help: "Those of the failures that waited too long for the other side.",
		From: map[string]string{"upstream_cx_connect_timeout": ""},
	},
	{
		Name: "upstream_no_address_total", Counter: true, Of: ofCluster,
		Help: "Connections for which a cluster had no address: its name did not resolve, or nothing may be connected to.",
		From: map[string]string{"upstream_cx_none_healthy": ""},
	},
	{
		Name: "upstream_refused_total", Counter: true, Of: ofCluster, By: "reason",
		Help: "Servers that Envoy called and then refused, or that refused it, by reason.",
		From: map[string]string{
			"ssl.fail_verify_error": "untrusted",
			"ssl.fail_verify_san":   "identity",
			"ssl.connection_error":  "handshake",
		},
	},
	{
		Name: "upstream_received_bytes_total", Counter: true, Of: ofCluster,
		Help: "Bytes that a cluster's servers sent, decrypted.",
		From: map[string]string{"upstream_cx_rx_bytes_total": ""},
	},
	{
		Name: "upstream_sent_bytes_total", Counter: true, Of: ofCluster,
		Help: "Bytes that a cluster's servers were sent, before encryption.",
		From: map[string]string{"upstream_cx_tx_bytes_total": ""},
	},
	{
		Name: "upstream_name_failures_total", Counter: true, Of: ofCluster,
		Help: "Look-ups of a cluster's host name that failed.",
		From: map[string]string{"update_failure": ""},
	},
	// Whether a rotation has arrived: the supervisor publishes, and Envoy takes it a moment later, or does not.
	{
		Name: "envoy_certificate_not_after_seconds", Of: ofContext,
		Help: "When the certificate that Envoy uses there expires, in seconds since 1970.",
		From: map[string]string{"ssl.certificate." + secretIdentity + ".expiration_unix_time_seconds": ""},
	},
	{
		Name: "envoy_secret_updates_total", Counter: true, Of: ofSecret, By: "outcome",
		Help: "Versions of a secret that Envoy read: its certificate (identity), the mesh CA (trust), a chain's ticket keys.",
		From: map[string]string{
			"update_success": "taken", "update_rejected": "rejected", "update_failure": "failed", "key_rotation_failed": "failed",
		},
	},
	// Envoy's own health. A missed watchdog is a worker that did not come round for 200 ms.
	{
		Name: "envoy_memory_allocated_bytes",
		Help: "Memory that Envoy uses.",
		From: map[string]string{"server.memory_allocated": ""},
	},
	{
		Name: "envoy_memory_physical_bytes",
		Help: "Memory that Envoy's allocator holds.",
		From: map[string]string{"server.memory_physical_size": ""},
	},
	{
		Name: "envoy_watchdog_misses_total", Counter: true, By: "thread",
		Help: "How often a thread of Envoy was busy with one thing for 200 ms.",
		From: map[string]string{"workers.watchdog_miss": "workers", "main_thread.watchdog_miss": "main"},
	},
}

// prefixes are how Envoy's names begin for each kind of thing, and what follows is the thing's name.
var prefixes = map[string][]string{
	"":         {""},
	ofListener: {"listener."},
	ofCluster:  {"cluster."},
	ofSecret:   {"sds."},
	ofContext:  {"listener.", "cluster."},
}

// statsConfig keeps the statistics of Metrics and no others.
func statsConfig() *metricsv3.StatsConfig {
	kept := map[string]*matcherv3.StringMatcher{
		WorkersStarted: {MatchPattern: &matcherv3.StringMatcher_Exact{Exact: WorkersStarted}},
	}
	for _, m := range Metrics {
		for name := range m.From {
			if m.Of == "" {
				kept[name] = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}}
			} else {
				kept["."+name] = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: "." + name}}
			}
		}
	}
	list := &matcherv3.ListStringMatcher{}
	for _, name := range slices.Sorted(maps.Keys(kept)) {
		list.Patterns = append(list.Patterns, kept[name])
	}
	return &metricsv3.StatsConfig{
		StatsMatcher:      &metricsv3.StatsMatcher{StatsMatcher: &metricsv3.StatsMatcher_InclusionList{InclusionList: list}},
		UseAllDefaultTags: wrapperspb.Bool(false),
		// the one tag that our names are found by
		StatsTags: []*metricsv3.TagSpecifier{{TagName: "envoy.cluster_name"}},
	}
}

// Labels are the values of a series' labels Of and By, empty where the metric has no such label.
type Labels struct{ Of, By string }

// A Series is one line of a scrape.
type Series struct {
	Metric *Metric
	Labels Labels
	Value  float64
}

// Stats knows what the statistics of one Envoy are called.
type Stats struct{ series map[string][]target }

type target struct {
	metric *Metric
	labels Labels
}

// NewStats knows those of an Envoy with this bootstrap. Names come from there alone, so that a scrape has no series that the
// configuration does not account for.
func NewStats(m *Made) *Stats {
	names := map[string][]string{
		"listener.": m.Listeners, "cluster.": m.Clusters, "sds.": m.Secrets, "": {""},
	}
	s := &Stats{series: map[string][]target{}}
	for i := range Metrics {
		m := &Metrics[i]
		for _, prefix := range prefixes[m.Of] {
			for _, name := range names[prefix] {
				for from, by := range m.From {
					full := prefix + name + "." + from
					if m.Of == "" {
						full = from
					}
					s.series[full] = append(s.series[full], target{m, Labels{name, by}})
				}
			}
		}
	}
	return s
}

// secretsOf are the names under which b's TLS contexts ask for secrets.
func secretsOf(b *bootstrapv3.Bootstrap) []string {
	names := []string{secretIdentity, secretTrust}
	for _, l := range b.StaticResources.GetListeners() {
		for _, c := range append(l.FilterChains, l.DefaultFilterChain) {
			if c.GetTransportSocket() != nil {
				names = append(names, c.Name) // the chain's ticket keys
			}
		}
	}
	return names
}

// Read makes series of what Envoy's admin page /stats says, in no particular order. What is of no metric is left out.
func (s *Stats) Read(r io.Reader) ([]Series, error) {
	type key struct {
		metric *Metric
		labels Labels
	}
	sums := map[key]float64{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), ": ")
		targets := s.series[name]
		if len(targets) == 0 {
			continue
		}
		value, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			continue // text, or a histogram
		}
		for _, t := range targets {
			sums[key(t)] += float64(value)
		}
	}
	out := make([]Series, 0, len(sums))
	for k, v := range sums {
		out = append(out, Series{k.metric, k.labels, v})
	}
	return out, lines.Err()
}
