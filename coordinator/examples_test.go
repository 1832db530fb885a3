package coordinator_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"portcullis.dev/portcullis/api"
)

// example is a command of docs/api.md, and what it prints there; … stands for anything within a line.
type example struct{ command, want string }

// examples reads the commands of a page's console blocks.
func examples(page string) (all []example) {
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(page, -1) {
		for line := range strings.Lines(block[1]) {
			if command, begins := strings.CutPrefix(line, "$ "); begins {
				all = append(all, example{command: strings.TrimSpace(command)})
			} else if n := len(all) - 1; n >= 0 {
				all[n].want += line
			}
		}
	}
	return all
}

// printed says whether an example prints what it should.
func (e example) printed(got string) bool {
	pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(e.want)), "…", `[^\n"]+`)
	return regexp.MustCompile("^" + pattern + "$").MatchString(strings.TrimSpace(got))
}

// The examples of the page run as they stand there, one after the other, in one shell.
func TestTheExamplesOfTheAPIRun(t *testing.T) {
	page, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	all := examples(string(page))
	if len(all) < 12 {
		t.Fatalf("the page has %d examples", len(all))
	}
	f := start(t)
	// What makes evidence is here; the program of the page sends it the nonce.
	p := newPod(t, webPolicy)
	maker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var nonce api.NonceResponse
		if err := json.NewDecoder(r.Body).Decode(&nonce); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(p.request(t, nonce.Nonce))
	}))
	defer maker.Close()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"manifest.json": string(newManifest(t)),
		"make-request":  fmt.Sprintf("#!/bin/sh\nexec curl -sf --data-binary @- %s\n", maker.URL),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const mark = "--- end of example ---\n"
	script := "set -u\n"
	for _, e := range all {
		script += e.command + "\nprintf '\\n" + strings.TrimSpace(mark) + "\\n'\n"
	}
	shell := exec.CommandContext(t.Context(), "bash", "-c", script)
	shell.Dir = dir
	shell.Env = append(os.Environ(), "COORDINATOR="+f.server.URL, "PATH="+dir+":"+os.Getenv("PATH"), "http_proxy=", "no_proxy=*")
	out, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := strings.Split(string(out), mark)
	if len(got) != len(all)+1 {
		t.Fatalf("%d of %d examples ran:\n%s", len(got)-1, len(all), out)
	}
	for i, e := range all {
		if !e.printed(got[i]) {
			t.Errorf("docs/api.md: $ %s\nprints %swant   %s", e.command, got[i], e.want)
		}
	}
}

func TestAnExampleThatPrintsSomethingElseIsFound(t *testing.T) {
	all := examples("text\n```console\n$ a\n{\"x\":\"…\"}\n$ b\n```\n```sh\n$ c\n```\n")
	if len(all) != 2 || all[0].command != "a" || all[1] != (example{command: "b"}) {
		t.Fatalf("read %+v", all)
	}
	for got, want := range map[string]bool{
		"{\"x\":\"1\"}\n": true, "{\"x\":\"\"}": false, "{\"x\":\"1\",\"y\":\"2\"}": false, "": false, "{\"x\":\"1\"}\nmore": false,
	} {
		if all[0].printed(got) != want {
			t.Errorf("%q: want %v", got, want)
		}
	}
	if !all[1].printed("\n") || all[1].printed("x") {
		t.Error("nothing is not nothing")
	}
}
