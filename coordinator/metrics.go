package coordinator

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"portcullis.dev/portcullis/api"
)

// metrics are what /metrics shows. Labels have few values, none of a client's choosing.
type metrics struct {
	registry     *prometheus.Registry
	requests     *prometheus.CounterVec
	issued       prometheus.Counter
	rejectedWhat *prometheus.CounterVec
	peers        *prometheus.CounterVec
}

func newMetrics(c *Coordinator) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portcullis_requests_total",
			Help: "Requests by route and outcome: ok, or the code of the problem.",
		}, []string{"route", "outcome"}),
		issued: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "portcullis_certificates_issued_total",
			Help: "Mesh certificates issued.",
		}),
		rejectedWhat: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portcullis_evidence_rejected_total",
			Help: "Rejected evidence of pods, by the field of the report that was not acceptable.",
		}, []string{"field"}),
		peers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portcullis_peers_asked_total",
			Help: "Other replicas that were asked for their state, by outcome: ok, or why nothing was taken.",
		}, []string{"outcome"}),
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	for _, s := range states {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "portcullis_replica_state", Help: "The replica's state: 1 for the one that it is in.",
			ConstLabels: prometheus.Labels{"state": string(s)},
		}, func() float64 {
			if c.state() == s {
				return 1
			}
			return 0
		}))
	}
	m.registry.MustRegister(m.requests, m.issued, m.rejectedWhat, m.peers,
		gauge("portcullis_evidence_waiting", "Certificate requests that wait for a worker.",
			func() float64 { return float64(c.judging.waiting.Load()) }),
		gauge("portcullis_generation", "Manifests set so far; 0 before the first.", func() float64 {
			if g := c.active.Load(); g != nil {
				return float64(len(g.history))
			}
			return 0
		}),
		gauge("portcullis_mesh_ca_expiry_seconds", "When the mesh CA expires, in seconds since 1970; 0 without one.",
			func() float64 {
				if g := c.active.Load(); g != nil {
					return float64(g.mesh.Certificate.NotAfter.Unix())
				}
				return 0
			}),
		gauge("portcullis_overlap_until_seconds", "Until when pods of the manifest before and of this one accept each other, in seconds "+
			"since 1970; 0 where they do not.", func() float64 {
			if g := c.active.Load(); g != nil && g.mesh.Before != nil {
				return float64(g.mesh.Before.Until().Unix())
			}
			return 0
		}),
		gauge("portcullis_needs_recovery", "1 while the seed of the store's history is not in memory.", func() float64 {
			if c.recovering.Load() != nil {
				return 1
			}
			return 0
		}),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) request(route string, code api.Code) {
	if code == "" {
		code = "ok"
	}
	m.requests.WithLabelValues(route, string(code)).Inc()
}

func (m *metrics) rejected(field string) { m.rejectedWhat.WithLabelValues(field).Inc() }
