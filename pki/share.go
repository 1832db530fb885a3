package pki

import (
	"errors"
	"fmt"
	"io"

	"portcullis.dev/portcullis/pki/secret"
)

// Shamir's secret sharing ("How to share a secret", CACM 22, 1979) over GF(256), a polynomial for each byte of the seed. It
// is written here and not taken from a library: the well-kept ones in Go either share one scalar of an elliptic curve by
// arithmetic on math/big, whose time depends on the secret (cloudflare/circl), or come with hundreds of modules
// (hashicorp/vault), and it is forty lines. They have neither a branch nor an index that depends on a secret.

// shareSize is the index, which is public, and one byte of the polynomials' values for each of the seed.
const shareSize = 1 + SeedSize

// Share is one of the parts that a seed was split into. Fewer of them than the threshold say nothing about the seed. It
// prints as REDACTED.
type Share struct {
	secret.Bytes
}

// ParseShare takes the 65 bytes that Reveal returned.
func ParseShare(b []byte) (Share, error) {
	if len(b) != shareSize {
		return Share{}, fmt.Errorf("a seed share of %d bytes, want %d", len(b), shareSize)
	}
	if b[0] == 0 {
		return Share{}, errors.New("a seed share with the index 0, want 1 to 255")
	}
	return Share{secret.New(b)}, nil
}

// Index is the share's number, from 1; 0 for the zero value.
func (s Share) Index() int {
	if s.Len() != shareSize {
		return 0
	}
	return int(s.Reveal()[0])
}

// Split makes n shares, with indices from 1 to n, of which any threshold give the seed back.
func (s Seed) Split(random io.Reader, threshold, n int) ([]Share, error) {
	if s.Len() != SeedSize {
		return nil, errors.New("split a seed: there is none")
	}
	if threshold < 1 || threshold > n || n > 255 {
		return nil, fmt.Errorf("split a seed: %d of %d shares, want 1 to n of n, and n at most 255", threshold, n)
	}
	// The coefficients of each degree, for all bytes of the seed; degree 0 is the seed.
	coefficients := make([][]byte, threshold)
	coefficients[0] = s.Reveal()
	for degree := 1; degree < threshold; degree++ {
		coefficients[degree] = make([]byte, SeedSize)
		if _, err := io.ReadFull(random, coefficients[degree]); err != nil {
			return nil, fmt.Errorf("split a seed: %w", err)
		}
	}
	shares := make([]Share, n)
	for i := range shares {
		x := byte(i + 1)
		share := make([]byte, shareSize)
		share[0] = x
		for at := range SeedSize {
			var y byte // by Horner's rule
			for degree := threshold - 1; degree >= 0; degree-- {
				y = multiply(y, x) ^ coefficients[degree][at]
			}
			share[1+at] = y
		}
		shares[i] = Share{secret.New(share)}
	}
	return shares, nil
}

// Combine returns the seed that was split, if these are shares of one seed and as many as its threshold at least.
// Otherwise it returns some other seed: which one is right, only what is known of the seed tells.
func Combine(shares []Share) (Seed, error) {
	if len(shares) == 0 {
		return Seed{}, errors.New("combine seed shares: there are none")
	}
	seen := make(map[int]bool)
	for _, s := range shares {
		if s.Index() == 0 || seen[s.Index()] {
			return Seed{}, fmt.Errorf("combine seed shares: the index %d is there twice, or is 0", s.Index())
		}
		seen[s.Index()] = true
	}
	seed := make([]byte, SeedSize)
	for _, s := range shares {
		// Lagrange's basis polynomial at 0. In GF(256) minus is plus, and both are XOR.
		basis := byte(1)
		for _, other := range shares {
			if x, o := byte(s.Index()), byte(other.Index()); x != o {
				basis = multiply(basis, multiply(o, inverse(o^x)))
			}
		}
		for at, y := range s.Reveal()[1:] {
			seed[at] ^= multiply(basis, y)
		}
	}
	return ParseSeed(seed)
}

// multiply is multiplication in GF(256) modulo x^8+x^4+x^3+x+1 (FIPS 197, 4.2), in constant time.
func multiply(a, b byte) (product byte) {
	for range 8 {
		product ^= a & -(b & 1)
		a = a<<1 ^ 0x1b&-(a>>7)
		b >>= 1
	}
	return product
}

// inverse is a^254, which is 1/a for every a but 0.
func inverse(a byte) byte {
	product := byte(1)
	for range 7 { // 2 + 4 + ... + 128
		a = multiply(a, a)
		product = multiply(product, a)
	}
	return product
}
