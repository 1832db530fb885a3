// Package config is the grammar in which a pod says what may come in and where it calls out.
//
// The values are annotations of today's users, so they stay as they are: entries joined by "##", fields by "#".
//
//	ingress   name#port[/udp]#disableTLS[#identities]
//	egress    name#127.x.y.z:port#host:port[#identities]
//	probes    container/kind#check#timeout[#header:value]...
//
// The egress policy is a word: open, closed or closed,dns. The probes are no annotation: generate writes them.
//
// A misread entry is a hole in the gate: a port that its owner believes to be behind mutual TLS and that is not. So
// nothing is guessed, trimmed or skipped but empty entries; every fault of all values is reported at once, with the entry
// it is in and what would be right; and what is parsed is of types that deny by their zero value. A port that is not
// listed is behind mutual TLS.
package config

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"portcullis.dev/portcullis/pki"
)

// Config is what a pod's mesh proxy does. The zero value lets nothing in and calls nobody.
type Config struct {
	Mode    Mode
	Ingress []Ingress // ports that differ from the default; empty unless Mode is Mesh
	Egress  []Egress
	// AdminPort is the TCP port of the read-only admin view; zero means none.
	AdminPort Port
	// EgressPolicy says what may leave the pod otherwise than through Egress.
	EgressPolicy EgressPolicy
	// Probes are what the proxy answers on ProbePort; none unless Mode is Mesh.
	Probes []Probe
}

// EgressPolicy says what the pod itself may send. The zero value locks it in.
type EgressPolicy uint8

// The egress policies, as their value says them. An empty value is EgressOpen.
const (
	EgressClosed    EgressPolicy = iota // closed: nothing but the mesh's own
	EgressClosedDNS                     // closed,dns: and port 53, for every process
	EgressOpen                          // open: everything
)

var wordsEgress = map[string]EgressPolicy{"closed": EgressClosed, "closed,dns": EgressClosedDNS, "open": EgressOpen}

// String is the value as it is written.
func (e EgressPolicy) String() string {
	for word, policy := range wordsEgress {
		if policy == e {
			return word
		}
	}
	return fmt.Sprintf("EgressPolicy(%d)", uint8(e))
}

// Mode says what happens to the connections that peers open.
type Mode uint8

// The modes, as the ingress value says them.
const (
	Closed   Mode = iota // CLOSED: nothing comes in
	Mesh                 // a list of entries, perhaps empty: what comes in goes through TLS
	Disabled             // DISABLED: nothing is intercepted, everything comes in as it is
)

const (
	wordClosed   = "CLOSED"
	wordDisabled = "DISABLED"
)

// Port is a TCP or UDP port number from 1 to 65535. Zero is no port.
type Port uint16

// The ports that the proxy keeps for itself; peers never reach them, and nothing else may be configured there.
const (
	FirstReserved Port = 15000
	LastReserved  Port = 15099
)

// Reserved says whether p is one of the proxy's own ports.
func (p Port) Reserved() bool { return FirstReserved <= p && p <= LastReserved }

// Ingress is what one port differs in from the default, which is mutual TLS for every identity of the mesh.
type Ingress struct {
	Name string
	Port Port
	// UDP marks a datagram port. Only Plaintext can be said of it: unlisted datagram ports are closed.
	UDP bool
	TLS TLS
	// Identities are the SANs of which a client must carry one. Empty means every identity of the mesh. Only for MutualTLS.
	Identities []pki.SAN
}

// TLS is what a port asks of its clients. The zero value asks for a certificate of the mesh.
type TLS uint8

// The kinds of TLS, as the field disableTLS says them.
const (
	MutualTLS  TLS = iota // mtls: both sides present a certificate of the mesh
	ServerTLS             // false: the client needs no certificate
	Plaintext             // true: the proxy does not touch the port
	unknownTLS            // stands in while the rest of a faulty entry is read
)

var wordsTLS = map[string]TLS{"mtls": MutualTLS, "false": ServerTLS, "true": Plaintext}

