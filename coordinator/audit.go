package coordinator

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/http"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/coordinator/audit"
	"portcullis.dev/portcullis/manifest"
)

// This file says what of the Coordinator's work goes into its audit log. What cannot be recorded is not done.

const auditUnwritable = "the audit log cannot be written"

// unrecorded is the answer to a request whose outcome the log would not have.
func unrecorded(err error) error {
	return problem(api.CodeUnavailable).saying(auditUnwritable).because(err)
}

// auditStart records the start, and refuses it where that cannot be done.
func (c *Coordinator) auditStart() error {
	e := &audit.Started{State: string(c.state())}
	if r := c.recovering.Load(); r != nil {
		hash := r.transition().Hash
		e.Transition = hex.EncodeToString(hash[:])
	}
	return c.audit.RecordDurably(e)
}

// auditTransition records a transition before the store has it.
func (c *Coordinator) auditTransition(t *manifest.Transition, generation int) error {
	manifestHash := t.Manifest.Hash()
	e := &audit.ManifestSet{
		Generation: generation, Transition: hex.EncodeToString(t.Hash[:]), Previous: hex.EncodeToString(t.Previous[:]),
		Manifest: hex.EncodeToString(manifestHash[:]), Policies: len(t.Manifest.Policies), Signers: []string{},
	}
	for _, s := range t.Signatures {
		e.Signers = append(e.Signers, fingerprint(s.PublicKey))
	}
	if err := c.audit.RecordDurably(e); err != nil {
		return unrecorded(err)
	}
	return nil
}

// auditNotKept takes auditTransition back.
func (c *Coordinator) auditNotKept(t *manifest.Transition, reason error) {
	e := &audit.ManifestNotKept{Transition: hex.EncodeToString(t.Hash[:]), Reason: audit.Text(reason.Error())}
	if err := c.audit.RecordDurably(e); err != nil {
		c.log.Error("the audit log says that a manifest was set which was not", "transition", e.Transition, "reason", err)
	}
}

// auditKept signs the log with the key of the generation that the store has now. That this fails, the next line finds out.
func (c *Coordinator) auditKept(next *generation) {
	_, err := c.signAudit(next)
	if err == nil {
		err = c.audit.SignHead()
	}
	if err != nil {
		c.log.Error("the audit log's head is not signed", "reason", err)
	}
}

// auditRecovery records that g's seed is here again, and signs the log with it.
func (c *Coordinator) auditRecovery(g *generation) error {
	provenance, err := c.signAudit(g)
	if err != nil {
		return err
	}
	if provenance == audit.Foreign {
		c.log.Warn("the audit log's newest signed head is not this Coordinator's: somebody replaced the file, or it is another's")
	}
	e := &audit.Recovered{
		Generation: len(g.history), Transition: hex.EncodeToString(g.transition.Hash[:]), Log: provenance,
	}
	if err := c.audit.RecordDurably(e); err != nil {
		return unrecorded(err)
	}
	return nil
}

// auditGiven records that another replica gets all that this one is, before it has it.
func (c *Coordinator) auditGiven(g *generation, req *api.PeerRequest, claims attestation.Claims) error {
	key := sha256.Sum256(req.HPKEKey)
	if err := c.audit.RecordDurably(&audit.StateGiven{
		Platform: string(claims.Platform), PolicyHash: claims.PolicyHash.String(), HPKEKey: hex.EncodeToString(key[:]),
		Generation: len(g.history), Transition: hex.EncodeToString(g.transition.Hash[:]),
	}); err != nil {
		return unrecorded(err)
	}
	return nil
}

// signAudit lets the log sign with the key that follows from g's seed.
func (c *Coordinator) signAudit(g *generation) (audit.Provenance, error) {
	if c.audit == nil {
		return "", nil
	}
	signer, err := audit.NewSigner(g.seed)
	if err != nil {
		return "", err
	}
	return c.audit.Sign(signer), nil
}

// auditCertificate records a certificate before its pod has it.
func (c *Coordinator) auditCertificate(
	g *generation, req *api.CertificateRequest, claims attestation.Claims, leaf *x509.Certificate,
) error {
	spki := sha256.Sum256(req.PublicKey)
	if err := c.audit.Record(&audit.CertificateIssued{
		Platform: string(claims.Platform), PolicyHash: claims.PolicyHash.String(), Serial: leaf.SerialNumber.Text(16),
		PublicKey: hex.EncodeToString(spki[:]), NotAfter: leaf.NotAfter.UTC(), Generation: len(g.history), Renewal: len(req.MeshCA) > 0,
	}); err != nil {
		return unrecorded(err)
	}
	return nil
}

// auditRefusal records what was forbidden: evidence, signatures and shares that are not good. That the log would not have it
// changes nothing for who was refused.
func (c *Coordinator) auditRefusal(r *http.Request, refused *refusal) {
	if problems[refused.code].status != http.StatusForbidden {
		return
	}
	e := &audit.Refused{Route: r.URL.Path, Code: string(refused.code), Remote: r.RemoteAddr}
	if rejected, ok := errors.AsType[*attestation.Rejected](refused.cause); ok {
		e.Field, e.Want, e.Got = rejected.Field, audit.Text(rejected.Want), audit.Text(rejected.Got)
	} else {
		e.Reason = audit.Text(refused.Error())
	}
	if judged, ok := errors.AsType[*judgedError](refused.cause); ok {
		e.ClaimedPolicyHash = judged.claimed
	}
	if err := c.audit.RecordRefusal(e); err != nil {
		c.log.Error("a refusal is not in the audit log", "reason", err)
	}
}
