package audit

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret"
)

// A signed head is
//
//	signature    by the transaction key, ECDSA (ASN.1), over
//	             SHA-256("portcullis audit head v1:" || from (u64, big-endian) || seq (u64, big-endian) || hash)
//	endorsement  by the root CA's key, over SHA-256("portcullis transaction key v1:" || SPKI of the transaction key)
//
// so that who has the root CA, which `portcullis verify` writes, needs nothing else.
const (
	labelHead        = "portcullis audit head v1:"
	labelEndorsement = "portcullis transaction key v1:"
)

// Signer signs heads. It holds no more of the seed than it needs.
type Signer struct {
	key         *ecdsa.PrivateKey
	spki        []byte
	endorsement []byte
}

// NewSigner takes the keys that follow from the seed.
func NewSigner(seed pki.Seed) (*Signer, error) {
	s := &Signer{key: seed.TransactionKey()}
	var err error
	if s.spki, err = pki.SPKI(&s.key.PublicKey); err != nil {
		return nil, err
	}
	digest := endorsed(s.spki)
	if s.endorsement, err = ecdsa.SignASN1(rand.Reader, seed.RootKey(), digest[:]); err != nil {
		return nil, fmt.Errorf("endorse the key that signs the audit log: %w", err)
	}
	return s, nil
}

// Format does not show the key.
func (Signer) Format(f fmt.State, _ rune) {
	_, _ = f.Write([]byte("signer of the audit log, key " + secret.Redacted))
}

func (s *Signer) sign(from uint64, h Head) (*HeadSigned, error) {
	digest := headDigest(from, h)
	signature, err := ecdsa.SignASN1(rand.Reader, s.key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("sign the audit log's head: %w", err)
	}
	return &HeadSigned{
		From: from, Seq: h.Seq, Hash: hex.EncodeToString(h.Hash[:]), Key: s.spki, Endorsement: s.endorsement, Signature: signature,
	}, nil
}

// verify checks the signature by a key.
func (h *HeadSigned) verify(key *ecdsa.PublicKey) error {
	hash, err := hex.DecodeString(h.Hash)
	if err != nil || len(hash) != sha256.Size {
		return errors.New("the hash of the signed head is malformed")
	}
	digest := headDigest(h.From, Head{Seq: h.Seq, Hash: [sha256.Size]byte(hash)})
	if !ecdsa.VerifyASN1(key, digest[:], h.Signature) {
		return errors.New("the signature of the head is wrong")
	}
	return nil
}

// verifyUnder checks the signature, and that the key is one of the root CA's Coordinator. Whether it is not, or is and the
// signature is wrong, are two things: the first is a line of another Coordinator, the second one that no Coordinator wrote.
func (h *HeadSigned) verifyUnder(root *ecdsa.PublicKey) (own bool, err error) {
	digest := endorsed(h.Key)
	if !ecdsa.VerifyASN1(root, digest[:], h.Endorsement) {
		return false, nil
	}
	key, err := pki.ParseSPKI(h.Key)
	if err != nil {
		return true, fmt.Errorf("the key of the signed head: %w", err)
	}
	return true, h.verify(key)
}

func headDigest(from uint64, h Head) [sha256.Size]byte {
	message := binary.BigEndian.AppendUint64([]byte(labelHead), from)
	message = binary.BigEndian.AppendUint64(message, h.Seq)
	return sha256.Sum256(append(message, h.Hash[:]...))
}

func endorsed(spki []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(labelEndorsement), spki...))
}
