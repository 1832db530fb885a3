package cli

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/cli/report"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

func newVerify() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check the Coordinator's evidence and history, and write its CA certificates",
		Long: `Verify asks the Coordinator for evidence over a fresh nonce and checks it against a manifest that you hold: that the
hardware and the image are those of the manifest, that the Coordinator enforces exactly this manifest, and that every
manifest before it was replaced by its owners. Only then it writes, into the output folder,

  mesh-ca.pem    every peer under this CA was attested against this manifest, or, where the manifest names Successors, against
                 the next one of its owners, for as long as it says
  root-ca.pem    the same for this manifest and all that its owners put in its place later
  history/       each manifest that was ever enforced, with its signatures

With --html it also writes what that means as one page for people, which needs nothing but itself; with --yaml that page
shows who may talk to whom, by what generate measured into the YAML. When the answer is no, the page says so instead.

Read the manifest before you rely on it: it says what may run. Exit code 3 means that a check was made and failed.`,
		Example: `  portcullis verify -c coordinator.example.com --manifest manifest.json
  portcullis verify -c coordinator.example.com --html report.html --yaml deploy/
  curl --cacert mesh-ca.pem https://web.example.com:8080/`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.register(cmd)
	cmd.Flags().StringVarP(&f.output, "output", "o", ".", "folder to write to")
	cmd.Flags().StringVar(&f.html, "html", "", "file for a report that people can read")
	cmd.Flags().StringArrayVar(&f.yaml, "yaml", nil, "injected YAML, a file or a folder of them, to report who may talk to whom; repeatable")
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", "default", "namespace of objects of the YAML that name none")
	flagJSON(cmd, &f.json)
	return cmd
}

type verifyFlags struct {
	coordinatorFlags
	output, html string
	yaml         []string
	namespace    string
	json         bool
}

func (f *verifyFlags) run(cmd *cobra.Command) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	s, err := f.open(cmd)
	if err != nil {
		return err
	}
	defer s.close()
	pods, err := f.readPods(cmd)
	if err != nil {
		return err
	}
	progress(cmd, "checking the evidence of %s ...", s.client)
	v, _, err := s.attest(ctx, api.FormerOwners.VerifyCoordinator)
	if refused, ok := errors.AsType[*api.VerifyError](err); ok && f.html != "" {
		return f.writeRefusal(cmd, s, refused, err)
	}
	if err != nil {
		return err
	}
	outputs, err := verifiedOutputs(f.output, v)
	if err != nil {
		return err
	}
	r, err := report.New(report.Input{
		Coordinator: s.client.String(), When: time.Now(), Version: Version, Verified: v, Pods: pods,
		MeshCAFile: outputs[0].Path, RootCAFile: outputs[1].Path, HistoryFolder: filepath.Join(f.output, historyFolder),
	})
	if err != nil {
		return err
	}
	if f.html != "" {
		page, err := r.HTML()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(outputs, func(o generate.Output) bool { return filepath.Clean(f.html) == filepath.Clean(o.Path) }) {
			return usageOf(cmd, fmt.Errorf("--html %s is where verify writes something else", f.html))
		}
		r.Written = append(r.Written, f.html)
		outputs = append(outputs, generate.Output{Path: f.html, Data: page, Mode: modeFile})
	}
	for _, o := range outputs {
		if o.Path != f.html {
			if err := os.MkdirAll(filepath.Dir(o.Path), modeFolder); err != nil {
				return fmt.Errorf("write the results: %w", err)
			}
		}
	}
	if err := generate.Write(outputs); err != nil {
		return err
	}
	return reportVerified(cmd, r, f.json)
}

// readPods reads the YAML before anybody is asked: a file that is no YAML is a mistake of the caller's.
func (f *verifyFlags) readPods(cmd *cobra.Command) ([]generate.Measured, error) {
	if len(f.yaml) == 0 {
		return nil, nil
	}
	inputs, err := findInputs(cmd, f.yaml, f.manifest, f.html)
	if err != nil {
		return nil, err
	}
	files, err := readInputs(cmd, inputs)
	if err != nil {
		return nil, err
	}
	pods, err := generate.ReadMeasured(files, f.namespace)
	if err != nil {
		return nil, err
	}
	if pods == nil { // files without pods are not the same as no files
		pods = []generate.Measured{}
	}
	return pods, nil
}

