package openapi_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

const file = "../../docs/openapi.yaml"

func read(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func check(text string) (*openapi3.T, error) {
	document, err := openapi3.NewLoader().LoadFromData([]byte(text))
	if err != nil {
		return nil, err
	}
	return document, document.Validate(context.Background())
}

func TestTheDescriptionIsOpenAPI(t *testing.T) {
	document, err := check(read(t))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if n := document.Paths.Len(); n < 8 {
		t.Errorf("%s describes %d paths", file, n)
	}
	for path, item := range document.Paths.Map() {
		for method, o := range item.Operations() {
			if o.OperationID == "" || o.Summary == "" {
				t.Errorf("%s: %s %s has no name or no summary", file, method, path)
			}
		}
	}
}

// What the parser takes for granted it would not be worth asking.
func TestWhatIsNotOpenAPIIsFound(t *testing.T) {
	text := read(t)
	for name, change := range map[string][2]string{
		"an unknown schema":       {"#/components/schemas/AttestRequest", "#/components/schemas/Nothing"},
		"an unknown header":       {"#/components/headers/RetryAfter", "#/components/headers/Nothing"},
		"an unknown type":         {"type: integer", "type: number of shares"},
		"no title":                {"  title: Portcullis Coordinator\n", ""},
		"no version":              {"  version: v1\n", ""},
		"a route without a slash": {"  /v1/attest:", "  v1/attest:"},
		"an unknown word":         {"      summary:", "      sumary:"},
		"a name twice":            {"operationId: nonce", "operationId: attest"},
		"no answer":               {"description: it does\n", ""},
	} {
		changed := strings.ReplaceAll(text, change[0], change[1])
		if changed == text {
			t.Errorf("%s: nothing was changed", name)
		}
		if _, err := check(changed); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
