// Command builder is what a Nix build has in place of a shell and coreutils. It is built by Go alone, from this one file.
//
//	builder stage SRC [FOLDER=TREE]... -- COMMAND...  copies SRC to where it can be written, each TREE into that as FOLDER,
//	                                                  and runs COMMAND there: -mod=vendor wants vendor/ beside go.mod
//	builder write FILE TEXT                           makes a file
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "builder:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "write":
		return os.WriteFile(args[1], []byte(args[2]), 0o644)
	case len(args) > 0 && args[0] == "stage":
		end := slices.Index(args, "--")
		if end < 2 || end == len(args)-1 {
			break
		}
		dir, err := os.MkdirTemp("", "stage")
		if err != nil {
			return err
		}
		tree := filepath.Join(dir, "src")
		if err := stage(tree, args[1], args[2:end]); err != nil {
			return err
		}
		command := exec.Command(args[end+1], args[end+2:]...)
		command.Dir = tree
		command.Stdout, command.Stderr = os.Stdout, os.Stderr
		return command.Run()
	}
	return errors.New("usage: builder stage SRC [FOLDER=TREE]... -- COMMAND..., or builder write FILE TEXT")
}

// stage copies src to tree, and each FOLDER=TREE into it.
func stage(tree, src string, folders []string) error {
	if err := os.CopyFS(tree, os.DirFS(src)); err != nil {
		return fmt.Errorf("copy %s: %w", src, err)
	}
	// A store's folders cannot be written to, and neither can their copies.
	if err := os.Chmod(tree, 0o755); err != nil {
		return err
	}
	for _, f := range folders {
		name, from, ok := strings.Cut(f, "=")
		if !ok || !filepath.IsLocal(name) {
			return fmt.Errorf("%q: want FOLDER=TREE", f)
		}
		if err := os.CopyFS(filepath.Join(tree, name), os.DirFS(from)); err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
	}
	return nil
}
