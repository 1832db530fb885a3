package pki

import (
	"crypto/hpke"
	"encoding/pem"
	"errors"
	"fmt"

	"portcullis.dev/portcullis/pki/secret"
)

// The one HPKE suite of the protocol (RFC 9180, draft-ietf-hpke-pq).
var (
	kem  = hpke.MLKEM768X25519()
	kdf  = hpke.HKDFSHA256()
	aead = hpke.AES256GCM()
)

// encapsulatedSize is Nenc of MLKEM768X25519: 1088 bytes of ML-KEM-768 ciphertext and 32 of X25519.
const encapsulatedSize = 1088 + 32

const (
	pemHPKEPrivateKey = "MLKEM768-X25519 PRIVATE KEY"
	pemHPKEPublicKey  = "MLKEM768-X25519 PUBLIC KEY"
)

// NewHPKEKey makes a key pair to receive sealed messages with. key.PublicKey().Bytes() is what travels.
func NewHPKEKey() (hpke.PrivateKey, error) { return kem.GenerateKey() }

// ParseHPKEKey reads a raw public key of the protocol's KEM.
func ParseHPKEKey(b []byte) (hpke.PublicKey, error) { return kem.NewPublicKey(b) }

// Seal encrypts plain for the holder of a key; it opens with the same info and aad only. The result is encapsulated key ||
// ciphertext. It says nothing about who sealed it.
func Seal(to hpke.PublicKey, info string, aad []byte, plain secret.Bytes) ([]byte, error) {
	encapsulated, sender, err := hpke.NewSender(to, kdf, aead, []byte(info))
	if err != nil {
		return nil, fmt.Errorf("encapsulate: %w", err)
	}
	sealed, err := sender.Seal(aad, plain.Reveal())
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return append(encapsulated, sealed...), nil
}

// Open decrypts what Seal made.
func Open(key hpke.PrivateKey, info string, aad, sealed []byte) (secret.Bytes, error) {
	if len(sealed) <= encapsulatedSize {
		return secret.Bytes{}, fmt.Errorf("it is %d bytes long, want more than %d", len(sealed), encapsulatedSize)
	}
	recipient, err := hpke.NewRecipient(sealed[:encapsulatedSize], key, kdf, aead, []byte(info))
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("decapsulate: %w", err)
	}
	plain, err := recipient.Open(aad, sealed[encapsulatedSize:])
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("open: %w", err)
	}
	return secret.New(plain), nil
}

// EncodeHPKEPublicKey writes a public key as PEM around its raw bytes.
func EncodeHPKEPublicKey(key hpke.PublicKey) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemHPKEPublicKey, Bytes: key.Bytes()})
}

// ParseHPKEPublicKey reads what EncodeHPKEPublicKey wrote.
func ParseHPKEPublicKey(text []byte) (hpke.PublicKey, error) {
	raw, err := single(text, pemHPKEPublicKey)
	if err != nil {
		return nil, fmt.Errorf("read an HPKE public key: %w", err)
	}
	key, err := ParseHPKEKey(raw)
	if err != nil {
		return nil, fmt.Errorf("read an HPKE public key: %w", err)
	}
	return key, nil
}

func encodeHPKEPrivateKey(key hpke.PrivateKey) ([]byte, error) {
	raw, err := key.Bytes()
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemHPKEPrivateKey, Bytes: raw}), nil
}

func parseHPKEPrivateKey(raw []byte) (hpke.PrivateKey, error) {
	key, err := kem.NewPrivateKey(raw)
	if err != nil {
		return nil, errors.New("it is not a MLKEM768X25519 private key")
	}
	return key, nil
}
