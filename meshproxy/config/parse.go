package config

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"portcullis.dev/portcullis/pki"
)

const (
	wordAny = "any"
	wordUDP = "udp"

	maxName = 63

	formIngress = "name#port[/udp]#disableTLS[#identities]"
	formEgress  = "name#127.x.y.z:port#host:port[#identities]"
	formPort    = "a number from 1 to 65535"
	formSANs    = "DNS names, IP addresses or URIs, separated by commas"
)

// Fault is one thing that is wrong with a value.
type Fault struct {
	Value string // which value: "ingress", "egress", "admin port", "egress policy" or "probes"
	Entry int    // which entry, counted from 1 without the empty ones; 0 when the value is no list
	Text  string // the entry
	Field string // which field of it, as in the grammar
	Fault string // what is wrong with it
	Want  string // what would be right
}

func (f *Fault) Error() string {
	where := f.Value
	if f.Entry > 0 {
		where = fmt.Sprintf("%s entry %d", f.Value, f.Entry)
	}
	if f.Field != "" {
		return fmt.Sprintf("%s %q: %s: %s: want %s", where, f.Text, f.Field, f.Fault, f.Want)
	}
	return fmt.Sprintf("%s %q: %s: want %s", where, f.Text, f.Fault, f.Want)
}

// Error is every fault of a configuration.
type Error struct{ Faults []*Fault }

// Error has a line for each fault.
func (e *Error) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// ExitCode says malformed input.
func (*Error) ExitCode() int { return 2 }

// Values are what is said of a pod.
type Values struct{ Ingress, Egress, AdminPort, EgressPolicy, Probes string }

// Parse reads the values of a pod without probes.
func Parse(ingress, egress, adminPort, egressPolicy string) (*Config, error) {
	return Values{Ingress: ingress, Egress: egress, AdminPort: adminPort, EgressPolicy: egressPolicy}.Parse()
}

// Parse reads the values. The error is an *Error with every fault that they have, alone and together.
func (v Values) Parse() (*Config, error) {
	p := parser{value: "ingress"}
	c := &Config{}
	c.Mode, c.Ingress = p.ingress(v.Ingress)
	p.value = "egress"
	var listeners firsts[netip.AddrPort]
	c.Egress, listeners = p.egress(v.Egress)
	p.value, p.entry, p.text = "admin port", 0, v.AdminPort
	c.AdminPort = p.admin(v.AdminPort, listeners)
	p.value, p.text = "egress policy", v.EgressPolicy
	c.EgressPolicy = p.policy(v.EgressPolicy, c.Mode)
	p.value = "probes"
	c.Probes = p.probes(v.Probes, c.Mode)
	if len(p.faults) > 0 {
		return nil, &Error{p.faults}
	}
	return c, nil
}

// parser collects the faults, and knows the entry that it is in.
type parser struct {
	faults []*Fault
	value  string
	entry  int
	text   string
}

func (p *parser) fault(field, want, format string, args ...any) {
	p.faults = append(p.faults, &Fault{p.value, p.entry, p.text, field, fmt.Sprintf(format, args...), want})
}

// entries calls each for every entry that is not empty.
func (p *parser) entries(value string, each func(fields []string)) {
	p.entry = 0
	for text := range strings.SplitSeq(value, "##") {
		if text == "" {
			continue
		}
		p.entry++
		p.text = text
		each(strings.Split(text, "#"))
	}
}

