package hostdata

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"unsafe"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tsm"
	"portcullis.dev/portcullis/tests/faketsm"
)

// Where the fields stand in an ATTESTATION_REPORT (AMD SEV-SNP ABI specification, table "ATTESTATION_REPORT Structure").
const (
	snpReportSize  = 0x4a0
	atReportData   = 0x50
	atHostData     = 0xc0
	atSignatureAlg = 0x34
)

// A kernel with configfs-tsm and firmware behind it: bytes as they come from there.
func TestHOSTDATAThroughTheKernel(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(report []byte) []byte
		err    string
	}{
		{"as made", func(b []byte) []byte { return b }, ""},
		{"of another boot", func(b []byte) []byte { b[atReportData] ^= 1; return b }, "other report data"},
		{"cut", func(b []byte) []byte { return b[:snpReportSize-1] }, "bytes long"},
		{"with a policy that cannot be", func(b []byte) []byte { b[0x0a] = 0; return b }, "read the report"},
	} {
		t.Run(c.name, func(t *testing.T) {
			kernel := &faketsm.Kernel{Provider: tsm.SNP, Report: func(in []byte) (out, aux []byte, err error) {
				b := make([]byte, snpReportSize)
				b[0], b[atSignatureAlg] = 2, 1 // ECDSA P-384 with SHA-384
				b[0x0a] = 2                    // POLICY: bit 17 is always one
				copy(b[atReportData:], in)
				copy(b[atHostData:], digest[:])
				return c.change(b), nil, nil
			}}
			source, err := tsm.Through(kernel)
			if err != nil {
				t.Fatal(err)
			}
			got, err := sources{noTDX, func() (attestation.Issuer, error) { return snp.NewIssuer(source) }, nothing}.read(context.Background(), allowed)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%+v, error %v, want %q", got, err, c.err)
				}
				return
			}
			if err != nil || got.Platform != attestation.SNP || got.Digest != digest {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// TDX_CMD_GET_REPORT0 is _IOWR('T', 1, struct tdx_report_req) (Linux, uapi/linux/tdx-guest.h and asm-generic/ioctl.h).
func TestTheRequestToTheTDXModule(t *testing.T) {
	const readWrite = 3
	want := uintptr(readWrite<<30 | 'T'<<8 | 1)
	want |= unsafe.Sizeof(tdxReportRequest{}) << 16
	if tdxGetReport0 != want {
		t.Errorf("the ioctl is %#x, want %#x", uintptr(tdxGetReport0), want)
	}
	if tdxGuest != "/dev/tdx_guest" {
		t.Errorf("the device is %s", tdxGuest)
	}
	if at := unsafe.Offsetof(tdxReportRequest{}.tdreport); at != 64 {
		t.Errorf("the report is at %d, want 64", at)
	}
	if _, err := os.Stat(tdxGuest); err == nil {
		t.Skip("this is a TDX guest: that there is none cannot be seen here")
	}
	if _, err := guestReport([64]byte{1}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a TDX guest: error %v", err)
	}
}
