package coordinator_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/coordinator"
)

// description is what these tests read of docs/openapi.yaml. That it is OpenAPI as a whole, tools/openapi checks.
type description struct {
	Problems map[api.Code]struct {
		Status int
		Detail string
	} `yaml:"x-problems"`
	Paths      map[string]map[string]operation
	Components struct{ Schemas map[string]*schema }
}

type operation struct {
	RequestBody struct {
		Required bool
		MaxBody  int64 `yaml:"x-max-body"`
		Content  map[string]struct{ Schema *schema }
	} `yaml:"requestBody"`
	Responses map[string]struct {
		Headers map[string]any
		Content map[string]struct{ Schema *schema }
	}
}

type schema struct {
	Ref        string `yaml:"$ref"`
	Type       string
	Format     string
	Enum       []string
	Items      *schema
	Properties map[string]*schema
	Required   []string
	Additional *bool     `yaml:"additionalProperties"`
	AllOf      []*schema `yaml:"allOf"`
}

const reference = "#/components/schemas/"

var readDescription = sync.OnceValues(func() (*description, error) {
	text, err := os.ReadFile("../docs/openapi.yaml")
	if err != nil {
		return nil, err
	}
	d := new(description)
	return d, yaml.Unmarshal(text, d)
})

func mustDescription(t *testing.T) *description {
	t.Helper()
	d, err := readDescription()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// codes are those that an operation may answer with a status.
func (o operation) codes(status string) []string {
	s := o.Responses[status].Content[api.ProblemType].Schema
	if s == nil || len(s.AllOf) != 2 || s.AllOf[0].Ref != reference+"Problem" || s.AllOf[1].Properties["code"] == nil {
		return nil
	}
	return s.AllOf[1].Properties["code"].Enum
}

// faults is every difference between the description and the handlers.
func (d *description) faults(endpoints []coordinator.Endpoint, problems map[api.Code]coordinator.Problem) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	routes := map[string]bool{}
	types := map[string]reflect.Type{"Problem": reflect.TypeFor[api.Problem]()}
	requests := map[string]bool{}
	for _, e := range endpoints {
		method := strings.ToLower(e.Method)
		route := e.Method + " " + e.Path
		routes[route] = true
		o, there := d.Paths[e.Path][method]
		if !there {
			fault("%s: it is not described", route)
			continue
		}
		if e.MaxBody != o.RequestBody.MaxBody {
			fault("%s: x-max-body is %d, want %d", route, o.RequestBody.MaxBody, e.MaxBody)
		}
		if e.Request != nil {
			if !o.RequestBody.Required {
				fault("%s: the body is not required", route)
			}
			if e.Refused == "" {
				fault("%s: the log has no name for a refusal (refusedMessages)", route)
			}
			d.body(fault, route+" request", o.RequestBody.Content["application/json"].Schema, e.Request)
			d.body(fault, route+" answer", o.Responses["200"].Content["application/json"].Schema, e.Response)
			collect(types, e.Request)
			collect(types, e.Response)
			sent := map[string]reflect.Type{}
			collect(sent, e.Request)
			for name := range sent {
				requests[name] = true
			}
		}
		for status := range o.Responses {
			if status == "200" {
				continue
			}
			codes := o.codes(status)
			if e.Request != nil && len(codes) == 0 {
				fault("%s: %s has no codes", route, status)
			}
			for _, code := range codes {
				if p, known := problems[api.Code(code)]; !known || strconv.Itoa(p.Status) != status {
					fault("%s: code %s with status %s, want %d", route, code, status, p.Status)
				}
			}
			if retry := status == "429" || status == "503"; retry && len(codes) > 0 && o.Responses[status].Headers["Retry-After"] == nil {
				fault("%s: %s without Retry-After", route, status)
			}
		}
	}
	for path, operations := range d.Paths {
		for method := range operations {
			if route := strings.ToUpper(method) + " " + path; !routes[route] {
				fault("%s: there is no such route", route)
			}
		}
	}
	for code, p := range problems {
		if got := d.Problems[code]; got.Status != p.Status || got.Detail != p.Detail {
			fault("x-problems: %s is %+v, want %+v", code, got, p)
		}
	}
	for code := range d.Problems {
		if _, known := problems[code]; !known {
			fault("x-problems: there is no code %s", code)
		}
	}
	for name, s := range d.Components.Schemas {
		if name == "Health" {
			if got := s.Properties["state"].Enum; !slices.Equal(got, coordinator.States()) {
				fault("Health: states %v, want %v", got, coordinator.States())
			}
			continue
		}
		goType, known := types[name]
		if !known {
			fault("schema %s: no route has it", name)
			continue
		}
		if closed := s.Additional != nil && !*s.Additional; closed != requests[name] {
			fault("schema %s: additionalProperties false: %v, want %v", name, closed, requests[name])
		}
		fields := map[string]bool{}
		for i := range goType.NumField() {
			f := goType.Field(i)
			tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			fields[tag] = true
			property := s.Properties[tag]
			if property == nil {
				fault("schema %s: the field %s is not described", name, tag)
				continue
			}
			if required := slices.Contains(s.Required, tag); required == (options == "omitempty") {
				fault("schema %s: %s required: %v, want %v", name, tag, required, !required)
			}
			d.field(fault, name+"."+tag, property, f.Type)
		}
		for property := range s.Properties {
			if !fields[property] {
				fault("schema %s: there is no field %s", name, property)
			}
		}
	}
	for name := range types {
		if d.Components.Schemas[name] == nil {
			fault("schema %s: it is not described", name)
		}
	}
	slices.Sort(faults)
	return faults
}

