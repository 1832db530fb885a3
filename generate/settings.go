package generate

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/pki"
)

// The annotations.
const (
	annotationPrefix    = "contrast.edgeless.systems/"
	annotationIngress   = annotationPrefix + "servicemesh-ingress"
	annotationEgress    = annotationPrefix + "servicemesh-egress"
	annotationAdminPort = annotationPrefix + "servicemesh-admin-interface-port"
	annotationPolicy    = annotationPrefix + "servicemesh-egress-policy"
	annotationAccessLog = annotationPrefix + "servicemesh-access-log"
	annotationSkip      = annotationPrefix + "skip-initializer"
	annotationSecretID  = annotationPrefix + "workload-secret-id"
	annotationRole      = annotationPrefix + "pod-role"

	annotationIdentities = "portcullis.dev/identities"
)

var annotationNames = append(slices.Clone(annotationsMesh), annotationAccessLog, annotationSkip, annotationSecretID, annotationRole)

// annotationsMesh are in the order of config.Parse's values.
var annotationsMesh = []string{annotationIngress, annotationEgress, annotationAdminPort, annotationPolicy}

// RuntimeClasses are prefixes of the names of confidential runtime classes.
var RuntimeClasses = []string{"contrast-cc", "kata-qemu-snp", "kata-qemu-tdx", "kata-cc", "kata-remote"}

// settings are what a pod's annotations ask for.
type settings struct {
	role      initdata.Role
	placement initdata.Placement
	// skip leaves the Initializer out: the pod gets initdata and a policy, and the gate stays down.
	skip     bool
	secretID manifest.SecretID
	// mesh is nil for a pod without mesh annotations.
	mesh *initdata.MeshConfig
	// parsed is mesh as the mesh proxy will understand it.
	parsed *config.Config
	// identities are what the annotation adds to those that generate finds.
	identities   []pki.SAN
	identitiesAt *yaml.Node
	// probes are those that are led to the mesh proxy.
	probes []rewrite
	// at has the value of each annotation that there is.
	at map[string]*yaml.Node
}

// annotations collects the pod's annotations with our prefix, from all places where they may stand.
func (p pod) annotations() (map[string]*yaml.Node, []error) {
	found := make(map[string]*yaml.Node)
	var faults []error
	for _, annotations := range p.annotationMaps() {
		for _, a := range pairs(annotations) {
			name := a.key.Value
			if !strings.HasPrefix(name, annotationPrefix) {
				continue
			}
			first, seen := found[name]
			switch {
			case a.value.Kind != yaml.ScalarNode || a.value.Tag != "!!str":
				faults = append(faults, p.src.faultAt(codeNotString, a.value, "annotation %s must be a string; put it in quotes", name))
			case seen && first.Value != a.value.Value:
				faults = append(faults, p.src.faultAt(codeTwoValues, a.value, "annotation %s is %q here and %q on line %d; keep one",
					name, a.value.Value, first.Value, first.Line))
			case !seen:
				found[name] = a.value
			}
			if !slices.Contains(annotationNames, name) {
				faults = append(faults, p.src.unknownAnnotation(a.key))
			}
		}
	}
	return found, faults
}

// notOffered are annotations that Contrast publishes and Portcullis does not have, with what to do instead. Whoever wrote one
// relies on it.
var notOffered = map[string]string{
	annotationPrefix + "secure-pv": "encrypted volumes are not offered, and without them the pod would write plaintext to a disk of the host's: " +
		"let the workload encrypt what it stores under a key derived from its workload secret (" + annotationSecretID + "), and remove it",
	annotationPrefix + "image-store-size": "there is no store of images on a disk, they are unpacked into the podVM's memory: " +
		"give the containers memory limits with room for them, and remove it",
}

// unknownAnnotation is the fault of an annotation under our prefix that does nothing.
func (s *source) unknownAnnotation(key *yaml.Node) error {
	if instead, published := notOffered[key.Value]; published {
		return s.faultAt(codeNotOffered, key, "annotation %s: %s", key.Value, instead)
	}
	return s.faultAt(codeUnknown, key, "unknown annotation %s; known are %s", key.Value, strings.Join(annotationNames, ", "))
}

