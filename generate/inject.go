package generate

import (
	cleanpath "path"
	"strings"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/guest/initdata"
)

// The names in a pod that belong to Portcullis. Whatever bears one of them was injected, and is replaced.
const (
	containerInitializer = "contrast-initializer"
	containerMeshproxy   = "contrast-service-mesh"
	volumeSecrets        = "contrast-secrets"
	volumeMeshproxy      = "contrast-service-mesh"

	// mountSecrets is where every container finds the credentials.
	mountSecrets = "/contrast"
	// mountMeshproxy is the mesh proxy's own: Envoy's configuration and its copies of the credentials.
	mountMeshproxy = "/run/portcullis"
)

// Images are what the injected containers run.
type Images struct{ Initializer, Meshproxy string }

// injection is what one pod gets.
type injection struct {
	settings
	coordinator string // host or host:port
	pin         string // empty for a pod that trusts any Coordinator
	images      Images
}

// sidecars are the native sidecars, in the order in which they start. The Initializer is first: until it is ready
// nothing else runs. The mesh proxy is next, so that the pod's own init containers are inside the mesh.
func (in injection) sidecars() list {
	switch {
	case in.role == initdata.Coordinator || in.skip || in.placement == initdata.Guest:
		return nil
	case in.mesh == nil:
		return list{in.initializer()}
	}
	return list{in.initializer(), in.meshproxy()}
}

// Every security-relevant value is an argument, since a pod policy pins arguments exactly; and an environment variable,
// since that is where people look for it.
func (in injection) initializer() mapping {
	args := list{"--coordinator=" + in.coordinator}
	env := list{variable("COORDINATOR_HOST", in.coordinator)}
	if in.pin != "" {
		args = append(args, argumentPin+in.pin)
	}
	var capabilities list
	if in.locked() {
		args = append(args, "--egress-policy="+in.mesh.EgressPolicy)
		env = append(env, variable("CONTRAST_EGRESS_POLICY", in.mesh.EgressPolicy))
		capabilities = list{"NET_RAW"} // to mark its connections to the Coordinator
	}
	if in.mesh == nil {
		args = append(args, "--no-mesh")
		capabilities = list{"NET_ADMIN"} // to take the guard's table away
	}
	return mapping{
		{"name", containerInitializer},
		{"image", in.images.Initializer},
		{"args", args},
		{"env", env},
		{"restartPolicy", "Always"},
		{"startupProbe", startupProbe("initializer", "ready")},
		{"resources", resources("10m", "64Mi")},
		{"securityContext", securityContext(capabilities)},
		{"volumeMounts", list{mapping{{"name", volumeSecrets}, {"mountPath", mountSecrets}}}},
	}
}

func (in injection) meshproxy() mapping {
	args := list{"--ingress=" + in.mesh.Ingress, "--egress=" + in.mesh.Egress}
	env := list{
		variable("CONTRAST_INGRESS_PROXY_CONFIG", in.mesh.Ingress),
		variable("CONTRAST_EGRESS_PROXY_CONFIG", in.mesh.Egress),
	}
	if in.mesh.AdminPort != "" {
		args = append(args, "--admin-port="+in.mesh.AdminPort)
		env = append(env, variable("CONTRAST_ADMIN_PORT", in.mesh.AdminPort))
	}
	if in.mesh.EgressPolicy != "" {
		args = append(args, "--egress-policy="+in.mesh.EgressPolicy)
		env = append(env, variable("CONTRAST_EGRESS_POLICY", in.mesh.EgressPolicy))
	}
	if in.mesh.AccessLog != "" {
		args = append(args, "--access-log="+in.mesh.AccessLog)
		env = append(env, variable("CONTRAST_ACCESS_LOG", in.mesh.AccessLog))
	}
	if in.mesh.Probes != "" {
		args = append(args, "--probes="+in.mesh.Probes)
		env = append(env, variable("CONTRAST_PROBES", in.mesh.Probes))
	}
	return mapping{
		{"name", containerMeshproxy},
		{"image", in.images.Meshproxy},
		{"args", args},
		{"env", env},
		{"restartPolicy", "Always"},
		{"startupProbe", startupProbe("meshproxy", "ready")},
		{"resources", resources("50m", "256Mi")},
		{"securityContext", securityContext(list{
			"NET_ADMIN",        // the guard's rules
			"NET_RAW",          // handed on to Envoy, whose listeners are transparent and marked
			"SETUID", "SETGID", // to run Envoy as a user of its own
			"KILL", // and to stop it
		})},
		{"volumeMounts", list{
			mount(volumeSecrets, mountSecrets),
			mapping{{"name", volumeMeshproxy}, {"mountPath", mountMeshproxy}},
		}},
	}
}

