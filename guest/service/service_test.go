package service_test

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/service"
)

// manager is systemd's end of its socket.
func manager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	return conn
}

// hear is the next message, and closes the descriptors that come with it.
func hear(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	b, oob := make([]byte, 512), make([]byte, 64)
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		descriptors, err := unix.ParseUnixRights(&m)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range descriptors {
			unix.Close(d)
		}
	}
	return string(b[:n])
}

func TestSystemdHears(t *testing.T) {
	conn := manager(t)
	n := service.Systemd()
	n.Status("waits for a Coordinator")
	n.Ready("credentials until tomorrow")
	n.Alive()
	for _, want := range []string{"STATUS=waits for a Coordinator", "READY=1\nSTATUS=credentials until tomorrow", "WATCHDOG=1"} {
		if got := hear(t, conn); got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
}

// Whoever ends at once waits until it was heard.
func TestDoneWaits(t *testing.T) {
	conn := manager(t)
	done := make(chan error, 1)
	go func() { done <- service.Systemd().Done("nothing to do") }()
	if got := hear(t, conn); !strings.HasPrefix(got, "READY=1\n") {
		t.Errorf("heard %q", got)
	}
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if got := hear(t, conn); got != "BARRIER=1" {
		t.Errorf("heard %q", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// In a container the environment is the host's: the zero value speaks to nobody.
func TestTheZeroValueIsSilent(t *testing.T) {
	conn := manager(t)
	var n service.Notifier
	n.Ready("x")
	n.Status("x")
	n.Alive()
	if err := n.Done("x"); err != nil {
		t.Error(err)
	}
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if k, err := conn.Read(make([]byte, 10)); err == nil {
		t.Errorf("heard %d bytes", k)
	}
}