// readIdentities reads the names that a person adds to those that generate finds.
func (p pod) readIdentities() (ids []pki.SAN, at *yaml.Node, faults []error) {
	for _, annotations := range p.annotationMaps() {
		v := get(annotations, annotationIdentities)
		if v == nil {
			continue
		}
		at = &yaml.Node{Line: v.Line, Column: v.Column}
		if v.Kind != yaml.ScalarNode || v.Tag != "!!str" {
			faults = append(faults, p.src.faultAt(codeNotString, v, "annotation %s must be a string; put it in quotes", annotationIdentities))
			continue
		}
		for name := range strings.SplitSeq(v.Value, ",") {
			san, err := pki.ParseSAN(strings.TrimSpace(name))
			if err != nil {
				faults = append(faults, p.src.faultAt(codeValue, v, "annotation %s: %v", annotationIdentities, err))
			} else if !slices.Contains(ids, san) {
				ids = append(ids, san)
			}
		}
	}
	return ids, at, faults
}

// readSettings reads a confidential pod's annotations and reports every fault.
func (p pod) readSettings(placement initdata.Placement) (settings, []error) {
	at, faults := p.annotations()
	s := settings{role: initdata.Workload, at: at, placement: cmp.Or(placement, initdata.Sidecar)}
	var idFaults []error
	s.identities, s.identitiesAt, idFaults = p.readIdentities()
	faults = append(faults, idFaults...)
	fault := func(code Code, name, format string, args ...any) {
		faults = append(faults, p.src.faultAt(code, at[name], format, args...))
	}
	isTrue := func(name string) bool {
		v := at[name]
		if v != nil && v.Value != "true" && v.Value != "false" {
			fault(codeValue, name, "annotation %s is %q, want \"true\" or \"false\"", name, v.Value)
		}
		return v != nil && v.Value == "true"
	}
	s.skip = isTrue(annotationSkip)
	accessLog := isTrue(annotationAccessLog)
	if v := at[annotationRole]; v != nil {
		s.role = initdata.Role(v.Value)
		if s.role != initdata.Coordinator {
			fault(codeValue, annotationRole, "annotation %s is %q, want %q", annotationRole, v.Value, initdata.Coordinator)
		}
	}
	if v := at[annotationSecretID]; v != nil {
		if err := s.secretID.UnmarshalText([]byte(v.Value)); err != nil {
			fault(codeValue, annotationSecretID, "annotation %s: %v", annotationSecretID, err)
		}
	}
	if s.role == initdata.Coordinator {
		s.placement = initdata.Sidecar // it is a container, and raises its own guard
		if s.identitiesAt != nil {
			faults = append(faults, p.src.faultAt(codeContradiction, s.identitiesAt, "annotation %s: a Coordinator has no identity in the mesh",
				annotationIdentities))
		}
	}
	meshFaults := p.readMesh(&s)
	faults = append(faults, meshFaults...)
	switch {
	case !accessLog || len(meshFaults) > 0:
	case s.mesh == nil:
		fault(codeContradiction, annotationAccessLog, "annotation %s: a pod without a mesh has no connections that anything could log; "+
			"add %s, which may be empty", annotationAccessLog, annotationIngress)
	default:
		s.mesh.AccessLog = "true"
	}
	if s.mesh != nil && (s.skip || s.role == initdata.Coordinator) {
		name := slices.IndexFunc(annotationNames, func(name string) bool { return at[name] != nil })
		reason := "without the Initializer the mesh proxy has no credentials"
		if s.role == initdata.Coordinator {
			reason = "a Coordinator answers on its own port and has no mesh proxy"
		}
		fault(codeContradiction, annotationNames[name], "annotation %s: %s", annotationNames[name], reason)
	}
	slices.SortStableFunc(faults, byPlace)
	return s, faults
}

// byPlace orders the faults of one file.
func byPlace(a, b error) int {
	x, okX := errors.AsType[*Fault](a)
	y, okY := errors.AsType[*Fault](b)
	if !okX || !okY {
		return 0
	}
	return cmp.Or(cmp.Compare(x.Line, y.Line), cmp.Compare(x.Column, y.Column))
}

