package report_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/cli/report"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/tests/chromium"
)

// shots is a folder for pictures of the pages, for people who change them.
var shots = os.Getenv("PORTCULLIS_SCREENSHOTS")

// pages are the pages that the browser looks at.
func pages(t *testing.T) map[string][]byte {
	t.Helper()
	html := func(r *report.Report) []byte {
		page, err := r.HTML()
		if err != nil {
			t.Fatal(err)
		}
		return page
	}
	noYAML, _ := shopScene(true).verify(t)
	noYAML.Pods = nil
	bare, err := report.New(noYAML)
	if err != nil {
		t.Fatal(err)
	}
	refusal, err := refused().HTML()
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"shop":      html(shopScene(true).report(t)),
		"simulated": html(shopScene(false).report(t)),
		"large":     html(scene{yaml: large(report.MaxDrawn), hardware: true}.report(t)),
		"too-large": html(scene{yaml: large(report.MaxDrawn + 1), hardware: true}.report(t)),
		"no-yaml":   html(bare),
		"hostile":   html(hostile(t)),
		"refusal":   refusal,
	}
}

// shopScene has a history: a pod came, one went, the owners changed.
func shopScene(hardware bool) scene {
	return scene{yaml: shop(), hardware: hardware, before: []func(*manifest.Manifest){
		func(m *manifest.Manifest) {
			for hash, p := range m.Policies {
				if p.Role == manifest.RoleNone && strings.HasPrefix(shortestName(p), "c") {
					delete(m.Policies, hash)
				}
			}
			m.WorkloadOwnerKeys = m.WorkloadOwnerKeys[:2]
			m.Policies[attestation.PolicyHash{7}] = manifest.Policy{}
		},
		func(m *manifest.Manifest) {
			m.WorkloadOwnerKeys = m.WorkloadOwnerKeys[:2]
			m.CertificateValidity, _ = manifest.NewValidity(48 * time.Hour)
		},
	}}
}

func shortestName(p manifest.Policy) string {
	names := []string{"~"}
	for _, san := range p.SANs {
		names = append(names, san.String())
	}
	return slices.Min(names)
}

func refused() report.Refusal {
	return report.Refusal{
		Coordinator: "coordinator.shop.example:1313", When: time.Date(2026, 11, 5, 14, 3, 9, 0, time.UTC), Version: "v0.1.0",
		Manifest: "manifest.json", Err: &api.VerifyError{
			Check: "evidence", Err: &attestation.Rejected{Field: "MEASUREMENT", Want: strings.Repeat("5a", 48), Got: strings.Repeat("be", 48)},
			Checks: []api.Check{
				{Name: "state", Want: "serving", Got: "serving", OK: true},
				{Name: "evidence", Of: "MEASUREMENT", Want: strings.Repeat("5a", 48), Got: strings.Repeat("be", 48)},
			},
		},
	}
}

// inspection is what the script below sees in a page.
type inspection struct {
	Crossed    int      // lines that lead behind a box
	Overflow   []string // elements that are wider than the window
	Contrast   []string // text that is too faint
	Faults     []string // what a screen reader stumbles over
	Landmarks  []string
	Title, URL string
}

