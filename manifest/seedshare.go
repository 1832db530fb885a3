package manifest

import (
	"crypto/hpke"
	"errors"
	"slices"

	"portcullis.dev/portcullis/manifest/strictjson"
	"portcullis.dev/portcullis/pki"
)

// MaxSeedshareOwners is the most shares that a seed is split into.
const MaxSeedshareOwners = 32

// SeedshareOwner is who keeps a share of the seed.
type SeedshareOwner struct {
	// HPKEKey is what the share is sealed to.
	HPKEKey HPKEKey
	// SigningKey signs for the share when it is given back.
	SigningKey OwnerKey
}

// NewSeedshareOwner takes key as an owner's.
func NewSeedshareOwner(key *pki.SeedsharePublicKey) (SeedshareOwner, error) {
	signing, err := NewOwnerKey(key.Signing)
	if err != nil {
		return SeedshareOwner{}, err
	}
	return SeedshareOwner{HPKEKey: HPKEKey{key: key.HPKE, raw: string(key.HPKE.Bytes())}, SigningKey: signing}, nil
}

// HPKEKey is a public key of MLKEM768X25519, as PEM in the manifest.
type HPKEKey struct {
	key hpke.PublicKey
	raw string
}

// Raw is the form in which keys travel and are compared.
func (k HPKEKey) Raw() []byte { return []byte(k.raw) }

// MarshalText is PEM.
func (k HPKEKey) MarshalText() ([]byte, error) {
	if k.key == nil {
		return nil, errors.New("encode an HPKE key: there is none")
	}
	return pki.EncodeHPKEPublicKey(k.key), nil
}

// UnmarshalText reads PEM.
func (k *HPKEKey) UnmarshalText(b []byte) error {
	key, err := pki.ParseHPKEPublicKey(b)
	if err != nil {
		return err
	}
	*k = HPKEKey{key: key, raw: string(key.Bytes())}
	return nil
}

// SeedshareOwner returns the place among SeedshareOwnerKeys of the owner who has that signing key, or -1.
func (m *Manifest) SeedshareOwner(spki []byte) int {
	return slices.IndexFunc(m.SeedshareOwnerKeys, func(o SeedshareOwner) bool {
		return len(spki) > 0 && o.SigningKey.spki == string(spki)
	})
}

func (m *Manifest) checkSeedshareOwners(faults *strictjson.Faults) {
	const path = "SeedshareOwnerKeys"
	first := make(map[string]string)
	distinct := func(at, key string) {
		if faults.At(at) {
			return
		}
		if key == "" {
			faults.Add(at, "is missing")
		} else if other, taken := first[key]; taken {
			faults.Add(at, "the same key as %s", other)
		} else {
			first[key] = at
		}
	}
	for i, owner := range m.SeedshareOwnerKeys {
		at := strictjson.Index(path, i)
		if faults.At(at) {
			continue
		}
		distinct(at+".HPKEKey", owner.HPKEKey.raw)
		distinct(at+".SigningKey", owner.SigningKey.spki)
	}
	if n := len(m.SeedshareOwnerKeys); n > MaxSeedshareOwners {
		faults.Add(path, "there are %d, at most %d are allowed", n, MaxSeedshareOwners)
	}
	checkThreshold(faults, path, len(m.SeedshareOwnerKeys), "SeedshareThreshold", m.SeedshareThreshold)
}

// changedSeedshares says where m's seed-share owners are not those of the manifest before.
func (m *Manifest) changedSeedshares(before *Manifest) (faults strictjson.Faults) {
	if !slices.EqualFunc(m.SeedshareOwnerKeys, before.SeedshareOwnerKeys, func(a, b SeedshareOwner) bool {
		return a.HPKEKey.raw == b.HPKEKey.raw && a.SigningKey.spki == b.SigningKey.spki
	}) {
		faults.Add("SeedshareOwnerKeys", "they are not those of the manifest before, in the same order; "+
			"the seed was split among them at the first manifest, and never is again")
	}
	if m.SeedshareThreshold != before.SeedshareThreshold {
		faults.Add("SeedshareThreshold", "%d, want %d, that of the manifest before; the seed was split by it, and never is again",
			m.SeedshareThreshold, before.SeedshareThreshold)
	}
	return faults
}
