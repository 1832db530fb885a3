package evidence_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/evidence"
)

// echo is a TEE whose report is the report data.
type echo struct{ asked atomic.Int64 }

func (e *echo) Issue(_ context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	e.asked.Add(1)
	b := data.Bytes()
	return attestation.Evidence{Platform: attestation.Simulated, Report: b[:], Certificates: []byte("table")}, nil
}

type issuerFunc func(context.Context, attestation.ReportData) (attestation.Evidence, error)

func (f issuerFunc) Issue(ctx context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	return f(ctx, data)
}

var socketNumber atomic.Int64

// serve serves an issuer on a socket of its own until the test ends, and sees Serve end well.
func serve(t *testing.T, issuer attestation.Issuer) (socket string) {
	t.Helper()
	socket = fmt.Sprintf("@podvm-attest-test-%d-%d", os.Getpid(), socketNumber.Add(1))
	l, err := evidence.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- evidence.Serve(ctx, l, issuer) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return socket
}

func client(t *testing.T, socket string) attestation.Issuer {
	t.Helper()
	issuer, err := evidence.NewSocketIssuer(socket)
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

func TestEvidenceArrivesAsItWasIssued(t *testing.T) {
	c := client(t, serve(t, &echo{}))
	for i := range 3 {
		data := attestation.NewReportData("test", []byte{byte(i)})
		e, err := c.Issue(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		want := data.Bytes()
		if e.Platform != attestation.Simulated || !bytes.Equal(e.Report, want[:]) || string(e.Certificates) != "table" {
			t.Errorf("got %+v", e)
		}
	}
}

func TestManyAskAtOnce(t *testing.T) {
	e := &echo{}
	c := client(t, serve(t, e))
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			data := attestation.NewReportData("test", []byte{byte(i)})
			want := data.Bytes()
			if got, err := c.Issue(t.Context(), data); err != nil || !bytes.Equal(got.Report, want[:]) {
				t.Errorf("request %d: %v", i, err)
			}
		})
	}
	all.Wait()
	if n := e.asked.Load(); n != 100 {
		t.Errorf("the TEE was asked %d times, want 100", n)
	}
}

func TestTheIssuersErrorReachesTheClient(t *testing.T) {
	c := client(t, serve(t, issuerFunc(func(context.Context, attestation.ReportData) (attestation.Evidence, error) {
		return attestation.Evidence{}, errors.New("firmware busy")
	})))
	_, err := c.Issue(t.Context(), attestation.NewReportData("test"))
	if err == nil || !strings.Contains(err.Error(), "firmware busy") {
		t.Errorf("got %v", err)
	}
}

func TestTheTEEIsNotAskedForMalformedRequests(t *testing.T) {
	e := &echo{}
	socket := serve(t, e)
	encode := func(n int) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, n)) }
	for name, request := range map[string]string{
		"not JSON":              "hello\n",
		"empty line":            "\n",
		"no report data":        "{}\n",
		"null":                  "null\n",
		"report data of 63":     `{"reportData":"` + encode(63) + `"}` + "\n",
		"report data of 65":     `{"reportData":"` + encode(65) + `"}` + "\n",
		"report data of zeros":  `{"reportData":"` + base64.StdEncoding.EncodeToString(make([]byte, 64)) + `"}` + "\n",
		"unknown field":         `{"reportData":"` + encode(64) + `","vmpl":1}` + "\n",
		"two requests in one":   `{"reportData":"` + encode(64) + `"}{}` + "\n",
		"larger than a request": `{"reportData":"` + encode(64) + `"` + strings.Repeat(" ", 1<<16) + "}\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, request) // the server may have answered before it read all
			line, err := io.ReadAll(conn)
			if len(line) == 0 && err != nil {
				return // reset: it did not read what was too large
			}
			var answer struct {
				Evidence *attestation.Evidence
				Error    string
			}
			if err := json.Unmarshal(line, &answer); err != nil || answer.Error == "" || answer.Evidence != nil {
				t.Errorf("got %q, %v, want an error", line, err)
			}
		})
	}
	if n := e.asked.Load(); n != 0 {
		t.Errorf("the TEE was asked %d times", n)
	}
}

func TestAClientRefusesWhatIsNotEvidence(t *testing.T) {
	for name, tc := range map[string]struct{ answer, fault string }{
		"nothing":          {"", "EOF"},
		"not JSON":         {"hello\n", "malformed answer"},
		"no evidence":      {"{}\n", "without evidence"},
		"empty evidence":   {`{"evidence":{}}` + "\n", "without evidence"},
		"unfinished":       {`{"evidence":`, "unexpected EOF"},
		"unknown field":    {`{"evidence":{"platform":"snp","report":"AA=="},"x":1}` + "\n", "unknown field"},
		"error":            {`{"error":"no"}` + "\n", "it answered: no"},
		"never ends":       {strings.Repeat("A", 2<<20), "more than"},
		"two in one line":  {`{"error":"no"}{}` + "\n", "something follows"},
		"error, no detail": {`{"error":""}` + "\n", "without evidence"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := fmt.Sprintf("@podvm-attest-test-%d-%d", os.Getpid(), socketNumber.Add(1))
			l, err := evidence.Listen(socket)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer conn.Close()
						var b [1]byte
						if _, err := conn.Read(b[:]); err == nil {
							_, _ = io.WriteString(conn, tc.answer)
							// Closing before the request was read would reset the connection.
							_ = conn.(*net.UnixConn).CloseWrite()
							_, _ = io.Copy(io.Discard, conn)
						}
					}()
				}
			}()
			_, err = client(t, socket).Issue(t.Context(), attestation.NewReportData("test"))
			if err == nil || !strings.Contains(err.Error(), tc.fault) {
				t.Errorf("got %v, want an error about %q", err, tc.fault)
			}
		})
	}
}

func TestAClientThatGoesCancelsItsRequest(t *testing.T) {
	started := make(chan struct{})
	c := client(t, serve(t, issuerFunc(func(ctx context.Context, _ attestation.ReportData) (attestation.Evidence, error) {
		close(started)
		<-ctx.Done() // when the server stops
		return attestation.Evidence{}, ctx.Err()
	})))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-started
		cancel()
	}()
	begin := time.Now()
	if _, err := c.Issue(ctx, attestation.NewReportData("test")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestNoReportDataIsNotAsked(t *testing.T) {
	e := &echo{}
	if _, err := client(t, serve(t, e)).Issue(t.Context(), attestation.ReportData{}); err == nil {
		t.Error("evidence over nothing was issued")
	}
	if e.asked.Load() != 0 {
		t.Error("the TEE was asked")
	}
}

func TestASocketIsServedOnce(t *testing.T) {
	if _, err := evidence.Listen(serve(t, &echo{})); err == nil {
		t.Error("a second server got the same socket")
	}
}
