package evidence

import (
	"context"
	"fmt"
	"sync"
	"time"

	"portcullis.dev/portcullis/attestation"
)

// The pace of requests to the hardware. Hosts throttle SEV-SNP guests that ask more often than every second or two, and a
// guest whose request is refused halfway can lose its key to the firmware until it boots again. A pod needs a report when
// it starts and when it renews its certificate.
const (
	interval = time.Second
	burst    = 8
)

// limit makes issuer's requests keep a pace that hardware bears: some at once, then one a second. Others wait for their turn,
// as long as their context allows.
func limit(issuer attestation.Issuer) attestation.Issuer {
	return &limited{issuer: issuer}
}

type limited struct {
	issuer attestation.Issuer

	mu sync.Mutex
	// next is when the next request would be due if all were made one interval apart. Behind now, there is a reserve.
	next time.Time
}

// Issue implements attestation.Issuer.
func (l *limited) Issue(ctx context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	if delay := l.reserve(); delay > 0 {
		if err := sleep(ctx, delay); err != nil {
			return attestation.Evidence{}, fmt.Errorf("issue evidence: too many requests: %w", err)
		}
	}
	return l.issuer.Issue(ctx, data)
}

// reserve takes a turn and returns how far ahead it is. A turn that nobody uses is lost: who asks in vain asks too much.
func (l *limited) reserve() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now() // only differences count, and those are monotonic
	if earliest := now.Add(-(burst - 1) * interval); l.next.Before(earliest) {
		l.next = earliest
	}
	delay := l.next.Sub(now)
	l.next = l.next.Add(interval)
	return delay
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
