package report_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/cli/report"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

var update = flag.Bool("update", false, "write the golden files anew")

func page(t *testing.T, r *report.Report) []byte {
	t.Helper()
	p, err := r.HTML()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// elements are the tags of a page with the names of their attributes, and how often each is there; words is its text.
func elements(t *testing.T, page []byte) (tags map[string]int, words string) {
	t.Helper()
	root, err := html.Parse(bytes.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	tags = make(map[string]int)
	var text strings.Builder
	blocks := []string{"p", "li", "tr", "h1", "h2", "h3", "dt", "dd", "text", "caption", "table", "title", "desc", "td", "th"}
	var walk func(n *html.Node)
	walk = func(n *html.Node) {
		switch n.Type {
		case html.TextNode:
			if n.Parent.Data != "style" {
				text.WriteString(n.Data)
			}
		case html.ElementNode:
			tag := n.Data
			for _, a := range n.Attr {
				tag += " " + a.Key
			}
			tags[tag]++
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c)
		}
		if slices.Contains(blocks, n.Data) {
			text.WriteString("\n")
		}
	}
	walk(root)
	var lines []string
	for line := range strings.Lines(text.String()) {
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			lines = append(lines, line)
		}
	}
	return tags, strings.Join(lines, "\n") + "\n"
}

var (
	digits = regexp.MustCompile(`\b[0-9a-f]{12,}\b`)
	dates  = regexp.MustCompile(`\d+ [A-Z][a-z]+ 20\d\d(, \d\d:\d\d:\d\d UTC)?`)
)

// What the page says, word for word, but for what differs from run to run.
func TestPagesSay(t *testing.T) {
	refusal, err := refused().HTML()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string][]byte{
		"shop": page(t, shopScene(true).report(t)), "simulated": page(t, scene{yaml: shop()}.report(t)), "refusal": refusal,
	} {
		_, words := elements(t, p)
		words = dates.ReplaceAllString(digits.ReplaceAllString(words, "HEX"), "DATE")
		file := "testdata/" + name + ".txt"
		if *update {
			if err := os.WriteFile(file, []byte(words), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, wanted := strings.Split(words, "\n"), strings.Split(string(want), "\n")
		for i := range max(len(got), len(wanted)) {
			if i >= len(got) || i >= len(wanted) || got[i] != wanted[i] {
				t.Errorf("%s differs from line %d on (go test -update, then read the difference):\n%s", file, i+1,
					strings.Join(got[min(i, len(got)):min(i+4, len(got))], "\n"))
				break
			}
		}
	}
}

const override = "\u202e"

// nasty are names that want to be more than text.
func nasty() []string {
	return []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onload='alert(1)`, `</style></svg></title><h1>Verified</h1>`,
		"web" + override + "gnillib", "pay\u200bpal\u2066x\u00ad", strings.Repeat("long ", 2000), "a\x00b\x1b[31m\r\n<!-- -->", `javascript:alert(1)`,
		"{{.Style}} ]]> &lt;b&gt; &#x202e; \xff\xfe", "\u05d0\u05d1\u05d2",
	}
}

