package evidence_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tsm"
	"portcullis.dev/portcullis/guest/evidence"
	"portcullis.dev/portcullis/tests/faketsm"
)

func noConfigfs() (*tsm.Source, error) { return nil, errors.New("ENOENT") }

// deviceOf is /dev/sev-guest as far as Hardware knows it.
func deviceOf(issuer attestation.Issuer) func() (attestation.Issuer, error) {
	return func() (attestation.Issuer, error) { return issuer, nil }
}

// A guest's kernel is taken for what it says it is, and for nothing that --tee does not name.
func TestTheTEEIsWhatTheKernelNames(t *testing.T) {
	noDevice := errors.New("no such device")
	for _, tc := range []struct {
		name     string
		tee      string
		provider string // empty: there is no configfs-tsm
		device   bool
		found    string // text in an error of the issuer that was found
		missing  []string
	}{
		{"SNP", "auto", "sev_guest", false, "sev_guest", nil},
		{"SNP by name", "snp", "sev_guest", false, "sev_guest", nil},
		{"TDX", "auto", "tdx_guest", false, "tdx_guest", nil},
		{"TDX by name", "tdx", "tdx_guest", false, "tdx_guest", nil},
		{"both interfaces of SNP", "auto", "sev_guest", true, "sev_guest", nil},
		{"old kernel", "auto", "", true, "device", nil},
		{"old kernel by name", "snp", "", true, "device", nil},
		{"TDX on an old kernel", "tdx", "", true, "", []string{tsm.Path}},
		{"TDX for SNP", "snp", "tdx_guest", false, "", []string{"tdx_guest, and snp was asked for", snp.DevicePath}},
		{"SNP for TDX", "tdx", "sev_guest", true, "", []string{"sev_guest, and tdx was asked for"}},
		{"another platform", "auto", "arm_cca_guest", false, "", []string{
			`"arm_cca_guest", want sev_guest or tdx_guest`, snp.DevicePath,
		}},
		{"nothing", "auto", "", false, "", []string{tsm.Path, "ENOENT", snp.DevicePath, "no such device"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			issuer, err := evidence.HardwareOn(tc.tee, func() (*tsm.Source, error) {
				if tc.provider == "" {
					return noConfigfs()
				}
				return tsm.Through(&faketsm.Kernel{Provider: tc.provider, Report: func([]byte) ([]byte, []byte, error) {
					return nil, nil, syscall.EIO
				}})
			}, func() (attestation.Issuer, error) {
				if !tc.device {
					return nil, noDevice
				}
				return issuerFunc(func(context.Context, attestation.ReportData) (attestation.Evidence, error) {
					return attestation.Evidence{}, errors.New("this is the device")
				}), nil
			})
			if tc.found != "" {
				if err != nil {
					t.Fatal(err)
				}
				if _, err := issuer.Issue(t.Context(), attestation.NewReportData("test")); !strings.Contains(err.Error(), tc.found) {
					t.Errorf("found the issuer that says %v, want %s", err, tc.found)
				}
				return
			}
			e, ok := errors.AsType[*evidence.NotFoundError](err)
			if !ok || issuer != nil || e.Hint() == "" {
				t.Fatalf("got %v, %v; want that nothing was found", issuer, err)
			}
			for _, text := range tc.missing {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("got %v, want %q in it", err, text)
				}
			}
		})
	}
}

func TestATEEThatComesLateIsFound(t *testing.T) {
	var there attestation.Issuer
	looked := 0
	issuer := evidence.Late(func() (attestation.Issuer, error) {
		looked++
		if there == nil {
			return nil, errors.New("nothing there")
		}
		return there, nil
	})
	for range 2 {
		if _, err := issuer.Issue(t.Context(), attestation.NewReportData("test")); err == nil || err.Error() != "nothing there" {
			t.Errorf("got %v", err)
		}
	}
	there = &echo{}
	for range 2 {
		if _, err := issuer.Issue(t.Context(), attestation.NewReportData("test")); err != nil {
			t.Error(err)
		}
	}
	if looked != 3 {
		t.Errorf("it was looked for %d times, want until it was found", looked)
	}
}

