package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/pki"
)

// Mesh is who lets in whom and who calls whom, by the measured initdata of the pods of the manifest.
type Mesh struct {
	Pods []Pod `json:"pods"`
	// Strangers are pods of the YAML that are not part of the mesh.
	Strangers []Stranger `json:"strangers"`
	// Unseen are policies of the manifest whose pod the YAML does not have, so that nothing is known of their calls.
	Unseen []string `json:"unseen"`
}

// Pod is a pod of the manifest, as its measured initdata says.
type Pod struct {
	Namespace string `json:"namespace"`
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Hash      string `json:"policyHash"`
	Place     string `json:"place"`
	// Also is what the YAML calls it, where that is something else.
	Also        string   `json:"yamlCallsIt,omitempty"`
	SANs        []string `json:"sans"`
	Coordinator bool     `json:"coordinator,omitempty"`
	// Unread says why nothing is known of what it lets in and calls.
	Unread string `json:"unread,omitempty"`
	// Gate says what the pod's guard does.
	Gate  string `json:"gate"`
	Level Level  `json:"level,omitempty"`
	Doors []Door `json:"letsIn"`
	Calls []Call `json:"calls"`
	// Rest is what else the pod may send.
	Rest      string `json:"otherwiseSends"`
	RestLevel Level  `json:"otherwiseLevel,omitempty"`
}

// Door is a port that differs from the rule of the pod's gate.
type Door struct {
	Port  string   `json:"port"`
	Name  string   `json:"name"`
	How   string   `json:"how"`
	From  []string `json:"from,omitempty"` // the identities that may; empty for every one
	Level Level    `json:"level,omitempty"`
	// Outside says that a peer needs no certificate of the mesh.
	Outside bool `json:"outside,omitempty"`
}

// Call is where a pod's configuration leads, through mutual TLS.
type Call struct {
	Name       string   `json:"name"`
	Remote     string   `json:"remote"`
	Identities []string `json:"identities,omitempty"`
	Any        bool     `json:"any,omitempty"`
	// To are the pods that have one of the identities, by their place in Mesh.Pods.
	To []int `json:"to"`
	// Outcome says what becomes of it where that is not plain.
	Level   Level  `json:"level,omitempty"`
	Outcome string `json:"outcome,omitempty"`
}

// Stranger is a pod that the manifest does not admit.
type Stranger struct {
	Name  string `json:"name"`
	Place string `json:"place"`
	Why   string `json:"why"`
}

// Title is how the pod is called in text.
func (p Pod) Title() string { return p.Kind + " " + p.Namespace + "/" + p.Name }

func mesh(m *manifest.Manifest, measured []generate.Measured) *Mesh {
	g := &Mesh{Pods: []Pod{}, Strangers: []Stranger{}, Unseen: []string{}}
	seen := make(map[attestation.PolicyHash]bool)
	var members []generate.Measured
	for _, p := range measured {
		place := fmt.Sprintf("%s:%d", p.File, p.Line)
		name := fmt.Sprintf("%s %s/%s", p.Kind, p.Namespace, p.Name)
		_, member := m.Policies[p.Hash]
		switch {
		case !p.Hash.Valid():
			g.Strangers = append(g.Strangers, Stranger{name, place, cmp.Or(errorText(p.Err), "it has no initdata")})
		case !member:
			g.Strangers = append(g.Strangers, Stranger{
				name, place,
				fmt.Sprintf("its policy hash %s is not in the manifest: it gets no certificate", p.Hash),
			})
		case !seen[p.Hash]:
			seen[p.Hash] = true
			members = append(members, p)
		}
	}
	slices.SortStableFunc(members, func(a, b generate.Measured) int {
		return cmp.Or(strings.Compare(title(a), title(b)), strings.Compare(a.Hash.String(), b.Hash.String()))
	})
	for _, p := range members {
		g.Pods = append(g.Pods, pod(p, m.Policies[p.Hash]))
	}
	for i, p := range members {
		if p.Mesh == nil {
			continue
		}
		for _, e := range p.Mesh.Egress {
			g.Pods[i].Calls = append(g.Pods[i].Calls, call(m, members, m.Policies[p.Hash].SANs, e))
		}
	}
	for _, hash := range sortedPolicies(m) {
		if !seen[hash] {
			g.Unseen = append(g.Unseen, fmt.Sprintf("%s (%s)", hash, called(m.Policies[hash])))
		}
	}
	return g
}

