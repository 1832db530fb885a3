package coordinator

import (
	"crypto/x509"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"portcullis.dev/portcullis"
	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
)

// metrics are what /metrics shows. Labels have few values, none of a client's choosing.
type metrics struct {
	registry    *prometheus.Registry
	requests    *prometheus.CounterVec
	issued      *prometheus.CounterVec
	issueTime   prometheus.Histogram
	rejected    *prometheus.CounterVec
	unavailable *prometheus.CounterVec
	gateWait    *prometheus.HistogramVec
	peers       *prometheus.CounterVec
}

// From what a warm cache answers in to the time that a request may take.
var seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

func newMetrics(c *Coordinator) *metrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "portcullis_" + name, Help: help}, labels)
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: counters("requests_total", "Requests by route and outcome: ok, or the code of the problem.", "route", "outcome"),
		issued:   counters("certificates_issued_total", "Mesh certificates issued, by the platform of the evidence.", "platform"),
		rejected: counters("evidence_rejected_total",
			"Rejected evidence of pods, by the field of the report that was not acceptable.", "field"),
		unavailable: counters("evidence_unavailable_total",
			"Evidence that could not be judged, by the vendor whose word was missing; none for simulated evidence.", "vendor"),
		issueTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "portcullis_certificate_issue_seconds", Buckets: seconds,
			Help: "How long requests took that ended with a certificate, the wait for a worker included.",
		}),
		gateWait: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "portcullis_gate_wait_seconds", Help: "How long requests waited at a gate before they were let in.", Buckets: seconds,
		}, []string{"gate"}),
		peers: counters("peers_asked_total",
			"Other replicas that were asked for their state, by outcome: ok, or why nothing was taken.", "outcome"),
	}
	for _, p := range []attestation.Platform{attestation.SNP, attestation.TDX, attestation.Simulated} {
		m.issued.WithLabelValues(string(p))
		m.unavailable.WithLabelValues(vendor(p))
	}
	m.requests.WithLabelValues(api.PathCertificate, string(api.CodeEvidenceRejected)) // what alerts ask for is there from the start
	m.registry.MustRegister(m.requests, m.issued, m.issueTime, m.rejected, m.unavailable, m.gateWait, m.peers,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.watchGate("evidence", c.judging)
	m.watchGate("own-evidence", c.attesting)
	m.watchGate("manifest", c.setting)
	m.watchState(c)
	m.watchAudit(c)
	return m
}

func (m *metrics) gauge(name, help string, labels prometheus.Labels, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Name: "portcullis_" + name, Help: help, ConstLabels: labels}, value))
}

func (m *metrics) counter(name, help string, labels prometheus.Labels, value func() float64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(
		prometheus.CounterOpts{Name: "portcullis_" + name, Help: help, ConstLabels: labels}, value))
}

func (m *metrics) watchGate(name string, g *gate) {
	labels := prometheus.Labels{"gate": name}
	g.waited = func(d time.Duration) { m.gateWait.WithLabelValues(name).Observe(d.Seconds()) }
	m.gateWait.WithLabelValues(name)
	m.gauge("gate_inside", "Requests that a gate has let in.", labels, func() float64 { return float64(len(g.slots)) })
	m.gauge("gate_waiting", "Requests that wait at a gate.", labels, func() float64 { return float64(g.waiting.Load()) })
	m.counter("gate_refused_total", "Requests that a gate turned away, with 429, or that gave up waiting.", labels,
		func() float64 { return float64(g.refused.Load()) })
}

func (m *metrics) watchState(c *Coordinator) {
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	m.gauge("build_info", "1, with the version.", prometheus.Labels{"version": portcullis.Version, "go": runtime.Version()},
		func() float64 { return 1 })
	for _, s := range states {
		m.gauge("state", "The Coordinator's state: 1 for the one that it is in.", prometheus.Labels{"state": string(s)},
			func() float64 { return flag(c.state() == s) })
	}
	m.gauge("needs_recovery", "1 while the seed of the store's history is not in memory.", nil,
		func() float64 { return flag(c.recovering.Load() != nil) })
	whileRecovering := func(value func(r *recovery) int) func() float64 {
		return func() float64 {
			if r := c.recovering.Load(); r != nil {
				return float64(value(r))
			}
			return 0
		}
	}
	m.gauge("recovery_shares_collected", "Shares of the seed that were given since the start; 0 when no recovery is needed.", nil,
		whileRecovering(func(r *recovery) int { return r.progress().Collected }))
	m.gauge("recovery_shares_threshold", "Shares of the seed that it takes; 0 when no recovery is needed.", nil,
		whileRecovering(func(r *recovery) int { return r.threshold() }))
	active := func(value func(g *generation) float64) func() float64 {
		return func() float64 {
			if g := c.active.Load(); g != nil {
				return value(g)
			}
			return 0
		}
	}
	m.gauge("generation", "Manifests set so far; 0 before the first.", nil,
		active(func(g *generation) float64 { return float64(len(g.history)) }))
	m.gauge("overlap_until_seconds", "Until when pods of the manifest before and of this one accept each other, in seconds "+
		"since 1970; 0 where they do not.", nil, active(func(g *generation) float64 {
		if g.mesh.Before == nil {
			return 0
		}
		return float64(g.mesh.Before.Until().Unix())
	}))
	for name, ca := range map[string]func(g *generation) *x509.Certificate{
		"root":         func(g *generation) *x509.Certificate { return g.root },
		"intermediate": func(g *generation) *x509.Certificate { return g.mesh.Intermediate },
		"mesh":         func(g *generation) *x509.Certificate { return g.mesh.Certificate },
	} {
		m.gauge("ca_not_after_seconds", "When a CA's certificate expires, in seconds since 1970; 0 without one.",
			prometheus.Labels{"ca": name}, active(func(g *generation) float64 { return float64(ca(g).NotAfter.Unix()) }))
	}
}

// watchAudit shows the audit log, where there is one.
func (m *metrics) watchAudit(c *Coordinator) {
	if c.audit == nil {
		return
	}
	m.gauge("audit_seq", "The number of the audit log's newest line.", nil,
		func() float64 { return float64(c.audit.Status().Seq) })
	m.gauge("audit_signed_seq", "The newest line of the audit log that this process has signed; 0 before it has a seed.", nil,
		func() float64 { return float64(c.audit.Status().Signed) })
	m.counter("audit_failures_total", "Lines that the audit log could not take. What they were about was not done.", nil,
		func() float64 { return float64(c.audit.Status().Failures) })
	m.gauge("audit_writable", "Whether the audit log took its last line. Without it nothing is issued.", nil, func() float64 {
		if c.audit.Status().Err != nil {
			return 0
		}
		return 1
	})
}

func (m *metrics) request(route string, code api.Code) {
	if code == "" {
		code = "ok"
	}
	m.requests.WithLabelValues(route, string(code)).Inc()
}

// vendor is who publishes what it takes to judge a platform's evidence.
func vendor(p attestation.Platform) string {
	switch p {
	case attestation.SNP:
		return "amd"
	case attestation.TDX:
		return "intel"
	default:
		return "none"
	}
}
