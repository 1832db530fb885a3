package meshproxy

import (
	"context"
	"errors"
	"testing"

	"portcullis.dev/portcullis/guest/guard"
)

// tableGuard is a guard whose only counter a test sets.
type tableGuard struct {
	Guard
	status  guard.Status
	packets uint64
	err     error
}

func (g *tableGuard) Inspect(context.Context) (guard.Status, error) {
	g.status.Counters = []guard.Counter{
		{Meaning: "to a listener of the proxy itself", Drop: true, Packets: g.packets},
		{Meaning: "to the proxy, for mutual TLS", Packets: 1000},
		{Meaning: "something new", Drop: true, Packets: 1},
	}
	return g.status, nil
}

func (g *tableGuard) Close(context.Context) error {
	if g.err == nil {
		g.packets = 0
	}
	return g.err
}

func TestCountersGoOnWhereATableEnds(t *testing.T) {
	ctx := t.Context()
	table := &tableGuard{status: guard.Status{State: guard.Mesh}}
	g := &countingGuard{Guard: table}
	steps := []struct {
		what string
		do   func()
		want uint64
	}{
		{"at the start", func() {}, 0},
		{"drops", func() { table.packets = 5 }, 5},
		{"a look without drops", func() {}, 5},
		{"drops that nobody saw before the change", func() { table.packets = 7; g.Close(ctx) }, 7},
		{"more drops than the table before had", func() { table.packets = 9 }, 16},
		{"a change that fails", func() { table.packets = 10; table.err = errors.New("no"); g.Close(ctx) }, 17},
		{"a table that is not ours", func() { table.status.State = guard.Foreign; table.packets = 1 << 40 }, 17},
		{"ours again, made anew", func() { table.err = nil; g.Close(ctx); table.status.State = guard.Mesh; table.packets = 2 }, 19},
		{"counters that somebody set to zero", func() { table.packets = 1 }, 20},
	}
	for _, step := range steps {
		step.do()
		if _, err := g.Inspect(ctx); err != nil {
			t.Fatal(err)
		}
		if got := g.packets()["to_proxy"]; got != step.want {
			t.Errorf("%s: %d packets, want %d", step.what, got, step.want)
		}
	}
	if got := g.packets(); len(got) != len(dropReasons)+1 || got[dropOther] == 0 {
		t.Errorf("%v: want every reason, and the one without a word among the others", got)
	}
}
