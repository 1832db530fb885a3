package meshproxy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRestartsAreSpacedMoreAndMore(t *testing.T) {
	var b backoff
	var got []time.Duration
	for range 8 {
		got = append(got, b.next(time.Second))
	}
	want := []time.Duration{
		250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second,
		10 * time.Second, 10 * time.Second,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if after := b.next(time.Minute); after != 250*time.Millisecond {
		t.Errorf("after a stable minute %v, want 250ms", after)
	}
}

func TestTicketKeysHaveOnePredecessor(t *testing.T) {
	first := newTickets([]string{"a", "b"})
	second := first.rotated()
	third := second.rotated()
	for _, chain := range []string{"a", "b"} {
		if len(first[chain]) != 1 || len(second[chain]) != 2 || len(third[chain]) != 2 {
			t.Fatalf("chain %s has %d, %d, %d keys, want 1, 2, 2", chain, len(first[chain]), len(second[chain]), len(third[chain]))
		}
		if second[chain][1] != first[chain][0] || third[chain][1] != second[chain][0] {
			t.Errorf("chain %s: the predecessor is not what made tickets before", chain)
		}
		if slices.Contains(third[chain], first[chain][0]) || second[chain][0] == second[chain][1] {
			t.Errorf("chain %s: an old key lives on", chain)
		}
	}
	if third["a"][0] == third["b"][0] || third["a"][0] == (ticketKey{}) {
		t.Error("the keys are not each chain's own")
	}
	if s := fmt.Sprintf("%v %+v %#v %s", third, third, third, third); strings.ContainsAny(s, "0x[{") {
		t.Errorf("a log would show %s", s)
	}
}
