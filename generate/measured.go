package generate

import (
	"errors"
	"fmt"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/meshproxy/config"
)

// Measured is a pod template of a file, and what the initdata in it says. The file is anybody's word; the initdata is as good
// as its hash: a pod under that policy hash was launched with exactly these bytes, whatever the file says around them.
type Measured struct {
	File string
	Line int
	// Namespace, Kind and Name are the file's word.
	Namespace, Kind, Name string
	// Hash is SHA-256 of the initdata. It is not Valid for a pod without readable initdata.
	Hash attestation.PolicyHash
	// Config is what the initdata says of the pod, nil where that cannot be read.
	Config *initdata.PodConfig
	// Mesh is Config.Mesh as the mesh proxy understands it; nil without a mesh proxy.
	Mesh *config.Config
	// Err says why Hash is not Valid or Config is nil.
	Err error
}

var errNoInitdata = errors.New("it has no initdata")

// ReadMeasured finds every pod template of files, of any runtime class. The error is a Faults when the files are at fault;
// what is wrong with a pod's initdata is in its Err.
func ReadMeasured(files []File, namespace string) ([]Measured, error) {
	var all []Measured
	var faults Faults
	for _, f := range files {
		s, err := parse(f.Name, f.Text, 0)
		if err != nil {
			faults = append(faults, flatten(err)...)
			continue
		}
		for _, o := range s.objects(namespace) {
			p, ok := o.pod()
			if !ok {
				continue
			}
			m := Measured{File: f.Name, Line: o.node.Line, Namespace: o.namespace, Kind: o.kind, Name: o.name}
			m.Err = m.read(text(get(get(p.template, "metadata"), "annotations"), initdata.Annotation))
			all = append(all, m)
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return all, nil
}

func (m *Measured) read(annotation string) error {
	if annotation == "" {
		return errNoInitdata
	}
	document, err := initdata.Decode(annotation)
	if err != nil {
		return err
	}
	data, err := initdata.Parse(document)
	if err != nil {
		return err
	}
	m.Hash = initdata.Digest(document)
	said, ok := data[initdata.KeyConfig]
	if !ok {
		return fmt.Errorf("its initdata has no %s", initdata.KeyConfig)
	}
	c, err := initdata.ParsePodConfig(said)
	if err != nil {
		return err
	}
	if c.Mesh != nil {
		v := config.Values{
			Ingress: c.Mesh.Ingress, Egress: c.Mesh.Egress, AdminPort: c.Mesh.AdminPort,
			EgressPolicy: c.Mesh.EgressPolicy, Probes: c.Mesh.Probes,
		}
		if m.Mesh, err = v.Parse(); err != nil {
			return err
		}
	}
	m.Config = &c
	return nil
}
