package generate_test

import (
	"bytes"
	"strings"
	"testing"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/manifest"
)

func TestManifestKeepsWhatAPersonWrote(t *testing.T) {
	text := read(t, "testdata/shop.manifest.json")
	// Another validity, and a policy of pods that are gone.
	edited := bytes.Replace(text, []byte(`  "WorkloadOwnerThreshold": 1`),
		[]byte(`  "WorkloadOwnerThreshold": 1, "CertificateValidity": "24h"`), 1)
	edited = bytes.Replace(edited, []byte(`"Policies": {`), []byte(`"Policies": {"`+strings.Repeat("ab", 32)+`": {"SANs": ["gone"], "Pod": "Pod default/gone"},`), 1)
	m, err := generate.ReadManifest(edited)
	if err != nil {
		t.Fatal(err)
	}
	updateManifest(t, m, injectShop(t).Pods, false)
	for range 2 { // what is there already is not added again
		if err := generate.MergeReferenceValues(m, read(t, "testdata/reference-values.json")); err != nil {
			t.Fatal(err)
		}
	}
	got, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Replace(text, []byte(`  "WorkloadOwnerThreshold": 1`),
		[]byte("  \"WorkloadOwnerThreshold\": 1,\n  \"CertificateValidity\": \"24h0m0s\""), 1)
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReferenceValuesAreAddedToThoseThatAreThere(t *testing.T) {
	values := read(t, "testdata/reference-values.json")
	other := bytes.Replace(values, []byte(strings.Repeat("ab", 48)), []byte(strings.Repeat("cd", 48)), 1)
	m := new(manifest.Manifest)
	for _, text := range [][]byte{values, other, values} {
		if err := generate.MergeReferenceValues(m, text); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(m.ReferenceValues.Simulated); n != 2 {
		t.Errorf("%d reference values, want 2", n)
	}
}

// Each platform's list grows by itself.
func TestReferenceValuesOfHardwareAreAddedToo(t *testing.T) {
	m := new(manifest.Manifest)
	for _, text := range []string{`{"SNP": [{"Product": "Milan"}]}`, `{"TDX": [{"MRTD": "00"}], "SNP": [{"Product": "Genoa"}]}`, `{"SNP": [{"Product": "Milan"}]}`} {
		if err := generate.MergeReferenceValues(m, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if v := m.ReferenceValues; len(v.SNP) != 2 || v.SNP[1].Product != "Genoa" || len(v.TDX) != 1 || len(v.Simulated) != 0 {
		t.Errorf("got %+v", v)
	}
}

func TestReadManifestIsStrictButTakesSkeletons(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"empty object", "{}", ""},
		{"half", `{"CertificateValidity": "48h"}`, ""},
		{"unknown name", `{"Policy": {}}`, "Policy"},
		{"another case", `{"policies": {}}`, "policies"},
		{"duplicate", `{"Policies": {}, "Policies": {}}`, "Policies"},
		{"bad value", `{"CertificateValidity": "1s"}`, "CertificateValidity"},
		{"no JSON", "a", "manifest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := generate.ReadManifest([]byte(c.text))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if coded, ok := err.(interface{ ExitCode() int }); err != nil && (!ok || coded.ExitCode() != 2) {
				t.Errorf("%v is not malformed input", err)
			}
		})
	}
}

func TestReferenceValuesAreReadStrictly(t *testing.T) {
	for _, text := range []string{"", "[]", `{"simulated": []}`, `{"Simulated": [{"Root": ""}]}`, `{"snp": []}`} {
		if err := generate.MergeReferenceValues(new(manifest.Manifest), []byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestUpdateManifestReplacesPolicies(t *testing.T) {
	m := &manifest.Manifest{Policies: map[attestation.PolicyHash]manifest.Policy{{1}: {Pod: "Pod shop/gone"}}}
	notes := updateManifest(t, m, nil, false)
	if len(m.Policies) != 0 || len(notes) != 1 || !strings.HasPrefix(notes[0], "PC1506: the policy 010000000000 of Pod shop/gone was removed") {
		t.Errorf("%v is left, %q", m.Policies, notes)
	}
}

// updateManifest must find nothing in the way.
func updateManifest(t testing.TB, m *manifest.Manifest, pods []generate.Pod, partial bool) []string {
	t.Helper()
	notes, err := generate.UpdateManifest(m, pods, partial)
	if err != nil {
		t.Fatal(err)
	}
	return notes
}
