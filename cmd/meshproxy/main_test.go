package main

import (
	"errors"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"meshproxy": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// exits CODE PROGRAM [ARGUMENT]... runs a program that must end with that exit code.
			"exits": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: exits CODE PROGRAM [ARGUMENT]...")
				}
				got := 0
				if err := ts.Exec(args[1], args[2:]...); err != nil {
					e, ok := errors.AsType[*exec.ExitError](err)
					if !ok {
						ts.Fatalf("run %s: %v", args[1], err)
					}
					got = e.ExitCode()
				}
				if strconv.Itoa(got) != args[0] {
					ts.Fatalf("%s exits %d, want %s", args[1], got, args[0])
				}
			},
		},
	})
}
