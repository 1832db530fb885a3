package generate

import (
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/pki"
)

// service is a Kubernetes Service that has a selector.
type service struct {
	object
	selector map[string]string
}

func (o object) service() (service, bool) {
	selector := get(get(o.node, "spec"), "selector")
	if o.kind != "Service" || o.group != "" || selector == nil || len(selector.Content) == 0 {
		return service{}, false
	}
	return service{object: o, selector: texts(selector)}, true
}

func (s service) selects(t *target) bool {
	for key, value := range s.selector {
		if got, ok := t.labels[key]; !ok || got != value {
			return false
		}
	}
	return s.namespace == t.namespace
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
func (s service) names() []string {
	return []string{
		s.name, s.name + "." + s.namespace, s.name + "." + s.namespace + ".svc", s.name + "." + s.namespace + ".svc.cluster.local",
	}
}

// assignIdentities gives each workload the names of the Services that select it, and its own. An identity must lead to one
// policy only, since a peer that asks for it trusts whoever carries it. So a name that would lead to two leads to none: then
// connections fail and say why, instead of reaching either.
func (g *generator) assignIdentities() {
	taken := make(map[pki.SAN]*target) // nil: nobody may have it
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
			g.warn(s.src, s.node, "Service %s/%s selects %v and %v: neither gets its name as an identity, since that belongs to "+
				"one pod; callers can list both by their own names, as in %s#127.0.0.2:80#%s:80#%s,%s",
				s.namespace, s.name, owners[0].object, owners[1].object, s.name, s.name, owners[0].name, owners[1].name)
		}
		for _, name := range s.names() {
			san, err := pki.ParseSAN(name)
			if err != nil {
				g.fail(s.src.faultAt(s.node, "Service %s/%s: %v", s.namespace, s.name, err))
				break
			}
			before, known := taken[san]
			switch {
			case !known || before == owner:
				taken[san] = owner
			default:
				taken[san] = nil
				if before != nil && owner != nil {
					g.warn(s.src, s.node, "Services of two namespaces are named %s: no pod gets %s as an identity; call it %s.%s",
						s.name, san, s.name, s.namespace)
				}
			}
		}
	}
	for _, s := range g.services {
		for _, name := range s.names() {
			if san, err := pki.ParseSAN(name); err == nil {
				if t := taken[san]; t != nil && !slices.Contains(t.sans, san) {
					t.sans = append(t.sans, san)
				}
			}
		}
	}
	g.assignOwnNames(taken)
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
				g.warn(t.src, t.at[annotationEgress], "egress %q asks for the identity %s, which no policy of the manifest carries: "+
					"its connections will be refused", e, strings.Join(names, ", "))
			}
		}
		for _, e := range t.parsed.Ingress {
			if names := missing(e.Identities); len(names) > 0 {
				g.warn(t.src, t.at[annotationIngress], "ingress %q admits the identity %s, which no policy of the manifest carries",
					e, strings.Join(names, ", "))
			}
		}
	}
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
