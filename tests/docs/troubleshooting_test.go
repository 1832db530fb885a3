package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// shipped is what runs in podVMs and speaks through a log.
var shipped = []string{
	"attestation", "cmd", "coordinator", "guest", "initializer", "meshproxy",
}

// noMessages are first arguments of calls that look like a log's and are not, and why.
var noMessages = map[string]string{}

// literal is a string that is written in the source, in one piece or several.
func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, err := strconv.Unquote(e.Value)
			return text, err == nil
		}
	case *ast.BinaryExpr:
		left, ok := literal(e.X)
		right, too := literal(e.Y)
		return left + right, ok && too && e.Op == token.ADD
	}
	return "", false
}

// calls visits the calls of a source file.
func calls(t *testing.T, name, text string, visit func(called string, call *ast.CallExpr)) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, text, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			switch f := call.Fun.(type) {
			case *ast.SelectorExpr:
				visit(f.Sel.Name, call)
			case *ast.Ident:
				visit(f.Name, call)
			}
		}
		return true
	})
}

// complaints are what a source file logs as a warning or an error.
func complaints(t *testing.T, name, text string) (all []string) {
	t.Helper()
	calls(t, name, text, func(called string, call *ast.CallExpr) {
		at := -1
		switch called {
		case "Warn", "Error":
			at = 0
		case "WarnContext", "ErrorContext":
			at = 1
		case "LogAttrs", "Log":
			if len(call.Args) < 3 {
				return
			}
			if level, ok := call.Args[1].(*ast.SelectorExpr); ok && level.Sel.Name != "LevelWarn" && level.Sel.Name != "LevelError" {
				return
			}
			at = 2
		}
		if at < 0 || at >= len(call.Args) {
			return
		}
		if message, ok := literal(call.Args[at]); ok {
			all = append(all, message)
		}
	})
	return all
}

// spans are what stands in a page as code.
func spans(page string) (all []string) {
	for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(page, -1) {
		all = append(all, m[1])
	}
	return all
}

func TestEveryComplaintIsExplained(t *testing.T) {
	said := spans(read(t, "docs/troubleshooting.md"))
	messages := make(map[string]string)
	for name, text := range sources(t, shipped...) {
		for _, message := range complaints(t, name, text) {
			messages[message] = name
		}
	}
	// The Coordinator's refusals are in a table, since they are one for each route.
	refusals := regexp.MustCompile(`api\.Path[A-Za-z]+: +"([a-z ]+ refused)"`).FindAllStringSubmatch(read(t, "coordinator/http.go"), -1)
	for _, m := range refusals {
		messages[m[1]] = "coordinator/http.go"
	}
	if len(messages) < 40 || len(refusals) < 7 {
		t.Fatalf("only %d messages were found, %d of them refusals", len(messages), len(refusals))
	}
	for message, name := range messages {
		if noMessages[message] == "" && !slices.Contains(said, message) {
			t.Errorf("docs/troubleshooting.md does not explain %q (%s)", message, name)
		}
	}
	// And none that nobody says any more.
	for _, line := range strings.Split(section(t, "docs/troubleshooting.md", "Logs: Initializer")+section(t, "docs/troubleshooting.md", "Logs: mesh proxy")+
		section(t, "docs/troubleshooting.md", "Logs: Coordinator")+section(t, "docs/troubleshooting.md", "Logs: podvm-attest")+
		section(t, "docs/troubleshooting.md", "Logs: podvm-initdata"), "\n") {
		if first, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | "); strings.HasPrefix(line, "| `") {
			for _, message := range spans(first) {
				if messages[message] == "" {
					t.Errorf("docs/troubleshooting.md explains %q, which nobody says", message)
				}
			}
		}
	}
}

func TestEveryCodeAndStateIsExplained(t *testing.T) {
	var api struct {
		Problems   map[string]any `yaml:"x-problems"`
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct{ Enum []string }
			}
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "docs/openapi.yaml")), &api); err != nil {
		t.Fatal(err)
	}
	codes := spans(section(t, "docs/troubleshooting.md", "Codes of the API"))
	if len(api.Problems) < 15 {
		t.Fatalf("openapi.yaml has %d codes", len(api.Problems))
	}
	for code := range api.Problems {
		if !slices.Contains(codes, code) {
			t.Errorf("docs/troubleshooting.md does not explain the code %s", code)
		}
	}
	states := spans(section(t, "docs/troubleshooting.md", "States of a Coordinator"))
	all := api.Components.Schemas["Health"].Properties["state"].Enum
	if len(all) < 5 {
		t.Fatalf("openapi.yaml has the states %q", all)
	}
	for _, state := range all {
		if !slices.Contains(states, state) {
			t.Errorf("docs/troubleshooting.md does not explain the state %s", state)
		}
	}
}

func TestEveryRejectedFieldIsExplained(t *testing.T) {
	said := spans(section(t, "docs/troubleshooting.md", "Rejected evidence"))
	field := regexp.MustCompile(`^[A-Z][A-Z0-9_]+(\.[A-Z0-9_]*)*$`)
	found := make(map[string]string)
	for name, text := range sources(t, "attestation") {
		if strings.Contains(name, "decode") || strings.Contains(name, "tsm/") {
			continue // it explains fields, and rejects none
		}
		calls(t, name, text, func(called string, call *ast.CallExpr) {
			if len(call.Args) == 0 {
				return
			}
			first := call.Args[0]
			if sum, ok := first.(*ast.BinaryExpr); ok { // "CHAIN." + which
				first = sum.X
			}
			if name, ok := literal(first); ok && field.MatchString(name) {
				found[name] = called
			}
		})
	}
	if len(found) < 45 {
		t.Fatalf("only %d fields were found: %v", len(found), found)
	}
	for name, called := range found {
		explained := slices.ContainsFunc(said, func(s string) bool {
			begins, all := strings.CutSuffix(s, "*")
			return s == name || all && strings.HasPrefix(name, begins)
		})
		if !explained {
			t.Errorf("docs/troubleshooting.md does not explain the field %s (%s)", name, called)
		}
	}
}

func TestAComplaintIsFound(t *testing.T) {
	const source = `package x
func f() {
	log.Warn("one")
	s.Log.Error("two " + "parts", "err", err)
	log.LogAttrs(ctx, slog.LevelWarn, "three")
	log.LogAttrs(ctx, level, "four")
	log.LogAttrs(ctx, slog.LevelInfo, "not")
	log.Info("not")
	_ = err.Error()
}`
	if got := complaints(t, "x.go", source); !slices.Equal(got, []string{"one", "two parts", "three", "four"}) {
		t.Errorf("%q", got)
	}
}
