package guard

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Ports are what the mesh state lets past mutual TLS. The zero value names none: every TCP port is intercepted and
// asks for a client certificate, and no UDP comes in.
type Ports struct {
	PlaintextTCP []uint16 `json:"plaintextTCP,omitempty"` // not intercepted: the application gets what the peer sends
	PlaintextUDP []uint16 `json:"plaintextUDP,omitempty"`
	NoClientAuth []uint16 `json:"noClientAuth,omitempty"` // intercepted by the listener that asks for no client certificate
}

// check reports every fault. The proxy's own ports are refused because "plaintext" is decided before "never dialled
// directly", and a port in both TCP lists because one of the two readings would be weaker than meant.
func (p Ports) check() error {
	var faults []error
	for _, l := range p.lists() {
		for _, port := range l.ports {
			switch port {
			case 0:
				faults = append(faults, fmt.Errorf("%s port 0: want 1 to 65535", l.name))
			case PortIngress, PortIngressNoClientAuth:
				faults = append(faults, fmt.Errorf("%s port %d: it is the mesh proxy's own", l.name, port))
			}
		}
	}
	for _, port := range p.NoClientAuth {
		if slices.Contains(p.PlaintextTCP, port) {
			faults = append(faults, fmt.Errorf("TCP port %d: named both plaintext and without client certificate", port))
		}
	}
	return errors.Join(faults...)
}

// Equal says whether both name the same ports.
func (p Ports) Equal(q Ports) bool {
	for i, l := range p.lists() {
		if !slices.Equal(rangesOf(l.ports), rangesOf(q.lists()[i].ports)) {
			return false
		}
	}
	return true
}

// String names the ports for people.
func (p Ports) String() string {
	var parts []string
	for _, l := range p.lists() {
		if len(l.ports) > 0 {
			parts = append(parts, l.name+" "+rangesText(rangesOf(l.ports)))
		}
	}
	if parts == nil {
		return "none by name; all TCP asks for a client certificate"
	}
	return strings.Join(parts, "; ")
}

type portList struct {
	name  string
	ports []uint16
}

func (p Ports) lists() []portList {
	return []portList{
		{"plaintext TCP", p.PlaintextTCP},
		{"plaintext UDP", p.PlaintextUDP},
		{"TCP without client certificate", p.NoClientAuth},
	}
}

// A portRange includes both ends.
type portRange struct{ first, last uint16 }

// rangesText is for people, and for comparing.
func rangesText(ranges []portRange) string {
	var out []byte
	for i, r := range ranges {
		if i > 0 {
			out = append(out, ", "...)
		}
		out = strconv.AppendUint(out, uint64(r.first), 10)
		if r.last != r.first {
			out = strconv.AppendUint(append(out, '-'), uint64(r.last), 10)
		}
	}
	return string(out)
}

// rangesOf sorts, and joins neighbours, as the kernel refuses intervals that overlap.
func rangesOf(ports []uint16) []portRange {
	var out []portRange
	for _, p := range slices.Sorted(slices.Values(ports)) {
		if n := len(out); n > 0 && int(p) <= int(out[n-1].last)+1 {
			out[n-1].last = p
			continue
		}
		out = append(out, portRange{p, p})
	}
	return out
}

func portsOf(ranges []portRange) []uint16 {
	var out []uint16
	for _, r := range ranges {
		for p := int(r.first); p <= int(r.last); p++ {
			out = append(out, uint16(p))
		}
	}
	return out
}
