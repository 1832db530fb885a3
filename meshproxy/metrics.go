package meshproxy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"portcullis.dev/portcullis/guest/guard"
)

// One scrape says everything about a pod's mesh proxy: the supervisor's own view, the guard's counters, and what Envoy
// counts. Names and labels are documented in docs/observability.md, stay as they are, and have few values, none of which a
// peer can choose.

const metricPrefix = "portcullis_meshproxy_"

// scrapeTimeout is less than Prometheus' own, so that a scrape without Envoy still says that Envoy does not answer.
const scrapeTimeout = 5 * time.Second

// metrics answers scrapes.
func (s *supervisor) metrics() http.Handler {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector{s})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		DisableCompression: true, MaxRequestsInFlight: 2,
	})
}

// collector looks at everything anew for each scrape.
type collector struct{ s *supervisor }

// Describe says nothing: which series there are depends on the configuration and on whether Envoy answers.
func (collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	e := emitter{out}
	c.s.collectReadiness(ctx, e)
	c.s.collectCredentials(e)
	c.s.collectGuard(ctx, e)
	c.s.collectEnvoy(ctx, e)
	e.counter("log_entries_suppressed_total", "Log entries about Envoy and its connections that were left out, so that "+
		"nobody fills the log.", float64(c.s.logs.suppressed()))
}

type emitter struct{ out chan<- prometheus.Metric }

func (e emitter) gauge(name, help string, value float64, label ...string) {
	e.emit(prometheus.GaugeValue, name, help, value, label)
}

func (e emitter) counter(name, help string, value float64, label ...string) {
	e.emit(prometheus.CounterValue, name, help, value, label)
}

// emit takes labels as names and values in turns.
func (e emitter) emit(kind prometheus.ValueType, name, help string, value float64, label []string) {
	var names, values []string
	for i := 0; i < len(label); i += 2 {
		names, values = append(names, label[i]), append(values, label[i+1])
	}
	desc := prometheus.NewDesc(metricPrefix+name, help, names, nil)
	e.out <- prometheus.MustNewConstMetric(desc, kind, value, values...)
}

// seconds is 0 for no time at all.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}

