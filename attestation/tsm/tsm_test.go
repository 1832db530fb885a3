package tsm_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"portcullis.dev/portcullis/attestation/tsm"
	"portcullis.dev/portcullis/tests/faketsm"
)

// echo is hardware whose report is the report data.
func echo(in []byte) (out, aux []byte, err error) { return in, []byte("certificates"), nil }

// source is a source on that kernel that does not wait between attempts, and notes how long it would have.
func source(t *testing.T, k *faketsm.Kernel) (s *tsm.Source, waits *[]time.Duration) {
	t.Helper()
	s, err := tsm.Through(k)
	if err != nil {
		t.Fatal(err)
	}
	waits = new([]time.Duration)
	tsm.SetWait(s, func(_ context.Context, d time.Duration) error {
		*waits = append(*waits, d)
		return nil
	})
	return s, waits
}

func data(b byte) (d [64]byte) {
	copy(d[:], bytes.Repeat([]byte{b}, 64))
	return d
}

func TestAReportComesBack(t *testing.T) {
	for _, tc := range []struct {
		provider string
		request  tsm.Request
		aux      string
	}{
		{tsm.SNP, tsm.Request{ReportData: data(1), Privileged: true, Auxiliary: true}, "certificates"},
		{tsm.TDX, tsm.Request{ReportData: data(2)}, ""},
	} {
		k := &faketsm.Kernel{Provider: tc.provider, Report: echo}
		s, _ := source(t, k)
		if s.Provider() != tc.provider {
			t.Errorf("the provider is %q, want %q", s.Provider(), tc.provider)
		}
		out, aux, err := s.Get(t.Context(), tc.request)
		if err != nil || !bytes.Equal(out, tc.request.ReportData[:]) || string(aux) != tc.aux {
			t.Errorf("%s: got %x, %s, %v", tc.provider, out, aux, err)
		}
		if now, _, _ := k.Requests(); now != 0 {
			t.Errorf("%s: %d requests are left", tc.provider, now)
		}
	}
}

func TestRequestsAreMadeOneByOne(t *testing.T) {
	k := &faketsm.Kernel{Provider: tsm.TDX, Report: echo}
	s, waits := source(t, k)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			d := data(byte(i + 1))
			if out, _, err := s.Get(t.Context(), tsm.Request{ReportData: d}); err != nil || !bytes.Equal(out, d[:]) {
				t.Errorf("got %x, %v, want %x", out, err, d)
			}
		})
	}
	all.Wait()
	if now, _, most := k.Requests(); now != 0 || most != 1 {
		t.Errorf("there were %d requests at a time, and %d are left; want 1 and none", most, now)
	}
	if len(*waits) > 0 {
		t.Errorf("it took other attempts: %v", *waits)
	}
}

func TestWhoWaitsForHisTurnHasNotBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held := make(chan struct{})
		k := &faketsm.Kernel{Provider: tsm.TDX, Report: echo}
		k.Meddle = func(string, func(string, []byte)) { <-held }
		s, _ := source(t, k)
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if _, _, err := s.Get(t.Context(), tsm.Request{ReportData: data(1)}); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if now, made, _ := k.Requests(); now != 1 || made != 2 { // one was made to ask for the provider
			t.Errorf("while the first is served, there are %d requests, of %d so far; want 1 of 2", now, made)
		}
		close(held)
		all.Wait()
	})
}

func TestWhatPassesIsTriedAgain(t *testing.T) {
	for _, spoiled := range []error{syscall.EBUSY, syscall.EINTR, syscall.EWOULDBLOCK} {
		failures := 4
		k := &faketsm.Kernel{Provider: tsm.SNP, Report: func(in []byte) ([]byte, []byte, error) {
			if failures--; failures >= 0 {
				return nil, nil, spoiled
			}
			return echo(in)
		}}
		s, waits := source(t, k)
		if _, _, err := s.Get(t.Context(), tsm.Request{ReportData: data(1), Privileged: true, Auxiliary: true}); err != nil {
			t.Errorf("%v: %v", spoiled, err)
		}
		if len(*waits) != 4 || (*waits)[3] != 8*(*waits)[0] {
			t.Errorf("%v: it waited %v, want four times, twice as long each", spoiled, *waits)
		}
		failures = 5
		if _, _, err := s.Get(t.Context(), tsm.Request{ReportData: data(1)}); !errors.Is(err, spoiled) {
			t.Errorf("%v five times: got %v", spoiled, err)
		}
	}
}

func TestWhatDoesNotPassIsNotTriedAgain(t *testing.T) {
	for _, broken := range []error{syscall.EIO, syscall.EINVAL, syscall.ETIMEDOUT, syscall.ENXIO, syscall.EACCES} {
		asked := 0
		k := &faketsm.Kernel{Provider: tsm.SNP, Report: func([]byte) ([]byte, []byte, error) {
			asked++
			return nil, nil, broken
		}}
		s, _ := source(t, k)
		if _, _, err := s.Get(t.Context(), tsm.Request{ReportData: data(1)}); !errors.Is(err, broken) || asked != 1 {
			t.Errorf("%v: got %v after %d attempts, want it after one", broken, err, asked)
		}
		if now, _, _ := k.Requests(); now != 0 {
			t.Errorf("%v: %d requests are left", broken, now)
		}
	}
}

