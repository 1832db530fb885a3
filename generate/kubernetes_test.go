package generate_test

import (
	"strings"
	"testing"

	"portcullis.dev/portcullis/generate"
)

// Whatever an API server takes, it takes with the injection too.
func TestKubernetesTakesWhatItTook(t *testing.T) {
	v := newValidator(t)
	if v == nil {
		t.Skip("SKIPPED: PORTCULLIS_VALIDATE names no program")
	}
	all := map[string]string{"shop": string(read(t, shop))}
	for name, text := range styles {
		all[name] = text
	}
	for name, c := range probed {
		all[name] = strings.NewReplacer("‹", "", "›", "").Replace(c.text)
	}
	taken := 0
	for name, text := range all {
		// What the tests of styles leave out, so that they can be short.
		text = strings.NewReplacer("  - name: a\n    image: a\n", "  - name: a\n    image: a\n", "  - name: a\n", "  - name: a\n    image: a\n").Replace(text)
		if !v.accepts(t, text) {
			continue
		}
		taken++
		result, err := generate.Inject(t.Context(), []generate.File{{Name: name, Text: []byte(text)}}, options())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		v.wantAccepted(t, string(result.Files[0].Text))
	}
	if taken == 0 {
		t.Error("it takes none of them")
	}
}

// The validation sees what it is there for.
func TestKubernetesRefuses(t *testing.T) {
	v := newValidator(t)
	if v == nil {
		t.Skip("SKIPPED: PORTCULLIS_VALIDATE names no program")
	}
	injected := string(injectShop(t).Files[0].Text)
	if faults := v.faults(t, injected); len(faults) > 0 {
		t.Fatalf("the shop: %q", faults)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown field", "restartPolicy: Always", "restartsPolicy: Always", `unknown field "spec.template.spec.initContainers[0].restartsPolicy"`},
		{"missing volume", "- name: contrast-secrets\n          emptyDir", "- name: other\n          emptyDir", `Not found: "contrast-secrets"`},
		{"one name twice", "name: contrast-service-mesh", "name: contrast-initializer", "Duplicate value"},
		{"probe of no sidecar", "restartPolicy: Always", "imagePullPolicy: Always", "may not be set for init containers without restartPolicy=Always"},
		{"number too large", "failureThreshold: 2147483647", "failureThreshold: 2147483648", "2147483648"},
		{"mount twice", "mountPath: /run/portcullis", "mountPath: /contrast", "must be unique"},
	} {
		text := strings.Replace(injected, c.old, c.new, 1)
		if text == injected {
			t.Errorf("%s: %q is not in the shop", c.name, c.old)
			continue
		}
		if faults := strings.Join(v.faults(t, text), "\n"); !strings.Contains(faults, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, faults, c.want)
		}
	}
}
