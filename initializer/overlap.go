package initializer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"time"

	"portcullis.dev/portcullis/pki"
)

// A manifest may let the next one take its place without a gap (docs/successors.md). A new pod learns of the manifest before
// with its certificate. An old pod, which cannot renew any more, asks what came after its mesh CA, and needs nothing but
// its mesh CA's signature to believe the answer: a host can keep it away, and no more. Both are in the trust file as long as
// they are good, and are taken out when that is over.

const (
	// askInterval is how long a pod may not know of a new manifest. It asks after between half of it and all of it.
	askInterval = 2 * time.Minute
	// lookInterval bounds how long the clock goes unwatched: the host may set it, and timers do not follow it.
	lookInterval = time.Minute
)

// follow keeps the trust file in step with the manifests, until ctx is done.
func (k *keeper) follow(ctx context.Context) error {
	var ask time.Time
	var complained bool
	for {
		if err := k.dropWhatIsOver(); err != nil {
			return err
		}
		now := time.Now()
		held := k.current()
		if held != nil && held.Trust.Successor == nil && pki.AllowsSuccessor(held.Trust.MeshCA) && !now.Before(ask) {
			err := k.learnSuccessor(ctx, held)
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				complained = false
			case !complained:
				complained = true
				k.Log.Warn("it is not known whether there is a new manifest; this pod keeps asking", "error", err.Error())
			}
			ask = now.Add(askInterval/2 + rand.N(askInterval/2))
		}
		wait := lookInterval
		if held != nil {
			for _, end := range []time.Time{held.Trust.PredecessorUntil, held.Trust.SuccessorUntil(), ask} {
				if left := end.Sub(now); left > 0 {
					wait = min(wait, left)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(wait, time.Second)):
		}
	}
}

// dropWhatIsOver takes out of the trust file what is no longer to be accepted.
func (k *keeper) dropWhatIsOver() error {
	dropped := false
	err := k.change(func(held *Credentials, now time.Time) *Credentials {
		if held == nil {
			return nil
		}
		left := *held
		left.Trust = held.Trust.At(now)
		if bytes.Equal(left.Trust.PEM(), held.Trust.PEM()) {
			return nil
		}
		dropped = true
		return &left
	})
	if dropped && err == nil {
		k.Log.Info("the time is over in which pods of two manifests accept each other", k.current().describe()...)
	}
	return err
}

// learnSuccessor asks what came after the mesh CA, and accepts it if it is so.
func (k *keeper) learnSuccessor(ctx context.Context, held *Credentials) error {
	der, err := k.Coordinator.Successor(ctx, sha256.Sum256(held.Trust.MeshCA.Raw))
	if err != nil || der == nil {
		return err
	}
	cross, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("what should be a cross-certificate: %w", err)
	}
	if err := pki.VerifySuccessor(held.Trust.MeshCA, cross); err != nil {
		return err
	}
	if now := time.Now(); !now.Before(cross.NotAfter) {
		return fmt.Errorf("the cross-certificate ended at %s", cross.NotAfter.Format(time.RFC3339))
	}
	err = k.change(func(held *Credentials, now time.Time) *Credentials {
		next := *held
		if next.Changed.IsZero() {
			next.Changed = now
		}
		trust := *held.Trust
		trust.Successor = cross
		next.Trust = &trust
		return &next
	})
	if err != nil {
		return err
	}
	k.Log.Warn("there is a new manifest, whose pods this pod accepts for a while; it belongs to the old one: roll it out again",
		"successor", hex.EncodeToString(cross.SubjectKeyId), "until", cross.NotAfter)
	return nil
}
