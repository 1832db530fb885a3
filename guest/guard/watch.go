package guard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A Change is what another process did to the rules of this network namespace, or may have done.
type Change struct {
	// PID and Process are the thread that did it, as the guest's first PID namespace numbers it, and its name. A container
	// sees other numbers.
	PID     uint32
	Process string
	// Missed: there may have been changes, by anyone, of which the kernel did not tell. PID and Process are not known.
	Missed bool
	// Status is the table's afterwards. Of changes in quick succession, it is the one after the last.
	Status Status
	// Err is why Status is not known.
	Err error
}

// Watch calls f after each change of nftables rules, of any table, that another process makes, until ctx is done. The first
// call, with Missed, comes at once: what happened before nobody watched. The kernel tells of nf_tables only; what legacy
// iptables does is in tables of its own, which cannot change this one. It needs CAP_NET_ADMIN.
func Watch(ctx context.Context, f func(Change)) error { return watch(ctx, 1<<20, f) }

// watch holds as many bytes of messages for f as buffer says, while f takes its time.
func watch(ctx context.Context, buffer int, f func(Change)) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("watch the guard: %w", err)
	}
	defer c.Close()
	if err := c.SetReadBuffer(buffer); err != nil {
		return fmt.Errorf("watch the guard: %w", err)
	}
	if err := c.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("watch the guard: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	defer own.watch()()
	var seen uint32 // the generation that status is of
	var status Status
	report := func(change Change) {
		change.Status = status
		f(change)
	}
	look := func() (err error) {
		status, seen, err = inspect(ctx)
		return err
	}
	missed := func() {
		change := Change{Missed: true}
		if change.Err = look(); ctx.Err() == nil {
			report(change)
		}
	}
	missed()
	for {
		messages, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // more came than the socket holds
			missed()
			continue
		case err != nil:
			return fmt.Errorf("watch the guard: %w", err)
		}
		for _, m := range messages {
			g, ok := generationOf(m)
			if !ok || own.made(m.Header.PID, g.number) {
				continue
			}
			change := Change{PID: g.pid, Process: g.process}
			// After a later change was looked at, this one's effect is seen, or gone.
			if int32(g.number-seen) > 0 {
				change.Err = look()
			}
			if ctx.Err() == nil {
				report(change)
			}
		}
	}
}

// A generation is the rules between two changes; its number goes up by one with each.
type generation struct {
	number, pid uint32
	process     string
}

// generationOf reads the message that ends every committed batch.
func generationOf(m netlink.Message) (generation, bool) {
	if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN || len(m.Data) < 4 {
		return generation{}, false
	}
	a, err := decodeAttributes(m.Data[4:])
	if err != nil {
		return generation{}, false
	}
	return generation{a.u32(unix.NFTA_GEN_ID), a.u32(unix.NFTA_GEN_PROC_PID), a.str(unix.NFTA_GEN_PROC_NAME)}, true
}

// own are this process' changes while it watches.
//
// The kernel says who made a change twice: by the thread's number, which a process in a PID namespace cannot compare with
// its own, and by the netlink port of the socket that it came through. A port belongs to one socket of a network namespace
// as long as that is open, so the changes through it between two generations, both taken while it was open, are ours.
var own changes

type changes struct {
	mu       sync.Mutex
	watchers int
	sockets  []*ownSocket
}

type ownSocket struct {
	port         uint32
	after, until uint32 // generations: it made changes after the one, and none after the other
	open         bool   // until is not known yet
}

func (c *changes) watch() (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.watchers--; c.watchers == 0 {
			c.sockets = nil
		}
	}
}

// commit commits a batch of ours through the socket, which must be open until it returns.
func (c *changes) commit(s *socket, b *batch) error {
	done, err := c.begin(s)
	if err != nil {
		return err
	}
	return errors.Join(s.commit(b.closed()), done())
}

func (c *changes) begin(s *socket) (end func() error, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watchers == 0 {
		return func() error { return nil }, nil
	}
	o := &ownSocket{open: true}
	if o.port, err = s.port(); err != nil {
		return nil, err
	}
	if o.after, err = (reader{s}).generation(); err != nil {
		return nil, err
	}
	// Far more than what a watcher may be behind.
	const most = 64
	if c.sockets = append(c.sockets, o); len(c.sockets) > most {
		c.sockets = c.sockets[1:]
	}
	return func() (err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		o.until, err = reader{s}.generation()
		o.open = false
		return err
	}, nil
}

func (c *changes) made(port, generation uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sockets {
		if s.port == port && int32(generation-s.after) > 0 && (s.open || int32(generation-s.until) <= 0) {
			return true
		}
	}
	return false
}
