package generate

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/manifest/strictjson"
	"portcullis.dev/portcullis/pki"
)

// ReadManifest reads the manifest that is to be updated. It may lack what UpdateManifest adds, but nothing in it may be
// unknown or malformed. Empty text is an empty manifest.
func ReadManifest(text []byte) (*manifest.Manifest, error) {
	m := new(manifest.Manifest)
	if len(bytes.TrimSpace(text)) == 0 {
		return m, nil
	}
	if err := strictjson.Unmarshal(text, m); err != nil {
		if faults, ok := errors.AsType[strictjson.Faults](err); ok {
			return nil, &manifest.Error{Faults: faults}
		}
		return nil, err
	}
	return m, nil
}

// UpdateManifest puts the policies of pods in the place of those that an earlier run wrote, which it knows by their pod's name or by
// the hash that the pod had. A policy that names no pod is a person's and stays, and so does all else. Of a pod that is in
// none of the files the policy goes, unless the files are partial: what is left in is still let into the mesh. The notes say what
// went.
func UpdateManifest(m *manifest.Manifest, pods []Pod, partial bool) (notes []string, err error) {
	ours := make(map[manifest.PodName]*Pod, len(pods))
	before := make(map[attestation.PolicyHash]*Pod, len(pods))
	owner := make(map[pki.SAN]*Pod)
	for i := range pods {
		p := &pods[i]
		if p.Policy.Pod != "" {
			ours[p.Policy.Pod] = p
		}
		before[p.Hash] = p
		if p.Before.Valid() {
			before[p.Before] = p
		}
		for _, san := range p.Policy.SANs {
			owner[san] = p
		}
	}
	note := func(code Code, format string, args ...any) {
		notes = append(notes, string(code)+": "+fmt.Sprintf(format, args...))
	}
	made := make(map[attestation.PolicyHash]manifest.Policy, len(pods))
	for _, p := range pods {
		made[p.Hash] = p.Policy
	}
	var faults Faults
	for _, hash := range slices.SortedFunc(maps.Keys(m.Policies), func(a, b attestation.PolicyHash) int { return bytes.Compare(a[:], b[:]) }) {
		old := m.Policies[hash]
		now := before[hash]
		if now == nil && old.Pod != "" {
			now = ours[old.Pod]
		}
		switch {
		case now != nil:
			policy := made[now.Hash]
			for _, san := range old.SANs {
				switch {
				case slices.Contains(policy.SANs, san):
				case owner[san] != nil:
					note(codeGone, "%s is an identity of %s now, and no longer of %s", san, owner[san].object(), now.object())
				case now.clusterName(san):
					note(codeGone, "%s is no longer an identity of %s: no Service gives it that name, and annotation %s would", san, now.object(),
						annotationIdentities)
				default:
					policy.SANs = append(slices.Clone(policy.SANs), san)
					owner[san] = now
				}
			}
			made[now.Hash] = policy
		case old.Pod != "" && !partial:
			note(codeGone, "the policy %.12s of %s was removed from the manifest: that pod is in none of these files", hash, old.Pod)
		default:
			for _, san := range old.SANs {
				if p := owner[san]; p != nil {
					whose := "a policy that generate did not write"
					if old.Pod != "" {
						whose = "the policy of " + string(old.Pod)
					}
					faults = append(faults, &Fault{p.File, codeConflict, p.Line, 1, fmt.Sprintf("%s is an identity of %s, and the manifest has it in "+
						"Policies[%q] too, %s: take the name or the policy out of the manifest", san, p.object(), hash, whose)})
				}
			}
			made[hash] = old
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	m.Policies = made
	return notes, nil
}

// KnownIdentities are those of policies that UpdateManifest keeps beside those of the files' pods.
func KnownIdentities(m *manifest.Manifest, partial bool) []pki.SAN {
	var known []pki.SAN
	for _, p := range m.Policies {
		if p.Pod == "" || partial {
			known = append(known, p.SANs...)
		}
	}
	return known
}

func (p Pod) object() string { return p.Kind + " " + p.Namespace + "/" + p.Name }

// clusterName says whether a name has one of the forms that generate gives to the pod itself. Any other was added by a person.
func (p Pod) clusterName(san pki.SAN) bool {
	name := san.String()
	if ip := net.ParseIP(name); ip != nil || strings.ContainsAny(name, ":/*") {
		return false
	}
	return !strings.Contains(name, ".") || strings.HasSuffix(name, "."+p.Namespace) || strings.HasSuffix(name, "."+p.Namespace+".svc") ||
		strings.HasSuffix(name, ".svc.cluster.local")
}

// MergeReferenceValues adds the reference values in text, the JSON of a manifest's field of that name, that m lacks.
func MergeReferenceValues(m *manifest.Manifest, text []byte) error {
	var add manifest.ReferenceValues
	if err := strictjson.Unmarshal(text, &add); err != nil {
		if faults, ok := errors.AsType[strictjson.Faults](err); ok {
			return &manifest.Error{Faults: faults}
		}
		return err
	}
	have := &m.ReferenceValues
	have.SNP = merge(have.SNP, add.SNP)
	have.TDX = merge(have.TDX, add.TDX)
	have.Simulated = merge(have.Simulated, add.Simulated)
	return nil
}

// merge adds what is not in list yet.
func merge[R any](list, add []R) []R {
	known := make(map[string]bool)
	for _, v := range list {
		known[asJSON(v)] = true
	}
	for _, v := range add {
		if key := asJSON(v); !known[key] {
			known[key] = true
			list = append(list, v)
		}
	}
	return list
}

// asJSON is a value as two equal ones are written.
func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprintf("%#v", v)
	}
	return string(b)
}

// AddOwner lists key among m's workload owners. The first one makes the threshold 1.
func AddOwner(m *manifest.Manifest, key *ecdsa.PublicKey) error {
	owner, err := manifest.NewOwnerKey(key)
	if err != nil {
		return fmt.Errorf("workload owner key: %w", err)
	}
	for _, k := range m.WorkloadOwnerKeys {
		if bytes.Equal(k.SPKI(), owner.SPKI()) {
			return nil
		}
	}
	m.WorkloadOwnerKeys = append(m.WorkloadOwnerKeys, owner)
	if m.WorkloadOwnerThreshold == 0 {
		m.WorkloadOwnerThreshold = 1
	}
	return nil
}

// AddSeedshareOwner lists key among m's seed-share owners. The threshold is the caller's to set.
func AddSeedshareOwner(m *manifest.Manifest, key *pki.SeedsharePublicKey) error {
	owner, err := manifest.NewSeedshareOwner(key)
	if err != nil {
		return fmt.Errorf("seed-share owner key: %w", err)
	}
	if m.SeedshareOwner(owner.SigningKey.SPKI()) < 0 {
		m.SeedshareOwnerKeys = append(m.SeedshareOwnerKeys, owner)
	}
	return nil
}
