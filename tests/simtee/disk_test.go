package simtee_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-sev-guest/abi"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/tests/simtee"
)

func TestADiskPlaysTheMachineThatItWasMadeOf(t *testing.T) {
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	measurement, hostData := simtee.Measurement{1, 2}, [32]byte{3, 4}
	disk, err := world.Disk(measurement, hostData)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{"another": make([]byte, 512), "disk": disk} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	machine, err := simtee.FindDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	e, err := machine.Issue(context.Background(), attestation.NewReportData("test"))
	if err != nil {
		t.Fatal(err)
	}
	report, err := abi.ReportToProto(e.Report)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(report.GetMeasurement(), measurement[:]) || !bytes.Equal(report.GetHostData(), hostData[:]) {
		t.Errorf("another machine: %x, %x", report.GetMeasurement(), report.GetHostData())
	}
	if _, err := simtee.FindDisk(t.TempDir()); !errors.Is(err, simtee.ErrNoDisk) {
		t.Errorf("in an empty folder: %v", err)
	}
	for n := range 200 {
		if _, err := simtee.ReadDisk(bytes.NewReader(disk[:n])); err == nil {
			t.Errorf("%d bytes were enough", n)
		}
	}
}
