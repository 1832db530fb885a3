package strictjson_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest/strictjson"
)

type inner struct {
	Names []string
	Port  uint16
}

type outer struct {
	Text    string `json:"text"`
	Hidden  string `json:"-"`
	On      bool
	Bytes   []byte
	Inner   inner
	Pointer *inner
	ByHash  map[attestation.PolicyHash]inner
}

func (*outer) UnknownField(name string) string {
	if name == "Later" {
		return "Later comes later"
	}
	return ""
}

func TestUnmarshalReportsEveryFaultWithItsPath(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	tests := map[string]struct {
		text string
		want []string
	}{
		"unknown field":         {`{"Foo":1}`, []string{"Foo: unknown field; known are text, On, Bytes, Inner, Pointer, ByHash"}},
		"known to come later":   {`{"Later":{"a":1}}`, []string{"Later: Later comes later"}},
		"case":                  {`{"Text":"x"}`, []string{"Text: unknown field; did you mean text"}},
		"hidden":                {`{"Hidden":"x"}`, []string{"Hidden: unknown field; known are text, On, Bytes, Inner, Pointer, ByHash"}},
		"odd name":              {`{"a b":1}`, []string{`["a b"]: unknown field; known are text, On, Bytes, Inner, Pointer, ByHash`}},
		"duplicate":             {`{"text":"a","text":"a"}`, []string{"text: the name occurs twice"}},
		"duplicate by escape":   {`{"text":"a","te\u0078t":"a"}`, []string{"text: the name occurs twice"}},
		"duplicate, nested":     {`{"Inner":{"Port":1,"Port":2}}`, []string{"Inner.Port: the name occurs twice"}},
		"duplicate, in unknown": {`{"Later":{"a":1,"a":2}}`, []string{"Later: Later comes later", "Later.a: the name occurs twice"}},
		"duplicate in map":      {`{"ByHash":{"` + hash + `":{},"` + hash + `":{}}}`, []string{`ByHash["` + hash + `"]: the name occurs twice`}},
		"bad map key":           {`{"ByHash":{"AB":{}}}`, []string{`ByHash["AB"]: policy hash "AB" is not 64 lower-case hexadecimal digits`}},
		"null":                  {`{"Inner":null}`, []string{"Inner: null is not a value here; leave the field out"}},
		"null at the top":       {`null`, []string{"null is not a value here; leave the field out"}},
		"wrong kinds": {
			`{"text":1,"On":"true","Bytes":[1],"Inner":[],"Pointer":"x","ByHash":[]}`,
			[]string{
				"text: want a string, got a number", "On: want true or false, got a string",
				"Bytes: want a string (base64), got an array", "Inner: want an object, got an array",
				"Pointer: want an object, got a string", "ByHash: want an object, got an array",
			},
		},
		"out of range":      {`{"Inner":{"Port":65536}}`, []string{"Inner.Port: number 65536 is not a uint16"}},
		"not whole":         {`{"Inner":{"Port":1.5}}`, []string{"Inner.Port: number 1.5 is not a uint16"}},
		"base64":            {`{"Bytes":"?"}`, []string{"Bytes: illegal base64 data at input byte 0"}},
		"element":           {`{"Inner":{"Names":["a",2,null]}}`, []string{"Inner.Names[1]: want a string, got a number", "Inner.Names[2]: null is not a value here; leave the field out"}},
		"trailing value":    {`{} {}`, []string{"line 1, column 5: something follows the value"}},
		"trailing garbage":  {"{}\nx", []string{"line 2, column 1: something follows the value"}},
		"empty":             {``, []string{"line 1, column 1: unexpected EOF"}},
		"cut":               {`{"text":`, []string{"line 1, column 8: unexpected EOF"}},
		"trailing comma":    {`{"text":"a",}`, []string{"line 1, column 13: invalid character '}'"}},
		"invalid UTF-8":     {"{\"text\":\"\xff\"}", []string{"the text is not valid UTF-8"}},
		"too deep":          {strings.Repeat("[", 40) + strings.Repeat("]", 40), []string{"line 1, column 34: nested more than 32 deep"}},
		"comments":          {"{ // x\n}", []string{"line 1, column 3: invalid character '/'"}},
		"byte order mark":   {"\ufeff{}", []string{"line 1, column 1: unexpected character 'ï'"}},
		"unquoted name":     {`{text:"a"}`, []string{"line 1, column 2: invalid character 't'"}},
		"colon for a comma": {`{"Inner":{"Names":["a":"b"]}}`, []string{"line 1, column 23: invalid character ':'"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := strictjson.Unmarshal([]byte(test.text), new(outer))
			faults, ok := err.(strictjson.Faults)
			if !ok {
				t.Fatalf("Unmarshal: %v (%T), want Faults", err, err)
			}
			got := faults.Strings()
			if len(got) != len(test.want) {
				t.Fatalf("faults:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
			for i := range got {
				// encoding/json's own words follow its first ones.
				if !strings.HasPrefix(got[i], test.want[i]) {
					t.Errorf("fault %d: %s\nwant: %s", i, got[i], test.want[i])
				}
			}
		})
	}
}

func TestUnmarshalAgreesWithEncodingJSONOnWhatItAccepts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := outer{
			Text:  rapid.String().Draw(t, "text"),
			On:    rapid.Bool().Draw(t, "on"),
			Bytes: rapid.SliceOfN(rapid.Byte(), 1, 8).Draw(t, "bytes"),
			Inner: inner{
				Names: rapid.SliceOfN(rapid.String(), 1, 3).Draw(t, "names"),
				Port:  rapid.Uint16().Draw(t, "port"),
			},
			Pointer: &inner{Names: []string{}, Port: 7},
			ByHash:  map[attestation.PolicyHash]inner{{1}: {Names: []string{"x"}}},
		}
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var byJSON, got outer
		if err := json.Unmarshal(text, &byJSON); err != nil {
			t.Fatal(err)
		}
		if err := strictjson.Unmarshal(text, &got); err != nil {
			t.Fatalf("Unmarshal(%s): %v", text, err)
		}
		byJSON.Pointer.Names = nil // an empty array appends nothing
		if diff := cmp.Diff(byJSON, got); diff != "" {
			t.Fatalf("Unmarshal(%s) differs (-encoding/json +strictjson):\n%s", text, diff)
		}
	})
}

func FuzzUnmarshalAcceptsOnlyWhatEncodingJSONAccepts(f *testing.F) {
	f.Add([]byte(`{"text":"a","Inner":{"Names":["b"],"Port":3}}`))
	f.Add([]byte(`{"ByHash":{}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if strictjson.Unmarshal(text, new(outer)) == nil {
			if err := json.Unmarshal(text, new(outer)); err != nil {
				t.Fatalf("accepted, but encoding/json says: %v", err)
			}
		}
	})
}
