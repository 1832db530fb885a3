package tdx

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
	"portcullis.dev/portcullis/attestation/tsm"
)

// What an issuer looks at in a quote (Intel TDX DCAP quoting library API, appendix 3, offsets in bytes): the version at 0, the
// TEE type at 4, and the TD report's REPORTDATA. In version 4 the TD report begins at 48; in version 5 its type and size stand
// before it. The longest quote is what the kernel has room for.
const (
	atTEEType      = 4
	tdxTEE         = 0x81
	atReportDataV4 = 48 + 520
	// where the length of the signature data stands, which is all that follows
	atSignatureSizeV4 = 48 + 584
	atReportDataV5    = 48 + 6 + 520
	lenReportData     = 64
	maxIssued         = 128 << 10
)

// NewIssuer makes evidence through configfs-tsm, whose provider must be tsm.TDX. There is no other way: the device file of
// current kernels gives reports that only the same machine can check.
func NewIssuer(source *tsm.Source) (attestation.Issuer, error) {
	if source == nil || source.Provider() != tsm.TDX {
		return nil, fmt.Errorf("a TDX issuer needs configfs-tsm with the provider %s", tsm.TDX)
	}
	return &issuer{source}, nil
}

type issuer struct{ source *tsm.Source }

// Issue implements attestation.Issuer. It looks at what came back: evidence that a validator is sure to refuse helps nobody.
func (i *issuer) Issue(ctx context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	if !data.Valid() {
		return attestation.Evidence{}, errors.New("issue evidence: the report data is empty")
	}
	want := data.Bytes()
	quote, _, err := i.source.Get(ctx, tsm.Request{ReportData: want})
	if err == nil {
		err = about(quote, want[:])
	}
	if err != nil {
		return attestation.Evidence{}, fmt.Errorf("issue evidence: %w", err)
	}
	return attestation.Evidence{Platform: attestation.TDX, Report: unpadded(quote)}, nil
}

// unpadded is a quote of version 4 without the zeros behind it, of which some hypervisors send tens of KiB: nobody signed
// them, and a Coordinator's patience is bounded.
func unpadded(quote []byte) []byte {
	if binary.LittleEndian.Uint16(quote) != 4 {
		return quote
	}
	end := uint64(atSignatureSizeV4) + 4 + uint64(binary.LittleEndian.Uint32(quote[atSignatureSizeV4:]))
	if end >= uint64(len(quote)) || !judge.AllZero(quote[end:]) {
		return quote
	}
	return quote[:end]
}

// about says why quote is none over data.
func about(quote, data []byte) error {
	if len(quote) < atReportDataV5+lenReportData || len(quote) > maxIssued {
		return fmt.Errorf("the quote is %d bytes long, want %d to %d", len(quote), atReportDataV5+lenReportData, maxIssued)
	}
	if tee := binary.LittleEndian.Uint32(quote[atTEEType:]); tee != tdxTEE {
		return fmt.Errorf("the quote is of TEE type %#x, want %#x", tee, tdxTEE)
	}
	at := 0
	switch version := binary.LittleEndian.Uint16(quote); version {
	case 4:
		at = atReportDataV4
	case 5:
		at = atReportDataV5
	default:
		return fmt.Errorf("the quote is of version %d, want 4 or 5", version)
	}
	if !bytes.Equal(quote[at:at+lenReportData], data) {
		return errors.New("the quote is about other report data")
	}
	return nil
}
