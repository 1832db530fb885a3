package initializer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret"
)

// The volume. Everything behind tls-config and secrets changes together, by one rename of ..data:
//
//	..2026_11_25T08_30_00Z-1234567/tls-config/...
//	..2026_11_25T08_30_00Z-1234567/secrets/...
//	..data     -> ..2026_11_25T08_30_00Z-1234567
//	tls-config -> ..data/tls-config
//	secrets    -> ..data/secrets
const (
	current    = "..data"
	tlsDir     = "tls-config"
	secretsDir = "secrets"

	meshCAFile = "tls-config/mesh-ca.pem"
	chainFile  = "tls-config/certChain.pem"
	rootCAFile = "tls-config/coordinator-root-ca.pem"
	keyFile    = "tls-config/key.pem"
	seedFile   = "secrets/workload-secret-seed" // hexadecimal; only with a WorkloadSecretID

	// changedFile is there when the pod knows that the manifest has changed: since when, as RFC 3339 writes it. It is of a
	// version, so that other credentials do away with it, and beside the folders that applications look into. The mesh proxy
	// looks for it, too.
	changedFile = "generation-changed"
)

// ErrNone says that a volume holds no credentials.
var ErrNone = errors.New("there are no credentials")

// Credentials are what a volume holds. Printing them prints what is public.
type Credentials struct {
	Chain *pki.Chain
	// Trust is what peers are accepted under: mesh-ca.pem.
	Trust *pki.Trust
	Key   *ecdsa.PrivateKey
	// Secret is zero for a pod without a WorkloadSecretID.
	Secret secret.Bytes
	// Changed is when the pod heard that they will not be renewed any more, because the manifest is another; zero if it did not.
	Changed time.Time
}

// Ready says whether a volume holds complete credentials that are valid at a time. The error, if any, has ExitCode 3.
func Ready(dir string, at time.Time) error {
	c, err := Load(dir)
	if err == nil {
		err = c.Chain.Verify(&c.Key.PublicKey, at)
	}
	if err != nil {
		return &notReady{fmt.Errorf("%s: %w", dir, err)}
	}
	return nil
}

type notReady struct{ err error }

func (n *notReady) Error() string { return "not ready: " + n.err.Error() }
func (n *notReady) Unwrap() error { return n.err }
func (*notReady) ExitCode() int   { return 3 }

// Load reads a volume. It does not say whether the certificates are valid. The error is ErrNone when nothing was ever
// stored.
func Load(dir string) (*Credentials, error) {
	for {
		version, err := os.Readlink(filepath.Join(dir, current))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, ErrNone
		}
		if err != nil {
			return nil, err
		}
		c, err := loadVersion(filepath.Join(dir, version))
		if errors.Is(err, fs.ErrNotExist) {
			// Another version may have taken its place while we read: then it was removed under our hands.
			if now, linkErr := os.Readlink(filepath.Join(dir, current)); linkErr == nil && now != version {
				continue
			}
		}
		return c, err
	}
}

func loadVersion(root string) (*Credentials, error) {
	var c Credentials
	chain, err := readCertificates(root, chainFile, 2)
	if err != nil {
		return nil, err
	}
	trust, err := os.ReadFile(filepath.Join(root, meshCAFile))
	if err != nil {
		return nil, err
	}
	if c.Trust, err = pki.ParseTrust(trust, chain[0]); err != nil {
		return nil, fmt.Errorf("%s: %w", meshCAFile, err)
	}
	rootCA, err := readCertificates(root, rootCAFile, 1)
	if err != nil {
		return nil, err
	}
	c.Chain = &pki.Chain{Leaf: chain[0], Intermediate: chain[1], MeshCA: c.Trust.MeshCA, RootCA: rootCA[0]}
	text, err := os.ReadFile(filepath.Join(root, keyFile))
	if err != nil {
		return nil, err
	}
	if c.Key, err = pki.ParsePrivateKey(text); err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	switch text, err := os.ReadFile(filepath.Join(root, seedFile)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		b, err := hex.DecodeString(string(bytes.TrimSpace(text)))
		if err != nil || len(b) == 0 {
			return nil, fmt.Errorf("%s is not hexadecimal", seedFile)
		}
		c.Secret = secret.New(b)
	}
	switch text, err := os.ReadFile(filepath.Join(root, changedFile)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if c.Changed, err = time.Parse(time.RFC3339, string(bytes.TrimSpace(text))); err != nil {
			return nil, fmt.Errorf("%s is not a time", changedFile)
		}
	}
	return &c, nil
}

func readCertificates(root, name string, want int) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return nil, err
	}
	certificates, err := pki.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(certificates) != want {
		return nil, fmt.Errorf("%s: %d certificates, want %d", name, len(certificates), want)
	}
	return certificates, nil
}

