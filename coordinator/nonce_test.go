package coordinator

import (
	"crypto/rand"
	"testing"
	"time"

	"portcullis.dev/portcullis/pki"
)

// Behind one name a pod may get its nonce from one replica and its certificate from another, whose clock differs.
func TestNonceOfAReplicaWhoseClockDiffers(t *testing.T) {
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n, now := newNonces(seed), time.Now()
	for ahead, good := range map[time.Duration]bool{
		0: true, time.Millisecond: true, maxClockSkew: true, maxClockSkew + 1: false, time.Hour: false,
		-nonceLifetime: true, -nonceLifetime - 1: false,
	} {
		if err := n.check(n.issue(now.Add(ahead)), now); (err == nil) != good {
			t.Errorf("a nonce of a clock that is %v ahead: %v", ahead, err)
		}
	}
}
