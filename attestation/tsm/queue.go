package tsm

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/google/go-configfs-tsm/report"
)

// Queue is the way to firmware that does one thing at a time.
type Queue struct {
	turn chan struct{} // held by whoever asks
	// Wait passes the time between two attempts.
	Wait func(context.Context, time.Duration) error
}

// NewQueue makes an empty queue.
func NewQueue() *Queue { return &Queue{turn: make(chan struct{}, 1), Wait: sleep} }

const (
	// attempts bounds how often a request is made that another process, a signal or busy firmware spoilt.
	attempts = 5
	// pause is before the second attempt, and twice as long before each one after.
	pause = 20 * time.Millisecond
)

// Ask calls ask when it is its turn, and again where it failed for a reason that passes. A caller who goes does not wait;
// what was begun is ended all the same, and then it is the next one's turn.
func Ask[T any](ctx context.Context, q *Queue, ask func() (T, error)) (T, error) {
	var none T
	select {
	case q.turn <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("wait for the hardware: %w", context.Cause(ctx))
	}
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		defer func() { <-q.turn }()
		var a answer
		for attempt := 1; ; attempt++ {
			a.value, a.err = ask()
			if a.err == nil || attempt == attempts || !Passing(a.err) {
				break
			}
			if err := q.Wait(ctx, pause<<(attempt-1)); err != nil {
				a.err = errors.Join(a.err, err)
				break
			}
		}
		answered <- a
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-ctx.Done():
		return none, fmt.Errorf("wait for the hardware's answer: %w", context.Cause(ctx))
	}
}

// Passing says whether another attempt may succeed: somebody else wrote to the request, a signal came, or the firmware is
// busy.
func Passing(err error) bool {
	if _, ok := errors.AsType[*report.GenerationErr](err); ok {
		return true
	}
	return errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.EAGAIN)
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
