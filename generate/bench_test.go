package generate_test

import (
	"bytes"
	"fmt"
	"testing"

	"portcullis.dev/portcullis/generate"
)

// BenchmarkInject injects into a file of many documents, a quarter of which are confidential pods.
func BenchmarkInject(b *testing.B) {
	pod := annotate(b, read(b, "testdata/bench.yaml"))
	var text bytes.Buffer
	for i := range 400 {
		document := read(b, "testdata/bench.yaml")
		if i%4 == 0 {
			document = pod
		}
		fmt.Fprintf(&text, "---\n%s", bytes.ReplaceAll(document, []byte("NAME"), fmt.Append(nil, "app-", i)))
	}
	b.SetBytes(int64(text.Len()))
	for b.Loop() {
		if _, err := generate.Inject(b.Context(), []generate.File{{Name: "f.yaml", Text: text.Bytes()}}, options()); err != nil {
			b.Fatal(err)
		}
	}
}
