package generate_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/tests/cluster"
)

const clusterNeeds = `apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: kata-qemu-snp}
handler: kata-qemu-snp
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: kata-qemu-tdx}
handler: kata-qemu-tdx
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: contrast-cc-abc}
handler: contrast-cc-abc
---
apiVersion: v1
kind: Namespace
metadata: {name: data}
---
apiVersion: v1
kind: Namespace
metadata: {name: logging}
---
apiVersion: v1
kind: Namespace
metadata: {name: monitoring}
---
apiVersion: v1
kind: Namespace
metadata: {name: widget-system}
`

// A real API server takes with the injection, and without a warning more, whatever it took before: the shop, files as people and
// tools write them, and random ones.
func TestAPIServerTakesWhatItTook(t *testing.T) {
	c := cluster.Shared(t)
	c.MustKubectl(t, clusterNeeds, "apply", "-f", "-")
	all := map[string]string{"shop": string(read(t, shop))}
	for _, folder := range []string{"testdata/corpus", "../../shared/yaml"} {
		for _, path := range yamlFiles(t, folder) {
			all[filepath.Base(path)] = string(annotate(t, read(t, path)))
		}
	}
	random := rapid.Custom(func(t *rapid.T) string {
		d := &dice{t: t}
		return render(d, anyFile(d))
	})
	for seed := range 30 {
		all["random "+string(rune('A'+seed))] = random.Example(seed)
	}
	apply := func(text string) (warnings int, err error) {
		_, stderr, err := c.Kubectl(t.Context(), text, "apply", "--server-side", "--dry-run=server", "-f", "-")
		return strings.Count(stderr, "Warning: "), err
	}
	taken := 0
	for name, text := range all {
		result, err := generate.Inject(t.Context(), []generate.File{{Name: name, Text: []byte(text)}}, options())
		if faults := generate.Faults(nil); errors.As(err, &faults) {
			continue // refused with its place, which other tests look at
		} else if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if string(result.Files[0].Text) == text {
			continue
		}
		before, err := apply(text)
		if err != nil {
			t.Logf("%s is refused as it is: %v", name, err)
			continue
		}
		taken++
		if after, err := apply(string(result.Files[0].Text)); err != nil || after > before {
			t.Errorf("%s: with the injection %d warnings instead of %d, and %v in\n%s", name, after, before, err, result.Files[0].Text)
		}
	}
	t.Logf("%d of %d files are taken before and after", taken, len(all))
	if taken < 40 {
		t.Errorf("only %d of %d files are taken before", taken, len(all))
	}
}
