package meshproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy/config"
)

// supervise keeps an Envoy alive until ctx is cancelled. An Envoy that has never been live is a mistake that no restart
// mends, such as a port that is taken, so its error is returned; afterwards Envoy is restarted for ever.
func (s *supervisor) supervise(ctx context.Context) error {
	parent, err := newParent()
	if err != nil {
		return err
	}
	defer parent.close()
	delays := backoff{}
	for first := true; ; first = false {
		began := time.Now()
		live, err := s.runEnvoy(ctx, parent)
		switch {
		case ctx.Err() != nil:
			return err
		case errors.As(err, new(*guardError)) || first && !live:
			return err
		}
		wait := delays.next(time.Since(began))
		s.set(causeEnvoy, "Envoy is not running: "+err.Error())
		s.Service.Status("Envoy is not running, and is started again in " + wait.String())
		s.Log.Error("Envoy is restarted", "err", err, "after", wait.String())
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// guardError is a failure of the guard itself, which nothing here can mend.
type guardError struct{ error }

func (e *guardError) Unwrap() error { return e.error }

// runEnvoy is the life of one Envoy. It says whether Envoy became live and the gate was lifted for it.
func (s *supervisor) runEnvoy(ctx context.Context, parent *parent) (live bool, err error) {
	// What must be done at the end is done although ctx is cancelled then.
	ending := context.WithoutCancel(ctx)
	s.Service.Alive()
	began := time.Now()
	p, err := s.startEnvoy(parent)
	if err != nil {
		return false, err
	}
	defer func() {
		p.stop()
		if lowerErr := s.lower(ending); lowerErr != nil {
			err = &guardError{errors.Join(lowerErr, err)}
		}
	}()
	if err := s.awaitLive(ctx, p); err != nil {
		if ctx.Err() != nil {
			return false, nil
		}
		return false, err
	}
	if err := s.lift(ctx); err != nil {
		return false, &guardError{err}
	}
	s.Log.Info("ready", "config", s.Mesh.String(), "envoy", p.pid(), "after", time.Since(began).String())
	s.set("", "")
	s.Service.Ready("ready: " + s.Mesh.String())
	debug.FreeOSMemory()               // most of what it took to come here is not needed again
	settled := time.NewTimer(settling) // nor what it took to see that all is well
	defer settled.Stop()
	alive := time.NewTicker(aliveInterval)
	defer alive.Stop()
	for {
		select {
		case <-p.done:
			s.set(causeEnvoy, "Envoy died")
			return true, p.death()
		case <-ctx.Done():
			s.Service.Status("draining")
			s.drain(ending, p)
			return true, nil
		case <-settled.C:
			debug.FreeOSMemory()
		case <-alive.C:
			s.Service.Alive()
		}
	}
}

// awaitLive waits until Envoy says that it is live and its workers accept connections.
func (s *supervisor) awaitLive(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.admin.live(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.death()
		case <-ctx.Done():
			return fmt.Errorf("envoy was not live after %v: %w", liveTimeout, err)
		case <-tick.C:
		}
	}
}

// lift lets peers in as the configuration says. Envoy is live.
func (s *supervisor) lift(ctx context.Context) error {
	switch s.Mesh.Mode {
	case config.Mesh:
		return s.raise(ctx)
	case config.Disabled:
		s.Log.Warn("the ingress configuration is DISABLED: the guard is opened, " +
			"and peers reach every port of this pod in plaintext")
		if err := os.WriteFile(filepath.Join(s.RunDir, openedMark), nil, 0o600); err != nil {
			return fmt.Errorf("leave a mark that the guard was opened: %w", err)
		}
		if err := s.Guard.Open(ctx); err != nil && !errors.Is(err, guard.ErrNoGuard) {
			return err
		}
		return nil
	default:
		return nil // prepare closed it
	}
}

// drain lets connections end by themselves. New ones are still taken for a while, as peers learn only by and by that this
// pod is going; it ends early when there are none.
func (s *supervisor) drain(ctx context.Context, p *process) {
	s.set(causeStopping, "the mesh proxy is stopping")
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, s.Drain)
	defer cancel()
	go func() {
		select {
		case <-s.Hurry:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := s.admin.drain(ctx); err != nil {
		s.Log.Warn("Envoy does not drain", "err", err)
		return
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		active, err := s.admin.activeConnections(ctx)
		if err != nil || active == 0 {
			return
		}
		select {
		case <-p.done:
			return
		case <-ctx.Done():
			s.Log.Warn("connections are cut off", "active", active, "after", time.Since(began).String())
			return
		case <-tick.C:
		}
	}
}

// backoff spaces restarts: 250 ms, doubling to 10 s, from the beginning after a minute of life.
type backoff struct{ last time.Duration }

const (
	firstDelay = 250 * time.Millisecond
	lastDelay  = 10 * time.Second
	stable     = time.Minute
)

func (b *backoff) next(lived time.Duration) time.Duration {
	if lived >= stable || b.last == 0 {
		b.last = firstDelay
	} else {
		b.last = min(2*b.last, lastDelay)
	}
	return b.last
}
