// Package secrettest searches what tests and demos leave behind for secrets: logs, answers, files.
//
// Secrets are types that print as REDACTED (package secret), and a type keeps nobody from printing what Reveal returned, a
// private key of the standard library, or a buffer that happens to hold either. So what was written is searched for every secret
// that was made, in each form that a careless line of code would give it: as it is, in hexadecimal, in base64 of both alphabets at
// any place within other bytes (so also within the DER of a PEM block), as a number, as Go prints bytes, and quoted. A part of 16
// bytes is enough to be found.
package secrettest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hpke"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret"
)

// window is how much of a secret is looked for at a time: of a leak of 31 bytes or more there is a whole one.
const window = 16

// Set is secrets to look for. The zero value is empty. All methods may be called at the same time.
type Set struct {
	mu    sync.Mutex
	known map[string]bool
	forms map[[prefix]byte][]form
	first [1 << 16]bool // whether a form begins with these two bytes: most places of a text are passed over by this alone
	n     int
}

// prefix is how much of a form is compared first.
const prefix = 8

type form struct{ text, name string }

// Add adds a secret of 16 bytes at least; shorter ones are in every text.
func (s *Set) Add(name string, raw []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(raw) < window {
		panic(fmt.Sprintf("secrettest: %s has %d bytes, too few to look for", name, len(raw)))
	}
	if s.known[string(raw)] {
		return
	}
	if s.known == nil {
		s.known, s.forms = map[string]bool{}, map[[prefix]byte][]form{}
	}
	s.known[string(raw)] = true
	s.n++
	add := func(kind, text string) {
		if len(text) >= prefix {
			key := [prefix]byte([]byte(text[:prefix]))
			s.forms[key] = append(s.forms[key], form{text, name + ", " + kind})
			s.first[uint16(key[0])<<8|uint16(key[1])] = true
		}
	}
	add("as a number", new(big.Int).SetBytes(raw).String())
	for at := 0; at < len(raw); at += window {
		part := raw[min(at, len(raw)-window):][:window]
		add("raw", string(part))
		add("in hexadecimal", hex.EncodeToString(part))
		add("in hexadecimal", strings.ToUpper(hex.EncodeToString(part)))
		add("in hexadecimal with spaces", fmt.Sprintf("% x", part))
		add("as Go prints bytes", strings.Trim(fmt.Sprint(part), "[]"))
		add("as JSON prints bytes", strings.ReplaceAll(strings.Trim(fmt.Sprint(part), "[]"), " ", ","))
		add("as Go's source", strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", part), "[]byte{"), "}"))
		add("quoted", strings.Trim(strconv.Quote(string(part)), `"`))
		add("quoted in ASCII", strings.Trim(strconv.QuoteToASCII(string(part)), `"`))
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			// Three bytes are four characters, so a secret within other bytes begins at one of three places. Of the first and
			// last characters its neighbours have a say.
			for shift, foreign := range []int{0, 2, 3} {
				whole := append(make([]byte, shift), part...)
				add("in base64", e.EncodeToString(whole[:len(whole)/3*3])[foreign:])
			}
		}
	}
}

// AddSecret adds what a secret.Bytes holds.
func (s *Set) AddSecret(name string, b secret.Bytes) { s.Add(name, b.Reveal()) }

// AddKey adds a private key: its number, which is a part of every encoding of it.
func (s *Set) AddKey(name string, key *ecdsa.PrivateKey) {
	d, err := key.Bytes()
	if err != nil {
		panic("secrettest: " + name + ": " + err.Error())
	}
	s.Add(name, d)
}

// AddHPKE adds a private key to open sealed messages with.
func (s *Set) AddHPKE(name string, key hpke.PrivateKey) {
	b, err := key.Bytes()
	if err != nil {
		panic("secrettest: " + name + ": " + err.Error())
	}
	s.Add(name, b)
}

// AddSeed adds a seed, and all that follows from it, with the workload secrets of these IDs.
func (s *Set) AddSeed(seed pki.Seed, workloadSecretIDs ...string) {
	s.AddSecret("the seed", seed.Bytes)
	s.AddKey("the root CA's key", seed.RootKey())
	s.AddKey("the transaction key", seed.TransactionKey())
	s.AddSecret("the nonce key", seed.NonceKey())
	for _, id := range workloadSecretIDs {
		s.AddSecret("the workload secret "+id, seed.WorkloadSecret(id))
	}
}

// Len is how many secrets are looked for: a search for none finds none.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// Find names the secrets that a text has, and in which form. It never quotes them.
func (s *Set) Find(text []byte) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string]bool{}
	s.find(text, found)
	// A PEM block breaks its lines, and a log escapes the breaks.
	s.find([]byte(unbroken.Replace(string(text))), found)
	names := make([]string, 0, len(found))
	for name := range found {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

var unbroken = strings.NewReplacer("\r\n", "", "\n", "", `\r\n`, "", `\n`, "")

func (s *Set) find(text []byte, found map[string]bool) {
	for at := 0; at+prefix <= len(text); at++ {
		if !s.first[uint16(text[at])<<8|uint16(text[at+1])] {
			continue
		}
		for _, f := range s.forms[[prefix]byte(text[at:])] {
			if !found[f.name] && bytes.HasPrefix(text[at:], []byte(f.text)) {
				found[f.name] = true
			}
		}
	}
}

// FindInFiles searches every file below a folder that include admits by its path, and names where each secret is.
func (s *Set) FindInFiles(folder string, include func(path string) bool) (found []string, files int, err error) {
	err = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !include(path) {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, name := range s.Find(text) {
			found = append(found, path+" has "+name)
		}
		return nil
	})
	return found, files, err
}