// volumes are in memory: the credentials never reach a disk, which is the host's.
func (in injection) volumes() list {
	switch {
	case in.role == initdata.Coordinator || in.skip:
		return nil
	case in.placement == initdata.Guest && in.mesh != nil && in.secretID == "":
		return nil // what is in the mesh calls and is called in plaintext, inside the pod
	case in.mesh == nil, in.placement == initdata.Guest:
		return list{memoryVolume(volumeSecrets, "1Mi")}
	}
	return list{memoryVolume(volumeSecrets, "1Mi"), memoryVolume(volumeMeshproxy, "16Mi")}
}

func memoryVolume(name, limit string) mapping {
	return mapping{{"name", name}, {"emptyDir", mapping{{"medium", "Memory"}, {"sizeLimit", limit}}}}
}

func mount(volume, path string) mapping {
	return mapping{{"name", volume}, {"mountPath", path}, {"readOnly", true}}
}

func variable(name, value string) mapping { return mapping{{"name", name}, {"value", value}} }

// startupProbe never gives up: a pod that waits for its Coordinator is not broken, and killing it would not help.
func startupProbe(command ...any) mapping {
	return mapping{
		{"exec", mapping{{"command", list(command)}}},
		{"periodSeconds", 1},
		{"timeoutSeconds", 5},
		{"failureThreshold", 1<<31 - 1},
	}
}

// resources asks for the memory that it limits, as a podVM is sized by limits. The image is unpacked into guest memory,
// so the figure covers it.
func resources(cpu, memory string) mapping {
	return mapping{
		{"requests", mapping{{"cpu", cpu}, {"memory", memory}}},
		{"limits", mapping{{"memory", memory}}},
	}
}

// securityContext is root without its powers, whatever the pod's own says: root, since the key is readable by root only.
func securityContext(capabilities list) mapping {
	caps := mapping{{"drop", list{"ALL"}}}
	if len(capabilities) > 0 {
		caps = append(mapping{{"add", capabilities}}, caps...)
	}
	return mapping{
		{"runAsUser", 0},
		{"runAsGroup", 0},
		{"runAsNonRoot", false},
		{"privileged", false},
		{"allowPrivilegeEscalation", false},
		{"readOnlyRootFilesystem", true},
		{"capabilities", caps},
	}
}

// inject splices a target's injection into its pod, which has none. Everything written is asked for later, when the
// Coordinator is known and the initdata is made.
func (s *splicer) inject(p pod, t *target) {
	l := layout{dash: s.dashIndent(p)}
	was := make(originals)
	probes := s.rewriteProbes(t.probes)
	if len(t.volumes()) > 0 {
		names := make(map[string]*yaml.Node)
		for _, c := range p.containers() {
			s.checkMounts(c)
			s.checkContainerName(c, names)
			mounts := func() list { return list{mount(volumeSecrets, mountSecrets)} }
			s.addItems(c, "volumeMounts", was.at(text(c, "name")+"/volumeMounts"), mounts, l)
		}
		if len(t.sidecars()) > 0 {
			s.addItems(p.spec, "initContainers", was.at("initContainers"), func() list { return t.sidecars() }, l)
		}
		s.addItems(p.spec, "volumes", was.at("volumes"), func() list { return t.volumes() }, l)
	}
	annotations := func() mapping {
		entries := mapping{{initdata.Annotation, t.annotation}}
		if probes != "" {
			entries = append(entries, field{annotationProbes, probes})
		}
		if len(was) > 0 {
			entries = append(entries, field{annotationEmpty, was.text()})
		}
		return entries
	}
	if _, metadata := own(p.template, "metadata"); metadata != nil && metadata.Kind == yaml.MappingNode {
		if len(metadata.Content) == 0 {
			was.at("metadata").keep(emptyMapping)
		}
		s.addEntries(metadata, "annotations", was.at("annotations"), annotations, l)
		return
	}
	s.addEntries(p.template, "metadata", was.at("metadata"), func() mapping { return mapping{{"annotations", annotations()}} }, l)
}

// checkContainerName refuses a name that two containers have: what is kept of a container is kept by its name.
func (s *splicer) checkContainerName(container *yaml.Node, seen map[string]*yaml.Node) {
	name := text(container, "name")
	if first := seen[name]; first != nil && first != container {
		s.failAt(codeTwice, container, "the container on line %d is named %q too; give each container a name of its own", first.Line, name)
	}
	seen[name] = container
}

