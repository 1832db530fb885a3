package snp

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/client"
	labi "github.com/google/go-sev-guest/client/linuxabi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/tsm"
	"portcullis.dev/portcullis/tests/faketsm"
)

// about is a report as far as an issuer looks at it.
func about(data []byte) []byte {
	report := make([]byte, abi.ReportSize)
	copy(report[reportDataOffset:], data)
	return report
}

func throughConfigfs(t *testing.T, report func([]byte) ([]byte, []byte, error)) attestation.Issuer {
	t.Helper()
	source, err := tsm.Through(&faketsm.Kernel{Provider: tsm.SNP, Report: report})
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := NewIssuer(source)
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

func TestEvidenceIsTheKernelsReportAndTable(t *testing.T) {
	issuer := throughConfigfs(t, func(in []byte) ([]byte, []byte, error) { return about(in), []byte("table"), nil })
	data := attestation.NewReportData("test")
	want := data.Bytes()
	e, err := issuer.Issue(t.Context(), data)
	if err != nil || e.Platform != attestation.SNP || !bytes.Equal(e.Report, about(want[:])) ||
		string(e.Certificates) != "table" {
		t.Errorf("got %+v, %v", e, err)
	}
}

func TestAReportIsAskedForAtVMPL0(t *testing.T) {
	var written []string
	kernel := &faketsm.Kernel{
		Provider: tsm.SNP,
		Report:   func(in []byte) ([]byte, []byte, error) { return about(in), nil, nil },
		Meddle:   func(attribute string, _ func(string, []byte)) { written = append(written, attribute) },
	}
	source, err := tsm.Through(kernel)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := NewIssuer(source)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := issuer.Issue(t.Context(), attestation.NewReportData("test")); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(written, "privlevel") {
		t.Errorf("what was written to the request is %q, and no level of privilege", written)
	}
	kernel.Floor = 1
	if _, err := issuer.Issue(t.Context(), attestation.NewReportData("test")); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("where level 0 cannot be had: got %v", err)
	}
}

func TestAReportThatCannotBeTheGuestsIsRefused(t *testing.T) {
	other := attestation.NewReportData("other").Bytes()
	for name, tc := range map[string]struct {
		report func(in []byte) ([]byte, []byte, error)
		fault  string
	}{
		"empty":    {func([]byte) ([]byte, []byte, error) { return nil, nil, nil }, "the report is empty"},
		"short":    {func(in []byte) ([]byte, []byte, error) { return about(in)[1:], nil, nil }, "1183 bytes long, want"},
		"long":     {func(in []byte) ([]byte, []byte, error) { return append(about(in), 0), nil, nil }, "1185 bytes long, want"},
		"a prefix": {func(in []byte) ([]byte, []byte, error) { return in, nil, nil }, "64 bytes long, want 1184"},
		"other report data": {
			func([]byte) ([]byte, []byte, error) { return about(other[:]), nil, nil }, "about other report data",
		},
		"endless table": {
			func(in []byte) ([]byte, []byte, error) { return about(in), make([]byte, 1<<20), nil },
			"certificate table is 1048576 bytes",
		},
	} {
		e, err := throughConfigfs(t, tc.report).Issue(t.Context(), attestation.NewReportData("test"))
		if err == nil || !strings.Contains(err.Error(), tc.fault) || e.Report != nil {
			t.Errorf("%s: got %v, want %q", name, err, tc.fault)
		}
	}
}

func TestNoReportDataIsNotAsked(t *testing.T) {
	asked := false
	issuer := throughConfigfs(t, func(in []byte) ([]byte, []byte, error) {
		asked = true
		return about(in), nil, nil
	})
	if _, err := issuer.Issue(t.Context(), attestation.ReportData{}); err == nil || asked {
		t.Errorf("got %v; asked the hardware: %v", err, asked)
	}
}

func TestAnotherPlatformIsNoSource(t *testing.T) {
	source, err := tsm.Through(&faketsm.Kernel{Provider: tsm.TDX})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*tsm.Source{nil, source} {
		if _, err := NewIssuer(s); err == nil || !strings.Contains(err.Error(), tsm.SNP) {
			t.Errorf("got %v", err)
		}
	}
}

// device is /dev/sev-guest.
type device struct {
	mu       sync.Mutex
	open     int
	most     int
	opened   int
	failures []error // of requests, first to last
	table    []byte
	vmpls    []uint32
}

func (d *device) opener() (client.Device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open++
	d.opened++
	d.most = max(d.most, d.open)
	return d, nil
}

