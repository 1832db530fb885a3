// Package order is what must have happened before what in every boot of a podVM, by the guest's own clock.
package order

import (
	"fmt"
	"strconv"
	"time"

	"portcullis.dev/portcullis/tests/podvm/kata"
)

// Properties of systemd's units, in microseconds since the kernel began: org.freedesktop.systemd1(5).
const (
	Active  = "ActiveEnterTimestampMonotonic"
	Started = "ExecMainStartTimestampMonotonic"
)

// event is a moment in the life of a unit.
type event struct{ unit, when string }

var orders = []struct {
	first, second event
	why           string
}{
	{event{"podvm-guard.service", Active}, event{"network-pre.target", Active}, "no interface is configured before the gate is down"},
	{event{"podvm-guard.service", Active}, event{"kata-agent.service", Started}, "no container, and no address, before the gate is down"},
	{event{"podvm-guard.service", Active}, event{"podvm-attest.socket", Active}, "what is served is for pods behind the gate"},
	{event{"podvm-guard.service", Active}, event{"podvm-initdata.service", Started}, "what the host attached is read behind the gate"},
	{event{"podvm-initdata.service", Active}, event{"kata-agent.service", Started}, "the agent's policy is the verified one"},
	{event{"kata-agent.service", Started}, event{"kata-containers.target", Active}, "what Kata boots waits for the agent"},
}

// Units are those that Faults looks at.
func Units() (names []string) {
	seen := map[string]bool{}
	for _, o := range orders {
		for _, u := range []string{o.first.unit, o.second.unit} {
			if !seen[u] {
				seen[u] = true
				names = append(names, u)
			}
		}
	}
	return names
}

// Faults compares the times of a boot, and returns them in a line as well.
func Faults(e kata.Evidence) (faults []string, times string) {
	for _, o := range orders {
		first, second := At(e, o.first.unit, o.first.when), At(e, o.second.unit, o.second.when)
		if first == 0 || second == 0 || first >= second {
			faults = append(faults, fmt.Sprintf("%s (%v) was not before %s (%v): %s", o.first.unit, first, o.second.unit, second, o.why))
		}
	}
	return faults, fmt.Sprintf("gate %v, initdata %v, agent %v, target %v", tenths(At(e, "podvm-guard.service", Active)),
		tenths(At(e, "podvm-initdata.service", Active)), tenths(At(e, "kata-agent.service", Started)), tenths(At(e, "kata-containers.target", Active)))
}

// tenths of a millisecond are as fine as anybody reads.
func tenths(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// At is when something happened, and zero where it never did.
func At(e kata.Evidence, unit, property string) time.Duration {
	n, _ := strconv.ParseInt(e.Units[unit][property], 10, 64)
	return time.Duration(n) * time.Microsecond
}
