package generate_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// pinnedOptions pin to the owners and reference values of the shop's manifest.
func pinnedOptions(t *testing.T) generate.Options {
	t.Helper()
	m := new(manifest.Manifest)
	if err := generate.MergeReferenceValues(m, read(t, "testdata/reference-values.json")); err != nil {
		t.Fatal(err)
	}
	owner, err := pki.ParsePublicKey(read(t, "testdata/workload-owner.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := generate.AddOwner(m, owner); err != nil {
		t.Fatal(err)
	}
	o := options()
	o.Pin = new(m.Pin(attestation.PolicyHash{}))
	return o
}

// seen is a policy that is the pod itself, so that every argument is measured.
type seen struct{ objects []string }

func (s *seen) Policy(_ context.Context, object []byte) (string, error) {
	s.objects = append(s.objects, string(object))
	return string(object), nil
}

func TestPodsArePinnedToTheCoordinatorAmongThem(t *testing.T) {
	o := pinnedOptions(t)
	agent := new(seen)
	o.Policy = agent
	files := []generate.File{{Name: "shop.yaml", Text: read(t, shop)}}
	pinned, err := generate.Inject(t.Context(), files, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(agent.objects) != len(pinned.Pods) {
		t.Errorf("the policies of %d objects were made, want one for each of %d pods", len(agent.objects), len(pinned.Pods))
	}
	o.Pin, o.Policy = nil, new(seen)
	plain, err := generate.Inject(t.Context(), files, o)
	if err != nil {
		t.Fatal(err)
	}
	var want manifest.Pin
	sidecars := 0
	for i, p := range pinned.Pods {
		switch {
		case p.Policy.Role == manifest.RoleCoordinator:
			want = *pinnedOptions(t).Pin
			want.PolicyHash = p.Hash
			if p.Hash != plain.Pods[i].Hash {
				t.Error("the Coordinator's policy hash depends on the pin")
			}
		case !p.Initializer:
		default:
			sidecars++
			if p.Hash == plain.Pods[i].Hash {
				t.Errorf("the policy hash of %s does not depend on the pin", p.Name)
			}
		}
	}
	text, err := want.Text()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(pinned.Files[0].Text), "- '--coordinator-pin="+text+"'\n"); got != sidecars || got == 0 {
		t.Errorf("the pin stands in %d Initializers of %d:\n%s", got, sidecars, pinned.Files[0].Text)
	}
	if got := strings.Count(strings.Join(agent.objects, ""), "coordinator-pin="); got != sidecars {
		t.Errorf("the pin is in the sight of %d policies, want %d", got, sidecars)
	}
}

func TestPinningAgainGivesTheSameBytes(t *testing.T) {
	o := pinnedOptions(t)
	once, err := generate.Inject(t.Context(), []generate.File{{Name: "shop.yaml", Text: read(t, shop)}}, o)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := generate.Inject(t.Context(), once.Files, o)
	if err != nil {
		t.Fatal(err)
	}
	if twice.Files[0].Changed(once.Files[0]) || len(twice.Warnings) > 0 {
		t.Errorf("the second run changes the file, with warnings %q", twice.Warnings)
	}

	o.Pin = nil
	unpinned, err := generate.Inject(t.Context(), once.Files, o)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := generate.Inject(t.Context(), []generate.File{{Name: "shop.yaml", Text: read(t, shop)}}, o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(plain.Files[0].Text), string(unpinned.Files[0].Text)); diff != "" {
		t.Errorf("without the pin the file is not as if it had never been there:\n%s", diff)
	}
	if warnings := strings.Join(unpinned.Warnings, "\n"); !strings.Contains(warnings, "PC1503: Deployment default/web was pinned to its Coordinator and is no longer") {
		t.Errorf("nobody says that the pin is gone: %q", warnings)
	}
}

func TestFaultsOfPinning(t *testing.T) {
	const pod = `kind: Pod
metadata: {name: %, annotations: {contrast.edgeless.systems/pod-role: coordinator}}
spec: {runtimeClassName: kata-cc, containers: [{name: c}]}
`
	workload := strings.NewReplacer("%", "web", ", annotations: {contrast.edgeless.systems/pod-role: coordinator}", "").Replace(pod)
	for name, tc := range map[string]struct{ text, fault string }{
		"no Coordinator":   {workload, "no pod in these files is one"},
		"two Coordinators": {strings.ReplaceAll(pod, "%", "a") + "---\n" + strings.ReplaceAll(pod, "%", "b"), "PC1502: Pod default/b is a Coordinator, and so is Pod default/a"},
	} {
		_, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(tc.text)}}, pinnedOptions(t))
		if err == nil || !strings.Contains(err.Error(), tc.fault) {
			t.Errorf("%s: got %v, want an error that says %q", name, err, tc.fault)
		}
	}
	o := pinnedOptions(t)
	o.Pin.WorkloadOwners = manifest.OwnersDigest{}
	if _, err := generate.Inject(t.Context(), []generate.File{{Name: "shop.yaml", Text: read(t, shop)}}, o); err == nil ||
		!strings.Contains(err.Error(), "WorkloadOwners: owners' digest is all zero") {
		t.Errorf("a pin without owners: %v", err)
	}
	for _, text := range []string{"", "kind: Pod\n"} {
		if _, err := generate.Inject(t.Context(), []generate.File{{Name: "f.yaml", Text: []byte(text)}}, pinnedOptions(t)); err != nil {
			t.Errorf("%q has nothing to pin: %v", text, err)
		}
	}
}