// Egress is a listener inside the pod, for the application, and the peer it leads to through mutual TLS.
type Egress struct {
	Name   string
	Listen netip.AddrPort // in 127.0.0.0/8
	Remote Remote
	// Identities are the SANs of which the peer must carry one. When it is empty nobody will do, unless Any is set.
	Identities []pki.SAN
	// Any accepts every identity of the mesh.
	Any bool
}

// Remote is where an egress entry leads: a Name or an Addr, and a port.
type Remote struct {
	Name string
	Addr netip.Addr
	Port Port
}

// Host is the name or the address.
func (r Remote) Host() string {
	if r.Name != "" {
		return r.Name
	}
	return r.Addr.String()
}

// String is host:port, as it is written in an entry.
func (r Remote) String() string { return net.JoinHostPort(r.Host(), strconv.Itoa(int(r.Port))) }

// String writes e as Parse reads it.
func (e Ingress) String() string {
	port := strconv.Itoa(int(e.Port))
	if e.UDP {
		port += "/udp"
	}
	fields := []string{e.Name, port, e.TLS.String()}
	if len(e.Identities) > 0 {
		fields = append(fields, joinIdentities(e.Identities))
	}
	return strings.Join(fields, "#")
}

// String is the word in the field disableTLS.
func (t TLS) String() string {
	for word, kind := range wordsTLS {
		if kind == t {
			return word
		}
	}
	return fmt.Sprintf("TLS(%d)", uint8(t))
}

// String writes e as Parse reads it.
func (e Egress) String() string {
	fields := []string{e.Name, e.Listen.String(), e.Remote.String()}
	switch {
	case e.Any:
		fields = append(fields, wordAny)
	case len(e.Identities) == 1 && e.Identities[0].String() == e.Remote.Name:
		// the remote's own name is what an absent field means
	case len(e.Identities) > 0:
		fields = append(fields, joinIdentities(e.Identities))
	}
	return strings.Join(fields, "#")
}

// IngressString writes the ingress value as Parse reads it.
func (c *Config) IngressString() string {
	switch c.Mode {
	case Mesh:
		return joinEntries(c.Ingress)
	case Disabled:
		return wordDisabled
	default:
		return wordClosed
	}
}

// EgressString writes the egress value as Parse reads it.
func (c *Config) EgressString() string { return joinEntries(c.Egress) }

// AdminString writes the admin port as Parse reads it.
func (c *Config) AdminString() string {
	if c.AdminPort == 0 {
		return ""
	}
	return strconv.Itoa(int(c.AdminPort))
}

// String shows the values, for a log.
func (c *Config) String() string {
	return fmt.Sprintf("ingress %q egress %q admin port %q egress policy %q",
		c.IngressString(), c.EgressString(), c.AdminString(), c.EgressPolicy)
}

// GuardPorts are the exceptions that the guard must know, sorted: ports that pass it in plaintext, and ports whose
// clients present no certificate. There are none unless Mode is Mesh.
func (c *Config) GuardPorts() (plaintextTCP, plaintextUDP, noClientAuth []uint16) {
	if c.Mode != Mesh {
		return nil, nil, nil
	}
	for _, e := range c.Ingress {
		switch {
		case e.TLS == Plaintext && e.UDP:
			plaintextUDP = append(plaintextUDP, uint16(e.Port))
		case e.TLS == Plaintext:
			plaintextTCP = append(plaintextTCP, uint16(e.Port))
		case e.TLS == ServerTLS && !e.UDP:
			noClientAuth = append(noClientAuth, uint16(e.Port))
		}
	}
	if len(c.Probes) > 0 {
		plaintextTCP = append(plaintextTCP, uint16(ProbePort))
	}
	for _, ports := range [][]uint16{plaintextTCP, plaintextUDP, noClientAuth} {
		slices.SortFunc(ports, cmp.Compare[uint16])
	}
	return plaintextTCP, plaintextUDP, noClientAuth
}

func joinEntries[E fmt.Stringer](entries []E) string {
	s := make([]string, len(entries))
	for i, e := range entries {
		s[i] = e.String()
	}
	return strings.Join(s, "##")
}

func joinIdentities(ids []pki.SAN) string {
	s := make([]string, len(ids))
	for i, id := range ids {
		s[i] = id.String()
	}
	return strings.Join(s, ",")
}
