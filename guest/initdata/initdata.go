// Package initdata is the file that a pod is measured by.
//
// The host starts a podVM and hands it a document, the initdata; the hardware is made to commit to the document's
// SHA-256, which every piece of evidence then carries as HOSTDATA (SEV-SNP) or MRCONFIGID (TDX). That digest is the pod's
// policy hash, the only name under which a manifest knows a pod. So whatever must not be the host's choice, such as the
// agent's policy or where a pod's traffic may go, belongs in here.
//
// The format is the Confidential Containers project's initdata, version 0.1.0: a TOML document with a version, a digest
// algorithm and a table of named strings. It travels as base64 of gzip in an annotation of the pod. The digest is over the
// exact TOML bytes, so Build writes them itself: a TOML library is free to write the same document differently tomorrow,
// and every pod would have another identity.
//
// Everything read here comes from the host and is hostile until its digest was compared: sizes and inflation are bounded,
// and what is not understood is refused.
package initdata

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"

	"portcullis.dev/portcullis/attestation"
)

// The two values that the format fixes.
const (
	Version   = "0.1.0"
	Algorithm = "sha256"
)

// Annotation is the pod annotation whose value Encode makes.
const Annotation = "io.katacontainers.config.hypervisor.cc_init_data"

// The names of the strings that Portcullis puts into the data table.
const (
	KeyPolicy = "policy.rego"     // the Kata agent's policy
	KeyConfig = "portcullis.toml" // a PodConfig
	KeyPin    = "coordinator-pin" // whom the pod trusts, with placement guest; otherwise an argument says so
)

const (
	// MaxSize bounds the TOML document, read or written.
	MaxSize = 4 << 20
	// MaxEncoded bounds the annotation's value: Kubernetes allows 256 KiB for all annotations of an object together
	// (TotalAnnotationSizeLimitB).
	MaxEncoded = 256 << 10
	// maxKeys bounds the data table. Each of its strings becomes a file in the guest.
	maxKeys = 64
)

// Build writes the document that carries data, its keys sorted. The same data gives the same bytes for ever.
func Build(data map[string]string) ([]byte, error) {
	if err := checkData(data); err != nil {
		return nil, fmt.Errorf("build initdata: %w", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "algorithm = %q\nversion = %q\n\n[data]\n", Algorithm, Version)
	for _, key := range slices.Sorted(maps.Keys(data)) {
		fmt.Fprintf(&b, "\"%s\" = ", key)
		writeText(&b, data[key])
		b.WriteByte('\n')
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("build initdata: %d bytes, the limit is %d", b.Len(), MaxSize)
	}
	return b.Bytes(), nil
}

// Parse reads a document that Build or anyone else wrote, and returns its data.
func Parse(document []byte) (map[string]string, error) {
	if len(document) > MaxSize {
		return nil, fmt.Errorf("parse initdata: %d bytes, the limit is %d", len(document), MaxSize)
	}
	// Into a map: decoding into a struct would match names in any case.
	var tables map[string]any
	if err := toml.Unmarshal(document, &tables); err != nil {
		return nil, fmt.Errorf("parse initdata: %w", err)
	}
	data, err := readDocument(tables)
	if err != nil {
		return nil, fmt.Errorf("parse initdata: %w", err)
	}
	return data, nil
}

// Digest is the policy hash of a pod with this document: SHA-256 of its exact bytes.
func Digest(document []byte) attestation.PolicyHash { return sha256.Sum256(document) }

// compressors are kept for the next document: each has 800 KB of tables.
var compressors = sync.Pool{New: func() any {
	z, _ := gzip.NewWriterLevel(nil, gzip.BestCompression) // which is a level
	return z
}}

// Encode returns the annotation's value for document: base64 of gzip, without a time.
func Encode(document []byte) (string, error) {
	compressed, err := deflate(document)
	if err != nil {
		return "", fmt.Errorf("encode initdata: %w", err)
	}
	value := base64.StdEncoding.EncodeToString(compressed)
	if len(value) > MaxEncoded {
		return "", fmt.Errorf("encode initdata: %d bytes as an annotation, Kubernetes allows %d", len(value), MaxEncoded)
	}
	return value, nil
}

// deflate packs a document into one gzip member.
func deflate(document []byte) ([]byte, error) {
	if len(document) > MaxSize {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(document), MaxSize)
	}
	var b bytes.Buffer
	z := compressors.Get().(*gzip.Writer)
	defer compressors.Put(z)
	z.Reset(&b) // a bytes.Buffer takes everything, so nothing here can fail
	_, _ = z.Write(document)
	_ = z.Close()
	return b.Bytes(), nil
}

