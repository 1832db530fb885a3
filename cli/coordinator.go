package cli

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// environmentCoordinator stands in for the flag --coordinator.
const environmentCoordinator = "PORTCULLIS_COORDINATOR"

// coordinatorFlags are shared by the commands that talk to a Coordinator.
type coordinatorFlags struct {
	coordinator string
	manifest    string
	former      []string
	timeout     time.Duration
	collateral  collateralFlags
}

func (f *coordinatorFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.coordinator, "coordinator", "c", os.Getenv(environmentCoordinator),
		fmt.Sprintf("HOST[:PORT] of the Coordinator, port %d by default; also %s", api.Port, environmentCoordinator))
	cmd.Flags().Lookup("coordinator").DefValue = "" // help says the same on every machine
	cmd.Flags().StringVar(&f.manifest, "manifest", defaultManifest, "manifest that the Coordinator is to enforce")
	cmd.Flags().StringArrayVar(&f.former, "former-owners", nil,
		"digest of other WorkloadOwnerKeys that earlier manifests may have, as the refusal of such a history prints it; repeatable")
	cmd.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "how long everything may take")
	f.collateral.register(cmd)
}

// session is a conversation with a Coordinator that is judged by a manifest.
type session struct {
	client     *api.Client
	manifest   *manifest.Manifest
	validation manifest.ValidatorOptions
	former     api.FormerOwners
	close      func()
}

func (f *coordinatorFlags) open(cmd *cobra.Command) (*session, error) {
	m, err := readManifest(f.manifest)
	if err != nil {
		return nil, err
	}
	client, err := f.client(cmd)
	if err != nil {
		return nil, err
	}
	former := make(api.FormerOwners, len(f.former))
	for i, digest := range f.former {
		if err := former[i].UnmarshalText([]byte(digest)); err != nil {
			return nil, usageOf(cmd, fmt.Errorf("--former-owners: %w", err))
		}
	}
	validation, done, err := f.collateral.open(m)
	if err != nil {
		return nil, err
	}
	return &session{client, m, validation, former, done}, nil
}

// client is that of the Coordinator that the flags name.
func (f *coordinatorFlags) client(cmd *cobra.Command) (*api.Client, error) {
	if f.coordinator == "" {
		return nil, usageOf(cmd, fmt.Errorf("no Coordinator: give --coordinator HOST[:PORT] or set %s", environmentCoordinator))
	}
	client, err := api.New(f.coordinator)
	if err != nil {
		return nil, usageOf(cmd, err)
	}
	return client, nil
}

func readManifest(path string) (*manifest.Manifest, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, &problem{
			fmt.Errorf("read the manifest: %w", err), exitFailed,
			"portcullis generate writes one; --manifest FILE names another",
		}
	}
	m, err := manifest.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// verification is one of package api's, of a Coordinator.
type verification func(
	api.FormerOwners, context.Context, *api.AttestResponse, []byte, *manifest.Manifest, manifest.ValidatorOptions,
) (*api.Verified, error)

// attest asks the Coordinator who it is, with a fresh nonce, and judges the answer.
func (s *session) attest(ctx context.Context, judge verification) (*api.Verified, *api.AttestResponse, error) {
	return s.ask(ctx, s.client.Attest, judge)
}

// ask is attest for one way to ask.
func (s *session) ask(
	ctx context.Context, attest func(context.Context, []byte) (*api.AttestResponse, error), judge verification,
) (*api.Verified, *api.AttestResponse, error) {
	nonce := make([]byte, api.NonceSize)
	_, _ = rand.Read(nonce) // never fails since Go 1.24
	answer, err := attest(ctx, nonce)
	if err != nil {
		return nil, nil, reachable(err)
	}
	verified, err := judge(s.former, ctx, answer, nonce, s.manifest, s.validation)
	return verified, answer, judged(err)
}

