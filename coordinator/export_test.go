package coordinator

import (
	"fmt"
	"reflect"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/pki/secret/secrettest"
)

// Reveal adds every secret that c holds now.
func (c *Coordinator) Reveal(s *secrettest.Set) {
	s.AddHPKE("the Coordinator's HPKE key", c.hpkeKey)
	if g := c.active.Load(); g != nil {
		var ids []string
		for _, p := range g.transition.Manifest.Policies {
			if p.WorkloadSecretID != "" {
				ids = append(ids, string(p.WorkloadSecretID))
			}
		}
		s.AddSeed(g.seed, ids...)
		s.AddKey("the mesh CA's key", g.mesh.Key)
	}
	if r := c.recovering.Load(); r != nil {
		r.mutex.Lock()
		defer r.mutex.Unlock()
		for i, share := range r.shares {
			s.Add(fmt.Sprintf("share %d of the seed", i+1), share.Reveal()[1:])
		}
	}
}

// Endpoint is what docs/openapi.yaml must say of a route.
type Endpoint struct {
	Path, Method      string
	MaxBody           int64
	Request, Response reflect.Type
	Refused           string // what the log calls a refusal
}

// Endpoints are all routes.
func (c *Coordinator) Endpoints() (all []Endpoint) {
	for _, e := range c.routes().endpoints {
		all = append(all, Endpoint{e.path, e.method, e.maxBody, e.request, e.response, refusedMessages[e.path]})
	}
	return all
}

// Problem is how a code travels.
type Problem struct {
	Status int
	Detail string
}

// Problems are all codes.
func Problems() map[api.Code]Problem {
	all := map[api.Code]Problem{}
	for code, p := range problems {
		all[code] = Problem{p.status, p.detail}
	}
	return all
}

// States are all states.
func States() []string {
	var all []string
	for _, s := range states {
		all = append(all, string(s))
	}
	return all
}
