package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/guest/evidence"
)

// labelAttest keeps evidence that somebody asked for by hand from serving any protocol.
const labelAttest = "portcullis attest command v1"

func newAttest() *cobra.Command {
	var tee, reportData, nonce, output string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "attest",
		Short: "Print evidence of the TEE that this runs in",
		Long: `Attest asks the guest's TEE for evidence and writes it as JSON: the signed report, and the certificates that came with it.
It runs inside the guest, in a pod of a podVM or, as root, in the image itself. "portcullis inspect-evidence" explains it.

Evidence is over 64 bytes of report data: those of --report-data, or a hash of --nonce, or a hash of fresh random bytes.
They are printed to standard error.`,
		Example: `  portcullis attest -o evidence.json
  portcullis attest --nonce "the verifier's nonce" | portcullis inspect-evidence -
  portcullis attest --tee tdx --report-data "$(openssl rand -hex 64)"`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			data, err := reportDataOf(cmd, reportData, nonce)
			if err != nil {
				return err
			}
			issuer, err := evidence.NewIssuer(tee)
			if err != nil {
				return err
			}
			progress(cmd, "asking the TEE ...")
			e, err := issuer.Issue(ctx, data)
			if err != nil {
				return err
			}
			sum := data.Bytes()
			fmt.Fprintf(cmd.ErrOrStderr(), "report data %x\n", sum)
			var b bytes.Buffer
			if err := writeJSON(&b, e); err != nil {
				return err
			}
			if output == stdio {
				_, err := cmd.OutOrStdout().Write(b.Bytes())
				return err
			}
			return generate.Write([]generate.Output{{Path: output, Data: b.Bytes(), Mode: modeFile}})
		},
	}
	cmd.Flags().StringVar(&tee, "tee", evidence.Auto, "source of evidence: auto, socket, snp or tdx")
	cmd.Flags().StringVar(&reportData, "report-data", "", "report data, 128 hexadecimal digits")
	cmd.Flags().StringVar(&nonce, "nonce", "", "text whose hash is the report data")
	cmd.Flags().StringVarP(&output, "output", "o", stdio, "file to write to, - for standard output")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long the TEE may take")
	_ = cmd.RegisterFlagCompletionFunc("tee", cobra.FixedCompletions(
		[]string{evidence.Auto, evidence.FromSocket, evidence.FromSNP, evidence.FromTDX}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// reportDataOf reads the flags: report data in hexadecimal, or else a nonce, or else one of our own.
func reportDataOf(cmd *cobra.Command, text, nonce string) (attestation.ReportData, error) {
	switch {
	case cmd.Flags().Changed("report-data") && cmd.Flags().Changed("nonce"):
		return attestation.ReportData{}, usageOf(cmd, errors.New("give --report-data or --nonce, not both"))
	case cmd.Flags().Changed("report-data"):
		return parseReportData(cmd, text)
	case cmd.Flags().Changed("nonce") && nonce == "":
		return attestation.ReportData{}, usageOf(cmd, errors.New("--nonce is empty"))
	case nonce == "":
		random := make([]byte, 32)
		_, _ = rand.Read(random) // never fails since Go 1.24
		nonce = string(random)
	}
	return attestation.NewReportData(labelAttest, []byte(nonce)), nil
}

func parseReportData(cmd *cobra.Command, text string) (attestation.ReportData, error) {
	raw, err := hex.DecodeString(text)
	if err != nil {
		return attestation.ReportData{}, usageOf(cmd, fmt.Errorf("--report-data %q is not hexadecimal", text))
	}
	data, err := attestation.ParseReportData(raw)
	if err != nil {
		return attestation.ReportData{}, usageOf(cmd, fmt.Errorf("--report-data: %w", err))
	}
	return data, nil
}
