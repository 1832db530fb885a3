package cli

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

func newVerify() *cobra.Command {
	var f coordinatorFlags
	var output string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check the Coordinator's evidence and history, and write its CA certificates",
		Long: `Verify asks the Coordinator for evidence over a fresh nonce and checks it against a manifest that you hold: that the
hardware and the image are those of the manifest, that the Coordinator enforces exactly this manifest, and that every
manifest before it was replaced by its owners. Only then it writes, into the output folder,

  mesh-ca.pem    every peer under this CA was attested against this manifest
  root-ca.pem    the same for this manifest and all that its owners put in its place later
  history/       each manifest that was ever enforced, with its signatures

Read the manifest before you rely on it: it says what may run. Exit code 3 means that a check was made and failed.`,
		Example: `  portcullis verify -c coordinator.example.com --manifest manifest.json
  curl --cacert mesh-ca.pem https://web.example.com:8080/`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
			defer cancel()
			s, err := f.open(cmd)
			if err != nil {
				return err
			}
			defer s.close()
			progress(cmd, "checking the evidence of %s ...", s.client)
			v, _, err := s.attest(ctx, api.FormerOwners.VerifyCoordinator)
			if err != nil {
				return err
			}
			written, err := writeVerified(output, v)
			if err != nil {
				return err
			}
			return reportVerified(cmd, s, v, written, asJSON)
		},
	}
	f.register(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", ".", "folder to write to")
	flagJSON(cmd, &asJSON)
	return cmd
}

// writeVerified writes the CA certificates and the history, all or nothing.
func writeVerified(folder string, v *api.Verified) ([]string, error) {
	outputs := []generate.Output{
		{Path: filepath.Join(folder, "mesh-ca.pem"), Data: pki.EncodeCertificates(v.MeshCA), Mode: modeFile},
		{Path: filepath.Join(folder, "root-ca.pem"), Data: pki.EncodeCertificates(v.RootCA), Mode: modeFile},
	}
	for i, t := range v.History {
		step := filepath.Join(folder, "history", fmt.Sprintf("%04d", i+1))
		if err := os.MkdirAll(step, modeFolder); err != nil {
			return nil, fmt.Errorf("write the history: %w", err)
		}
		description, err := describe(t)
		if err != nil {
			return nil, fmt.Errorf("write the history: %w", err)
		}
		outputs = append(outputs,
			generate.Output{Path: filepath.Join(step, "manifest.json"), Data: t.Manifest.Text(), Mode: modeFile},
			generate.Output{Path: filepath.Join(step, "transition.json"), Data: description, Mode: modeFile})
	}
	if err := generate.Write(outputs); err != nil {
		return nil, err
	}
	return []string{outputs[0].Path, outputs[1].Path, filepath.Join(folder, "history")}, nil
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

func reportVerified(cmd *cobra.Command, s *session, v *api.Verified, written []string, asJSON bool) error {
	if s.manifest.Simulated() {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: the manifest trusts a simulated TEE: no hardware vouches for any of this")
	}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), struct {
			Coordinator    string   `json:"coordinator"`
			Platform       string   `json:"platform"`
			PolicyHash     string   `json:"policyHash"`
			Measurement    string   `json:"measurement"`
			TransitionHash string   `json:"transitionHash"`
			Manifests      int      `json:"manifests"`
			Written        []string `json:"written"`
		}{
			s.client.String(), string(v.Claims.Platform), v.Claims.PolicyHash.String(), hex.EncodeToString(v.Claims.Measurement),
			hex.EncodeToString(v.TransitionHash[:]), len(v.History), written,
		})
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), `%s is genuine and enforces the manifest
  platform     %s
  policy hash  %s
  measurement  %x
  transition   %x, number %d of its history
wrote %s, %s, %s
`, s.client, v.Claims.Platform, v.Claims.PolicyHash, v.Claims.Measurement, v.TransitionHash, len(v.History),
		written[0], written[1], written[2])
	return err
}
