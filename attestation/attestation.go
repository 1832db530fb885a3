// Package attestation says what a trusted execution environment (TEE) proves about a podVM, and to whom.
//
// A guest asks its hardware to sign 64 bytes of its own choosing, the report data, together with what the hardware
// measured: the launched image, and the policy hash that the host was made to commit to (HOSTDATA on SEV-SNP, MRCONFIGID
// on TDX). What comes back is Evidence. An Issuer makes it inside the guest; a Validator judges it anywhere else and
// answers with Claims, or says why not: Rejected when the evidence itself is bad, Unavailable when something that is
// needed to judge it could not be had.
//
// The threat is a host that answers in the guest's place, replays an old answer, or launches something else. So nothing
// here has a permissive zero value: an empty ReportData, PolicyHash or Evidence is refused by every Issuer and Validator.
package attestation

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
)

// Platform names the kind of TEE that signed a piece of evidence.
type Platform string

// The platforms. Simulated evidence has the real SEV-SNP format but is signed by a root that a test operator made.
const (
	SNP       Platform = "snp"
	TDX       Platform = "tdx"
	Simulated Platform = "simulated"
)

// Issuer makes evidence in the guest that it runs in.
type Issuer interface {
	// Issue returns evidence over data. It refuses the zero ReportData.
	Issue(ctx context.Context, data ReportData) (Evidence, error)
}

// Validator judges evidence against reference values.
type Validator interface {
	// Validate returns what evidence proves. The error is a *Rejected when evidence is not acceptable or does not
	// carry exactly data, and an *Unavailable when it could not be judged; then the caller may try again later.
	Validate(ctx context.Context, evidence Evidence, data ReportData) (Claims, error)
}

// Getter gets what a vendor publishes: certificates, revocation lists, TCB info. It honours the context.
type Getter interface {
	// Get returns the answer's headers and body. An error is *Unavailable.
	Get(ctx context.Context, url string) (http.Header, []byte, error)
}

// Evidence is what a TEE signs, as it travels: base64 inside JSON.
type Evidence struct {
	Platform Platform `json:"platform"`
	// Report is the hardware's signed report: on SNP and simulated the 1184 bytes of ATTESTATION_REPORT
	// (AMD SEV-SNP ABI specification, table "ATTESTATION_REPORT Structure"), on TDX the whole quote (Intel TDX DCAP quoting
	// library API, appendix 3), which carries its certificates with it.
	Report []byte `json:"report"`
	// Certificates is the certificate table that came with the report (GHCB specification, SNP extended guest
	// request: GUID table). May be empty where the platform's certificates are fetched by the validator.
	Certificates []byte `json:"certificates,omitempty"`
}

// Digest is SHA-256 over the evidence's three parts, length-prefixed as in NewReportData, for protocols that sign it.
func (e Evidence) Digest() [32]byte {
	h := sha256.New()
	writeTuple(h, []byte("portcullis evidence v1"), []byte(e.Platform), e.Report, e.Certificates)
	return [32]byte(h.Sum(nil))
}

// Claims are the facts that valid evidence proves. Besides what every platform proves, it holds what the one that signed
// does: exactly one of the pointers is set.
type Claims struct {
	Platform Platform `json:"platform"`
	// PolicyHash is SHA-256 of the pod's initdata, as the hardware reported it.
	PolicyHash PolicyHash `json:"policyHash"`
	// Measurement is the launch measurement, 48 bytes: MEASUREMENT on SNP and simulated, MRTD on TDX.
	Measurement []byte `json:"measurement"`

	// SNP is set on SNP and simulated.
	SNP *SNPClaims `json:"snp,omitempty"`
	TDX *TDXClaims `json:"tdx,omitempty"`
}

// SNPClaims are facts from an ATTESTATION_REPORT (AMD SEV-SNP ABI specification).
type SNPClaims struct {
	// Product is the processor line: Milan, Genoa or Turin.
	Product string `json:"product"`
	// ReportedTCB is TCB_VERSION as reported.
	ReportedTCB uint64 `json:"reportedTcb"`
	// SignedBy is the kind of key: VCEK, the chip's own, or VLEK, a cloud's.
	SignedBy string `json:"signedBy"`
}