func (d *description) body(fault func(string, ...any), where string, s *schema, want reflect.Type) {
	if s == nil || s.Ref != reference+want.Name() {
		fault("%s: the schema is %+v, want %s", where, s, want.Name())
	}
}

// field compares a property with a Go type.
func (d *description) field(fault func(string, ...any), where string, s *schema, goType reflect.Type) {
	want := schema{}
	switch goType.Kind() {
	case reflect.Pointer:
		d.field(fault, where, s, goType.Elem())
		return
	case reflect.Struct:
		want.Ref = reference + goType.Name()
	case reflect.String:
		want.Type = "string"
	case reflect.Bool:
		want.Type = "boolean"
	case reflect.Int:
		want.Type = "integer"
	case reflect.Slice:
		if goType.Elem().Kind() == reflect.Uint8 {
			want.Type, want.Format = "string", "byte"
			break
		}
		want.Type = "array"
		if s.Items == nil {
			fault("%s: an array of nothing", where)
			return
		}
		d.field(fault, where+"[]", s.Items, goType.Elem())
	default:
		fault("%s: this test does not know %s", where, goType)
		return
	}
	if s.Ref != want.Ref || s.Type != want.Type || s.Format != want.Format {
		fault("%s: %s %s %s, want %s %s %s", where, s.Ref, s.Type, s.Format, want.Ref, want.Type, want.Format)
	}
}

// collect finds every struct that a type is made of.
func collect(types map[string]reflect.Type, t reflect.Type) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		collect(types, t.Elem())
	case reflect.Struct:
		if _, seen := types[t.Name()]; seen {
			return
		}
		types[t.Name()] = t
		for i := range t.NumField() {
			collect(types, t.Field(i).Type)
		}
	}
}

func TestTheDescriptionOfTheAPIIsTheHandlers(t *testing.T) {
	for _, fault := range mustDescription(t).faults(start(t).coordinator.Endpoints(), coordinator.Problems()) {
		t.Errorf("docs/openapi.yaml: %s", fault)
	}
}

