package generate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/meshproxy/config"
)

// A hazard is something in a pod's own specification that opens the gate, goes around it, or will not work behind it.
// Whether it is an error, and why, says its explanation.
type hazard struct {
	code Code
	in   func(settings) bool
	find func(hazardous) []finding
	// message says what was found, where, and what to do.
	message string
}

// finding is a hazard's place, and what stands there.
type finding struct {
	at   *yaml.Node
	what string
}

// hazardous is the pod that is looked at.
type hazardous struct {
	pod
	settings
	all []*yaml.Node // its containers
}

var hazards = []hazard{
	{codeHostNetwork, anyPod, trueFields("hostNetwork"), "%s of %v: a podVM has a network of its own, and the gate stands in it; remove it"},
	{codePowers, gated, hazardous.powers, "%s of %v could open the gate; take it away"},
	{codeNetRaw, withoutLock, hazardous.keepsNetRaw, "%s of %v keeps NET_RAW, with which it could receive plaintext through the gate: " +
		"add securityContext.capabilities.drop: [NET_RAW], or [ALL]"},
	{codePastLock, settings.locked, hazardous.keepsNetRaw, "%s of %v has the capability NET_RAW, with which it can send past the egress lock: " +
		"add securityContext.capabilities.drop: [NET_RAW], or [ALL]"},
	{codeHostPath, anyPod, hazardous.hostPaths, "%s of %v is a folder of the host's, who reads what is written there and chooses what is read; use emptyDir"},
	{codeSharePID, gated, trueFields("shareProcessNamespace"), "%s of %v: its containers could stop the mesh proxy; remove it where nothing needs it"},
	{codeHostPID, anyPod, trueFields("hostPID", "hostIPC"), "%s of %v: a podVM sees nothing of the host's; remove it"},
	{codeEscalation, gated, hazardous.escalates, "%s of %v may gain capabilities: write allowPrivilegeEscalation: false"},
	{codeHostPort, anyPod, hazardous.hostPorts, "%s of %v leads from the node's port into the pod, for everybody who reaches the node; use a Service"},
	{codeReserved, inMesh, hazardous.reservedPorts, "%s of %v: ports 15000 to 15099 belong to the mesh proxy; choose another"},
	{codeDropped, inMesh, hazardous.droppedPorts, "%s of %v is reached by nobody: " +
		"the gate drops it unless ingress has an entry name#port/udp#true (SCTP always)"},
	{codeVariable, anyPod, hazardous.ourVariables, "%s of %v changes nothing: only the injected containers read it; use the annotation"},
	{codeMemory, anyPod, hazardous.unlimited, "%s of %v has no memory limit, by which the podVM is sized: add resources.limits.memory"},
	{codeEphemeral, anyPod, hazardous.ephemeral, "%s of %v: Kubernetes takes them through kubectl debug only; remove them"},
}

func anyPod(settings) bool        { return true }
func gated(s settings) bool       { return s.guard() != initdata.GuardOpen }
func inMesh(s settings) bool      { return s.parsed != nil && s.parsed.Mode != config.Disabled }
func withoutLock(s settings) bool { return inMesh(s) && s.placement != initdata.Guest && !s.locked() }

// checkHazards reports the hazards of a pod. Of errors only those that the pod's owner did not accept.
func (g *generator) checkHazards(p pod, s settings) {
	h := hazardous{pod: p, settings: s, all: p.containers()}
	for _, hz := range hazards {
		if !hz.in(s) {
			continue
		}
		for _, f := range hz.find(h) {
			g.report(hz.code, p.object, f.at, hz.message, f.what, p)
		}
	}
}

// report reports what is a warning or an error by its code.
func (g *generator) report(code Code, o object, n *yaml.Node, format string, args ...any) {
	e := byCode[code]
	switch {
	case e.Acceptable && o.accepts.takes(code):
	case e.Warning:
		g.warn(code, o, n, format, args...)
	default:
		g.fail(o.src.faultAt(code, n, format, args...))
	}
}

func trueFields(names ...string) func(hazardous) []finding {
	return func(h hazardous) []finding {
		var found []finding
		for _, name := range names {
			if v := get(h.spec, name); isTrue(v) {
				found = append(found, finding{v, name})
			}
		}
		return found
	}
}

