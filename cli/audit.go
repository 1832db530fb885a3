package cli

import (
	"bufio"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/coordinator/audit"
	"portcullis.dev/portcullis/pki"
)

func newAudit() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Check and read a Coordinator's audit log",
		Long: `Audit checks and reads the log of a Coordinator that was started with --audit-log: a line for each manifest, each certificate,
each refusal and each recovery, chained by their hashes. The file lies on the host's disk: docs/audit.md says what can be
known from it.`,
		Example: `  portcullis audit verify --root-ca root-ca.pem audit.log
  portcullis audit show audit.log`,
		Args: commandsOnly,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAuditVerify(), newAuditShow())
	return cmd
}

func newAuditVerify() *cobra.Command {
	var rootCA, head string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check that an audit log is whole, and whose it is",
		Long: `Verify reads FILE and the older files beside it (FILE.000000012345, where the number is that of its last line) and checks
that each line follows from the one before. That alone says that nobody changed it who could not also compute hashes.

With --root-ca, the root CA that "portcullis verify" wrote, it also checks the Coordinator's signatures: they prove the lines
that they name. The host can still have cut off the end. With --head, which the Coordinator's ordinary log tells at every
signature ("audit head", as seq and hash), the log must lead through that head.

Exit code 3 means that a check was made and failed.`,
		Example: `  portcullis audit verify --root-ca root-ca.pem --head 1042:6f1c...e2 audit.log`,
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var want audit.Expect
			if rootCA != "" {
				ca, err := readRootCA(rootCA)
				if err != nil {
					return err
				}
				want.RootCA = ca
			}
			if head != "" {
				h, err := audit.ParseHead(head)
				if err != nil {
					return usageOf(cmd, fmt.Errorf("--head: %w", err))
				}
				want.Head = &h
			}
			report, err := audit.Verify(args[0], want, nil)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), report)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), auditSummary(report, want))
			return err
		},
	}
	cmd.Flags().StringVar(&rootCA, "root-ca", "", "root CA `file` whose Coordinator must have signed the log")
	cmd.Flags().StringVar(&head, "head", "", "`SEQ:HASH` that was kept elsewhere, and that the log must lead through")
	flagJSON(cmd, &asJSON)
	return cmd
}

func readRootCA(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the root CA: %w", err)
	}
	certificates, err := pki.ParseCertificates(text)
	if err != nil || len(certificates) != 1 {
		return nil, malformed("portcullis verify writes root-ca.pem", "%s: want one certificate, got %d (%w)", path, len(certificates), err)
	}
	return certificates[0], nil
}

// auditSummary says what was found, and never more.
func auditSummary(r *audit.Report, want audit.Expect) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: lines %d to %d are one chain, the last of %s\n",
		strings.Join(r.Files, ", "), r.First, r.Last, r.Time.Format(time.RFC3339))
	if r.First > 1 {
		fmt.Fprintf(&b, "older files, with lines 1 to %d, are not here\n", r.First-1)
	}
	fmt.Fprintf(&b, "head %d:%s\n", r.Last, r.Hash)
	if want.Head != nil {
		fmt.Fprintf(&b, "it leads through the head %s\n", want.Head)
	}
	if want.RootCA == nil {
		fmt.Fprintf(&b, "whose it is was not checked: give --root-ca\n")
		return b.String()
	}
	fmt.Fprintf(&b, "the Coordinator of this root CA signed it up to line %d\n", r.Signed)
	for i, gap := range r.Unproven {
		if i == 20 {
			fmt.Fprintf(&b, "%d more such\n", len(r.Unproven)-i)
			break
		}
		fmt.Fprintf(&b, "not proven by any signature: %s\n", gap)
	}
	if r.Foreign > 0 {
		fmt.Fprintf(&b, "%d heads are signed by others\n", r.Foreign)
	}
	return b.String()
}

func newAuditShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Print an audit log",
		Long: `Show prints the lines of FILE and of the older files beside it: number, time, event and fields. It stops, with exit code 3,
where the chain is broken. With --json it prints the lines' fields as JSON, one object a line.`,
		Example: `  portcullis audit show audit.log`,
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			out := bufio.NewWriter(cmd.OutOrStdout())
			defer func() {
				if flushed := out.Flush(); err == nil {
					err = flushed
				}
			}()
			_, err = audit.Verify(args[0], audit.Expect{}, func(l *audit.Line) error {
				fields, err := json.Marshal(l.Event)
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(out).Encode(struct {
						Seq    uint64          `json:"seq"`
						Time   time.Time       `json:"time"`
						Event  string          `json:"event"`
						Fields json.RawMessage `json:"fields"`
					}{l.Seq, l.Time, l.Name(), fields})
				}
				_, err = fmt.Fprintf(out, "%8d  %s  %-18s  %s\n", l.Seq, l.Time.Format(time.RFC3339), l.Name(), printable(string(fields)))
				return err
			})
			return err
		},
	}
	flagJSON(cmd, &asJSON)
	return cmd
}

// printable escapes what is not ASCII: a refused stranger chose some of it, and a terminal obeys more than control characters.
func printable(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r < ' ' || r > '~' {
			fmt.Fprintf(&b, "\\u%04x", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}
