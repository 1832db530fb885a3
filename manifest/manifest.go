// Package manifest is what a workload owner promises and a data owner relies on: which pods may join the mesh, under
// which names, on which machines, and who may change that.
//
// A manifest is JSON that people review. The Coordinator acts on it, and every pod certificate, every workload secret
// and every change of the manifest follows from it. So the text must have one reading (strictjson), and whatever the
// text leaves unsaid is refused rather than assumed: no policy, no reference value and no owner key stands for "any".
//
// The Coordinator keeps every manifest it ever accepted in a chain of transitions (transition.go), so that a data owner
// who comes late can check that each change was signed by the owners of the manifest before it.
//
// docs/manifest.md lists every field.
package manifest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/manifest/strictjson"
	"portcullis.dev/portcullis/pki"
)

// MaxSize is the most bytes that a manifest may have.
const MaxSize = 1 << 20

// Manifest is a parsed manifest. The zero value admits nobody, and nobody may replace it.
type Manifest struct {
	// Policies are the pods that may join, by policy hash.
	Policies map[attestation.PolicyHash]Policy
	// ReferenceValues are what evidence is compared with.
	ReferenceValues ReferenceValues
	// WorkloadOwnerKeys may sign the next manifest. Without any, this manifest is the last one.
	WorkloadOwnerKeys []OwnerKey `json:",omitempty"`
	// WorkloadOwnerThreshold is how many different WorkloadOwnerKeys must sign the next manifest.
	WorkloadOwnerThreshold int `json:",omitempty"`
	// SeedshareOwnerKeys receive the shares of the seed, and can give a restarted Coordinator its seed back. Without any, a
	// restart ends the mesh. No later manifest may change them.
	SeedshareOwnerKeys []SeedshareOwner `json:",omitempty"`
	// SeedshareThreshold is how many different SeedshareOwnerKeys it takes. No later manifest may change it.
	SeedshareThreshold int `json:",omitempty"`
	// CertificateValidity is how long mesh certificates live.
	CertificateValidity Validity `json:",omitzero"`
	// Successors lets pods of this manifest and of the next accept each other for a while. Nil is not at all.
	Successors *Successors `json:",omitempty"`
	// AllowWildcardSANs acknowledges that some SAN stands for more than one name.
	AllowWildcardSANs bool `json:",omitempty"`

	text []byte
}

// Policy is what the pod of one policy hash gets.
type Policy struct {
	// SANs are the pod's identities in its mesh certificate. Each belongs to one policy alone.
	SANs []pki.SAN `json:",omitempty"`
	// WorkloadSecretID names the secret that the pod receives; empty for none. Policies that name the same ID share it.
	WorkloadSecretID SecretID `json:",omitempty"`
	// Role is what the pod is beside a member of the mesh.
	Role Role `json:",omitempty"`
	// Pod says whose policy this is, as in "Deployment shop/web". It is for those who read the manifest, and tells generate which
	// policies are its own; nobody is let in or kept out by it.
	Pod PodName `json:",omitempty"`
}

// PodName is the kind, namespace and name of a Kubernetes object: up to 600 letters, digits and any of . / - and a space.
type PodName string

// UnmarshalText checks the characters.
func (n *PodName) UnmarshalText(b []byte) error {
	if len(b) == 0 || len(b) > 600 {
		return fmt.Errorf("%d characters, want 1 to 600; leave the field out for no name", len(b))
	}
	for _, c := range string(b) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("./- ", c) {
			return fmt.Errorf("character %q, want letters, digits and any of . / - and space, as in Deployment shop/web", c)
		}
	}
	*n = PodName(b)
	return nil
}

// Role is what a pod may be trusted with.
type Role string

// The roles. A coordinator may hold the seed. It is a pod like any other besides: it gets a mesh certificate when it
// asks for one.
const (
	RoleNone        Role = ""
	RoleCoordinator Role = "coordinator"
)

// UnmarshalText accepts the roles above.
func (r *Role) UnmarshalText(b []byte) error {
	switch role := Role(b); role {
	case RoleNone, RoleCoordinator:
		*r = role
		return nil
	default:
		return fmt.Errorf("role %q, want %q or no role", b, RoleCoordinator)
	}
}

// SecretID names a workload secret: up to 253 letters, digits and any of . _ / : - as in apps/v1/StatefulSet/db.
type SecretID string

