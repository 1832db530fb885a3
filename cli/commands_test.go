package cli

import (
	"bytes"
	"context"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// commands are all that there are, but for cobra's own.
func commands() []*cobra.Command {
	var all []*cobra.Command
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Name() == "help" || cmd.Name() == "completion" {
			return
		}
		all = append(all, cmd)
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(Streams{In: bytes.NewReader(nil), Out: io.Discard, Err: io.Discard}))
	return all
}

func TestEveryCommandIsExplainedInOneVoice(t *testing.T) {
	for _, cmd := range commands() {
		path := cmd.CommandPath()
		first := []rune(cmd.Short)
		if len(first) == 0 || !unicode.IsUpper(first[0]) && cmd.HasParent() || strings.HasSuffix(cmd.Short, ".") || len(first) > 80 {
			t.Errorf("%s: Short is %q, want an imperative of at most 80 letters without a full stop", path, cmd.Short)
		}
		// Fig. "Verify asks ...": the name, then what it does.
		name := strings.ToUpper(cmd.Name()[:1]) + cmd.Name()[1:]
		if !strings.HasPrefix(cmd.Long, name+" ") || !strings.HasSuffix(strings.TrimSpace(cmd.Long), ".") {
			t.Errorf("%s: Long begins with %.30q, want %q, and ends with a full stop", path, cmd.Long, name+" ...")
		}
		for line := range strings.Lines(cmd.Long + "\n" + cmd.Example) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 132 {
				t.Errorf("%s: a line of help has %d letters: %s", path, n, line)
			}
		}
		if !strings.Contains(cmd.Example, cmd.Root().Name()+" ") {
			t.Errorf("%s has no example", path)
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s --%s: %q, want words without a full stop", path, f.Name, f.Usage)
			}
		})
	}
}

// What an example calls is there, with the flags that it gives.
func TestExamplesAreOfThisVersion(t *testing.T) {
	for _, cmd := range commands() {
		for line := range strings.Lines(strings.ReplaceAll(cmd.Example, "\\\n", " ")) {
			for call := range strings.SplitSeq(line, "|") {
				at := strings.Index(call, "portcullis ")
				if at < 0 {
					continue
				}
				words := strings.Fields(call[at:])[1:]
				found, rest, err := cmd.Root().Find(words)
				if err != nil || found == cmd.Root() && len(words) > 0 && !strings.HasPrefix(words[0], "-") {
					t.Errorf("%s: the example %q calls what is not there: %v", cmd.CommandPath(), strings.TrimSpace(line), err)
					continue
				}
				for _, word := range rest {
					name, isFlag := strings.CutPrefix(word, "--")
					name, _, _ = strings.Cut(name, "=")
					if name == "" && isFlag {
						break // a command follows
					}
					if isFlag && found.Flags().Lookup(name) == nil && found.InheritedFlags().Lookup(name) == nil {
						t.Errorf("%s: the example %q gives --%s, which is not there", cmd.CommandPath(), strings.TrimSpace(line), name)
					}
				}
			}
		}
	}
}

// withoutJSON are the commands whose output is for programs as it is, or for nobody.
var withoutJSON = []string{"portcullis", "portcullis attest", "portcullis measure", "portcullis man", "portcullis coordinator-yaml", "portcullis audit"}

func TestEveryResultCanBeHadAsJSON(t *testing.T) {
	for _, cmd := range commands() {
		if has := cmd.Flags().Lookup("json") != nil; has == slices.Contains(withoutJSON, cmd.CommandPath()) {
			t.Errorf("%s: --json is there: %v", cmd.CommandPath(), has)
		}
	}
}

