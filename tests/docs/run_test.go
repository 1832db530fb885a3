package docs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// example is a command of a page and what it prints there.
type example struct {
	command, want string
	line          int
}

// parts are what a runner needs of a page: the files that it shows, and the commands of its console blocks in their order.
func parts(page string) (files map[string]string, all []example) {
	files = make(map[string]string)
	var fence, name, saved string
	for i, line := range strings.Split(page, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			if fence == "" {
				fence, saved = strings.TrimSpace(line[3:])+" ", name
				name = ""
			} else {
				fence, saved = "", ""
			}
		case fence == "":
			if _, rest, found := strings.Cut(line, "<!-- file: "); found {
				name = strings.TrimSuffix(rest, " -->")
			}
		case saved != "":
			files[saved] += line + "\n"
		case fence == "console ":
			n := len(all) - 1
			if command, found := strings.CutPrefix(line, "$ "); found {
				all = append(all, example{command: command, line: i + 1})
			} else if more, found := strings.CutPrefix(line, "> "); found && n >= 0 && all[n].want == "" {
				all[n].command += "\n" + more
			} else if n >= 0 {
				all[n].want += line + "\n"
			}
		}
	}
	return files, all
}

// printed says whether got is what the page shows. … stands for anything but nothing within a line, and for any lines where it is
// alone on one.
func printed(want, got string) bool {
	pattern := regexp.QuoteMeta(strings.TrimSpace(want)) + "\n"
	pattern = regexp.MustCompile(`(?m)^…\n`).ReplaceAllString(pattern, `(?:.*\n)+`)
	pattern = strings.ReplaceAll(pattern, "…", `[^\n]+`)
	return regexp.MustCompile("^" + pattern + "$").MatchString(strings.TrimSpace(got) + "\n")
}

// A shell that nobody sits at says which job was killed in words of its own.
var job = regexp.MustCompile(`(?m)^bash: line \d+: +\d+ (Killed|Terminated).*\n`)

const mark = "--- the example ends with "

// shell runs commands in one bash in a folder, and returns for each what it printed and its exit code.
func shell(t *testing.T, folder string, commands []string) (outputs []string, codes []int) {
	t.Helper()
	programs := build(t) // which may take long, and is not the page's
	script := "await() { until \"$@\" >/dev/null 2>&1; do sleep 0.2; done; }\n"
	for _, command := range commands {
		script += command + "\ncode=$?; printf '\\n" + mark + "%d\\n' $code; (exit $code)\n"
	}
	// Into a file, since what runs in the background would hold a pipe open.
	out, err := os.CreateTemp(t.TempDir(), "output")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	bash := exec.CommandContext(ctx, "bash", "-c", script, "bash")
	bash.Dir = folder
	bash.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"), "HOME="+folder, "XDG_CACHE_HOME="+folder+"/.cache",
		"http_proxy=", "no_proxy=*", "LC_ALL=C.UTF-8", "TERM=dumb")
	bash.Stdout, bash.Stderr = out, out
	bash.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := bash.Start(); err != nil {
		t.Fatal(err)
	}
	_ = bash.Wait()
	_ = syscall.Kill(-bash.Process.Pid, syscall.SIGKILL) // what the page left in the background
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range strings.SplitAfter(job.ReplaceAllString(string(text), ""), "\n") {
		if number, found := strings.CutPrefix(one, mark); found {
			code, err := strconv.Atoi(strings.TrimSpace(number))
			if err != nil {
				t.Fatal(err)
			}
			codes = append(codes, code)
			continue
		}
		if len(outputs) == len(codes) {
			outputs = append(outputs, "")
		}
		outputs[len(codes)] += one
	}
	return outputs, codes
}

// logs are the ends of the logs in a folder.
func logs(folder string) (all string) {
	paths, _ := filepath.Glob(folder + "/*.log")
	for _, path := range paths {
		text, _ := os.ReadFile(path)
		all += fmt.Sprintf("\n%s: ... %s", filepath.Base(path), text[max(0, len(text)-600):])
	}
	return all
}

// check runs a page's commands, and names each that does otherwise than the page says.
func check(t *testing.T, page string) (faults []string) {
	t.Helper()
	files, all := parts(page)
	folder := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	commands := make([]string, len(all))
	for i, e := range all {
		commands[i] = e.command
	}
	outputs, codes := shell(t, folder, commands)
	for i, e := range all {
		switch {
		case i >= len(codes):
			return append(faults, fmt.Sprintf("line %d: $ %s\ndid not end%s", e.line, e.command, logs(folder)))
		case !printed(e.want, outputs[i]):
			faults = append(faults, fmt.Sprintf("line %d: $ %s\nprints\n%s\nwant\n%s", e.line, e.command, outputs[i], e.want))
		case codes[i] != 0 && (i+1 == len(all) || all[i+1].command != "echo $?"):
			faults = append(faults, fmt.Sprintf("line %d: $ %s\nexits with %d, and the page does not say so", e.line, e.command, codes[i]))
		}
	}
	return faults
}

func TestTheTutorialDoesWhatItSays(t *testing.T) {
	page := read(t, "docs/tutorial.md")
	if files, all := parts(page); len(files) < 2 || len(all) < 50 {
		t.Fatalf("the page has %d files and %d commands", len(files), len(all))
	}
	for _, fault := range check(t, page) {
		t.Error("docs/tutorial.md: " + fault)
	}
}

func TestAnExampleThatDoesSomethingElseIsFound(t *testing.T) {
	const page = "<!-- file: a.txt -->\n```yaml\nkey: 1\n```\ntext\n```console\n$ cat a.txt\nkey: 1\n$ x=5\n$ echo $x \\\n> and more\n5 and …\n$ false\n$ echo $?\n1\n```\n"
	if faults := check(t, page); faults != nil {
		t.Fatalf("a page that is right: %q", faults)
	}
	for what, change := range map[string][2]string{
		"another output":       {"key: 1\n$", "key: 2\n$"},
		"another command":      {"cat a.txt", "cat b.txt"},
		"an output too much":   {"$ x=5\n", "$ x=5\nset\n"},
		"an output too little": {"\n5 and …", ""},
		"another file":         {"key: 1\n```", "key: 3\n```"},
		"a session that ended": {"x=5", "exit"},
		"a failure":            {"$ echo $?\n1\n", ""},
	} {
		t.Run(what, func(t *testing.T) {
			if faults := check(t, strings.Replace(page, change[0], change[1], 1)); faults == nil {
				t.Error("it is not found")
			}
		})
	}
}
