package generate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/pki"
)

// service is a Kubernetes Service.
type service struct {
	object
	// selector is empty where the Service selects no pod itself.
	selector map[string]string
}

func (o object) service() (service, bool) {
	if o.kind != "Service" || o.group != "" {
		return service{}, false
	}
	s := service{object: o}
	if !s.external() {
		s.selector = texts(get(get(o.node, "spec"), "selector"))
	}
	return s, true
}

// external says whether the Service is another name of something that is not in the cluster.
func (s service) external() bool { return text(get(s.node, "spec"), "type") == "ExternalName" }

// headless says whether the Service's pods have names in it.
func (s service) headless() bool { return text(get(s.node, "spec"), "clusterIP") == "None" }

func (s service) selects(t *target) bool {
	for key, value := range s.selector {
		if got, ok := t.labels[key]; !ok || got != value {
			return false
		}
	}
	return len(s.selector) > 0 && s.namespace == t.namespace
}

// stableNames are the names that pods keep when they are made anew, under a headless Service (Kubernetes, "DNS for Services and
// Pods"): those of a StatefulSet are numbered, and a Pod may have a hostname.
type stableNames struct {
	service string
	// first and count are a StatefulSet's numbers.
	base         string
	first, count int
	// left are the pods beyond maxStable.
	left int
	at   *yaml.Node
}

// maxStable bounds how many pods of a StatefulSet are named in its certificate: four names each.
const maxStable = 32

func (p pod) stableNames() stableNames {
	n := stableNames{}
	switch p.kind {
	case "StatefulSet":
		spec := get(p.node, "spec")
		n.service, n.base, n.count = text(spec, "serviceName"), p.name, 1
		if replicas := get(spec, "replicas"); replicas != nil && !isNull(replicas) {
			n.count = max(portNumber(replicas), 0)
			n.at = &yaml.Node{Line: replicas.Line, Column: replicas.Column}
		}
		n.first = max(portNumber(get(get(spec, "ordinals"), "start")), 0)
		n.left = max(n.count-maxStable, 0)
		n.count -= n.left
	case "Pod":
		n.service, n.base, n.first = text(p.spec, "subdomain"), text(p.spec, "hostname"), -1
	}
	return n
}

// hosts are the names under the Service.
func (n stableNames) hosts() []string {
	if n.first < 0 {
		if n.base == "" {
			return nil
		}
		return []string{n.base}
	}
	var all []string
	for i := range n.count {
		all = append(all, n.base+"-"+strconv.Itoa(n.first+i))
	}
	return all
}

// label is one label of a pod, of which it has several.
type label struct{ namespace, key, value string }

// byLabel finds pods that a Service may select, among the many that it does not.
func (g *generator) byLabel() map[label][]*target {
	labelled := make(map[label][]*target)
	for _, t := range g.targets {
		for key, value := range t.labels {
			l := label{t.namespace, key, value}
			labelled[l] = append(labelled[l], t)
		}
	}
	return labelled
}

// anyLabel is a label that every pod has which the Service selects.
func (s service) anyLabel() label {
	for key, value := range s.selector {
		return label{s.namespace, key, value}
	}
	return label{}
}

// names are the forms in which a cluster's DNS knows a Service, the short one first.
func (s service) names() []string { return s.forms(s.name) }

func (s service) forms(name string) []string {
	return []string{name, name + "." + s.namespace, name + "." + s.namespace + ".svc", name + "." + s.namespace + ".svc.cluster.local"}
}

// assignIdentities gives each workload the names of the Services that select it, those that its pods keep, its own, and those that
// its annotation adds. An identity must lead to one policy only, since a peer that asks for it trusts whoever carries it. So a
// name that would lead to two leads to none: then connections fail and say why, instead of reaching either.
func (g *generator) assignIdentities() {
	taken := make(map[pki.SAN]*target) // nil: nobody may have it
	var order []pki.SAN
	claim := func(s service, name string, owner *target) bool {
		san, err := pki.ParseSAN(name)
		if err != nil {
			g.fail(s.src.faultAt(codeBadName, s.node, "Service %s/%s: %v", s.namespace, s.name, err))
			return false
		}
		before, known := taken[san]
		switch {
		case !known:
			order = append(order, san)
			taken[san] = owner
		case before != owner:
			taken[san] = nil
			if before != nil && owner != nil {
				g.warn(codeSharedName, s.object, s.node, "%s leads to %v and to %v, in the namespaces and Services of these files: neither gets it "+
					"as an identity; call it %s.%s", san, before.object, owner.object, s.name, s.namespace)
			}
		}
		return true
	}
	labelled := g.byLabel()
	for _, s := range g.services {
		var owners []*target
		for _, t := range labelled[s.anyLabel()] {
			if t.role == initdata.Workload && s.selects(t) {
				owners = append(owners, t)
			}
		}
		var owner *target
		switch len(owners) {
		case 0:
		case 1:
			owner = owners[0]
		default:
			g.warn(codeSharedService, s.object, s.node, "Service %s/%s selects %v and %v: neither gets its name as an identity, since that belongs to "+
				"one pod; callers can list both by their own names, as in %s#127.0.0.2:80#%s:80#%s,%s",
				s.namespace, s.name, owners[0].object, owners[1].object, s.name, s.name, owners[0].name, owners[1].name)
		}
		g.checkOutside(s, owners)
		for _, name := range s.names() {
			if !claim(s, name, owner) {
				break
			}
		}
		for _, t := range owners {
			if t.stable.service != s.name || !s.headless() {
				continue
			}
			for _, host := range t.stable.hosts() {
				for _, name := range s.forms(host + "." + s.name) {
					claim(s, name, t)
				}
			}
			if t.stable.left > 0 {
				g.warn(codeReplicas, t.object, t.stable.at, "%v: its first %d pods have names of their own as identities, its other %d only the Service's",
					t.object, t.stable.count, t.stable.left)
			}
		}
	}
	for _, san := range order {
		if t := taken[san]; t != nil {
			t.sans = append(t.sans, san)
		}
	}
	g.assignOwnNames(taken)
	g.addIdentities(taken)
}

