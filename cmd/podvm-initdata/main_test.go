package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"portcullis.dev/portcullis/cmd/internal/command"
)

// What is misspelt in a unit must not go on with something else.
func TestUsage(t *testing.T) {
	out := filepath.Join(t.TempDir(), "podvm")
	for _, args := range [][]string{
		{"--wait", "2m"}, {"--wait", "-1s"}, {"--wait", "soon"}, {"--no-such-word"}, {"/run/podvm"},
	} {
		err := run(context.Background(), append([]string{"--out", out}, args...))
		if _, ok := errors.AsType[*command.UsageError](err); !ok {
			t.Errorf("%q: error %v, want one of usage", args, err)
		}
		if _, err := os.Lstat(out); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: delivered: %v", args, err)
		}
	}
}