func (p *parser) ingress(value string) (Mode, []Ingress) {
	switch value {
	case wordClosed:
		return Closed, nil
	case wordDisabled:
		return Disabled, nil
	}
	var list []Ingress
	names := firsts[string]{}
	tcp, udp := firsts[Port]{}, firsts[Port]{}
	p.entries(value, func(fields []string) {
		if len(fields) == 1 && (strings.EqualFold(fields[0], wordClosed) || strings.EqualFold(fields[0], wordDisabled)) {
			word := strings.ToUpper(fields[0])
			p.fault("", word+" as the whole value, in capitals", "the word %s stands alone", word)
			return
		}
		if len(fields) < 3 || len(fields) > 4 {
			p.fault("", formIngress, "it has %s", count(fields))
			return
		}
		e := Ingress{Name: p.name(fields[0], names)}
		e.Port, e.UDP = p.ingressPort(fields[1], tcp, udp)
		e.TLS = p.tls(fields[2], e.UDP)
		if len(fields) == 4 {
			e.Identities = p.identities(fields[3])
			if e.TLS == ServerTLS || e.TLS == Plaintext {
				p.fault("identities", "no identities, or mtls", "with %s no client presents a certificate", fields[2])
			}
		}
		list = append(list, e)
	})
	return Mesh, list
}

func (p *parser) ingressPort(field string, tcp, udp firsts[Port]) (Port, bool) {
	number, protocol, named := strings.Cut(field, "/")
	if named && protocol != wordUDP {
		p.fault("port", "port for TCP or port/udp for UDP", "protocol %q is unknown", protocol)
		return 0, false
	}
	port := p.port("port", number)
	switch seen := map[bool]firsts[Port]{false: tcp, true: udp}[named]; {
	case port == 0:
	case port.Reserved():
		p.fault("port", reservedWant(), "port %d is one of the proxy's own", port)
	default:
		if first := seen.first(port, p.entry); first != p.entry {
			p.fault("port", "each port once", "port %s is already in entry %d", field, first)
		}
	}
	return port, named
}

func (p *parser) tls(field string, udp bool) TLS {
	kind, known := wordsTLS[field]
	switch {
	case !known:
		p.fault("disableTLS", "mtls, false (TLS without a client certificate) or true (plaintext)", "%q is unknown", field)
		return unknownTLS
	case udp && kind != Plaintext:
		p.fault("disableTLS", "true", "%q cannot be had over udp, which the proxy never touches", field)
	}
	return kind
}

func (p *parser) egress(value string) (list []Egress, listeners firsts[netip.AddrPort]) {
	names := firsts[string]{}
	listeners = firsts[netip.AddrPort]{}
	p.entries(value, func(fields []string) {
		if len(fields) < 3 || len(fields) > 4 {
			p.fault("", formEgress, "it has %s", count(fields))
			return
		}
		e := Egress{Name: p.name(fields[0], names), Listen: p.listen(fields[1], listeners)}
		var ok bool
		e.Remote, ok = p.remote(fields[2])
		switch {
		case len(fields) == 4 && fields[3] == wordAny:
			e.Any = true
		case len(fields) == 4:
			e.Identities = p.identities(fields[3])
		case !ok:
		case e.Remote.Name == "":
			p.fault("identities", "#identities, or #any for every identity of the mesh", "an address is not an identity to ask for")
		default:
			e.Identities = p.identities(e.Remote.Name)
		}
		list = append(list, e)
	})
	return list, listeners
}