// Another process writes to the request: it may be its report data that was signed.
func TestAnotherProcessInTheRequestIsNoticed(t *testing.T) {
	meddling := 2
	k := &faketsm.Kernel{Provider: tsm.SNP, Report: echo}
	k.Meddle = func(attribute string, write func(string, []byte)) {
		if attribute == "inblob" && meddling > 0 {
			meddling--
			write("inblob", bytes.Repeat([]byte{0xee}, 64))
		}
	}
	s, waits := source(t, k)
	d := data(1)
	request := tsm.Request{ReportData: d, Privileged: true, Auxiliary: true}
	if out, _, err := s.Get(t.Context(), request); err != nil || !bytes.Equal(out, d[:]) || len(*waits) != 2 {
		t.Errorf("got %x, %v after %d more attempts, want the report after two", out, err, len(*waits))
	}
	meddling = 100
	if _, _, err := s.Get(t.Context(), request); err == nil || !strings.Contains(err.Error(), "report generation was") {
		t.Errorf("somebody who never stops: got %v", err)
	}
	if now, _, _ := k.Requests(); now != 0 {
		t.Errorf("%d requests are left", now)
	}
}

func TestAnEmptyReportIsRefused(t *testing.T) {
	nothing := func([]byte) ([]byte, []byte, error) { return nil, nil, nil }
	s, _ := source(t, &faketsm.Kernel{Provider: tsm.TDX, Report: nothing})
	if _, _, err := s.Get(t.Context(), tsm.Request{ReportData: data(1)}); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("got %v", err)
	}
}

func TestAProviderThatChangesIsRefused(t *testing.T) {
	k := &faketsm.Kernel{Provider: tsm.TDX, Report: echo}
	s, _ := source(t, k)
	k.Provider = tsm.SNP
	if _, _, err := s.Get(t.Context(), tsm.Request{ReportData: data(1)}); err == nil ||
		!strings.Contains(err.Error(), `the provider is "sev_guest" now`) {
		t.Errorf("got %v", err)
	}
}

// Under an SVSM, the guest's kernel is not at VMPL 0.
func TestAGuestAboveVMPL0HasNoReports(t *testing.T) {
	s, _ := source(t, &faketsm.Kernel{Provider: tsm.SNP, Floor: 2, Report: echo})
	if _, _, err := s.Get(t.Context(), tsm.Request{ReportData: data(1), Privileged: true}); !errors.Is(err, syscall.EINVAL) ||
		!strings.Contains(err.Error(), "privlevel") {
		t.Errorf("got %v", err)
	}
}

func TestACallerWhoGoesDoesNotWaitForTheHardware(t *testing.T) {
	begun, end := make(chan struct{}), make(chan struct{})
	k := &faketsm.Kernel{Provider: tsm.TDX, Report: func(in []byte) ([]byte, []byte, error) {
		begun <- struct{}{}
		<-end
		return echo(in)
	}}
	s, _ := source(t, k)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 2)
	ask := func() {
		_, _, err := s.Get(ctx, tsm.Request{ReportData: data(1)})
		failed <- err
	}
	go ask()
	<-begun
	go ask() // waits for its turn
	begin := time.Now()
	cancel()
	for range 2 {
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if took := time.Since(begin); took > 100*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	// What was begun is ended, and then the next one is served.
	go func() { end <- struct{}{}; <-begun; end <- struct{}{} }()
	if _, _, err := s.Get(t.Context(), tsm.Request{ReportData: data(1)}); err != nil {
		t.Error(err)
	}
}

func TestNoProviderIsAnErrorThatSaysSo(t *testing.T) {
	for name, tc := range map[string]struct {
		kernel *faketsm.Kernel
		want   error
	}{
		"no driver": {&faketsm.Kernel{}, syscall.ENXIO},
		"not root":  {&faketsm.Kernel{Provider: tsm.SNP, Denied: syscall.EACCES}, fs.ErrPermission},
		"read-only": {&faketsm.Kernel{Provider: tsm.SNP, Denied: syscall.EROFS}, syscall.EROFS},
	} {
		if _, err := tsm.Through(tc.kernel); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tsm.Path) {
			t.Errorf("%s: got %v, want %v and the path in it", name, err, tc.want)
		}
	}
}

func TestAMachineWithoutConfigfsSaysSo(t *testing.T) {
	s, err := tsm.Open()
	if err == nil {
		t.Skipf("SKIPPED: this machine is a guest with the provider %s", s.Provider())
	}
	if !strings.Contains(err.Error(), tsm.Path) {
		t.Errorf("got %v, want the path in it", err)
	}
}
