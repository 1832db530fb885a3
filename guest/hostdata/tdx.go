package hostdata

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/attestation"
)

// The kernel's interface to the TDX module (Linux, uapi/linux/tdx-guest.h): TDX_CMD_GET_REPORT0.
const (
	tdxGuest      = "/dev/tdx_guest"
	tdxGetReport0 = 0xc4405401 // _IOWR('T', 1, struct tdx_report_req)
)

type tdxReportRequest struct {
	reportData [64]byte
	tdreport   [tdreportSize]byte
}

// guestReport fetches a TDREPORT about data. The error is os.ErrNotExist where this is no TDX guest.
func guestReport(data [64]byte) ([]byte, error) {
	f, err := os.OpenFile(tdxGuest, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	request := tdxReportRequest{reportData: data}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), tdxGetReport0, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return nil, fmt.Errorf("%s: %w", tdxGuest, errno)
	}
	return request.tdreport[:], nil
}

// The fields of a TDREPORT that are read here (Intel TDX Module ABI specification: TDREPORT_STRUCT, of REPORTMACSTRUCT, TEE_TCB_INFO
// and TDINFO_STRUCT).
const (
	tdreportSize     = 1024
	typeOffset       = 0 // REPORTTYPE.TYPE
	typeTDX          = 0x81
	reportDataOffset = 128
	mrConfigIDOffset = 512 + 8 + 8 + 48 // TDINFO: ATTRIBUTES, XFAM, MRTD, MRCONFIGID
)

// fromTDREPORT reads MRCONFIGID, 48 bytes, of which the first 32 are the digest. What else the host put there is refused: a pod
// whose digest is padded otherwise has no policy hash.
func fromTDREPORT(report []byte, nonce [64]byte) (Commitment, error) {
	switch {
	case len(report) != tdreportSize:
		return Commitment{}, fmt.Errorf("the TDX module's report has %d bytes, want %d", len(report), tdreportSize)
	case report[typeOffset] != typeTDX:
		return Commitment{}, fmt.Errorf("the TDX module's report is of type %#x, want %#x", report[typeOffset], typeTDX)
	case [64]byte(report[reportDataOffset:]) != nonce:
		return Commitment{}, errors.New("the TDX module's report is about other report data")
	}
	id := report[mrConfigIDOffset : mrConfigIDOffset+48]
	if [16]byte(id[32:]) != [16]byte{} {
		return Commitment{}, errors.New("MRCONFIGID is no SHA-256: its last 16 bytes are not zero")
	}
	return Commitment{Platform: attestation.TDX, Digest: attestation.PolicyHash(id)}, nil
}
