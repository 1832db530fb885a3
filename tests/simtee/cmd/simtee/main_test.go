package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/tests/simtee"
)

var (
	hostData    = strings.Repeat("17", 32)
	measurement = strings.Repeat("a5", 48)
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"simtee": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOSTDATA", hostData)
			env.Setenv("MEASUREMENT", measurement)
			env.Setenv("SOCKET", fmt.Sprintf("@simtee-test-%d", os.Getpid()))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"ask": ask},
	})
}

// ask SOCKET WORLD: get evidence and validate it.
func ask(ts *testscript.TestScript, _ bool, args []string) {
	var conn net.Conn
	var err error
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if conn, err = net.Dial("unix", args[0]); err == nil {
			break
		}
		if time.Now().After(deadline) {
			ts.Fatalf("nobody listens: %v", err)
		}
	}
	defer conn.Close()
	data := attestation.NewReportData("test")
	raw := data.Bytes()
	ts.Check(json.NewEncoder(conn).Encode(map[string][]byte{"reportData": raw[:]}))
	var answer struct {
		Evidence attestation.Evidence
		Error    string
	}
	ts.Check(json.NewDecoder(conn).Decode(&answer))
	if answer.Error != "" {
		ts.Fatalf("it answered %s", answer.Error)
	}
	world, err := simtee.Load(filepath.Join(ts.Getenv("WORK"), args[1]))
	ts.Check(err)
	m, err := simtee.ParseMeasurement(measurement)
	ts.Check(err)
	v, err := simulated.NewValidator([]simulated.ReferenceValue{world.Reference(m)})
	ts.Check(err)
	claims, err := v.Validate(context.Background(), answer.Evidence, data)
	ts.Check(err)
	if claims.PolicyHash.String() != hostData || !bytes.Equal(claims.Measurement, m[:]) {
		ts.Fatalf("the claims are %+v", claims)
	}
}
