package initializer

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
)

// pinned is a pin and who judges by it.
type pinned struct {
	*manifest.Pin
	validator attestation.Validator
}

// newPinned is nil without a pin.
func newPinned(pin *manifest.Pin, o manifest.ValidatorOptions) (*pinned, error) {
	if pin == nil {
		return nil, nil
	}
	validator, err := pin.Validator(o)
	if err != nil {
		return nil, err
	}
	return &pinned{pin, validator}, nil
}

// verify says whether the answer to request comes from the Coordinator of the pin, and whether the pinned owners signed what
// it enforces. Its evidence binds the answer to the transition hash, and that hash binds every manifest and its place in the
// history, so the history itself may come from anybody. An *api.VerifyError says no; any other error, that it could not be
// seen now.
func (p *pinned) verify(
	ctx context.Context, c Coordinator, request *api.CertificateRequest, answer *api.CertificateResponse,
) error {
	if answer.Evidence == nil {
		return &api.VerifyError{Check: "evidence", Err: errors.New("the answer has none, and this pod is pinned")}
	}
	data, err := answer.ReportData(request)
	if err != nil {
		return &api.VerifyError{Check: "answer", Err: err}
	}
	claims, err := p.validator.Validate(ctx, *answer.Evidence, data)
	if _, rejected := errors.AsType[*attestation.Rejected](err); rejected {
		return &api.VerifyError{Check: "evidence", Err: err}
	}
	if err != nil {
		return fmt.Errorf("judge the Coordinator's evidence: %w", err)
	}
	if claims.PolicyHash != p.PolicyHash {
		return &api.VerifyError{
			Check: "policy hash", Err: fmt.Errorf("it is %s, want %s, that of the pin", claims.PolicyHash, p.PolicyHash),
		}
	}
	nonce := make([]byte, api.NonceSize)
	if _, err := rand.Read(nonce); err != nil {
		return fmt.Errorf("make a nonce: %w", err)
	}
	told, err := c.Attest(ctx, nonce)
	if err != nil {
		return fmt.Errorf("get the history of manifests: %w", err)
	}
	return p.verifyHistory(told.History, answer.TransitionHash)
}

func (p *pinned) verifyHistory(entries []api.HistoryEntry, transitionHash []byte) error {
	history, err := api.VerifyHistory(entries)
	if err != nil {
		return &api.VerifyError{Check: "history", Err: err}
	}
	if len(history) == 0 {
		return &api.VerifyError{Check: "history", Err: errors.New("it is empty")}
	}
	last := history[len(history)-1]
	if !bytes.Equal(last.Hash[:], transitionHash) {
		return &api.VerifyError{
			Check: "history", Err: fmt.Errorf("it ends with transition %x, the certificate is of %x", last.Hash, transitionHash),
		}
	}
	if err := p.CheckOwners(history); err != nil {
		return &api.VerifyError{Check: "workload owners", Err: err}
	}
	if last.Manifest.Policies[p.PolicyHash].Role != manifest.RoleCoordinator {
		return &api.VerifyError{
			Check: "policy hash", Err: fmt.Errorf("%s has no role %q in the manifest in force", p.PolicyHash, manifest.RoleCoordinator),
		}
	}
	return nil
}