// reachable adds advice to an error that is not the Coordinator's own.
func reachable(err error) error {
	if _, ok := errors.AsType[*api.Error](err); ok {
		return err
	}
	return &problem{err, exitFailed, "is the Coordinator running, and can this machine reach it? " +
		"In a cluster: kubectl port-forward pod/coordinator 1313, then -c 127.0.0.1"}
}

func newSet() *cobra.Command {
	var f coordinatorFlags
	var keys, signatures []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "set",
		Short: "Give the Coordinator a manifest",
		Long: `Set checks the Coordinator's evidence against the manifest, signs the change as a workload owner, hands the manifest over,
and checks the evidence again: afterwards the Coordinator proves that it enforces exactly these bytes.

The first manifest is signed by its own owners, every later one by the owners of the one before it. Owners elsewhere sign
with "portcullis sign", or with "openssl dgst -sha256 -sign", and their signatures are given as --signature.

The first manifest makes the Coordinator's seed, which is split among the manifest's SeedshareOwnerKeys. Their sealed
shares are written beside the manifest: hand each to its owner, who gives it back with "portcullis recover" when the
Coordinator was restarted. Nobody but the owner can read a share; keep copies.`,
		Example: `  portcullis set -c coordinator.example.com
  portcullis set -c 127.0.0.1:1313 --manifest manifest.json --signature alice.sig --signature bob.sig`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
			defer cancel()
			s, err := f.open(cmd)
			if err != nil {
				return err
			}
			defer s.close()
			v, already, err := s.set(ctx, cmd, keys, signatures, filepath.Dir(f.manifest))
			if err != nil {
				return err
			}
			shares, err := writeShares(cmd, s.manifest, v, filepath.Dir(f.manifest))
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), struct {
					TransitionHash string   `json:"transitionHash"`
					Changed        bool     `json:"changed"`
					Shares         []string `json:"shares,omitempty"`
				}{hex.EncodeToString(v.TransitionHash[:]), !already, shares})
			}
			what := "now enforces"
			if already {
				what = "enforces already"
			}
			out := cmd.OutOrStdout()
			if _, err := fmt.Fprintf(out, "%s %s %s, transition %x\n", s.client, what, f.manifest, v.TransitionHash); err != nil {
				return err
			}
			if n := len(v.History); n > 1 && !already {
				if d := v.History[n-2].Manifest.Overlap(); d > 0 {
					_, err := fmt.Fprintf(out, "pods of the manifest before and of this one accept each other for %v; "+
						"running pods hear of it within 2 minutes: roll out after that\n", d)
					if err != nil {
						return err
					}
				}
			}
			if len(shares) > 0 && len(v.History) == 1 {
				_, err = fmt.Fprintf(out, "wrote %s: hand each sealed share of the seed to its owner; it takes %d to "+
					"recover a restarted Coordinator (portcullis recover)\n", strings.Join(shares, ", "), s.manifest.SeedshareThreshold)
			}
			return err
		},
	}
	f.register(cmd)
	cmd.Flags().StringArrayVar(&keys, "workload-owner-key", nil,
		"workload owner's private key, PEM; repeatable (default "+defaultOwnerKey+" beside the manifest, where there is one)")
	cmd.Flags().StringArrayVar(&signatures, "signature", nil, "detached signature of an owner; repeatable")
	flagJSON(cmd, &asJSON)
	return cmd
}

