package hostdata

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/tests/simtee"
)

const allowed = "panic=1 " + Simulated + "\n"

var digest = attestation.PolicyHash{1, 2, 3}

func pretended(t *testing.T, hostData attestation.PolicyHash) attestation.Issuer {
	t.Helper()
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	return world.Machine(simtee.Measurement{}, hostData)
}

func noTDX([64]byte) ([]byte, error) { return nil, os.ErrNotExist }

func nothing() (attestation.Issuer, error) { return nil, &evidence.NotFoundError{TEE: "snp"} }

func is(i attestation.Issuer) func() (attestation.Issuer, error) {
	return func() (attestation.Issuer, error) { return i, nil }
}

func TestTheHardwareIsAsked(t *testing.T) {
	forbidden := func() (attestation.Issuer, error) {
		t.Error("the pretended TEE was asked, though there is a real one")
		return nil, errors.New("no")
	}
	for _, line := range []string{"panic=1", allowed} {
		got, err := sources{noTDX, is(pretended(t, digest)), forbidden}.read(context.Background(), line)
		if err != nil || got.Digest != digest || !got.Measured() {
			t.Errorf("%+v, %v", got, err)
		}
	}
	got, err := sources{noTDX, is(pretended(t, attestation.PolicyHash{})), forbidden}.read(context.Background(), "")
	if err != nil || got.Digest.Valid() || !got.Measured() {
		t.Errorf("a host that committed to nothing: %+v, %v", got, err)
	}
}

func TestWithoutATEETheWordDecides(t *testing.T) {
	for _, line := range []string{
		"", "panic=1", Simulated + "1", "x" + Simulated, "podvm.allow_simulated_tee=0", "podvm.allow_simulated_tee", strings.ToUpper(Simulated),
	} {
		_, err := sources{noTDX, nothing, is(pretended(t, digest))}.read(context.Background(), line)
		if _, missing := errors.AsType[*evidence.NotFoundError](err); !missing {
			t.Errorf("%q: error %v, want that no TEE was found", line, err)
		}
	}
	got, err := sources{noTDX, nothing, is(pretended(t, digest))}.read(context.Background(), allowed)
	if err != nil || got.Digest != digest || !got.Measured() {
		t.Errorf("with a pretended TEE: %+v, %v", got, err)
	}
	for _, without := range []func() (attestation.Issuer, error){nothing, is(refuses{})} {
		got, err = sources{noTDX, nothing, without}.read(context.Background(), allowed)
		if err != nil || got.Measured() {
			t.Errorf("without one: %+v, %v", got, err)
		}
	}
	if _, err := (sources{noTDX, nothing, is(stale{pretended(t, digest)})}).read(context.Background(), allowed); err == nil {
		t.Error("an old report of a pretended TEE is believed")
	}
}

func TestATEEThatFailsIsNotMissing(t *testing.T) {
	broken := errors.New("broken")
	fails := func() (attestation.Issuer, error) { return nil, broken }
	if _, err := (sources{noTDX, is(refuses{}), is(pretended(t, digest))}).read(context.Background(), allowed); err == nil {
		t.Error("SNP without a report: the pretended TEE was asked")
	}
	if _, err := (sources{noTDX, fails, is(pretended(t, digest))}).read(context.Background(), allowed); !errors.Is(err, broken) {
		t.Errorf("SNP: error %v", err)
	}
	tdx := func([64]byte) ([]byte, error) { return nil, broken }
	if _, err := (sources{tdx, is(pretended(t, digest)), fails}).read(context.Background(), allowed); !errors.Is(err, broken) {
		t.Errorf("TDX: error %v", err)
	}
}

// refuses is podvm-attest on a machine without a TEE.
type refuses struct{}

func (refuses) Issue(context.Context, attestation.ReportData) (attestation.Evidence, error) {
	return attestation.Evidence{}, errors.New("no")
}

// stale answers with evidence about other report data.
type stale struct{ attestation.Issuer }

func (s stale) Issue(ctx context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	return s.Issuer.Issue(ctx, attestation.NewReportData("another"))
}

type forged struct{ e attestation.Evidence }

func (f forged) Issue(context.Context, attestation.ReportData) (attestation.Evidence, error) {
	return f.e, nil
}

func TestAnOldReportIsRefused(t *testing.T) {
	for name, issuer := range map[string]attestation.Issuer{
		"another's": stale{pretended(t, digest)},
		"no report": forged{attestation.Evidence{Platform: attestation.SNP}},
		"zeros":     forged{attestation.Evidence{Platform: attestation.SNP, Report: make([]byte, 1184)}},
	} {
		if got, err := (sources{noTDX, is(issuer), nothing}).read(context.Background(), ""); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// tdreport is one as the TDX module makes it.
func tdreport(data [64]byte, change func(b []byte)) []byte {
	b := make([]byte, 1024)
	b[0] = 0x81
	copy(b[128:], data[:])
	copy(b[576:], digest[:])
	change(b)
	return b
}

func TestTDREPORT(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		err    string
	}{
		{"as made", func(b []byte) []byte { return b }, ""},
		{"of an enclave", func(b []byte) []byte { b[0] = 0; return b }, "of type 0x0"},
		{"another's", func(b []byte) []byte { b[128] ^= 1; return b }, "other report data"},
		{"padded", func(b []byte) []byte { b[576+47] = 1; return b }, "last 16 bytes"},
		{"padded at once", func(b []byte) []byte { b[576+32] = 1; return b }, "last 16 bytes"},
		{"cut", func(b []byte) []byte { return b[:1023] }, "1023 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tdx := func(data [64]byte) ([]byte, error) { return c.change(tdreport(data, func([]byte) {})), nil }
			got, err := sources{tdx, nothing, nothing}.read(context.Background(), "")
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || got.Platform != attestation.TDX || got.Digest != digest {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}