// UnmarshalText checks the characters.
func (id *SecretID) UnmarshalText(b []byte) error {
	if len(b) == 0 || len(b) > 253 {
		return fmt.Errorf("%d characters, want 1 to 253; leave the field out for no secret", len(b))
	}
	for _, c := range string(b) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._/:-", c) {
			return fmt.Errorf("character %q, want letters, digits and any of . _ / : -", c)
		}
	}
	*id = SecretID(b)
	return nil
}

// ReferenceValues are lists of what evidence may look like, by platform. Evidence of a platform without any is refused.
// Simulated never stands beside the others.
type ReferenceValues struct {
	SNP       []snp.ReferenceValue       `json:",omitempty"`
	TDX       []tdx.ReferenceValue       `json:",omitempty"`
	Simulated []simulated.ReferenceValue `json:",omitempty"`
}

// Empty says whether there are none.
func (r ReferenceValues) Empty() bool {
	return len(r.SNP) == 0 && len(r.TDX) == 0 && len(r.Simulated) == 0
}

// OwnerKey is an ECDSA public key on P-256 or P-384, as PEM in the manifest.
type OwnerKey struct {
	key  *ecdsa.PublicKey
	spki string
}

// NewOwnerKey takes key as an owner's.
func NewOwnerKey(key *ecdsa.PublicKey) (OwnerKey, error) {
	spki, err := pki.SPKI(key)
	if err != nil {
		return OwnerKey{}, err
	}
	key, err = pki.ParseSPKI(spki)
	return OwnerKey{key: key, spki: string(spki)}, err
}

// SPKI is the form in which keys are compared.
func (k OwnerKey) SPKI() []byte { return []byte(k.spki) }

// MarshalText is PEM.
func (k OwnerKey) MarshalText() ([]byte, error) {
	if k.key == nil {
		return nil, errors.New("encode an owner key: there is none")
	}
	return pki.EncodePublicKey(k.key)
}

// UnmarshalText reads PEM.
func (k *OwnerKey) UnmarshalText(b []byte) error {
	key, err := pki.ParsePublicKey(b)
	if err != nil {
		return err
	}
	*k, err = NewOwnerKey(key)
	return err
}

// Validity is how long mesh certificates live, a Go duration such as 720h in the manifest. The zero value is
// DefaultValidity.
type Validity struct{ d time.Duration }

// The bounds of a Validity. A certificate that outlives its pod is a key that nobody watches; one that ends before
// anybody could renew it is an outage.
const (
	DefaultValidity = 30 * 24 * time.Hour
	MinValidity     = time.Minute
	MaxValidity     = 90 * 24 * time.Hour
)

// NewValidity checks the bounds.
func NewValidity(d time.Duration) (Validity, error) {
	if d < MinValidity || d > MaxValidity {
		return Validity{}, fmt.Errorf("validity %v, want %v to %v", d, MinValidity, MaxValidity)
	}
	return Validity{d}, nil
}

// Duration is never zero.
func (v Validity) Duration() time.Duration {
	if v.d == 0 {
		return DefaultValidity
	}
	return v.d
}

// MarshalText writes a Go duration.
func (v Validity) MarshalText() ([]byte, error) { return []byte(v.Duration().String()), nil }

// UnmarshalText reads a Go duration.
func (v *Validity) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 720h", b)
	}
	*v, err = NewValidity(d)
	return err
}

// Error is every fault of a malformed manifest.
type Error struct{ Faults strictjson.Faults }

func (e *Error) Error() string {
	if len(e.Faults) == 1 {
		return "manifest: " + e.Faults.Error()
	}
	return fmt.Sprintf("manifest has %d faults: %v", len(e.Faults), e.Faults)
}

// ExitCode is that of malformed input.
func (*Error) ExitCode() int { return 2 }

// Hint says where the fields are described.
func (*Error) Hint() string { return "docs/manifest.md lists every field" }

// Parse reads a manifest. A malformed one is an *Error that lists every fault.
func Parse(text []byte) (*Manifest, error) {
	if len(text) > MaxSize {
		return nil, &Error{strictjson.Faults{{
			Message: fmt.Sprintf("the text is %d bytes long, at most %d are allowed", len(text), MaxSize),
		}}}
	}
	m := &Manifest{text: slices.Clone(text)}
	var faults strictjson.Faults
	if err := strictjson.Unmarshal(text, m); err != nil {
		var ok bool
		if faults, ok = errors.AsType[strictjson.Faults](err); !ok {
			return nil, err
		}
	}
	if !faults.At("") { // a text that is not JSON, or no object, says nothing about fields
		m.check(&faults)
	}
	if len(faults) > 0 {
		return nil, &Error{faults}
	}
	return m, nil
}