func (s *session) set(
	ctx context.Context, cmd *cobra.Command, keys, signatures []string, keyDirectory string,
) (v *api.Verified, already bool, err error) {
	progress(cmd, "checking the evidence of %s ...", s.client)
	before, _, err := s.attest(ctx, api.FormerOwners.VerifyBeforeSet)
	if err != nil {
		return nil, false, err
	}
	if latest := before.Latest(); latest != nil && string(latest.Text()) == string(s.manifest.Text()) {
		return before, true, nil
	}
	transition := manifest.TransitionHash(s.manifest.Text(), before.TransitionHash)
	owners := s.manifest
	if latest := before.Latest(); latest != nil {
		owners = latest
	}
	signed, err := collectSignatures(owners, transition, keys, signatures, keyDirectory)
	if err != nil {
		return nil, false, err
	}
	progress(cmd, "setting the manifest ...")
	if _, err := s.client.Set(ctx, api.SetRequest{
		Manifest: s.manifest.Text(), Previous: before.TransitionHash[:], Signatures: signed,
	}); err != nil {
		return nil, false, reachable(err)
	}
	progress(cmd, "checking the evidence again ...")
	after, _, err := s.attest(ctx, api.FormerOwners.VerifyCoordinator)
	if err != nil {
		return nil, false, fmt.Errorf("the manifest was sent, but: %w", err)
	}
	if after.TransitionHash != transition {
		return nil, false, &problem{
			fmt.Errorf("the manifest was sent, but the Coordinator is at transition %x, want %x", after.TransitionHash, transition),
			exitNo, "another manifest was set at the same moment; verify, then set again",
		}
	}
	return after, false, nil
}

// collectSignatures signs with the keys that are here, and takes the detached signatures. Where no key is named, the
// default one is used if it exists and is an owner's.
func collectSignatures(
	owners *manifest.Manifest, transition [32]byte, keys, signatures []string, keyDirectory string,
) ([]api.Signature, error) {
	if len(owners.WorkloadOwnerKeys) == 0 {
		return nil, nil
	}
	var signed []api.Signature
	explicit := len(keys) > 0
	if !explicit {
		keys = []string{filepath.Join(keyDirectory, defaultOwnerKey)}
	}
	for _, path := range keys {
		key, err := readPrivateKey(path)
		if errors.Is(err, fs.ErrNotExist) && !explicit {
			continue
		}
		if err != nil {
			return nil, err
		}
		spki, err := pki.SPKI(&key.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if !isOwner(owners, spki) {
			if !explicit {
				continue
			}
			return nil, &problem{
				fmt.Errorf("%s is not among the WorkloadOwnerKeys that must sign this manifest", path), exitNo,
				"the first manifest is signed by its own owners, every later one by those of the one before it",
			}
		}
		signature, err := sign(key, transition)
		if err != nil {
			return nil, err
		}
		signed = append(signed, api.Signature{PublicKey: spki, Signature: signature})
	}
	for _, path := range signatures {
		signature, err := readSignature(path, owners, transition)
		if err != nil {
			return nil, err
		}
		signed = append(signed, signature)
	}
	if err := manifest.VerifyOwners(owners, transition, signed); err != nil {
		return nil, err
	}
	return signed, nil
}

func isOwner(m *manifest.Manifest, spki []byte) bool {
	for _, k := range m.WorkloadOwnerKeys {
		if string(k.SPKI()) == string(spki) {
			return true
		}
	}
	return false
}

func readPrivateKey(path string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the workload owner's key: %w", err)
	}
	key, err := pki.ParsePrivateKey(text)
	if err != nil {
		return nil, malformed("a PKCS #8 private key, ECDSA on P-256 or P-384, in PEM",
			"read the workload owner's key %s: %w", path, err)
	}
	return key, nil
}

func sign(key *ecdsa.PrivateKey, transition [32]byte) ([]byte, error) {
	digest := sha256.Sum256(manifest.SignedMessage(transition))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("sign transition %x: %w", transition, err)
	}
	return signature, nil
}

// readSignature reads a signature, raw as openssl writes it or in base64, and finds whose it is.
func readSignature(path string, owners *manifest.Manifest, transition [32]byte) (api.Signature, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return api.Signature{}, fmt.Errorf("read the signature: %w", err)
	}
	raw := text
	if decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text))); err == nil {
		raw = decoded
	}
	digest := sha256.Sum256(manifest.SignedMessage(transition))
	for _, owner := range owners.WorkloadOwnerKeys {
		key, err := pki.ParseSPKI(owner.SPKI())
		if err == nil && ecdsa.VerifyASN1(key, digest[:], raw) {
			return api.Signature{PublicKey: owner.SPKI(), Signature: raw}, nil
		}
	}
	return api.Signature{}, &problem{
		fmt.Errorf("%s is not a signature by a workload owner over transition %x", path, transition), exitNo,
		"was it made for this manifest, and for the one before it? portcullis sign makes it anew",
	}
}

