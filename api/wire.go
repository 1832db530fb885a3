// Package api is the Coordinator's HTTP interface: its routes, its wire types, and a client.
//
// Every message that matters is protected by itself: by a signature, by HPKE, or by evidence whose report data binds
// the message. TLS in front of it would add privacy, never trust, so a hostile network may carry it as it is.
//
// Bytes are base64 in JSON; certificates are DER; public keys are DER SubjectPublicKeyInfo (SPKI) unless said otherwise.
package api

import (
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
)

// Port is the TCP port that a Coordinator listens on.
const Port = 1313

// The routes.
const (
	PathAttest      = "/v1/attest"
	PathManifest    = "/v1/manifest"
	PathNonce       = "/v1/mesh/nonce"
	PathCertificate = "/v1/mesh/certificate"
	PathSuccessor   = "/v1/mesh/successor"
	PathRecover     = "/v1/recover"
	PathPeerState   = "/v1/peer/state"
	PathHealth      = "/healthz"
	PathReady       = "/readyz"
	PathMetrics     = "/metrics"
)

// The labels of the tuples that evidence and proofs are made over (attestation.NewReportData).
const (
	LabelAttest = "portcullis attest v1"
	LabelMesh   = "portcullis mesh v1"
	LabelAnswer = "portcullis answer v1"
	LabelProof  = "portcullis proof v1"
	LabelSecret = "portcullis secret v1"

	LabelNeedsRecovery = "portcullis needs recovery v1"
	LabelShare         = "portcullis seed share v1"
	LabelRecover       = "portcullis recover v1"

	LabelPeer       = "portcullis peer v1"
	LabelPeerAnswer = "portcullis peer answer v1"
	LabelPeerState  = "portcullis peer state v1"
)

// NonceSize is the length of the nonce in an AttestRequest.
const NonceSize = 32

// ProblemType is the media type of every error.
const ProblemType = "application/problem+json"

// AttestRequest asks a Coordinator who it is. Nonce is NonceSize fresh random bytes.
type AttestRequest struct {
	Nonce []byte `json:"nonce"`
	// Recovery asks a Coordinator that needs recovery for what its seed-share owners must know. Without it, such a
	// Coordinator answers CodeNeedsRecovery, so that nobody takes it for one that serves; with it, one that serves answers
	// CodeNoRecovery.
	Recovery bool `json:"recovery,omitempty"`
}

// AttestResponse is a Coordinator's own evidence over
//
//	NewReportData(LabelAttest, nonce, SHA-256(root CA SPKI), SHA-256(mesh CA), transition hash, HPKE key)
//
// and what that binds. Before the first manifest History is empty and the CAs are absent: the three hashes are empty
// then. Of a Coordinator that needs recovery the CAs are absent too, and the evidence is over
//
//	NewReportData(LabelNeedsRecovery, nonce, Recovery.Nonce, transition hash, HPKE key)
type AttestResponse struct {
	Evidence attestation.Evidence `json:"evidence"`
	RootCA   []byte               `json:"rootCa,omitempty"`
	MeshCA   []byte               `json:"meshCa,omitempty"`
	HPKEKey  []byte               `json:"hpkeKey"`
	// History is oldest first; the last entry's transition hash is the latest.
	History []HistoryEntry `json:"history"`
	// Shares are the sealed shares of the seed, one for each of the manifest's SeedshareOwnerKeys, in their order. The evidence
	// does not cover them; the root CA's key, which it does cover, signed each.
	Shares []SealedShare `json:"shares,omitempty"`
	// Recovery is there only when the Coordinator needs recovery and the request asked for it.
	Recovery *Recovery `json:"recovery,omitempty"`
}

// Recovery is how far the recovery of a restarted Coordinator is.
type Recovery struct {
	// Nonce is what the owners sign, NonceSize bytes. It changes with every restart, and when shares are discarded.
	Nonce []byte `json:"nonce"`
	// Collected is how many shares there are, Threshold how many it takes. Evidence does not cover them.
	Collected int `json:"collected"`
	Threshold int `json:"threshold"`
}

