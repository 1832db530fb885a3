package config

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
)

// ProbePort is where the proxy answers kubelet, in plaintext and for anybody, when there are probes. One of its own ports.
const ProbePort Port = 15021

// Probe is a question that kubelet would ask the application in plaintext, and that the proxy asks in its place, from inside
// the pod. Everything about it is said here; a caller says only which one it wants.
type Probe struct {
	Container string // a DNS label, as Kubernetes has it
	Kind      ProbeKind
	Check     Check
	Port      Port
	// Target is the path and query of CheckHTTP and CheckHTTPS, as it stands in a request line.
	Target string
	// Headers are those of CheckHTTP and CheckHTTPS, in their order.
	Headers []Header
	// Service is what CheckGRPC asks the health of; empty means the server's.
	Service string
	// Timeout is whole seconds.
	Timeout time.Duration
}

// Header is a header of an HTTP request.
type Header struct{ Name, Value string }

// ProbeKind is what Kubernetes does with a probe's result. The zero value is none.
type ProbeKind uint8

// The kinds of probes, as the first field says them.
const (
	Liveness ProbeKind = iota + 1
	Readiness
	Startup
)

var wordsKind = map[string]ProbeKind{"liveness": Liveness, "readiness": Readiness, "startup": Startup}

// String is the kind's word.
func (k ProbeKind) String() string {
	for word, kind := range wordsKind {
		if kind == k {
			return word
		}
	}
	return fmt.Sprintf("ProbeKind(%d)", uint8(k))
}

// Check is how the application is asked. The zero value is no way.
type Check uint8

// The checks, as their field's scheme says them.
const (
	CheckHTTP  Check = iota + 1 // http: a GET that is answered by 200 to 399
	CheckHTTPS                  // https: the same over TLS, whatever certificate the application has
	CheckTCP                    // tcp: a connection that is accepted
	CheckGRPC                   // grpc: the service grpc.health.v1.Health says SERVING
)

var wordsCheck = map[string]Check{"http": CheckHTTP, "https": CheckHTTPS, "tcp": CheckTCP, "grpc": CheckGRPC}

// String is the check's scheme.
func (c Check) String() string {
	for word, check := range wordsCheck {
		if check == c {
			return word
		}
	}
	return fmt.Sprintf("Check(%d)", uint8(c))
}

const (
	formProbe   = "container/liveness|readiness|startup#check#timeout[#header:value]..."
	formCheck   = "http://:port/path, https://:port/path, tcp://:port or grpc://:port[/service]"
	formTarget  = "a path that begins with /, and perhaps a query, in printable ASCII with %XX for the rest"
	formTimeout = "whole seconds from 1s to 3600s"
	formHeader  = "name:value"
	formEscaped = "printable ASCII, with %XX for every other byte, for # and for %, and for nothing else"

	maxTimeout = time.Hour
)

// ID is container/kind, which no other probe of the pod has.
func (p Probe) ID() string { return p.Container + "/" + p.Kind.String() }

// Path is where the proxy answers for the probe.
func (p Probe) Path() string { return "/probes/" + p.ID() }

// URL says what is asked, as it stands in the check field.
func (p Probe) URL() string {
	rest := p.Target
	if p.Check == CheckGRPC && p.Service != "" {
		rest = "/" + escape(p.Service)
	}
	return fmt.Sprintf("%s://:%d%s", p.Check, p.Port, rest)
}

// String writes p as Parse reads it.
func (p Probe) String() string {
	fields := []string{p.ID(), p.URL(), strconv.Itoa(int(p.Timeout/time.Second)) + "s"}
	for _, h := range p.Headers {
		fields = append(fields, h.Name+":"+escape(h.Value))
	}
	return strings.Join(fields, "#")
}

// ProbesString writes the probes as Parse reads them.
func (c *Config) ProbesString() string { return joinEntries(c.Probes) }