func title(p generate.Measured) string {
	if p.Config == nil {
		return p.Namespace + "/" + p.Name + " " + p.Kind
	}
	return p.Config.Namespace + "/" + p.Config.Name + " " + p.Config.Kind
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// pod is a member's own side: what it is called and what it lets in.
func pod(p generate.Measured, policy manifest.Policy) Pod {
	said := Pod{
		Namespace: p.Namespace, Kind: p.Kind, Name: p.Name, Hash: p.Hash.String(), Place: fmt.Sprintf("%s:%d", p.File, p.Line),
		SANs: sanTexts(policy.SANs), Coordinator: policy.Role == manifest.RoleCoordinator, Doors: []Door{}, Calls: []Call{},
	}
	if p.Config == nil {
		said.Unread = cmp.Or(errorText(p.Err), "its initdata says nothing of it")
		said.Gate, said.Level = "Nothing is known of what it lets in and sends.", Caution
		return said
	}
	said.Namespace, said.Kind, said.Name = p.Config.Namespace, p.Config.Kind, p.Config.Name
	if p.Namespace != p.Config.Namespace || p.Kind != p.Config.Kind || p.Name != p.Config.Name {
		said.Also = fmt.Sprintf("%s %s/%s", p.Kind, p.Namespace, p.Name)
	}
	said.Rest, said.RestLevel = "Anything else, to anybody, as its software sends it.", Note
	switch {
	case said.Coordinator:
		said.Gate = "It is the Coordinator: its own port is open to everybody, every message on it protects itself, and nothing else comes in."
	case p.Config.Guard == initdata.GuardClosed:
		said.Gate = "Nothing comes in until the pod's own software lifts the gate."
	case p.Mesh == nil:
		said.Gate, said.Level = "It has no mesh proxy: everything comes in as it is, once it has its certificate.", Danger
	case p.Mesh.Mode == config.Disabled:
		said.Gate, said.Level = "Everything comes in as it is, from everybody: the gate is taken away.", Danger
	case p.Mesh.Mode == config.Mesh:
		said.Gate = "Every TCP port asks for mutual TLS, from any pod of the mesh."
		if len(p.Mesh.Ingress)+len(p.Mesh.Probes) > 0 || p.Mesh.AdminPort != 0 {
			said.Gate = "Every TCP port asks for mutual TLS, from any pod of the mesh, but for these:"
		}
	default:
		said.Gate = "Nothing comes in."
	}
	if p.Mesh == nil {
		return said
	}
	switch p.Mesh.EgressPolicy {
	case config.EgressClosed:
		said.Rest, said.RestLevel = "Nothing but its requests to the Coordinator.", Plain
	case config.EgressClosedDNS:
		said.Rest = "Name look-ups (port 53) to anybody, as its software sends them, and its requests to the Coordinator."
	}
	for _, e := range p.Mesh.Ingress {
		said.Doors = append(said.Doors, door(e))
	}
	if admin := p.Mesh.AdminPort; admin != 0 && !slices.ContainsFunc(p.Mesh.Ingress, func(e config.Ingress) bool { return e.Port == admin && !e.UDP }) {
		said.Doors = append(said.Doors, Door{
			Port: fmt.Sprintf("%d/tcp", admin), Name: "admin view",
			How: "mutual TLS, from any pod of the mesh, which may read the mesh proxy's state and change nothing",
		})
	}
	if len(p.Mesh.Probes) > 0 {
		said.Doors = append(said.Doors, Door{
			Port: fmt.Sprintf("%d/tcp", config.ProbePort), Name: "probes", Level: Note, Outside: true,
			How: "plaintext, from everybody, who learns whether the pod's own health checks succeed and nothing more",
		})
	}
	return said
}

func door(e config.Ingress) Door {
	d := Door{Port: fmt.Sprintf("%d/tcp", e.Port), Name: e.Name, From: sanTexts(e.Identities)}
	switch {
	case e.UDP:
		d.Port = fmt.Sprintf("%d/udp", e.Port)
		d.How, d.Level, d.Outside = "plaintext, from everybody", Danger, true
	case e.TLS == config.ServerTLS:
		d.How, d.Level, d.Outside = "TLS, from everybody: a client needs no certificate", Caution, true
	case e.TLS == config.MutualTLS && len(d.From) > 0:
		d.How = "mutual TLS, only from a client named"
	case e.TLS == config.MutualTLS:
		d.How = "mutual TLS, from any pod of the mesh"
	default:
		d.How, d.Level, d.Outside = "plaintext, from everybody", Danger, true
	}
	return d
}

// call resolves an egress entry to pods by the names that their policies give them. Where the network leads is not
// among what decides: a peer without such a name is refused by the caller.
func call(m *manifest.Manifest, members []generate.Measured, own []pki.SAN, e config.Egress) Call {
	c := Call{Name: e.Name, Remote: e.Remote.String(), Identities: sanTexts(e.Identities), Any: e.Any, To: []int{}}
	if e.Any {
		c.Level, c.Outcome = Caution, "Any pod of the mesh may answer: the network decides which."
		return c
	}
	var unseen, refused []string
	for hash, policy := range m.Policies {
		if !slices.ContainsFunc(policy.SANs, func(has pki.SAN) bool {
			return slices.ContainsFunc(e.Identities, func(asked pki.SAN) bool { return covers(has, asked) })
		}) {
			continue
		}
		i := slices.IndexFunc(members, func(p generate.Measured) bool { return p.Hash == hash })
		if i < 0 {
			unseen = append(unseen, called(policy))
			continue
		}
		c.To = append(c.To, i)
		if why := refuses(members[i], own, e.Remote.Port); why != "" {
			refused = append(refused, called(policy)+" "+why)
		}
	}
	slices.Sort(c.To)
	slices.Sort(unseen)
	slices.Sort(refused)
	switch {
	case len(c.To) == 0 && len(unseen) == 0:
		c.Level, c.Outcome = Note, "No pod of this manifest has that name: its connections fail."
	case len(unseen) > 0:
		c.Level, c.Outcome = Note, fmt.Sprintf("Not in the YAML that was given: %s.", strings.Join(unseen, ", "))
	case len(refused) > 0:
		c.Level, c.Outcome = Note, fmt.Sprintf("Where the Service keeps the port's number, it is refused: %s.", strings.Join(refused, "; "))
	}
	return c
}

// covers says whether a certificate with the name has satisfies a peer that asks for asked.
func covers(has, asked pki.SAN) bool {
	if has == asked {
		return true
	}
	if suffix, ok := strings.CutPrefix(has.String(), "*"); ok && has.Wildcard() {
		label, rest, found := strings.Cut(asked.String(), ".")
		return found && label != "" && label != "*" && "."+rest == suffix
	}
	return false
}

// refuses says why a pod does not let in a caller with these names on a port; empty where it does.
func refuses(p generate.Measured, caller []pki.SAN, port config.Port) string {
	if p.Mesh == nil {
		if p.Config != nil && p.Config.Role == initdata.Workload {
			return "has no mesh proxy that would speak TLS"
		}
		return ""
	}
	switch p.Mesh.Mode {
	case config.Mesh:
	case config.Disabled:
		return "has no mesh proxy in front of its ports"
	default:
		return "lets nothing in"
	}
	for _, e := range p.Mesh.Ingress {
		switch {
		case e.Port != port || e.UDP:
		case e.TLS == config.Plaintext:
			return fmt.Sprintf("speaks no TLS on port %d", port)
		case len(e.Identities) > 0 && !slices.ContainsFunc(e.Identities, func(id pki.SAN) bool {
			return slices.ContainsFunc(caller, func(has pki.SAN) bool { return covers(has, id) })
		}):
			return fmt.Sprintf("does not let the caller in on port %d", port)
		}
	}
	return ""
}

func (g *Mesh) findings() []Finding {
	var all []Finding
	add := func(level Level, format string, args ...any) {
		all = append(all, Finding{level, fmt.Sprintf(format, args...), "mesh"})
	}
	if n := len(g.Strangers); n > 0 {
		add(Caution, "%s of the YAML %s not part of this mesh, and nothing on this page is about %s.",
			count(n, "pod", "pods"), isAre(n), itThem(n))
	}
	if n := len(g.Unseen); n > 0 {
		add(Note, "The manifest admits %s that the YAML does not show.", count(n, "pod", "pods"))
	}
	for _, p := range g.Pods {
		if p.Level.over(Note) {
			add(p.Level, "%s: %s", clip(p.Title()), p.Gate)
		}
		for _, d := range p.Doors {
			if d.Level.over(Note) {
				add(d.Level, "%s, port %s (%s): %s.", clip(p.Title()), d.Port, clip(d.Name), d.How)
			}
		}
		for _, c := range p.Calls {
			if c.Level.over(Note) {
				add(c.Level, "%s calls %s (%s): %s", clip(p.Title()), clip(c.Remote), clip(c.Name), c.Outcome)
			}
		}
		if p.Also != "" {
			add(Note, "The YAML calls %s by another name, %s. The measured name is shown.", clip(p.Title()), clip(p.Also))
		}
	}
	return all
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func itThem(n int) string {
	if n == 1 {
		return "it"
	}
	return "them"
}
