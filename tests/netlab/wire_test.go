package netlab_test

import (
	"net"
	"net/netip"
	"testing"

	"portcullis.dev/portcullis/tests/netlab"
)

func TestTheWireHasNotedAllThatWasSentBeforeSync(t *testing.T) {
	a, b := netlab.NewHost(t, "wire-a"), netlab.NewHost(t, "wire-b")
	wire := netlab.Tap(t)
	from, err := a.ListenPacket("udp", netip.AddrPortFrom(a.IPv4, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to := &net.UDPAddr{IP: b.IPv4.AsSlice(), Port: 9}
	if err := wire.Sync(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	mark := wire.Mark()
	for range 500 {
		if _, err := from.WriteTo([]byte("in clear"), to); err != nil {
			t.Fatal(err)
		}
	}
	if err := wire.Sync(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if !wire.Saw(mark, "in clear") || wire.Saw(mark, "never said") {
		t.Errorf("saw what was said: %t, what was not: %t", wire.Saw(mark, "in clear"), wire.Saw(mark, "never said"))
	}
}
