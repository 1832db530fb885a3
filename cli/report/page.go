package report

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"portcullis.dev/portcullis/api"
)

//go:embed page.html
var pageText string

//go:embed style.css
var style string

// templates holds the two pages and what they have in common.
var templates = template.Must(template.New("report").Funcs(template.FuncMap{
	"clip":   clip,
	"clipTo": clipTo,
	"day":    func(t time.Time) string { return t.Format("2 January 2006") },
	"time":   func(t time.Time) string { return t.Format("2 January 2006, 15:04:05 UTC") },
	"count":  count,
	"groups": func(digits string) []string {
		var all []string
		for len(digits) > 8 {
			all, digits = append(all, digits[:8]), digits[8:]
		}
		return append(all, digits)
	},
	"middle": func(b Box) int { return b.X + 12 },
	"add":    func(a, b int) int { return a + b },
	"meaning": func(check string) string {
		return checkMeanings[check]
	},
}).Parse(pageText))

// checkMeanings say what each check is for, by the names that package api gives them.
var checkMeanings = map[string]string{
	"state":                 "Whether the Coordinator serves, or still waits for its owners.",
	"answer":                "Whether the parts of the answer can belong together.",
	"evidence":              "Whether genuine hardware made this answer, for this question, with the image that the manifest names.",
	"policy hash":           "Whether the pod that answered is one that may be the Coordinator.",
	"HPKE key":              "Whether secrets can be sent to it and to nobody else.",
	"history":               "Whether this manifest was set as those in charge wished.",
	api.CheckOwners:         "Whether nobody else ever owned the mesh: former owners may know its seed.",
	"root CA":               "Whether the root CA is a CA of its own. The evidence covers its key.",
	"mesh CA":               "Whether the mesh CA is a CA of its own. The evidence covers it.",
	"successors":            "Whether this mesh CA can admit pods of a later manifest for a while, as its own manifest says.",
	"seed shares":           "Whether the owners’ shares of the seed belong to this root CA.",
	api.CheckActiveManifest: "Whether the manifest in force is the one that you hold, byte for byte.",
}

// policy lets the page have its own style, and nothing else: nothing runs and nothing loads.
func policy() string {
	sum := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; img-src data:; base-uri 'none'; form-action 'none'"
}

type page struct {
	*Report
	Policy  string
	Style   template.CSS
	Drawing *Drawing
}

// HTML is the page of a successful verification.
func (r *Report) HTML() ([]byte, error) {
	p := page{Report: r, Policy: policy(), Style: template.CSS(style)}
	if r.Mesh != nil {
		p.Drawing = r.Mesh.Draw()
	}
	return render("page", p)
}

// OwnersText says who can replace the manifest.
func (r *Report) OwnersText() string {
	switch n := len(r.Owners.Workload); {
	case n == 0:
		return "nobody (there are no owners)"
	case n == 1:
		return "its owner"
	default:
		return fmt.Sprintf("any %d of its %d owners", r.Owners.WorkloadThreshold, n)
	}
}

// Newest is the history the other way round.
func (r *Report) Newest() []Step {
	steps := slices.Clone(r.History)
	slices.Reverse(steps)
	return steps
}

// MainChecks are the checks but for the fields of the evidence, EvidenceChecks those.
func (r *Report) MainChecks() []api.Check     { return r.checks(false) }
func (r *Report) EvidenceChecks() []api.Check { return r.checks(true) }

func (r *Report) checks(fields bool) []api.Check {
	return slices.DeleteFunc(slices.Clone(r.Checks), func(c api.Check) bool {
		return (c.Name == api.CheckEvidence && c.Of != "") != fields
	})
}

// Class is the line's, which has to have a name for its arrow.
func (l Line) Class() string { return cmp.Or(string(l.Level), "plain") }

// Markers are the arrows that lines can have.
func (d *Drawing) Markers() []string { return []string{"plain", "note", "caution", "danger"} }

// Refusal is what there is to say of a verification that was made and whose answer is no.
type Refusal struct {
	Coordinator string
	When        time.Time
	Version     string
	// Manifest is the file that was trusted.
	Manifest string
	Err      *api.VerifyError
}

// HTML is a page that says no.
func (r Refusal) HTML() ([]byte, error) {
	if r.Err == nil {
		return nil, errors.New("make a page of a refusal: nothing was refused")
	}
	checks := r.Err.Checks
	if len(checks) == 0 || checks[len(checks)-1].OK {
		checks = append(checks[:len(checks):len(checks)], api.Check{Name: r.Err.Check, Want: "to be right", Got: r.Err.Err.Error()})
	}
	r.When = r.When.UTC().Truncate(time.Second)
	return render("refusal", struct {
		Refusal
		Reason string
		Failed api.Check
		Before []api.Check
		Policy string
		Style  template.CSS
	}{r, r.Err.Error(), checks[len(checks)-1], checks[:len(checks)-1], policy(), template.CSS(style)})
}

func render(name string, data any) ([]byte, error) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		return nil, fmt.Errorf("write the report: %w", err)
	}
	return reveal(b.Bytes()), nil
}

// reveal makes characters visible that hide text or show it in another order than it has: a name that ends in an override
// would otherwise read backwards, and two names that differ in such a character alone would look the same. Our own page
// has none of them, so nothing has to remember to call this.
func reveal(page []byte) []byte {
	var b bytes.Buffer
	b.Grow(len(page))
	for len(page) > 0 {
		r, size := utf8.DecodeRune(page)
		switch {
		case r == '\n' || r == '\t':
			b.WriteRune(r)
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, "[%02X]", page[0])
		case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point,
			unicode.Variation_Selector):
			fmt.Fprintf(&b, "[U+%04X]", r)
		default:
			b.Write(page[:size])
		}
		page = page[size:]
	}
	return b.Bytes()
}

// clip shortens text that nobody would read to its end, and says so.
func clip(s string) string { return clipTo(200, s) }

func clipTo(most int, s string) string {
	n := utf8.RuneCountInString(s)
	if n <= most {
		return s
	}
	runes := []rune(s)
	return strings.TrimSpace(string(runes[:most])) + fmt.Sprintf("… (%d characters)", n)
}