// This machine is no guest, and has no socket: all three are named.
func TestNothingThereNamesWhatWasLookedFor(t *testing.T) {
	if _, err := evidence.Hardware(evidence.Auto); err == nil {
		t.Skip("SKIPPED: this machine has a TEE")
	}
	for _, tc := range []struct {
		tee   string
		where []string
	}{
		{"", []string{evidence.Socket, tsm.Path, snp.DevicePath}},
		{"auto", []string{evidence.Socket, tsm.Path, snp.DevicePath}},
		{"socket", []string{evidence.Socket}},
		{"snp", []string{tsm.Path, snp.DevicePath}},
		{"tdx", []string{tsm.Path}},
	} {
		_, err := evidence.NewIssuer(tc.tee)
		e, ok := errors.AsType[*evidence.NotFoundError](err)
		if !ok {
			t.Errorf("%q: got %v", tc.tee, err)
			continue
		}
		var where []string
		for _, m := range e.Missing {
			where = append(where, m.Where)
			if m.Err == nil || !strings.Contains(err.Error(), m.Where+" ("+m.Err.Error()) {
				t.Errorf("%q: the error does not say why there is no %s: %v", tc.tee, m.Where, err)
			}
		}
		if !slices.Equal(where, tc.where) {
			t.Errorf("%q: looked for %q, want %q", tc.tee, where, tc.where)
		}
		if names := strings.Contains(e.Hint(), evidence.Socket); names != slices.Contains(tc.where, evidence.Socket) {
			t.Errorf("%q: the hint is %q", tc.tee, e.Hint())
		}
	}
}

func TestUnknownSourceIsAUsageError(t *testing.T) {
	for _, find := range []func(string) (attestation.Issuer, error){evidence.NewIssuer, evidence.Hardware} {
		for _, name := range []string{"configfs", "SNP", "simulated", " snp"} {
			_, err := find(name)
			e, ok := errors.AsType[*evidence.NameError](err)
			if !ok || e.ExitCode() != 2 || !strings.Contains(err.Error(), `"`+name+`", want auto, `) {
				t.Errorf("got %v", err)
			}
		}
	}
	for _, name := range []string{"", "socket"} {
		if _, err := evidence.Hardware(name); err == nil || !strings.Contains(err.Error(), "want auto, snp, tdx") {
			t.Errorf("hardware %q: got %v", name, err)
		}
	}
}

func TestTheHardwareIsAskedAtAPaceThatItBears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []time.Duration
		begin := time.Now()
		issuer, err := evidence.HardwareOn("auto", noConfigfs, deviceOf(issuerFunc(func(context.Context, attestation.ReportData) (attestation.Evidence, error) {
			asked = append(asked, time.Since(begin))
			return attestation.Evidence{}, nil
		})))
		if err != nil {
			t.Fatal(err)
		}
		issue := func(n int) {
			for range n {
				if _, err := issuer.Issue(t.Context(), attestation.NewReportData("test")); err != nil {
					t.Error(err)
				}
			}
		}
		issue(12)
		for i, at := range asked {
			if want := max(0, time.Duration(i-7)*time.Second); at != want {
				t.Errorf("request %d was made after %v, want %v", i, at, want)
			}
		}
		// After a rest there is a reserve again, and no more than that.
		time.Sleep(time.Hour)
		asked, begin = nil, time.Now()
		issue(9)
		if asked[7] != 0 || asked[8] != time.Second {
			t.Errorf("after a rest, the requests were made after %v", asked)
		}
		// Whoever has no time for his turn goes, and the hardware is not asked.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		asked = nil
		_, err = issuer.Issue(ctx, attestation.NewReportData("test"))
		if !errors.Is(err, context.DeadlineExceeded) || asked != nil {
			t.Errorf("got %v after %d requests", err, len(asked))
		}
	})
}