const inspect = `(() => {
  const seen = {Overflow: [], Crossed: 0, Contrast: [], Faults: [], Landmarks: [], Title: document.title, URL: location.href};
  const name = e => e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') + (e.getAttribute('class') ? '.' + e.getAttribute('class') : '') +
    ' "' + (e.textContent || '').trim().slice(0, 40) + '"';
  const wide = document.documentElement.clientWidth;
  if (document.scrollingElement.scrollWidth > wide) seen.Overflow.push('the page: ' + document.scrollingElement.scrollWidth);
  for (const e of document.body.querySelectorAll('*')) {
    if (e.closest('.canvas, .skip, thead')) continue;
    const r = e.getBoundingClientRect();
    if (r.width > 0 && r.right > wide + 1) seen.Overflow.push(name(e) + ' ' + Math.round(r.right));
  }
  for (const g of document.querySelectorAll('g.box')) { // text stays in its box
    const frame = g.querySelector('rect').getBBox();
    for (const e of g.querySelectorAll('text')) { const r = e.getBBox(); if (r.x + r.width > frame.x + frame.width - 4 || r.y + r.height > frame.y + frame.height + 2) seen.Overflow.push(name(e)); }
  }
  const frames = [...document.querySelectorAll('g.box rect')].map(e => e.getBBox());
  frames.forEach((a, i) => frames.slice(i + 1).forEach(b => { // boxes do not lie upon each other, and lines do not cross them
    if (a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height) seen.Overflow.push('two boxes at ' + a.x + ' ' + a.y); }));
  for (const line of document.querySelectorAll('path.line')) {
    const length = line.getTotalLength();
    for (let at = 12; at < length - 12; at += 6) { const p = line.getPointAtLength(at);
      if (frames.some(f => p.x > f.x + 2 && p.x < f.x + f.width - 2 && p.y > f.y + 2 && p.y < f.y + f.height - 2)) { seen.Crossed++; break; } }
  }
  // WCAG 2.2, relative luminance and contrast ratio.
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const known = new Map();
  const rgba = c => { if (!known.has(c)) known.set(c, paint(c)); return known.get(c); };
  const paint = c => { context.clearRect(0, 0, 1, 1); context.fillStyle = c; context.fillRect(0, 0, 1, 1); return [...context.getImageData(0, 0, 1, 1).data]; };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const grounds = new Map();
  const behind = e => { if (!e) return [255, 255, 255, 255]; if (!grounds.has(e)) grounds.set(e, ground(e)); return grounds.get(e); };
  const ground = e => {
    const c = rgba(e.tagName === 'g' ? getComputedStyle(e.querySelector('rect')).fill : getComputedStyle(e).backgroundColor);
    return c[3] > 250 ? c : behind(e.parentElement); };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; n = texts.nextNode();) {
    const e = n.parentElement;
    if (!n.data.trim() || !e.getClientRects().length || e.closest('title, desc')) continue;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    const got = ratio(rgba(svg ? style.fill : style.color), behind(e));
    const shown = svg ? size * e.getScreenCTM().a : size;
    if (got < (large ? 3 : 4.5)) seen.Contrast.push(name(e) + ' ' + got.toFixed(2));
    if (shown < 11 && !matchMedia('print').matches) seen.Contrast.push(name(e) + ' is ' + shown + ' px');
  }
  const fault = (e, why) => seen.Faults.push(name(e) + ': ' + why);
  if (!document.documentElement.lang) seen.Faults.push('no language');
  let level = 0;
  for (const h of document.querySelectorAll('h1, h2, h3, h4')) {
    const l = +h.tagName[1];
    if (l > level + 1) fault(h, 'a heading of level ' + l + ' after ' + level);
    level = l;
  }
  if (document.querySelectorAll('h1').length !== 1) seen.Faults.push('not one h1');
  for (const t of document.querySelectorAll('table')) {
    if (!t.caption) fault(t, 'no caption');
    if (!t.querySelector('thead th[scope=col]')) fault(t, 'no column headers');
    for (const r of t.tBodies[0].rows) if (!r.querySelector('th[scope=row]')) fault(r, 'no row header');
  }
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  for (const id of ids.filter((id, i) => ids.indexOf(id) !== i)) seen.Faults.push('twice: #' + id);
  for (const a of document.querySelectorAll('a')) {
    if (!(a.getAttribute('aria-label') || a.textContent).trim()) fault(a, 'no text');
    const to = a.getAttribute('href');
    if (!to.startsWith('#')) fault(a, 'leads out of the page: ' + to);
    else if (!document.getElementById(to.slice(1))) fault(a, 'leads nowhere: ' + to);
  }
  for (const e of document.querySelectorAll('[aria-labelledby]'))
    for (const id of e.getAttribute('aria-labelledby').split(' ')) if (!document.getElementById(id)) fault(e, 'is named by nothing: ' + id);
  for (const e of document.querySelectorAll('svg')) if (!e.closest('[aria-hidden]') && (e.getAttribute('role') !== 'img' || !e.querySelector('title'))) fault(e, 'a picture without a name');
  for (const e of document.querySelectorAll('script, link, iframe, object, embed, form, base, [style], [src], [onload], [onerror], [onclick]')) fault(e, 'is not to be here');
  for (const e of document.querySelectorAll('[role=table]')) for (const c of e.querySelectorAll('tr, td, tbody, thead')) if (!c.getAttribute('role')) fault(c, 'no role, which it loses on small screens');
  return seen;
})()`

// What a browser makes of the pages, in light and dark, on a telephone and on a desk: nothing is fetched, nothing runs,
// nothing violates the page's own policy, nothing sticks out, everything can be read and has its landmarks.
func TestPagesInABrowser(t *testing.T) {
	b := chromium.Start(t)
	dir := t.TempDir()
	for name, page := range pages(t) {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, name+".html")
			if err := os.WriteFile(file, page, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, window := range []struct {
				width  int
				scheme string
			}{{360, "light"}, {1280, "dark"}, {360, "dark"}, {1280, "light"}} {
				if name != "shop" && (window.width == 360) != (window.scheme == "light") {
					continue // the pages have one style: each width and each scheme once is enough
				}
				b.Size(t, window.width, 900)
				b.Media(t, "screen", window.scheme)
				look(t, b, file, fmt.Sprintf("%s, %d px, %s", name, window.width, window.scheme))
				save(t, fmt.Sprintf("%s-%d-%s.png", name, window.width, window.scheme), func() []byte { return b.Screenshot(t) })
			}
			if name != "shop" && name != "refusal" && name != "large" {
				return
			}
			b.Size(t, 700, 1000)
			b.Media(t, "print", "dark") // paper is white whatever the screen
			look(t, b, file, name+", printed")
			pdf := b.PDF(t)
			if n := bytes.Count(pdf, []byte("/Type /Page\n")); n < 1 || n > 80 {
				t.Errorf("%d pages of paper", n)
			}
			save(t, name+".pdf", func() []byte { return pdf })
		})
	}
}