// Decode returns the document inside an annotation's value.
func Decode(value string) ([]byte, error) {
	if len(value) > MaxEncoded {
		return nil, fmt.Errorf("decode initdata: the annotation has %d bytes, the limit is %d", len(value), MaxEncoded)
	}
	compressed, err := base64.StdEncoding.Strict().DecodeString(value)
	if err != nil {
		return nil, fmt.Errorf("decode initdata: %w", err)
	}
	document, err := Inflate(compressed)
	if err != nil {
		return nil, fmt.Errorf("decode initdata: %w", err)
	}
	return document, nil
}

// Inflate unpacks a document from exactly one gzip member.
func Inflate(compressed []byte) ([]byte, error) {
	r := bytes.NewReader(compressed)
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	z.Multistream(false)
	document, err := io.ReadAll(io.LimitReader(z, MaxSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("gzip: %w", err)
	case len(document) > MaxSize:
		return nil, fmt.Errorf("gzip: inflates to more than %d bytes", MaxSize)
	case r.Len() > 0:
		return nil, fmt.Errorf("gzip: %d bytes follow the end", r.Len())
	}
	return document, nil
}

func readDocument(tables map[string]any) (map[string]string, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	if v := tables["version"]; v != any(Version) {
		fault("version is %v, want %q", quoted(v), Version)
	}
	if v := tables["algorithm"]; v != any(Algorithm) {
		fault("algorithm is %v, want %q", quoted(v), Algorithm)
	}
	for _, key := range slices.Sorted(maps.Keys(tables)) {
		if key != "version" && key != "algorithm" && key != "data" {
			fault("unknown name %q", key)
		}
	}
	table, ok := tables["data"].(map[string]any)
	if !ok {
		fault("there is no table [data]")
	}
	data := make(map[string]string, len(table))
	for _, key := range slices.Sorted(maps.Keys(table)) {
		text, ok := table[key].(string)
		if !ok {
			fault("data.%q is not a string", key)
		}
		data[key] = text
	}
	if ok {
		faults = append(faults, checkData(data))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return data, nil
}

func quoted(v any) string {
	if v == nil {
		return "missing"
	}
	return fmt.Sprintf("%#v", v)
}

// checkData lets only keys pass that are plain file names, since the guest makes a file of each.
func checkData(data map[string]string) error {
	var faults []error
	if len(data) == 0 || len(data) > maxKeys {
		faults = append(faults, fmt.Errorf("%d strings in [data], want 1 to %d", len(data), maxKeys))
	}
	for _, key := range slices.Sorted(maps.Keys(data)) {
		if !validKey(key) {
			faults = append(faults, fmt.Errorf("data.%q: the key is not a file name of letters, digits, '.', '_', '-'", key))
		}
		if !utf8.ValidString(data[key]) {
			faults = append(faults, fmt.Errorf("data.%q is not UTF-8", key))
		}
	}
	return errors.Join(faults...)
}

func validKey(key string) bool {
	if key == "" || len(key) > 128 || key[0] == '.' {
		return false
	}
	for _, c := range []byte(key) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// writeText writes text as a multi-line literal, readable as it is; and as a multi-line basic string, which can escape
// anything, where TOML's literals cannot hold it (https://toml.io/en/v1.0.0#string).
func writeText(b *bytes.Buffer, text string) {
	literal := !strings.Contains(text, "''") && !strings.HasSuffix(text, "'") &&
		!strings.ContainsFunc(text, func(r rune) bool { return (r < ' ' && r != '\t' && r != '\n') || r == 0x7f })
	if literal {
		// The newline right after the opening quotes is not part of the string.
		b.WriteString("'''\n" + text + "'''")
		return
	}
	b.WriteString("\"\"\"\n")
	for _, r := range text {
		switch {
		case r == '\n':
			b.WriteByte('\n')
		case r == '"' || r == '\\' || r < ' ' || r == 0x7f:
			writeEscaped(b, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteString("\"\"\"")
}

func writeEscaped(b *bytes.Buffer, r rune) {
	switch r {
	case '"', '\\':
		b.WriteByte('\\')
		b.WriteRune(r)
	default:
		fmt.Fprintf(b, "\\u%04X", r)
	}
}
