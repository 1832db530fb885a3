package coordinator_test

import (
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/coordinator"
)

var update = flag.Bool("update", false, "write the table of metrics in docs/observability.md anew")

// scrape reads /metrics as Prometheus does.
func (f *fixture) scrape(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(get(t, f.server.URL+api.PathMetrics)))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// sample is one value; of a histogram, how much it saw.
func sample(t *testing.T, families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	t.Helper()
	family := families["portcullis_"+name]
	for _, m := range family.GetMetric() {
		got := []string{}
		for _, l := range m.Label {
			got = append(got, l.GetName(), l.GetValue())
		}
		if !slices.Equal(got, labels) {
			continue
		}
		switch family.GetType() {
		case dto.MetricType_COUNTER:
			return m.Counter.GetValue()
		case dto.MetricType_HISTOGRAM:
			return float64(m.Histogram.GetSampleCount())
		default:
			return m.Gauge.GetValue()
		}
	}
	t.Errorf("there is no portcullis_%s%q", name, labels)
	return -1
}

func TestMetricsTellWhatHappened(t *testing.T) {
	cache, err := collateral.New(collateral.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	dir := t.TempDir()
	option, log := audited(t, filepath.Join(dir, "audit.log"))
	owners := seedshareOwners(t, 2)
	path := filepath.Join(dir, "coordinator.db")
	f := start(t, onStore(t, path), option, func(c *coordinator.Config) { c.Collateral = cache })
	check := func(f *fixture, wants map[string]float64) {
		t.Helper()
		families := f.scrape(t)
		for what, want := range wants {
			parts := strings.Fields(what)
			if got := sample(t, families, parts[0], parts[1:]...); got != want {
				t.Errorf("%s is %v, want %v", what, got, want)
			}
		}
	}
	check(f, map[string]float64{
		"state state no-manifest": 1, "state state active": 0, "generation": 0, "needs_recovery": 0,
		"ca_not_after_seconds ca root": 0, "audit_seq": 2, "audit_signed_seq": 0, "audit_writable": 1,
		"certificates_issued_total platform snp": 0, "recovery_shares_threshold": 0,
	})
	text := newManifest(t, sharedAmong(t, 2, owners...))
	f.mustSet(t, text)
	shares := f.shares(t, text)
	_, _, chain := f.certify(t, newPod(t, webPolicy))
	tampered := newPod(t, webPolicy)
	bad := tampered.request(t, f.freshNonce(t))
	bad.Evidence.Report[0x90] ^= 1 // MEASUREMENT: the signature is over it
	tampered.sign(t, bad)
	_, err = f.Certificate(t.Context(), *bad)
	rejected := wantCode(t, err, api.CodeEvidenceRejected)
	field := regexp.MustCompile(`evidence's (\S+) is`).FindStringSubmatch(rejected.Detail)[1]
	check(f, map[string]float64{
		"state state active": 1, "state state no-manifest": 0, "generation": 1,
		"certificates_issued_total platform simulated": 1, "certificate_issue_seconds": 1,
		"evidence_rejected_total field " + field: 1, "gate_wait_seconds gate evidence": 2, "gate_waiting gate evidence": 0,
		"gate_inside gate evidence": 0, "gate_wait_seconds gate manifest": 1, "gate_refused_total gate evidence": 0,
		"ca_not_after_seconds ca root":         float64(chain.RootCA.NotAfter.Unix()),
		"ca_not_after_seconds ca intermediate": float64(chain.Intermediate.NotAfter.Unix()),
		"ca_not_after_seconds ca mesh":         float64(chain.MeshCA.NotAfter.Unix()),
		"audit_signed_seq":                     4, "audit_failures_total": 0,
	})
	families := f.scrape(t)
	if n := len(families["portcullis_build_info"].GetMetric()); n != 1 {
		t.Errorf("%d builds", n)
	}
	t.Run("lint", func(t *testing.T) {
		problems, err := promlint.New(strings.NewReader(get(t, f.server.URL+api.PathMetrics))).Lint()
		if len(problems) > 0 || err != nil {
			t.Errorf("problems with the scrape: %v, %v", problems, err)
		}
	})
	t.Run("documented", func(t *testing.T) { metricsAreDocumented(t, families) })
	t.Run("used", func(t *testing.T) { usedMetricsExist(t, families) })

	log.Close()
	r := restart(t, path)
	v := r.mustVerifyRecovery(t, text)
	check(r, map[string]float64{"state state needs-recovery": 1, "needs_recovery": 1, "recovery_shares_collected": 0, "recovery_shares_threshold": 2})
	if _, err := r.Recover(t.Context(), *share(t, shares[0], owners[0], v)); err != nil {
		t.Fatal(err)
	}
	check(r, map[string]float64{"recovery_shares_collected": 1})
	if _, err := r.Recover(t.Context(), *share(t, shares[1], owners[1], v)); err != nil {
		t.Fatal(err)
	}
	check(r, map[string]float64{"state state active": 1, "recovery_shares_collected": 0, "recovery_shares_threshold": 0, "generation": 1})
	if r.scrape(t)["portcullis_audit_seq"] != nil {
		t.Error("a Coordinator without an audit log has metrics of one")
	}
}

// metricsAreDocumented compares docs/observability.md with a scrape, word for word.
func metricsAreDocumented(t *testing.T, families map[string]*dto.MetricFamily) {
	const (
		file  = "../docs/observability.md"
		begin = "<!-- Coordinator's metrics: go test -update -->\n"
		end   = "<!-- end of Coordinator's metrics -->\n"
	)
	var table strings.Builder
	table.WriteString("| metric | type | labels | |\n|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(families)) {
		if !strings.HasPrefix(name, "portcullis_") {
			continue // of Go and of the process
		}
		f := families[name]
		labels := []string{}
		for _, l := range f.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", strings.TrimPrefix(name, "portcullis_"),
			strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	got, after, found2 := strings.Cut(rest, end)
	if !found || !found2 {
		t.Fatalf("%s has no place for the table of metrics", file)
	}
	if *update {
		if err := os.WriteFile(file, []byte(before+begin+table.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != table.String() {
		t.Errorf("%s does not say what a scrape says (go test -update, then read the difference), want:\n%s", file, &table)
	}
}

// usedMetricsExist looks for every metric that the dashboard and the rules name, with its labels.
func usedMetricsExist(t *testing.T, families map[string]*dto.MetricFamily) {
	name := regexp.MustCompile(`portcullis_[a-z0-9_]+`)
	for _, file := range []string{"../docs/grafana/portcullis-coordinator.json", "../docs/prometheus/portcullis.rules.yaml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		used := 0
		for _, m := range name.FindAllString(string(text), -1) {
			if strings.HasPrefix(m, "portcullis_meshproxy_") {
				continue
			}
			used++
			base := m
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				base = strings.TrimSuffix(base, suffix)
			}
			if families[m] == nil && families[base] == nil {
				t.Errorf("%s uses %s, which no scrape has", file, m)
			}
		}
		if used < 5 {
			t.Errorf("%s uses %d metrics of the Coordinator", file, used)
		}
	}
}

func TestAFullGateCountsWhomItTurnedAway(t *testing.T) {
	tee := newSlow(world(t).Machine(measurement, coordPolicy))
	f := start(t, func(c *coordinator.Config) { c.Issuer = tee })
	const requests = 40
	results := make(chan error, requests)
	for range requests {
		go func() {
			_, err := f.Attest(t.Context(), make([]byte, api.NonceSize))
			results <- err
		}()
	}
	// 2 are let in, 32 wait, 6 are turned away.
	for range requests - 34 {
		select {
		case err := <-results:
			wantCode(t, err, api.CodeBusy)
		case <-time.After(30 * time.Second):
			t.Fatal("nobody was turned away")
		}
	}
	families := f.scrape(t)
	for what, want := range map[string]float64{"gate_inside": 2, "gate_waiting": 32, "gate_refused_total": 6} {
		if got := sample(t, families, what, "gate", "own-evidence"); got != want {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	close(tee.answer)
	for range 34 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if got := sample(t, f.scrape(t), "gate_wait_seconds", "gate", "own-evidence"); got != 34 {
		t.Errorf("%v were let in", got)
	}
}
