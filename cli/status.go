package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
)

func newStatus() *cobra.Command {
	var f coordinatorFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say what a Coordinator is doing, and what to do next",
		Long: `Status asks a Coordinator for its state, its history and the evidence that it rejected, and says it in words. With
--manifest it verifies what it is told, as verify does; without, all of this is what somebody at that address says.

Exit codes: 0 it serves, and is verified where that was asked for; 3 it does not serve yet or again, or is not what the manifest
says, or its store contradicts it; 1 it was not reached, or its evidence could not be judged.`,
		Example: `  portcullis status -c coordinator.example.com
  portcullis status -c coordinator.example.com --manifest manifest.json --json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
			defer cancel()
			client, err := f.client(cmd)
			if err != nil {
				return err
			}
			s := &status{Coordinator: client.String(), Verified: verifiedUnasked}
			if f.manifest != "" {
				if s.by, err = f.open(cmd); err != nil {
					return err
				}
				defer s.by.close()
			}
			progress(cmd, "asking %s ...", client)
			failed := s.ask(ctx, client)
			write := s.write
			if asJSON {
				write = func(w io.Writer) error { return writeJSON(w, s) }
			}
			if err := write(cmd.OutOrStdout()); err != nil {
				return err
			}
			return failed
		},
	}
	f.register(cmd)
	flag := cmd.Flags().Lookup("manifest")
	flag.DefValue, flag.Usage = "", "manifest to verify the Coordinator by; without it nothing is verified"
	f.manifest = ""
	flagJSON(cmd, &asJSON)
	return cmd
}

// Whether what a status says was verified.
const (
	verifiedYes     = "yes"
	verifiedNo      = "no"
	verifiedUnknown = "unknown" // could not be judged
	verifiedUnasked = "not-asked"
)

// status is what there is to say about a Coordinator.
type status struct {
	Coordinator string       `json:"coordinator"`
	Reachable   bool         `json:"reachable"`
	Verified    string       `json:"verified"`
	Reason      string       `json:"reason,omitempty"` // why it is not reachable or not verified
	State       string       `json:"state,omitempty"`
	Detail      string       `json:"detail,omitempty"` // what it says is wrong with it
	Serving     bool         `json:"serving"`
	Recovery    *shares      `json:"recovery,omitempty"`
	Generation  int          `json:"generation"`
	Transition  string       `json:"transitionHash,omitempty"`
	MeshCA      *authorityCA `json:"meshCa,omitempty"`
	RootCA      *authorityCA `json:"rootCa,omitempty"`
	Since       *time.Time   `json:"since,omitempty"` // when it started
	Rejections  []rejection  `json:"rejections"`
	Next        string       `json:"next,omitempty"`

	by *session // nil where nothing is verified
}

type shares struct {
	Collected int `json:"collected"`
	Threshold int `json:"threshold"`
}

type authorityCA struct {
	SHA256   string    `json:"sha256"`
	NotAfter time.Time `json:"notAfter"`
}

// ask fills s in, and returns what is wrong with the Coordinator, if anything is.
func (s *status) ask(ctx context.Context, client *api.Client) error {
	s.Rejections = []rejection{}
	health, _, err := client.Health(ctx)
	if err != nil {
		err = reachable(err)
		s.Reason, s.Next = err.Error(), hintOf(err)
		return err
	}
	s.Reachable, s.State, s.Detail = true, health.State, health.Detail
	if err := s.attest(ctx, client); err != nil {
		s.Reason, s.Next = err.Error(), hintOf(err)
		return err
	}
	// What it rejected is worth knowing, and no reason to fail: another's proxy may not let it through.
	if metrics, err := client.Metrics(ctx); err == nil {
		rejections, since := readRejections(metrics)
		s.Rejections = append(s.Rejections, rejections...)
		if !since.IsZero() {
			s.Since = &since
		}
	}
	switch s.State {
	case api.StateActive:
		s.Serving = true
		return nil
	case api.StateNoManifest:
		s.Next = "set a manifest: portcullis set"
		return &problem{errors.New("the Coordinator has no manifest yet"), exitNo, s.Next}
	case api.StateNeedsPeer:
		s.Next = "it asks its peers for what they have: are they running, and can it reach them? docs/coordinator.md"
		return &problem{errors.New("another replica went on without this one"), exitNo, s.Next}
	case api.StateSplitHistory:
		s.Serving, s.Next = true, "who can write to the store, and was it put back to an older state? docs/coordinator.md"
		return &problem{fmt.Errorf("the Coordinator serves, but its store contradicts it: %q", s.Detail), exitNo, s.Next}
	case api.StateNeedsRecovery:
		s.Next = "its seed-share owners run portcullis recover, docs/recovery.md"
		return &problem{errors.New("the Coordinator was restarted and waits for its seed"), exitNo, s.Next}
	default:
		s.Next = "is this portcullis as new as the Coordinator?"
		return &problem{fmt.Errorf("the Coordinator is in a state that is unknown here: %q", s.State), exitNo, s.Next}
	}
}

// attest asks for the Coordinator's evidence and what it covers, and judges it where there is a manifest to judge it by.
func (s *status) attest(ctx context.Context, client *api.Client) error {
	attest, judge := client.Attest, verification(api.FormerOwners.VerifyCoordinator)
	switch s.State {
	case api.StateNeedsRecovery, api.StateNeedsPeer:
		attest, judge = client.AttestRecovery, api.FormerOwners.VerifyRecovery
	case api.StateNoManifest:
		judge = api.FormerOwners.VerifyBeforeSet
	}
	nonce := make([]byte, api.NonceSize)
	_, _ = rand.Read(nonce) // never fails since Go 1.24
	answer, err := attest(ctx, nonce)
	if refused, ok := errors.AsType[*api.Error](err); ok && refused.Code == api.CodeNeedsRecovery && s.by == nil {
		return nil // it has no seed-share owners to show anything to
	}
	if err != nil {
		return reachable(err)
	}
	if err := s.read(answer); err != nil {
		return &problem{fmt.Errorf("the Coordinator's answer makes no sense: %w", err), exitNo, "do not rely on this Coordinator"}
	}
	if s.by == nil {
		return nil
	}
	if _, err := judge(s.by.former, ctx, answer, nonce, s.by.manifest, s.by.validation); err != nil {
		s.Verified = verifiedNo
		if _, ok := errors.AsType[*attestation.Unavailable](err); ok {
			s.Verified = verifiedUnknown
		}
		return judged(err)
	}
	s.Verified = verifiedYes
	return nil
}

// read takes from an answer what it says, true or not.
func (s *status) read(answer *api.AttestResponse) error {
	history, err := api.VerifyHistory(answer.History)
	if err != nil {
		return err
	}
	if s.Generation = len(history); s.Generation > 0 {
		s.Transition = hex.EncodeToString(history[s.Generation-1].Hash[:])
	}
	if r := answer.Recovery; r != nil {
		s.Recovery = &shares{r.Collected, r.Threshold}
	}
	for _, ca := range []struct {
		der []byte
		to  **authorityCA
	}{{answer.MeshCA, &s.MeshCA}, {answer.RootCA, &s.RootCA}} {
		if len(ca.der) == 0 {
			continue
		}
		c, err := x509.ParseCertificate(ca.der)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(ca.der)
		*ca.to = &authorityCA{hex.EncodeToString(sum[:]), c.NotAfter.UTC()}
	}
	return nil
}

func (s *status) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	line("coordinator", "%s", s.Coordinator)
	if !s.Reachable {
		line("reachable", "no")
		return w.Flush()
	}
	line("reachable", "yes")
	line("verified", "%s", map[string]string{
		verifiedYes: "yes: it is genuine, and what follows is proven but for the rejections and the number of shares",
		verifiedNo:  "NO: what follows is somebody's word", verifiedUnknown: "not judged: the vendor could not be asked",
		verifiedUnasked: "not asked for (--manifest FILE): what follows is somebody's word",
	}[s.Verified])
	state := fmt.Sprintf("%q, which is unknown here", s.State) // and may be anything
	switch {
	case s.State == api.StateActive:
		state = "active: it serves"
	case s.State == api.StateNoManifest:
		state = "no manifest was set yet"
	case s.State == api.StateSplitHistory:
		state = "split history: it serves, and its store contradicts it"
	case s.State == api.StateNeedsPeer:
		state = "needs a peer: another replica went on without this one"
	case s.State == api.StateNeedsRecovery && s.Recovery == nil:
		state = "needs recovery, and has no seed-share owners"
	case s.State == api.StateNeedsRecovery:
		state = fmt.Sprintf("needs recovery: it has %d of the %d shares that it takes", s.Recovery.Collected, s.Recovery.Threshold)
	}
	line("state", "%s", state)
	if s.Detail != "" {
		line("", "but it says: %q", s.Detail)
	}
	line("generation", "%d", s.Generation)
	if s.Transition != "" {
		line("transition", "%s", s.Transition)
	}
	for _, ca := range []struct {
		name string
		ca   *authorityCA
	}{{"mesh CA", s.MeshCA}, {"root CA", s.RootCA}} {
		if ca.ca != nil {
			line(ca.name, "until %s, SHA-256 %s", ca.ca.NotAfter.Format(time.DateTime+" UTC"), ca.ca.SHA256)
		}
	}
	since := ""
	if s.Since != nil {
		since = ", since it started at " + s.Since.Format(time.DateTime+" UTC")
	}
	total := 0
	for _, r := range s.Rejections {
		total += r.Count
	}
	switch total {
	case 0:
		line("rejections", "none%s", since)
	default:
		line("rejections", "%d%s", total, since)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range s.Rejections {
		if _, err := fmt.Fprintf(out, "  %d for %s: %s\n", r.Count, r.Field, r.Hint); err != nil {
			return err
		}
	}
	if len(s.Rejections) > 0 {
		_, err := fmt.Fprintln(out, "the Coordinator's log says of each what was wanted and what came")
		return err
	}
	return nil
}

// hintOf is an error's advice, empty where it has none.
func hintOf(err error) string {
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		return h.Hint()
	}
	return ""
}
