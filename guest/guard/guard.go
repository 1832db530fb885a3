// Package guard is the gate of a podVM: one nftables table that is down unless someone inside lifts it.
//
// A podVM's network belongs to its host, and the host is hostile: it delivers what it likes to whatever listens, from
// the first moment an interface exists, whether or not the mesh proxy runs. So the table `inet podvm_guard` is made
// before the first container (state closed: the guest's own connections work, nothing comes in), and lifted by the mesh
// proxy when its Envoy is alive (state mesh: every TCP connection that a peer opens goes through mutual TLS, but for the
// ports that the configuration names). Only a pod that was told to have no mesh removes it (state open).
//
// Each transition is one netlink transaction that replaces the whole table, so there is no moment between two states
// and a failure leaves the old one. The result is read back from the kernel and compared, rule by rule in order, with
// what was meant. The functions act on the network namespace of the calling thread.
package guard

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A State is what the live table is. The zero value and Foreign are never acceptable.
type State string

const (
	Closed  State = "closed"  // only answers to the guest's own connections come in
	Mesh    State = "mesh"    // TCP comes in through the mesh proxy, and the named ports as configured
	Opened  State = "open"    // there is no table
	Foreign State = "foreign" // there is a table of our name, and it is none of ours
)

// What the mesh state's rules, Envoy's sockets and the mesh configuration share.
const (
	MarkIngress             = 0x51 // SO_MARK of the listener that asks for a client certificate
	MarkDecrypted           = 0x52 // SO_MARK of Envoy's connections to the application
	MarkIngressNoClientAuth = 0x53 // SO_MARK of the listener that does not
	MarkEgress              = 0x54 // SO_MARK of what leaves the guest under the egress lock

	PortIngress             uint16 = 15006
	PortIngressNoClientAuth uint16 = 15007
)

// ErrNoGuard: there is no table to change. Nothing armed it before, so what else happened before is anyone's guess.
var ErrNoGuard error = noGuardError{}

type noGuardError struct{}

func (noGuardError) Error() string {
	return "no table inet podvm_guard in this network namespace: the gate was never armed"
}

func (noGuardError) Hint() string {
	return "the podVM image must run podvm-guard.service before the first container; an image without it is not ours"
}

// Arm closes the gate at boot: it makes the closed table, whatever was there before, forbids conntrack to take
// connections it has not seen begin for established ones, and forgets the connections it knows, in this order, so that
// none can slip in between. Run it before any interface has an address.
func Arm(ctx context.Context) error { return arm(ctx, egress{free: true}) }

// Close lowers the gate again, after Raise. The guest's own connections go on. It returns ErrNoGuard without a table.
func Close(ctx context.Context) error { return lower(ctx, egress{free: true}) }

// Raise lets peers in through the mesh proxy, and to the ports named in p as they say. Call it when Envoy listens.
// It returns ErrNoGuard without a table.
func Raise(ctx context.Context, p Ports) error { return raise(ctx, p, egress{free: true}) }

func arm(ctx context.Context, e egress) error {
	if err := transact(ctx, closed(e), create); err != nil {
		return fmt.Errorf("close the guard: %w", err)
	}
	if err := forbidMidstreamPickup(); err != nil {
		return fmt.Errorf("the guard is closed, but: %w", err)
	}
	if err := flushConntrack(ctx); err != nil {
		return fmt.Errorf("the guard is closed, but: %w", err)
	}
	return nil
}

func lower(ctx context.Context, e egress) error {
	if err := transact(ctx, closed(e), replace); err != nil {
		return fmt.Errorf("close the guard: %w", err)
	}
	return nil
}

func raise(ctx context.Context, p Ports, e egress) error {
	if err := p.check(); err != nil {
		return fmt.Errorf("raise the guard: %w", err)
	}
	if err := transact(ctx, mesh(p, e, proxyCgroupID()), replace); err != nil {
		return fmt.Errorf("raise the guard: %w", err)
	}
	return nil
}

// Open removes the table, for a pod that is to have no mesh. It returns ErrNoGuard without a table.
func Open(ctx context.Context) error {
	if err := remove(ctx); errors.Is(err, unix.ENOENT) {
		return ErrNoGuard
	} else if err != nil {
		return fmt.Errorf("open the guard: %w", explain(err, closed(egress{free: true}), func(t table) error { return try(ctx, t) }))
	}
	live, _, err := read(ctx)
	if err != nil {
		return fmt.Errorf("open the guard: read back: %w", err)
	}
	if live != nil {
		return errors.New("open the guard: read back: the table is still there, or there again")
	}
	return nil
}

func transact(ctx context.Context, t table, how transition) error {
	s, err := t.apply(ctx, how)
	defer s.close()
	if err != nil {
		if how == replace && errors.Is(err, unix.ENOENT) {
			if live, _, readErr := read(ctx); readErr == nil && live == nil {
				return ErrNoGuard
			}
		}
		return fmt.Errorf("load the rules: %w", explain(err, t, func(t table) error { return try(ctx, t) }))
	}
	live, _, err := read(ctx)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if diff := difference(t.listing(), live); diff != "" {
		return fmt.Errorf("read back: %s", diff)
	}
	return nil
}
