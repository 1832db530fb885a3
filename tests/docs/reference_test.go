package docs

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/meshproxy/envoy"
)

// help is what a program prints for --help.
func help(t *testing.T, program string, args ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), build(t)+"/"+program, append(args, "--help")...)
	command.Env = append(os.Environ(), "NO_COLOR=1")
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%s %v --help: %v", program, args, err)
	}
	return string(out)
}

// part is what stands below a title of a help text, to the next empty line.
func part(text, title string) []string {
	_, rest, found := strings.Cut(text, "\n"+title+"\n")
	if !found {
		return nil
	}
	rest, _, _ = strings.Cut(rest, "\n\n")
	return strings.Split(strings.TrimRight(rest, "\n"), "\n")
}

var flagLine = regexp.MustCompile(`^ +(-\w, )?(--[a-z-]+)(\[=true\|false\])?(?: (\S+))?  +(.+)$`)

// commandTree writes portcullis' commands below args, each with its flags.
func commandTree(t *testing.T, w *strings.Builder, args []string) {
	t.Helper()
	text := help(t, "portcullis", args...)
	if len(args) > 0 {
		usage := strings.TrimSpace(part(text, "Usage:")[0])
		fmt.Fprintf(w, "\n### portcullis %s\n\n`%s`\n", strings.Join(args, " "), usage)
		var rows []string
		for _, line := range part(text, "Flags:") {
			m := flagLine.FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("portcullis %v: %q is no flag", args, line)
			}
			if m[2] != "--help" {
				name := m[1] + m[2]
				if m[4] != "" {
					name += " " + m[4]
				}
				rows = append(rows, fmt.Sprintf("| `%s` | %s |\n", name, strings.ReplaceAll(m[5], "|", `\|`)))
			}
		}
		if rows != nil {
			fmt.Fprintf(w, "\n| flag | |\n|---|---|\n%s", strings.Join(rows, ""))
		}
	}
	for _, line := range part(text, "Available Commands:") {
		if name := strings.Fields(line)[0]; name != "help" && name != "completion" {
			commandTree(t, w, append(args[:len(args):len(args)], name))
		}
	}
}

// section is the part of a page below a heading, to the next one of that level.
func section(t *testing.T, page, title string) string {
	t.Helper()
	_, rest, found := strings.Cut(read(t, page), "\n## "+title+"\n")
	if !found {
		t.Fatalf("%s has no heading %q", page, title)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	return rest
}

// table is the first table of a text whose first row begins with begins.
func table(t *testing.T, text, begins string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, "\n"+begins)
	if !found {
		t.Fatalf("there is no table that begins with %q", begins)
	}
	rest, _, _ = strings.Cut(rest, "\n\n")
	// Its links are relative to where it comes from, and pages are beside each other.
	return begins + strings.TrimRight(rest, "\n") + "\n"
}

// tables are all tables of a text of docs/annotations.md, for another page.
func tables(text string) string {
	var all []string
	for _, block := range strings.Split(text, "\n\n") {
		if block = strings.TrimSpace(block); strings.HasPrefix(block, "| ") {
			all = append(all, block+"\n")
		}
	}
	return strings.ReplaceAll(strings.Join(all, "\n"), "](#", "](annotations.md#")
}

// above is what stands above a mark.
func above(text, mark string) string {
	before, _, _ := strings.Cut(text, mark)
	return before
}

