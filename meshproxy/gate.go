package meshproxy

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy/config"
)

// Guard is package guard, as the supervisor uses it.
type Guard interface {
	Inspect(context.Context) (guard.Status, error)
	Arm(context.Context) error
	Close(context.Context) error
	Raise(context.Context, guard.Ports) error
	Open(context.Context) error
	Watch(context.Context, func(guard.Change)) error
}

// gate is what the guard should be now. It is held during transitions, so that whoever looks sees one state, not two.
type gate struct {
	mu       sync.Mutex
	lifted   bool
	foreign  int // changes that others made to any rules
	restored int // how often the guard was not as it should be, and put back
}

func (s *supervisor) counts() (foreign, restored int) {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	return s.gate.foreign, s.gate.restored
}

// lower closes the gate, even where somebody took it away.
func (s *supervisor) lower(ctx context.Context) error {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	s.gate.lifted = false
	if s.Mesh.Mode != config.Mesh {
		return nil
	}
	err := s.Guard.Close(ctx)
	if errors.Is(err, guard.ErrNoGuard) {
		return s.Guard.Arm(ctx)
	}
	return err
}

// raise lets peers in through Envoy.
func (s *supervisor) raise(ctx context.Context) error {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	if err := s.Guard.Raise(ctx, s.ports); err != nil {
		return err
	}
	s.gate.lifted = true
	return nil
}

// fault says in what the live guard is not as it should be.
func (s *supervisor) fault(ctx context.Context) error {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	return s.faultLocked(ctx)
}

func (s *supervisor) faultLocked(ctx context.Context) error {
	status, err := s.Guard.Inspect(ctx)
	if err != nil {
		return err
	}
	want := guard.Closed
	switch {
	case s.Mesh.Mode == config.Disabled:
		want = guard.Opened
	case s.gate.lifted:
		want = guard.Mesh
	}
	lock, locked := lockOf(s.Mesh.EgressPolicy)
	switch {
	case status.State != want && status.Difference != "":
		return fmt.Errorf("the guard is %s, want %s: %s", status.State, want, status.Difference)
	case status.State != want:
		return fmt.Errorf("the guard is %s, want %s", status.State, want)
	case want == guard.Mesh && !status.Ports.Equal(s.ports):
		return fmt.Errorf("the guard lets in other ports than configured: %s, want %s", status.Ports, s.ports)
	case status.Egress.Locked != locked || status.Egress.DNS != lock.DNS:
		return fmt.Errorf("the guard's egress policy is not %s", s.Mesh.EgressPolicy)
	}
	return nil
}

// keepGuard puts the guard back whenever another process changed it, at once: until then the gate may be open. What
// happened in between nobody knows, so it does what is done at boot (close, and forget all connections), and lifts the
// gate again only if Envoy is live. When the guard cannot be put back, the proxy ends.
func (s *supervisor) keepGuard(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var failed error
	err := s.Guard.Watch(ctx, func(c guard.Change) {
		if failed == nil {
			if failed = s.changed(ctx, c); failed != nil {
				stop()
			}
		}
	})
	return errors.Join(failed, err)
}

func (s *supervisor) changed(ctx context.Context, c guard.Change) error {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	log := s.Log.With("process", c.Process, "pid", c.PID)
	if c.Missed {
		log = s.Log.With("process", "unknown")
	} else {
		s.gate.foreign++
	}
	// As it is now: our own transitions may have come after the change.
	fault := s.faultLocked(ctx)
	switch {
	case ctx.Err() != nil:
		return nil
	case fault == nil || s.Mesh.Mode == config.Disabled: // with DISABLED there is no guard to keep
		if !c.Missed {
			log.Warn("another process changed nftables rules; the guard stands as before")
		}
		return nil
	}
	err := s.Guard.Arm(ctx)
	if err == nil && s.gate.lifted {
		err = s.Guard.Raise(ctx, s.ports)
	}
	if err != nil && ctx.Err() == nil {
		log.Error("another process changed the guard, and it cannot be put back", "fault", fault.Error(), "err", err)
		return fmt.Errorf("put the guard back: %w", err)
	}
	s.gate.restored++
	log.Error("another process changed the guard; it is put back", "fault", fault.Error())
	return nil
}

// lockOf is the guard's word for an egress policy.
func lockOf(policy config.EgressPolicy) (lock guard.Lock, locked bool) {
	switch policy {
	case config.EgressOpen:
		return guard.Lock{}, false
	case config.EgressClosedDNS:
		return guard.Lock{DNS: true}, true
	default:
		return guard.Lock{}, true
	}
}

// kernelGuard is the kernel's own, with or without the egress lock.
type kernelGuard struct{ policy config.EgressPolicy }

func (kernelGuard) Inspect(ctx context.Context) (guard.Status, error) { return guard.Inspect(ctx) }

func (kernelGuard) Open(ctx context.Context) error { return guard.Open(ctx) }

func (kernelGuard) Watch(ctx context.Context, f func(guard.Change)) error { return guard.Watch(ctx, f) }

func (k kernelGuard) Arm(ctx context.Context) error {
	if lock, locked := lockOf(k.policy); locked {
		return lock.Arm(ctx)
	}
	return guard.Arm(ctx)
}

func (k kernelGuard) Close(ctx context.Context) error {
	if lock, locked := lockOf(k.policy); locked {
		return lock.Close(ctx)
	}
	return guard.Close(ctx)
}

func (k kernelGuard) Raise(ctx context.Context, ports guard.Ports) error {
	if lock, locked := lockOf(k.policy); locked {
		return lock.Raise(ctx, ports)
	}
	return guard.Raise(ctx, ports)
}
