package initializer

import (
	"math/rand/v2"
	"time"
)

const (
	firstWait = 500 * time.Millisecond
	// maxWait bounds how long a pod stays down after the Coordinator is back. It bounds the Coordinator's own wish, too:
	// that comes over the host's network.
	maxWait = 30 * time.Second
	// soonest is how long any certificate is used.
	soonest = 10 * time.Second
	// changedWait is for a pod whose mesh has moved on, and that nobody but a person can help.
	changedWait = 5 * time.Minute
)

// backoff doubles from firstWait to maxWait. The zero value starts at the beginning.
type backoff struct {
	bound time.Duration
}

// next is how long to wait: at random between half the bound and the bound, so that pods which were refused together do
// not come back together, and not less than the Coordinator asked.
func (b *backoff) next(asked time.Duration) time.Duration {
	b.bound = min(max(2*b.bound, firstWait), maxWait)
	wait := b.bound/2 + rand.N(b.bound/2+1)
	return max(wait, min(asked, maxWait))
}