func reference(t *testing.T) string {
	t.Helper()
	w := new(strings.Builder)
	w.WriteString(`<!-- Generated: go test ./tests/docs -update -->
# Reference

Every command, flag, annotation, variable, file, port and mark, as the programs themselves say it. What they mean, and why, is in the
pages that [the index](README.md) lists.

[portcullis](#portcullis) · [coordinator](#coordinator) · [initializer](#initializer) · [meshproxy](#meshproxy) ·
[podvm-guard](#podvm-guard) · [podvm-attest](#podvm-attest) · [podvm-initdata](#podvm-initdata) · [Annotations](#annotations) · [Exit codes](#exit-codes) ·
[Variables](#variables) · [Files in a pod](#files-in-a-pod) · [Ports and marks](#ports-and-marks)

## portcullis

` + "`--help` and `-q`, `--quiet` (say nothing about progress) belong to every command.\n")
	commandTree(t, w, nil)
	for _, program := range []string{"coordinator", "initializer", "meshproxy", "podvm-guard", "podvm-attest", "podvm-initdata"} {
		fmt.Fprintf(w, "\n## %s\n\n```text\n%s\n```\n", program, strings.ReplaceAll(strings.TrimSpace(help(t, program)), "\t", "    "))
		if program == "coordinator" {
			fmt.Fprintf(w, "\n`coordinator collateral`:\n\n```text\n%s\n```\n",
				strings.ReplaceAll(strings.TrimSpace(help(t, program, "collateral")), "\t", "    "))
		}
	}
	fmt.Fprintf(w, "\n## Annotations\n\nTheir grammar: [annotations.md](annotations.md).\n\n%s",
		strings.ReplaceAll(tables(above(section(t, "docs/annotations.md", "Annotations"), "\n### ")), ", see below", ""))
	fmt.Fprintf(w, "\n## Exit codes\n\nOf `portcullis`; the other programs use the same ones.\n\n%s",
		table(t, section(t, "docs/command-line.md", "Exit codes"), "| code | |"))
	fmt.Fprintf(w, "\n## Variables\n\nOf `portcullis`:\n\n%s", table(t, section(t, "docs/command-line.md", "For scripts"), "| variable | |"))
	variables := section(t, "docs/annotations.md", "Variables and arguments")
	fmt.Fprintf(w, "\nOf the containers in a pod. An argument wins, and a variable that disagrees with it is an error:\n\n%s",
		table(t, variables, "| variable | argument | of |"))
	fmt.Fprintf(w, "\n## Files in a pod\n\nIn memory:\n\n%s", table(t, section(t, "docs/annotations.md", "Files"), "| file | mode | what |"))
	fmt.Fprintf(w, `
## Ports and marks

| port | of | |
|---|---|---|
| %d | Coordinator | its API, metrics, health |
| %d | mesh proxy | connections with a client certificate of the mesh, by the guard alone |
| %d | mesh proxy | connections without one, by the guard alone |
| %d | mesh proxy | kubelet's probes, where there are any; plaintext |
| %d | mesh proxy | names for Envoy under the egress lock; on 127.0.0.1 |
| %d to %d | mesh proxy | reserved: no annotation may name one |

| mark (SO_MARK) | on | |
|---|---|---|
| %#x | Envoy's listener on %d | the guard lets connections reach no other socket |
| %#x | Envoy's connections to the application | they do not leave loopback |
| %#x | Envoy's listener on %d | only for ports that ask for no client certificate |
| %#x | what leaves under the egress lock | |
`, api.Port, guard.PortIngress, guard.PortIngressNoClientAuth, config.ProbePort, envoy.Resolver.Port(), config.FirstReserved, config.LastReserved,
		guard.MarkIngress, guard.PortIngress, guard.MarkDecrypted, guard.MarkIngressNoClientAuth, guard.PortIngressNoClientAuth, guard.MarkEgress)
	return w.String()
}

func TestTheReferenceIsThatOfThePrograms(t *testing.T) {
	want := reference(t)
	for _, known := range []string{"`--pin-coordinator`", "### portcullis audit verify", "### portcullis measure snp", "-peers host[:port]"} {
		if !strings.Contains(want, known) {
			t.Errorf("there is no %s", known)
		}
	}
	if *update {
		if err := os.WriteFile(root+"docs/reference.md", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, "docs/reference.md"); got != want {
		t.Error("docs/reference.md is not what the programs say: go test ./tests/docs -update")
	}
}

// What the tables that the reference takes over say, the code says, too.
func TestTheTablesOfTheReferenceAreThoseOfTheCode(t *testing.T) {
	for _, list := range []struct{ page, title, pattern, folder, in string }{
		{"docs/annotations.md", "Annotations", "(?m)^\\| `([a-z-]+)` \\|", "generate", `annotation[A-Z]\w* += (?:annotationPrefix \+ "|"portcullis\.dev/)([a-z-]+)"`},
		{"docs/annotations.md", "Files", "(?m)^\\| `/contrast/([A-Za-z/.-]+)` \\|", "initializer", `File += "((?:tls-config|secrets)/[A-Za-z.-]+)"`},
		{"docs/annotations.md", "Variables and arguments", "(?m)^\\| `([A-Z_]+)` \\|", "generate", `"((?:CONTRAST|COORDINATOR)_[A-Z_]+)"`},
	} {
		said, meant := make(map[string]bool), make(map[string]bool)
		for _, m := range regexp.MustCompile(list.pattern).FindAllStringSubmatch(above(section(t, list.page, list.title), "\n### "), -1) {
			said[m[1]] = true
		}
		for _, text := range sources(t, list.folder) {
			for _, m := range regexp.MustCompile(list.in).FindAllStringSubmatch(text, -1) {
				meant[m[1]] = true
			}
		}
		if len(meant) < 4 {
			t.Errorf("%s: only %v were found", list.folder, meant)
		}
		for name := range meant {
			if !said[name] && !strings.Contains(read(t, list.page), "portcullis.dev/"+name) { // which generate writes itself
				t.Errorf("%s, %s: there is no %s", list.page, list.title, name)
			}
		}
		for name := range said {
			if !meant[name] {
				t.Errorf("%s, %s: there is no %s in %s/", list.page, list.title, name, list.folder)
			}
		}
	}
}
