package pki_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"portcullis.dev/portcullis/pki"
)

func newSeed(t testing.TB) pki.Seed {
	t.Helper()
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return seed
}

// subsets are all sets of indices below n.
func subsets(n int) (all [][]int) {
	for bits := range 1 << n {
		var set []int
		for i := range n {
			if bits>>i&1 == 1 {
				set = append(set, i)
			}
		}
		all = append(all, set)
	}
	return all
}

func TestEverySubsetOfThresholdSharesIsTheSeedAndNoSmallerOneIs(t *testing.T) {
	seed := newSeed(t)
	for n := 1; n <= 5; n++ {
		for k := 1; k <= n; k++ {
			t.Run(fmt.Sprintf("%d of %d", k, n), func(t *testing.T) {
				shares, err := seed.Split(rand.Reader, k, n)
				if err != nil {
					t.Fatal(err)
				}
				for _, set := range subsets(n) {
					var chosen []pki.Share
					for _, i := range set {
						chosen = append(chosen, shares[i])
					}
					got, err := pki.Combine(chosen)
					if right := err == nil && bytes.Equal(got.Reveal(), seed.Reveal()); right != (len(set) >= k) {
						t.Errorf("the shares %v give the seed: %v, %v", set, right, err)
					}
				}
			})
		}
	}
}

// With one share too few, every value of the seed is equally likely: whatever the seed was, there is a last share that
// makes it of the others.
func TestSharesBelowTheThresholdAgreeWithEverySeed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed, _ := drawSeed(t, "seed")
		other, _ := drawSeed(t, "other seed")
		shares, err := seed.Split(rand.Reader, 3, 3)
		if err != nil {
			t.Fatal(err)
		}
		// The seed is linear in each share, by a factor that depends on the indices alone: add the difference over it.
		zero := shares[2].Reveal()
		clear(zero[1:])
		one := bytes.Clone(zero)
		for i := range one[1:] {
			one[1+i] = 1
		}
		factor := combine(t, shares[:2], one)
		for i, b := range combine(t, shares[:2], zero) {
			factor[i] ^= b
		}
		forged := bytes.Clone(zero)
		for i, b := range combine(t, shares[:2], zero) {
			forged[1+i] = divide(b^other.Reveal()[i], factor[i])
		}
		if got := combine(t, shares[:2], forged); !bytes.Equal(got, other.Reveal()) {
			t.Fatalf("no last share gives the other seed")
		}
	})
}

func combine(t *rapid.T, shares []pki.Share, last []byte) []byte {
	share, err := pki.ParseShare(last)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pki.Combine(append(slices.Clone(shares), share))
	if err != nil {
		t.Fatal(err)
	}
	return seed.Reveal()
}

// divide finds the quotient in GF(256) by trying all.
func divide(a, b byte) byte {
	for q := range 256 {
		if slowMultiply(byte(q), b) == a {
			return byte(q)
		}
	}
	panic("no quotient")
}

// slowMultiply is multiplication of polynomials, then reduction, as FIPS 197 describes it in 4.2.
func slowMultiply(a, b byte) byte {
	var product uint16
	for i := range 8 {
		if b>>i&1 == 1 {
			product ^= uint16(a) << i
		}
	}
	for i := 15; i >= 8; i-- {
		if product>>i&1 == 1 {
			product ^= 0x11b << (i - 8)
		}
	}
	return byte(product)
}