func newSign() *cobra.Command {
	var f coordinatorFlags
	var key, previous, output string
	cmd := &cobra.Command{
		Use:   "sign",
		Short: "Sign a change of the manifest, for somebody else to set",
		Long: `Sign writes a workload owner's detached signature over the transition from one manifest to the next, to be given to
"portcullis set --signature". The manifest before is named by its transition hash (--previous; "none" for the first
manifest), or asked of the Coordinator, whose evidence is then checked first.

Without this command: the signed text is "portcullis transition v1:" and the new transition hash in hexadecimal, which
--print shows; openssl dgst -sha256 -sign key.pem makes the same signature.`,
		Example: `  portcullis sign -c coordinator.example.com --workload-owner-key alice.pem -o alice.sig
  portcullis sign --previous none --workload-owner-key alice.pem -o alice.sig`,
		Args: arguments(cobra.NoArgs),
	}
	var printOnly, asJSON bool
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
		defer cancel()
		m, err := readManifest(f.manifest)
		if err != nil {
			return err
		}
		from, err := f.previous(ctx, cmd, previous)
		if err != nil {
			return err
		}
		transition := manifest.TransitionHash(m.Text(), from)
		if printOnly {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s", manifest.SignedMessage(transition))
			return err
		}
		if key == "" {
			key = filepath.Join(filepath.Dir(f.manifest), defaultOwnerKey)
		}
		private, err := readPrivateKey(key)
		if err != nil {
			return err
		}
		signature, err := sign(private, transition)
		if err != nil {
			return err
		}
		if err := generate.Write([]generate.Output{{Path: output, Data: signature, Mode: modeFile}}); err != nil {
			return err
		}
		if asJSON {
			return writeJSON(cmd.OutOrStdout(), struct {
				TransitionHash string   `json:"transitionHash"`
				SignedMessage  string   `json:"signedMessage"`
				Written        []string `json:"written"`
			}{hex.EncodeToString(transition[:]), string(manifest.SignedMessage(transition)), []string{output}})
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %s, over %s\n", output, manifest.SignedMessage(transition))
		return err
	}
	f.register(cmd)
	cmd.Flags().StringVar(&key, "workload-owner-key", "", "private key, PEM (default "+defaultOwnerKey+" beside the manifest)")
	cmd.Flags().StringVar(&previous, "previous", "", "transition hash of the manifest before, 64 hexadecimal digits, or none")
	cmd.Flags().StringVarP(&output, "output", "o", "transition.sig", "file for the signature")
	cmd.Flags().BoolVar(&printOnly, "print", false, "print the text that would be signed, and sign nothing")
	flagJSON(cmd, &asJSON)
	return cmd
}

// previous is the transition that the next manifest follows.
func (f *coordinatorFlags) previous(ctx context.Context, cmd *cobra.Command, text string) (hash [32]byte, err error) {
	switch text {
	case "none":
		return hash, nil
	case "":
		if f.coordinator == "" {
			return hash, usageOf(cmd, errors.New("give --previous HASH (or none), or --coordinator to ask"))
		}
		s, err := f.open(cmd)
		if err != nil {
			return hash, err
		}
		defer s.close()
		progress(cmd, "checking the evidence of %s ...", s.client)
		v, _, err := s.attest(ctx, api.FormerOwners.VerifyBeforeSet)
		if err != nil {
			return hash, err
		}
		return v.TransitionHash, nil
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(hash) {
		return hash, usageOf(cmd, fmt.Errorf("--previous %q is neither 64 hexadecimal digits nor none", text))
	}
	return [32]byte(b), nil
}
