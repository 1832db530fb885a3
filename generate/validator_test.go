package generate_test

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"sync"
	"testing"
)

var background = context.Background()

// validator is Kubernetes' own validation, tests/cluster/validate, as a process that is asked again and again. Nil accepts
// nothing, so that nothing is compared.
type validator struct {
	mu  sync.Mutex
	in  *json.Encoder
	out *json.Decoder
}

// newValidator starts the program in PORTCULLIS_VALIDATE, which make sets.
func newValidator(t *testing.T) *validator {
	t.Helper()
	program := os.Getenv("PORTCULLIS_VALIDATE")
	if program == "" {
		t.Log("SKIPPED: Kubernetes' validation of what is made; PORTCULLIS_VALIDATE names no program (make test sets it, make validate builds it)")
		return nil
	}
	cmd := exec.Command(program, "--stream")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	t.Cleanup(func() {
		_ = in.Close() // it ends with its input
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", program, err)
		}
	})
	return &validator{in: json.NewEncoder(in), out: json.NewDecoder(bufio.NewReader(out))}
}

func (v *validator) faults(t fataler, text string) []string {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	var faults []string
	if err := v.in.Encode(text); err != nil {
		t.Fatalf("ask the validator: %v", err)
	}
	if err := v.out.Decode(&faults); err != nil {
		t.Fatalf("the validator's answer: %v", err)
	}
	return faults
}

// accepts says whether an API server would take what is in text.
func (v *validator) accepts(t fataler, text string) bool {
	t.Helper()
	return v != nil && len(v.faults(t, text)) == 0
}

func (v *validator) wantAccepted(t fataler, text string) {
	t.Helper()
	if faults := v.faults(t, text); len(faults) > 0 {
		t.Fatalf("Kubernetes refuses what generate made: %q\n%s", faults, text)
	}
}
