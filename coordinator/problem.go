package coordinator

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"portcullis.dev/portcullis/api"
)

// retryAfter is what a client is asked to wait that may succeed later.
const retryAfter = 2 * time.Second

// problems says how each code travels, and what is said to the client where the refusal itself does not.
var problems = map[api.Code]struct {
	status int
	detail string
}{
	api.CodeBadRequest:        {http.StatusBadRequest, "the request is malformed"},
	api.CodeBadManifest:       {http.StatusBadRequest, "the manifest is malformed"},
	api.CodeBadNonce:          {http.StatusBadRequest, "the nonce is unknown or has expired; ask for another"},
	api.CodeBadSignature:      {http.StatusForbidden, "a signature is missing or wrong"},
	api.CodeEvidenceRejected:  {http.StatusForbidden, "the evidence does not satisfy the manifest"},
	api.CodeNotFound:          {http.StatusNotFound, "there is no such route"},
	api.CodeMethodNotAllowed:  {http.StatusMethodNotAllowed, "this route takes another method"},
	api.CodeConflict:          {http.StatusConflict, "previous is not the latest transition"},
	api.CodeGenerationChanged: {http.StatusConflict, "the manifest changed; this pod's mesh CA is no longer in use"},
	api.CodeNoRecovery:        {http.StatusConflict, "the Coordinator needs no recovery"},
	api.CodeShareRepeated:     {http.StatusConflict, "this owner's share is here already"},
	api.CodeSharesDiscarded:   {http.StatusForbidden, "the shares together are not the seed of this history; all are discarded"},
	api.CodeTooLarge:          {http.StatusRequestEntityTooLarge, "the request is too large"},
	api.CodeBusy:              {http.StatusTooManyRequests, "too many requests are waiting"},
	api.CodeNoManifest:        {http.StatusServiceUnavailable, "no manifest was set yet"},
	api.CodeNeedsRecovery:     {http.StatusServiceUnavailable, "the Coordinator was restarted and needs recovery"},
	api.CodeNeedsPeer:         {http.StatusServiceUnavailable, "another replica went on without this one, which asks its peers for what they have"},
	api.CodeSplitHistory:      {http.StatusServiceUnavailable, "the store contradicts what this Coordinator knows; its log says how"},
	api.CodeUnavailable:       {http.StatusServiceUnavailable, "evidence cannot be had or judged now"},
	api.CodeInternal:          {http.StatusInternalServerError, "the Coordinator failed; its log says why"},
}

// refusal is an error with two faces: what the client is told, and the cause, which only the log is told.
type refusal struct {
	code   api.Code
	detail string   // empty: the code's usual one
	faults []string // for the client
	cause  error    // for the log
}

func problem(code api.Code) *refusal { return &refusal{code: code} }

func (r *refusal) because(cause error) *refusal {
	r.cause = cause
	return r
}

func (r *refusal) saying(format string, args ...any) *refusal {
	r.detail = fmt.Sprintf(format, args...)
	return r
}

func (r *refusal) Error() string {
	if r.cause != nil {
		return r.cause.Error()
	}
	if r.detail != "" {
		return r.detail
	}
	return problems[r.code].detail
}

func (r *refusal) Unwrap() error { return r.cause }

func (r *refusal) write(w http.ResponseWriter) {
	known, ok := problems[r.code]
	if !ok {
		r, known = problem(api.CodeInternal), problems[api.CodeInternal]
	}
	p := api.Problem{
		Type:   "about:blank",
		Title:  http.StatusText(known.status),
		Status: known.status,
		Code:   r.code,
		Detail: r.detail,
		Faults: r.faults,
	}
	if p.Detail == "" {
		p.Detail = known.detail
	}
	switch known.status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", strconv.Itoa(int(retryAfter.Seconds())))
	}
	writeJSON(w, known.status, api.ProblemType, p)
}

func writeJSON(w http.ResponseWriter, status int, mediaType string, body any) {
	text, err := json.Marshal(body)
	if err != nil { // cannot happen for the wire types, and would be a 500
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(text)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(text) // a client that has gone needs no answer
}