// powers are what containers could open the gate with. A Coordinator raises its own guard.
func (h hazardous) powers() []finding {
	var found []finding
	for _, c := range h.all {
		security := get(c, "securityContext")
		if v := get(security, "privileged"); isTrue(v) {
			found = append(found, finding{v, "privileged of " + containerName(c)})
		}
		added := get(get(security, "capabilities"), "add")
		if added == nil {
			continue
		}
		for _, n := range added.Content {
			n = resolve(n)
			if n == nil || h.role == initdata.Coordinator && capability(n) == "NET_ADMIN" {
				continue
			}
			if slices.Contains(powersOverTheGate, capability(n)) {
				found = append(found, finding{n, "capability " + capability(n) + " of " + containerName(c)})
			}
		}
	}
	return found
}

// powersOverTheGate are the capabilities that change nftables, or lead to one that does.
var powersOverTheGate = []string{"ALL", "NET_ADMIN", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "SYS_PTRACE", "BPF"}

// capability is a capability as Kubernetes writes it.
func capability(n *yaml.Node) string { return strings.TrimPrefix(strings.ToUpper(n.Value), "CAP_") }

// keepsNetRaw finds containers that have NET_RAW: container runtimes give it unless it is dropped.
func (h hazardous) keepsNetRaw() []finding {
	return h.containersThat(func(c *yaml.Node) bool {
		if h.role == initdata.Coordinator {
			return false
		}
		capabilities := get(get(c, "securityContext"), "capabilities")
		return hasCapability(get(capabilities, "add"), "NET_RAW") || !hasCapability(get(capabilities, "drop"), "NET_RAW", "ALL")
	})
}

func hasCapability(list *yaml.Node, names ...string) bool {
	return list != nil && slices.ContainsFunc(list.Content, func(n *yaml.Node) bool {
		n = resolve(n)
		return n != nil && slices.Contains(names, capability(n))
	})
}

func (h hazardous) unlimited() []finding {
	return h.containersThat(func(c *yaml.Node) bool { return text(get(get(c, "resources"), "limits"), "memory") == "" })
}

func (h hazardous) escalates() []finding {
	return h.containersThat(func(c *yaml.Node) bool { return isTrue(get(get(c, "securityContext"), "allowPrivilegeEscalation")) })
}

// containersThat is one finding for all the containers of which is true, at the first of them.
func (h hazardous) containersThat(is func(c *yaml.Node) bool) []finding {
	var found []finding
	for _, c := range h.all {
		switch {
		case !is(c):
		case len(found) == 0:
			found = []finding{{c, containerName(c)}}
		default:
			found[0].what += ", " + containerName(c)
		}
	}
	return found
}

func (h hazardous) hostPaths() []finding {
	var found []finding
	if volumes := get(h.spec, "volumes"); volumes != nil {
		for _, v := range volumes.Content {
			if n := get(v, "hostPath"); n != nil && !isNull(n) {
				found = append(found, finding{n, "volume " + text(v, "name")})
			}
		}
	}
	return found
}

func (h hazardous) ephemeral() []finding {
	if n := get(h.spec, "ephemeralContainers"); n != nil && !isEmpty(n) {
		return []finding{{n, "ephemeralContainers"}}
	}
	return nil
}

func (h hazardous) hostPorts() []finding {
	return h.ports(func(p *yaml.Node) *yaml.Node {
		if n := get(p, "hostPort"); n != nil && !isNull(n) && n.Value != "0" {
			return n
		}
		return nil
	})
}

func (h hazardous) reservedPorts() []finding {
	return h.ports(func(p *yaml.Node) *yaml.Node {
		n := get(p, "containerPort")
		if port := portNumber(n); port >= int(config.FirstReserved) && port <= int(config.LastReserved) {
			return n
		}
		return nil
	})
}

// droppedPorts finds ports that are declared and that the gate drops.
func (h hazardous) droppedPorts() []finding {
	return h.ports(func(p *yaml.Node) *yaml.Node {
		n := get(p, "protocol")
		switch {
		case n == nil || n.Value != "UDP" && n.Value != "SCTP":
			return nil
		case n.Value == "UDP" && slices.ContainsFunc(h.parsed.Ingress, func(e config.Ingress) bool {
			return e.UDP && int(e.Port) == portNumber(get(p, "containerPort"))
		}):
			return nil
		}
		return n
	})
}

// ports finds among the ports of all containers those of which at returns a node.
func (h hazardous) ports(at func(port *yaml.Node) *yaml.Node) []finding {
	var found []finding
	for _, c := range h.all {
		list := get(c, "ports")
		if list == nil || list.Kind != yaml.SequenceNode {
			continue
		}
		for _, p := range list.Content {
			if n := at(p); n != nil {
				found = append(found, finding{n, fmt.Sprintf("port %s of %s", text(p, "containerPort"), containerName(c))})
			}
		}
	}
	return found
}

