package connect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"
)

// Tunnel carries connections to a peer.
type Tunnel struct {
	Peer Peer
	// Report is told of each connection that was not carried to its end. Nil for nobody.
	Report func(error)

	mu   sync.Mutex
	open map[net.Conn]bool
}

// Serve carries each connection that l accepts, until ctx is done. Then it accepts no more, and waits for those that are
// open, until cut is closed: what is open then breaks. It closes l.
func (t *Tunnel) Serve(ctx context.Context, l net.Listener, cut <-chan struct{}) error {
	// What is open outlives ctx: it has until cut.
	carrying, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var connections sync.WaitGroup
	finished := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-finished:
		}
		return l.Close()
	})
	var failed error
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() == nil && temporary(err) {
				t.report(fmt.Errorf("accept a connection: %w", err))
				continue
			}
			if ctx.Err() == nil {
				failed = fmt.Errorf("accept a connection: %w", err)
			}
			break
		}
		t.remember(conn)
		connections.Go(func() {
			defer t.forget(conn)
			if err := t.carry(carrying, conn); err != nil && carrying.Err() == nil {
				t.report(err)
			}
		})
	}
	close(finished)
	_ = g.Wait() // closing a listener a second time fails
	g.Go(func() error {
		connections.Wait()
		stop()
		return nil
	})
	select {
	case <-carrying.Done():
	case <-cut:
		stop()
		t.breakAll()
	}
	return errors.Join(failed, g.Wait())
}

// Open is how many connections there are.
func (t *Tunnel) Open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open)
}

func (t *Tunnel) remember(conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = make(map[net.Conn]bool)
	}
	t.open[conn] = true
}

func (t *Tunnel) forget(conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, conn)
}

func (t *Tunnel) breakAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for conn := range t.open {
		reset(conn)
	}
}

func (t *Tunnel) report(err error) {
	if t.Report != nil {
		t.Report(err)
	}
}

// temporary says whether a listener that failed to accept may yet accept others.
func temporary(err error) bool {
	return errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// carry connects local with the peer, both ways, until both have ended. An end that is not a proper one resets local: the
// client would take what came until then for all of it.
func (t *Tunnel) carry(ctx context.Context, local net.Conn) error {
	remote, err := t.Peer.dial(ctx)
	if err != nil {
		reset(local)
		return err
	}
	unwatch := context.AfterFunc(ctx, func() {
		reset(local)
		remote.abort()
	})
	defer unwatch()
	var g errgroup.Group
	g.Go(func() error { return t.send(remote, local) })
	g.Go(func() error { return t.receive(local, remote) })
	err = g.Wait()
	_ = remote.Close()
	_ = local.Close()
	return err
}

// send carries what the client writes. The client's end becomes TLS' close_notify, and the other way stays open.
func (t *Tunnel) send(remote *secured, local net.Conn) error {
	_, err := io.Copy(remote, readOnly{local})
	if err == nil {
		err = remote.CloseWrite()
	}
	if err != nil {
		remote.abort() // ends receive, which says more
	}
	return nil
}

// receive carries what the workload sends.
func (t *Tunnel) receive(local net.Conn, remote *secured) error {
	_, err := io.Copy(writeOnly{local}, remote)
	if err == nil && remote.truncated() {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		if half, ok := local.(interface{ CloseWrite() error }); ok {
			err = half.CloseWrite()
		}
	}
	switch {
	case err == nil:
		return nil
	case remote.asked && isAlert(err):
		err = t.Peer.wantsCertificate(err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("%s ended without saying so: something may be missing: %w", t.Peer.Address, err)
	case errors.Is(err, net.ErrClosed), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET) && !isRead(err):
		err = nil // the client went
	default:
		err = fmt.Errorf("from %s: %w", t.Peer.Address, err)
	}
	reset(local)
	remote.abort()
	return err
}

func isRead(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "read"
}

// reset ends a connection so that its other side sees that something went wrong.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// readOnly and writeOnly keep io.Copy to plain reads and writes: splice has nothing to do here.
type readOnly struct{ io.Reader }

type writeOnly struct{ io.Writer }
