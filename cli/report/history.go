package report

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// Step is one manifest of the history.
type Step struct {
	Number         int    `json:"number"`
	Active         bool   `json:"active"`
	TransitionHash string `json:"transitionHash"`
	ManifestHash   string `json:"manifestHash"`
	// Needed of Owners had to sign, and Signers did. By says whose owners those are.
	Needed  int      `json:"needed"`
	Owners  int      `json:"owners"`
	By      string   `json:"by"`
	Signers []string `json:"signers"`
	// OtherOwners says that this manifest's owners are not those of the one in force, and that who verified named them.
	OtherOwners bool `json:"otherOwners,omitempty"`
	// Changes are against the manifest before; for the first, what it holds.
	Changes []Change `json:"changes"`
}

// Change is one difference between two manifests.
type Change struct {
	Level Level  `json:"level,omitempty"`
	Text  string `json:"text"`
}

func history(transitions []*manifest.Transition) []Step {
	steps := make([]Step, len(transitions))
	for i, t := range transitions {
		hash := t.Manifest.Hash()
		s := Step{
			Number: i + 1, Active: i == len(transitions)-1,
			TransitionHash: hex.EncodeToString(t.Hash[:]), ManifestHash: hex.EncodeToString(hash[:]), Signers: []string{},
		}
		charge, before := t.Manifest, (*manifest.Manifest)(nil)
		s.By = "its own owners"
		if i > 0 {
			charge = transitions[i-1].Manifest
			before = charge
			s.By = fmt.Sprintf("the owners of manifest %d", i)
		}
		s.Needed, s.Owners = charge.WorkloadOwnerThreshold, len(charge.WorkloadOwnerKeys)
		for _, key := range t.Signers() {
			s.Signers = append(s.Signers, fingerprint(key))
		}
		s.OtherOwners = t.Manifest.OwnersDigest() != transitions[len(transitions)-1].Manifest.OwnersDigest()
		s.Changes = changes(before, t.Manifest)
		steps[i] = s
	}
	return steps
}

// changes says in words what b has and a has not, and the other way round. A nil a is the manifest before the first.
func changes(a, b *manifest.Manifest) []Change {
	var all []Change
	add := func(level Level, format string, args ...any) {
		all = append(all, Change{level, fmt.Sprintf(format, args...)})
	}
	if a == nil {
		add(Plain, "The first manifest: %s, %s, %s.", count(len(b.Policies), "policy", "policies"),
			count(referenceCount(b.ReferenceValues), "reference value", "reference values"),
			count(len(b.WorkloadOwnerKeys), "workload owner", "workload owners"))
		if b.Simulated() {
			add(Danger, "It trusts a simulated TEE.")
		}
		return all
	}
	policyChanges(a, b, add)
	referenceChanges(a.ReferenceValues, b.ReferenceValues, add)
	ownerChanges(a, b, add)
	if x, y := a.CertificateValidity.Duration(), b.CertificateValidity.Duration(); x != y {
		add(Plain, "Certificates of pods live %s, before %s.", days(y), days(x))
	}
	switch x, y := a.Overlap(), b.Overlap(); {
	case x == y:
	case y == 0:
		add(Plain, "Its pods will accept none of the manifest after it, before for %s.", days(x))
	default:
		add(Caution, "Its pods will accept those of the manifest after it for %s, whatever that is.", days(y))
	}
	switch {
	case b.AllowWildcardSANs && !a.AllowWildcardSANs:
		add(Caution, "Names that stand for many names (*.…) are allowed now.")
	case a.AllowWildcardSANs && !b.AllowWildcardSANs:
		add(Plain, "Names that stand for many names (*.…) are no longer allowed.")
	}
	if len(all) == 0 {
		what := "Nothing but the text's form changed."
		if bytes.Equal(a.Text(), b.Text()) {
			what = "Nothing changed: the same manifest was set again."
		}
		add(Plain, "%s", what)
	}
	return all
}

func policyChanges(a, b *manifest.Manifest, add func(Level, string, ...any)) {
	removed := make(map[string]attestation.PolicyHash) // by what the pod is called
	for _, hash := range sortedPolicies(a) {
		if _, kept := b.Policies[hash]; !kept {
			removed[called(a.Policies[hash])] = hash
		}
	}
	replaced := make(map[attestation.PolicyHash]bool)
	for _, hash := range sortedPolicies(b) {
		p := b.Policies[hash]
		old, kept := a.Policies[hash]
		if !kept {
			if before, ok := removed[called(p)]; ok && !replaced[before] {
				replaced[before] = true
				add(Plain, "The pod %s changed: policy %.12s… took the place of %.12s…", called(p), hash, before)
				continue
			}
			add(Plain, "The pod %s came: policy %.12s…", called(p), hash)
			if p.Role == manifest.RoleCoordinator {
				add(Caution, "It may be the Coordinator: it can hold the seed and issue certificates.")
			}
			continue
		}
		if x, y := sanTexts(old.SANs), sanTexts(p.SANs); !slices.Equal(x, y) {
			add(Plain, "The pod of policy %.12s… is called %s, before %s.", hash, orNone(y), orNone(x))
		}
		if old.Role != p.Role {
			add(Caution, "The pod of policy %.12s… has the role %s, before %s.", hash, cmp.Or(string(p.Role), "of a pod like any other"),
				cmp.Or(string(old.Role), "that of a pod like any other"))
		}
		if old.WorkloadSecretID != p.WorkloadSecretID {
			add(Caution, "The pod of policy %.12s… gets the workload secret %s, before %s.", hash,
				cmp.Or(string(p.WorkloadSecretID), "none"), cmp.Or(string(old.WorkloadSecretID), "none"))
		}
	}
	for _, hash := range sortedPolicies(a) {
		if _, kept := b.Policies[hash]; !kept && !replaced[hash] {
			add(Plain, "The pod %s went: policy %.12s…", called(a.Policies[hash]), hash)
		}
	}
}

