// Package deploy makes the Kubernetes YAML of a Coordinator.
//
// It is text for people to read before they apply it, so it is a template with comments and no object tree. What it says about
// security concerns Kubernetes' own order only, since the cluster is the host's: the Coordinator's podVM keeps itself closed, and
// others believe its evidence.
package deploy

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/template"

	"portcullis.dev/portcullis/api"
)

// The stores that a Coordinator can keep its history in, as its flag --store says them.
const (
	StoreKubernetes = "kubernetes" // ConfigMaps, for any number of replicas
	StoreBolt       = "bbolt"      // a file on a volume, for one
)

// maxReplicas is more than anybody needs: each asks the API server about every second.
const maxReplicas = 15

// Coordinator is what can be chosen about a Coordinator's deployment.
type Coordinator struct {
	Namespace    string // of all objects; empty leaves it to kubectl
	Image        string
	RuntimeClass string
	Replicas     int
	Store        string
}

//go:embed coordinator.yaml.tmpl
var coordinatorYAML string

var coordinatorTemplate = template.Must(template.New("coordinator.yaml").Option("missingkey=error").Parse(coordinatorYAML))

var (
	namespaceForm    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)                              // RFC 1123 label
	runtimeClassForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`) // RFC 1123 subdomain
	imageForm        = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._/:-]*(@sha256:[0-9a-f]{64})?$`)             // what stands in YAML as it is
	digestForm       = regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)
)

// Pinned says whether an image is named by its digest. Any other name the host may lead to any image.
func (c Coordinator) Pinned() bool { return digestForm.MatchString(c.Image) }

// Write writes the YAML.
func (c Coordinator) Write(w io.Writer) error {
	if err := c.Check(); err != nil {
		return err
	}
	return coordinatorTemplate.Execute(w, view{Coordinator: c})
}

// Check says everything that is wrong with it.
func (c Coordinator) Check() error {
	var faults []error
	fail := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Namespace != "" && !namespaceForm.MatchString(c.Namespace) {
		fail("namespace %q: want lower-case letters, digits and -, 63 at most", c.Namespace)
	}
	if !imageForm.MatchString(c.Image) || strings.HasSuffix(c.Image, ":") {
		fail("image %q: want a name such as registry.example.com/coordinator@sha256:<64 hexadecimal digits>", c.Image)
	}
	if !runtimeClassForm.MatchString(c.RuntimeClass) || len(c.RuntimeClass) > 253 {
		fail("runtime class %q: want a name such as kata-qemu-snp", c.RuntimeClass)
	}
	if c.Replicas < 1 || c.Replicas > maxReplicas {
		fail("%d replicas: want 1 to %d", c.Replicas, maxReplicas)
	}
	switch c.Store {
	case StoreKubernetes:
	case StoreBolt:
		if c.Replicas > 1 {
			fail("%d replicas with the store %s, which is a file of one: want 1, or the store %s", c.Replicas, StoreBolt, StoreKubernetes)
		}
	default:
		fail("store %q: want %s or %s", c.Store, StoreKubernetes, StoreBolt)
	}
	return errors.Join(faults...)
}

// view is what the template sees.
type view struct {
	Coordinator
	Name string
}

// Named is the view of one object.
func (v view) Named(name string) view {
	v.Name = name
	return v
}

func (v view) Shared() bool { return v.Store == StoreKubernetes }
func (v view) Port() int    { return api.Port }