// addIdentities gives workloads the names that their annotations add.
func (g *generator) addIdentities(taken map[pki.SAN]*target) {
	owners := make(map[pki.SAN]*target)
	for _, t := range g.targets {
		for _, san := range t.sans {
			owners[san] = t
		}
	}
	for _, t := range g.targets {
		for _, san := range t.identities {
			owner := owners[san]
			switch _, service := taken[san]; {
			case owner == t:
			case owner != nil:
				g.fail(t.src.faultAt(codeConflict, t.identitiesAt, "annotation %s: %s is an identity of %v at %s already", annotationIdentities,
					san, owner.object, owner.place()))
			case service:
				g.fail(t.src.faultAt(codeConflict, t.identitiesAt, "annotation %s: %s is the name of a Service that does not lead to this pod alone",
					annotationIdentities, san))
			default:
				owners[san] = t
				t.sans = append(t.sans, san)
			}
		}
	}
}

// assignOwnNames gives a workload its own name where that is nobody else's.
func (g *generator) assignOwnNames(taken map[pki.SAN]*target) {
	bearers := make(map[pki.SAN]int)
	for _, t := range g.targets {
		if san, err := pki.ParseSAN(t.name); err == nil {
			bearers[san]++
		}
	}
	for _, t := range g.targets {
		san, err := pki.ParseSAN(t.name)
		if err != nil || t.role == initdata.Coordinator || bearers[san] > 1 {
			continue
		}
		if _, service := taken[san]; !service {
			t.sans = append(t.sans, san)
		}
	}
}

// checkPeers warns of identities that annotations ask for and no policy carries: such a peer will be refused.
func (g *generator) checkPeers() {
	known := make(map[pki.SAN]bool)
	for _, san := range g.Known {
		known[san] = true
	}
	for _, t := range g.targets {
		for _, san := range t.sans {
			known[san] = true
		}
	}
	missing := func(ids []pki.SAN) []string {
		var names []string
		for _, id := range ids {
			if !known[id] {
				names = append(names, id.String())
			}
		}
		return names
	}
	for _, t := range g.targets {
		if t.parsed == nil {
			continue
		}
		for _, e := range t.parsed.Egress {
			if names := missing(e.Identities); len(names) > 0 && len(names) == len(e.Identities) {
				g.warn(codeNobody, t.object, t.at[annotationEgress], "egress %q asks for the identity %s, which no policy of the manifest carries%s: "+
					"its connections will be refused", e, strings.Join(names, ", "), g.whyNobody(t, names[0]))
			}
		}
		for _, e := range t.parsed.Ingress {
			if names := missing(e.Identities); len(names) > 0 {
				g.warn(codeNobody, t.object, t.at[annotationIngress], "ingress %q admits the identity %s, which no policy of the manifest carries%s",
					e, strings.Join(names, ", "), g.whyNobody(t, names[0]))
			}
		}
	}
}

// whyNobody says what the files show of a name that nobody has, as t calls it.
func (g *generator) whyNobody(t *target, name string) string {
	for _, s := range g.services {
		names := s.names()
		if s.namespace != t.namespace {
			names = names[1:]
		}
		if !slices.Contains(names, name) {
			continue
		}
		what := fmt.Sprintf(" (Service %s/%s at %s ", s.namespace, s.name, place(s.src, s.node))
		switch {
		case s.external():
			return what + fmt.Sprintf("is another name of %s, whatever certificate that has: call it outside of the mesh, or write the identity that a pod of "+
				"the mesh has there)", text(get(s.node, "spec"), "externalName"))
		case len(s.selector) == 0:
			return what + "has no selector, so the files do not say who is behind it: write that pod's own identity)"
		case !slices.ContainsFunc(g.targets, s.selects):
			return what + "selects no confidential pod of these files)"
		}
		return what + "does not lead to one pod alone)"
	}
	return ""
}

// coordinatorHost returns how a pod reaches the Coordinator: as it was told, or by the Service that selects a Coordinator's pod.
func (g *generator) coordinatorHost() func(*target) string {
	if g.CoordinatorHost != "" {
		return func(*target) string { return g.CoordinatorHost }
	}
	coordinators := slices.DeleteFunc(slices.Clone(g.targets), func(t *target) bool { return t.role != initdata.Coordinator })
	for _, s := range g.services {
		if slices.ContainsFunc(coordinators, s.selects) {
			return func(t *target) string {
				if s.namespace != t.namespace {
					return s.name + "." + s.namespace + s.coordinatorPort()
				}
				return s.name + s.coordinatorPort()
			}
		}
	}
	return func(*target) string { return "coordinator" }
}

// coordinatorPort is ":port" when the Service leads from another port to the Coordinator's.
func (s service) coordinatorPort() string {
	ports := get(get(s.node, "spec"), "ports")
	if ports == nil {
		return ""
	}
	want := strconv.Itoa(api.Port)
	other := ""
	for _, p := range ports.Content {
		switch port, targetPort := text(p, "port"), text(p, "targetPort"); {
		case port == want:
			return ""
		case targetPort == want, len(ports.Content) == 1:
			other = ":" + port
		}
	}
	return other
}

// place is where a target stands, for messages.
func (t *target) place() string { return place(t.src, t.node) }

func place(s *source, n *yaml.Node) string { return s.name + ":" + strconv.Itoa(n.Line) }
