package api

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/manifest"
)

// Check is one thing that a verification looked at. The zero value has not passed.
type Check struct {
	// Name is what was checked, as in VerifyError.Check.
	Name string `json:"check"`
	// Of tells checks of one name apart: a field of the evidence, a manifest of the history. Often empty.
	Of string `json:"of,omitempty"`
	// Want is what it must be, Got what it is.
	Want string `json:"want"`
	Got  string `json:"got"`
	OK   bool   `json:"ok"`
}

// check notes what was checked. The error is nil where err is, and ends the verification where it is not: so a check cannot
// be listed as passed and have failed, nor the other way round.
func (v *Verified) check(c Check, err error) error {
	c.OK = err == nil
	v.Checks = append(v.Checks, c)
	if err == nil {
		return nil
	}
	return &VerifyError{Check: c.Name, Err: err, Checks: v.Checks}
}

func failUnless(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// state is what a Coordinator says it is doing.
func (r *AttestResponse) state() string {
	if r.Recovery != nil {
		return "needs recovery"
	}
	return "serving"
}

// Names of checks that a caller looks for.
const (
	CheckEvidence       = "evidence"
	CheckActiveManifest = "active manifest"
)

// judge has the validator judge the evidence, and lists each field that the accepting reference value was compared with.
func (v *Verified) judge(
	ctx context.Context, validator attestation.Inspector, evidence attestation.Evidence, data attestation.ReportData,
) error {
	claims, err := validator.Validate(ctx, evidence, data)
	if rejected, ok := errors.AsType[*attestation.Rejected](err); ok {
		return v.check(Check{Name: CheckEvidence, Of: rejected.Field, Want: rejected.Want, Got: rejected.Got}, err)
	}
	if err != nil {
		return fmt.Errorf("judge the Coordinator's evidence: %w", err)
	}
	v.Claims = claims
	fields, path := accepted(validator.Inspect(ctx, evidence, data), claims.Platform)
	if err := v.check(Check{
		Name: CheckEvidence,
		Want: "signed under the platform's root, over this answer, and accepted by one of the manifest's reference values",
		Got:  fmt.Sprintf("platform %s, accepted by %s", claims.Platform, path),
	}, failUnless(path != "", "no reference value is right in all fields")); err != nil {
		return err
	}
	v.Reference = path
	values := make(map[string]string)
	decoded, _ := DecodeEvidence(evidence) // for people only: what cannot be shown was judged all the same
	for _, f := range decoded {
		values[f.Name] = f.Value
	}
	sum := data.Bytes()
	for _, f := range fields {
		c := Check{Name: CheckEvidence, Of: f.Field, Want: "as " + path + " and the platform want it", Got: values[f.Field]}
		switch f.Field {
		case "REPORT_DATA", "REPORTDATA":
			c.Want = hex.EncodeToString(sum[:])
		}
		if c.Got == "" {
			c.Got = "verified"
		}
		if err := v.check(c, nil); err != nil { // accepted says that none is wrong
			return err
		}
	}
	return nil
}

// accepted is what the first reference value that is right in all fields was compared with. Without one there is no path.
func accepted(all [][]attestation.Comparison, platform attestation.Platform) ([]attestation.Comparison, string) {
	for i, fields := range all {
		right := len(fields) > 0
		for _, f := range fields {
			right = right && f.Wrong == nil
		}
		if right {
			return fields, ReferencePath(platform, i)
		}
	}
	return nil, ""
}

// ReferencePath is where a manifest has the reference value number i of a platform.
func ReferencePath(platform attestation.Platform, i int) string {
	list := map[attestation.Platform]string{
		attestation.SNP: "SNP", attestation.TDX: "TDX", attestation.Simulated: "Simulated",
	}[platform]
	return fmt.Sprintf("ReferenceValues.%s[%d]", list, i)
}

// DecodeEvidence takes evidence apart for people, whatever it says. The parsers of certificates are a library's, and the
// bytes anybody's, so a panic is an error.
func DecodeEvidence(e attestation.Evidence) (fields []attestation.Field, err error) {
	defer func() {
		if p := recover(); p != nil {
			fields, err = nil, fmt.Errorf("it cannot be read: a panic: %v", p)
		}
	}()
	switch e.Platform {
	case attestation.SNP, attestation.Simulated:
		return snp.Decode(e)
	case attestation.TDX:
		return tdx.Decode(e)
	default:
		return nil, fmt.Errorf("evidence of platform %q is unknown, want %s, %s or %s",
			e.Platform, attestation.SNP, attestation.TDX, attestation.Simulated)
	}
}

// verifyHistory is VerifyHistory, one check for each step.
func (v *Verified) verifyHistory(entries []HistoryEntry) error {
	var before *manifest.Transition
	for i, e := range entries {
		t, err := e.after(before)
		c := Check{Name: "history", Of: fmt.Sprintf("manifest %d of %d", i+1, len(entries)), Want: "a manifest, signed by its own owners"}
		switch {
		case before != nil:
			c.Want = fmt.Sprintf("signed by %d of the %d owners of manifest %d, with the same seed-share owners",
				before.Manifest.WorkloadOwnerThreshold, len(before.Manifest.WorkloadOwnerKeys), i)
		case err == nil && len(t.Manifest.WorkloadOwnerKeys) == 0:
			c.Want = "no signature, as it has no owners"
		case err == nil:
			c.Want = fmt.Sprintf("signed by %d of its own %d owners", t.Manifest.WorkloadOwnerThreshold, len(t.Manifest.WorkloadOwnerKeys))
		}
		if err != nil {
			c.Got = err.Error()
			return v.check(c, fmt.Errorf("%s: %w", c.Of, err))
		}
		c.Got = fmt.Sprintf("transition %x, signed by %d", t.Hash, len(t.Signers()))
		if err := v.check(c, nil); err != nil {
			return err
		}
		v.History = append(v.History, t)
		v.TransitionHash = t.Hash
		before = t
	}
	return nil
}

// parseCA reads a self-signed CA.
func (v *Verified) parseCA(name string, der []byte) (*x509.Certificate, error) {
	c := Check{Name: name, Want: "a self-signed CA", Got: fmt.Sprintf("SHA-256 %x", sha256.Sum256(der))}
	ca, err := x509.ParseCertificate(der)
	if err == nil {
		switch signed := ca.CheckSignatureFrom(ca); {
		case !ca.IsCA:
			err = errors.New("it is not a CA")
		case signed != nil:
			err = fmt.Errorf("it is not self-signed: %w", signed)
		}
	}
	if err := v.check(c, err); err != nil {
		return nil, err
	}
	return ca, nil
}
