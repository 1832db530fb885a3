// Package report says in words and pictures what a verification proved, for a data owner who is no Kubernetes expert: as
// one HTML page that needs nothing but itself, and as JSON.
//
// A report is read by people who decide on it, so it must not say more than was shown. What it ticks are the checks that
// package api made, each with what was wanted and what came; nothing here ticks anything itself, and New refuses an answer
// with a check that failed, or with none. Pods come from Kubernetes YAML, which is anybody's word: only those whose measured
// initdata has a policy hash of the manifest are part of the mesh, they are shown as that initdata says, and all others are
// listed as strangers. What was refused makes another page (Refusal) that shares no sentence with the good one.
//
// All text that is shown may be hostile: names of pods and files, a Coordinator's error. html/template escapes it, page.go
// makes what would hide or reorder text visible, and the page's policy lets nothing run and nothing be fetched.
package report

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/generate"
)

// Input is what a report is made from.
type Input struct {
	// Coordinator is its address, as it was asked.
	Coordinator string
	// When is this machine's time of the verification.
	When time.Time
	// Version is that of Portcullis.
	Version string
	// Verified is what was proved.
	Verified *api.Verified
	// MeshCAFile, RootCAFile and HistoryFolder are where the results were written.
	MeshCAFile, RootCAFile, HistoryFolder string
	// Pods are those of the YAML that was given; nil when none was.
	Pods []generate.Measured
}

// Report is what there is to say. Its JSON is what "portcullis verify --json" writes.
type Report struct {
	Coordinator    string               `json:"coordinator"`
	VerifiedAt     time.Time            `json:"verifiedAt"`
	Version        string               `json:"version"`
	Platform       attestation.Platform `json:"platform"`
	Simulated      bool                 `json:"simulated"`
	PolicyHash     string               `json:"policyHash"`
	Measurement    string               `json:"measurement"`
	TCB            string               `json:"tcb"`
	Reference      string               `json:"referenceValue"`
	ManifestHash   string               `json:"manifestHash"`
	TransitionHash string               `json:"transitionHash"`
	Manifests      int                  `json:"manifests"`
	// Successors is how long after it is set the next manifest is accepted under the mesh CA; empty where it is not.
	Successors string   `json:"successors,omitempty"`
	Written    []string `json:"written"`
	// Findings are what a reader should not overlook, the worst first.
	Findings        []Finding        `json:"findings"`
	Certificates    []Certificate    `json:"certificates"`
	Policies        []Policy         `json:"policies"`
	Owners          Owners           `json:"owners"`
	History         []Step           `json:"history"`
	ReferenceValues []ReferenceValue `json:"referenceValues"`
	// Mesh is nil where no YAML was given.
	Mesh   *Mesh       `json:"mesh,omitempty"`
	Checks []api.Check `json:"checks"`
}

// Level says how much something matters to who relies on the mesh.
type Level string

// The levels, from nothing to say to all is lost.
const (
	Plain   Level = ""
	Note    Level = "note"
	Caution Level = "caution"
	Danger  Level = "danger"
)

var levels = []Level{Plain, Note, Caution, Danger}

// Word is how a reader who sees no colours tells levels apart.
func (l Level) Word() string {
	return map[Level]string{Note: "Note", Caution: "Caution", Danger: "Warning"}[l]
}

func (l Level) over(other Level) bool {
	rank := func(l Level) (n int) {
		for i := range levels {
			if levels[i] == l {
				n = i
			}
		}
		return n
	}
	return rank(l) > rank(other)
}

// Finding is something that a reader should not overlook.
type Finding struct {
	Level Level  `json:"level"`
	Text  string `json:"text"`
	// Section is where the page says more.
	Section string `json:"section"`
}

// Certificate is one of the mesh's CAs.
type Certificate struct {
	Name       string    `json:"name"`
	File       string    `json:"file"`
	Subject    string    `json:"subject"`
	Issuer     string    `json:"issuer"`
	Serial     string    `json:"serial"`
	SHA256     string    `json:"sha256"`
	KeySHA256  string    `json:"keySha256"`
	Key        string    `json:"key"`
	NotBefore  time.Time `json:"notBefore"`
	NotAfter   time.Time `json:"notAfter"`
	PathLength int       `json:"pathLength"`
}

// Owners are who can replace the active manifest, and who can recover the Coordinator, by the SHA-256 of their keys.
type Owners struct {
	Workload           []string `json:"workload"`
	WorkloadThreshold  int      `json:"workloadThreshold"`
	Seedshare          []string `json:"seedshare"`
	SeedshareThreshold int      `json:"seedshareThreshold"`
}

