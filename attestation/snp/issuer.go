package snp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/client"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/tsm"
)

// DevicePath is the kernel's older interface to the firmware, beside configfs-tsm.
const DevicePath = "/dev/sev-guest"

// reportDataOffset is where REPORT_DATA stands in an ATTESTATION_REPORT (AMD SEV-SNP ABI specification, table
// "ATTESTATION_REPORT Structure").
const reportDataOffset = 0x50

// tableLimit bounds the certificate table that the host gives along. The kernel takes no more than 16 KiB.
const tableLimit = 64 << 10

// NewIssuer makes evidence through configfs-tsm, whose provider must be tsm.SNP. Reports are made at VMPL 0: a guest that runs
// above it, under an SVSM, has none of these, and validators take no others.
func NewIssuer(source *tsm.Source) (attestation.Issuer, error) {
	if source == nil || source.Provider() != tsm.SNP {
		return nil, fmt.Errorf("an SEV-SNP issuer needs configfs-tsm with the provider %s", tsm.SNP)
	}
	return issuer(func(ctx context.Context, data [64]byte) (report, table []byte, err error) {
		return source.Get(ctx, tsm.Request{ReportData: data, Privileged: true, Auxiliary: true})
	}), nil
}

// NewDeviceIssuer makes evidence through DevicePath. The error says why that is not there.
func NewDeviceIssuer() (attestation.Issuer, error) {
	f, err := os.OpenFile(DevicePath, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return throughDevice(func() (client.Device, error) { return client.OpenDevice() }, tsm.NewQueue()), nil
}

// issuer asks for a report and the certificate table that the host gives along, which may be empty.
type issuer func(ctx context.Context, data [64]byte) (report, table []byte, err error)

// Issue implements attestation.Issuer. It looks at what came back: evidence that a validator is sure to refuse helps nobody.
func (i issuer) Issue(ctx context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	if !data.Valid() {
		return attestation.Evidence{}, errors.New("issue evidence: the report data is empty")
	}
	want := data.Bytes()
	report, table, err := i(ctx, want)
	if err != nil {
		return attestation.Evidence{}, fmt.Errorf("issue evidence: %w", err)
	}
	switch {
	case len(report) != abi.ReportSize:
		err = fmt.Errorf("the report is %d bytes long, want %d", len(report), abi.ReportSize)
	case !bytes.Equal(report[reportDataOffset:reportDataOffset+len(want)], want[:]):
		err = errors.New("the report is about other report data")
	case len(table) > tableLimit:
		err = fmt.Errorf("the certificate table is %d bytes long, want at most %d", len(table), tableLimit)
	}
	if err != nil {
		return attestation.Evidence{}, fmt.Errorf("issue evidence: %w", err)
	}
	return attestation.Evidence{Platform: attestation.SNP, Report: report, Certificates: table}, nil
}

// throughDevice opens the device for each request, one at a time. The library waits for two seconds between asking for the
// table's length and for the report, so that a host which throttles requests does not lock the guest out.
func throughDevice(open func() (client.Device, error), queue *tsm.Queue) issuer {
	return func(ctx context.Context, data [64]byte) ([]byte, []byte, error) {
		answer, err := tsm.Ask(ctx, queue, func() (reportAndTable, error) { return askDevice(open, data) })
		return answer.report, answer.table, err
	}
}

type reportAndTable struct{ report, table []byte }

// askDevice asks for a report at VMPL 0 with the host's certificates, or without where the host has none.
//
// The library calls the functions for that deprecated. Those that it recommends read the host's table before they return it,
// and panic over some.
func askDevice(open func() (client.Device, error), data [64]byte) (answer reportAndTable, err error) {
	device, err := open()
	if err != nil {
		return reportAndTable{}, err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	noting := &notingDevice{Device: device}
	//lint:ignore SA1019 see above
	answer.report, answer.table, err = client.GetRawExtendedReportAtVmpl(noting, data, 0)
	if err == nil {
		return answer, nil
	}
	if tsm.Passing(noting.last) {
		return reportAndTable{}, noting.last
	}
	//lint:ignore SA1019 see above
	answer.report, err = client.GetRawReportAtVmpl(device, data, 0)
	return answer, err
}

// notingDevice keeps the last error: of some, the library keeps the text alone.
type notingDevice struct {
	client.Device
	last error
}

func (d *notingDevice) Ioctl(command uintptr, argument any) (result uintptr, err error) {
	result, d.last = d.Device.Ioctl(command, argument)
	return result, d.last
}