func referenceChanges(a, b manifest.ReferenceValues, add func(Level, string, ...any)) {
	before, after := referenceTexts(a), referenceTexts(b)
	for _, v := range after {
		if !slices.ContainsFunc(before, func(o referenceText) bool { return o.text == v.text }) {
			level := Plain
			if v.platform == "Simulated" {
				level = Danger
			}
			add(level, "Another %s machine is accepted: measurement %.12s…", v.platform, v.measurement)
		}
	}
	for _, v := range before {
		if !slices.ContainsFunc(after, func(o referenceText) bool { return o.text == v.text }) {
			add(Plain, "A %s machine is no longer accepted as it was: measurement %.12s…", v.platform, v.measurement)
		}
	}
}

type referenceText struct{ platform, measurement, text string }

func referenceTexts(r manifest.ReferenceValues) []referenceText {
	var all []referenceText
	add := func(platform, measurement string, value any) {
		b, _ := json.Marshal(value) // it was parsed from JSON
		all = append(all, referenceText{platform, measurement, platform + string(b)})
	}
	for _, v := range r.SNP {
		add("SEV-SNP", v.Measurement, v)
	}
	for _, v := range r.TDX {
		add("TDX", v.MRTD, v)
	}
	for _, v := range r.Simulated {
		add("Simulated", v.Measurement, v)
	}
	return all
}

func referenceCount(r manifest.ReferenceValues) int {
	return len(r.SNP) + len(r.TDX) + len(r.Simulated)
}

func ownerChanges(a, b *manifest.Manifest, add func(Level, string, ...any)) {
	keys := func(m *manifest.Manifest) (all []string) {
		for _, k := range m.WorkloadOwnerKeys {
			all = append(all, fingerprint(k.SPKI()))
		}
		return all
	}
	before, after := keys(a), keys(b)
	for _, k := range after {
		if !slices.Contains(before, k) {
			add(Note, "Another workload owner: key %.16s…", k)
		}
	}
	for _, k := range before {
		if !slices.Contains(after, k) {
			add(Note, "No longer a workload owner: key %.16s…", k)
		}
	}
	if a.WorkloadOwnerThreshold != b.WorkloadOwnerThreshold {
		level := Note
		if b.WorkloadOwnerThreshold < a.WorkloadOwnerThreshold && b.WorkloadOwnerThreshold > 0 {
			level = Caution
		}
		add(level, "It takes %d of %d owners to replace the manifest, before %d of %d.",
			b.WorkloadOwnerThreshold, len(after), a.WorkloadOwnerThreshold, len(before))
	}
}

// Policy is what the pod of one policy hash gets.
type Policy struct {
	Hash string   `json:"hash"`
	SANs []string `json:"sans"`
	Role string   `json:"role,omitempty"`
	// SecretID names the workload secret, empty for none. SharedWith are other policies that get the same.
	SecretID   string   `json:"workloadSecretId,omitempty"`
	SharedWith []string `json:"sharedWith,omitempty"`
	// Pod is what the measured initdata calls it, where the YAML that was given has it.
	Pod string `json:"pod,omitempty"`
}

func policies(m *manifest.Manifest, pods []generate.Measured) []Policy {
	var all []Policy
	for _, hash := range sortedPolicies(m) {
		p := m.Policies[hash]
		line := Policy{Hash: hash.String(), SANs: sanTexts(p.SANs), Role: string(p.Role), SecretID: string(p.WorkloadSecretID)}
		for _, other := range sortedPolicies(m) {
			if other != hash && p.WorkloadSecretID != "" && m.Policies[other].WorkloadSecretID == p.WorkloadSecretID {
				line.SharedWith = append(line.SharedWith, other.String())
			}
		}
		for _, pod := range pods {
			if pod.Hash == hash && pod.Config != nil {
				line.Pod = fmt.Sprintf("%s %s/%s", pod.Config.Kind, pod.Config.Namespace, pod.Config.Name)
			}
		}
		all = append(all, line)
	}
	return all
}

func sortedPolicies(m *manifest.Manifest) []attestation.PolicyHash {
	return slices.SortedFunc(maps.Keys(m.Policies), func(a, b attestation.PolicyHash) int { return bytes.Compare(a[:], b[:]) })
}

// called is how people know a pod: by its shortest name.
func called(p manifest.Policy) string {
	if p.Role == manifest.RoleCoordinator {
		return "the Coordinator"
	}
	return shortest(sanTexts(p.SANs))
}

func shortest(names []string) string {
	if len(names) == 0 {
		return "without a name"
	}
	return slices.MinFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b)) })
}

func sanTexts(sans []pki.SAN) []string {
	texts := make([]string, len(sans))
	for i, san := range sans {
		texts[i] = san.String()
	}
	return texts
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// days is a duration as people say it, where it is a number of days or hours.
func days(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= day && d%day == 0:
		return count(int(d/day), "day", "days")
	case d >= time.Hour && d%time.Hour == 0:
		return count(int(d/time.Hour), "hour", "hours")
	default:
		return d.String()
	}
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
