package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest/strictjson"
)

// maxPin is the most bytes that a pin may have. The longest argument that Linux passes is twice that (execve(2)).
const maxPin = 64 << 10

// Pin is the one authority whose mesh a pod joins. A genuine Coordinator is not enough: a host may run one, with a manifest
// of its own. So a pin also says whose manifests it must enforce. It cannot name the manifest, which names the pod's policy
// hash, and that depends on the pin. The zero value trusts nobody.
type Pin struct {
	// PolicyHash is the Coordinator's.
	PolicyHash attestation.PolicyHash
	// ReferenceValues are what its evidence is compared with.
	ReferenceValues ReferenceValues
	// WorkloadOwners are the owners of every manifest of its history.
	WorkloadOwners OwnersDigest
}

// OwnersDigest stands for a manifest's WorkloadOwnerKeys and their threshold. The zero value is nobody's.
type OwnersDigest [sha256.Size]byte

// String returns 64 lower-case hexadecimal digits.
func (d OwnersDigest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText encodes d as String does.
func (d OwnersDigest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText decodes what MarshalText wrote. The all-zero digest is refused.
func (d *OwnersDigest) UnmarshalText(text []byte) error {
	var got OwnersDigest
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(got) || hex.EncodeToString(b) != string(text) {
		return fmt.Errorf("owners' digest %q is not 64 lower-case hexadecimal digits", text)
	}
	if got = OwnersDigest(b); got == (OwnersDigest{}) {
		return errors.New("owners' digest is all zero")
	}
	*d = got
	return nil
}

// OwnersDigest is SHA-256 of the text "portcullis owners v1:", the threshold, and for each key, sorted, a colon and SHA-256
// of its SPKI in hexadecimal digits. It is zero for a manifest without owners.
func (m *Manifest) OwnersDigest() OwnersDigest {
	if len(m.WorkloadOwnerKeys) == 0 {
		return OwnersDigest{}
	}
	keys := make([]string, len(m.WorkloadOwnerKeys))
	for i, k := range m.WorkloadOwnerKeys {
		digest := sha256.Sum256(k.SPKI())
		keys[i] = hex.EncodeToString(digest[:])
	}
	slices.Sort(keys)
	text := fmt.Appendf(nil, "portcullis owners v1:%d", m.WorkloadOwnerThreshold)
	for _, k := range keys {
		text = fmt.Appendf(text, ":%s", k)
	}
	return sha256.Sum256(text)
}

// Pin is the pin to a Coordinator of m's owners that has the given policy hash and is judged by m's reference values.
func (m *Manifest) Pin(coordinator attestation.PolicyHash) Pin {
	return Pin{PolicyHash: coordinator, ReferenceValues: m.ReferenceValues, WorkloadOwners: m.OwnersDigest()}
}

// ParsePin reads a pin. Every field must be there, and no other; the error lists every fault.
func ParsePin(text string) (*Pin, error) {
	if len(text) > maxPin {
		return nil, fmt.Errorf("read the Coordinator's pin: %d bytes, at most %d are allowed", len(text), maxPin)
	}
	p := new(Pin)
	var faults strictjson.Faults
	if err := strictjson.Unmarshal([]byte(text), p); err != nil {
		var ok bool
		if faults, ok = errors.AsType[strictjson.Faults](err); !ok {
			return nil, err
		}
	}
	if !faults.At("") { // a text that is not JSON, or no object, says nothing about fields
		p.check(&faults)
	}
	if err := faults.Err(); err != nil {
		return nil, fmt.Errorf("read the Coordinator's pin: %w", err)
	}
	return p, nil
}

// Text is the JSON that ParsePin reads, in one line, or says what is wrong with p.
func (p *Pin) Text() (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(p); err != nil {
		return "", fmt.Errorf("encode the Coordinator's pin: %w", err)
	}
	text := string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
	if _, err := ParsePin(text); err != nil {
		return "", err
	}
	return text, nil
}

func (p *Pin) check(faults *strictjson.Faults) {
	if !p.PolicyHash.Valid() && !faults.At("PolicyHash") {
		faults.Add("PolicyHash", "it is missing, want that of the Coordinator")
	}
	if p.WorkloadOwners == (OwnersDigest{}) && !faults.At("WorkloadOwners") {
		faults.Add("WorkloadOwners", "they are missing, want the digest of the manifest's WorkloadOwnerKeys")
	}
	p.manifest().checkReferenceValues(faults)
}

// manifest is what p says of evidence.
func (p *Pin) manifest() *Manifest { return &Manifest{ReferenceValues: p.ReferenceValues} }

// Validator judges the Coordinator's evidence by p's reference values, as Manifest.Validator does. The policy hash is the
// caller's to compare.
func (p *Pin) Validator(o ValidatorOptions) (attestation.Validator, error) {
	var faults strictjson.Faults
	if p.check(&faults); len(faults) > 0 {
		return nil, fmt.Errorf("use the Coordinator's pin: %w", faults)
	}
	return p.manifest().Validator(o)
}

// CheckOwners says whether every manifest of a history is of the pinned owners. Since the first manifest is signed by its own
// owners and each later one by those of the one before, they signed all of it. The last one alone would not do: a host that
// began the history had signed it over to them, with policies and a seed of its own choosing.
func (p *Pin) CheckOwners(history []*Transition) error {
	if len(history) == 0 {
		return errors.New("there is no manifest")
	}
	for i, t := range history {
		if got := t.Manifest.OwnersDigest(); got != p.WorkloadOwners || got == (OwnersDigest{}) {
			return fmt.Errorf("the digest of WorkloadOwnerKeys in manifest %d of %d is %s, want %s, that of the pinned owners",
				i+1, len(history), got, p.WorkloadOwners)
		}
	}
	return nil
}
