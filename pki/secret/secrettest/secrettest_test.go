package secrettest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret/secrettest"
)

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// logged is what a careless line leaves in a log.
func logged(t *testing.T, value any) string {
	t.Helper()
	var b bytes.Buffer
	slog.New(slog.NewJSONHandler(&b, nil)).Info("request", "value", value)
	return b.String()
}

func TestALeakIsFoundInEveryForm(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	pemText := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	for name, text := range map[string]string{
		"raw":                         string(d),
		"hexadecimal":                 hex.EncodeToString(d),
		"upper case":                  strings.ToUpper(hex.EncodeToString(d)),
		"with spaces":                 fmt.Sprintf("% x", d),
		"base64":                      base64.StdEncoding.EncodeToString(d),
		"base64 for URLs":             base64.URLEncoding.EncodeToString(d),
		"base64 without padding":      base64.RawURLEncoding.EncodeToString(d),
		"base64 behind one byte":      base64.StdEncoding.EncodeToString(append([]byte{1}, d...)),
		"base64 behind two bytes":     base64.StdEncoding.EncodeToString(append([]byte{1, 2}, d...)),
		"base64 before others":        base64.RawStdEncoding.EncodeToString(append(bytes.Clone(d), 1, 2)),
		"the first half":              hex.EncodeToString(d[:16]),
		"the last half":               base64.StdEncoding.EncodeToString(d[16:]),
		"a number":                    new(big.Int).SetBytes(d).String(),
		"Go's %v":                     fmt.Sprint(d),
		"Go's %#v":                    fmt.Sprintf("%#v", d),
		"Go's %q":                     fmt.Sprintf("%q", d),
		"Go's %+q":                    fmt.Sprintf("%+q", d),
		"JSON":                        string(asJSON),
		"JSON, as numbers":            strings.ReplaceAll(fmt.Sprint(d), " ", ","),
		"a log":                       logged(t, d),
		"a log of a big.Int":          logged(t, new(big.Int).SetBytes(d)),
		"DER":                         string(pkcs8),
		"SEC 1":                       string(sec1),
		"PEM":                         pemText,
		"PEM of Windows":              strings.ReplaceAll(pemText, "\n", "\r\n"),
		"PEM in a log":                logged(t, pemText),
		"SEC 1 in PEM":                string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})),
		"base64 of the PEM in base64": base64.StdEncoding.EncodeToString(pkcs8),
	} {
		var s secrettest.Set
		s.AddKey("the leaf key", key)
		text = strings.Repeat("nothing here\n", 50) + text + strings.Repeat("\nnor here", 50)
		found := s.Find([]byte(text))
		if len(found) == 0 {
			t.Errorf("%s: not found", name)
		}
		for _, f := range found {
			if !strings.HasPrefix(f, "the leaf key, ") || strings.Contains(f, hex.EncodeToString(d[:8])) {
				t.Errorf("%s: named %q", name, f)
			}
		}
	}
}

func TestWhatIsNoLeakIsNotFound(t *testing.T) {
	var s secrettest.Set
	if s.Len() != 0 || len(s.Find([]byte("anything"))) != 0 {
		t.Error("an empty set finds something")
	}
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s.AddSeed(seed, "db", "web")
	s.AddSeed(seed, "db", "web")
	if s.Len() != 6 {
		t.Errorf("%d secrets, want 6", s.Len())
	}
	public, err := pki.SPKI(&seed.RootKey().PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprint(seed, hex.EncodeToString(public), base64.StdEncoding.EncodeToString(public),
		hex.EncodeToString(random(t, 4096)), string(random(t, 1<<20)), seed.RootKey().PublicKey)
	if found := s.Find([]byte(text)); len(found) > 0 {
		t.Errorf("found %v", found)
	}
	for what, b := range map[string][]byte{
		"the seed": seed.Reveal(), "the nonce key": seed.NonceKey().Reveal(), "the workload secret db": seed.WorkloadSecret("db").Reveal(),
	} {
		if found := s.Find(b); len(found) == 0 || !strings.HasPrefix(found[0], what+",") {
			t.Errorf("%s: found %v", what, found)
		}
	}
}

func TestTooShortASecretIsAMistake(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("it was taken")
		}
	}()
	new(secrettest.Set).Add("a password", []byte("hunter2"))
}

func TestFilesAreSearched(t *testing.T) {
	dir := t.TempDir()
	leak := random(t, 32)
	for name, text := range map[string]string{"a/x.log": "clean", "a/b/y.log": "x " + hex.EncodeToString(leak), "a/key.pem": string(leak)} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var s secrettest.Set
	s.Add("the leak", leak)
	found, files, err := s.FindInFiles(dir, func(path string) bool { return filepath.Ext(path) == ".log" })
	if err != nil || files != 2 || len(found) != 1 || !strings.HasSuffix(found[0], "y.log has the leak, in hexadecimal") {
		t.Errorf("%v in %d files, %v", found, files, err)
	}
	if _, _, err := s.FindInFiles(filepath.Join(dir, "missing"), func(string) bool { return true }); err == nil {
		t.Error("a folder that is not there was searched")
	}
}
