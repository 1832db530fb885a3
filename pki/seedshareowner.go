package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"

	"portcullis.dev/portcullis/pki/secret"
)

// SeedshareKey is what a seed-share owner keeps: one key to receive the share with, and one to sign for it when it is
// given back.
type SeedshareKey struct {
	Signing *ecdsa.PrivateKey
	HPKE    hpke.PrivateKey
}

// SeedsharePublicKey is its public half, as the manifest lists it.
type SeedsharePublicKey struct {
	Signing *ecdsa.PublicKey
	HPKE    hpke.PublicKey
}

// NewSeedshareKey makes both keys.
func NewSeedshareKey() (*SeedshareKey, error) {
	signing, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a seed-share owner's key: %w", err)
	}
	receiving, err := NewHPKEKey()
	if err != nil {
		return nil, fmt.Errorf("make a seed-share owner's key: %w", err)
	}
	return &SeedshareKey{Signing: signing, HPKE: receiving}, nil
}

// Public is the half that the manifest lists.
func (k *SeedshareKey) Public() *SeedsharePublicKey {
	return &SeedsharePublicKey{Signing: &k.Signing.PublicKey, HPKE: k.HPKE.PublicKey()}
}

// Encode writes the private keys as two PEM blocks.
func (k *SeedshareKey) Encode() (secret.Bytes, error) {
	signing, err := EncodePrivateKey(k.Signing)
	if err != nil {
		return secret.Bytes{}, err
	}
	receiving, err := encodeHPKEPrivateKey(k.HPKE)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("encode an HPKE private key: %w", err)
	}
	return secret.New(append(signing.Reveal(), receiving...)), nil
}

// Encode writes the public keys as two PEM blocks.
func (k *SeedsharePublicKey) Encode() ([]byte, error) {
	signing, err := EncodePublicKey(k.Signing)
	if err != nil {
		return nil, err
	}
	return append(signing, EncodeHPKEPublicKey(k.HPKE)...), nil
}

// ParseSeedshareKey reads what SeedshareKey.Encode wrote. Its errors never quote the input.
func ParseSeedshareKey(text []byte) (*SeedshareKey, error) {
	signing, receiving, err := halves(text, pemPrivateKey)
	if err != nil {
		return nil, fmt.Errorf("read a seed-share owner's private key: %w", err)
	}
	k := new(SeedshareKey)
	if k.Signing, err = ParsePrivateKey(signing); err != nil {
		return nil, fmt.Errorf("read a seed-share owner's private key: %w", err)
	}
	raw, err := single(receiving, pemHPKEPrivateKey)
	if err != nil {
		return nil, fmt.Errorf("read a seed-share owner's private key: %w", err)
	}
	if k.HPKE, err = parseHPKEPrivateKey(raw); err != nil {
		return nil, fmt.Errorf("read a seed-share owner's private key: %w", err)
	}
	return k, nil
}

// ParseSeedsharePublicKey reads what SeedsharePublicKey.Encode wrote.
func ParseSeedsharePublicKey(text []byte) (*SeedsharePublicKey, error) {
	signing, receiving, err := halves(text, pemPublicKey)
	if err != nil {
		return nil, fmt.Errorf("read a seed-share owner's public key: %w", err)
	}
	k := new(SeedsharePublicKey)
	if k.Signing, err = ParsePublicKey(signing); err != nil {
		return nil, fmt.Errorf("read a seed-share owner's public key: %w", err)
	}
	if k.HPKE, err = ParseHPKEPublicKey(receiving); err != nil {
		return nil, fmt.Errorf("read a seed-share owner's public key: %w", err)
	}
	return k, nil
}

// halves separates a PEM block of the given type from what follows it.
func halves(text []byte, kind string) (first, second []byte, err error) {
	text = bytes.TrimSpace(text)
	_, rest, err := block(text, kind)
	if err != nil {
		return nil, nil, err
	}
	if len(bytes.TrimSpace(rest)) == 0 {
		return nil, nil, errors.New("the HPKE key is missing")
	}
	return text[:len(text)-len(rest)], rest, nil
}
