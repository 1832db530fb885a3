package coordinator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// maxHistory bounds the manifests of a history together, so that the answer to attest stays one that clients read.
const maxHistory = 32 << 20

// attest says who this Coordinator is. While recovery is needed it is refused to those who did not ask for that: the answer
// would look like a fresh Coordinator's, and a data owner must not take one for the other.
func (c *Coordinator) attest(ctx context.Context, req *api.AttestRequest) (*api.AttestResponse, error) {
	if len(req.Nonce) != api.NonceSize {
		return nil, problem(api.CodeBadRequest).saying("nonce is %d bytes long, want %d", len(req.Nonce), api.NonceSize)
	}
	resp := &api.AttestResponse{HPKEKey: c.hpkeKey.PublicKey().Bytes(), History: []api.HistoryEntry{}}
	r := c.recovering.Load()
	switch g := c.active.Load(); {
	case req.Recovery && r == nil:
		return nil, problem(api.CodeNoRecovery)
	case req.Recovery && len(r.owners()) == 0:
		return nil, problem(api.CodeNeedsRecovery).saying("the manifest lists no SeedshareOwnerKeys: nobody has the seed but another replica, if one is active; else deploy anew")
	case req.Recovery:
		resp.History, resp.Recovery = r.entries, r.progress()
	case r != nil:
		return nil, problem(r.code())
	case g != nil:
		resp.RootCA, resp.MeshCA, resp.History, resp.Shares = g.root.Raw, g.mesh.Certificate.Raw, g.history, g.shares
	}
	data, err := resp.ReportData(req.Nonce)
	if err != nil {
		return nil, err
	}
	evidence, err := c.ownEvidence(ctx, data)
	if err != nil {
		return nil, err
	}
	resp.Evidence = evidence
	return resp, nil
}

func (c *Coordinator) ownEvidence(ctx context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	leave, err := c.attesting.enter(ctx)
	if err != nil {
		return attestation.Evidence{}, err
	}
	defer leave()
	evidence, err := c.issuer.Issue(ctx, data)
	if err != nil {
		return attestation.Evidence{}, problem(api.CodeUnavailable).because(fmt.Errorf("get evidence of our own: %w", err))
	}
	return evidence, nil
}

// set makes a manifest the active one. Who is answered with success can rely on it: it is durable.
func (c *Coordinator) set(ctx context.Context, req *api.SetRequest) (*api.SetResponse, error) {
	c.setMutex.Lock()
	defer c.setMutex.Unlock()
	if err := c.mayChange(ctx, req.Previous); err != nil {
		return nil, err
	}
	current := c.active.Load()
	// What is wrong with the request whatever the manifest says comes first: a wrong previous also makes every signature
	// wrong, and the conflict is the better explanation.
	if len(req.Previous) != 32 {
		return nil, problem(api.CodeBadRequest).saying("previous is %d bytes long, want 32", len(req.Previous))
	}
	if [32]byte(req.Previous) != current.previous() {
		return nil, problem(api.CodeConflict)
	}
	if current.size()+len(req.Manifest) > maxHistory {
		return nil, problem(api.CodeTooLarge).saying("the history would be larger than %d bytes", maxHistory)
	}
	var transition *manifest.Transition
	var err error
	if current == nil {
		transition, err = manifest.First(req.Manifest, req.Signatures)
	} else {
		transition, err = current.transition.Next(req.Manifest, req.Signatures)
	}
	if err != nil {
		return nil, refusedManifest(err)
	}
	validator, err := c.validator(transition.Manifest)
	if err != nil {
		return nil, err
	}
	next, err := current.successor(transition, validator, time.Now())
	if err != nil {
		return nil, fmt.Errorf("make the authority of transition %x: %w", transition.Hash, err)
	}
	kept, err := objects(transition, next.shares)
	if err != nil {
		return nil, err
	}
	var old []byte
	if current != nil {
		old = current.latest.text
	}
	if err := c.auditTransition(transition, len(next.history)); err != nil {
		return nil, err
	}
	if err := c.commit(ctx, kept, old, next); err != nil {
		c.auditNotKept(transition, err)
		if errors.Is(err, store.ErrConflict) {
			return nil, problem(api.CodeConflict).because(err)
		}
		return nil, fmt.Errorf("keep transition %x: %w", transition.Hash, err)
	}
	c.log.Info("manifest set", "generation", len(next.history), "transition", hex.EncodeToString(transition.Hash[:]),
		"policies", len(transition.Manifest.Policies), "signatures", len(transition.Signatures))
	if before := next.mesh.Before; before != nil {
		c.log.Info("pods of the manifest before and of this one accept each other for a while", "until", before.Until())
	}
	return &api.SetResponse{
		TransitionHash: transition.Hash[:], RootCA: next.root.Raw, MeshCA: next.mesh.Certificate.Raw,
	}, nil
}

