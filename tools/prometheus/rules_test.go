package prometheus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"go.yaml.in/yaml/v3"
)

const (
	docs      = "../../docs/"
	rulesFile = docs + "prometheus/portcullis.rules.yaml"
	testsFile = docs + "prometheus/portcullis.rules.test.yaml"
)

var promql = parser.NewParser(parser.Options{})

func readRules(t *testing.T) []rulefmt.RuleGroup {
	t.Helper()
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	// What `promtool check rules` does.
	groups, errs := rulefmt.Parse(text, false, model.UTF8Validation, promql, nil)
	if len(errs) > 0 {
		t.Fatalf("%s: %v", rulesFile, errs)
	}
	return groups.Groups
}

func decode(t *testing.T, file string, into any) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// cases are the part of promtool's format that the file uses.
type cases struct {
	RuleFiles          []string       `yaml:"rule_files"`
	EvaluationInterval model.Duration `yaml:"evaluation_interval"`
	Tests              []struct {
		Name        string
		Interval    model.Duration
		InputSeries []struct{ Series, Values string } `yaml:"input_series"`
		Alerts      []struct {
			EvalTime  model.Duration `yaml:"eval_time"`
			Name      string         `yaml:"alertname"`
			ExpAlerts []struct {
				Labels      map[string]string `yaml:"exp_labels"`
				Annotations map[string]string `yaml:"exp_annotations"`
			} `yaml:"exp_alerts"`
		} `yaml:"alert_rule_test"`
	}
}

// What `promtool test rules` does.
func TestAlertsFireWhenTheyShould(t *testing.T) {
	groups := readRules(t)
	var c cases
	decode(t, testsFile, &c)
	fired, silent := map[string]bool{}, map[string]bool{}
	for _, tt := range c.Tests {
		t.Run(tt.Name, func(t *testing.T) {
			load := fmt.Sprintf("load %s\n", tt.Interval)
			for _, s := range tt.InputSeries {
				load += fmt.Sprintf("  %s %s\n", s.Series, s.Values)
			}
			storage := promqltest.LoadedStorage(t, load)
			defer storage.Close()
			query := rules.EngineQueryFunc(promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery), storage)
			for _, check := range tt.Alerts {
				want := []string{}
				for _, a := range check.ExpAlerts {
					want = append(want, show(a.Labels, a.Annotations))
				}
				got := []string{}
				for _, rule := range alerts(t, groups, check.Name) {
					for at := time.Unix(0, 0); !at.After(time.Unix(0, 0).Add(time.Duration(check.EvalTime))); at = at.Add(time.Duration(c.EvaluationInterval)) {
						if _, err := rule.Eval(context.Background(), 0, at, query, nil, 0); err != nil {
							t.Fatal(err)
						}
					}
					for _, a := range rule.ActiveAlerts() {
						if a.State == rules.StateFiring {
							l := a.Labels.Map()
							delete(l, "alertname")
							got = append(got, show(l, a.Annotations.Map()))
						}
					}
				}
				slices.Sort(want)
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("%s at %s:\ngot  %s\nwant %s", check.Name, check.EvalTime, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
				}
				fired[check.Name] = fired[check.Name] || len(got) > 0
				silent[check.Name] = silent[check.Name] || len(got) < len(tt.InputSeries)
			}
		})
	}
	for _, g := range groups {
		for _, r := range g.Rules {
			if !fired[r.Alert] || !silent[r.Alert] {
				t.Errorf("%s does not fire, or fires at everything, in %s", r.Alert, testsFile)
			}
		}
	}
}

// alerts makes the rules of a name.
func alerts(t *testing.T, groups []rulefmt.RuleGroup, name string) []*rules.AlertingRule {
	t.Helper()
	var out []*rules.AlertingRule
	for _, g := range groups {
		for _, r := range g.Rules {
			if r.Alert != name {
				continue
			}
			expr, err := promql.ParseExpr(r.Expr)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, rules.NewAlertingRule(r.Alert, expr, time.Duration(r.For), time.Duration(r.KeepFiringFor),
				labels.FromMap(r.Labels), labels.FromMap(r.Annotations), labels.EmptyLabels(), "", true, nil))
		}
	}
	if len(out) == 0 {
		t.Fatalf("there is no alert %s", name)
	}
	return out
}

func show(labels, annotations map[string]string) string {
	var b strings.Builder
	for _, m := range []map[string]string{labels, annotations} {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			fmt.Fprintf(&b, "%s=%q ", name, m[name])
		}
		b.WriteString("| ")
	}
	return b.String()
}

func TestEveryAlertIsDocumentedAndSaysWhatToDo(t *testing.T) {
	text, err := os.ReadFile(docs + "observability.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `(Portcullis[A-Za-z]+)` \\| ([a-z]+) \\| .")
	documented := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = m[2]
	}
	n := 0
	for _, g := range readRules(t) {
		for _, r := range g.Rules {
			n++
			if documented[r.Alert] != r.Labels["severity"] || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s: severity %q, documented as %q, annotations %v", r.Alert, r.Labels["severity"], documented[r.Alert], r.Annotations)
			}
		}
	}
	if n == 0 || n != len(documented) {
		t.Errorf("%d alerts, and %d documented", n, len(documented))
	}
}

// Grafana's own words in a query, which are no PromQL, stand for these.
var variables = strings.NewReplacer("$__rate_interval", "5m", "$namespace", "shop", "$pod", "web.*")

func TestDashboardsAskWhatPrometheusUnderstands(t *testing.T) {
	dashboards, err := filepath.Glob(docs + "grafana/*.json")
	if err != nil || len(dashboards) != 2 {
		t.Fatalf("dashboards %v, %v", dashboards, err)
	}
	for _, file := range dashboards {
		t.Run(filepath.Base(file), func(t *testing.T) { asksWhatPrometheusUnderstands(t, file) })
	}
}

func asksWhatPrometheusUnderstands(t *testing.T, dashboard string) {
	text, err := os.ReadFile(dashboard)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			ID          int
			Title, Type string
			Description string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	ids, cells, queries := map[int]bool{}, map[[2]int]string{}, 0
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q is there twice, or has no title", p.ID, p.Title)
		}
		ids[p.ID] = true
		if p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W < 1 || p.GridPos.H < 1 {
			t.Errorf("panel %q is outside the grid", p.Title)
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				cell := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := cells[cell]; other != "" {
					t.Fatalf("panels %q and %q are in the same place", p.Title, other)
				}
				cells[cell] = p.Title
			}
		}
		refs := map[string]bool{}
		for _, target := range p.Targets {
			queries++
			if refs[target.RefID] {
				t.Errorf("panel %q has two queries %s", p.Title, target.RefID)
			}
			refs[target.RefID] = true
			expr := variables.Replace(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("panel %q: %s has a variable that the dashboard has not", p.Title, target.Expr)
			}
			if _, err := promql.ParseExpr(expr); err != nil {
				t.Errorf("panel %q: %s: %v", p.Title, target.Expr, err)
			}
		}
	}
	if queries < 15 {
		t.Errorf("the dashboard asks %d questions", queries)
	}
}
