package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	link    = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`^#{1,6} +(.+)$`)
)

// prose is a page's lines without its blocks of code.
func prose(page string) (lines []string) {
	fenced := false
	for line := range strings.SplitSeq(page, "\n") {
		if strings.HasPrefix(line, "```") {
			fenced, line = !fenced, ""
		}
		if fenced || strings.HasPrefix(line, "    ") {
			line = ""
		}
		lines = append(lines, line)
	}
	return lines
}

// anchors are what can be linked to in a page, as GitHub makes them of headings.
func anchors(page string) map[string]bool {
	all := make(map[string]bool)
	for _, line := range prose(page) {
		m := heading.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		text := link.ReplaceAllStringFunc(m[1], func(l string) string { return l[1:strings.Index(l, "]")] })
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, text)
		for i, first := 1, name; all[name]; i++ {
			name = fmt.Sprintf("%s-%d", first, i)
		}
		all[name] = true
	}
	return all
}

// dangling are the links of a page that lead nowhere; lookUp reads another page or file.
func dangling(name, page string, lookUp func(path string) (text string, found bool)) (faults []string) {
	for i, line := range strings.Split(strings.Join(prose(page), "\n"), "\n") {
		for _, m := range link.FindAllStringSubmatch(line, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			text := page
			if target != "" {
				path := filepath.Join(filepath.Dir(name), target)
				var found bool
				if text, found = lookUp(path); !found {
					faults = append(faults, fmt.Sprintf("%s:%d: there is no %s", name, i+1, path))
					continue
				}
			}
			if anchor != "" && !anchors(text)[anchor] {
				faults = append(faults, fmt.Sprintf("%s:%d: %s has no heading #%s", name, i+1, m[1], anchor))
			}
		}
	}
	return faults
}

func TestEveryLinkLeadsSomewhere(t *testing.T) {
	lookUp := func(path string) (string, bool) {
		if info, err := os.Stat(root + path); err != nil {
			return "", false
		} else if info.IsDir() {
			return "", true
		}
		return read(t, path), true
	}
	links := 0
	for _, name := range pages(t) {
		page := read(t, name)
		links += len(link.FindAllString(page, -1))
		for _, fault := range dangling(name, page, lookUp) {
			t.Error(fault)
		}
	}
	if links < 100 {
		t.Errorf("only %d links were found", links)
	}
}

func TestALinkToNowhereIsFound(t *testing.T) {
	lookUp := func(path string) (string, bool) {
		return "# One, `two` & three\n## Same\n## Same\n", path == "docs/b.md"
	}
	for page, want := range map[string]int{
		"[x](b.md) [x](b.md#one-two--three) [x](b.md#same-1) [x](https://example.com/#y)": 0,
		"## Here\n[x](#here)":     0,
		"    [x](code.md)":        0,
		"```\n[x](code.md)\n```":  0,
		"[x](c.md)":               1,
		"[x](b.md#same-2)":        1,
		"# Not\n[x](#here)":       1,
		"[x](../b.md)":            1,
		"[x](c.md) and [x](d.md)": 2,
	} {
		if got := dangling("docs/a.md", page, lookUp); len(got) != want {
			t.Errorf("%q: %q, want %d", page, got, want)
		}
	}
}

// What a page must not say, and what it says in place of it.
var misspelt = map[string]string{
	`(?i)\bto-?do\b|\bfixme\b|\bxxx\b`:   "what is true",
	`\bPortCullis\b|\bportculis\b`:       "Portcullis",
	`\bco-ordinator\b|\bCo-ordinator\b`:  "Coordinator",
	`\b[Mm]esh-proxy\b|\bMesh Proxy\b`:   "mesh proxy",
	`\bpodvm\b|\bPodVM\b|\bpod VM(s)?\b`: "podVM",
	`\bSEV SNP\b|\bSNP-SEV\b`:            "SEV-SNP",
	`\bGen[- ]policy\b`:                  "genpolicy",
}

func TestNamesAreSpeltAlike(t *testing.T) {
	code := regexp.MustCompile("`[^`]*`|podvm-[a-z]+|\\]\\([^)]*\\)")
	for _, name := range pages(t) {
		for i, line := range prose(read(t, name)) {
			line = code.ReplaceAllString(line, "")
			for wrong, right := range misspelt {
				if m := regexp.MustCompile(wrong).FindString(line); m != "" {
					t.Errorf("%s:%d: %q, want %s", name, i+1, m, right)
				}
			}
		}
	}
}

// An index that knows every page, and a list of contents for each page that is long.
func TestEveryPageIsFound(t *testing.T) {
	index := read(t, "docs/README.md")
	for _, name := range pages(t) {
		base, inside := strings.CutPrefix(name, "docs/")
		if !inside || base == "README.md" {
			continue
		}
		if !strings.Contains(index, "("+base) {
			t.Errorf("docs/README.md does not name %s", name)
		}
		page := read(t, name)
		top, _, _ := strings.Cut(page, "\n## ")
		if strings.Count(page, "\n") > 130 && strings.Count(page, "\n## ") > 3 && !strings.Contains(top, "](#") {
			t.Errorf("%s is long, and has no contents before its first heading", name)
		}
	}
}