func (p *parser) probes(value string, mode Mode) []Probe {
	var list []Probe
	ids := firsts[string]{}
	p.entries(value, func(fields []string) {
		if len(fields) < 3 {
			p.fault("", formProbe, "it has %s", count(fields))
			return
		}
		var probe Probe
		probe.Container, probe.Kind = p.probeID(fields[0], ids)
		p.check(fields[1], &probe)
		probe.Timeout = p.timeout(fields[2])
		for _, field := range fields[3:] {
			if probe.Check == CheckTCP || probe.Check == CheckGRPC {
				p.fault("header", "none", "there are no headers over %s", probe.Check)
				break
			}
			if h, ok := p.header(field); ok {
				probe.Headers = append(probe.Headers, h)
			}
		}
		list = append(list, probe)
	})
	if len(list) > 0 && mode != Mesh {
		p.entry, p.text = 0, value
		switch mode {
		case Disabled:
			p.fault("", "no probes", "ingress %s intercepts nothing, so that kubelet reaches the application itself", wordDisabled)
		default:
			p.fault("", "another ingress value, or no probes", "ingress %s lets nothing in, and no probe either", wordClosed)
		}
	}
	return list
}

func (p *parser) probeID(field string, seen firsts[string]) (string, ProbeKind) {
	const name = "probe"
	container, word, _ := strings.Cut(field, "/")
	kind, known := wordsKind[word]
	if !known {
		p.fault(name, "container/liveness, container/readiness or container/startup", "%q has no kind of probe", field)
	}
	valid := container != "" && len(container) <= maxName
	for i, c := range []byte(container) {
		inner := c == '-' && 0 < i && i < len(container)-1
		valid = valid && (inner || 'a' <= c && c <= 'z' || '0' <= c && c <= '9')
	}
	if !valid {
		p.fault(name, "1 to 63 of a-z, 0-9, and - between them", "%q is no container's name", container)
	}
	if first := seen.first(field, p.entry); first != p.entry {
		p.fault(name, "each probe once", "%q is already in entry %d", field, first)
	}
	return container, kind
}

// check reads scheme://:port and what follows it. There is no host: it is always the pod itself.
func (p *parser) check(field string, probe *Probe) {
	const name = "check"
	scheme, rest, ok := strings.Cut(field, "://:")
	check, known := wordsCheck[scheme]
	if !ok || !known {
		p.fault(name, formCheck, "%q is none", field)
		return
	}
	probe.Check = check
	number, rest := rest, ""
	if i := strings.IndexByte(number, '/'); i >= 0 {
		number, rest = number[:i], number[i:]
	}
	probe.Port = p.port(name, number)
	if probe.Port.Reserved() {
		p.fault(name, reservedWant(), "port %d is one of the proxy's own", probe.Port)
	}
	switch check {
	case CheckHTTP, CheckHTTPS:
		u, err := url.ParseRequestURI(rest)
		unsayable := func(r rune) bool { return r <= ' ' || r > '~' || r == '#' }
		if err != nil || rest[0] != '/' || u.RequestURI() != rest || strings.ContainsFunc(rest, unsayable) {
			p.fault(name, formTarget, "%q is not what a request line can say", rest)
		}
		probe.Target = rest
	case CheckTCP:
		if rest != "" {
			p.fault(name, formCheck, "%q cannot be asked for over tcp", rest)
		}
	default:
		if rest != "" {
			probe.Service, ok = unescape(rest[1:])
			if !ok || probe.Service == "" || !utf8.ValidString(probe.Service) {
				p.fault(name, "a service's name in "+formEscaped, "%q is none", rest[1:])
			}
		}
	}
}

func (p *parser) timeout(field string) time.Duration {
	number, ok := strings.CutSuffix(field, "s")
	n, err := strconv.ParseUint(number, 10, 16)
	timeout := time.Duration(n) * time.Second
	if !ok || err != nil || n == 0 || strconv.FormatUint(n, 10) != number || timeout > maxTimeout {
		p.fault("timeout", formTimeout, "%q is none", field)
		return 0
	}
	return timeout
}

func (p *parser) header(field string) (Header, bool) {
	const place = "header"
	name, text, ok := strings.Cut(field, ":")
	if !ok || !httpguts.ValidHeaderFieldName(name) {
		p.fault(place, formHeader, "%q has no header's name", field)
		return Header{}, false
	}
	value, ok := unescape(text)
	switch {
	case !ok:
		p.fault(place, "a value in "+formEscaped, "the value of %s is not", name)
	case !httpguts.ValidHeaderFieldValue(value):
		p.fault(place, "a value without control characters", "no header can carry the value of %s", name)
		return Header{}, false
	}
	return Header{name, value}, ok
}

// escape writes %XX for "#", which separates fields, for "%", and for what is not printable ASCII.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c == '#' || c == '%' || c < ' ' || c > '~' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// unescape reads what escape writes, in that one spelling.
func unescape(s string) (string, bool) {
	text, err := url.PathUnescape(s)
	return text, err == nil && escape(text) == s
}
