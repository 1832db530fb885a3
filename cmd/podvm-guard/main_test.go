package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"portcullis.dev/portcullis/tests/netlab"
)

func TestMain(m *testing.M) {
	commands := map[string]func(){"podvm-guard": main}
	if commands[filepath.Base(os.Args[0])] == nil {
		netlab.Enter() // the scripts run in the lab; podvm-guard itself runs where a script puts it
	}
	testscript.Main(m, commands)
}

// Each script has a guest of its own. "exits CODE COMMAND..." runs a command in the guest's network and asserts its exit
// code; stdout and stderr then match as after exec.
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, script := range scripts {
		guest := netlab.NewHost(t, "guest")
		testscript.Run(t, testscript.Params{
			Files: []string{script},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"exits": func(ts *testscript.TestScript, neg bool, args []string) {
					if neg || len(args) < 2 {
						ts.Fatalf("usage: exits CODE COMMAND...")
					}
					want, err := strconv.Atoi(args[0])
					ts.Check(err)
					cmd := guest.Command(args[1], args[2:]...)
					cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // else each run takes a second under -race
					cmd.Dir, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), ts.Stdout(), ts.Stderr()
					err = cmd.Run()
					if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
						ts.Check(err)
					}
					if got := cmd.ProcessState.ExitCode(); got != want {
						ts.Fatalf("%s: exit code %d, want %d", strings.Join(args[1:], " "), got, want)
					}
				},
			},
		})
	}
}