// readMesh parses the mesh annotations one by one, so that each fault is reported where it stands, and then together.
func (p pod) readMesh(s *settings) []error {
	value := func(name string) string {
		if v := s.at[name]; v != nil {
			return v.Value
		}
		return ""
	}
	mesh := initdata.MeshConfig{
		Ingress: value(annotationIngress), Egress: value(annotationEgress), AdminPort: value(annotationAdminPort),
		EgressPolicy: value(annotationPolicy),
	}
	var faults []error
	var first *yaml.Node
	for i, name := range annotationsMesh {
		v := s.at[name]
		if v == nil {
			continue
		}
		if first == nil {
			first = v
		}
		var alone [4]string
		alone[i] = v.Value
		_, err := config.Parse(alone[0], alone[1], alone[2], alone[3])
		faults = append(faults, p.configFaults(codeMesh, v, err)...)
		switch {
		case v.Value != "":
		case name == annotationAdminPort:
			faults = append(faults, p.src.faultAt(codeMesh, v, "annotation %s is empty; leave it out for no admin port", name))
		case name == annotationPolicy:
			faults = append(faults, p.src.faultAt(codeMesh, v, "annotation %s is empty; leave it out, or want closed", name))
		}
	}
	if first == nil || len(faults) > 0 {
		return faults
	}
	parsed, err := config.Parse(mesh.Ingress, mesh.Egress, mesh.AdminPort, mesh.EgressPolicy)
	s.mesh, s.parsed = &mesh, parsed
	return p.configFaults(codeMesh, first, err)
}

func (p pod) configFaults(code Code, at *yaml.Node, err error) []error {
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*config.Error](err)
	if !ok {
		return []error{p.src.faultAt(code, at, "%v", err)}
	}
	faults := make([]error, len(e.Faults))
	for i, f := range e.Faults {
		faults[i] = p.src.faultAt(code, at, "%v", f)
	}
	return faults
}

// locked says whether the pod has the egress lock.
func (s settings) locked() bool { return s.parsed != nil && s.parsed.EgressPolicy != config.EgressOpen }

// guard is the guard state that the pod's software will bring about.
func (s settings) guard() initdata.Guard {
	switch {
	case s.role == initdata.Coordinator:
		return initdata.GuardMesh
	case s.skip:
		return initdata.GuardClosed
	case s.mesh == nil, s.parsed.Mode == config.Disabled:
		return initdata.GuardOpen
	}
	return initdata.GuardMesh
}

// confidential says whether the pod runs in a podVM.
func (p pod) confidential(classes []string) bool {
	class := text(p.spec, "runtimeClassName")
	return slices.ContainsFunc(classes, func(prefix string) bool { return strings.HasPrefix(class, prefix) })
}

// checkForeign refuses annotations that would be without effect: where a person wrote one, they rely on it.
func (p pod) checkForeign(classes []string) []error {
	found, faults := p.annotations()
	class := text(p.spec, "runtimeClassName")
	what := fmt.Sprintf("its runtimeClassName is %q", class)
	if class == "" {
		what = "it has no runtimeClassName"
	}
	if _, at, _ := p.readIdentities(); at != nil {
		found[annotationIdentities] = at
	}
	for _, name := range append(slices.Clone(annotationNames), annotationIdentities) {
		if v := found[name]; v != nil && name != annotationSkip {
			faults = append(faults, p.src.faultAt(codeForeign, v, "annotation %s on %v, which is not a confidential pod: %s, want one of %s "+
				"(--runtime-class adds one)", name, p, what, strings.Join(classes, "*, ")+"*"))
		}
	}
	return faults
}

// checkUnknownKind refuses our annotations anywhere in an object whose pods generate does not find.
func (o object) checkUnknownKind() []error {
	var faults []error
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		if n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				name := n.Content[i].Value
				if instead := notOffered[name]; instead != "" {
					faults = append(faults, o.src.unknownAnnotation(n.Content[i]))
				}
				if slices.Contains(annotationNames, name) && name != annotationSkip {
					faults = append(faults, o.src.faultAt(codeForeign, n.Content[i],
						"annotation %s on an object of kind %q, whose pods generate does not know", name, o.kind))
				}
			}
		}
		for _, child := range n.Content {
			walk(child)
		}
	}
	walk(o.node)
	return faults
}