// store writes a new version beside the current one and makes it current. Whoever reads sees the old version or the
// new one, whole.
func (c *Credentials) store(dir string, at time.Time) (err error) {
	links := map[string]string{tlsDir: current + "/" + tlsDir, secretsDir: current + "/" + secretsDir}
	for name, target := range links {
		if got, err := os.Readlink(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) && got != target {
			return fmt.Errorf("%s is there already and is not the link to %s", filepath.Join(dir, name), target)
		}
	}
	// The name is for people; that it is new is what matters.
	version, err := os.MkdirTemp(dir, ".."+at.UTC().Format("2006_01_02T15_04_05Z")+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(version)
		}
	}()
	if err := c.write(version); err != nil {
		return err
	}
	if err := link(filepath.Base(version), filepath.Join(dir, current)); err != nil {
		return err
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return removeOthers(dir, filepath.Base(version))
}

func (c *Credentials) write(version string) error {
	key, err := pki.EncodePrivateKey(c.Key)
	if err != nil {
		return err
	}
	type file struct {
		name    string
		mode    fs.FileMode
		content []byte
	}
	files := []file{
		{meshCAFile, 0o444, c.Trust.PEM()},
		{chainFile, 0o444, c.Chain.PEM()},
		{rootCAFile, 0o444, pki.EncodeCertificates(c.Chain.RootCA)},
		{keyFile, 0o400, key.Reveal()},
	}
	if c.Secret.Len() > 0 {
		files = append(files, file{seedFile, 0o400, []byte(hex.EncodeToString(c.Secret.Reveal()))})
	}
	if !c.Changed.IsZero() {
		files = append(files, file{changedFile, 0o444, []byte(c.Changed.UTC().Format(time.RFC3339) + "\n")})
	}
	for _, d := range []string{tlsDir, secretsDir} {
		if err := os.Mkdir(filepath.Join(version, d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range files {
		path := filepath.Join(version, f.name)
		if err := os.WriteFile(path, f.content, f.mode); err != nil {
			return err
		}
	}
	// Whatever the umask was. The version's own folder last: nobody but us looks into it before it is complete.
	for _, f := range files {
		if err := os.Chmod(filepath.Join(version, f.name), f.mode); err != nil {
			return err
		}
	}
	for _, d := range []string{tlsDir, secretsDir, "."} {
		if err := os.Chmod(filepath.Join(version, d), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// link makes path a relative symbolic link to target in one step, whatever link it was before.
func link(target, path string) error {
	next := path + ".next"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, next); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// removeOthers removes older versions, and what an Initializer left that was killed while it wrote one.
func removeOthers(dir, version string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "..") && e.Name() != version {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// good says whether credentials need not be replaced: they verify, and less than two thirds of their lifetime is over.
func (c *Credentials) good(at time.Time) bool {
	return c.Chain.Verify(&c.Key.PublicKey, at) == nil && at.Before(c.renewal())
}

// renewal is when two thirds of the certificate's life are over.
func (c *Credentials) renewal() time.Time { return c.Chain.Leaf.NotBefore.Add(c.lifetime() / 3 * 2) }

func (c *Credentials) lifetime() time.Duration {
	return c.Chain.Leaf.NotAfter.Sub(c.Chain.Leaf.NotBefore)
}

func (c *Credentials) sans() (sans []string) {
	sans = append(sans, c.Chain.Leaf.DNSNames...)
	for _, ip := range c.Chain.Leaf.IPAddresses {
		sans = append(sans, ip.String())
	}
	for _, u := range c.Chain.Leaf.URIs {
		sans = append(sans, u.String())
	}
	return sans
}

// describe is what a log may say.
func (c *Credentials) describe() []any {
	mesh := sha256.Sum256(c.Chain.MeshCA.Raw)
	attrs := []any{
		slog.Any("sans", c.sans()),
		slog.String("meshCA", hex.EncodeToString(mesh[:])),
		slog.Time("notAfter", c.Chain.Leaf.NotAfter),
		slog.Bool("workloadSecret", c.Secret.Len() > 0),
	}
	if c.Trust.Predecessor != nil {
		attrs = append(attrs, slog.Time("predecessorUntil", c.Trust.PredecessorUntil))
	}
	if c.Trust.Successor != nil {
		attrs = append(attrs, slog.Time("successorUntil", c.Trust.SuccessorUntil()))
	}
	return attrs
}

// String says which certificate they are of. The key is not part of it.
func (c Credentials) String() string {
	if c.Chain == nil || c.Chain.Leaf == nil {
		return "no credentials"
	}
	return "credentials of " + c.Chain.Leaf.Subject.String() + ", key " + secret.Redacted
}

// GoString is String.
func (c Credentials) GoString() string { return c.String() }

// Format is String, whatever the verb.
func (c Credentials) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// MarshalText is String.
func (c Credentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// LogValue is String.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }
