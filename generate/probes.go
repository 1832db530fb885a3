package generate

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/meshproxy/config"
)

// Kubelet's probes of ports that are behind TLS would fail: it asks in plaintext. So they are led to the mesh proxy, which
// asks the application from inside the pod. Only a probe's handler (httpGet, tcpSocket, grpc) is replaced; what it was is
// kept, as it was written, in an annotation, and put back before every run.

// annotationProbes has the replaced handlers' YAML by container/kind, as JSON.
const annotationProbes = "portcullis.dev/original-probes"

const probePathPrefix = "/probes/"

var probeKinds = []struct {
	key  string
	kind config.ProbeKind
}{
	{"livenessProbe", config.Liveness}, {"readinessProbe", config.Readiness}, {"startupProbe", config.Startup},
}

const (
	handlerExec = "exec"
	handlerHTTP = "httpGet"
	handlerTCP  = "tcpSocket"
	handlerGRPC = "grpc"
)

// handlerFields are what Kubernetes knows in each handler that asks over the network.
var handlerFields = map[string][]string{
	handlerHTTP: {"path", "port", "host", "scheme", "httpHeaders"},
	handlerTCP:  {"port", "host"},
	handlerGRPC: {"port", "service"},
}

// rewrite is a probe that is led to the mesh proxy.
type rewrite struct {
	probe config.Probe
	// node is the probe's mapping, key and handler the entry of it that is replaced.
	node, key, handler *yaml.Node
}

// readProbes finds the probes that could not reach their port, and tells the mesh proxy of them.
func (g *generator) readProbes(p pod, s *settings) {
	if s.parsed.Mode == config.Disabled {
		return
	}
	for _, c := range p.containers() {
		for _, k := range probeKinds {
			if n := get(c, k.key); n != nil {
				g.readProbe(p, s, c, k.key, k.kind)
			}
		}
		g.checkHooks(p, s, c)
	}
	var all []string
	for _, r := range s.probes {
		all = append(all, r.probe.String())
	}
	if len(all) == 0 || len(g.faults) > 0 {
		return
	}
	s.mesh.Probes = strings.Join(all, "##")
	parsed, err := config.Values{
		Ingress: s.mesh.Ingress, Egress: s.mesh.Egress, AdminPort: s.mesh.AdminPort, EgressPolicy: s.mesh.EgressPolicy,
		Probes: s.mesh.Probes,
	}.Parse()
	if err != nil {
		g.fail(p.configFaults(codeProbe, s.probes[0].node, err)...)
		return
	}
	s.parsed = parsed
}

func (g *generator) readProbe(p pod, s *settings, container *yaml.Node, key string, kind config.ProbeKind) {
	probe := get(container, key)
	name, handler, err := handlerOf(p.src, probe)
	if err != nil {
		g.fail(err)
		return
	}
	if name == "" || name == handlerExec {
		return // kubelet asks the container's own processes
	}
	what := config.Probe{Container: text(container, "name"), Kind: kind}
	place := fmt.Sprintf("%s of container %s of %v", key, what.Container, p)
	if host := text(handler, "host"); host != "" {
		g.warn(codeProbeHost, p.object, handler, "%s asks the host %s and not the pod, so it stays as it is; without a host it is led to the mesh proxy",
			place, host)
		return
	}
	f := &faultsAt{src: p.src}
	what.Port = portOf(f, handler, container)
	if what.Port != 0 && plaintext(s.parsed, what.Port) {
		return
	}
	if s.parsed.Mode == config.Closed {
		g.fail(p.src.faultAt(codeProbeClosed, handler, "%s cannot get in: ingress CLOSED lets nothing in; use exec, or ingress \"\", by which every "+
			"port asks for a certificate", place))
		return
	}
	r := rewrite{node: probe}
	r.key, r.handler = own(probe, name)
	_, itself := own(container, key)
	switch {
	case itself != probe:
		f.failAs(codeStyle, container, "%s comes from an alias or a merge key (line %d), and generate must change it; write it out here", place, probe.Line)
	case r.handler != handler:
		f.failAs(codeStyle, probe, "%s of %s comes from an alias or a merge key (line %d), and generate must change it; write it out here",
			name, place, handler.Line)
	case linked(r.key) || linked(handler):
		f.failAs(codeStyle, handler, "%s of %s has an anchor or an alias, and generate must replace it; write it out", name, place)
	}
	checkFields(f, handler, handlerFields[name], name)
	readHandler(f, name, handler, &what)
	what.Timeout = timeoutOf(f, probe)
	if len(f.faults) == 0 {
		_, err := config.Values{Probes: what.String()}.Parse()
		g.fail(p.configFaults(codeProbe, handler, err)...)
	}
	g.fail(f.faults...)
	if what.Check == config.CheckHTTPS && ports(s.parsed)[what.Port] == config.ServerTLS {
		g.warn(codeProbeHTTPS, p.object, handler, "%s asks for HTTPS on port %d, whose TLS the mesh proxy terminates, and the proxy will ask the "+
			"application itself: write scheme HTTP unless the application speaks TLS too", place, what.Port)
	}
	r.probe = what
	s.probes = append(s.probes, r)
}

// handlerOf is the one handler that a probe has; an empty name when it has none.
func handlerOf(s *source, probe *yaml.Node) (name string, handler *yaml.Node, err error) {
	for _, p := range pairs(probe) {
		if _, network := handlerFields[p.key.Value]; !network && p.key.Value != handlerExec || isNull(p.value) {
			continue
		}
		if name != "" {
			return "", nil, s.faultAt(codeProbe, p.key, "a probe with %s and %s; Kubernetes allows one", name, p.key.Value)
		}
		name, handler = p.key.Value, p.value
	}
	if name != "" && handler.Kind != yaml.MappingNode {
		return "", nil, s.faultAt(codeProbe, handler, "%s is not a mapping; write its fields, as in %s: {port: 8080}", name, name)
	}
	return name, handler, nil
}

func readHandler(f *faultsAt, name string, handler *yaml.Node, probe *config.Probe) {
	switch name {
	case handlerTCP:
		probe.Check = config.CheckTCP
		return
	case handlerGRPC:
		probe.Check = config.CheckGRPC
		probe.Service = text(handler, "service")
		return
	}
	switch scheme := text(handler, "scheme"); scheme {
	case "", "HTTP":
		probe.Check = config.CheckHTTP
	case "HTTPS":
		probe.Check = config.CheckHTTPS
	default:
		f.fail(get(handler, "scheme"), "scheme %q, want HTTP or HTTPS", scheme)
	}
	probe.Target = f.targetOf(handler)
	headers := get(handler, "httpHeaders")
	if headers == nil || isNull(headers) {
		return
	}
	if headers.Kind != yaml.SequenceNode {
		f.fail(headers, "httpHeaders is not a list; write one of names and values, or take it away")
		return
	}
	for _, h := range headers.Content {
		h = resolve(h)
		checkFields(f, h, []string{"name", "value"}, "httpHeaders")
		probe.Headers = append(probe.Headers, config.Header{Name: text(h, "name"), Value: text(h, "value")})
	}
}

// targetOf is the path and query that kubelet would ask for: it reads the path as a URL reference, without its fragment
// (Kubernetes' pkg/probe/http).
func (f *faultsAt) targetOf(handler *yaml.Node) string {
	path := text(handler, "path")
	u, err := url.Parse(path)
	if err != nil {
		u = &url.URL{Path: path}
	}
	u.Scheme, u.Host = "http", "pod"
	again, err := url.Parse(u.String())
	if err != nil || again.User != nil || again.Opaque != "" || again.Host != "pod" {
		f.fail(get(handler, "path"), "path %q is not a path with perhaps a query", path)
		return "/"
	}
	return again.RequestURI()
}

// portOf is a handler's port. A name is one of the container's ports.
func portOf(f *faultsAt, handler, container *yaml.Node) config.Port {
	port := get(handler, "port")
	if port == nil || port.Kind != yaml.ScalarNode || isNull(port) {
		f.fail(handler, "a probe without a port; write the one that the application listens on")
		return 0
	}
	number := port
	if port.Tag == "!!str" {
		number = nil
		if list := get(container, "ports"); list != nil {
			for _, p := range list.Content {
				if text(p, "name") == port.Value && number == nil {
					number = get(p, "containerPort")
				}
			}
		}
		if number == nil {
			f.fail(port, "port %q is none of the ports of container %s", port.Value, text(container, "name"))
			return 0
		}
	}
	var n int
	if err := number.Decode(&n); err != nil || n < 1 || n > 65535 {
		f.fail(number, "port %q, want a number from 1 to 65535", number.Value)
		return 0
	}
	return config.Port(n)
}

// timeoutOf is a probe's timeoutSeconds, 1 where nothing is said.
func timeoutOf(f *faultsAt, probe *yaml.Node) time.Duration {
	const key = "timeoutSeconds"
	seconds := 0
	if n := get(probe, key); n != nil && !isNull(n) {
		if err := n.Decode(&seconds); err != nil || seconds < 0 {
			f.fail(n, "%s %q, want a number of seconds", key, n.Value)
		}
	}
	return time.Duration(max(seconds, 1)) * time.Second
}

// checkFields refuses what Kubernetes would refuse if it still saw it.
func checkFields(f *faultsAt, n *yaml.Node, known []string, what string) {
	if n == nil || n.Kind != yaml.MappingNode {
		if n != nil {
			f.fail(n, "%s: this is not a mapping; write its fields", what)
		}
		return
	}
	for _, p := range pairs(n) {
		if !slices.Contains(known, p.key.Value) {
			f.fail(p.key, "%s has no field %q; it has %s", what, p.key.Value, strings.Join(known, ", "))
		}
	}
}

// checkHooks warns of kubelet's requests that nothing can stand in for: what anybody may ask for must change nothing.
func (g *generator) checkHooks(p pod, s *settings, container *yaml.Node) {
	for _, key := range []string{"postStart", "preStop"} {
		hook := get(get(container, "lifecycle"), key)
		for _, name := range []string{handlerHTTP, handlerTCP} {
			handler := get(hook, name)
			if handler == nil || handler.Kind != yaml.MappingNode || text(handler, "host") != "" {
				continue
			}
			// A port that cannot be read is Kubernetes' to complain of.
			port := portOf(&faultsAt{src: p.src}, handler, container)
			if port != 0 && !plaintext(s.parsed, port) {
				g.warn(codeHook, p.object, handler, "%s of container %s of %v is a request of kubelet's to port %d, which TLS keeps out: use exec",
					key, text(container, "name"), p, port)
			}
		}
	}
}

func plaintext(c *config.Config, port config.Port) bool { return ports(c)[port] == config.Plaintext }

// ports are what a configuration says of TCP ports.
func ports(c *config.Config) map[config.Port]config.TLS {
	said := make(map[config.Port]config.TLS)
	for _, e := range c.Ingress {
		if !e.UDP {
			said[e.Port] = e.TLS
		}
	}
	return said
}

// linked says whether a node or one in it is an alias, or has an anchor.
func linked(n *yaml.Node) bool {
	return n.Kind == yaml.AliasNode || n.Anchor != "" || slices.ContainsFunc(n.Content, linked)
}

// faultsAt collects faults of one file's probes.
type faultsAt struct {
	src    *source
	faults []error
}

func (f *faultsAt) fail(n *yaml.Node, format string, args ...any) {
	f.failAs(codeProbe, n, format, args...)
}

func (f *faultsAt) failAs(code Code, n *yaml.Node, format string, args ...any) {
	f.faults = append(f.faults, f.src.faultAt(code, n, format, args...))
}

