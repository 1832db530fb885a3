package meshproxy

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/meshproxy/confine"
	"portcullis.dev/portcullis/meshproxy/envoy"
)

// parent is the thread that Envoys are started from, and ended. The kernel kills a child with Pdeathsig when the thread that
// made it ends, not the process: so it must be one thread, and live as long as they do. It is also the one thread on which
// the capabilities for that are in effect, and no others are.
type parent struct{ jobs chan func() }

func newParent() (*parent, error) {
	p, ready := &parent{jobs: make(chan func())}, make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and with it an Envoy that is left
		ready <- confine.Become(confine.Start)
		for job := range p.jobs {
			job()
		}
	}()
	if err := <-ready; err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *parent) close() { close(p.jobs) }

func (p *parent) do(f func() error) error {
	result := make(chan error)
	p.jobs <- func() { result <- f() }
	return <-result
}

// process is a running Envoy.
type process struct {
	cmd    *exec.Cmd
	parent *parent
	log    *envoyLog
	done   chan struct{} // closed when it has ended
	err    error         // how; only after done
}

// envoyLimits are what Envoy is confined to. Its directory is all that it needs besides what every program does.
func (s *supervisor) envoyLimits(made *envoy.Made) (confine.Limits, error) {
	limits, err := confine.For(s.program, string(s.dir.Dir))
	if err != nil {
		return confine.Limits{}, err
	}
	limits.Sockets = s.dir.AdminDir()
	limits.Listen = made.Ports
	if missing := confine.Available().Missing(); len(missing) > 0 {
		s.Log.Warn("this kernel cannot confine Envoy in everything; the other layers hold", "missing", missing)
	}
	return limits, nil
}

func (s *supervisor) startEnvoy(parent *parent) (*process, error) {
	s.set(causeStarting, "Envoy is starting")
	log := newEnvoyLog(&s.logs.messages)
	cmd, err := confine.Command(
		s.limits,
		"--config-path", s.dir.Bootstrap(),
		"--concurrency", strconv.Itoa(max(1, s.Concurrency)),
		"--disable-hot-restart",
		"--drain-time-s", strconv.Itoa(max(1, int(s.Drain.Seconds()/4))),
		"--drain-strategy", "immediate",
		"--log-level", "warning",
		"--log-format", logFormat,
		"--log-format-escaped",
		// A refusal is in the log a second later, not ten.
		"--file-flush-interval-msec", "1000",
	)
	if err != nil {
		return nil, err
	}
	cmd.Env = []string{} // what the host put into ours is none of its business
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = newConnectionLog(s.logs), log
	cmd.WaitDelay = stopTimeout
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: s.EnvoyUser, Gid: s.EnvoyUser},
		AmbientCaps: []uintptr{unix.CAP_NET_RAW},
		Pdeathsig:   syscall.SIGKILL,
		Setpgid:     true,
	}
	if err := parent.do(cmd.Start); err != nil {
		err = fmt.Errorf("start Envoy %s as user %d: %w", s.program, s.EnvoyUser, err)
		if errors.Is(err, syscall.EPERM) {
			return nil, &hinted{err, "the mesh proxy needs CAP_NET_RAW, CAP_SETUID and CAP_SETGID"}
		}
		return nil, err
	}
	s.mu.Lock()
	s.starts++
	s.mu.Unlock()
	p := &process{cmd: cmd, parent: parent, log: log, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// death says how an Envoy ended that was not asked to.
func (p *process) death() error {
	if line := p.log.lastError(); line != "" {
		return fmt.Errorf("envoy ended (%v): %s", p.cmd.ProcessState, line)
	}
	return fmt.Errorf("envoy ended (%v)", p.cmd.ProcessState)
}

// stop ends Envoy's process group, and returns when Envoy is gone.
func (p *process) stop() {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
	}
	p.signal(syscall.SIGKILL)
	<-p.done
}

func (p *process) signal(s syscall.Signal) {
	p.parent.do(func() error { return syscall.Kill(-p.pid(), s) }) // fails when it is gone
}
