package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/manifest/strictjson"
	"portcullis.dev/portcullis/pki"
)

// defaultSeedshareKey is the seed-share owner's private key.
const defaultSeedshareKey = "seedshare-owner.pem"

func newKeygen() *cobra.Command {
	var output string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a seed-share owner's keys",
		Long: `Keygen makes the keys of a seed-share owner: one that a share of the Coordinator's seed is sealed to, and one that signs for
the share when it is given back. The private halves are written to the output file, which stays with the owner, and the
public halves beside it with the ending .pub, for "portcullis generate --seedshare-owner-key".`,
		Example: "  portcullis keygen -o alice.pem",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := pki.NewSeedshareKey()
			if err != nil {
				return err
			}
			outputs, err := seedshareKeyFiles(output, key)
			if err != nil {
				return err
			}
			if err := generate.Write(outputs); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]string{"private": outputs[0].Path, "public": outputs[1].Path})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %s, which is secret, and %s\n", outputs[0].Path, outputs[1].Path)
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", defaultSeedshareKey, "file for the private keys")
	flagJSON(cmd, &asJSON)
	return cmd
}

// seedshareKeyFiles are a new key's private file and its public one.
func seedshareKeyFiles(path string, key *pki.SeedshareKey) ([]generate.Output, error) {
	private, err := key.Encode()
	if err != nil {
		return nil, err
	}
	public, err := key.Public().Encode()
	if err != nil {
		return nil, err
	}
	return []generate.Output{
		{Path: path, Data: private.Reveal(), Mode: modeSecret, Exclusive: true},
		{Path: strings.TrimSuffix(path, ".pem") + ".pub", Data: public, Mode: modeFile, Exclusive: true},
	}, nil
}

func newRecover() *cobra.Command {
	var f coordinatorFlags
	var shares, keys []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Give a restarted Coordinator your share of its seed",
		Long: `Recover checks the evidence of a Coordinator that was restarted, as verify does: that hardware and image are those of the
manifest, that its history is one that the owners signed, and that it ends with exactly this manifest. Only then it opens
your share, seals it to this Coordinator alone, signs it, and hands it over. With as many shares as SeedshareThreshold says
the Coordinator serves again.

The manifest must be the newest that you know: a host may have put an old copy of the Coordinator's store in place, and
nobody but you can tell.

The recovered Coordinator has the root CA and the workload secrets of before, and a new mesh CA. Pods that were certified
before it keep what they have and cannot renew: roll them out again. docs/recovery.md says more.`,
		Example: `  portcullis recover -c coordinator.example.com
  portcullis recover -c 127.0.0.1:1313 --share share-3f0e7a9d2c4b6f80-91a2b3c4.json --key alice.pem`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
			defer cancel()
			s, err := f.open(cmd)
			if err != nil {
				return err
			}
			defer s.close()
			folder := filepath.Dir(f.manifest)
			if len(keys) == 0 {
				keys = []string{filepath.Join(folder, defaultSeedshareKey)}
			}
			owners, err := readSeedshareKeys(keys)
			if err != nil {
				return err
			}
			given, err := readShares(cmd, shares, folder, owners)
			if err != nil {
				return err
			}
			return s.recover(ctx, cmd, given, owners, asJSON)
		},
	}
	f.register(cmd)
	cmd.Flags().StringArrayVar(&shares, "share", nil,
		"sealed share, as set wrote it; repeatable (default: those of the keys, beside the manifest)")
	cmd.Flags().StringArrayVar(&keys, "key", nil,
		"seed-share owner's private keys, PEM; repeatable (default "+defaultSeedshareKey+" beside the manifest)")
	flagJSON(cmd, &asJSON)
	return cmd
}

// recovered is the result of recover as JSON.
type recovered struct {
	Coordinator    string `json:"coordinator"`
	TransitionHash string `json:"transitionHash"`
	Collected      int    `json:"collected"`
	Threshold      int    `json:"threshold"`
	Recovered      bool   `json:"recovered"`
}