// SealedShare is a share of the seed that only its owner can read. It is public.
type SealedShare struct {
	// TransitionHash is that of the first manifest, which the seed was made with.
	TransitionHash []byte `json:"transitionHash"`
	// Owner is the SPKI of the owner's signing key.
	Owner []byte `json:"owner"`
	// RootKey is the SPKI of the root CA whose key comes from this seed.
	RootKey []byte `json:"rootKey"`
	// Sealed is the share, sealed to the owner's HPKE key: encapsulated key || ciphertext, info LabelShare,
	// AAD NewReportData(LabelShare, transition hash, owner, root key).
	Sealed []byte `json:"sealed"`
	// Signature is the root key's ECDSA signature (ASN.1) over SHA-256 of the 64 bytes
	// NewReportData(LabelShare, transition hash, owner, root key, sealed): anybody could seal something to an owner.
	Signature []byte `json:"signature"`
}

// RecoverRequest gives a restarted Coordinator one share of its seed.
type RecoverRequest struct {
	// Nonce is Recovery.Nonce.
	Nonce []byte `json:"nonce"`
	// TransitionHash is the latest, which the owner has verified.
	TransitionHash []byte `json:"transitionHash"`
	// PublicKey is the SPKI of the owner's signing key.
	PublicKey []byte `json:"publicKey"`
	// Share is sealed to the Coordinator's HPKE key: encapsulated key || ciphertext, info LabelRecover,
	// AAD NewReportData(LabelRecover, nonce, transition hash, SPKI).
	Share []byte `json:"share"`
	// Signature is the owner's ECDSA signature (ASN.1) over SHA-256 of the 64 bytes
	// NewReportData(LabelRecover, share, the Coordinator's HPKE key, nonce, transition hash).
	Signature []byte `json:"signature"`
}

// RecoverResponse says how far the recovery is.
type RecoverResponse struct {
	Collected int  `json:"collected"`
	Threshold int  `json:"threshold"`
	Recovered bool `json:"recovered"`
}

// HistoryEntry is one accepted manifest. Its transition is SHA-256(Manifest) || the previous entry's transition hash
// (32 zero bytes before the first); its transition hash is SHA-256(transition).
type HistoryEntry struct {
	Manifest   []byte      `json:"manifest"`
	Signatures []Signature `json:"signatures,omitempty"`
}

// Signature is an owner's ECDSA signature (ASN.1) over manifest.SignedMessage of the new transition hash.
type Signature = manifest.Signature

// SetRequest sets a manifest. Previous is the latest transition hash, 32 zero bytes before the first manifest.
type SetRequest struct {
	Manifest   []byte      `json:"manifest"`
	Previous   []byte      `json:"previous"`
	Signatures []Signature `json:"signatures,omitempty"`
}

// SetResponse is what the manifest made: its transition hash and the CAs.
type SetResponse struct {
	TransitionHash []byte `json:"transitionHash"`
	RootCA         []byte `json:"rootCa"`
	MeshCA         []byte `json:"meshCa"`
}

// NonceRequest is empty: {}.
type NonceRequest struct{}

// NonceResponse carries a nonce that is good for 60 seconds.
type NonceResponse struct {
	Nonce []byte `json:"nonce"`
}

// CertificateRequest asks for a mesh certificate.
type CertificateRequest struct {
	Nonce []byte `json:"nonce"`
	// PublicKey is the leaf key's SPKI (ECDSA P-256).
	PublicKey []byte `json:"publicKey"`
	// HPKEKey is the requester's MLKEM768X25519 public key, raw.
	HPKEKey []byte `json:"hpkeKey"`
	// Evidence is over NewReportData(LabelMesh, nonce, SPKI, HPKE key).
	Evidence attestation.Evidence `json:"evidence"`
	// Proof is the leaf key's ECDSA signature (ASN.1) over SHA-256 of the 64 bytes
	// NewReportData(LabelProof, nonce, SPKI, HPKE key, Evidence.Digest()).
	Proof []byte `json:"proof"`
	// MeshCA is the SHA-256 of the mesh CA that the requester holds; empty at the first request. A Coordinator whose
	// manifest has moved on answers CodeGenerationChanged.
	MeshCA []byte `json:"meshCa,omitempty"`
	// WantEvidence asks for the Coordinator's own evidence over the answer.
	WantEvidence bool `json:"wantEvidence,omitempty"`
}

