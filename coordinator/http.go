package coordinator

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"mime"
	"net/http"
	"reflect"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/manifest/strictjson"
)

// The largest bodies. Bytes grow by a third in base64.
const (
	maxSmallBody       = 4 << 10
	maxCertificateBody = 64 << 10 // an SNP report with its chain is 6 KiB, a TDX quote 8 KiB
	maxManifestBody    = manifest.MaxSize/3*4 + 64<<10
	requestTimeout     = 30 * time.Second
)

// Handler answers the routes of package api.
func (c *Coordinator) Handler() http.Handler {
	return c.routes()
}

// routes is every route. docs/openapi.yaml describes them, and a test compares both.
func (c *Coordinator) routes() *router {
	mux := &router{mux: http.NewServeMux()}
	mux.Handle(api.PathAttest, route(c, maxSmallBody, nil, c.attest))
	mux.Handle(api.PathManifest, route(c, maxManifestBody, c.setting, c.set))
	mux.Handle(api.PathNonce, route(c, maxSmallBody, nil, c.nonce))
	mux.Handle(api.PathCertificate, route(c, maxCertificateBody, nil, c.certificate))
	mux.Handle(api.PathSuccessor, route(c, maxSmallBody, nil, c.successor))
	mux.Handle(api.PathRecover, route(c, maxSmallBody, nil, c.takeShare))
	mux.Handle(api.PathPeerState, route(c, maxCertificateBody, nil, c.giveState))
	mux.Handle(api.PathHealth, get(http.HandlerFunc(c.health)))
	mux.Handle(api.PathReady, get(http.HandlerFunc(c.ready)))
	mux.Handle(api.PathMetrics, get(promhttp.HandlerFor(c.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})))
	mux.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { problem(api.CodeNotFound).write(w) })
	return mux
}

// router is a ServeMux that knows what it serves.
type router struct {
	mux       *http.ServeMux
	endpoints []endpoint
}

func (r *router) ServeHTTP(w http.ResponseWriter, req *http.Request) { r.mux.ServeHTTP(w, req) }

// Handle adds a route that route or get made.
func (r *router) Handle(path string, e endpoint) {
	e.path = path
	r.endpoints = append(r.endpoints, e)
	r.mux.Handle(path, e)
}

// endpoint is one route.
type endpoint struct {
	http.Handler
	path, method      string
	maxBody           int64        // 0 where the method takes no body
	request, response reflect.Type // nil where it is not JSON of package api
}

// route makes a handler of a function from request to answer: POST and JSON only, the body bounded, one deadline. Where
// bodies are large, a gate bounds how many are in memory.
func route[Request, Response any](
	c *Coordinator, maxBody int64, bodies *gate, answer func(context.Context, *Request) (*Response, error),
) endpoint {
	serve := func(w http.ResponseWriter, r *http.Request) (*Response, error) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			return nil, problem(api.CodeMethodNotAllowed)
		}
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		if bodies != nil {
			leave, err := bodies.enter(ctx)
			if err != nil {
				return nil, err
			}
			defer leave()
		}
		req := new(Request)
		if err := decode(w, r, maxBody, req); err != nil {
			return nil, err
		}
		return answer(ctx, req)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				c.log.Error("panic", "route", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				c.metrics.request(r.URL.Path, api.CodeInternal)
				problem(api.CodeInternal).write(w)
			}
		}()
		resp, err := serve(w, r)
		if err != nil {
			refused, ok := errors.AsType[*refusal](err)
			if !ok {
				refused = problem(api.CodeInternal).because(err)
			}
			c.logRefusal(r, refused)
			c.auditRefusal(r, refused)
			c.metrics.request(r.URL.Path, refused.code)
			refused.write(w)
			return
		}
		c.metrics.request(r.URL.Path, "")
		writeJSON(w, http.StatusOK, "application/json", resp)
	})
	return endpoint{
		Handler: handler, method: http.MethodPost, maxBody: maxBody,
		request: reflect.TypeFor[Request](), response: reflect.TypeFor[Response](),
	}
}

func decode(w http.ResponseWriter, r *http.Request, maxBody int64, into any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return problem(api.CodeBadRequest).saying("the Content-Type is not application/json")
	}
	var body bytes.Buffer
	// The length is the client's word: believed as far as a body that is mostly evidence goes.
	if r.ContentLength > 0 {
		body.Grow(int(min(r.ContentLength, maxBody, maxCertificateBody)) + bytes.MinRead)
	}
	if _, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			return problem(api.CodeTooLarge).saying("the request is larger than %d bytes", maxBody)
		}
		return problem(api.CodeBadRequest).saying("the request ended early").because(err)
	}
	if err := strictjson.Unmarshal(body.Bytes(), into); err != nil {
		refused := problem(api.CodeBadRequest).saying("the request is malformed").because(err)
		if faults, ok := errors.AsType[strictjson.Faults](err); ok {
			refused.faults = faults.Strings()
		}
		return refused
	}
	return nil
}

// refusedMessages are what the log calls a refusal, for every route that has them.
var refusedMessages = map[string]string{
	api.PathAttest:      "attestation refused",
	api.PathManifest:    "manifest refused",
	api.PathNonce:       "nonce refused",
	api.PathCertificate: "certificate refused",
	api.PathSuccessor:   "successor refused",
	api.PathRecover:     "seed share refused",
	api.PathPeerState:   "peer refused",
}

// logRefusal says what the client is not told. Rejected evidence is what operators look for first, so its parts are
// fields of their own.
func (c *Coordinator) logRefusal(r *http.Request, refused *refusal) {
	level := slog.LevelWarn
	if refused.code == api.CodeInternal {
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("code", string(refused.code)),
		slog.String("remote", r.RemoteAddr),
	}
	attrs = append(attrs, reason(refused)...)
	if judged, ok := errors.AsType[*judgedError](refused.cause); ok {
		attrs = append(attrs, slog.String("claimedPolicyHash", judged.claimed))
	}
	c.log.LogAttrs(r.Context(), level, refusedMessages[r.URL.Path], attrs...)
}

// reason is why something was refused.
func reason(err error) []slog.Attr {
	if rejected, ok := errors.AsType[*attestation.Rejected](err); ok {
		return []slog.Attr{slog.String("field", rejected.Field), slog.String("want", rejected.Want), slog.String("got", rejected.Got)}
	}
	return []slog.Attr{slog.String("reason", err.Error())}
}

// get admits GET and HEAD.
func get(h http.Handler) endpoint {
	return endpoint{method: http.MethodGet, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			problem(api.CodeMethodNotAllowed).write(w)
			return
		}
		h.ServeHTTP(w, r)
	})}
}

// health says that the process answers.
func (c *Coordinator) health(w http.ResponseWriter, _ *http.Request) {
	health := api.Health{State: string(c.state())}
	if s := c.split.Load(); s != nil {
		health.Detail = s.reason
	}
	writeJSON(w, http.StatusOK, "application/json", health)
}

// ready says that requests make sense: also to a fresh Coordinator, whose first manifest comes by the way that
// readiness opens, and not to one that needs recovery, or cannot write its audit log. One whose store contradicts it serves the
// newest manifest that it knows, so it is ready, and says what is wrong.
func (c *Coordinator) ready(w http.ResponseWriter, _ *http.Request) {
	if err := c.audit.Status().Err; err != nil {
		problem(api.CodeUnavailable).saying(auditUnwritable).write(w)
		return
	}
	if r := c.recovering.Load(); r != nil {
		problem(r.code()).write(w)
		return
	}
	c.health(w, nil)
}