// Each way in which the file and the code can part is noticed.
func TestDifferencesFromTheDescriptionAreFound(t *testing.T) {
	endpoints := start(t).coordinator.Endpoints()
	type renamed struct {
		Nonce string `json:"nonce"`
		Extra []byte `json:"extra,omitempty"`
	}
	without := func(path string) []coordinator.Endpoint {
		return slices.DeleteFunc(slices.Clone(endpoints), func(e coordinator.Endpoint) bool { return e.Path == path })
	}
	with := func(alter func(*coordinator.Endpoint)) []coordinator.Endpoint {
		altered := slices.Clone(endpoints)
		alter(&altered[0])
		return altered
	}
	for name, test := range map[string]struct {
		endpoints []coordinator.Endpoint
		problems  func(map[api.Code]coordinator.Problem)
		want      string
	}{
		"a route that was added":   {append(slices.Clone(endpoints), coordinator.Endpoint{Path: "/v1/new", Method: "POST"}), nil, "POST /v1/new: it is not described"},
		"a route that went away":   {without(api.PathRecover), nil, "POST /v1/recover: there is no such route"},
		"another method":           {with(func(e *coordinator.Endpoint) { e.Method = "PUT" }), nil, "PUT /v1/attest: it is not described"},
		"another cap":              {with(func(e *coordinator.Endpoint) { e.MaxBody++ }), nil, "x-max-body is 4096, want 4097"},
		"another type":             {with(func(e *coordinator.Endpoint) { e.Request = reflect.TypeFor[renamed]() }), nil, "schema renamed: it is not described"},
		"a route without a name":   {with(func(e *coordinator.Endpoint) { e.Refused = "" }), nil, "no name for a refusal"},
		"a code that was added":    {endpoints, func(p map[api.Code]coordinator.Problem) { p["new"] = coordinator.Problem{Status: 400} }, "x-problems: new is"},
		"a code that went away":    {endpoints, func(p map[api.Code]coordinator.Problem) { delete(p, api.CodeBusy) }, "there is no code busy"},
		"a code's other status":    {endpoints, func(p map[api.Code]coordinator.Problem) { p[api.CodeBusy] = coordinator.Problem{Status: 503} }, "code busy with status 429, want 503"},
		"a code's other message":   {endpoints, func(p map[api.Code]coordinator.Problem) { p[api.CodeBusy] = coordinator.Problem{Status: 429} }, "x-problems: busy is"},
		"a schema that nobody has": {without(api.PathManifest), nil, "schema SetRequest: no route has it"},
	} {
		t.Run(name, func(t *testing.T) {
			problems := coordinator.Problems()
			if test.problems != nil {
				test.problems(problems)
			}
			if faults := mustDescription(t).faults(test.endpoints, problems); !strings.Contains(strings.Join(faults, "\n"), test.want) {
				t.Errorf("found %q, want %q", faults, test.want)
			}
		})
	}
	type field struct {
		A []byte  `json:"a"`
		B bool    `json:"b,omitempty"`
		C []int   `json:"c"`
		D *field2 `json:"d,omitempty"`
	}
	described := func() map[string]*schema {
		return map[string]*schema{
			"a": {Type: "string", Format: "byte"}, "b": {Type: "boolean"},
			"c": {Type: "array", Items: &schema{Type: "integer"}}, "d": {Ref: reference + "field2"},
		}
	}
	for name, test := range map[string]struct {
		alter func(map[string]*schema) []string // returns required
		want  string
	}{
		"as it is":          {func(map[string]*schema) []string { return []string{"a", "c"} }, ""},
		"not required":      {func(map[string]*schema) []string { return []string{"a"} }, "c required: false, want true"},
		"required":          {func(map[string]*schema) []string { return []string{"a", "b", "c"} }, "b required: true, want false"},
		"bytes as text":     {func(p map[string]*schema) []string { p["a"].Format = ""; return []string{"a", "c"} }, "field.a"},
		"a number as text":  {func(p map[string]*schema) []string { p["c"].Items.Type = "string"; return []string{"a", "c"} }, "field.c[]"},
		"another object":    {func(p map[string]*schema) []string { p["d"].Ref = reference + "x"; return []string{"a", "c"} }, "field.d"},
		"a missing field":   {func(p map[string]*schema) []string { delete(p, "b"); return []string{"a", "c"} }, "the field b is not described"},
		"a field too many":  {func(p map[string]*schema) []string { p["e"] = &schema{}; return []string{"a", "c"} }, "there is no field e"},
		"a truth as number": {func(p map[string]*schema) []string { p["b"].Type = "integer"; return []string{"a", "c"} }, "field.b"},
	} {
		t.Run("a field: "+name, func(t *testing.T) {
			closed := false
			d := &description{Paths: map[string]map[string]operation{"/v1/x": {"post": {}}}}
			properties := described()
			required := test.alter(properties)
			d.Components.Schemas = map[string]*schema{
				"field":  {Properties: properties, Required: required, Additional: &closed},
				"field2": {Properties: map[string]*schema{}, Additional: &closed},
			}
			var relevant []string
			for _, f := range d.faults([]coordinator.Endpoint{{
				Path: "/v1/x", Method: "POST", Request: reflect.TypeFor[field](), Response: reflect.TypeFor[field](), Refused: "x",
			}}, nil) {
				if strings.Contains(f, "field.") || strings.Contains(f, "schema field") {
					relevant = append(relevant, f)
				}
			}
			if got := strings.Join(relevant, "\n"); !strings.Contains(got, test.want) || (test.want == "") != (got == "") {
				t.Errorf("found %q, want %q", got, test.want)
			}
		})
	}
}

