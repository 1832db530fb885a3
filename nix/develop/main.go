// Command develop is the builder of the flake's devShell. `nix develop` takes a derivation whose builder is called bash, has it
// run a script of its own, and expects the environment that the script finds, as JSON. A store without nixpkgs has no bash: this
// program writes the same, of the derivation's own variables, and is called bash for it.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

func main() {
	if err := write(os.Getenv("out"), os.Environ()); err != nil {
		fmt.Fprintln(os.Stderr, "develop:", err)
		os.Exit(1)
	}
}

type variable struct {
	Type  string `json:"type"` // "exported"
	Value string `json:"value"`
}

// write leaves environment, of NAME=value, in file.
func write(file string, environment []string) error {
	variables := map[string]variable{}
	for _, e := range environment {
		name, value, _ := strings.Cut(e, "=")
		if name == "PWD" {
			continue // the builder's folder; the shell has one of its own
		}
		variables[name] = variable{"exported", value}
	}
	// What Nix rewrites, when the shell is entered, so that nobody writes to the store.
	variables["outputs"] = variable{"exported", "out"}
	content, err := json.MarshalIndent(map[string]any{"bashFunctions": map[string]string{}, "variables": variables}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(content, '\n'), 0o644)
}
