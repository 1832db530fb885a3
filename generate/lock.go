package generate

import (
	"slices"

	"go.yaml.in/yaml/v3"
)

// checkLock warns of containers whose capabilities lead past the egress lock: NET_RAW lets a process send frames past the
// guard's rules, or mark a socket as the mesh proxy does, and NET_ADMIN lets it change the rules.
func (g *generator) checkLock(p pod, settings settings) {
	if !settings.locked() {
		return
	}
	for _, c := range p.containers() {
		if ourContainer(c) {
			continue
		}
		if powers := powersPastTheLock(c); len(powers) > 0 {
			g.warn(p.src, c, "container %s of %v has the capability %s, with which it can send past the egress lock: "+
				"add securityContext.capabilities.drop: [NET_RAW], or [ALL]", text(c, "name"), p, powers[0])
		}
	}
}

// powersPastTheLock are those of the capabilities that a container has: NET_RAW unless it is dropped, as container runtimes
// give it, and what is added.
func powersPastTheLock(container *yaml.Node) []string {
	security := get(container, "securityContext")
	if text(security, "privileged") == "true" {
		return []string{"all (privileged)"}
	}
	named := func(key, capability string) bool {
		names := get(get(security, "capabilities"), key)
		return names != nil && slices.ContainsFunc(names.Content, func(n *yaml.Node) bool { return n.Value == capability })
	}
	var powers []string
	for _, capability := range []string{"NET_RAW", "NET_ADMIN"} {
		dropped := named("drop", "ALL") || named("drop", capability)
		given := capability == "NET_RAW" && !dropped
		if given || named("add", capability) || named("add", "ALL") {
			powers = append(powers, capability)
		}
	}
	return powers
}
