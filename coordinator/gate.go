package coordinator

import (
	"context"
	"sync/atomic"

	"portcullis.dev/portcullis/api"
)

// gate lets a fixed number of callers in at a time and a fixed number wait, and turns the others away at once: a queue
// that outgrows its clients' patience answers nobody.
type gate struct {
	slots      chan struct{}
	waiting    atomic.Int64
	maxWaiting int64
}

func newGate(slots, maxWaiting int) *gate {
	return &gate{slots: make(chan struct{}, slots), maxWaiting: int64(maxWaiting)}
}

// enter returns how to leave. Its error is a refusal that asks to come back later.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	leave = func() { <-g.slots }
	select {
	case g.slots <- struct{}{}:
		return leave, nil
	default:
	}
	defer g.waiting.Add(-1)
	if g.waiting.Add(1) > g.maxWaiting {
		return nil, problem(api.CodeBusy)
	}
	select {
	case g.slots <- struct{}{}:
		return leave, nil
	case <-ctx.Done():
		return nil, problem(api.CodeBusy)
	}
}
