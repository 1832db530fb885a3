package guard

import (
	"cmp"
	"context"
	"fmt"
)

// Status is what the live table is and what it counted.
type Status struct {
	State      State     `json:"state"`
	Difference string    `json:"difference,omitempty"` // of a foreign table: the first line that is not ours
	Ports      Ports     `json:"ports,omitzero"`       // of state mesh
	Counters   []Counter `json:"counters,omitempty"`   // one per rule that counts, in order
}

// A Counter is one rule's. A drop is a packet that the gate stopped there.
type Counter struct {
	Chain   string `json:"chain"`
	Rule    string `json:"rule"` // as nft writes it
	Drop    bool   `json:"drop"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Acceptable reports whether a guard stands, as it was meant.
func (s Status) Acceptable() bool { return s.State == Closed || s.State == Mesh }

// Drops is the number of packets that the gate stopped.
func (s Status) Drops() uint64 {
	var sum uint64
	for _, c := range s.Counters {
		if c.Drop {
			sum += c.Packets
		}
	}
	return sum
}

// Inspect reads the live table and says which state it is: Opened without a table, Foreign when any line of it differs
// from all of ours, in content or in order.
func Inspect(ctx context.Context) (Status, error) {
	live, err := read(ctx)
	if err != nil {
		return Status{}, fmt.Errorf("inspect the guard: %w", err)
	}
	if live == nil {
		return Status{State: Opened}, nil
	}
	ports := live.ports() // the only part of the table that may vary
	wantClosed, wantMesh := closed().listing(), mesh(ports).listing()
	live.name(wantClosed, wantMesh)
	status := Status{State: Foreign, Counters: live.counters()}
	switch {
	case difference(wantClosed, live) == "":
		status.State = Closed
	case len(live.portSets) == 0:
		status.Difference = difference(wantClosed, live)
	case difference(wantMesh, live) != "":
		status.Difference = difference(wantMesh, live)
	case ports.check() != nil:
		status.Difference = ports.check().Error()
	default:
		status.State, status.Ports = Mesh, ports
	}
	return status, nil
}

func (l *listing) ports() Ports {
	return Ports{
		PlaintextTCP: portsOf(l.portSets["plaintext_tcp"]),
		PlaintextUDP: portsOf(l.portSets["plaintext_udp"]),
		NoClientAuth: portsOf(l.portSets["no_client_auth"]),
	}
}

// name gives those rules that ours have, too, their texts.
func (l *listing) name(ours ...*listing) {
	texts := map[string]string{}
	for _, o := range ours {
		for _, line := range o.lines {
			texts[line.key] = line.text
		}
	}
	for i, line := range l.lines {
		l.lines[i].text = texts[line.key]
	}
}

func (l *listing) counters() []Counter {
	var out []Counter
	for _, r := range l.lines {
		if r.counter != nil {
			out = append(out, Counter{
				Chain: r.chain, Rule: cmp.Or(r.text, r.key), Drop: r.drop,
				Packets: r.counter.packets, Bytes: r.counter.bytes,
			})
		}
	}
	return out
}
