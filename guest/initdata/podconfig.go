package initdata

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Placement says where the mesh runs.
type Placement string

// The placements.
const (
	Sidecar Placement = "sidecar" // in containers that generate injected
	Guest   Placement = "guest"   // in systemd services of the podVM's image
)

// Role says what a pod is to the mesh.
type Role string

// The roles.
const (
	Workload    Role = "workload"
	Coordinator Role = "coordinator"
)

// Guard is the guard state that the pod's own software may bring about. Until then, and otherwise, the gate is down.
type Guard string

// The guard states.
const (
	GuardClosed Guard = "closed" // nothing of Portcullis in the pod lifts the gate
	GuardMesh   Guard = "mesh"   // TLS only, but for ports that the mesh configuration names
	GuardOpen   Guard = "open"   // the gate goes away: what comes in is not the mesh's affair, and this says so
)

// PodConfig is the content of portcullis.toml: whose initdata this is, and what the mesh does in that pod. Since the
// initdata is measured, the host can neither swap two pods' configurations nor leave one away. Every field is spelt out
// in the text, so that nothing follows from an absent one.
type PodConfig struct {
	// Namespace, Kind and Name are those of the Kubernetes object. They also keep two pods with otherwise equal
	// configurations apart: each has a policy hash of its own.
	Namespace, Kind, Name string
	Placement             Placement
	Role                  Role
	Guard                 Guard
	// CoordinatorHost is host or host:port; empty for the Coordinator itself.
	CoordinatorHost string
	// Mesh is set when the pod has a mesh proxy: always with GuardMesh, never with GuardClosed, and with GuardOpen when the
	// proxy only calls out.
	Mesh *MeshConfig
}

// MeshConfig holds the mesh proxy's values, in the grammar of package meshproxy/config.
type MeshConfig struct {
	Ingress, Egress string
	// AdminPort is empty when there is no admin listener.
	AdminPort string
	// EgressPolicy is empty when the pod may send what it likes.
	EgressPolicy string
	// Probes are what the proxy answers for kubelet; generate writes them.
	Probes string
	// AccessLog is "true" where every connection is logged, and not only those that are refused.
	AccessLog string
}

// Text returns the TOML text of c.
func (c PodConfig) Text() (string, error) {
	if err := c.check(); err != nil {
		return "", fmt.Errorf("write %s: %w", KeyConfig, err)
	}
	var b bytes.Buffer
	line := func(key, value string) { fmt.Fprintf(&b, "%s = %s\n", key, basicString(value)) }
	line("namespace", c.Namespace)
	line("kind", c.Kind)
	line("name", c.Name)
	line("placement", string(c.Placement))
	line("role", string(c.Role))
	line("guard", string(c.Guard))
	line("coordinator", c.CoordinatorHost)
	if c.Mesh != nil {
		b.WriteString("\n[mesh]\n")
		line("ingress", c.Mesh.Ingress)
		line("egress", c.Mesh.Egress)
		line("admin-port", c.Mesh.AdminPort)
		line("egress-policy", c.Mesh.EgressPolicy)
		line("probes", c.Mesh.Probes)
		line("access-log", c.Mesh.AccessLog)
	}
	return b.String(), nil
}

// ParsePodConfig reads what Text wrote. Every field must be there, and no other.
func ParsePodConfig(text string) (PodConfig, error) {
	if len(text) > MaxSize {
		return PodConfig{}, fmt.Errorf("parse %s: %d bytes, the limit is %d", KeyConfig, len(text), MaxSize)
	}
	var tables map[string]any
	if err := toml.Unmarshal([]byte(text), &tables); err != nil {
		return PodConfig{}, fmt.Errorf("parse %s: %w", KeyConfig, err)
	}
	var faults []error
	root := reader{path: "", table: tables, faults: &faults}
	c := PodConfig{
		Namespace:       root.take("namespace"),
		Kind:            root.take("kind"),
		Name:            root.take("name"),
		Placement:       Placement(root.take("placement")),
		Role:            Role(root.take("role")),
		Guard:           Guard(root.take("guard")),
		CoordinatorHost: root.take("coordinator"),
	}
	if value, ok := tables["mesh"]; ok {
		table, ok := value.(map[string]any)
		if !ok {
			faults = append(faults, errors.New("mesh is not a table"))
		}
		mesh := reader{path: "mesh.", table: table, faults: &faults}
		c.Mesh = &MeshConfig{
			Ingress:      mesh.take("ingress"),
			Egress:       mesh.take("egress"),
			AdminPort:    mesh.take("admin-port"),
			EgressPolicy: mesh.take("egress-policy"),
			Probes:       mesh.take("probes"),
			AccessLog:    mesh.take("access-log"),
		}
		mesh.done()
		delete(tables, "mesh")
	}
	root.done()
	if err := errors.Join(append(faults, c.check())...); err != nil {
		return PodConfig{}, fmt.Errorf("parse %s: %w", KeyConfig, err)
	}
	return c, nil
}

func (c PodConfig) check() error {
	var faults []error
	want := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	want(c.Namespace != "", "namespace is empty")
	want(c.Kind != "", "kind is empty")
	want(c.Name != "", "name is empty")
	want(c.Placement == Sidecar || c.Placement == Guest, "placement is %q, want %q or %q", c.Placement, Sidecar, Guest)
	switch c.Role {
	case Workload:
		want(c.CoordinatorHost != "", "coordinator is empty")
		switch c.Guard {
		case GuardMesh:
			want(c.Mesh != nil, "guard is %q, but there is no table [mesh]", c.Guard)
		case GuardOpen:
		case GuardClosed:
			want(c.Mesh == nil, "guard is %q, but there is a table [mesh]", c.Guard)
		default:
			want(false, "guard is %q, want %q, %q or %q", c.Guard, GuardMesh, GuardOpen, GuardClosed)
		}
	case Coordinator:
		want(c.CoordinatorHost == "", "role is %q, but coordinator is not empty", c.Role)
		want(c.Guard == GuardMesh, "role is %q, but guard is %q, want %q", c.Role, c.Guard, GuardMesh)
		want(c.Mesh == nil, "role is %q, but there is a table [mesh]", c.Role)
	default:
		want(false, "role is %q, want %q or %q", c.Role, Workload, Coordinator)
	}
	return errors.Join(faults...)
}

// reader takes strings out of a table; what is left at the end is unknown.
type reader struct {
	path   string
	table  map[string]any
	faults *[]error
}

func (r reader) take(name string) string {
	value, ok := r.table[name]
	if !ok {
		*r.faults = append(*r.faults, fmt.Errorf("%s%s is missing", r.path, name))
		return ""
	}
	delete(r.table, name)
	text, ok := value.(string)
	if !ok {
		*r.faults = append(*r.faults, fmt.Errorf("%s%s is not a string", r.path, name))
	}
	return text
}

func (r reader) done() {
	for _, name := range slices.Sorted(maps.Keys(r.table)) {
		*r.faults = append(*r.faults, fmt.Errorf("unknown name %s%s", r.path, name))
	}
}

func basicString(text string) string {
	var b bytes.Buffer
	b.WriteByte('"')
	for _, r := range strings.ToValidUTF8(text, "�") {
		if r == '"' || r == '\\' || r < ' ' || r == 0x7f {
			writeEscaped(&b, r)
		} else {
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