// validator judges pods by a manifest's reference values, if this Coordinator can and may.
func (c *Coordinator) validator(m *manifest.Manifest) (attestation.Validator, error) {
	refused := problem(api.CodeBadManifest)
	if m.Simulated() && !c.allowSimulated {
		refused.faults = []string{"ReferenceValues.Simulated: this Coordinator does not trust evidence that no hardware made" +
			" (it was started without --allow-simulated-tee)"}
		return nil, refused.because(errors.New(refused.faults[0]))
	}
	v, err := m.Validator(c.validation)
	if errors.Is(err, manifest.ErrNoCollateral) {
		refused.faults = []string{"ReferenceValues: this Coordinator cannot ask the vendors of hardware for what judging it takes"}
		return nil, refused.because(err)
	}
	return v, err
}

// refusedManifest tells an owner everything: what is wrong is in the owner's own text or signatures.
func refusedManifest(err error) error {
	if malformed, ok := errors.AsType[*manifest.Error](err); ok {
		refused := problem(api.CodeBadManifest).because(err)
		refused.faults = malformed.Faults.Strings()
		return refused
	}
	if unsigned, ok := errors.AsType[*manifest.SignatureError](err); ok {
		return problem(api.CodeBadSignature).saying("%s", unsigned.Reason)
	}
	return err
}

func (c *Coordinator) nonce(context.Context, *api.NonceRequest) (*api.NonceResponse, error) {
	g, err := c.generation()
	if err != nil {
		return nil, err
	}
	return &api.NonceResponse{Nonce: g.nonces.issue(c.clock.now())}, nil
}

// certificate certifies a pod that proves to be one of the manifest's. The checks come in the order of what they cost
// the Coordinator, so that a stranger can make it do little.
func (c *Coordinator) certificate(ctx context.Context, req *api.CertificateRequest) (*api.CertificateResponse, error) {
	began := time.Now()
	g, err := c.generation()
	if err != nil {
		return nil, err
	}
	if err := g.nonces.check(req.Nonce, c.clock.now()); err != nil {
		return nil, problem(api.CodeBadNonce).because(err)
	}
	if len(req.MeshCA) > 0 && string(req.MeshCA) != string(g.meshHash[:]) {
		return nil, problem(api.CodeGenerationChanged)
	}
	leave, err := c.judging.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	key, err := pki.ParseSPKI(req.PublicKey)
	if err != nil || key.Curve != elliptic.P256() {
		return nil, problem(api.CodeBadRequest).saying("publicKey is not the SPKI of an ECDSA P-256 key").because(err)
	}
	if _, err := api.ParseHPKEKey(req.HPKEKey); err != nil {
		return nil, problem(api.CodeBadRequest).saying("hpkeKey is not a MLKEM768X25519 public key").because(err)
	}
	if !req.VerifyProof(key) {
		return nil, problem(api.CodeBadSignature).saying("proof is not a signature by publicKey over this request")
	}
	claims, policy, err := c.judge(ctx, g, req.Evidence, req.ReportData())
	if err != nil {
		return nil, err
	}
	resp, err := c.answer(ctx, g, req, key, claims, policy)
	if err == nil {
		c.metrics.issueTime.Observe(time.Since(began).Seconds())
	}
	return resp, err
}

// successor says what came after a mesh CA. Pods of the manifest before ask every few minutes, so it costs a look into a list.
func (c *Coordinator) successor(_ context.Context, req *api.SuccessorRequest) (*api.SuccessorResponse, error) {
	g, err := c.generation()
	if err != nil {
		return nil, err
	}
	if len(req.MeshCA) != sha256.Size {
		return nil, problem(api.CodeBadRequest).saying("meshCa is %d bytes long, want %d", len(req.MeshCA), sha256.Size)
	}
	return &api.SuccessorResponse{Successor: g.overlaps.after([sha256.Size]byte(req.MeshCA), time.Now())}, nil
}

