package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// unscripted are messages of package cli that no script can bring about, and why.
var unscripted = map[string]string{
	"sign transition %x: %w":  "signing with a key that was parsed does not fail",
	"write the history: %w":   "encoding plain values as JSON does not fail",
	"search the folder: %w":   "scripts run as root, who may read every folder",
	"--append contains a NUL": "no argument contains one; Run's caller may",
}

// Every message of package cli is quoted by a script that brings it about: by a line stdout or stderr with at least so many
// letters of it, or with all of a short one. What a script quotes, testscript has seen.
func TestEveryMessageIsReachedByAScript(t *testing.T) {
	const letters = 22
	quotes := scriptQuotes(t)
	reached := func(message string) bool {
		for _, piece := range regexp.MustCompile(`%[-+# 0-9.]*[a-zA-Z]`).Split(message, -1) {
			piece = strings.TrimSpace(piece)
			enough := min(letters, len(piece))
			if enough < 6 { // says too little to be told from others
				continue
			}
			for at := 0; at+enough <= len(piece); at++ {
				if strings.Contains(quotes, piece[at:at+enough]) {
					return true
				}
			}
		}
		return false
	}
	all := messages(t)
	for message, place := range all {
		why, excused := unscripted[message]
		switch is := reached(message); {
		case is && excused:
			t.Errorf("%q is reached by a script, and needs no excuse", message)
		case !is && !excused:
			t.Errorf("%s: %q is reached by no script", place, message)
		case excused && why == "":
			t.Errorf("%q: say why", message)
		}
	}
	for message := range unscripted {
		if all[message] == "" {
			t.Errorf("%q is no message any more", message)
		}
	}
}

// messages are the literals that errors of package cli are made of, and where. What only wraps says nothing itself.
func messages(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../../cli/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no source: %v", err)
	}
	found := make(map[string]string)
	set := token.NewFileSet()
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(set, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			argument := 0
			switch f := call.Fun.(type) {
			case *ast.SelectorExpr:
				if x, ok := f.X.(*ast.Ident); !ok || x.Name+"."+f.Sel.Name != "fmt.Errorf" && x.Name+"."+f.Sel.Name != "errors.New" {
					return true
				}
			case *ast.Ident:
				if argument = 1; f.Name != "malformed" {
					return true
				}
			default:
				return true
			}
			message := literal(call.Args[argument])
			if regexp.MustCompile(`[a-z]{3,} [a-z]`).MatchString(message) {
				found[message] = set.Position(call.Pos()).String()
			}
			return true
		})
	}
	if len(found) < 50 {
		t.Fatalf("only %d messages were found", len(found))
	}
	return found
}

// literal is a string constant as it is written, also in several parts.
func literal(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, _ := strconv.Unquote(e.Value)
		return s
	case *ast.BinaryExpr:
		return literal(e.X) + literal(e.Y)
	}
	return ""
}

// scriptQuotes are all patterns that scripts compare output with, without what makes them patterns.
func scriptQuotes(t *testing.T) string {
	t.Helper()
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	var quotes strings.Builder
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "stderr ") || strings.HasPrefix(line, "stdout ") {
				quotes.WriteString(strings.NewReplacer(`''`, `'`, `\`, ``).Replace(line))
			}
		}
	}
	return quotes.String()
}
