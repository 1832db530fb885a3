package envoy_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/meshproxy/envoy"
	"portcullis.dev/portcullis/meshproxy/internal/testenvoy"
)

func TestFullHeapTurnsNewConnectionsAway(t *testing.T) {
	for name, tt := range map[string]struct {
		heap   int64
		closed bool
	}{
		"a full heap":      {1 << 20, true}, // less than Envoy starts with
		"a heap with room": {1 << 30, false},
		"the least heap":   {32 << 20, false}, // half of the least memory that the mesh proxy starts with
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// a peer that is slow to shake hands, so that a connection to it lasts
			peer, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			listener := startCaller(t, peer.Addr().String(), tt.heap)
			began, closed := time.Now(), false
			for !closed && time.Since(began) < 3*time.Second { // the heap is looked at once a second
				closed = closesAtOnce(t, listener)
			}
			if closed != tt.closed {
				t.Errorf("heap of %d MiB: new connections are closed: %v", tt.heap>>20, closed)
			}
		})
	}
}

// startCaller runs Envoy with one egress entry, and returns where that listens.
func startCaller(t *testing.T, remote string, heap int64) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := free.Addr().String()
	free.Close()
	cfg, err := config.Parse("CLOSED", fmt.Sprintf("peer#%s#%s#any", listener, remote), "", "")
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp("", "envoy") // the test's own name is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	dir := envoy.Dir(folder)
	b, err := envoy.Bootstrap(cfg, envoy.Options{Dir: dir, MaxConnections: 100, MaxHeap: heap, MaxAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir.Bootstrap(), raw)
	if err := os.Mkdir(dir.AdminDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	chain, key := selfSigned(t)
	for name, content := range envoy.CredentialFiles(chain, key, chain) {
		write(t, dir.Credentials().File(name[:len(name)-len(".json")]), content)
	}
	var log bytes.Buffer
	cmd := exec.Command(testenvoy.Path(t), "-c", dir.Bootstrap(), "--concurrency", "1", "--disable-hot-restart", "-l", "warning")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("envoy:\n%s", &log)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", listener)
		if err == nil {
			c.Close()
			return listener
		}
		if time.Now().After(deadline) {
			t.Fatalf("envoy does not listen: %v", err)
		}
	}
}

// closesAtOnce connects, and says whether the connection is closed before anything is sent.
func closesAtOnce(t *testing.T, address string) bool {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}