// CertificateResponse carries the mesh credentials.
type CertificateResponse struct {
	// Chain is leaf, then intermediate. Never the mesh CA.
	Chain  [][]byte `json:"chain"`
	MeshCA []byte   `json:"meshCa"`
	RootCA []byte   `json:"rootCa"`
	// Predecessor is the mesh CA of the manifest before, while the two overlap. The leaf names its SHA-256, and until when it
	// is accepted, in pki.PredecessorExtension: so all that covers the leaf covers this.
	Predecessor []byte `json:"predecessor,omitempty"`
	// TransitionHash names the manifest that the certificate was issued under.
	TransitionHash []byte `json:"transitionHash"`
	// WorkloadSecret is sealed to HPKEKey: encapsulated key || ciphertext, info LabelSecret,
	// AAD NewReportData(LabelSecret, nonce, SPKI, leaf, intermediate, mesh CA, root CA). Empty without a WorkloadSecretID.
	WorkloadSecret []byte `json:"workloadSecret,omitempty"`
	// Evidence is over NewReportData(LabelAnswer, nonce, SPKI, leaf, intermediate, mesh CA, root CA, transition hash).
	Evidence *attestation.Evidence `json:"evidence,omitempty"`
}

// Health is the body of /healthz, and of /readyz where it is 200.
type Health struct {
	// State is no-manifest, active, needs-recovery, needs-peer or split-history.
	State string `json:"state"`
	// Detail says of a split history what it is that the store contradicts.
	Detail string `json:"detail,omitempty"`
}

// SuccessorRequest asks what has come after a mesh CA. It is for pods that cannot renew any more, and proves nothing: what is
// answered is public.
type SuccessorRequest struct {
	// MeshCA is the SHA-256 of the mesh CA that the requester holds.
	MeshCA []byte `json:"meshCa"`
}

// SuccessorResponse is empty while nothing has come after it that its manifest let come, or where that is over.
type SuccessorResponse struct {
	// Successor is the cross-certificate: the next mesh CA's name and key, signed by the one that was asked about, which protects
	// it (pki.VerifySuccessor).
	Successor []byte `json:"successor,omitempty"`
}

// Problem is the body of every error (RFC 9457, application/problem+json).
type Problem struct {
	Type   string `json:"type"` // always about:blank
	Title  string `json:"title"`
	Status int    `json:"status"`
	// Code is stable and meant for programs.
	Code Code `json:"code"`
	// Detail is for people. It never carries internals.
	Detail string `json:"detail,omitempty"`
	// Faults lists each fault of a malformed manifest.
	Faults []string `json:"faults,omitempty"`
}

// Code is a stable name of a problem.
type Code string

// The codes.
const (
	CodeBadRequest        Code = "bad-request"        // 400
	CodeBadManifest       Code = "bad-manifest"       // 400
	CodeBadNonce          Code = "bad-nonce"          // 400: unknown, expired or forged; ask for another
	CodeBadSignature      Code = "bad-signature"      // 403
	CodeEvidenceRejected  Code = "evidence-rejected"  // 403
	CodeNotFound          Code = "not-found"          // 404
	CodeMethodNotAllowed  Code = "method-not-allowed" // 405
	CodeConflict          Code = "conflict"           // 409: previous is not the latest transition
	CodeGenerationChanged Code = "generation-changed" // 409
	CodeTooLarge          Code = "too-large"          // 413
	CodeBusy              Code = "busy"               // 429, with Retry-After
	CodeNoRecovery        Code = "no-recovery"        // 409: the seed is here
	CodeShareRepeated     Code = "share-repeated"     // 409: this owner's share is here already
	CodeSharesDiscarded   Code = "shares-discarded"   // 403: the shares together are not the seed of this history
	CodeNoManifest        Code = "no-manifest"        // 503: nothing was set yet
	CodeNeedsRecovery     Code = "needs-recovery"     // 503: restarted, the seed is not here
	CodeNeedsPeer         Code = "needs-peer"         // 503: another replica went on without this one
	CodeSplitHistory      Code = "split-history"      // 503: the store was rolled back, or is another history's
	CodeUnavailable       Code = "unavailable"        // 503: evidence could not be judged now
	CodeInternal          Code = "internal"           // 500
)