// Encode writes m as text that Parse reads, or says what is wrong with m.
func (m *Manifest) Encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(m); err != nil {
		return nil, fmt.Errorf("encode the manifest: %w", err)
	}
	if _, err := Parse(b.Bytes()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Text returns the bytes that were parsed: what is hashed, signed and kept.
func (m *Manifest) Text() []byte { return slices.Clone(m.text) }

// Hash is SHA-256 of Text.
func (m *Manifest) Hash() [32]byte { return sha256.Sum256(m.text) }

// CoordinatorPolicies lists the policies that a Coordinator may have, sorted.
func (m *Manifest) CoordinatorPolicies() []attestation.PolicyHash {
	var hashes []attestation.PolicyHash
	for _, hash := range m.sortedPolicies() {
		if m.Policies[hash].Role == RoleCoordinator {
			hashes = append(hashes, hash)
		}
	}
	return hashes
}

// check adds what is wrong between fields. Fields that could not be read are already among the faults.
func (m *Manifest) check(faults *strictjson.Faults) {
	m.checkPolicies(faults)
	m.checkReferenceValues(faults)
	m.checkOwners(faults)
	m.checkSeedshareOwners(faults)
	m.checkSuccessors(faults)
}

func (m *Manifest) checkPolicies(faults *strictjson.Faults) {
	const path = "Policies"
	if len(m.CoordinatorPolicies()) == 0 && !faults.At(path) {
		faults.Add(path, "no policy has the role %q, so no Coordinator could ever be verified", RoleCoordinator)
	}
	owner := make(map[pki.SAN]string)
	for _, hash := range m.sortedPolicies() {
		for i, san := range m.Policies[hash].SANs {
			if san == (pki.SAN{}) {
				continue
			}
			at := strictjson.Index(strictjson.Quoted(path, hash.String())+".SANs", i)
			if first, taken := owner[san]; taken {
				faults.Add(at, "%q is listed at %s already; an identity belongs to one policy, once", san, first)
				continue
			}
			owner[san] = at
			if san.Wildcard() && !m.AllowWildcardSANs {
				faults.Add(at, "%q satisfies peers that ask for other names; AllowWildcardSANs: true acknowledges that", san)
			}
		}
	}
}

func (m *Manifest) checkReferenceValues(faults *strictjson.Faults) {
	const path = "ReferenceValues"
	if m.ReferenceValues.Empty() && !faults.At(path) {
		faults.Add(path, "there are none, so no evidence could ever be accepted")
	}
	if m.Simulated() && m.Hardware() {
		faults.Add(path+".Simulated", "it stands beside SNP or TDX; a mesh that trusts hardware must not also trust what only looks like it")
	}
	checkEach(faults, path+".SNP", m.ReferenceValues.SNP)
	checkEach(faults, path+".TDX", m.ReferenceValues.TDX)
	checkEach(faults, path+".Simulated", m.ReferenceValues.Simulated)
}

func checkEach[R interface{ Validate() []string }](faults *strictjson.Faults, path string, references []R) {
	for i, reference := range references {
		at := strictjson.Index(path, i)
		if faults.At(at) {
			continue
		}
		for _, fault := range reference.Validate() {
			field, message, _ := strings.Cut(fault, ": ")
			faults.Add(at+"."+field, "%s", message)
		}
	}
}

func (m *Manifest) checkOwners(faults *strictjson.Faults) {
	const path = "WorkloadOwnerKeys"
	first := make(map[string]int)
	for i, key := range m.WorkloadOwnerKeys {
		if key.key == nil {
			continue
		}
		if j, taken := first[key.spki]; taken {
			faults.Add(strictjson.Index(path, i), "the same key as %s", strictjson.Index(path, j))
			continue
		}
		first[key.spki] = i
	}
	checkThreshold(faults, path, len(m.WorkloadOwnerKeys), "WorkloadOwnerThreshold", m.WorkloadOwnerThreshold)
}

func checkThreshold(faults *strictjson.Faults, keys string, n int, path string, threshold int) {
	if faults.At(keys) || faults.At(path) {
		return
	}
	switch {
	case n == 0 && threshold != 0:
		faults.Add(path, "%d, but there are no %s", threshold, keys)
	case n > 0 && (threshold < 1 || threshold > n):
		faults.Add(path, "%d, want 1 to %d, the number of %s", threshold, n, keys)
	}
}

func (m *Manifest) sortedPolicies() []attestation.PolicyHash {
	return slices.SortedFunc(maps.Keys(m.Policies), func(a, b attestation.PolicyHash) int {
		return bytes.Compare(a[:], b[:])
	})
}
