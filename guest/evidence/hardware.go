package evidence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/attestation/tsm"
)

// The names of sources of evidence, as --tee takes them.
const (
	// Auto takes what is there. It is looked for in a fixed order, and the kernel says what it is: nothing is guessed.
	Auto = "auto"
	// FromSocket is somebody in the image who listens on Socket.
	FromSocket = "socket"
	// FromSNP and FromTDX are this guest's own hardware.
	FromSNP = string(attestation.SNP)
	FromTDX = string(attestation.TDX)
)

// NewIssuer finds the guest's source of evidence by name: Auto, which "" stands for, FromSocket, FromSNP or FromTDX. Auto
// tries Socket, then what Hardware tries. The error is a *NameError for any other name and a *NotFoundError when nothing answers.
func NewIssuer(tee string) (attestation.Issuer, error) {
	switch tee {
	case "", Auto:
		issuer, err := newSocketIssuer(Socket)
		if err == nil {
			return issuer, nil
		}
		return (&search{missing: []Missing{{Socket, err}}}).hardware(Auto)
	case FromSocket:
		issuer, err := newSocketIssuer(Socket)
		if err != nil {
			return nil, &NotFoundError{TEE: tee, Missing: []Missing{{Socket, err}}}
		}
		return issuer, nil
	case FromSNP, FromTDX:
		return Hardware(tee)
	default:
		return nil, &NameError{Name: tee, Want: []string{Auto, FromSocket, FromSNP, FromTDX}}
	}
}

// Hardware finds this guest's own TEE by name: Auto, FromSNP or FromTDX. It tries configfs-tsm, whose provider names the
// platform, then the device /dev/sev-guest, which only SEV-SNP has. Errors are as for NewIssuer. Requests are made one at a
// time, at a pace that the hardware bears.
func Hardware(tee string) (attestation.Issuer, error) {
	switch tee {
	case Auto, FromSNP, FromTDX:
		return new(search).hardware(tee)
	default:
		return nil, &NameError{Name: tee, Want: []string{Auto, FromSNP, FromTDX}}
	}
}

// Late is a source that find is asked for at each request until there is one. Whoever asks meanwhile is told why there is none.
func Late(find func() (attestation.Issuer, error)) attestation.Issuer { return &late{find: find} }

type late struct {
	find func() (attestation.Issuer, error)

	mu     sync.Mutex
	issuer attestation.Issuer // nil until there is one
}

// Issue implements attestation.Issuer.
func (l *late) Issue(ctx context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	issuer, err := l.found()
	if err != nil {
		return attestation.Evidence{}, err
	}
	return issuer.Issue(ctx, data)
}

func (l *late) found() (attestation.Issuer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.issuer == nil {
		issuer, err := l.find()
		if err != nil {
			return nil, err
		}
		l.issuer = issuer
	}
	return l.issuer, nil
}

// A search remembers where it found nothing.
type search struct {
	missing []Missing
	// What the kernel has, for tests to replace.
	open       func() (*tsm.Source, error)
	openDevice func() (attestation.Issuer, error)
}

func (s *search) hardware(tee string) (attestation.Issuer, error) {
	if s.open == nil {
		s.open, s.openDevice = tsm.Open, snp.NewDeviceIssuer
	}
	issuer, err := s.configfs(tee)
	if err == nil {
		return limit(issuer), nil
	}
	s.missing = append(s.missing, Missing{tsm.Path, err})
	if tee != FromTDX {
		issuer, err := s.openDevice()
		if err == nil {
			return limit(issuer), nil
		}
		s.missing = append(s.missing, Missing{snp.DevicePath, err})
	}
	return nil, &NotFoundError{TEE: tee, Missing: s.missing}
}

func (s *search) configfs(tee string) (attestation.Issuer, error) {
	source, err := s.open()
	if err != nil {
		return nil, err
	}
	provider := source.Provider()
	switch {
	case provider == tsm.SNP && tee != FromTDX:
		return snp.NewIssuer(source)
	case provider == tsm.TDX && tee != FromSNP:
		return tdx.NewIssuer(source)
	case provider == tsm.SNP || provider == tsm.TDX:
		return nil, fmt.Errorf("the provider is %s, and %s was asked for", provider, tee)
	default:
		return nil, fmt.Errorf("the provider is %q, want %s or %s", provider, tsm.SNP, tsm.TDX)
	}
}

// NameError says that there is no source of evidence of that name.
type NameError struct {
	Name string
	Want []string
}

func (e *NameError) Error() string {
	return fmt.Sprintf("no source of evidence is called %q, want %s", e.Name, strings.Join(e.Want, ", "))
}

// ExitCode says that this is the caller's mistake.
func (*NameError) ExitCode() int { return 2 }

// Missing is a place where a source of evidence was looked for, and why there is none.
type Missing struct {
	Where string
	Err   error
}

// NotFoundError says that this is no podVM of ours, or that the image is still starting.
type NotFoundError struct {
	TEE     string // the name that was asked for
	Missing []Missing
}

func (e *NotFoundError) Error() string {
	var places []string
	for _, m := range e.Missing {
		places = append(places, fmt.Sprintf("%s (%v)", m.Where, m.Err))
	}
	return fmt.Sprintf("no source of evidence %q found: looked for %s", e.TEE, strings.Join(places, ", "))
}

// Unwrap returns the reasons.
func (e *NotFoundError) Unwrap() []error {
	var errs []error
	for _, m := range e.Missing {
		errs = append(errs, m.Err)
	}
	return errs
}

// Hint says what should have been there.
func (e *NotFoundError) Hint() string {
	if errors.Is(e, errNoSocket) {
		return "in a pod, podvm-attest.socket (in tests: simtee serve) listens on " + Socket + " in the pod's network namespace"
	}
	return "the kernel needs CONFIG_TSM_REPORTS and SEV_GUEST or TDX_GUEST_DRIVER, configfs mounted, and the caller root"
}