func TestEveryValueOfAFlagIsCompleted(t *testing.T) {
	used := make(map[string]bool)
	root := commands()[0]
	for _, cmd := range commands() {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			_, known := completions[f.Name]
			used[f.Name] = true
			words := slices.Contains([]string{"tee", "vcpu-type", "placement"}, f.Name)
			if f.Value.Type() != "bool" && !known && !words {
				t.Errorf("%s --%s: completions do not say what stands there", cmd.CommandPath(), f.Name)
			}
			if _, registered := cmd.GetFlagCompletionFunc(f.Name); !registered && f.Value.Type() != "bool" {
				t.Errorf("%s --%s is not completed", cmd.CommandPath(), f.Name)
			}
		})
	}
	for name := range completions {
		if !used[name] {
			t.Errorf("completions name --%s, which is no flag", name)
		}
	}
	for path := range completedArguments {
		if found, _, err := root.Find(strings.Fields(path)); err != nil || found.CommandPath() != "portcullis "+path {
			t.Errorf("completedArguments name %s, which is no command", path)
		}
	}
}

// What a shell asks, and what it is told.
func TestShellsAreToldWhatMayFollow(t *testing.T) {
	const noFiles, endings, folders, anyFile = ":4", ":8", ":16", ":0"
	for line, want := range map[string][]string{
		"ver":                                  {"verify\t", "version\t", noFiles},
		"verify --man":                         {"--manifest\t", noFiles},
		"verify --manifest ":                   {"json\n", endings},
		"generate ":                            {"yaml\nyml\njson\n", endings},
		"generate --policy ":                   {"rego\n", endings},
		"generate --genpolicy ":                {anyFile},
		"verify --collateral-dir ":             {folders},
		"attest --tee ":                        {"snp\n", "tdx\n", noFiles},
		"measure snp --vcpu-type ":             {"EPYC-Milan\n", noFiles},
		"status --coordinator ":                {noFiles},
		"verify ":                              {noFiles},
		"connect --mesh-ca trust/mesh-ca.pem ": {noFiles},
	} {
		words := append([]string{"__complete"}, strings.Fields(line)...)
		if strings.HasSuffix(line, " ") {
			words = append(words, "")
		}
		var out bytes.Buffer
		if err := Run(context.Background(), words, Streams{In: bytes.NewReader(nil), Out: &out, Err: io.Discard}); err != nil {
			t.Errorf("%q: %v", line, err)
			continue
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%q is answered with %q, want %q", line, out.String(), w)
			}
		}
	}
}

func TestManualPagesAreFormattedWithoutAWarning(t *testing.T) {
	folder := t.TempDir()
	run := func() {
		if err := Run(context.Background(), []string{"man", folder}, Streams{Out: io.Discard, Err: io.Discard}); err != nil {
			t.Fatal(err)
		}
	}
	run()
	pages, err := filepath.Glob(filepath.Join(folder, "*.1"))
	if err != nil {
		t.Fatal(err)
	}
	if want := len(commands()) - 1; len(pages) != want { // man is hidden
		t.Errorf("%d pages, want %d", len(pages), want)
	}
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("SKIPPED: groff is missing, so nobody looks at the manual pages (apt-get install groff-base)")
	}
	for _, p := range pages {
		var warnings bytes.Buffer
		cmd := exec.Command("groff", "-man", "-Tutf8", "-P-cbu", "-ww", "-rLL=100n", p) // -cbu: no bold, no escapes
		cmd.Stderr = &warnings
		text, err := cmd.Output()
		if err != nil || warnings.Len() > 0 {
			t.Errorf("%s: %v\n%s", filepath.Base(p), err, warnings.String())
		}
		plain := string(text)
		for _, want := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "--help"} {
			if !strings.Contains(plain, want) {
				t.Errorf("%s has no %s:\n%s", filepath.Base(p), want, plain)
			}
		}
	}
}

func TestADistanceIsThatOfTheFewestMistakes(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "abc", 0}, {"manifst", "manifest", 1}, {"kitten", "sitting", 3}, {"abc", "cba", 2}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
		if got := distance(c.b, c.a); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.b, c.a, got, c.want)
		}
	}
}