// recover gives shares until there are enough.
func (s *session) recover(
	ctx context.Context, cmd *cobra.Command, shares []shareFile, owners map[string]*pki.SeedshareKey, asJSON bool,
) error {
	progress(cmd, "checking the evidence of %s ...", s.client)
	v, _, err := s.ask(ctx, s.client.AttestRecovery, api.FormerOwners.VerifyRecovery)
	if err != nil {
		return err
	}
	out := recovered{Coordinator: s.client.String(), TransitionHash: hex.EncodeToString(v.TransitionHash[:])}
	var rootKey []byte
	for _, share := range shares {
		resp, err := s.giveShare(ctx, share, owners[string(share.Owner)], v)
		if err != nil {
			return err
		}
		out.Collected, out.Threshold, out.Recovered = resp.Collected, resp.Threshold, resp.Recovered
		if !asJSON {
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "gave %s: %d of %d shares\n", share.path, resp.Collected, resp.Threshold); err != nil {
				return err
			}
		}
		if rootKey = share.RootKey; resp.Recovered {
			break
		}
	}
	if out.Recovered {
		if err := s.recheck(ctx, cmd, rootKey); err != nil {
			return err
		}
	}
	switch {
	case asJSON:
		return writeJSON(cmd.OutOrStdout(), out)
	case out.Recovered:
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is recovered, at transition %x\n"+
			"its mesh CA is new: roll out the pods of before again, and verify for the new mesh-ca.pem\n", s.client, v.TransitionHash)
		return err
	default:
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s waits for the shares of other owners\n", s.client)
		return err
	}
}

// giveShare opens a share for the Coordinator that v verified.
func (s *session) giveShare(
	ctx context.Context, share shareFile, owner *pki.SeedshareKey, v *api.Verified,
) (*api.RecoverResponse, error) {
	if !bytes.Equal(share.TransitionHash, v.History[0].Hash[:]) {
		return nil, &problem{
			fmt.Errorf("%s is not of this Coordinator's seed: it was made with transition %x, and this history begins with %x",
				share.path, share.TransitionHash, v.History[0].Hash), exitNo, "is it the share of another deployment?",
		}
	}
	opened, err := share.Open(owner.HPKE)
	if err != nil {
		return nil, &problem{fmt.Errorf("%s: %w", share.path, err), exitNo, "portcullis set wrote it; was it changed since?"}
	}
	req, err := api.NewRecoverRequest(opened, owner.Signing, v)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Recover(ctx, *req)
	if err == nil {
		return resp, nil
	}
	err = fmt.Errorf("give %s: %w", share.path, reachable(err))
	if refused, ok := errors.AsType[*api.Error](err); ok && (refused.Code == api.CodeBadSignature || refused.Code == api.CodeBadNonce) {
		return nil, &problem{err, refused.ExitCode(), "it was restarted meanwhile, or discarded the shares it had: recover again"}
	}
	return nil, err
}

// recheck makes sure that what was recovered is the Coordinator of before.
func (s *session) recheck(ctx context.Context, cmd *cobra.Command, rootKey []byte) error {
	progress(cmd, "checking the evidence again ...")
	v, _, err := s.attest(ctx, api.FormerOwners.VerifyCoordinator)
	if err != nil {
		return fmt.Errorf("the shares were given, but: %w", err)
	}
	if !bytes.Equal(v.RootCA.RawSubjectPublicKeyInfo, rootKey) {
		return &problem{
			errors.New("the shares were given, but the Coordinator's root CA has another key than the one that signed them"), exitNo,
			"do not rely on this Coordinator",
		}
	}
	return nil
}

// shareFile is a sealed share and where it lies.
type shareFile struct {
	api.SealedShare
	path string
}

// shareName is the file of a share. It names the root CA too: the shares of two deployments that one owner has are never
// one file.
func shareName(s *api.SealedShare) string {
	return fmt.Sprintf("share-%s-%s.json", fingerprint(s.Owner)[:16], fingerprint(s.RootKey)[:8])
}

