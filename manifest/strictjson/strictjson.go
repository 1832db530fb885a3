// Package strictjson decodes JSON that has exactly one reading.
//
// encoding/json is forgiving: it takes the last of two equal keys, matches names without regard to case, drops fields
// it does not know, turns null into "leave as it was", and replaces invalid UTF-8. Each of these lets a text mean one
// thing to the person who reviewed it and another to the program that acts on it. Here each is a fault. All faults are
// found in one pass, each with the path of the value that has it: Policies["3f…"].SANs[2].
package strictjson

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds nesting, and with it the stack.
const maxDepth = 32

// Fault is one thing that is wrong, and where. Path is empty for the whole text.
type Fault struct {
	Path    string
	Message string
}

func (f Fault) Error() string {
	if f.Path == "" {
		return f.Message
	}
	return f.Path + ": " + f.Message
}

// Faults is every fault of one text.
type Faults []Fault

func (f Faults) Error() string { return strings.Join(f.Strings(), "; ") }

// Strings returns one line for each fault.
func (f Faults) Strings() []string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.Error()
	}
	return lines
}

// Add appends a fault.
func (f *Faults) Add(path, format string, args ...any) {
	*f = append(*f, Fault{Path: path, Message: fmt.Sprintf(format, args...)})
}

// At says whether there is a fault at path or below it.
func (f Faults) At(path string) bool {
	return slices.ContainsFunc(f, func(fault Fault) bool {
		rest, below := strings.CutPrefix(fault.Path, path)
		return below && (rest == "" || (path != "" && (rest[0] == '.' || rest[0] == '[')))
	})
}

// Err is f as an error: nil when there is no fault.
func (f Faults) Err() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

// Key is the path of an object's member.
func Key(path, name string) string {
	if name == "" || strings.ContainsFunc(name, notIdentifier) {
		return path + "[" + strconv.Quote(name) + "]"
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// Quoted is the path of a map's entry, which is always quoted.
func Quoted(path, key string) string { return path + "[" + strconv.Quote(key) + "]" }

// Index is the path of an array's element.
func Index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func notIdentifier(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_'
}

// Unmarshal decodes data into the value that target points to. The error is Faults; target is then not to be used,
// though values without a fault have been stored in it when data is well-formed JSON.
//
// Struct fields are named by their json tags, or by their Go names without one. Of the tags' options omitempty and
// omitzero mean nothing here. Values whose types decode themselves (json.Unmarshaler, encoding.TextUnmarshaler) do so.
func Unmarshal(data []byte, target any) error {
	v := reflect.ValueOf(target)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return fmt.Errorf("strictjson: decode into %T, want a pointer", target)
	}
	if !utf8.Valid(data) {
		return Faults{{Message: "the text is not valid UTF-8"}}
	}
	d := decoder{data: data, json: json.NewDecoder(bytes.NewReader(data))}
	err := d.value("", v.Elem(), 0)
	if err == nil {
		if _, err = d.json.Token(); err == io.EOF {
			return d.faults.Err()
		}
		err = errors.New("something follows the value")
	}
	// The text is not JSON: what was found before belongs to a text that nobody wrote.
	line, column := d.position()
	return Faults{{Message: fmt.Sprintf("line %d, column %d: %v", line, column, err)}}
}

type decoder struct {
	data   []byte
	json   *json.Decoder
	faults Faults
}

// value reads the next value into v, or checks and skips it when v is invalid. Its error is one of syntax.
func (d *decoder) value(path string, v reflect.Value, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested more than %d deep", maxDepth)
	}
	kind, start, err := d.peek()
	if err != nil {
		return err
	}
	if kind == 'n' {
		d.faults.Add(path, "null is not a value here; leave the field out")
		v = reflect.Value{}
	}
	for v.IsValid() && v.Kind() == reflect.Pointer && !decodesItself(v) {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if v.IsValid() && !fits(v, kind) {
		d.faults.Add(path, "want %s, got %s", describe(v.Type()), kinds[kind])
		v = reflect.Value{}
	}
	var token json.Token
	switch {
	case kind == '{':
		err = d.object(path, container(v), depth)
	case kind == '[':
		err = d.array(path, container(v), depth)
	default:
		token, err = d.json.Token()
	}
	if err != nil {
		return syntax(err)
	}
	if text, ok := token.(string); ok && v.IsValid() && isBytes(v) {
		// As encoding/json does, which would read the text once more. What is wrong with it, it shall say below.
		if decoded, err := base64.StdEncoding.DecodeString(text); err == nil {
			v.SetBytes(decoded)
			return nil
		}
	}
	if v.IsValid() && !container(v).IsValid() {
		if err := json.Unmarshal(d.data[start:d.json.InputOffset()], v.Addr().Interface()); err != nil {
			d.faults.Add(path, "%s", leafMessage(v.Type(), err))
		}
	}
	return nil
}

func (d *decoder) object(path string, v reflect.Value, depth int) error {
	if _, err := d.json.Token(); err != nil {
		return err
	}
	isMap := v.IsValid() && v.Kind() == reflect.Map
	if isMap && v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	seen := make(map[string]bool)
	for d.json.More() {
		token, err := d.json.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok {
			return fmt.Errorf("want a name, got %v", token)
		}
		at := Key(path, name)
		if isMap {
			at = Quoted(path, name)
		}
		into := reflect.Value{}
		switch {
		case seen[name]:
			d.faults.Add(at, "the name occurs twice")
		case isMap:
			into = reflect.New(v.Type().Elem()).Elem()
		case v.IsValid():
			into = d.field(at, name, v)
		}
		seen[name] = true
		if err := d.value(at, into, depth+1); err != nil {
			return err
		}
		if isMap && into.IsValid() {
			key := reflect.New(v.Type().Key()).Elem()
			if err := setKey(key, name); err != nil {
				d.faults.Add(at, "%v", err)
			} else {
				v.SetMapIndex(key, into)
			}
		}
	}
	_, err := d.json.Token()
	return err
}

func (d *decoder) array(path string, v reflect.Value, depth int) error {
	if _, err := d.json.Token(); err != nil {
		return err
	}
	for i := 0; d.json.More(); i++ {
		into := reflect.Value{}
		if v.IsValid() {
			into = reflect.New(v.Type().Elem()).Elem()
		}
		if err := d.value(Index(path, i), into, depth+1); err != nil {
			return err
		}
		if v.IsValid() {
			v.Set(reflect.Append(v, into))
		}
	}
	_, err := d.json.Token()
	return err
}

// field finds the field that is called exactly name.
func (d *decoder) field(at, name string, v reflect.Value) reflect.Value {
	names := Fields(v.Type())
	for _, f := range names {
		if f.Name == name {
			return v.FieldByIndex(f.Index)
		}
	}
	for _, f := range names {
		if strings.EqualFold(f.Name, name) {
			d.faults.Add(at, "unknown field; did you mean %s", f.Name)
			return reflect.Value{}
		}
	}
	known := make([]string, len(names))
	for i, f := range names {
		known[i] = f.Name
	}
	if hint, ok := v.Addr().Interface().(interface{ UnknownField(name string) string }); ok {
		if text := hint.UnknownField(name); text != "" {
			d.faults.Add(at, "%s", text)
			return reflect.Value{}
		}
	}
	switch len(known) {
	case 0:
		d.faults.Add(at, "unknown field; there are none here")
	default:
		d.faults.Add(at, "unknown field; known are %s", strings.Join(known, ", "))
	}
	return reflect.Value{}
}

// Field is a struct's field under its JSON name.
type Field struct {
	Name  string
	Index []int
	Type  reflect.Type
}

// Fields lists the fields of struct type t that JSON knows, those of embedded structs among them.
func Fields(t reflect.Type) []Field {
	var fields []Field
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() || (f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct) {
			continue
		}
		if name == "" {
			name = f.Name
		}
		fields = append(fields, Field{Name: name, Index: slices.Clone(f.Index), Type: f.Type})
	}
	return fields
}