func save(t *testing.T, name string, content func() []byte) {
	t.Helper()
	if shots != "" {
		if err := os.WriteFile(filepath.Join(shots, name), content(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func look(t *testing.T, b *chromium.Browser, file, what string) {
	t.Helper()
	address := (&url.URL{Scheme: "file", Path: file}).String()
	b.Open(t, address)
	var seen inspection
	b.Evaluate(t, inspect, &seen)
	if seen.Crossed > 0 {
		t.Errorf("%s: %d lines lead behind boxes", what, seen.Crossed)
	}
	for _, list := range [][]string{seen.Overflow, seen.Contrast, seen.Faults} {
		if len(list) > 0 {
			t.Errorf("%s:\n  %s", what, strings.Join(list[:min(len(list), 12)], "\n  "))
		}
	}
	events := b.Events(t)
	if err := chromium.Complaints(events); err != nil {
		t.Errorf("%s: the browser complains: %v", what, err)
	}
	for _, to := range requests(t, events) {
		if to != address {
			t.Errorf("%s: it asks for %.200s", what, to)
		}
	}
	all := roles(t, b)
	for _, role := range []string{"banner", "main", "contentinfo", "heading", "table", "region"} {
		if role == "table" && strings.HasPrefix(what, "refusal") {
			continue
		}
		if !slices.Contains(all, role) {
			t.Errorf("%s: no %s for a screen reader", what, role)
		}
	}
}

func requests(t *testing.T, events []chromium.Event) (urls []string) {
	t.Helper()
	for _, e := range events {
		if e.Method == "Network.requestWillBeSent" {
			var p struct{ Request struct{ URL string } }
			if err := json.Unmarshal(e.Params, &p); err != nil {
				t.Fatal(err)
			}
			urls = append(urls, p.Request.URL)
		}
	}
	return urls
}

// roles are what the browser tells a screen reader.
func roles(t *testing.T, b *chromium.Browser) (all []string) {
	t.Helper()
	var tree struct {
		Nodes []struct {
			Ignored bool
			Role    struct{ Value string }
		}
	}
	b.Call(t, "Accessibility.getFullAXTree", struct{}{}, &tree)
	for _, n := range tree.Nodes {
		if !n.Ignored {
			all = append(all, n.Role.Value)
		}
	}
	return all
}

// The control: what must not be in a page is seen when it is.
func TestTheBrowserWouldTell(t *testing.T) {
	b := chromium.Start(t)
	page, err := shopScene(true).report(t).HTML()
	if err != nil {
		t.Fatal(err)
	}
	open := func(t *testing.T, page []byte) ([]chromium.Event, inspection) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "page.html")
		if err := os.WriteFile(file, page, 0o600); err != nil {
			t.Fatal(err)
		}
		b.Size(t, 360, 900)
		b.Media(t, "screen", "light")
		b.Open(t, "file://"+file)
		var seen inspection
		b.Evaluate(t, inspect, &seen)
		return b.Events(t), seen
	}
	end := []byte("</main>")
	for name, test := range map[string]struct {
		add  string
		seen func([]chromium.Event, inspection) bool
	}{
		"a script": {"<script>document.title = 'hello'</script>", func(e []chromium.Event, i inspection) bool {
			return chromium.Complaints(e) != nil && i.Title != "hello" && len(i.Faults) > 0
		}},
		"a style": {`<p style="color: red">x</p>`, func(e []chromium.Event, i inspection) bool {
			return chromium.Complaints(e) != nil && len(i.Faults) > 0
		}},
		"an image": {`<img alt="" src="http://127.0.0.1:9/x.png">`, func(e []chromium.Event, i inspection) bool {
			return chromium.Complaints(e) != nil
		}},
		"too wide":     {`<table><caption>x</caption><tr><td><pre>` + strings.Repeat("x", 400) + `</pre></table>`, func(_ []chromium.Event, i inspection) bool { return len(i.Overflow) > 0 }},
		"a bare table": {`<table><tr><td>x</table>`, func(_ []chromium.Event, i inspection) bool { return len(i.Faults) > 0 }},
		"a wild level": {`<h5>x</h5><h4>x</h4><h2>x</h2><h4>x</h4>`, func(_ []chromium.Event, i inspection) bool { return len(i.Faults) > 0 }},
		"nothing": {"", func(e []chromium.Event, i inspection) bool {
			return chromium.Complaints(e) == nil && len(i.Faults)+len(i.Overflow)+len(i.Contrast)+i.Crossed == 0
		}},
	} {
		t.Run(name, func(t *testing.T) {
			altered := bytes.Replace(page, end, append([]byte(test.add), end...), 1)
			if events, seen := open(t, altered); !test.seen(events, seen) {
				t.Errorf("not noticed: %+v", seen)
			}
		})
	}
	t.Run("too faint", func(t *testing.T) {
		faint := bytes.Replace(page, []byte("--soft: #515c6b"), []byte("--soft: #b8bcc4"), 1)
		faint = bytes.Replace(faint, []byte("style-src"), []byte("style-src 'unsafe-inline'; x"), 1)
		if _, seen := open(t, faint); len(seen.Contrast) == 0 {
			t.Error("not noticed")
		}
	})
}