func fingerprint(spki []byte) string {
	hash := sha256.Sum256(spki)
	return hex.EncodeToString(hash[:])
}

// shareFiles are the shares as files to be written, in folder.
func shareFiles(folder string, shares []api.SealedShare) ([]generate.Output, error) {
	outputs := make([]generate.Output, len(shares))
	for i := range shares {
		var b bytes.Buffer
		if err := writeJSON(&b, shares[i]); err != nil {
			return nil, err
		}
		outputs[i] = generate.Output{Path: filepath.Join(folder, shareName(&shares[i])), Data: b.Bytes(), Mode: modeFile}
	}
	return outputs, nil
}

// readShares reads the named shares, or else every share in folder that belongs to one of the owners.
func readShares(cmd *cobra.Command, paths []string, folder string, owners map[string]*pki.SeedshareKey) ([]shareFile, error) {
	explicit := len(paths) > 0
	if !explicit {
		var err error
		if paths, err = filepath.Glob(filepath.Join(folder, "share-*.json")); err != nil {
			return nil, usageOf(cmd, err)
		}
	}
	var shares []shareFile
	taken := make(map[string]string)
	for _, path := range paths {
		share, err := readShare(path)
		if err != nil {
			return nil, err
		}
		if owners[string(share.Owner)] == nil {
			if !explicit {
				continue
			}
			return nil, &problem{
				fmt.Errorf("%s is sealed to the owner %.16s, whose key is not given", path, fingerprint(share.Owner)), exitUsage,
				"--key FILE names the owner's private keys",
			}
		}
		if other, ok := taken[string(share.Owner)]; ok {
			return nil, usageOf(cmd, fmt.Errorf("%s and %s are shares of one owner: name one of them with --share", other, path))
		}
		taken[string(share.Owner)] = path
		shares = append(shares, share)
	}
	if len(shares) == 0 {
		return nil, usageOf(cmd, fmt.Errorf("no share of these keys lies in %s: give --share FILE", folder))
	}
	return shares, nil
}

func readShare(path string) (shareFile, error) {
	share := shareFile{path: path}
	text, err := os.ReadFile(path)
	if err != nil {
		return share, fmt.Errorf("read the share: %w", err)
	}
	if err := strictjson.Unmarshal(text, &share.SealedShare); err != nil {
		return share, malformed("portcullis set writes shares", "%s is not a sealed share: %w", path, err)
	}
	return share, nil
}

// readSeedshareKeys reads private keys, by the SPKI of their signing half.
func readSeedshareKeys(paths []string) (map[string]*pki.SeedshareKey, error) {
	keys := make(map[string]*pki.SeedshareKey)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read the seed-share owner's key: %w", err)
		}
		key, err := pki.ParseSeedshareKey(text)
		if err != nil {
			return nil, malformed("portcullis keygen makes one", "%s: %w", path, err)
		}
		spki, err := pki.SPKI(&key.Signing.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		keys[string(spki)] = key
	}
	return keys, nil
}

// writeShares writes the shares that v proves genuine, for their owners to keep, and says what they are for.
func writeShares(cmd *cobra.Command, m *manifest.Manifest, v *api.Verified, folder string) ([]string, error) {
	if len(m.SeedshareOwnerKeys) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: the manifest lists no SeedshareOwnerKeys: when the Coordinator restarts nobody can give "+
			"it its seed back, and everything must be deployed anew")
		return nil, nil
	}
	if len(v.Shares) == 0 {
		return nil, &problem{
			errors.New("the manifest is in force, but the Coordinator does not show the shares of its seed"), exitNo,
			"without them a restart cannot be recovered from; what is between here and the Coordinator may have taken them out",
		}
	}
	outputs, err := shareFiles(folder, v.Shares)
	if err != nil {
		return nil, err
	}
	if err := generate.Write(outputs); err != nil {
		return nil, err
	}
	paths := make([]string, len(outputs))
	for i, o := range outputs {
		paths[i] = o.Path
	}
	return paths, nil
}
