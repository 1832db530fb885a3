package collateral

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what a cache tells. The label vendor is amd or intel.
type metrics struct {
	c       *Cache
	fetches *prometheus.CounterVec
	hits    prometheus.Counter
	stale   prometheus.Counter
}

const prefix = "portcullis_collateral_"

var (
	entriesDesc = prometheus.NewDesc(prefix+"entries", "Documents in memory.", nil, nil)
	bytesDesc   = prometheus.NewDesc(prefix+"bytes", "What the documents in memory take.", nil, nil)
	upDesc      = prometheus.NewDesc(prefix+"vendor_up",
		"Whether a vendor answered when it was last asked; 1 before the first time.", []string{"vendor"}, nil)
	answeredDesc = prometheus.NewDesc(prefix+"last_answer_seconds",
		"When a vendor last answered, in seconds since 1970; 0 if never.", []string{"vendor"}, nil)
)

func newMetrics(c *Cache) *metrics {
	m := &metrics{
		c: c,
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "fetches_total",
			Help: "Requests to a vendor, by result: ok; refused, this document alone; down, the vendor did not answer; abandoned, " +
				"nobody waited any more.",
		}, []string{"vendor", "result"}),
		hits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "hits_total", Help: "Documents that were served from memory, fresh.",
		}),
		stale: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "stale_total",
			Help: "Documents that were served although a newer version should be had, while it is fetched or cannot be.",
		}),
	}
	for name := range c.vendors {
		for _, result := range results {
			m.fetches.WithLabelValues(name, result)
		}
	}
	return m
}

// Describe implements prometheus.Collector.
func (c *Cache) Describe(out chan<- *prometheus.Desc) {
	c.metrics.fetches.Describe(out)
	c.metrics.hits.Describe(out)
	c.metrics.stale.Describe(out)
	for _, d := range []*prometheus.Desc{entriesDesc, bytesDesc, upDesc, answeredDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Cache) Collect(out chan<- prometheus.Metric) {
	c.metrics.fetches.Collect(out)
	c.metrics.hits.Collect(out)
	c.metrics.stale.Collect(out)
	c.mu.Lock()
	defer c.mu.Unlock()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(entriesDesc, float64(len(c.entries)))
	gauge(bytesDesc, float64(c.bytes))
	for name, v := range c.vendors {
		up, answered := 1.0, 0.0
		if v.down() {
			up = 0
		}
		if !v.answered.IsZero() {
			answered = float64(v.answered.Unix())
		}
		gauge(upDesc, up, name)
		gauge(answeredDesc, answered, name)
	}
}