func (d *device) Open(string) error        { return nil }
func (d *device) Product() *spb.SevProduct { return nil }

func (d *device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open--
	return nil
}

func (d *device) Ioctl(_ uintptr, argument any) (uintptr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.failures) > 0 {
		err := d.failures[0]
		d.failures = d.failures[1:]
		if err != nil {
			return 0, err
		}
	}
	request := argument.(*labi.SnpUserGuestRequest)
	response := request.RespData.(*labi.SnpReportRespABI)
	switch r := request.ReqData.(type) {
	case *labi.SnpReportReqABI:
		d.vmpls = append(d.vmpls, r.Vmpl)
		copy(response.Data[:], about(r.ReportData[:]))
	case *labi.SnpExtendedReportReq:
		d.vmpls = append(d.vmpls, r.Data.Vmpl)
		if len(r.Certs) < len(d.table) {
			r.CertsLength = uint32(len(d.table))
			request.FwErr = uint64(abi.GuestRequestInvalidLength)
			return 0, syscall.EIO
		}
		copy(r.Certs, d.table)
		copy(response.Data[:], about(r.Data.ReportData[:]))
	}
	return 0, nil
}

func (d *device) issuer() attestation.Issuer {
	q := tsm.NewQueue()
	q.Wait = func(context.Context, time.Duration) error { return nil }
	return throughDevice(d.opener, q)
}

func TestTheDeviceGivesReportAndTable(t *testing.T) {
	d := &device{table: []byte("table")}
	want := attestation.NewReportData("test").Bytes()
	e, err := d.issuer().Issue(t.Context(), attestation.NewReportData("test"))
	if err != nil || !bytes.Equal(e.Report, about(want[:])) || string(e.Certificates) != "table" ||
		e.Platform != attestation.SNP {
		t.Errorf("got %+v, %v", e, err)
	}
	for _, vmpl := range d.vmpls {
		if vmpl != 0 {
			t.Errorf("a report was asked for at VMPL %d", vmpl)
		}
	}
	if d.open != 0 {
		t.Error("the device was left open")
	}
}

func TestAHostWithoutCertificatesIsNoHindrance(t *testing.T) {
	for name, failures := range map[string][]error{"none": nil, "no extended requests": {syscall.ENOTTY}} {
		d := &device{failures: failures}
		if e, err := d.issuer().Issue(t.Context(), attestation.NewReportData("test")); err != nil || len(e.Certificates) != 0 {
			t.Errorf("%s: got %d bytes of certificates, %v", name, len(e.Certificates), err)
		}
	}
}

func TestTheDeviceIsAskedAgainWhenItIsBusy(t *testing.T) {
	for _, busy := range []error{syscall.EBUSY, syscall.EINTR, syscall.EAGAIN} {
		d := &device{table: []byte("table"), failures: []error{busy, busy, nil, busy}}
		e, err := d.issuer().Issue(t.Context(), attestation.NewReportData("test"))
		if err != nil || string(e.Certificates) != "table" {
			t.Errorf("%v: got %q, %v", busy, e.Certificates, err)
		}
		d = &device{failures: []error{busy, busy, busy, busy, busy}}
		if _, err := d.issuer().Issue(t.Context(), attestation.NewReportData("test")); !errors.Is(err, busy) || d.opened != 5 {
			t.Errorf("%v: got %v after %d attempts, want it after 5", busy, err, d.opened)
		}
	}
	d := &device{failures: []error{syscall.EIO, syscall.EIO}}
	if _, err := d.issuer().Issue(t.Context(), attestation.NewReportData("test")); !errors.Is(err, syscall.EIO) || d.opened != 1 {
		t.Errorf("got %v after %d attempts, want EIO after 1", err, d.opened)
	}
}

func TestTheDeviceIsAskedOneByOne(t *testing.T) {
	d := &device{}
	issuer := d.issuer()
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			if _, err := issuer.Issue(t.Context(), attestation.NewReportData("test", []byte{byte(i)})); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if d.most != 1 || d.open != 0 {
		t.Errorf("it was open %d times at once, and is %d times now; want 1 and 0", d.most, d.open)
	}
}

func TestAMachineWithoutTheDeviceSaysSo(t *testing.T) {
	if _, err := NewDeviceIssuer(); err == nil {
		t.Skip("SKIPPED: this machine is an SEV-SNP guest")
	} else if !strings.Contains(err.Error(), DevicePath) {
		t.Errorf("got %v, want the path in it", err)
	}
}
