package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// What `nix develop` reads: its own script writes this shape.
func TestTheEnvironmentIsWhatNixReads(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out")
	if err := write(file, []string{"PATH=/go/bin", "EMPTY=", "EQUALS=a=b", "PWD=/build", "out=/store/out"}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		BashFunctions map[string]string   `json:"bashFunctions"`
		Variables     map[string]variable `json:"variables"`
	}
	if err := json.Unmarshal(content, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"PATH": "/go/bin", "EMPTY": "", "EQUALS": "a=b", "out": "/store/out", "outputs": "out"}
	if got.BashFunctions == nil || len(got.Variables) != len(want) {
		t.Errorf("it is %s", content)
	}
	for name, value := range want {
		if got.Variables[name] != (variable{"exported", value}) {
			t.Errorf("%s is %v", name, got.Variables[name])
		}
	}
}

func TestNowhereToWriteIsAnError(t *testing.T) {
	if write("", nil) == nil {
		t.Error("no error")
	}
}