// dashIndent is how the pod's author indents lists.
func (s *splicer) dashIndent(p pod) int {
	key, containers := own(p.spec, "containers")
	if containers == nil || containers.Kind != yaml.SequenceNode || isFlow(containers) {
		return 0
	}
	dash, ok := s.dash(containers)
	if !ok {
		return 0
	}
	return max(0, dash-s.lineStart(dash)-(key.Column-1))
}

// checkMounts refuses mounts that would hide the credentials, or freeze them.
func (s *splicer) checkMounts(container *yaml.Node) {
	mounts := get(container, "volumeMounts")
	if mounts == nil {
		return
	}
	for _, m := range mounts.Content {
		path := get(m, "mountPath")
		if path == nil || path.Kind != yaml.ScalarNode || path.Value == "" {
			continue
		}
		if clean := cleanpath.Clean("/" + path.Value); clean == "/" || clean == mountSecrets || strings.HasPrefix(clean, mountSecrets+"/") {
			s.failAt(codeMount, path, "mountPath %s is where the mesh credentials are mounted; choose another", path.Value)
		}
	}
}

// ownAnnotation is an annotation that stands in the text of the pod template's metadata.
func (p pod) ownAnnotation(name string) (key, value *yaml.Node) {
	n := p.template
	for _, key := range []string{"metadata", "annotations"} {
		if _, n = own(n, key); n == nil || n.Kind != yaml.MappingNode {
			return nil, nil
		}
	}
	return own(n, name)
}

func ourContainer(n *yaml.Node) bool {
	name := text(n, "name")
	return name == containerInitializer || name == containerMeshproxy
}

// ourMount recognises the mount that generate adds to every container. A person's own mount of that volume is a fault:
// with a subPath it would show the first credentials for ever.
func (s *splicer) ourMount(n *yaml.Node) bool {
	if text(n, "name") != volumeSecrets {
		return false
	}
	for _, key := range []string{"subPath", "subPathExpr"} {
		if v := get(n, key); v != nil {
			s.failAt(codeMount, v, "%s of %s never sees a renewed certificate; every container has the whole volume at %s",
				key, volumeSecrets, mountSecrets)
		}
	}
	if text(n, "mountPath") != mountSecrets {
		s.failAt(codeMount, resolve(n), "%s is mounted at %s in every container by generate; remove this mount", volumeSecrets, mountSecrets)
	}
	return true
}

// ourVolume recognises the volumes that generate adds, which are in memory.
func (s *splicer) ourVolume(n *yaml.Node) bool {
	name := text(n, "name")
	if name != volumeSecrets && name != volumeMeshproxy {
		return false
	}
	if text(get(n, "emptyDir"), "medium") != "Memory" {
		s.failAt(codeOurs, n, "volume %s is not as generate writes it, in memory; the name is generate's own: give yours another", name)
	}
	return true
}

// checkNames refuses names of ours in a pod into which nothing was injected: what bears them would be taken for the injection.
func (s *splicer) checkNames(p pod) {
	for _, c := range p.containers() {
		if mounts := get(c, "volumeMounts"); mounts != nil {
			for _, m := range mounts.Content {
				before := len(s.faults)
				switch name := text(m, "name"); {
				case name == volumeMeshproxy:
					s.failAt(codeOurs, m, "volume %s is the mesh proxy's own; give yours another name", name)
				case s.ourMount(m) && len(s.faults) == before:
					s.failAt(codeMount, m, "generate mounts %s in every container; remove this mount", name)
				}
			}
		}
	}
	if containers := get(p.spec, "containers"); containers != nil {
		for _, c := range containers.Content {
			if ourContainer(c) {
				s.failAt(codeOurs, resolve(c), "container name %s is generate's own; give yours another", text(c, "name"))
			}
		}
	}
	if volumes := get(p.spec, "volumes"); volumes != nil {
		for _, v := range volumes.Content {
			if name := text(v, "name"); name == volumeSecrets || name == volumeMeshproxy {
				s.failAt(codeOurs, resolve(v), "volume name %s is generate's own; give yours another", name)
			}
		}
	}
	for _, name := range annotationsOurs {
		if key, _ := p.ownAnnotation(name); key != nil {
			s.failAt(codeOurs, key, "%s is here already and generate did not write it; remove it", name)
		}
	}
}

func ourInitdata(n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode {
		return false
	}
	document, err := initdata.Decode(n.Value)
	if err != nil {
		return false
	}
	data, err := initdata.Parse(document)
	if err != nil {
		return false
	}
	_, ok := data[initdata.KeyConfig]
	return ok
}
