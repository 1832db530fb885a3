package meshproxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"portcullis.dev/portcullis/meshproxy/envoy"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret"
)

// credentials are the pod's certificate chain, its key and what it trusts, checked against each other.
type credentials struct {
	chain  []byte // PEM, leaf first
	key    secret.Bytes
	meshCA []byte // PEM, as it was read
	leaf   *x509.Certificate
	trust  *pki.Trust // of now: what is over is not in it
	// changed says that the Initializer knows that the manifest has changed. It is for operators, and nothing depends on it.
	changed bool
}

func (c *credentials) equal(o *credentials) bool {
	return bytes.Equal(c.chain, o.chain) && c.key.Equal(o.key) && bytes.Equal(c.trust.PEM(), o.trust.PEM())
}

// at is c as it is to be published at a time.
func (c credentials) at(now time.Time) *credentials {
	c.trust = c.trust.At(now)
	return &c
}

// lifetime is how long the certificate is good for in all.
func (c *credentials) lifetime() time.Duration { return c.leaf.NotAfter.Sub(c.leaf.NotBefore) }

// valid says whether c is in its time.
func (c *credentials) valid(now time.Time) error {
	switch {
	case now.Before(c.leaf.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s", c.leaf.NotBefore.Format(time.RFC3339))
	case now.After(c.leaf.NotAfter):
		return fmt.Errorf("the certificate expired at %s", c.leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// readCredentials reads what the Initializer wrote and refuses what would not work, or would be another mesh than before:
// the mesh CA is for the life of a pod.
func readCredentials(dir string, before *credentials) (*credentials, error) {
	c, err := loadCredentials(dir)
	if err != nil {
		return nil, fmt.Errorf("read the credentials in %s: %w", dir, err)
	}
	if err := c.check(time.Now()); err != nil {
		return nil, fmt.Errorf("check the credentials in %s: %w", dir, err)
	}
	if before != nil && !bytes.Equal(c.trust.MeshCA.RawSubjectPublicKeyInfo, before.trust.MeshCA.RawSubjectPublicKeyInfo) {
		return nil, fmt.Errorf("check the credentials in %s: mesh-ca.pem is another mesh CA than at the start", dir)
	}
	return c, nil
}

func loadCredentials(dir string) (*credentials, error) {
	// The folder is replaced as a whole by a link: follow it once, so that all files are of one version.
	dir, err := filepath.EvalSymlinks(filepath.Join(dir, "tls-config"))
	if err != nil {
		return nil, err
	}
	c := &credentials{}
	var key []byte
	for _, f := range []struct {
		name string
		into *[]byte
	}{{"certChain.pem", &c.chain}, {"key.pem", &key}, {"mesh-ca.pem", &c.meshCA}} {
		if *f.into, err = os.ReadFile(filepath.Join(dir, f.name)); err != nil {
			return nil, err
		}
	}
	c.key = secret.New(key)
	// Beside the folder, in the same version.
	switch _, err := os.Stat(filepath.Join(filepath.Dir(dir), "generation-changed")); {
	case err == nil:
		c.changed = true
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return c, nil
}

func (c *credentials) check(now time.Time) error {
	chain, err := pki.ParseCertificates(c.chain)
	if err != nil {
		return fmt.Errorf("certChain.pem: %w", err)
	}
	c.leaf = chain[0]
	// The first certificate is the mesh CA, and the pin. What may stand behind it is decided by it: a certificate that it
	// signed for what came after it, and the predecessor that it named in our own certificate. So another CA that got into the
	// file by mistake is an error, and not one that peers may have.
	trust, err := pki.ParseTrust(c.meshCA, c.leaf)
	if err != nil {
		return fmt.Errorf("mesh-ca.pem: %w", err)
	}
	c.trust = trust.At(now)
	key, err := pki.ParsePrivateKey(c.key.Reveal())
	if err != nil {
		return fmt.Errorf("key.pem: %w", err)
	}
	if !key.PublicKey.Equal(c.leaf.PublicKey) {
		return errors.New("key.pem is not the key of the certificate in certChain.pem")
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(c.trust.MeshCA) // and no other: our own certificate is under our own mesh CA
	for _, i := range chain[1:] {
		intermediates.AddCert(i)
	}
	// Peers are clients and servers of each other.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := c.leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
		}); err != nil {
			return fmt.Errorf("certChain.pem does not verify under mesh-ca.pem: %w", err)
		}
	}
	return nil
}

// publish puts credentials in force, for new connections, with ticket keys that know nothing of the ones before: a ticket
// carries the identity of the peer that it was made for.
func (s *supervisor) publish(c *credentials) error {
	if err := s.dir.publish(s.dir.Credentials(), envoy.CredentialFiles(c.chain, c.key.Reveal(), c.trust.PEM())); err != nil {
		return fmt.Errorf("publish credentials: %w", err)
	}
	if err := s.publishTickets(newTickets(envoy.TicketChains(s.Mesh))); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credentials = c
	s.generationChanged = c.changed
	s.published++
	return nil
}

func (s *supervisor) publishTickets(t tickets) error {
	if err := s.dir.publish(s.dir.Tickets(), t.files()); err != nil {
		return fmt.Errorf("publish ticket keys: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickets = t
	s.ticketsPublished++
	return nil
}

// keepSecrets publishes new credentials as they come and new ticket keys in time. What it refuses it reports, once, and
// keeps what is in force.
func (s *supervisor) keepSecrets(ctx context.Context) error {
	watch, renew := time.NewTicker(watchInterval), time.NewTicker(ticketInterval)
	defer watch.Stop()
	defer renew.Stop()
	var complained string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-renew.C:
			if err := s.publishTickets(s.currentTickets().rotated()); err != nil {
				s.Log.Error("TLS session ticket keys are not rotated", "err", err)
			}
		case <-watch.C:
			before := s.inForce()
			after, err := readCredentials(s.Credentials, before)
			if err == nil {
				s.noteChange(after.changed)
			}
			if err == nil && after.equal(before) {
				complained = ""
				continue
			}
			if err == nil {
				err = s.publish(after)
			} else if left := before.at(time.Now()); !left.equal(before) {
				// Whatever became of the Initializer and its files, what is over is over.
				err = errors.Join(err, s.publish(left))
				renew.Reset(ticketInterval)
				s.Log.Info("the time is over in which pods of two manifests accept each other", left.attrs()...)
			}
			switch {
			case err == nil:
				complained = ""
				renew.Reset(ticketInterval)
				s.Log.Info("new credentials are in force", after.attrs()...)
			case err.Error() != complained:
				complained = err.Error()
				s.mu.Lock()
				s.refused++
				s.mu.Unlock()
				s.Log.Error("new credentials are refused; the old ones stay in force", "err", err)
			}
		}
	}
}

// attrs are what a log says of credentials.
func (c *credentials) attrs() []any {
	attrs := []any{"serial", c.leaf.SerialNumber.Text(16), "notAfter", c.leaf.NotAfter}
	if c.trust.Predecessor != nil {
		attrs = append(attrs, "predecessorUntil", c.trust.PredecessorUntil)
	}
	if c.trust.Successor != nil {
		attrs = append(attrs, "successorUntil", c.trust.SuccessorUntil())
	}
	return attrs
}

func (s *state) noteChange(changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generationChanged = changed
}

func (s *state) inForce() *credentials {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.credentials
}

func (s *state) currentTickets() tickets {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tickets
}

type ticketKey = [envoy.TicketKeyLen]byte

// tickets are the ticket keys of each filter chain, the one that makes tickets first. BoringSSL takes the format's key
// name, HMAC key and AES key from the bytes.
type tickets map[string][]ticketKey

func newTickets(chains []string) tickets {
	t := tickets{}
	for _, c := range chains {
		t[c] = []ticketKey{freshKey()}
	}
	return t
}

// rotated has a new first key for each chain, and of the old ones the first.
func (t tickets) rotated() tickets {
	next := tickets{}
	for chain, keys := range t {
		next[chain] = []ticketKey{freshKey(), keys[0]}
	}
	return next
}

func freshKey() (k ticketKey) {
	rand.Read(k[:]) // never fails
	return k
}

func (t tickets) files() map[string][]byte {
	files := map[string][]byte{}
	for chain, keys := range t {
		files[envoy.FileName(chain)] = envoy.TicketFile(chain, keys...)
	}
	return files
}

// Format keeps the keys out of logs.
func (t tickets) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "ticket keys of %d chains", len(t)) }
