package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Status is what the live table is and what it counted.
type Status struct {
	State      State     `json:"state"`
	Difference string    `json:"difference,omitempty"` // of a foreign table: the first line that is not ours
	Ports      Ports     `json:"ports,omitzero"`       // of state mesh
	Egress     Egress    `json:"egress"`               // of states closed and mesh
	Counters   []Counter `json:"counters,omitempty"`   // one per rule that counts, in order
}

// A Counter is one rule's. A drop is a packet that the gate stopped there.
type Counter struct {
	Chain   string `json:"chain"`
	Rule    string `json:"rule"`              // as nft writes it
	Meaning string `json:"meaning,omitempty"` // what it counts, in words; of a rule of ours
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
	status, _, err := inspect(ctx)
	return status, err
}

// inspect also says which generation of the rules it read.
func inspect(ctx context.Context) (Status, uint32, error) {
	live, generation, err := read(ctx)
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: reading the firewall takes CAP_NET_ADMIN in this network namespace", err)
	}
	if err != nil {
		return Status{}, 0, fmt.Errorf("inspect the guard: %w", err)
	}
	return live.status(), generation, nil
}

func (l *listing) status() Status {
	if l == nil {
		return Status{State: Opened}
	}
	ports, egress := l.ports(), l.egress() // the only parts of the table that may vary
	wantClosed, wantMesh := closed(egress).listing(), mesh(ports, egress, proxyCgroupID()).listing()
	l.name(wantClosed, wantMesh)
	status := Status{State: Foreign, Counters: l.counters()}
	switch {
	case difference(wantClosed, l) == "":
		status.State, status.Egress = Closed, egress.public()
	case len(l.portSets) == 0:
		status.Difference = difference(wantClosed, l)
	case difference(wantMesh, l) != "":
		status.Difference = difference(wantMesh, l)
	case ports.check() != nil:
		status.Difference = ports.check().Error()
	default:
		status.State, status.Ports, status.Egress = Mesh, ports, egress.public()
	}
	return status
}

func (l *listing) ports() Ports {
	return Ports{
		PlaintextTCP: portsOf(l.portSets["plaintext_tcp"]),
		PlaintextUDP: portsOf(l.portSets["plaintext_udp"]),
		NoClientAuth: portsOf(l.portSets["no_client_auth"]),
	}
}

// name gives those rules that ours have, too, their texts and meanings.
func (l *listing) name(ours ...*listing) {
	known := map[string]line{}
	for _, o := range ours {
		for _, line := range o.lines {
			known[line.key] = line
		}
	}
	for i, line := range l.lines {
		l.lines[i].text, l.lines[i].meaning = known[line.key].text, known[line.key].meaning
	}
}

func (l *listing) counters() []Counter {
	var out []Counter
	for _, r := range l.lines {
		if r.counter != nil {
			out = append(out, Counter{
				Chain: r.chain, Rule: cmp.Or(r.text, r.key), Meaning: r.meaning, Drop: r.drop,
				Packets: r.counter.packets, Bytes: r.counter.bytes,
			})
		}
	}
	return out
}
