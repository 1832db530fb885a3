// Package hostdata asks this guest's own hardware what the host committed to when it launched the guest: HOSTDATA of AMD SEV-SNP,
// MRCONFIGID of Intel TDX. Whatever the host hands over later is compared with that.
//
// The answer is from the processor, by a way that the host cannot read or change: a report that the kernel fetches through a
// channel encrypted to the firmware (SNP), or one that the TDX module makes for this very guest (TDREPORT). A TDX quote would come by
// way of a service of the host's, and nothing here needs a signature: the guest asks about itself.
package hostdata

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/go-sev-guest/abi"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/evidence"
)

// Simulated is the word of the kernel's command line that lets a machine without a TEE go on, for tests. The command line is
// measured, so a podVM that attests has it only if its image was meant to.
const Simulated = "podvm.allow_simulated_tee=1"

// Commitment is what the host committed to.
type Commitment struct {
	// Platform is the hardware that says so; empty where nothing was measured, on a machine that Simulated is for.
	Platform attestation.Platform
	// Digest is the SHA-256 of the initdata; zero where the host committed to none.
	Digest attestation.PolicyHash
}

// Measured is true when a TEE, real or pretended, vouches for the digest, also for a digest of zero.
func (c Commitment) Measured() bool { return c.Platform != "" }

// Read asks the hardware. Without a TEE the error is an *evidence.NotFoundError, unless commandLine, the content of /proc/cmdline,
// has the word Simulated: then the pretended TEE of tests is asked, and where there is none either, nothing is measured.
func Read(ctx context.Context, commandLine string) (Commitment, error) {
	return sources{
		tdreport: guestReport,
		hardware: func() (attestation.Issuer, error) { return evidence.Hardware(evidence.FromSNP) },
		socket:   func() (attestation.Issuer, error) { return evidence.NewIssuer(evidence.FromSocket) },
	}.read(ctx, commandLine)
}

// sources are the kernel's, for tests to replace.
type sources struct {
	tdreport         func(data [64]byte) ([]byte, error)
	hardware, socket func() (attestation.Issuer, error)
}

func (s sources) read(ctx context.Context, commandLine string) (Commitment, error) {
	var nonce [64]byte
	rand.Read(nonce[:]) //nolint:errcheck // crashes rather than fail
	report, err := s.tdreport(nonce)
	switch {
	case err == nil:
		return fromTDREPORT(report, nonce)
	case !errors.Is(err, os.ErrNotExist):
		return Commitment{}, fmt.Errorf("ask the TDX module for a report: %w", err)
	}
	issuer, err := s.hardware()
	if err == nil {
		return fromSNP(ctx, issuer, nonce)
	}
	if _, missing := errors.AsType[*evidence.NotFoundError](err); !missing || !hasWord(commandLine, Simulated) {
		return Commitment{}, err
	}
	issuer, err = s.socket()
	if err != nil {
		return Commitment{}, nil
	}
	c, err := fromSNP(ctx, issuer, nonce)
	if _, answered := errors.AsType[*issueError](err); answered {
		return Commitment{}, nil // it is the image's own, and there is no TEE for it either
	}
	return c, err
}

// issueError says that there was no report, and not that there was a bad one.
type issueError struct{ error }

func (e *issueError) Unwrap() error { return e.error }

func hasWord(commandLine, word string) bool {
	for w := range strings.FieldsSeq(commandLine) {
		if w == word {
			return true
		}
	}
	return false
}

// fromSNP reads HOST_DATA (AMD 56860, table "ATTESTATION_REPORT structure"). The issuer has seen to it that the report is about the nonce.
func fromSNP(ctx context.Context, issuer attestation.Issuer, nonce [64]byte) (Commitment, error) {
	data, err := attestation.ParseReportData(nonce[:])
	if err != nil {
		return Commitment{}, err
	}
	e, err := issuer.Issue(ctx, data)
	if err != nil {
		return Commitment{}, &issueError{err}
	}
	report, err := abi.ReportToProto(e.Report)
	if err != nil {
		return Commitment{}, fmt.Errorf("read the report: %w", err)
	}
	if [64]byte(report.GetReportData()) != nonce {
		return Commitment{}, errors.New("the report is about other report data")
	}
	return Commitment{Platform: e.Platform, Digest: attestation.PolicyHash(report.GetHostData())}, nil
}