// TDXClaims are facts from a TD quote (Intel TDX DCAP quoting library API, appendix 3) and from Intel's word on it.
type TDXClaims struct {
	// RTMRs are the four runtime measurement registers, 48 bytes each.
	RTMRs [4][]byte `json:"rtmrs"`
	// MRSEAM is the measurement of the TDX module, 48 bytes.
	MRSEAM []byte `json:"mrSeam"`
	// FMSPC names the platform's model, 6 bytes.
	FMSPC []byte `json:"fmspc"`
	// PlatformTCBStatus, ModuleTCBStatus and QETCBStatus are Intel's judgement of the platform, of the TDX module and of the
	// quoting enclave, such as UpToDate. Each was accepted by name.
	PlatformTCBStatus string `json:"platformTcbStatus"`
	ModuleTCBStatus   string `json:"moduleTcbStatus"`
	QETCBStatus       string `json:"qeTcbStatus"`
	// Advisories are Intel's advisories that the platform is open to, by number.
	Advisories []string `json:"advisories,omitempty"`
}

// ReportData is the 64 bytes that evidence is made over. The zero value is invalid and refused everywhere.
type ReportData struct {
	sum [sha512.Size]byte
	set bool
}

// NewReportData is SHA-512 over a tuple, the label first, each part as its length in bytes (u64, big-endian) and the
// bytes. Length prefixes make the tuple unambiguous; the label keeps one protocol's evidence from serving another.
func NewReportData(label string, parts ...[]byte) ReportData {
	h := sha512.New()
	writeTuple(h, append([][]byte{[]byte(label)}, parts...)...)
	return ReportData{sum: [sha512.Size]byte(h.Sum(nil)), set: label != ""}
}

// ParseReportData takes the 64 bytes as they stand in a request or a report. All-zero bytes are refused.
func ParseReportData(b []byte) (ReportData, error) {
	if len(b) != sha512.Size {
		return ReportData{}, fmt.Errorf("report data is %d bytes long, want %d", len(b), sha512.Size)
	}
	if allZero(b) {
		return ReportData{}, errors.New("report data is all zero")
	}
	return ReportData{sum: [sha512.Size]byte(b), set: true}, nil
}

// Valid says whether r was made by NewReportData or ParseReportData.
func (r ReportData) Valid() bool { return r.set }

// Bytes returns the 64 bytes. It is zero, and refused by every Issuer and Validator, when r is not Valid.
func (r ReportData) Bytes() [sha512.Size]byte { return r.sum }

// PolicyHash is SHA-256 of a pod's initdata. The zero value is invalid: no policy has it.
type PolicyHash [sha256.Size]byte

// ParsePolicyHash reads 64 lower-case hexadecimal digits. The all-zero hash is refused.
func ParsePolicyHash(s string) (PolicyHash, error) {
	var p PolicyHash
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(p) || hex.EncodeToString(b) != s {
		return PolicyHash{}, fmt.Errorf("policy hash %q is not 64 lower-case hexadecimal digits", s)
	}
	p = PolicyHash(b)
	if !p.Valid() {
		return PolicyHash{}, errors.New("policy hash is all zero")
	}
	return p, nil
}

// Valid says whether p is not all zero.
func (p PolicyHash) Valid() bool { return p != PolicyHash{} }

// String returns 64 lower-case hexadecimal digits.
func (p PolicyHash) String() string { return hex.EncodeToString(p[:]) }

// MarshalText encodes p as String does.
func (p PolicyHash) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText decodes what MarshalText wrote.
func (p *PolicyHash) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePolicyHash(string(b))
	return err
}

// Rejected says that evidence is bad, and in which field. It is safe to show to operators; a podVM is told only Field.
type Rejected struct {
	// Field is the field's name in the platform's specification, such as MEASUREMENT or HOSTDATA.
	Field string
	// Want and Got are the field's values in the specification's usual notation.
	Want, Got string
}

func (r *Rejected) Error() string {
	return fmt.Sprintf("evidence rejected: %s: want %s, got %s", r.Field, r.Want, r.Got)
}

// Unavailable says that evidence could not be judged now, for want of What.
type Unavailable struct {
	What string
	Err  error
}

func (u *Unavailable) Error() string { return fmt.Sprintf("%s is not available: %v", u.What, u.Err) }

func (u *Unavailable) Unwrap() error { return u.Err }

func writeTuple(h hash.Hash, parts ...[]byte) {
	var length [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(length[:], uint64(len(p)))
		h.Write(length[:])
		h.Write(p)
	}
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
