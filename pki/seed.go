package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"io"

	"portcullis.dev/portcullis/pki/secret"
)

// SeedSize is the length of a seed in bytes.
const SeedSize = 64

// Seed is the one secret that survives a Coordinator: from it follow the root CA's key, the transaction key, the nonce
// key and the workload secrets, each by HKDF-SHA-512 under a label of its own. It prints as REDACTED. Deriving from the
// zero Seed panics: there is no key it could stand for.
type Seed struct {
	secret.Bytes
}

// NewSeed reads a fresh seed from random.
func NewSeed(random io.Reader) (Seed, error) {
	b := make([]byte, SeedSize)
	if _, err := io.ReadFull(random, b); err != nil {
		return Seed{}, fmt.Errorf("make a seed: %w", err)
	}
	return ParseSeed(b)
}

// ParseSeed takes the 64 bytes that Reveal returned. All-zero bytes are refused.
func ParseSeed(b []byte) (Seed, error) {
	if len(b) != SeedSize {
		return Seed{}, fmt.Errorf("a seed of %d bytes, want %d", len(b), SeedSize)
	}
	if [SeedSize]byte(b) == [SeedSize]byte{} {
		return Seed{}, fmt.Errorf("the seed is all zero")
	}
	return Seed{secret.New(b)}, nil
}

// RootKey is the root CA's key, ECDSA P-384.
func (s Seed) RootKey() *ecdsa.PrivateKey {
	return s.key(elliptic.P384(), "portcullis root CA key v1")
}

// TransactionKey signs the store's latest transition, ECDSA P-256.
func (s Seed) TransactionKey() *ecdsa.PrivateKey {
	return s.key(elliptic.P256(), "portcullis transaction key v1")
}

// NonceKey authenticates nonces, so that every replica accepts every replica's nonces. 32 bytes.
func (s Seed) NonceKey() secret.Bytes {
	return secret.New(s.derive("portcullis nonce key v1", nil, 32))
}

// WorkloadSecret is the secret of all pods whose policies name id, 32 bytes. It stays the same across manifests.
func (s Seed) WorkloadSecret(id string) secret.Bytes {
	return secret.New(s.derive("portcullis workload secret v1", []byte(id), 32))
}

// key takes the first of HKDF's candidates that is a private key of the curve. ecdsa.GenerateKey over a deterministic
// stream would not do: it reads, on purpose, a random number of bytes.
func (s Seed) key(curve elliptic.Curve, label string) *ecdsa.PrivateKey {
	for counter := range uint32(256) {
		candidate := s.derive(label, binary.BigEndian.AppendUint32(nil, counter), (curve.Params().BitSize+7)/8)
		if key, err := ecdsa.ParseRawPrivateKey(curve, candidate); err == nil {
			return key
		}
	}
	// A candidate is out of range with a probability of at most 2^-32 (P-256).
	panic("pki: no private key in 256 candidates")
}

// derive is HKDF with the label and its length, so that no label is another one's prefix, and the context as info.
func (s Seed) derive(label string, context []byte, length int) []byte {
	if s.Len() != SeedSize {
		panic("pki: a key was asked of the zero Seed")
	}
	info := binary.BigEndian.AppendUint32(nil, uint32(len(label)))
	info = append(append(info, label...), context...)
	out, err := hkdf.Key(sha512.New, s.Reveal(), nil, string(info), length)
	if err != nil {
		panic("pki: " + err.Error()) // only for more than 255 hashes of output
	}
	return out
}