// judge says which of the manifest's policies a pod has.
func (c *Coordinator) judge(
	ctx context.Context, g *generation, evidence attestation.Evidence, data attestation.ReportData,
) (attestation.Claims, manifest.Policy, error) {
	claims, err := g.validator.Validate(ctx, evidence, data)
	if err == nil {
		if policy, known := g.transition.Manifest.Policies[claims.PolicyHash]; known {
			return claims, policy, nil
		}
		err = anotherPolicy(claims, "the hash of a policy in the manifest")
	}
	return attestation.Claims{}, manifest.Policy{}, c.refuseEvidence(evidence, err)
}

// anotherPolicy rejects evidence that is good, of a pod that is not the one.
func anotherPolicy(claims attestation.Claims, want string) error {
	return &attestation.Rejected{Field: policyHashField(claims.Platform), Want: want, Got: claims.PolicyHash.String()}
}

// refuseEvidence tells the pod the field, and the log everything.
func (c *Coordinator) refuseEvidence(evidence attestation.Evidence, err error) error {
	judged := &judgedError{claimed: claimedPolicyHash(evidence), err: err}
	rejected, ok := errors.AsType[*attestation.Rejected](err)
	if !ok {
		c.metrics.unavailable.WithLabelValues(vendor(evidence.Platform)).Inc()
		return problem(api.CodeUnavailable).because(judged)
	}
	c.metrics.rejected.WithLabelValues(rejected.Field).Inc()
	return problem(api.CodeEvidenceRejected).saying("the evidence's %s is not acceptable", rejected.Field).because(judged)
}

func (c *Coordinator) answer(
	ctx context.Context, g *generation, req *api.CertificateRequest, key *ecdsa.PublicKey,
	claims attestation.Claims, policy manifest.Policy,
) (*api.CertificateResponse, error) {
	resp, leaf, err := g.issue(req, key, claims, policy, time.Now())
	if err != nil {
		return nil, err
	}
	if req.WantEvidence {
		data, err := resp.ReportData(req)
		if err != nil {
			return nil, err
		}
		evidence, err := c.ownEvidence(ctx, data)
		if err != nil {
			return nil, err
		}
		resp.Evidence = &evidence
	}
	// A manifest that was set meanwhile may have dropped this very policy.
	if err := c.stillServes(g); err != nil {
		return nil, err
	}
	if err := c.auditCertificate(g, req, claims, leaf); err != nil {
		return nil, err
	}
	c.metrics.issued.WithLabelValues(string(claims.Platform)).Inc()
	c.log.Info("certificate issued", "policyHash", claims.PolicyHash.String(), "serial", leaf.SerialNumber.Text(16),
		"notAfter", leaf.NotAfter, "generation", len(g.history), "renewal", len(req.MeshCA) > 0)
	return resp, nil
}

// judgedError adds to why evidence was not accepted whose it claims to be.
type judgedError struct {
	claimed string
	err     error
}

func (e *judgedError) Error() string { return e.err.Error() }
func (e *judgedError) Unwrap() error { return e.err }

// claimedPolicyHash reads the policy hash in evidence that nobody has verified: HOST_DATA of a report (AMD SEV-SNP ABI
// specification, table "ATTESTATION_REPORT Structure") or the beginning of MRCONFIGID of a quote (Intel TDX DCAP quoting
// library API, appendix 3). It helps an operator find the pod and proves nothing.
func claimedPolicyHash(e attestation.Evidence) string {
	at := 0xc0
	if e.Platform == attestation.TDX {
		at = 48 + 184 // behind the header and the fields before it
	}
	const length = len(attestation.PolicyHash{})
	if len(e.Report) < at+length {
		return "unreadable"
	}
	return hex.EncodeToString(e.Report[at : at+length])
}

// policyHashField is what a platform calls the field with the policy hash.
func policyHashField(p attestation.Platform) string {
	if p == attestation.TDX {
		return "MRCONFIGID"
	}
	return "HOST_DATA"
}
