package generate

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"

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

// UpdateManifest replaces m's policies with those of pods. All else is a person's and stays.
func UpdateManifest(m *manifest.Manifest, pods []Pod) {
	m.Policies = make(map[attestation.PolicyHash]manifest.Policy, len(pods))
	for _, p := range pods {
		m.Policies[p.Hash] = p.Policy
	}
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
