package coordinator

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/manifest"
)

// This file keeps a replica in step with the others on its store.
//
// Nobody is served by a generation before the store's latest names it, and latest changes by compare-and-swap only. So among
// replicas on an honest store each manifest has one mesh CA, and one of several racing owners wins. A replica looks at latest
// about every second. Where it is newer than what the replica serves, and signed with the key that follows from the seed, the
// replica stops serving and asks its peers (peer.go). A host that shows it an old latest gains nothing: a replica never goes
// back, nor sideways to another history; it says so, serves what it knows, and changes nothing any more.

const (
	lookEvery    = time.Second
	storeTimeout = 10 * time.Second
)

// split is a store that contradicts what this process knows.
type split struct {
	latest []byte // the store's, nil where there is none
	reason string
}

// follow looks at the store, and asks peers where that is called for, until ctx ends.
func (c *Coordinator) follow(ctx context.Context) {
	var ask asking
	var failure string
	for {
		c.setMutex.Lock()
		err := c.observe(ctx)
		c.setMutex.Unlock()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failure = ""
		case err.Error() != failure:
			failure = err.Error()
			c.log.Warn("cannot follow the store; what is served stays as it is", "reason", failure)
		}
		pause := lookEvery
		if r := c.recovering.Load(); r != nil && c.peers != nil {
			if c.askPeers(ctx, r, &ask) {
				continue // look again: the store may have moved on meanwhile
			}
			pause <<= min(ask.rounds, 2)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause)): // replicas that started together do not ask together
		}
	}
}

// observe reads the store's latest and acts on it. Its error says that nothing was learnt. The caller holds setMutex.
func (c *Coordinator) observe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	text, err := c.store.Latest(ctx)
	switch {
	case errors.Is(err, store.ErrNotFound):
		text = nil
	case err != nil:
		return fmt.Errorf("read the store's latest transition: %w", err)
	}
	g, r := c.active.Load(), c.recovering.Load()
	var known *latest
	switch {
	case r != nil:
		known = r.latest
	case g != nil:
		known = g.latest
	}
	switch u := c.unanswered; {
	case u != nil && bytes.Equal(text, u.latest.text):
		if c.withdrawn { // the audit log says that it was not kept
			if err := c.auditTransition(u.transition, len(u.history)); err != nil {
				return err
			}
		}
		c.activate(u)
		c.log.Warn("a change that the store did not confirm has arrived there", "transition", hex.EncodeToString(u.transition.Hash[:]))
		return nil
	case known == nil && text == nil, known != nil && text != nil && bytes.Equal(text, known.text):
		if c.split.Swap(nil) != nil {
			c.log.Info("the store holds again what this Coordinator knows")
		}
		return nil
	case text == nil:
		c.contradicted(nil, "it is empty")
		return nil
	}
	if s := c.split.Load(); s != nil && s.latest != nil && bytes.Equal(text, s.latest) {
		return nil // judged before
	}
	return c.overtake(ctx, text, known)
}

// overtake judges a latest that is another one than known, and has this replica recover where it is newer.
func (c *Coordinator) overtake(ctx context.Context, text []byte, known *latest) error {
	g, r := c.active.Load(), c.recovering.Load()
	l, err := parseLatest(text)
	switch {
	case err != nil && g != nil:
		c.contradicted(text, err.Error())
		return nil
	case err != nil:
		return err
	case g == nil: // without the seed all of this is the host's word, the one of before too
	case !l.signedBy(&g.seed.TransactionKey().PublicKey):
		c.contradicted(text, "its latest is not signed with this Coordinator's transaction key")
		return nil
	case l.sequence < known.sequence:
		c.contradicted(text, fmt.Sprintf("it was rolled back: its latest is change %d, transition %x, and this Coordinator knows of change %d, transition %x",
			l.sequence, l.transition, known.sequence, known.transition))
		return nil
	case l.sequence == known.sequence:
		c.contradicted(text, fmt.Sprintf("it was split: its change %d is to transition %x with the mesh CA %x, and the one that this Coordinator knows to %x with %x",
			l.sequence, l.transition, l.meshCA, known.transition, known.meshCA))
		return nil
	}
	next, err := c.newRecovery(ctx, l)
	if err != nil {
		return fmt.Errorf("read the history in the store: %w", err)
	}
	if g != nil && !slices.ContainsFunc(next.history, func(t *manifest.Transition) bool { return t.Hash == known.transition }) {
		c.contradicted(text, fmt.Sprintf("it was split: its history ends with transition %x and does not contain %x, which this Coordinator knows",
			l.transition, known.transition))
		return nil
	}
	next.overtaken = r == nil || r.overtaken
	c.split.Store(nil)
	c.recovering.Store(next)
	c.log.Warn("another replica changed the history: this one needs its state", "transition", hex.EncodeToString(l.transition[:]),
		"generation", len(next.history), "change", l.sequence, "peers", c.peers != nil)
	return nil
}

// contradicted keeps what this replica has, and says loudly that the store is not to be trusted.
func (c *Coordinator) contradicted(text []byte, what string) {
	now := &split{latest: text, reason: what}
	if before := c.split.Swap(now); before == nil || before.reason != now.reason {
		c.log.Error("the store contradicts this Coordinator, which keeps what it has and takes no manifest", "reason", what)
	}
}

// mayChange says whether a change of the history may begin here. The caller holds setMutex.
func (c *Coordinator) mayChange(ctx context.Context, previous []byte) error {
	if c.recovering.Load() == nil {
		if err := c.observe(ctx); err != nil {
			return problem(api.CodeUnavailable).saying("the store cannot be read now").because(err)
		}
	}
	if r := c.recovering.Load(); r != nil {
		// Who lost a race is told so, and not to wait.
		if r.overtaken && !bytes.Equal(previous, r.latest.transition[:]) {
			return problem(api.CodeConflict)
		}
		return problem(r.code())
	}
	if s := c.split.Load(); s != nil {
		return problem(api.CodeSplitHistory).because(errors.New(s.reason))
	}
	return nil
}

// commit has the store's latest name next, and then serves by it. An error is store.ErrConflict where somebody was faster.
// The caller holds setMutex.
func (c *Coordinator) commit(ctx context.Context, kept []store.Object, old []byte, next *generation) error {
	// From here on a client that goes away changes nothing.
	ctx = context.WithoutCancel(ctx)
	err := c.store.Commit(ctx, kept, old, next.latest.text)
	if err == nil {
		c.activate(next)
		return nil
	}
	// The store may have done it and failed to say so; the keys of next are nowhere but here.
	c.unanswered, c.withdrawn = next, false
	if seen := c.observe(ctx); seen == nil && c.active.Load() == next {
		return nil
	}
	if errors.Is(err, store.ErrConflict) {
		c.unanswered = nil
	}
	c.withdrawn = true // by the caller, to whom this is an error
	return err
}

// activate serves by g. The caller holds setMutex.
func (c *Coordinator) activate(g *generation) {
	c.unanswered = nil
	c.split.Store(nil)
	c.active.Store(g)
	c.recovering.Store(nil)
	c.auditKept(g)
}

// stillServes says whether an answer that was made under g may be given.
func (c *Coordinator) stillServes(g *generation) error {
	if now, err := c.generation(); err != nil || now != g {
		return problem(api.CodeUnavailable).saying("the manifest changed meanwhile; ask again")
	}
	return nil
}
