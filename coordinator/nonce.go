package coordinator

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"

	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret"
)

// A nonce is
//
//	issued (u64, big-endian: nanoseconds since 1970 on the clock below) || 16 random bytes || HMAC-SHA-256 of both
//
// under a key that follows from the seed. So no replica keeps a list of nonces, and each accepts every other's. A nonce
// may be used more than once while it lives: what it proves is that the evidence over it is fresh.
const (
	nonceRandom   = 16
	nonceBody     = 8 + nonceRandom
	nonceSize     = nonceBody + sha256.Size
	nonceLifetime = 60 * time.Second
	// maxClockSkew is how far ahead the clock of the replica that issued a nonce may be.
	maxClockSkew = 10 * time.Second
	nonceLabel   = "portcullis nonce v1"
)

type nonces struct{ key secret.Bytes }

func newNonces(seed pki.Seed) nonces { return nonces{key: seed.NonceKey()} }

func (n nonces) issue(now time.Time) []byte {
	nonce := binary.BigEndian.AppendUint64(make([]byte, 0, nonceSize), uint64(now.UnixNano()))
	random := make([]byte, nonceRandom)
	rand.Read(random) // never fails (crypto/rand)
	nonce = append(nonce, random...)
	return append(nonce, n.mac(nonce)...)
}

// check says why a nonce is of no use; the reason is for the log.
func (n nonces) check(nonce []byte, now time.Time) error {
	if len(nonce) != nonceSize || !hmac.Equal(nonce[nonceBody:], n.mac(nonce[:nonceBody])) {
		return errors.New("the nonce is not one of this authority's")
	}
	issued := time.Unix(0, int64(binary.BigEndian.Uint64(nonce)))
	if age := now.Sub(issued); age < -maxClockSkew || age > nonceLifetime {
		return errors.New("the nonce has expired")
	}
	return nil
}

func (n nonces) mac(body []byte) []byte {
	h := hmac.New(sha256.New, n.key.Reveal())
	h.Write([]byte(nonceLabel))
	h.Write(body)
	return h.Sum(nil)
}

// clock is the wall clock as it was when the process started, moved on by the monotonic clock. The host sets the wall
// clock; setting it back must not make old nonces young again.
type clock struct{ start time.Time }

func startClock() clock { return clock{start: time.Now()} }

// now relies on time.Since reading the monotonic clock, which it does for a time that time.Now returned.
func (c clock) now() time.Time { return c.start.Add(time.Since(c.start)) }
