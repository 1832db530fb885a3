package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
)

func newInspect() *cobra.Command {
	var i inspection
	var manifestFile, reportData string
	var collateral collateralFlags
	var timeout time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect-evidence [flags] FILE",
		Short: "Explain evidence field by field, and say what a manifest makes of it",
		Long: `Inspect-evidence takes evidence apart: an attestation report of SEV-SNP or a quote of TDX, with its certificates. FILE is
what "portcullis attest" writes, a raw report (1184 bytes, with the certificate table behind it or without one), or a raw
quote; - is standard input. Without a manifest nothing is judged.

With --manifest it compares the evidence with every reference value of its platform, field by field, so that a wrong
reference value can be found and mended; and it says what the Coordinator would. Exit code 0 means accepted, 3 rejected,
1 that it could not be judged, since what the vendor publishes could not be had, and 2 that FILE is no evidence.

Whether the evidence is fresh, only its report data can tell: give those that were asked for as --report-data. A raw report
is taken for a simulated one where the manifest trusts such.`,
		Example: `  portcullis inspect-evidence evidence.json
  portcullis inspect-evidence --manifest manifest.json evidence.json
  portcullis attest | ssh verifier portcullis inspect-evidence --manifest manifest.json --json -`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			if manifestFile != "" {
				if i.manifest, err = readManifest(manifestFile); err != nil {
					return err
				}
			}
			if i.evidence, err = readEvidence(cmd, args[0], i.manifest); err != nil {
				return err
			}
			if i.Fields, err = api.DecodeEvidence(i.evidence); err != nil {
				return malformed("see portcullis inspect-evidence --help", "%s: %w", args[0], err)
			}
			if reportData == "" {
				i.data = i.ownReportData()
			} else if i.data, err = parseReportData(cmd, reportData); err != nil {
				return err
			}
			i.Platform, i.Fresh = i.evidence.Platform, reportData != ""
			if i.manifest != nil {
				validation, done, err := collateral.open(i.manifest)
				if err != nil {
					return err
				}
				defer done()
				progress(cmd, "judging the evidence; what its vendor publishes may have to be fetched ...")
				if err := i.judge(ctx, validation); err != nil {
					return err
				}
			}
			write := i.write
			if asJSON {
				write = func(w io.Writer) error { return writeJSON(w, i) }
			}
			if err := write(cmd.OutOrStdout()); err != nil {
				return err
			}
			return i.outcome()
		},
	}
	cmd.Flags().StringVar(&manifestFile, "manifest", "", "manifest whose reference values to compare with")
	cmd.Flags().StringVar(&reportData, "report-data", "", "report data that the evidence must be over, 128 hexadecimal digits")
	collateral.register(cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long everything may take")
	flagJSON(cmd, &asJSON)
	return cmd
}

// maxEvidence bounds a file of evidence: a quote of 128 KiB as base64 in JSON is far below.
const maxEvidence = 1 << 20

// inspection is what there is to say about evidence.
type inspection struct {
	Platform attestation.Platform `json:"platform"`
	Fields   []attestation.Field  `json:"fields"`
	// Fresh says whether the report data was compared with what the caller expects.
	Fresh bool `json:"reportDataCompared"`
	// ReferenceValues is one for each of the manifest's for the platform.
	ReferenceValues []comparison `json:"referenceValues,omitempty"`
	Verdict         *verdict     `json:"verdict,omitempty"` // nil without a manifest

	evidence attestation.Evidence
	data     attestation.ReportData
	manifest *manifest.Manifest
	err      error // the validator's
}

type comparison struct {
	Path   string     `json:"path"`
	Wrong  int        `json:"wrong"`
	Fields []compared `json:"fields"`
}

type compared struct {
	Field string `json:"field"`
	OK    bool   `json:"ok"`
	Want  string `json:"want,omitempty"`
	Got   string `json:"got,omitempty"`
}

// The verdicts.
const (
	verdictAccepted    = "accepted"
	verdictRejected    = "rejected"
	verdictUnavailable = "unavailable"
)

type verdict struct {
	Verdict string              `json:"verdict"`
	Reason  string              `json:"reason,omitempty"`
	Field   string              `json:"field,omitempty"`
	Want    string              `json:"want,omitempty"`
	Got     string              `json:"got,omitempty"`
	Claims  *attestation.Claims `json:"claims,omitempty"`
}

// readEvidence reads evidence in any of its forms.
func readEvidence(cmd *cobra.Command, path string, m *manifest.Manifest) (attestation.Evidence, error) {
	in := cmd.InOrStdin()
	if path != stdio {
		f, err := os.Open(path)
		if err != nil {
			return attestation.Evidence{}, fmt.Errorf("read the evidence: %w", err)
		}
		defer f.Close()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxEvidence+1))
	if err != nil {
		return attestation.Evidence{}, fmt.Errorf("read the evidence: %w", err)
	}
	if len(raw) > maxEvidence {
		return attestation.Evidence{}, malformed("evidence has some KiB", "%s is larger than %d bytes", path, maxEvidence)
	}
	e, err := parseEvidence(raw, m)
	if err != nil {
		return attestation.Evidence{}, malformed("want the JSON that portcullis attest writes, an attestation report or a TD quote",
			"%s is no evidence: %w", path, err)
	}
	return e, nil
}

// snpReportSize is that of an ATTESTATION_REPORT (AMD document 56860), in bytes.
const snpReportSize = 0x4a0