func is(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func (s *supervisor) collectReadiness(ctx context.Context, e emitter) {
	err := s.ready(ctx)
	e.gauge("ready", "Whether the mesh proxy serves.", is(err == nil))
	why, known := errors.AsType[*unready](err)
	for _, c := range []cause{causeStarting, causeEnvoy, causeCertificate, causeGuard, causeStopping} {
		e.gauge("not_ready", "Why the mesh proxy does not serve: 1 for the cause, if there is one.",
			is(known && why.cause == c), "cause", string(c))
	}
}

func (s *supervisor) collectCredentials(e emitter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.gauge("certificate_not_before_seconds", "When the certificate in force began to be valid, in seconds since 1970.",
		float64(s.credentials.leaf.NotBefore.Unix()))
	e.gauge("certificate_not_after_seconds", "When the certificate in force expires, in seconds since 1970.",
		float64(s.credentials.leaf.NotAfter.Unix()))
	digest := sha256.Sum256(s.credentials.trust.MeshCA.Raw)
	e.gauge("mesh_ca_info", "The mesh CA that the pod believes, by the SHA-256 of its certificate. Pods with different ones "+
		"do not speak to each other, but while their manifests overlap.", 1, "sha256", hex.EncodeToString(digest[:]))
	for with, until := range map[string]time.Time{
		"predecessor": s.credentials.trust.PredecessorUntil, "successor": s.credentials.trust.SuccessorUntil(),
	} {
		e.gauge("overlap_until_seconds", "Until when pods of the manifest before, or of the next one, are accepted, in seconds since "+
			"1970; 0 where they are not.", seconds(until), "with", with)
	}
	e.gauge("generation_changed", "Whether the pod belongs to a manifest that was replaced: its certificate is not renewed, and it is "+
		"to be rolled out again.", is(s.generationChanged))
	e.counter("credentials_published_total", "How often credentials were put in force, the first included.", float64(s.published))
	e.counter("credentials_refused_total", "How often new credentials were refused, and the old ones kept.", float64(s.refused))
	e.counter("ticket_keys_published_total", "How often new keys for TLS session tickets were put in force, the first included.",
		float64(s.ticketsPublished))
	// Zero restarts before the first start, too.
	e.counter("envoy_restarts_total", "How often Envoy was started again.", float64(max(0, s.starts-1)))
}

func (s *supervisor) collectGuard(ctx context.Context, e emitter) {
	status, err := s.Guard.Inspect(ctx)
	if err != nil && s.logs.messages.allow("guard") {
		s.Log.Warn("the guard's state is not known", "err", err) // every state is 0 then
	}
	for _, state := range []guard.State{guard.Closed, guard.Mesh, guard.Opened, guard.Foreign} {
		e.gauge("guard_state", "The guard's state: 1 for the one that it is in.", is(err == nil && state == status.State),
			"state", string(state))
	}
	for reason, packets := range s.drops.packets() {
		e.counter("guard_dropped_packets_total", "Packets that the guard stopped, by reason.", float64(packets), "reason", reason)
	}
	foreign, restored := s.counts()
	e.counter("foreign_rule_changes_total", "How often another process changed nftables rules.", float64(foreign))
	e.counter("guard_restored_total", "How often the guard was not as it should be, and was put back.", float64(restored))
}

func (s *supervisor) collectEnvoy(ctx context.Context, e emitter) {
	series, err := s.admin.series(ctx, s.stats)
	e.gauge("envoy_up", "Whether Envoy answers. Without it there are no other metrics of Envoy.", is(err == nil))
	for _, line := range series {
		emit := e.gauge
		if line.Metric.Counter {
			emit = e.counter
		}
		var label []string
		if line.Metric.Of != "" {
			label = append(label, line.Metric.Of, line.Labels.Of)
		}
		if line.Metric.By != "" {
			label = append(label, line.Metric.By, line.Labels.By)
		}
		emit(line.Metric.Name, line.Metric.Help, line.Value, label...)
	}
}

// dropReasons are the guard's meanings of dropped packets as words that stay.
var dropReasons = map[string]string{
	"from outside, not admitted":                        "not_admitted",
	"to a socket that is not the proxy's for this port": "wrong_socket",
	"from outside to 127.0.0.0/8":                       "to_loopback",
	"to a listener of the proxy itself":                 "to_proxy",
	"TCP, while no proxy listens":                       "no_proxy",
	"routed or bridged through the guest":               "forwarded",
	"decrypted, on its way out":                         "decrypted_out",
	"of loopback, on its way out":                       "loopback_out",
	"from an address that has moved away":               "moved_address",
	"TCP whose beginning was not seen":                  "no_beginning",
	"kept in by the egress lock":                        "egress_lock",
}

// dropOther is what the guard learned to stop and this table did not.
const dropOther = "other"

// countingGuard is a guard whose counters go on where a change of state, which makes a new table, sets them to zero.
type countingGuard struct {
	Guard

	mu    sync.Mutex
	last  map[string]uint64 // of the table as it is, when it was last looked at
	total map[string]uint64
}

// Inspect is the guard's, and takes its counters along.
func (g *countingGuard) Inspect(ctx context.Context) (guard.Status, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inspect(ctx)
}

func (g *countingGuard) inspect(ctx context.Context) (guard.Status, error) {
	status, err := g.Guard.Inspect(ctx)
	// What a table counts that is not ours, others may have written.
	if err != nil || !status.Acceptable() {
		return status, err
	}
	now := drops(status)
	for reason, packets := range now {
		if g.total == nil {
			g.total = map[string]uint64{}
		}
		if before := g.last[reason]; packets >= before {
			g.total[reason] += packets - before
		} else { // somebody set it to zero
			g.total[reason] += packets
		}
	}
	g.last = now
	return status, nil
}

func drops(status guard.Status) map[string]uint64 {
	sums := map[string]uint64{}
	for _, c := range status.Counters {
		if !c.Drop {
			continue
		}
		reason, known := dropReasons[c.Meaning]
		if !known {
			reason = dropOther
		}
		sums[reason] += c.Packets
	}
	return sums
}

// packets are all that were dropped, by reason, since the proxy began. There is a series for each reason from the start.
func (g *countingGuard) packets() map[string]uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := map[string]uint64{dropOther: g.total[dropOther]}
	for _, reason := range dropReasons {
		out[reason] = g.total[reason]
	}
	return out
}

// change looks at the counters just before a change of state.
func (g *countingGuard) change(ctx context.Context, change func(context.Context) error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inspect(ctx) // whether it can be seen or not, it must change
	err := change(ctx)
	g.last = nil
	if err != nil {
		// It may be the table of before, with its counters.
		if status, err := g.Guard.Inspect(ctx); err == nil {
			g.last = drops(status)
		}
	}
	return err
}

// Arm, Close, Raise and Open are the guard's.
func (g *countingGuard) Arm(ctx context.Context) error   { return g.change(ctx, g.Guard.Arm) }
func (g *countingGuard) Close(ctx context.Context) error { return g.change(ctx, g.Guard.Close) }
func (g *countingGuard) Open(ctx context.Context) error  { return g.change(ctx, g.Guard.Open) }

func (g *countingGuard) Raise(ctx context.Context, p guard.Ports) error {
	return g.change(ctx, func(ctx context.Context) error { return g.Guard.Raise(ctx, p) })
}
