package tdx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/google/go-tdx-guest/pcs"

	"portcullis.dev/portcullis/attestation/internal/judge"
)

// ReferenceValue is what evidence is compared with, as it stands in a manifest. Every field must be written down: what is
// missing is a fault, never a check left out. Bytes are lower-case hexadecimal digits, in the order of the quote.
type ReferenceValue struct {
	// MRTD is the measurement of the TD's first memory, its firmware: 96 digits.
	MRTD string
	// RTMR0, RTMR1 and RTMR2 are the run-time measurements of firmware configuration, kernel and command line: 96 digits
	// each, all zero if nothing was measured into one.
	RTMR0, RTMR1, RTMR2 string
	// RTMR3 is 96 digits, or the word "any". It belongs to the running guest, which may go on extending it; whatever does
	// so has been measured into the others, and therefore they have no such word.
	RTMR3 string
	// MRSEAM are the TDX modules that are allowed, by measurement: 96 digits each.
	MRSEAM []string
	// XFAM is the extended features that the TD may use, exactly: 16 digits, such as e702060000000000.
	XFAM string
	// MinimumTCB bounds versions from below, on top of what Intel says of them.
	MinimumTCB TCB
	// AcceptedTCBStatuses are what Intel may say of the platform, of the TDX module and of the quoting enclave, by name;
	// usually UpToDate alone. Revoked cannot be accepted.
	AcceptedTCBStatuses []string
}

// TCB is versions of what the platform runs. Zero may be written; it may not be left out.
type TCB struct {
	// TEETCBSVN is TEE_TCB_SVN, compared byte by byte: 32 digits.
	TEETCBSVN string
	// QESVN is ISVSVN of the quoting enclave, and PCESVN the one in the PCK certificate: 0 to 65535. The quote's header has
	// a place for both too, which version 4 reserves and Intel leaves zero.
	QESVN, PCESVN *int
}

// anyRTMR3 is the word of ReferenceValue.RTMR3.
const anyRTMR3 = "any"

// acceptable are the statuses that may be accepted, in Intel's words (PCS API, version 4: tcbStatus).
var acceptable = []string{
	string(pcs.TcbComponentStatusUpToDate),
	string(pcs.TcbComponentStatusSwHardeningNeeded),
	string(pcs.TcbComponentStatusConfigurationNeeded),
	string(pcs.TcbComponentStatusConfigurationAndSWHardeningNeeded),
	string(pcs.TcbComponentStatusOutOfDate),
	string(pcs.TcbComponentStatusOutOfDateConfigurationNeeded),
}

// Bits of XFAM (Intel TDX Module 1.5 ABI specification, "XFAM"). The library has the same masks. Here they bind the
// reference value, which a TD's XFAM must equal.
const (
	xfamFixed1 = 0x00000003 // x87 and SSE are always on
	xfamFixed0 = 0x0006dbe7 // what is not in here is always off: only what TDX knows how to save and to isolate
)

// Validate lists every fault, each as "Field: what is wrong and what would be right". None means that the value is usable.
func (r ReferenceValue) Validate() []string {
	_, faults := r.parse()
	return faults
}

// reference is a ReferenceValue that cannot hold a wrong value.
type reference struct {
	mrTD     []byte
	rtmrs    [4][]byte // the last one is nil for any
	mrSEAMs  [][]byte
	xfam     []byte
	tcbSVN   []byte
	qeSVN    int
	pceSVN   int
	statuses []pcs.TcbComponentStatus
}

func (r ReferenceValue) parse() (reference, []string) {
	var (
		ref    reference
		faults []string
		err    error
	)
	fault := func(field string, err error) {
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s: %v", field, err))
		}
	}

	ref.mrTD, err = judge.ParseHex(r.MRTD, 48)
	fault("MRTD", err)
	for i, text := range []string{r.RTMR0, r.RTMR1, r.RTMR2} {
		ref.rtmrs[i], err = parseHexOrZero(text, 48)
		fault(fmt.Sprintf("RTMR%d", i), err)
	}
	if r.RTMR3 != anyRTMR3 {
		ref.rtmrs[3], err = parseHexOrZero(r.RTMR3, 48)
		if err != nil {
			err = fmt.Errorf("%w, or the word %s", err, anyRTMR3)
		}
		fault("RTMR3", err)
	}
	if len(r.MRSEAM) == 0 {
		fault("MRSEAM", errors.New("is missing, want a list of measurements"))
	}
	for i, text := range r.MRSEAM {
		module, err := judge.ParseHex(text, 48)
		fault(fmt.Sprintf("MRSEAM[%d]", i), err)
		ref.mrSEAMs = append(ref.mrSEAMs, module)
	}
	if ref.xfam, err = judge.ParseHex(r.XFAM, 8); err == nil {
		err = checkXFAM(ref.xfam)
	}
	fault("XFAM", err)
	ref.tcbSVN, err = parseHexOrZero(r.MinimumTCB.TEETCBSVN, 16)
	fault("MinimumTCB.TEETCBSVN", err)
	ref.qeSVN, err = judge.ParseNumber(r.MinimumTCB.QESVN, math.MaxUint16)
	fault("MinimumTCB.QESVN", err)
	ref.pceSVN, err = judge.ParseNumber(r.MinimumTCB.PCESVN, math.MaxUint16)
	fault("MinimumTCB.PCESVN", err)
	if len(r.AcceptedTCBStatuses) == 0 {
		fault("AcceptedTCBStatuses", fmt.Errorf("is missing, want a list of %s", strings.Join(acceptable, ", ")))
	}
	for i, status := range r.AcceptedTCBStatuses {
		if !slices.Contains(acceptable, status) {
			fault(fmt.Sprintf("AcceptedTCBStatuses[%d]", i),
				fmt.Errorf("%q is not one of %s", status, strings.Join(acceptable, ", ")))
		}
		ref.statuses = append(ref.statuses, pcs.TcbComponentStatus(status))
	}
	return ref, faults
}

// parseHexOrZero is for what may be all zero when that is written down.
func parseHexOrZero(text string, size int) ([]byte, error) {
	if text == strings.Repeat("0", 2*size) {
		return make([]byte, size), nil
	}
	return judge.ParseHex(text, size)
}

// checkXFAM refuses what no TD can have.
func checkXFAM(b []byte) error {
	xfam := binary.LittleEndian.Uint64(b)
	switch {
	case xfam&xfamFixed1 != xfamFixed1:
		return fmt.Errorf("%x lacks bits that every TD has, want those of %#x", b, xfamFixed1)
	case xfam&^xfamFixed0 != 0:
		return fmt.Errorf("%x has bits that no TD may have, want none outside %#x", b, xfamFixed0)
	}
	return nil
}