type field2 struct{}

// described wraps a Coordinator's handler: whatever any test of this package makes it answer must be described. Each answer is
// given to answered, too.
func described(t *testing.T, h http.Handler, answered func([]byte)) http.Handler {
	d := mustDescription(t)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, r)
		if fault := d.undescribed(r, answer); fault != "" {
			t.Errorf("docs/openapi.yaml: %s %s: %s", r.Method, r.URL.Path, fault)
		}
		answered(answer.Body.Bytes())
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	})
}

// undescribed says what of an answer the description does not have.
func (d *description) undescribed(r *http.Request, answer *httptest.ResponseRecorder) string {
	operations, there := d.Paths[r.URL.Path]
	o, method := operations[strings.ToLower(r.Method)]
	if r.Method == http.MethodHead {
		o, method = operations["get"]
	}
	mediaType, _, _ := strings.Cut(answer.Header().Get("Content-Type"), ";")
	if mediaType != api.ProblemType {
		if !there || !method || o.Responses[strconv.Itoa(answer.Code)].Content[mediaType].Schema == nil {
			return fmt.Sprintf("the answer %d %s is not described", answer.Code, mediaType)
		}
		return ""
	}
	var p api.Problem
	if err := json.NewDecoder(bytes.NewReader(answer.Body.Bytes())).Decode(&p); err != nil {
		return err.Error()
	}
	switch {
	case !there && p.Code == api.CodeNotFound, there && !method && p.Code == api.CodeMethodNotAllowed:
		return ""
	case !slices.Contains(o.codes(strconv.Itoa(answer.Code)), string(p.Code)):
		return fmt.Sprintf("the answer %d %s is not described", answer.Code, p.Code)
	}
	return ""
}

func TestAnswersThatAreNotDescribedAreFound(t *testing.T) {
	d := mustDescription(t)
	answer := func(status int, mediaType, body string) *httptest.ResponseRecorder {
		a := httptest.NewRecorder()
		a.Header().Set("Content-Type", mediaType)
		a.WriteHeader(status)
		a.WriteString(body)
		return a
	}
	for name, test := range map[string]struct {
		method, path string
		answer       *httptest.ResponseRecorder
		ok           bool
	}{
		"a nonce":            {"POST", api.PathNonce, answer(200, "application/json", "{}"), true},
		"a nonce as text":    {"POST", api.PathNonce, answer(200, "text/plain", "{}"), false},
		"a described code":   {"POST", api.PathNonce, answer(503, api.ProblemType, `{"code":"no-manifest"}`), true},
		"another code":       {"POST", api.PathNonce, answer(503, api.ProblemType, `{"code":"unavailable"}`), false},
		"another status":     {"POST", api.PathNonce, answer(500, api.ProblemType, `{"code":"no-manifest"}`), false},
		"no such route":      {"POST", "/x", answer(404, api.ProblemType, `{"code":"not-found"}`), true},
		"a route, not found": {"POST", api.PathNonce, answer(404, api.ProblemType, `{"code":"not-found"}`), false},
		"another method":     {"PUT", api.PathNonce, answer(405, api.ProblemType, `{"code":"method-not-allowed"}`), true},
	} {
		if fault := d.undescribed(httptest.NewRequest(test.method, test.path, nil), test.answer); (fault == "") != test.ok {
			t.Errorf("%s: %q, want ok %v", name, fault, test.ok)
		}
	}
}