func parseEvidence(raw []byte, m *manifest.Manifest) (attestation.Evidence, error) {
	switch trimmed := bytes.TrimSpace(raw); {
	case bytes.HasPrefix(trimmed, []byte("{")):
		var e attestation.Evidence
		d := json.NewDecoder(bytes.NewReader(trimmed))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			return e, err
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return e, errors.New("something follows the JSON value")
		}
		return e, nil
	// A quote's header begins with its version and 2 or 3 for the kind of its key, and TEE type 81h (Intel TDX DCAP quoting
	// library API, appendix 3). A report begins with its version in 32 bits.
	case len(raw) >= 8 && binary.LittleEndian.Uint16(raw[2:]) != 0 && binary.LittleEndian.Uint32(raw[4:]) == 0x81:
		return attestation.Evidence{Platform: attestation.TDX, Report: raw}, nil
	case len(raw) >= snpReportSize && binary.LittleEndian.Uint16(raw[2:]) == 0:
		platform := attestation.SNP
		if m != nil && m.Simulated() {
			platform = attestation.Simulated
		}
		return attestation.Evidence{Platform: platform, Report: raw[:snpReportSize], Certificates: raw[snpReportSize:]}, nil
	default:
		return attestation.Evidence{}, fmt.Errorf("%d bytes that begin with %x", len(raw), raw[:min(len(raw), 8)])
	}
}

// ownReportData is what the evidence itself is over, so that everything else can be judged. It is invalid where that is all
// zero, and then refused.
func (i *inspection) ownReportData() attestation.ReportData {
	const ofReport, ofQuote, size = 0x50, 48 + 520, 64
	at := ofReport
	if i.evidence.Platform == attestation.TDX {
		at = ofQuote
	}
	data, _ := attestation.ParseReportData(i.evidence.Report[at : at+size]) // it was decoded, so it is long enough
	return data
}

// judge compares the evidence with each reference value, and has the Coordinator's validator judge it.
func (i *inspection) judge(ctx context.Context, o manifest.ValidatorOptions) error {
	v, err := i.manifest.Validator(o)
	if err != nil {
		return err
	}
	for n, fields := range v.Inspect(ctx, i.evidence, i.data) {
		c := comparison{Path: api.ReferencePath(i.evidence.Platform, n)}
		for _, f := range fields {
			line := compared{Field: f.Field, OK: f.Wrong == nil}
			switch {
			case f.Wrong != nil:
				line.Want, line.Got = f.Wrong.Want, f.Wrong.Got
				c.Wrong++
			case !i.Fresh && (f.Field == "REPORT_DATA" || f.Field == "REPORTDATA"):
				continue // it was compared with itself
			}
			c.Fields = append(c.Fields, line)
		}
		i.ReferenceValues = append(i.ReferenceValues, c)
	}
	claims, err := v.Validate(ctx, i.evidence, i.data)
	i.err = err
	if err == nil {
		i.Verdict = &verdict{Verdict: verdictAccepted, Claims: &claims}
		return nil
	}
	i.Verdict = &verdict{Verdict: verdictUnavailable, Reason: err.Error()}
	if r, ok := errors.AsType[*attestation.Rejected](err); ok {
		i.Verdict.Verdict, i.Verdict.Field, i.Verdict.Want, i.Verdict.Got = verdictRejected, r.Field, r.Want, r.Got
	}
	return nil
}

// outcome is the verdict as an exit code.
func (i *inspection) outcome() error {
	if _, rejected := errors.AsType[*attestation.Rejected](i.err); rejected {
		hint := "a field that is wrong in all its reference values is a wrong reference value, or another machine or image"
		if len(i.ReferenceValues) == 0 {
			hint = "the manifest has no reference values of this platform"
		}
		return &problem{i.err, exitNo, hint}
	}
	return judged(i.err)
}

// write is for people.
func (i *inspection) write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "evidence of platform %s\n", i.Platform)
	for _, f := range i.Fields {
		fmt.Fprintf(t, "  %s\t%s\n", f.Name, strings.TrimSpace(f.Value+"  "+parenthesised(f.Meaning)))
	}
	for _, c := range i.ReferenceValues {
		fmt.Fprintf(t, "\n%s: %d of %d fields are wrong\n", c.Path, c.Wrong, len(c.Fields))
		for _, f := range c.Fields {
			if f.OK {
				fmt.Fprintf(t, "  %s\tok\n", f.Field)
				continue
			}
			fmt.Fprintf(t, "  %s\tWRONG\n\twant %s\n\tgot  %s\n", f.Field, f.Want, f.Got)
		}
	}
	if i.Verdict != nil {
		fmt.Fprintf(t, "\nverdict: %s\n", i.Verdict.Verdict)
		if c := i.Verdict.Claims; c != nil && c.TDX != nil {
			fmt.Fprintf(t, "Intel says: platform %s, TDX module %s, quoting enclave %s, advisories %s\n", c.TDX.PlatformTCBStatus,
				c.TDX.ModuleTCBStatus, c.TDX.QETCBStatus, cmp.Or(strings.Join(c.TDX.Advisories, ", "), "none"))
		}
		if !i.Fresh {
			fmt.Fprintln(t, "the report data was not compared: give --report-data to know whether the evidence is fresh")
		}
	}
	return t.Flush()
}

func parenthesised(s string) string {
	if s == "" {
		return ""
	}
	return "(" + s + ")"
}
