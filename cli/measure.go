package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/measure"
)

func newMeasure() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "measure",
		Short: "Compute the measurements of an image from its files",
		Long: `Measure computes what a TEE reports when it launches an image, so that a manifest's reference values come from what was
built and not from a machine that somebody else runs. It computes as QEMU and KVM launch guests; other hypervisors measure
other pages. What cannot be computed from files is said to be missing.`,
		Example: `  portcullis measure snp --ovmf OVMF.fd --kernel vmlinuz --append "console=ttyS0" --vcpus 2 --vcpu-type EPYC-Milan
  portcullis measure tdx --ovmf OVMF.fd --event-log CCEL`,
		Args: commandsOnly,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newMeasureSNP(), newMeasureTDX())
	return cmd
}

func newMeasureSNP() *cobra.Command {
	var ovmf, kernel, initrd, commandLine, cpuType string
	var guest measure.SNP
	var signature uint32
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "snp",
		Short: "Compute the launch measurement of SEV-SNP",
		Long: `Snp computes MEASUREMENT, which a manifest has as ReferenceValues.SNP[].Measurement: of the firmware, of kernel, initrd
and command line where QEMU boots a kernel directly (kernel-hashes=on), and of the registers of each vCPU. Each number of
vCPUs is another measurement.

The vCPU type is QEMU's -cpu without its version, or CPUID_1_EAX as --vcpu-signature. The features are those that
the hypervisor turns on: 0x1 is SNP alone; hosts with debug swapping have 0x21.`,
		Example: `  portcullis measure snp --ovmf OVMF.fd --kernel vmlinuz --initrd initrd.img --append "console=ttyS0" \
    --vcpus 2 --vcpu-type EPYC-Milan`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if guest.Firmware, err = readFirmware(cmd, ovmf); err != nil {
				return err
			}
			if guest.Boot, err = readBoot(cmd, kernel, initrd, commandLine); err != nil {
				return err
			}
			switch changed := cmd.Flags().Changed; {
			case changed("vcpu-type") == changed("vcpu-signature"):
				return usageOf(cmd, errors.New("give one of --vcpu-type and --vcpu-signature"))
			case changed("vcpu-type"):
				if guest.CPU, err = measure.CPUType(cpuType); err != nil {
					return usageOf(cmd, err)
				}
			default:
				guest.CPU = signature
			}
			if !cmd.Flags().Changed("vcpus") {
				return usageOf(cmd, errors.New("give --vcpus: each number of vCPUs is another measurement"))
			}
			measurement, err := guest.Measure()
			if err != nil {
				return malformed("see portcullis measure snp --help", "measure an SNP guest: %w", err)
			}
			text := hex.EncodeToString(measurement[:])
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]string{"Measurement": text})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	flagOVMF(cmd, &ovmf)
	cmd.Flags().StringVar(&kernel, "kernel", "", "kernel that QEMU boots directly")
	cmd.Flags().StringVar(&initrd, "initrd", "", "its initrd")
	cmd.Flags().StringVar(&commandLine, "append", "", "its command line")
	cmd.Flags().IntVar(&guest.VCPUs, "vcpus", 0, "number of vCPUs")
	cmd.Flags().StringVar(&cpuType, "vcpu-type", "", "type of the vCPUs: "+strings.Join(measure.CPUTypes(), ", "))
	cmd.Flags().Uint32Var(&signature, "vcpu-signature", 0, "CPUID_1_EAX of the vCPUs, such as 0xa00f11")
	cmd.Flags().Uint64Var(&guest.Features, "features", 1, "SEV_FEATURES of the vCPUs")
	flagJSON(cmd, &asJSON)
	_ = cmd.RegisterFlagCompletionFunc("vcpu-type", cobra.FixedCompletions(measure.CPUTypes(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// tdxMeasurements have the names of a manifest's reference value.
type tdxMeasurements struct {
	MRTD    string `json:",omitempty"`
	RTMR0   string `json:",omitempty"`
	RTMR1   string `json:",omitempty"`
	RTMR2   string `json:",omitempty"`
	RTMR3   string `json:",omitempty"`
	Missing []string
	Events  []tdxEvent `json:",omitempty"`
}

type tdxEvent struct {
	RTMR   int
	Type   string
	Digest string
	Data   string
}

// missingRTMRs says why files are not enough.
const missingRTMRs = "RTMR0 to RTMR3: what goes into them depends on the machine that the hypervisor makes (memory, ACPI tables, boot " +
	"variables), on the kernel as the hypervisor patches it, and on the firmware's version; --event-log reads them from a boot"

func newMeasureTDX() *cobra.Command {
	var ovmf, eventLog string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "tdx",
		Short: "Compute MRTD, and RTMRs from an event log",
		Long: `Tdx computes MRTD from the firmware, which a manifest has as ReferenceValues.TDX[].MRTD, as KVM measures it since Linux 6.16:
each page when it is added.

RTMRs cannot be computed from files alone. From an event log, the contents of ACPI's CCEL table that a TD has in
/sys/firmware/acpi/tables/data/CCEL, it computes them and lists every event. A log is the word of the TD that wrote it: the
RTMRs are worth what your look at the events is worth.`,
		Example: `  portcullis measure tdx --ovmf OVMF.fd
  portcullis measure tdx --ovmf OVMF.fd --event-log CCEL --json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ovmf == "" && eventLog == "" {
				return usageOf(cmd, errors.New("give --ovmf FILE, --event-log FILE or both"))
			}
			var m tdxMeasurements
			if err := m.firmware(cmd, ovmf); err != nil {
				return err
			}
			if err := m.log(eventLog); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), m)
			}
			return m.write(cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flagOVMF(cmd, &ovmf)
	cmd.Flags().StringVar(&eventLog, "event-log", "", "event log of a boot, for the RTMRs")
	flagJSON(cmd, &asJSON)
	return cmd
}

func (m *tdxMeasurements) firmware(cmd *cobra.Command, path string) error {
	if path == "" {
		m.Missing = append(m.Missing, "MRTD: it is the firmware's, give --ovmf FILE")
		return nil
	}
	firmware, err := readFirmware(cmd, path)
	if err != nil {
		return err
	}
	mrtd, err := firmware.MRTD()
	if err != nil {
		return malformed("TDX needs a build of OVMF for it, with code and variables in one file", "measure %s: %w", path, err)
	}
	m.MRTD = hex.EncodeToString(mrtd[:])
	return nil
}

func (m *tdxMeasurements) log(path string) error {
	if path == "" {
		m.Missing = append(m.Missing, missingRTMRs)
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the event log: %w", err)
	}
	rtmrs, events, err := measure.RTMRs(text)
	if err != nil {
		return malformed("a TD has its log in /sys/firmware/acpi/tables/data/CCEL", "%s: %w", path, err)
	}
	for i, to := range []*string{&m.RTMR0, &m.RTMR1, &m.RTMR2, &m.RTMR3} {
		*to = hex.EncodeToString(rtmrs[i][:])
	}
	for _, e := range events {
		if e.RTMR >= 0 {
			m.Events = append(m.Events, tdxEvent{e.RTMR, fmt.Sprintf("%#x", e.Type), hex.EncodeToString(e.Digest[:]), readable(e.Data)})
		}
	}
	return nil
}

// readable is what people can read of an event's data: its printable characters, ASCII or UTF-16, in one line.
func readable(data []byte) string {
	const most = 4096 // a whole command line
	var b strings.Builder
	for _, c := range data {
		switch {
		case b.Len() == most:
			return b.String() + " ..."
		case c >= ' ' && c <= '~':
			b.WriteByte(c)
		case c != 0 && !strings.HasSuffix(b.String(), "."):
			b.WriteByte('.')
		}
	}
	return b.String()
}

func (m *tdxMeasurements) write(out, messages io.Writer) error {
	for _, line := range []struct{ name, value string }{
		{"MRTD ", m.MRTD}, {"RTMR0", m.RTMR0}, {"RTMR1", m.RTMR1}, {"RTMR2", m.RTMR2}, {"RTMR3", m.RTMR3},
	} {
		if line.value != "" {
			if _, err := fmt.Fprintf(out, "%s  %s\n", line.name, line.value); err != nil {
				return err
			}
		}
	}
	for _, e := range m.Events {
		if _, err := fmt.Fprintf(out, "event  RTMR%d  %-10s  %s  %s\n", e.RTMR, e.Type, e.Digest, e.Data); err != nil {
			return err
		}
	}
	for _, missing := range m.Missing {
		fmt.Fprintln(messages, "missing:", missing)
	}
	return nil
}

func flagOVMF(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "ovmf", "", "the firmware, OVMF.fd")
}

func readFirmware(cmd *cobra.Command, path string) (*measure.Firmware, error) {
	if path == "" {
		return nil, usageOf(cmd, errors.New("give --ovmf FILE"))
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the firmware: %w", err)
	}
	firmware, err := measure.ParseFirmware(raw)
	if err != nil {
		return nil, malformed("want an OVMF.fd of edk2's OvmfPkg", "%s: %w", path, err)
	}
	return firmware, nil
}

// readBoot hashes what QEMU boots directly. Without a kernel, it boots nothing directly.
func readBoot(cmd *cobra.Command, kernel, initrd, commandLine string) (*measure.DirectBoot, error) {
	if kernel == "" {
		if initrd != "" || commandLine != "" {
			return nil, usageOf(cmd, errors.New("--initrd and --append belong to a --kernel"))
		}
		return nil, nil
	}
	if strings.ContainsRune(commandLine, 0) {
		return nil, usageOf(cmd, errors.New("--append contains a NUL"))
	}
	boot := &measure.DirectBoot{Initrd: sha256.Sum256(nil), CommandLine: commandLine}
	for _, file := range []struct {
		path string
		to   *[sha256.Size]byte
	}{{kernel, &boot.Kernel}, {initrd, &boot.Initrd}} {
		if file.path == "" {
			continue
		}
		f, err := os.Open(file.path)
		if err != nil {
			return nil, fmt.Errorf("read what is booted: %w", err)
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("read what is booted: %w", err)
		}
		*file.to = [sha256.Size]byte(h.Sum(nil))
	}
	return boot, nil
}
