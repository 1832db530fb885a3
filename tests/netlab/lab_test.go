package netlab_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/tests/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

func TestHostsReachEachOtherOverBothFamilies(t *testing.T) {
	a, b := netlab.NewHost(t, "a"), netlab.NewHost(t, "b")
	for _, addr := range b.Addresses() {
		l, err := b.Listen("tcp", netip.AddrPortFrom(addr, 8080).String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				io.WriteString(c, "hello")
				c.Close()
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c, err := a.Dial(ctx, "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		got, err := io.ReadAll(c)
		if string(got) != "hello" || err != nil {
			t.Errorf("over %s: read %q, %v", addr, got, err)
		}
	}
}

func TestCommandRunsInTheHostsNetwork(t *testing.T) {
	h := netlab.NewHost(t, "c")
	out, err := h.Command("ip", "-o", "addr", "show", "dev", "eth0").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, addr := range h.Addresses() {
		if !strings.Contains(string(out), addr.String()+"/") {
			t.Errorf("eth0 lacks %s:\n%s", addr, out)
		}
	}
	if os.Getpid() != 1 || os.Getuid() != 0 {
		t.Errorf("pid %d, uid %d in the lab, want 1 and 0", os.Getpid(), os.Getuid())
	}
}

func TestTheSwitchKeepsItsAddressAsHostsComeAndGo(t *testing.T) {
	first := netlab.NewHost(t, "first")
	seen := map[string]bool{}
	for range 8 {
		h := netlab.NewHost(t, "next")
		gateway, err := net.InterfaceByName("switch")
		if err != nil {
			t.Fatal(err)
		}
		seen[gateway.HardwareAddr.String()] = true
		h.Close()
	}
	if len(seen) != 1 {
		t.Errorf("%s has to learn the switch's address anew: %v", first.Name, seen)
	}
}
