package coordinator

import (
	"context"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/api"
)

// gate lets a fixed number of callers in at a time and a fixed number wait, and turns the others away at once: a queue
// that outgrows its clients' patience answers nobody.
type gate struct {
	slots      chan struct{}
	waiting    atomic.Int64
	refused    atomic.Int64
	maxWaiting int64
	waited     func(time.Duration) // told how long each waited that came in
}

func newGate(slots, maxWaiting int) *gate {
	return &gate{slots: make(chan struct{}, slots), maxWaiting: int64(maxWaiting), waited: func(time.Duration) {}}
}

// enter returns how to leave. Its error is a refusal that asks to come back later.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	leave = func() { <-g.slots }
	select {
	case g.slots <- struct{}{}:
		g.waited(0)
		return leave, nil
	default:
	}
	began := time.Now()
	defer g.waiting.Add(-1)
	if g.waiting.Add(1) > g.maxWaiting {
		g.refused.Add(1)
		return nil, problem(api.CodeBusy)
	}
	select {
	case g.slots <- struct{}{}:
		g.waited(time.Since(began))
		return leave, nil
	case <-ctx.Done():
		g.refused.Add(1)
		return nil, problem(api.CodeBusy)
	}
}