func TestSharesThatCannotBeAreRefused(t *testing.T) {
	seed := newSeed(t)
	for _, bad := range [][2]int{{0, 1}, {-1, 1}, {2, 1}, {0, 0}, {1, 256}, {1, -1}} {
		if _, err := seed.Split(rand.Reader, bad[0], bad[1]); err == nil {
			t.Errorf("split %d of %d", bad[0], bad[1])
		}
	}
	if _, err := (pki.Seed{}).Split(rand.Reader, 1, 1); err == nil {
		t.Error("split the zero seed")
	}
	if _, err := seed.Split(strings.NewReader("short"), 2, 2); err == nil {
		t.Error("split without randomness")
	}
	shares, err := seed.Split(rand.Reader, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	for name, set := range map[string][]pki.Share{
		"none": nil, "zero": {{}}, "one twice": {shares[0], shares[0]}, "zero among them": {shares[0], {}, shares[1]},
	} {
		if _, err := pki.Combine(set); err == nil {
			t.Errorf("%s: combined", name)
		}
	}
	whole := shares[0].Reveal()
	for name, b := range map[string][]byte{
		"empty": nil, "short": whole[1:], "long": append(bytes.Clone(whole), 0), "index 0": append([]byte{0}, whole[1:]...),
	} {
		if _, err := pki.ParseShare(b); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
	if got := fmt.Sprintf("%v %+v %#v %x %s", shares[0], shares, shares[0], shares[0], shares[0]); strings.Contains(got, fmt.Sprintf("%x", whole[:8])) ||
		!strings.Contains(got, "REDACTED") {
		t.Errorf("a share prints as %s", got)
	}
}

func TestSeedshareKeysAreReadAsWritten(t *testing.T) {
	key, err := pki.NewSeedshareKey()
	if err != nil {
		t.Fatal(err)
	}
	private, err := key.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := pki.ParseSeedshareKey(private.Reveal())
	if err != nil || !again.Signing.Equal(key.Signing) || !bytes.Equal(again.HPKE.PublicKey().Bytes(), key.HPKE.PublicKey().Bytes()) {
		t.Fatalf("private keys: %v", err)
	}
	public, err := key.Public().Encode()
	if err != nil {
		t.Fatal(err)
	}
	read, err := pki.ParseSeedsharePublicKey(public)
	if err != nil || !read.Signing.Equal(&key.Signing.PublicKey) || !bytes.Equal(read.HPKE.Bytes(), key.HPKE.PublicKey().Bytes()) {
		t.Fatalf("public keys: %v", err)
	}
	signing, err := pki.EncodePrivateKey(key.Signing)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"nothing": nil, "signing key alone": signing.Reveal(), "HPKE key alone": private.Reveal()[signing.Len():],
		"public keys": public, "with something behind": append(private.Reveal(), 'x'),
		"with something before": append([]byte("x\n"), private.Reveal()...),
		"HPKE key cut short":    bytes.Replace(private.Reveal(), []byte("MLKEM768-X25519 PRIVATE KEY-----\n"), []byte("MLKEM768-X25519 PRIVATE KEY-----\nAAAA"), 1),
	} {
		if _, err := pki.ParseSeedshareKey(text); err == nil {
			t.Errorf("%s: read as private keys", name)
		}
	}
	for name, text := range map[string][]byte{
		"nothing": nil, "private keys": private.Reveal(), "HPKE key alone": pki.EncodeHPKEPublicKey(key.HPKE.PublicKey()),
		"signing key alone": bytes.TrimSuffix(public, pki.EncodeHPKEPublicKey(key.HPKE.PublicKey())),
		"twice":             append(bytes.Clone(public), public...),
	} {
		if _, err := pki.ParseSeedsharePublicKey(text); err == nil {
			t.Errorf("%s: read as public keys", name)
		}
	}
}

func TestWhatIsSealedOpensForItsHolderInItsPlaceAlone(t *testing.T) {
	key, err := pki.NewHPKEKey()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := pki.NewHPKEKey()
	if err != nil {
		t.Fatal(err)
	}
	seed := newSeed(t)
	sealed, err := pki.Seal(key.PublicKey(), "info", []byte("aad"), seed.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pki.Open(key, "info", []byte("aad"), sealed); err != nil || !got.Equal(seed.Bytes) {
		t.Errorf("open: %v", err)
	}
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	for name, open := range map[string]func() error{
		"another key":  func() error { _, err := pki.Open(stranger, "info", []byte("aad"), sealed); return err },
		"another info": func() error { _, err := pki.Open(key, "other", []byte("aad"), sealed); return err },
		"another aad":  func() error { _, err := pki.Open(key, "info", []byte("other"), sealed); return err },
		"a bit":        func() error { _, err := pki.Open(key, "info", []byte("aad"), flipped); return err },
		"cut short":    func() error { _, err := pki.Open(key, "info", []byte("aad"), sealed[:1120]); return err },
		"nothing":      func() error { _, err := pki.Open(key, "info", []byte("aad"), nil); return err },
	} {
		if open() == nil {
			t.Errorf("%s: opened", name)
		}
	}
}
