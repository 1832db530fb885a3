package evidence_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/evidence"
)

// slow answers after a while.
type slow time.Duration

func (s slow) Issue(context.Context, attestation.ReportData) (attestation.Evidence, error) {
	time.Sleep(time.Duration(s))
	return attestation.Evidence{}, errors.New("no")
}

// Whoever asks keeps it there, also one whose answer takes longer than it would stay.
func TestServeUntilIdle(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	ended := make(chan error, 1)
	go func() {
		ended <- evidence.ServeUntilIdle(context.Background(), l, slow(600*time.Millisecond), 200*time.Millisecond)
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(`{"reportData":"` + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 64)) + "\"}\n")); err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if n, err := conn.Read(make([]byte, 100)); n == 0 {
		t.Errorf("no answer: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < 800*time.Millisecond {
		t.Errorf("it stayed for %v", took)
	}
	if _, err := net.Dial("unix", l.Addr().String()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it listens on: %v", err)
	}
}