func hostile(t *testing.T) *report.Report {
	t.Helper()
	in, _ := scene{yaml: shop()}.verify(t)
	names := nasty()
	in.Coordinator, in.MeshCAFile, in.RootCAFile, in.HistoryFolder = names[1], names[3], names[4], names[6]
	for i := range in.Pods {
		p := &in.Pods[i]
		n := func(k int) string { return names[(i*3+k)%len(names)] }
		p.File, p.Name, p.Kind, p.Namespace = n(0), n(1), n(2), n(3)
		p.Config.Name, p.Config.Kind, p.Config.Namespace = n(4), n(5), n(6)
		if p.Mesh != nil {
			for k := range p.Mesh.Ingress {
				p.Mesh.Ingress[k].Name = n(7 + k)
			}
			for k := range p.Mesh.Egress {
				p.Mesh.Egress[k].Name, p.Mesh.Egress[k].Remote.Name = n(k), n(k+2)
			}
		}
	}
	for _, name := range names {
		in.Pods = append(in.Pods, generate.Measured{File: name, Kind: name, Name: name, Namespace: name, Err: errors.New(name)})
	}
	r, err := report.New(in)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Names are text: they add no element and no attribute, hide nothing, turn nothing round, and do not bury the rest.
func TestHostileNamesAreText(t *testing.T) {
	in, _ := scene{yaml: shop()}.verify(t)
	for range nasty() {
		in.Pods = append(in.Pods, generate.Measured{File: "f.yaml", Kind: "Pod", Name: "n", Namespace: "d"})
	}
	honest, err := report.New(in)
	if err != nil {
		t.Fatal(err)
	}
	for i := range in.Pods { // as the hostile ones: the YAML and the initdata call it something else
		in.Pods[i].Name = "other"
	}
	other, err := report.New(in)
	if err != nil {
		t.Fatal(err)
	}
	known, _ := elements(t, page(t, honest))
	more, _ := elements(t, page(t, other))
	maps.Copy(known, more)
	p := page(t, hostile(t))
	tags, words := elements(t, p)
	for tag := range tags {
		if known[tag] == 0 {
			t.Errorf("a name made an element: %s", tag)
		}
	}
	if tags["script"] > 0 || tags["style"] != 1 || tags["h1 id"] != 1 {
		t.Errorf("got %v", tags)
	}
	for _, r := range "\u202e\u200b\u2066\u00ad\u0000\u001b\r" {
		if bytes.ContainsRune(p, r) {
			t.Errorf("the page has %U as it is", r)
		}
	}
	for _, want := range []string{"web[U+202E]gnillib", "pay[U+200B]pal[U+2066]x[U+00AD]", "<script>alert(1)</script>", "(10000 characters)", "\u05d0\u05d1\u05d2"} {
		if !strings.Contains(words, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	if strings.Contains(words, "<h1>Verified</h1>") != true || len(p) > len(page(t, other))+64<<10 {
		t.Errorf("%d bytes, an honest page has %d", len(p), len(page(t, other)))
	}

	no := refused()
	no.Coordinator, no.Manifest, no.Err = nasty()[0], nasty()[4], &api.VerifyError{Check: nasty()[1], Err: errors.New(nasty()[6] + override)}
	refusal, err := no.HTML()
	if err != nil {
		t.Fatal(err)
	}
	if tags, _ := elements(t, refusal); tags["script"]+tags["img src onerror"] > 0 || bytes.ContainsRune(refusal, '\u202e') {
		t.Errorf("got %v", tags)
	}
}

// Without a verification that passed there is no report; and each tick in one is a check that was made.
func TestNoReportWithoutChecksThatPassed(t *testing.T) {
	in, _ := scene{yaml: shop()}.verify(t)
	for name, spoil := range map[string]func(*report.Input, *api.Verified){
		"nothing":                     func(in *report.Input, _ *api.Verified) { in.Verified = nil },
		"no checks":                   func(_ *report.Input, v *api.Verified) { v.Checks = nil },
		"a check that failed":         func(_ *report.Input, v *api.Verified) { v.Checks[3].OK = false },
		"the last check failed":       func(_ *report.Input, v *api.Verified) { v.Checks[len(v.Checks)-1].OK = false },
		"which manifest is not known": func(_ *report.Input, v *api.Verified) { v.Checks = v.Checks[:len(v.Checks)-1] },
		"no manifest":                 func(_ *report.Input, v *api.Verified) { v.History = nil },
		"no mesh CA":                  func(_ *report.Input, v *api.Verified) { v.MeshCA = nil },
		"no root CA":                  func(_ *report.Input, v *api.Verified) { v.RootCA = nil },
		"no claims":                   func(_ *report.Input, v *api.Verified) { v.Claims = attestation.Claims{} },
	} {
		spoilt, v := in, *in.Verified
		v.Checks = slices.Clone(v.Checks)
		spoilt.Verified = &v
		spoil(&spoilt, &v)
		if r, err := report.New(spoilt); err == nil || r != nil {
			t.Errorf("%s: there is a report", name)
		}
	}
	if _, err := (report.Refusal{}).HTML(); err == nil {
		t.Error("there is a refusal of nothing")
	}
	r, err := report.New(in)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(page(t, r)), `class="ok"`); got != len(in.Verified.Checks) {
		t.Errorf("%d ticks for %d checks", got, len(in.Verified.Checks))
	}
	last := len(in.Verified.Checks) - 1
	in.Verified.Checks = append(in.Verified.Checks[:2:2], in.Verified.Checks[last])
	if r, err = report.New(in); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(page(t, r)), `class="ok"`); got != 3 {
		t.Errorf("%d ticks for 3 checks", got)
	}
}

// The two pages cannot be taken for each other.
func TestARefusalIsNoReport(t *testing.T) {
	p, err := refused().HTML()
	if err != nil {
		t.Fatal(err)
	}
	_, words := elements(t, p)
	for _, never := range []string{"Verified", "passed", "genuine and", "pin", "mesh-ca.pem", "BEGIN CERTIFICATE", "What it means"} {
		if strings.Contains(words, never) {
			t.Errorf("a refusal says %q", never)
		}
	}
	if !strings.HasPrefix(words, "REFUSED") || !strings.Contains(words, "NO: the Coordinator was refused") {
		t.Errorf("it begins with %.100s", words)
	}
	_, words = elements(t, page(t, scene{yaml: shop(), hardware: true}.report(t)))
	if strings.Contains(words, "NO:") || strings.Contains(words, "REFUSED") || strings.Contains(words, "FAILED") {
		t.Error("a report says no")
	}
}

// Simulated evidence is never called verified, hardware's is.
func TestSimulatedIsShouted(t *testing.T) {
	r := scene{yaml: shop()}.report(t)
	_, words := elements(t, page(t, r))
	if !strings.Contains(words, "No processor vouches for anything on this page") || strings.Contains(words, "\nVerified\n") ||
		!strings.HasPrefix(words, "Simulated hardware only") || r.Findings[0].Level != report.Danger {
		t.Errorf("got %.300s", words)
	}
	_, words = elements(t, page(t, scene{yaml: shop(), hardware: true}.report(t)))
	if !strings.Contains(words, "\nVerified\n") || strings.Contains(strings.ToLower(words), "simulated") {
		t.Errorf("got %.300s", words)
	}
	in, _ := scene{yaml: shop(), hardware: true}.verify(t)
	in.Verified.Claims.Platform = "unheard-of"
	if r, err := report.New(in); err != nil || !r.Simulated {
		t.Errorf("an unknown platform passes for hardware: %v", err)
	}
}

// Only pods of the manifest are in the mesh, and they are what was measured.
func TestMeshIsWhatWasMeasured(t *testing.T) {
	in, result := scene{yaml: shop()}.verify(t)
	lie := strings.NewReplacer("name: ledger\n", "name: vault\n", "db#5432#mtls#billing-svc", "db#5432#true").Replace(string(result.Files[0].Text))
	other := scene{yaml: coordinatorYAML + podYAML("web", notes{"servicemesh-ingress": "x#1#true"})}.inject(t)
	var err error
	in.Pods, err = generate.ReadMeasured([]generate.File{
		{Name: "lie.yaml", Text: []byte(lie)},
		{Name: "again.yaml", Text: result.Files[0].Text},
		{Name: "other.yaml", Text: other.Files[0].Text},
		{Name: "plain.yaml", Text: []byte(shop())},
	}, "default")
	if err != nil {
		t.Fatal(err)
	}
	r, err := report.New(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Mesh.Pods) != len(result.Pods) || len(r.Mesh.Unseen) != 0 {
		t.Errorf("%d pods, want %d; unseen %v", len(r.Mesh.Pods), len(result.Pods), r.Mesh.Unseen)
	}
	var strangers []string
	for _, s := range r.Mesh.Strangers {
		strangers = append(strangers, s.Place+" "+s.Name+" "+s.Why[:15])
	}
	if got := strings.Join(strangers, "\n"); strings.Count(got, "plain.yaml") != 8 || strings.Count(got, "other.yaml") != 1 ||
		!strings.Contains(got, "Pod default/web its policy hash") || strings.Contains(got, "lie.yaml") || strings.Contains(got, "again.yaml") {
		t.Errorf("strangers:\n%s", got)
	}
	i := slices.IndexFunc(r.Mesh.Pods, func(p report.Pod) bool { return p.Name == "ledger" })
	if i < 0 {
		t.Fatal("the measured name is not shown")
	}
	ledger := r.Mesh.Pods[i]
	if ledger.Also != "Pod default/vault" || len(ledger.Doors) != 1 || !slices.Equal(ledger.Doors[0].From, []string{"billing-svc"}) || ledger.Doors[0].Outside {
		t.Errorf("got %+v", ledger)
	}
	_, words := elements(t, page(t, r))
	if !strings.Contains(words, "Not part of this mesh") || !strings.Contains(words, "plain.yaml") {
		t.Error("the strangers are not told")
	}
	for _, p := range in.Pods[:3] { // what the manifest admits and nobody showed
		delete(in.Verified.Latest().Policies, p.Hash)
	}
	in.Pods = in.Pods[:2]
	if r, err = report.New(in); err != nil || len(r.Mesh.Pods) != 0 || len(r.Mesh.Strangers) != 2 || len(r.Mesh.Unseen) != len(result.Pods)-3 {
		t.Errorf("got %+v, %v", r.Mesh, err)
	}
}

func TestCallsAreResolvedByNames(t *testing.T) {
	r := scene{yaml: shop()}.report(t)
	byName := map[string]report.Pod{}
	for _, p := range r.Mesh.Pods {
		byName[p.Name] = p
	}
	calls := func(name string) (all []string) {
		for _, c := range byName[name].Calls {
			to := []string{}
			for _, i := range c.To {
				to = append(to, r.Mesh.Pods[i].Name)
			}
			all = append(all, fmt.Sprintf("%s %v %s", c.Remote, to, c.Outcome))
		}
		return all
	}
	for name, want := range map[string][]string{
		"web":     {"billing-svc:8080 [billing] ", "cart-svc:8080 [cart] ", "search-svc:9200 [search] "},
		"billing": {"ledger-svc:5432 [ledger] ", "mail.example.com:25 [] No pod of this manifest has that name: its connections fail."},
		"cart":    {"ledger-svc:5432 [ledger] Where the Service keeps the port's number, it is refused: ledger does not let the caller in on port 5432."},
		"search":  {"10.0.0.7:9300 [] Any pod of the mesh may answer: the network decides which."},
		"catalog": nil, "audit": nil,
	} {
		if got := calls(name); !slices.Equal(got, want) {
			t.Errorf("%s calls %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]report.Level{"catalog": report.Danger, "web": report.Plain, "audit": report.Plain} {
		if byName[name].Level != want {
			t.Errorf("%s is %q, want %q", name, byName[name].Level, want)
		}
	}
	for name, want := range map[string]string{
		"web": "8080/tcp caution true, 7890/tcp danger true", "search": "7300/udp danger true", "billing": "8080/tcp  false", "cart": "9901/tcp  false", "catalog": "",
	} {
		var doors []string
		for _, d := range byName[name].Doors {
			doors = append(doors, fmt.Sprintf("%s %s %v", d.Port, d.Level, d.Outside))
		}
		if got := strings.Join(doors, ", "); got != want {
			t.Errorf("%s has the doors %q, want %q", name, got, want)
		}
	}
}

// Every size of mesh is drawn without boxes upon each other, inside the frame, and always alike; too large a one is not.
func TestDrawingsOfEverySize(t *testing.T) {
	for n := 1; n <= report.MaxDrawn; n += 1 + n/2 {
		r := scene{yaml: large(n)}.report(t)
		d := r.Mesh.Draw()
		if d == nil || !reflect.DeepEqual(d, r.Mesh.Draw()) {
			t.Fatalf("%d pods: not drawn, or not alike", n)
		}
		pods := 0
		for i, a := range d.Boxes {
			if a.Class != "outside" {
				pods++
			}
			if a.X < 0 || a.Y < 0 || a.X+a.W > d.Width || a.Y+a.H > d.Height {
				t.Errorf("%d pods: %q sticks out", n, a.Name)
			}
			for _, b := range d.Boxes[i+1:] {
				if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
					t.Errorf("%d pods: %q and %q lie upon each other", n, a.Name, b.Name)
				}
			}
		}
		if pods != n {
			t.Errorf("%d pods: %d boxes", n, pods)
		}
	}
	if (scene{yaml: large(report.MaxDrawn + 1)}).report(t).Mesh.Draw() != nil || (&report.Mesh{}).Draw() != nil {
		t.Error("drawn, what is not to be")
	}
	circle := scene{yaml: coordinatorYAML +
		podYAML("a", notes{"servicemesh-egress": "b#127.0.0.2:1#b-svc:1"}) + podYAML("b", notes{"servicemesh-egress": "c#127.0.0.2:1#c-svc:1"}) +
		podYAML("c", notes{"servicemesh-egress": "a#127.0.0.2:1#a-svc:1##c#127.0.0.3:1#c-svc:1"})}
	if d := circle.report(t).Mesh.Draw(); len(d.Lines) != 3 {
		t.Errorf("a circle has %d lines", len(d.Lines))
	}
}

func TestChangesInWords(t *testing.T) {
	none := func(*manifest.Manifest) {}
	named := func(m *manifest.Manifest, name string) attestation.PolicyHash {
		for hash, p := range m.Policies {
			if shortestName(p) == name {
				return hash
			}
		}
		t.Fatalf("no pod %s", name)
		return attestation.PolicyHash{}
	}
	for name, test := range map[string]struct {
		before, after func(*manifest.Manifest)
		want          string
		level         report.Level
	}{
		"a pod goes":  {none, func(m *manifest.Manifest) { delete(m.Policies, named(m, "audit")) }, "The pod audit went", report.Plain},
		"a pod comes": {func(m *manifest.Manifest) { delete(m.Policies, named(m, "audit")) }, none, "The pod audit came", report.Plain},
		"a pod changes": {func(m *manifest.Manifest) {
			hash := named(m, "audit")
			m.Policies[attestation.PolicyHash{9}] = m.Policies[hash]
			delete(m.Policies, hash)
		}, none, "The pod audit changed", report.Plain},
		"a name": {none, func(m *manifest.Manifest) {
			p := m.Policies[named(m, "audit")]
			p.SANs = p.SANs[:1]
			m.Policies[named(m, "audit")] = p
		}, "is called audit-svc, before audit-svc, audit-svc.default", report.Plain},
		"a secret": {none, func(m *manifest.Manifest) {
			p := m.Policies[named(m, "audit")]
			p.WorkloadSecretID = "shop/cart"
			m.Policies[named(m, "audit")] = p
		}, "gets the workload secret shop/cart, before none", report.Caution},
		"a coordinator": {none, func(m *manifest.Manifest) {
			m.Policies[attestation.PolicyHash{9}] = manifest.Policy{Role: manifest.RoleCoordinator}
		}, "It may be the Coordinator", report.Caution},
		"a role": {none, func(m *manifest.Manifest) {
			m.Policies[named(m, "audit")] = manifest.Policy{Role: manifest.RoleCoordinator, SANs: m.Policies[named(m, "audit")].SANs}
		}, "has the role coordinator", report.Caution},
		"a machine": {none, func(m *manifest.Manifest) {
			v := m.ReferenceValues.SNP[0]
			v.Measurement = strings.Repeat("ab", 48)
			m.ReferenceValues.SNP = append(m.ReferenceValues.SNP, v)
		}, "Another SEV-SNP machine is accepted: measurement abababababab…", report.Plain},
		"an owner":       {func(m *manifest.Manifest) { m.WorkloadOwnerKeys = m.WorkloadOwnerKeys[:2] }, none, "Another workload owner", report.Note},
		"a lost owner":   {none, func(m *manifest.Manifest) { m.WorkloadOwnerKeys = m.WorkloadOwnerKeys[:2] }, "No longer a workload owner", report.Note},
		"a threshold":    {none, func(m *manifest.Manifest) { m.WorkloadOwnerThreshold = 1 }, "It takes 1 of 3 owners to replace the manifest, before 2 of 3", report.Caution},
		"a validity":     {none, func(m *manifest.Manifest) { m.CertificateValidity, _ = manifest.NewValidity(time.Hour) }, "live 1 hour, before 30 days", report.Plain},
		"overlap":        {none, func(m *manifest.Manifest) { overlap(t, m) }, "accept those of the manifest after it for 1 day", report.Caution},
		"no overlap":     {func(m *manifest.Manifest) { overlap(t, m) }, none, "accept none of the manifest after it, before for 1 day", report.Plain},
		"wildcards":      {none, func(m *manifest.Manifest) { m.AllowWildcardSANs = true }, "are allowed now", report.Caution},
		"nothing at all": {none, none, "Nothing changed", report.Plain},
	} {
		r := scene{yaml: shop(), hardware: true, before: []func(*manifest.Manifest){test.before}, alter: test.after}.report(t)
		if len(r.History) != 2 || !r.History[1].Active || r.History[0].Active || len(r.History[1].Signers) != 2 {
			t.Errorf("%s: got %+v", name, r.History)
		}
		if !slices.ContainsFunc(r.History[1].Changes, func(c report.Change) bool {
			return strings.Contains(c.Text, test.want) && c.Level == test.level
		}) {
			t.Errorf("%s: got %+v, want %q", name, r.History[1].Changes, test.want)
		}
	}
}

func overlap(t *testing.T, m *manifest.Manifest) {
	t.Helper()
	m.Successors = new(manifest.Successors)
	if err := json.Unmarshal([]byte(`{"MaxOverlap": "24h"}`), m.Successors); err != nil {
		t.Fatal(err)
	}
}

// A mesh CA that may certify the next one is not said to be this manifest's alone.
func TestWhatAPinOfTheMeshCAMeans(t *testing.T) {
	const alone, both = "this manifest alone", "The mesh CA: this manifest, and for "
	_, words := elements(t, page(t, scene{yaml: shop(), hardware: true}.report(t)))
	if !strings.Contains(words, alone) || strings.Contains(words, both) {
		t.Error("without successors it is not said to be so")
	}
	r := scene{yaml: shop(), hardware: true, alter: func(m *manifest.Manifest) { overlap(t, m) }}.report(t)
	_, words = elements(t, page(t, r))
	if strings.Contains(words, alone) || !strings.Contains(words, both) || r.Successors == "" || r.Certificates[0].PathLength != 1 {
		t.Errorf("with successors it is not said to be so: %q", r.Successors)
	}
}

// Every field of a reference value is explained, and what weakens it is said.
func TestReferenceValuesAreExplained(t *testing.T) {
	r := scene{yaml: shop(), hardware: true}.report(t)
	if len(r.ReferenceValues) != 1 || !r.ReferenceValues[0].Used || r.ReferenceValues[0].Path != "ReferenceValues.SNP[0]" {
		t.Errorf("got %+v", r.ReferenceValues)
	}
	zero := 0
	weak := &manifest.Manifest{ReferenceValues: manifest.ReferenceValues{
		SNP:       []snp.ReferenceValue{{SigningKey: "VLEK", MinimumTCB: snp.TCB{BootLoader: &zero, TEE: &zero, SNP: &zero, Microcode: &zero}, AllowSMT: new(true), AllowedChipIDs: []string{"any"}}},
		TDX:       []tdx.ReferenceValue{{RTMR0: "00", RTMR1: "00", RTMR2: "00", RTMR3: "any", MinimumTCB: tdx.TCB{TEETCBSVN: strings.Repeat("0", 32)}, AcceptedTCBStatuses: []string{"UpToDate", "OutOfDate"}}},
		Simulated: []simulated.ReferenceValue{{RootCA: "x"}},
	}}
	levels := map[string]report.Level{}
	for _, v := range report.Explain(weak.ReferenceValues) {
		for _, f := range v.Fields {
			if f.Means == "" || strings.Contains(f.Means, "does not know") {
				t.Errorf("%s.%s is not explained", v.Path, f.Name)
			}
			if (f.Level != "") != (f.Allows != "") {
				t.Errorf("%s.%s: a level and no words, or the other way round", v.Path, f.Name)
			}
			levels[string(v.Platform)+"."+f.Name] = f.Level
		}
	}
	for field, want := range map[string]report.Level{
		"snp.SigningKey": report.Note, "snp.MinimumTCB": report.Caution, "snp.AllowSMT": report.Note, "snp.AllowedChipIDs": report.Note,
		"snp.Measurement": report.Plain, "tdx.RTMR0": report.Caution, "tdx.RTMR1": report.Caution, "tdx.RTMR2": report.Caution, "tdx.RTMR3": report.Note,
		"tdx.MinimumTCB": report.Note, "tdx.AcceptedTCBStatuses": report.Caution, "simulated.RootCA": report.Danger,
	} {
		if levels[field] != want {
			t.Errorf("%s is %q, want %q", field, levels[field], want)
		}
	}
}

// A name for many names is told.
func TestFindings(t *testing.T) {
	r := scene{yaml: shop(), hardware: true, alter: func(m *manifest.Manifest) {
		san, err := pki.ParseSAN("*.shop.svc")
		if err != nil {
			t.Fatal(err)
		}
		m.AllowWildcardSANs = true
		m.Policies[attestation.PolicyHash{1}] = manifest.Policy{SANs: []pki.SAN{san}}
	}}.report(t)
	var all []string
	for _, f := range r.Findings {
		all = append(all, string(f.Level)+" "+f.Text)
	}
	got := strings.Join(all, "\n")
	for _, want := range []string{"caution The pod of policy 010000000000… has the name *.shop.svc", "note The manifest admits 1 pod that the YAML does not show", "note When the Coordinator restarts"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if !slices.IsSortedFunc(all, func(a, b string) int { return rank(a) - rank(b) }) {
		t.Errorf("not the worst first:\n%s", got)
	}
}

func rank(finding string) int {
	word, _, _ := strings.Cut(finding, " ")
	return slices.Index([]string{"danger", "caution", "note"}, word)
}

// The same by machine, with what scripts already read.
func TestJSON(t *testing.T) {
	b, err := json.Marshal(scene{yaml: shop()}.report(t))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{
		"coordinator", "platform", "policyHash", "measurement", "transitionHash", "manifests", "written", "checks", "certificates", "policies",
		"history", "referenceValues", "mesh", "findings", "owners", "verifiedAt", "simulated",
	} {
		if got[key] == nil {
			t.Errorf("no %q", key)
		}
	}
}
