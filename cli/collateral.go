package cli

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/manifest"
)

// collateralFlags are shared by the commands that judge evidence.
type collateralFlags struct{ dir string }

func (f *collateralFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dir, "collateral-dir", defaultCollateral(),
		"folder that keeps what AMD and Intel publish; empty for memory alone")
	// Help says the same on every machine.
	cmd.Flags().Lookup("collateral-dir").DefValue = "portcullis/collateral in the user's cache folder"
}

// defaultCollateral is in the user's cache, where there is one.
func defaultCollateral() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "portcullis", "collateral")
}

// open returns what it takes to judge evidence by m. The caller calls done at the end. Nothing is opened, and no folder
// made, for a manifest that trusts no hardware.
func (f *collateralFlags) open(m *manifest.Manifest) (o manifest.ValidatorOptions, done func(), err error) {
	if !m.Hardware() {
		return o, func() {}, nil
	}
	cache, err := collateral.New(collateral.Config{Dir: f.dir})
	if err != nil {
		return o, nil, &problem{err, exitFailed, "--collateral-dir DIR names another folder, and --collateral-dir= none"}
	}
	// A folder that could not be closed has still kept what it has, or else it is fetched again.
	return manifest.ValidatorOptions{Collateral: cache}, func() { _ = cache.Close() }, nil
}

// judged adds advice to an error that says that evidence could not be judged.
func judged(err error) error {
	if _, ok := errors.AsType[*attestation.Unavailable](err); ok {
		return &problem{err, exitFailed, "this is not a no: try again when the vendor can be reached, " +
			"or give a --collateral-dir that was filled where it can (coordinator collateral)"}
	}
	if refused, ok := errors.AsType[*api.VerifyError](err); ok && refused.Check == api.CheckOwners {
		return &problem{err, refused.ExitCode(), "who began a history may know the seed of its root CA and workload secrets: where you know " +
			"and trust these owners, --former-owners DIGEST says so"}
	}
	return err
}