func (h hazardous) ourVariables() []finding {
	var found []finding
	for _, c := range h.all {
		if h.role == initdata.Coordinator {
			continue
		}
		env := get(c, "env")
		if env == nil || env.Kind != yaml.SequenceNode {
			continue
		}
		for _, v := range env.Content {
			if name := text(v, "name"); slices.Contains(variables, name) {
				found = append(found, finding{get(v, "name"), fmt.Sprintf("variable %s of %s", name, containerName(c))})
			}
		}
	}
	return found
}

// variables are those of the injected containers.
var variables = []string{
	"COORDINATOR_HOST", "CONTRAST_INGRESS_PROXY_CONFIG", "CONTRAST_EGRESS_PROXY_CONFIG", "CONTRAST_ADMIN_PORT",
	"CONTRAST_EGRESS_POLICY", "CONTRAST_ACCESS_LOG", "CONTRAST_PROBES",
}

func containerName(c *yaml.Node) string { return "container " + text(c, "name") }

// isTrue reads a boolean as kubectl does, by YAML 1.1 (https://yaml.org/type/bool.html), whose other words this package's parser
// takes for strings.
func isTrue(n *yaml.Node) bool {
	return n != nil && n.Kind == yaml.ScalarNode && slices.Contains([]string{"true", "yes", "on", "y"}, strings.ToLower(n.Value))
}

// portNumber is 0 for what is none.
func portNumber(n *yaml.Node) int {
	if n == nil {
		return 0
	}
	port, err := strconv.Atoi(n.Value)
	if err != nil {
		return 0
	}
	return port
}

// checkRuntime warns of a pod that is not confidential and looks so.
func (g *generator) checkRuntime(p pod) {
	v := get(p.spec, "runtimeClassName")
	if v == nil {
		return
	}
	class := strings.ToLower(v.Value)
	if slices.ContainsFunc(runtimeWords, func(word string) bool { return strings.Contains(class, word) }) {
		g.report(codeRuntime, p.object, v, "runtimeClassName %s of %v is none of %s*, so nothing is injected; --runtime-class adds one",
			v.Value, p, strings.Join(g.RuntimeClasses, "*, "))
	}
}

// runtimeWords are in the names of runtime classes of podVMs, and of few others.
var runtimeWords = []string{"kata", "contrast", "coco", "confidential", "snp", "tdx", "podvm", "peerpod"}

// checkOutside warns of a Service for clients outside of the cluster, which cannot have a certificate of the mesh.
func (g *generator) checkOutside(s service, owners []*target) {
	spec := get(s.node, "spec")
	how := text(spec, "type")
	if external := get(spec, "externalIPs"); external != nil && !isEmpty(external) {
		how = "externalIPs"
	}
	list := get(spec, "ports")
	if list == nil || how != "NodePort" && how != "LoadBalancer" && how != "externalIPs" {
		return
	}
	for _, t := range owners {
		if t.parsed == nil || t.parsed.Mode != config.Mesh {
			continue
		}
		said := ports(t.parsed)
		for _, p := range list.Content {
			port := t.portBehind(p)
			if tls, named := said[port]; port == 0 || named && tls != config.MutualTLS || text(p, "protocol") == "UDP" {
				continue
			}
			g.report(codeOutside, s.object, p, "Service %s/%s (%s) leads clients from outside to port %d of %v, which asks for a certificate of "+
				"the mesh: add an ingress entry name#%d#false there, or make it a ClusterIP", s.namespace, s.name, how, port, t.object, port)
		}
	}
}

// portBehind is the port of the pod that a Service's port leads to, 0 where that is not known.
func (t *target) portBehind(servicePort *yaml.Node) config.Port {
	n := get(servicePort, "targetPort")
	if n == nil {
		n = get(servicePort, "port")
	}
	if port := portNumber(n); port > 0 && port <= 65535 {
		return config.Port(port)
	}
	if n == nil {
		return 0
	}
	return t.portNames[n.Value]
}

// portNames are the pod's named ports.
func (p pod) portNames() map[string]config.Port {
	var names map[string]config.Port
	for _, c := range p.containers() {
		list := get(c, "ports")
		if list == nil || list.Kind != yaml.SequenceNode {
			continue
		}
		for _, n := range list.Content {
			name, port := text(n, "name"), portNumber(get(n, "containerPort"))
			if name == "" || port < 1 || port > 65535 {
				continue
			}
			if names == nil {
				names = make(map[string]config.Port)
			}
			names[name] = config.Port(port)
		}
	}
	return names
}
