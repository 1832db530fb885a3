package pki_test

import (
	"bytes"
	"crypto/elliptic"
	"encoding/hex"
	"testing"

	"pgregory.net/rapid"

	"portcullis.dev/portcullis/pki"
)

func drawSeed(t *rapid.T, name string) (pki.Seed, []byte) {
	b := rapid.SliceOfN(rapid.Byte(), pki.SeedSize, pki.SeedSize).
		Filter(func(b []byte) bool { return !bytes.Equal(b, make([]byte, pki.SeedSize)) }).Draw(t, name)
	seed, err := pki.ParseSeed(b)
	if err != nil {
		t.Fatal(err)
	}
	return seed, b
}

// derived is everything that follows from a seed.
func derived(t *rapid.T, s pki.Seed, id string) map[string]string {
	root, err := s.RootKey().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	transaction, err := s.TransactionKey().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"root key":        hex.EncodeToString(root),
		"transaction key": hex.EncodeToString(transaction),
		"nonce key":       hex.EncodeToString(s.NonceKey().Reveal()),
		"workload secret": hex.EncodeToString(s.WorkloadSecret(id).Reveal()),
	}
}

func TestASeedDeterminesEveryKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed, b := drawSeed(t, "seed")
		id := rapid.String().Draw(t, "id")
		again, err := pki.ParseSeed(b)
		if err != nil {
			t.Fatal(err)
		}
		first, second := derived(t, seed, id), derived(t, again, id)
		for name := range first {
			if first[name] != second[name] {
				t.Errorf("the %s differs between two derivations", name)
			}
		}
		if seed.RootKey().Curve != elliptic.P384() || seed.TransactionKey().Curve != elliptic.P256() {
			t.Error("a key is on the wrong curve")
		}
	})
}

func TestNoKeySaysAnythingAboutAnother(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed, b := drawSeed(t, "seed")
		b[rapid.IntRange(0, len(b)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		other, err := pki.ParseSeed(b)
		if err != nil {
			t.Skip("the other seed is all zero")
		}
		seen := map[string]string{}
		for _, s := range []pki.Seed{seed, other} {
			for name, key := range derived(t, s, "id") {
				if was, ok := seen[key]; ok {
					t.Errorf("%s and %s are equal", name, was)
				}
				seen[key] = name
			}
		}
	})
}

func TestWorkloadSecretsDifferByID(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed, _ := drawSeed(t, "seed")
		a, b := rapid.String().Draw(t, "a"), rapid.String().Draw(t, "b")
		if seed.WorkloadSecret(a).Equal(seed.WorkloadSecret(b)) != (a == b) {
			t.Errorf("ids %q and %q", a, b)
		}
	})
}

// What existing deployments recover must never change. The values were computed by an implementation of HKDF (RFC 5869)
// that is not ours.
func TestDerivationIsStable(t *testing.T) {
	b := make([]byte, pki.SeedSize)
	for i := range b {
		b[i] = byte(i)
	}
	seed, err := pki.ParseSeed(b)
	if err != nil {
		t.Fatal(err)
	}
	root, err := seed.RootKey().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	transaction, err := seed.TransactionKey().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		got  []byte
		want string
	}{
		"root key":        {root, "9ad7a909b33074e4b81e11e8ca72a2663d23c8e15ab2894242ea113cb460cfdee47374bf054e825a641a33a1766648dd"},
		"transaction key": {transaction, "47d72e8ac96a27cc94429b62a5ee2a0ec876746902ba5b455a040f1a6ef2483a"},
		"nonce key":       {seed.NonceKey().Reveal(), "439f71cdbad97923c512bae575589e839d55481f1da136377fedfa974ae7870b"},
		"workload secret": {seed.WorkloadSecret("shop").Reveal(), "9e1eb112e993ddeeae38bdeb81f274f318d8bfdd1d54e31d7a7f326bdca8c1fe"},
	} {
		if got := hex.EncodeToString(tc.got); got != tc.want {
			t.Errorf("%s is %s, want %s", name, got, tc.want)
		}
	}
}

func TestASeedIsWholeOrNone(t *testing.T) {
	for name, b := range map[string][]byte{
		"none": nil, "short": make([]byte, 63), "long": make([]byte, 65), "all zero": make([]byte, 64),
	} {
		if _, err := pki.ParseSeed(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := pki.NewSeed(bytes.NewReader(make([]byte, 10))); err == nil {
		t.Error("a seed was made of ten bytes")
	}
	for name, derive := range map[string]func(){
		"root key":        func() { pki.Seed{}.RootKey() },
		"transaction key": func() { pki.Seed{}.TransactionKey() },
		"nonce key":       func() { pki.Seed{}.NonceKey() },
		"workload secret": func() { pki.Seed{}.WorkloadSecret("id") },
	} {
		t.Run("zero seed has no "+name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("there was one")
				}
			}()
			derive()
		})
	}
}
