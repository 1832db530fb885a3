package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
)

func TestHostsAreReadAsPeopleWriteThem(t *testing.T) {
	tests := map[string]struct{ want, fault string }{
		"coordinator":                 {want: "http://coordinator:1313"},
		"coordinator.portcullis.svc":  {want: "http://coordinator.portcullis.svc:1313"},
		"coordinator:8080":            {want: "http://coordinator:8080"},
		"10.0.0.1":                    {want: "http://10.0.0.1:1313"},
		"10.0.0.1:80":                 {want: "http://10.0.0.1:80"},
		"fd00::1":                     {want: "http://[fd00::1]:1313"},
		"[fd00::1]":                   {want: "http://[fd00::1]:1313"},
		"[fd00::1]:8080":              {want: "http://[fd00::1]:8080"},
		"http://coordinator":          {want: "http://coordinator:1313"},
		"http://coordinator:80/":      {want: "http://coordinator:80"},
		"https://coordinator.example": {want: "https://coordinator.example"},
		"https://coordinator:8443":    {want: "https://coordinator:8443"},
		"":                            {fault: "the host is empty"},
		":1313":                       {fault: "the host is empty"},
		"http://":                     {fault: "the host is empty"},
		"coordinator:":                {fault: "the port is empty"},
		"coordinator:0":               {fault: "port 0, want 1 to 65535"},
		"coordinator:65536":           {fault: "port 65536, want 1 to 65535"},
		"coordinator:http":            {fault: "want host"},
		"ftp://coordinator":           {fault: `scheme "ftp", want http or https`},
		"coordinator/path":            {fault: "no user, path, query or fragment"},
		"coordinator?x=1":             {fault: "no user, path, query or fragment"},
		"user@coordinator":            {fault: "no user, path, query or fragment"},
		"coordi nator":                {fault: "want host"},
		"coordinator,other":           {fault: "want host"},
	}
	for host, test := range tests {
		t.Run(host, func(t *testing.T) {
			c, err := api.New(host)
			if test.fault != "" {
				if err == nil || !strings.Contains(err.Error(), test.fault) {
					t.Fatalf("New: %v, %v, want an error that says %q", c, err, test.fault)
				}
				return
			}
			if err != nil || c.String() != test.want {
				t.Fatalf("New: %v, %v, want %s", c, err, test.want)
			}
		})
	}
}

// serve answers every request alike.
func serve(t *testing.T, h http.HandlerFunc) *api.Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	c, err := api.New(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestProblemsBecomeErrors(t *testing.T) {
	problem := func(status int, code api.Code) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", api.ProblemType)
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(api.Problem{
				Status: status, Code: code, Detail: "what happened", Faults: []string{"first fault", "second fault"},
			})
		}
	}
	plain := func(status int, mediaType, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mediaType)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	tests := map[string]struct {
		answer    http.HandlerFunc
		code      api.Code
		status    int
		retry     time.Duration
		temporary bool
		exit      int
		says      []string
	}{
		"bad manifest": {
			problem(400, api.CodeBadManifest), api.CodeBadManifest, 400, 7 * time.Second, false, 2,
			[]string{"/v1/mesh/nonce answered 400 bad-manifest: what happened", "first fault; second fault"},
		},
		"busy":              {problem(429, api.CodeBusy), api.CodeBusy, 429, 7 * time.Second, true, 1, []string{"429 busy"}},
		"no manifest":       {problem(503, api.CodeNoManifest), api.CodeNoManifest, 503, 7 * time.Second, true, 1, nil},
		"rejected evidence": {problem(403, api.CodeEvidenceRejected), api.CodeEvidenceRejected, 403, 7 * time.Second, false, 3, nil},
		"conflict":          {problem(409, api.CodeConflict), api.CodeConflict, 409, 7 * time.Second, false, 3, nil},
		"a code of a newer Coordinator": {
			problem(418, "teapot"), "teapot", 418, 7 * time.Second, false, 1, []string{"418 teapot: what happened"},
		},
		"proxy that is down":       {plain(502, "text/html", "<h1>oops</h1>"), "", 502, 0, true, 1, []string{"not a Coordinator's answer"}},
		"another server":           {plain(404, "application/json", `{"code":"busy"}`), "", 404, 0, false, 1, []string{"not a Coordinator's answer"}},
		"problem without a code":   {plain(404, api.ProblemType, `{"detail":"x"}`), "", 404, 0, false, 1, []string{"not a Coordinator's answer"}},
		"problem that is no JSON":  {plain(503, api.ProblemType, `{"code":"busy"`), "", 503, 0, true, 1, []string{"not a Coordinator's answer"}},
		"status inside is ignored": {plain(503, api.ProblemType, `{"code":"busy","status":200}`), api.CodeBusy, 503, 0, true, 1, []string{"503 busy"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := serve(t, test.answer).Nonce(t.Context())
			refused, ok := errors.AsType[*api.Error](err)
			if !ok {
				t.Fatalf("Nonce: %v, want an *api.Error", err)
			}
			if refused.Code != test.code || refused.Status != test.status || refused.RetryAfter != test.retry ||
				refused.Temporary() != test.temporary || refused.ExitCode() != test.exit || refused.Hint() == "" {
				t.Errorf("error %+v, temporary %v, exit code %d, want %+v", refused, refused.Temporary(), refused.ExitCode(), test)
			}
			for _, says := range test.says {
				if !strings.Contains(refused.Error(), says) {
					t.Errorf("error %q, want %q in it", refused, says)
				}
			}
			if strings.Contains(refused.Error(), "\n") {
				t.Errorf("error %q has more than one line", refused)
			}
		})
	}
}

func TestClientDistrustsTheServer(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the client followed a redirect")
	}))
	defer elsewhere.Close()
	tests := map[string]struct {
		answer http.HandlerFunc
		says   string
	}{
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, "answered 307"},
		"endless answer": {func(w http.ResponseWriter, _ *http.Request) {
			for chunk := make([]byte, 64<<10); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, "larger than 1048576 bytes"},
		"not JSON":      {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, "is a Coordinator listening there?"},
		"trailing data": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"nonce":"AA=="}{}`) }, "is a Coordinator listening there?"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := serve(t, test.answer).Nonce(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Nonce: %v, want an error that says %q", err, test.says)
			}
		})
	}
}

func TestUnreachableCoordinatorIsNamed(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	address := s.Listener.Addr().String()
	s.Close()
	c, err := api.New(address)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Nonce(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), "coordinator unreachable: ") || !strings.Contains(err.Error(), address) {
		t.Errorf("Nonce: %v", err)
	}
}

func TestClientEndsWithItsContext(t *testing.T) {
	asked := make(chan struct{})
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then the server notices that the client went away
		close(asked)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := c.Nonce(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Nonce: %v, want context.Canceled", err)
	}
}