// writeRefusal writes the page that says no in the place of the one that was asked for, so that an older one there, which
// says yes, is not taken for the answer. Certificates of an earlier verification stay.
func (f *verifyFlags) writeRefusal(cmd *cobra.Command, s *session, refused *api.VerifyError, cause error) error {
	page, err := report.Refusal{
		Coordinator: s.client.String(), When: time.Now(), Version: Version, Manifest: f.manifest, Err: refused,
	}.HTML()
	if err == nil {
		err = generate.Write([]generate.Output{{Path: f.html, Data: page, Mode: modeFile}})
	}
	if err != nil {
		return errors.Join(cause, err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "wrote the refusal to %s\n", f.html)
	return cause
}

const historyFolder = "history"

// verifiedOutputs are the CA certificates, which come first, and the history.
func verifiedOutputs(folder string, v *api.Verified) ([]generate.Output, error) {
	outputs := []generate.Output{
		{Path: filepath.Join(folder, "mesh-ca.pem"), Data: pki.EncodeCertificates(v.MeshCA), Mode: modeFile},
		{Path: filepath.Join(folder, "root-ca.pem"), Data: pki.EncodeCertificates(v.RootCA), Mode: modeFile},
	}
	for i, t := range v.History {
		step := filepath.Join(folder, historyFolder, fmt.Sprintf("%04d", i+1))
		description, err := describe(t)
		if err != nil {
			return nil, fmt.Errorf("write the history: %w", err)
		}
		outputs = append(outputs,
			generate.Output{Path: filepath.Join(step, "manifest.json"), Data: t.Manifest.Text(), Mode: modeFile},
			generate.Output{Path: filepath.Join(step, "transition.json"), Data: description, Mode: modeFile})
	}
	return outputs, nil
}

// describe is a transition as a file: what can be checked again with sha256sum and openssl.
func describe(t *manifest.Transition) ([]byte, error) {
	manifestHash := t.Manifest.Hash()
	var b bytes.Buffer
	err := writeJSON(&b, struct {
		TransitionHash string               `json:"transitionHash"`
		Previous       string               `json:"previous"`
		ManifestHash   string               `json:"manifestHash"`
		SignedMessage  string               `json:"signedMessage"`
		Signatures     []manifest.Signature `json:"signatures"`
	}{
		hex.EncodeToString(t.Hash[:]), hex.EncodeToString(t.Previous[:]), hex.EncodeToString(manifestHash[:]),
		string(manifest.SignedMessage(t.Hash)), t.Signatures,
	})
	return b.Bytes(), err
}

func reportVerified(cmd *cobra.Command, r *report.Report, asJSON bool) error {
	if r.Simulated {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: the manifest trusts a simulated TEE: no hardware vouches for any of this")
	}
	if r.Mesh != nil {
		for _, p := range r.Mesh.Strangers {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %q (%q) is not part of this mesh: %s\n", p.Name, p.Place, printable(p.Why))
		}
	}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	successors := "none: mesh-ca.pem is for this manifest alone"
	if d := r.Successors; d != "" {
		successors = "mesh-ca.pem also accepts the next manifest, which this one's owners choose, until " + d + " after it is set"
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), `%s is genuine and enforces the manifest
  platform     %s
  policy hash  %s
  measurement  %s
  transition   %s, number %d of its history
  checks       %s
  successors   %s
wrote %s
`, r.Coordinator, r.Platform, r.PolicyHash, r.Measurement, r.TransitionHash, r.Manifests, summary(r.Checks), successors,
		strings.Join(r.Written, ", "))
	return err
}

// summary names each check once, with how often it was made.
func summary(checks []api.Check) string {
	var names []string
	times := make(map[string]int)
	for _, c := range checks {
		if times[c.Name]++; times[c.Name] == 1 {
			names = append(names, c.Name)
		}
	}
	for i, name := range names {
		if times[name] > 1 {
			names[i] = fmt.Sprintf("%s (%d)", name, times[name])
		}
	}
	return fmt.Sprintf("%d passed: %s", len(checks), strings.Join(names, ", "))
}
