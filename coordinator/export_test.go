package coordinator

import (
	"reflect"

	"portcullis.dev/portcullis/api"
)

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
