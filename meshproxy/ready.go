package meshproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// readyTimeout bounds a question about readiness, from either side. Kubernetes gives an exec probe a second.
const readyTimeout = 900 * time.Millisecond

const answerReady = "ready"

// NotReady is the answer that the proxy does not serve.
type NotReady struct{ Cause string }

func (n *NotReady) Error() string { return "not ready: " + n.Cause }

// ExitCode says that a check was made and the answer is no.
func (*NotReady) ExitCode() int { return 3 }

// Ready asks the mesh proxy whose run directory runDir is. The error is a *NotReady unless it is ready.
func Ready(ctx context.Context, runDir string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", readySocket(runDir))
	if err != nil {
		return &NotReady{fmt.Sprintf("the mesh proxy does not run: %v", err)}
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	answer, err := bufio.NewReader(io.LimitReader(conn, 4<<10)).ReadString('\n')
	if err != nil {
		return &NotReady{fmt.Sprintf("the mesh proxy does not answer: %v", err)}
	}
	if answer = strings.TrimSuffix(answer, "\n"); answer != answerReady {
		return &NotReady{answer}
	}
	return nil
}

func readySocket(runDir string) string { return filepath.Join(runDir, "ready.sock") }

func (s *supervisor) listenReady() (net.Listener, error) {
	path := readySocket(s.RunDir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace the readiness socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for questions about readiness: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (s *supervisor) answerReady(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("answer questions about readiness: %w", err)
		}
		// One at a time: who asks is a probe, and a second one waits no longer than its time-out.
		conn.SetDeadline(time.Now().Add(readyTimeout))
		answer := answerReady
		if err := s.ready(ctx); err != nil {
			answer = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		io.WriteString(conn, answer+"\n")
		conn.Close()
	}
}

// A cause is why the proxy is not ready, in a word for metrics. There are few, and they stay.
type cause string

const (
	causeStarting    cause = "starting"    // an Envoy is not live yet, since the proxy began or since Envoy died
	causeEnvoy       cause = "envoy"       // Envoy died, or does not answer
	causeCertificate cause = "certificate" // it is not in its time
	causeGuard       cause = "guard"       // it is not in the state that was asked for
	causeStopping    cause = "stopping"    // the proxy drains
)

type unready struct {
	cause cause
	error
}

func (u *unready) Unwrap() error { return u.error }

func because(c cause, err error) error {
	if err == nil {
		return nil
	}
	return &unready{c, err}
}

// ready looks again at everything that "ready" promises: Envoy is live, the guard is in the state that was asked for, and
// the certificate is in its time.
func (s *supervisor) ready(ctx context.Context) error {
	s.mu.Lock()
	cause, phase, creds := s.cause, s.phase, s.credentials
	s.mu.Unlock()
	if phase != "" {
		return because(cause, errors.New(phase))
	}
	if err := creds.valid(time.Now()); err != nil {
		return because(causeCertificate, err)
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout/2)
	defer cancel()
	if err := s.admin.live(ctx); err != nil {
		return because(causeEnvoy, err)
	}
	return because(causeGuard, s.fault(ctx))
}