func (p *parser) listen(field string, seen firsts[netip.AddrPort]) netip.AddrPort {
	const name, want = "listener", "127.x.y.z:port"
	host, number, err := net.SplitHostPort(field)
	if err != nil {
		p.fault(name, want, "%q is not an address and a port", field)
		return netip.AddrPort{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || !addr.Is4() || !addr.IsLoopback() {
		p.fault(name, want, "%q is not an address in 127.0.0.0/8", host)
		addr = netip.Addr{}
	}
	port := p.port(name, number)
	if port.Reserved() {
		p.fault(name, reservedWant(), "port %d is one of the proxy's own", port)
	}
	if !addr.IsValid() || port == 0 {
		return netip.AddrPort{}
	}
	listen := netip.AddrPortFrom(addr, uint16(port))
	if first := seen.first(listen, p.entry); first != p.entry {
		p.fault(name, "each listener once", "%s is already in entry %d", listen, first)
	}
	return listen
}

func (p *parser) remote(field string) (Remote, bool) {
	const name, want = "remote", "host:port, with an IPv6 address in brackets"
	host, number, err := net.SplitHostPort(field)
	if err != nil {
		p.fault(name, want, "%q is not a host and a port", field)
		return Remote{}, false
	}
	r := Remote{Port: p.port(name, number)}
	san, err := pki.ParseSAN(host)
	switch {
	case err != nil:
		p.fault(name, "a DNS name or an IP address", "%v", err)
		return r, false
	case strings.Contains(host, "://") || san.Wildcard():
		p.fault(name, "a DNS name or an IP address", "%q cannot be connected to", host)
		return r, false
	}
	if r.Addr, err = netip.ParseAddr(host); err != nil {
		r.Name = host
	}
	return r, true
}

func (p *parser) admin(value string, egress firsts[netip.AddrPort]) Port {
	if value == "" {
		return 0
	}
	port := p.port("", value)
	if port.Reserved() {
		p.fault("", reservedWant(), "port %d is one of the proxy's own", port)
	}
	first := 0
	for listen, entry := range egress {
		if Port(listen.Port()) == port && (first == 0 || entry < first) {
			first = entry
		}
	}
	if first > 0 {
		p.fault("", "a port of its own", "egress entry %d listens on port %d too", first, port)
	}
	return port
}

func (p *parser) policy(value string, mode Mode) EgressPolicy {
	if value == "" {
		return EgressOpen
	}
	policy, known := wordsEgress[value]
	switch {
	case !known:
		p.fault("", "open, closed (nothing leaves but through the mesh) or closed,dns (and DNS)", "it is unknown")
	case policy != EgressOpen && mode == Disabled:
		p.fault("", "another ingress value, or no egress policy", "ingress %s takes the guard away, and the lock with it", wordDisabled)
	}
	return policy
}

func (p *parser) name(field string, seen firsts[string]) string {
	const want = "1 to 63 letters, digits, and - _ . between them"
	switch {
	case field == "":
		p.fault("name", want, "it is empty")
		return field
	case len(field) > maxName:
		p.fault("name", want, "it has %d characters", len(field))
	}
	for i, c := range []byte(field) {
		inner := 0 < i && i < len(field)-1 && strings.IndexByte("-_.", c) >= 0
		if !inner && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			p.fault("name", want, "%q has %q at byte %d", field, c, i+1)
			return field
		}
	}
	if first := seen.first(field, p.entry); first != p.entry {
		p.fault("name", "each name once", "%q is already in entry %d", field, first)
	}
	return field
}

// port reads decimal digits in their one spelling: no sign, no leading zero.
func (p *parser) port(field, text string) Port {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != text {
		p.fault(field, formPort, "%q is not a port", text)
		return 0
	}
	return Port(n)
}

func (p *parser) identities(field string) []pki.SAN {
	const name = "identities"
	var ids []pki.SAN
	seen := firsts[pki.SAN]{}
	for i, text := range strings.Split(field, ",") {
		if text == "" {
			p.fault(name, formSANs, "identity %d is empty", i+1)
			continue
		}
		if text == wordAny {
			p.fault(name, "any alone, in an egress entry; an ingress entry without identities admits any",
				"the word any stands among them")
			continue
		}
		id, err := pki.ParseSAN(text)
		switch {
		case err != nil:
			p.fault(name, formSANs, "%v", err)
		case id.Wildcard():
			p.fault(name, "each name in full", "%q stands for more than one identity", text)
		case seen.first(id, i) != i:
			p.fault(name, "each identity once", "%q is there twice", text)
		default:
			ids = append(ids, id)
		}
	}
	return ids
}

// firsts remembers where something was seen first.
type firsts[K comparable] map[K]int

func (f firsts[K]) first(k K, at int) int {
	if first, ok := f[k]; ok {
		return first
	}
	f[k] = at
	return at
}

func reservedWant() string { return fmt.Sprintf("a port outside %d-%d", FirstReserved, LastReserved) }

func count(fields []string) string {
	if len(fields) == 1 {
		return "1 field"
	}
	return fmt.Sprintf("%d fields", len(fields))
}