// New makes a report. The error says that what was given is no successful verification.
func New(in Input) (*Report, error) {
	v := in.Verified
	switch {
	case v == nil || v.Latest() == nil || v.RootCA == nil || v.MeshCA == nil || !v.Claims.PolicyHash.Valid():
		return nil, errors.New("make a report: nothing was verified")
	case len(v.Checks) == 0 || v.Checks[len(v.Checks)-1].Name != api.CheckActiveManifest:
		return nil, errors.New("make a report: it was not checked which manifest is active")
	}
	for _, c := range v.Checks {
		if !c.OK {
			return nil, fmt.Errorf("make a report: the check %q did not pass", strings.TrimSpace(c.Name+" "+c.Of))
		}
	}
	m := v.Latest()
	hash := m.Hash()
	r := &Report{
		Coordinator: in.Coordinator, VerifiedAt: in.When.UTC().Truncate(time.Second), Version: in.Version,
		Platform: v.Claims.Platform, PolicyHash: v.Claims.PolicyHash.String(), Measurement: hex.EncodeToString(v.Claims.Measurement),
		// Whatever is not hardware's is simulated: a platform that is unknown here must not look like hardware.
		Simulated: m.Simulated() || (v.Claims.Platform != attestation.SNP && v.Claims.Platform != attestation.TDX),
		TCB:       tcb(v.Claims), Reference: v.Reference,
		ManifestHash: hex.EncodeToString(hash[:]), TransitionHash: hex.EncodeToString(v.TransitionHash[:]), Manifests: len(v.History),
		Successors:   successors(v),
		Written:      []string{in.MeshCAFile, in.RootCAFile, in.HistoryFolder},
		Certificates: []Certificate{certificate("mesh CA", in.MeshCAFile, v.MeshCA), certificate("root CA", in.RootCAFile, v.RootCA)},
		Policies:     policies(m, in.Pods),
		History:      history(v.History),
		Owners:       Owners{WorkloadThreshold: m.WorkloadOwnerThreshold, SeedshareThreshold: m.SeedshareThreshold},
		Checks:       v.Checks,
	}
	for _, k := range m.WorkloadOwnerKeys {
		r.Owners.Workload = append(r.Owners.Workload, fingerprint(k.SPKI()))
	}
	for _, k := range m.SeedshareOwnerKeys {
		r.Owners.Seedshare = append(r.Owners.Seedshare, fingerprint(k.SigningKey.SPKI()))
	}
	r.ReferenceValues = referenceValues(m.ReferenceValues, v.Reference)
	if in.Pods != nil {
		r.Mesh = mesh(m, in.Pods)
	}
	r.Findings = r.findings()
	return r, nil
}

func fingerprint(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func certificate(name, file string, c *x509.Certificate) Certificate {
	key := c.PublicKeyAlgorithm.String()
	if k, ok := c.PublicKey.(*ecdsa.PublicKey); ok {
		key = "ECDSA " + k.Curve.Params().Name
	}
	length := c.MaxPathLen
	if length == 0 && !c.MaxPathLenZero {
		length = -1
	}
	return Certificate{
		Name: name, File: file, Subject: c.Subject.String(), Issuer: c.Issuer.String(), Serial: c.SerialNumber.Text(16),
		SHA256: fingerprint(c.Raw), KeySHA256: fingerprint(c.RawSubjectPublicKeyInfo), Key: key,
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), PathLength: length,
	}
}

// tcb says which versions of firmware the evidence reports.
func tcb(c attestation.Claims) string {
	switch {
	case c.SNP != nil:
		// TCB_VERSION of Milan and Genoa (AMD document 56860, table "TCB_VERSION"), which are all that is judged.
		t := c.SNP.ReportedTCB
		return fmt.Sprintf("%s, signed by its %s; boot loader %d, TEE %d, SNP %d, microcode %d",
			c.SNP.Product, c.SNP.SignedBy, byte(t), byte(t>>8), byte(t>>48), byte(t>>56))
	case c.TDX != nil:
		advisories := "no advisories"
		if len(c.TDX.Advisories) > 0 {
			advisories = "advisories " + strings.Join(c.TDX.Advisories, ", ")
		}
		return fmt.Sprintf("model %x; Intel says: platform %s, TDX module %s, quoting enclave %s, %s",
			c.TDX.FMSPC, c.TDX.PlatformTCBStatus, c.TDX.ModuleTCBStatus, c.TDX.QETCBStatus, advisories)
	default:
		return "not told"
	}
}

// findings collects what the parts of the report found.
func (r *Report) findings() []Finding {
	var all []Finding
	add := func(level Level, section, format string, args ...any) {
		all = append(all, Finding{level, fmt.Sprintf(format, args...), section})
	}
	if r.Simulated {
		add(Danger, "reference-values", "No hardware vouches for any of this. The manifest trusts a simulated TEE: whoever holds "+
			"the simulation's key can read and imitate every pod. Use it for tests only.")
	}
	for _, p := range r.Policies {
		for _, san := range p.SANs {
			if strings.HasPrefix(san, "*.") {
				add(Caution, "policies", "The pod of policy %.12s… has the name %s, which answers for every name it covers.", p.Hash, san)
			}
		}
	}
	for _, v := range r.ReferenceValues {
		for _, f := range v.Fields {
			if f.Level.over(Note) && v.Platform != attestation.Simulated {
				add(f.Level, "reference-values", "%s.%s: %s", v.Path, f.Name, f.Allows)
			}
		}
	}
	if r.Successors != "" {
		add(Caution, "pin", "Who pins the mesh CA accepts the next manifest as well, whatever its owners make it, for %s after it is set.", r.Successors)
	}
	for _, s := range r.History {
		if s.OtherOwners {
			add(Caution, "history", "Manifest %d had other owners, who may know the seed and with it the root CA's key. It was accepted "+
				"because they were named as trusted when this was verified.", s.Number)
		}
	}
	if len(r.Owners.Workload) == 0 {
		add(Note, "history", "Nobody can replace this manifest: it lists no workload owners.")
	}
	if len(r.Owners.Seedshare) == 0 {
		add(Note, "history", "When the Coordinator restarts, this mesh ends: it lists no seed-share owners.")
	}
	if r.Mesh != nil {
		all = append(all, r.Mesh.findings()...)
	}
	var sorted []Finding
	for _, level := range []Level{Danger, Caution, Note} {
		for _, f := range all {
			if f.Level == level {
				sorted = append(sorted, f)
			}
		}
	}
	return sorted
}

func successors(v *api.Verified) string {
	if d := v.Latest().Overlap(); d > 0 {
		return d.String()
	}
	return ""
}
