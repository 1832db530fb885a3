package envoy_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"portcullis.dev/portcullis/meshproxy/envoy"
)

func TestWhatTheSupervisorAsksForIsKept(t *testing.T) {
	b := bootstrap(t, "CLOSED", "", "", "/run")
	kept := fmt.Sprint(b.StatsConfig.StatsMatcher.GetInclusionList())
	for _, name := range []string{envoy.WorkersStarted, envoy.CxActive} {
		if !strings.Contains(kept, name) {
			t.Errorf("%s is not kept", name)
		}
	}
	if b.StatsConfig.StatsMatcher.GetRejectAll() || b.StatsConfig.StatsMatcher.GetExclusionList() != nil {
		t.Error("more than a list of what is kept")
	}
}

// The names of entries may have dots, and look like the names of statistics.
func TestStatisticsBecomeSeries(t *testing.T) {
	const egress = "a.worker_0#127.0.0.1:9000#10.0.0.9:80#any##a#127.0.0.1:9001#10.0.0.9:80#any"
	made, err := envoy.Describe(bootstrap(t, "db#5432#mtls#api", egress, "", "/run"))
	if err != nil {
		t.Fatal(err)
	}
	stats := envoy.NewStats(made)
	series, err := stats.Read(strings.NewReader(`listener.egress-a.downstream_cx_total: 1
listener.egress-a.worker_0.downstream_cx_total: 2
listener.ingress.worker_0.downstream_cx_total: 100
listener.admin.downstream_cx_total: 100
listener.ingress.downstream_cx_overflow: 3
listener.ingress.downstream_global_cx_overflow: 4
listener.ingress.ssl.fail_verify_san: 5
cluster.egress-a.ssl.fail_verify_san: 6
cluster.unknown.ssl.fail_verify_san: 100
sds.mtls-5432.update_success: 7
sds.mtls-5432.version_text: "x: 1"
workers.watchdog_miss: 8
server.memory_allocated: -1
cluster.ingress.upstream_cx_connect_ms: P0(0,0) P25(0,0)
listener.ingress.ssl.certificate.identity.expiration_unix_time_seconds: 1795584860
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range series {
		got = append(got, fmt.Sprintf("%s{%s=%s,%s=%s} %v", s.Metric.Name,
			cmp.Or(s.Metric.Of, "-"), s.Labels.Of, cmp.Or(s.Metric.By, "-"), s.Labels.By, s.Value))
	}
	slices.Sort(got)
	want := []string{
		"connections_refused_total{listener=ingress,reason=identity} 5",
		"connections_refused_total{listener=ingress,reason=limit} 7",
		"connections_total{listener=egress-a,-=} 1",
		"connections_total{listener=egress-a.worker_0,-=} 2",
		"envoy_certificate_not_after_seconds{context=ingress,-=} 1.79558486e+09",
		"envoy_secret_updates_total{secret=mtls-5432,outcome=taken} 7",
		"envoy_watchdog_misses_total{-=,thread=workers} 8",
		"upstream_refused_total{cluster=egress-a,reason=identity} 6",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