// rewriteProbes leads probes to the mesh proxy, and returns what stood there, for the annotation.
func (s *splicer) rewriteProbes(rewrites []rewrite) string {
	originals := make(map[string]string)
	for _, r := range rewrites {
		from := s.offset(r.key)
		to, ok := s.end(r.handler)
		if !ok {
			s.failAt(codeStyle, r.handler, "cannot tell where this ends; write it in another style")
			continue
		}
		s.touched[r.node] = true
		originals[r.probe.ID()] = shift(string(s.text[from:to]), -r.indent())
		entry := mapping{{"path", r.probe.Path()}, {"port", int(config.ProbePort)}}
		text := flow(handlerHTTP) + ": " + flow(entry)
		if !isFlow(r.node) {
			text = fmt.Sprintf("%s: {path: %s, port: %d}", handlerHTTP, r.probe.Path(), config.ProbePort)
		}
		s.replace(from, to, func() string { return text })
	}
	if len(originals) == 0 {
		return ""
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(originals) // strings and a strings.Builder: nothing can fail
	return strings.TrimSuffix(b.String(), "\n")
}

// indent is how far the lines of a handler are indented at least; in flow style nothing is said about that.
func (r rewrite) indent() int {
	if isFlow(r.node) {
		return 0
	}
	return r.key.Column - 1
}

// unmoved marks a line of an original that stands further left than its handler, as comments may, and keeps its place. It is
// no character that YAML allows.
const unmoved = "\b"

// shift moves every line but the first, so that shifting back gives the same text.
func shift(text string, by int) string {
	lines := strings.SplitAfter(text, "\n")
	for i, line := range lines[1:] {
		content := strings.TrimLeft(line, " ")
		kept, marked := strings.CutPrefix(line, unmoved)
		switch depth := len(line) - len(content); {
		case strings.TrimSpace(content) == "":
		case marked:
			lines[i+1] = kept
		case by >= 0:
			lines[i+1] = strings.Repeat(" ", by) + line
		case depth < -by:
			lines[i+1] = unmoved + line
		default:
			lines[i+1] = line[-by:]
		}
	}
	return strings.Join(lines, "")
}

// restoreProbes puts back what rewriteProbes replaced. A probe that was written anew since stays as it is.
func (s *splicer) restoreProbes(p pod) {
	before := len(s.faults)
	originals := s.originalProbes(p)
	if len(s.faults) > before {
		return
	}
	for _, c := range p.containers() {
		if ourContainer(c) {
			continue
		}
		for _, k := range probeKinds {
			_, probe := own(c, k.key)
			if probe == nil || probe.Kind != yaml.MappingNode {
				continue
			}
			key, handler := own(probe, handlerHTTP)
			if key == nil || !ourHandler(handler) {
				continue
			}
			original, ok := originals[strings.TrimPrefix(text(handler, "path"), probePathPrefix)]
			switch {
			case len(handler.Content) != 4:
				s.failAt(codeEdited, handler, "generate wrote this handler, and it has more fields now: write the handler that the application "+
					"is to be asked with, without the proxy's path and port")
				continue
			case !ok:
				s.failAt(codeEdited, handler, "port %d is the mesh proxy's, and annotation %s has no original of this probe: write the handler that "+
					"the application is to be asked with", config.ProbePort, annotationProbes)
				continue
			}
			r := rewrite{node: probe, key: key, handler: handler}
			end, ok := s.end(handler)
			if !ok {
				s.failAt(codeEdited, handler, "cannot tell where this ends; write the original handler here")
				continue
			}
			original = shift(original, r.indent())
			s.replace(s.offset(key), end, func() string { return original })
		}
	}
}

func ourHandler(handler *yaml.Node) bool {
	return handler.Kind == yaml.MappingNode && strings.HasPrefix(text(handler, "path"), probePathPrefix) &&
		text(handler, "port") == strconv.Itoa(int(config.ProbePort))
}

// originalProbes reads the annotation. Each value must be one handler and nothing more, since it is spliced in.
func (s *splicer) originalProbes(p pod) map[string]string {
	_, value := p.ownAnnotation(annotationProbes)
	if value == nil {
		return nil
	}
	var originals map[string]string
	if value.Kind != yaml.ScalarNode || json.Unmarshal([]byte(value.Value), &originals) != nil {
		s.failAt(codeEdited, value, "annotation %s is not as generate writes it: write the probes' original handlers, and remove it", annotationProbes)
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(originals)) {
		if original := originals[id]; !oneHandler(original) && !oneHandler("{"+original+"}") {
			s.failAt(codeEdited, value, "annotation %s: what it has for %s is no probe's handler; write the probes' original handlers, and remove it", annotationProbes, id)
			delete(originals, id)
		}
	}
	return originals
}

// oneHandler says whether text is a mapping with one handler, and nothing else.
func oneHandler(text string) bool {
	s, err := parse("", []byte(shift(text, 0)), 0)
	if err != nil || len(s.documents) != 1 {
		return false
	}
	root := s.documents[0]
	return root.Kind == yaml.MappingNode && len(root.Content) == 2 && handlerFields[root.Content[0].Value] != nil
}

// replacedProbes are the paths of the probes that an earlier run led to the mesh proxy, by container/kind.
func (p pod) replacedProbes() map[string]string {
	replaced := make(map[string]string)
	for _, c := range p.containers() {
		for _, k := range probeKinds {
			if _, probe := own(c, k.key); probe != nil && probe.Kind == yaml.MappingNode {
				if _, handler := own(probe, handlerHTTP); handler != nil && ourHandler(handler) {
					replaced[text(c, "name")+"/"+k.kind.String()] = text(handler, "path")
				}
			}
		}
	}
	return replaced
}

// probes takes out the handlers that generate replaces, or those that it put there.
func (c *pruning) probes(p pod, paths map[string]string, replaced bool) {
	for _, container := range p.containers() {
		for _, k := range probeKinds {
			path, rewritten := paths[text(container, "name")+"/"+k.kind.String()]
			_, probe := own(container, k.key)
			if !rewritten || probe == nil {
				continue
			}
			c.entries(probe, func(k, v *yaml.Node) bool {
				if !replaced {
					return handlerFields[k.Value] != nil
				}
				return k.Value == handlerHTTP && ourHandler(v) && text(v, "path") == path && len(v.Content) == 4
			})
		}
	}
}
