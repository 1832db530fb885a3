package docs

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

var (
	spoken  = regexp.MustCompile("(?:`|^    |^\\$ |^> |\\| |&& |& )(?:[A-Z_]+=\\S+ )?portcullis ([a-z]+(?:-[a-z]+)*(?: [a-z]+)?)([^`]*)")
	option  = regexp.MustCompile(`(?:^|[\s(\[])(--?[a-z][a-z-]*)`)
	comment = regexp.MustCompile(` #.*$`)
)

// flagsOf are portcullis' commands with their flags.
func flagsOf(t *testing.T, args []string, all map[string]map[string]bool) {
	t.Helper()
	text := help(t, "portcullis", args...)
	flags := make(map[string]bool)
	for _, line := range append(part(text, "Flags:"), part(text, "Global Flags:")...) {
		m := flagLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("portcullis %v: %q is no flag", args, line)
		}
		flags[m[2]] = true
		if m[1] != "" {
			flags[strings.TrimSuffix(m[1], ", ")] = true
		}
	}
	all[strings.Join(args, " ")] = flags
	for _, line := range part(text, "Available Commands:") {
		flagsOf(t, append(args[:len(args):len(args)], strings.Fields(line)[0]), all)
	}
}

// unknown are the commands and flags of a page that portcullis does not have.
func unknown(page string, known map[string]map[string]bool) (faults []string) {
	for i, line := range strings.Split(page, "\n") {
		for _, m := range spoken.FindAllStringSubmatch(line, -1) {
			name, rest := m[1], m[2]
			if strings.HasSuffix(name, " v") && strings.HasPrefix(rest, "1:") {
				continue // what a signature or a hash begins with
			}
			flags, found := known[name]
			if first, _, two := strings.Cut(name, " "); !found && two { // the second word was an argument
				name = first
				flags, found = known[name]
			}
			if !found {
				faults = append(faults, fmt.Sprintf("%d: there is no portcullis %s", i+1, name))
				continue
			}
			rest, _, _ = strings.Cut(comment.ReplaceAllString(rest, ""), " -- ")
			rest, _, _ = strings.Cut(rest, " | ")
			for _, f := range option.FindAllStringSubmatch(rest, -1) {
				if !flags[f[1]] {
					faults = append(faults, fmt.Sprintf("%d: portcullis %s has no %s", i+1, name, f[1]))
				}
			}
		}
	}
	return faults
}

func TestEveryCommandAndFlagExists(t *testing.T) {
	known := make(map[string]map[string]bool)
	flagsOf(t, nil, known)
	known["man"] = map[string]bool{} // for who makes packages, and in no list
	spokenOf := 0
	for _, name := range pages(t) {
		page := read(t, name)
		spokenOf += len(spoken.FindAllString(page, -1))
		for _, fault := range unknown(page, known) {
			t.Errorf("%s:%s", name, fault)
		}
	}
	if spokenOf < 80 {
		t.Errorf("only %d commands were found", spokenOf)
	}
}

func TestAnUnknownFlagIsFound(t *testing.T) {
	known := map[string]map[string]bool{"set": {"--manifest": true, "-c": true}, "audit": {}, "audit verify": {"--head": true}}
	for page, want := range map[string]int{
		"`portcullis set -c HOST --manifest FILE`":          0,
		"    portcullis audit verify --head 1:2   text":     0,
		"`portcullis set` and `portcullis sett`":            1,
		"    portcullis set --manifests x # with --other":   1,
		"$ X=y portcullis audit --head 1:2":                 1,
		"`portcullis set -- curl --silent` | `--other`":     0,
		"`portcullis transition v1:`":                       0,
		"kubectl x & portcullis set -d":                     1,
		"`portcullis audit verify --head x --root-ca file`": 1,
	} {
		if got := unknown(page, known); len(got) != want {
			t.Errorf("%q: %q, want %d", page, got, want)
		}
	}
}
