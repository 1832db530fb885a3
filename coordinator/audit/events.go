package audit

import (
	"reflect"
	"time"
)

// Event is one of the types of this file. Each is a line's fields.
type Event interface{ event() string }

// Began is the first line of a chain.
type Began struct{}

// Continued is the first line of a file that goes on with the chain of the one before.
type Continued struct {
	After string `json:"after"` // the file's name
}

// Cut says that the file ended with an incomplete line, which was cut off when the log was opened.
type Cut struct {
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Started is a start of the Coordinator, on what its store holds.
type Started struct {
	State      string `json:"state"`
	Transition string `json:"transition,omitempty"`
}

// Stopped is the end of a Coordinator that was told to stop. Without it, it was killed.
type Stopped struct{}

// ManifestSet is a transition that was accepted. It is written before the store has it: a crash in between leaves a line
// without a transition, and never a transition without a line.
type ManifestSet struct {
	Generation int      `json:"generation"`
	Transition string   `json:"transition"`
	Previous   string   `json:"previous"`
	Manifest   string   `json:"manifest"` // its SHA-256
	Policies   int      `json:"policies"`
	Signers    []string `json:"signers"` // the first 8 bytes of SHA-256 of their SPKIs
}

// ManifestNotKept takes back the ManifestSet of the same transition: the store would not have it.
type ManifestNotKept struct {
	Transition string `json:"transition"`
	Reason     string `json:"reason"`
}

// CertificateIssued is a mesh certificate. It is written before the pod has it.
type CertificateIssued struct {
	Platform   string    `json:"platform"`
	PolicyHash string    `json:"policyHash"`
	Serial     string    `json:"serial"`
	PublicKey  string    `json:"publicKey"` // SHA-256 of the SPKI
	NotAfter   time.Time `json:"notAfter"`
	Generation int       `json:"generation"`
	Renewal    bool      `json:"renewal"`
}

// Refused is an answer 403: evidence, a signature or shares that were not good.
type Refused struct {
	Route  string `json:"route"`
	Code   string `json:"code"`
	Remote string `json:"remote"`
	// Field, Want, Got and ClaimedPolicyHash are about evidence; the last is what the evidence says of itself.
	Field             string `json:"field,omitempty"`
	Want              string `json:"want,omitempty"`
	Got               string `json:"got,omitempty"`
	ClaimedPolicyHash string `json:"claimedPolicyHash,omitempty"`
	Reason            string `json:"reason,omitempty"`
}

// RefusalsOmitted says how many refusals came too fast to be recorded one by one.
type RefusalsOmitted struct {
	Count int `json:"count"`
}

// ShareTaken is a share of the seed that its owner gave.
type ShareTaken struct {
	Owner     string `json:"owner"` // the first 8 bytes of SHA-256 of the signing key's SPKI
	Collected int    `json:"collected"`
	Threshold int    `json:"threshold"`
}

// Recovered is a Coordinator that has its seed again.
type Recovered struct {
	Generation int    `json:"generation"`
	Transition string `json:"transition"`
	// Log is what the newest signed head in the file was worth to the key that follows from the seed.
	Log Provenance `json:"log"`
}

// StateGiven is the seed and the mesh CA's key, handed to another replica that was attested. It is on the disk before the
// replica has them.
type StateGiven struct {
	Platform   string `json:"platform"`
	PolicyHash string `json:"policyHash"`
	HPKEKey    string `json:"hpkeKey"` // SHA-256 of the key that they are sealed to
	Generation int    `json:"generation"`
	Transition string `json:"transition"`
}

// Provenance is whose a log's newest signed head is.
type Provenance string

// The provenances.
const (
	Own      Provenance = "own"
	Foreign  Provenance = "foreign"  // signed by another key, or not well
	Unsigned Provenance = "unsigned" // there is none
)

// HeadSigned proves that one process of a Coordinator wrote the lines from From to Seq (head.go).
type HeadSigned struct {
	From uint64 `json:"from"`
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
	// Key is the SPKI of the transaction key, Endorsement the root CA key's signature of it.
	Key         []byte `json:"key"`
	Endorsement []byte `json:"endorsement"`
	Signature   []byte `json:"signature"`
}

func (*Began) event() string             { return "began" }
func (*Continued) event() string         { return "continued" }
func (*Cut) event() string               { return "cut" }
func (*Started) event() string           { return "started" }
func (*Stopped) event() string           { return "stopped" }
func (*ManifestSet) event() string       { return "manifest-set" }
func (*ManifestNotKept) event() string   { return "manifest-not-kept" }
func (*CertificateIssued) event() string { return "certificate-issued" }
func (*Refused) event() string           { return "refused" }
func (*RefusalsOmitted) event() string   { return "refusals-omitted" }
func (*ShareTaken) event() string        { return "share-taken" }
func (*Recovered) event() string         { return "recovered" }
func (*StateGiven) event() string        { return "state-given" }
func (*HeadSigned) event() string        { return "head-signed" }

// events is every type above; a line of any other is refused.
var events = func() map[string]reflect.Type {
	known := map[string]reflect.Type{}
	for _, e := range []Event{
		&Began{}, &Continued{}, &Cut{}, &Started{}, &Stopped{}, &ManifestSet{}, &ManifestNotKept{}, &CertificateIssued{},
		&Refused{}, &RefusalsOmitted{}, &ShareTaken{}, &Recovered{}, &StateGiven{}, &HeadSigned{},
	} {
		known[e.event()] = reflect.TypeOf(e).Elem()
	}
	return known
}()

// maxText is for what a refusal quotes, which may be long.
const maxText = 512

// Text cuts what comes from elsewhere to a length that a line can hold.
func Text(s string) string {
	if len(s) <= maxText {
		return s
	}
	return s[:maxText] + "…"
}