// peek says what the next value begins with, and where. Digits and minus signs are '0', true and false 't'.
func (d *decoder) peek() (kind byte, start int64, err error) {
	start = d.json.InputOffset()
	for ; start < int64(len(d.data)); start++ {
		switch c := d.data[start]; c {
		case ' ', '\t', '\r', '\n', ',', ':':
			// Whether a comma or a colon may stand here is for the next Token to say.
		case '{', '[', '"', 'n', 't':
			return c, start, nil
		case 'f':
			return 't', start, nil
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			return '0', start, nil
		default:
			return 0, start, fmt.Errorf("unexpected character %q", c)
		}
	}
	return 0, start, io.ErrUnexpectedEOF
}

func (d *decoder) position() (line, column int) {
	before := d.data[:min(d.json.InputOffset(), int64(len(d.data)))]
	line = 1 + bytes.Count(before, []byte{'\n'})
	return line, len(before) - bytes.LastIndexByte(before, '\n')
}

var kinds = map[byte]string{
	'{': "an object", '[': "an array", '"': "a string", '0': "a number", 't': "a boolean", 'n': "null",
}

// container is v when its members are read one by one, and invalid otherwise.
func container(v reflect.Value) reflect.Value {
	if !v.IsValid() || decodesItself(v) {
		return reflect.Value{}
	}
	switch v.Kind() {
	case reflect.Struct, reflect.Map:
		return v
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 {
			return v
		}
	}
	return reflect.Value{}
}

// isBytes says whether v is a slice of octets, which is base64 in JSON.
func isBytes(v reflect.Value) bool {
	return v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 && !decodesItself(v)
}

func decodesItself(v reflect.Value) bool {
	if !v.CanAddr() {
		return false
	}
	switch v.Addr().Interface().(type) {
	case json.Unmarshaler, encoding.TextUnmarshaler:
		return true
	}
	return false
}

func fits(v reflect.Value, kind byte) bool {
	p := v.Addr().Interface()
	if _, ok := p.(json.Unmarshaler); ok {
		return true
	}
	if _, ok := p.(encoding.TextUnmarshaler); ok {
		return kind == '"'
	}
	switch v.Kind() {
	case reflect.Struct, reflect.Map:
		return kind == '{'
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return kind == '"'
		}
		return kind == '['
	case reflect.String:
		return kind == '"'
	case reflect.Bool:
		return kind == 't'
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
		reflect.Float32, reflect.Float64:
		return kind == '0'
	default:
		return false
	}
}

func describe(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Struct, reflect.Map:
		if !reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
			return "an object"
		}
	case reflect.Slice:
		if t.Elem().Kind() != reflect.Uint8 {
			return "an array"
		}
		return "a string (base64)"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
		reflect.Float32, reflect.Float64:
		return "a number"
	}
	return "a string"
}

func leafMessage(t reflect.Type, err error) string {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Sprintf("%s is not a %s", e.Value, t.Kind())
	}
	return err.Error()
}

func setKey(key reflect.Value, name string) error {
	if u, ok := key.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(name))
	}
	if key.Kind() != reflect.String {
		return fmt.Errorf("strictjson: map key of type %s", key.Type())
	}
	key.SetString(name)
	return nil
}

// syntax words the decoder's two ways to say that the text stopped too early alike.
func syntax(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
