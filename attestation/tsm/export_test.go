package tsm

import (
	"context"
	"time"
)

// SetWait replaces the pauses between attempts.
func SetWait(s *Source, wait func(context.Context, time.Duration) error) { s.queue.Wait = wait }
