package meshproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// parent is the thread that Envoys are started from. The kernel kills a child with Pdeathsig when the thread that made it
// ends, not the process, and no_new_privs belongs to a thread too: so it must be one thread, and live as long as they do.
type parent struct{ jobs chan func() }

func newParent() *parent {
	p := &parent{jobs: make(chan func())}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and with it an Envoy that is left
		for job := range p.jobs {
			job()
		}
	}()
	return p
}

func (p *parent) close() { close(p.jobs) }

func (p *parent) start(cmd *exec.Cmd) error {
	result := make(chan error)
	p.jobs <- func() {
		// No file that Envoy could execute gives it more than it has.
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			result <- fmt.Errorf("set no_new_privs: %w", err)
			return
		}
		result <- cmd.Start()
	}
	return <-result
}

// process is a running Envoy.
type process struct {
	cmd  *exec.Cmd
	log  *envoyLog
	done chan struct{} // closed when it has ended
	err  error         // how; only after done
}

func (s *supervisor) startEnvoy(parent *parent) (*process, error) {
	s.set("Envoy is starting")
	log := &envoyLog{log: s.Log}
	cmd := exec.Command(
		s.program,
		"--config-path", s.dir.Bootstrap(),
		"--concurrency", strconv.Itoa(max(1, s.Concurrency)),
		"--disable-hot-restart",
		"--drain-time-s", strconv.Itoa(max(1, int(s.Drain.Seconds()/4))),
		"--drain-strategy", "immediate",
		"--log-level", "warning",
		"--log-format", logFormat,
		"--log-format-escaped",
	)
	cmd.Env = []string{} // what the host put into ours is none of its business
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.WaitDelay = stopTimeout
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: s.EnvoyUser, Gid: s.EnvoyUser},
		AmbientCaps: []uintptr{unix.CAP_NET_RAW},
		Pdeathsig:   syscall.SIGKILL,
		Setpgid:     true,
	}
	if err := parent.start(cmd); err != nil {
		err = fmt.Errorf("start Envoy %s as user %d: %w", s.program, s.EnvoyUser, err)
		if errors.Is(err, syscall.EPERM) {
			return nil, &hinted{err, "the mesh proxy needs CAP_NET_RAW, CAP_SETUID and CAP_SETGID"}
		}
		return nil, err
	}
	s.mu.Lock()
	s.starts++
	s.mu.Unlock()
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
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
	syscall.Kill(-p.pid(), syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
	}
	syscall.Kill(-p.pid(), syscall.SIGKILL)
	<-p.done
}

// logFormat makes Envoy's lines easy to take apart: level, component, message.
const logFormat = "%l|%n|%v"

// envoyLog takes Envoy's output, a line at a time, into the proxy's own log.
type envoyLog struct {
	log *slog.Logger

	mu   sync.Mutex
	rest []byte
	last string
}

var logLevels = map[string]slog.Level{
	"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo,
	"warning": slog.LevelWarn, "error": slog.LevelError, "critical": slog.LevelError,
}

// unescape undoes --log-format-escaped, which keeps a message on its line.
var unescape = strings.NewReplacer(`\'`, `'`, `\"`, `"`, `\n`, " ", `\t`, " ", `\\`, `\`)

func (l *envoyLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, b...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			// A line without end would be kept without end.
			if len(l.rest) > 64<<10 {
				l.rest = nil
			}
			return len(b), nil
		}
		l.rest = rest
		l.line(string(line))
	}
}

func (l *envoyLog) line(line string) {
	fields := strings.SplitN(strings.TrimSpace(line), "|", 3)
	level, known := logLevels[fields[0]]
	if !known || len(fields) != 3 {
		if line = strings.TrimSpace(line); line != "" {
			l.last = line // the C++ runtime's or the dynamic loader's last words
			l.log.Error(line, "source", "envoy")
		}
		return
	}
	message := unescape.Replace(fields[2])
	if level == slog.LevelError {
		l.last = message
	}
	l.log.Log(context.Background(), level, message, "source", "envoy", "logger", fields[1])
}

func (l *envoyLog) lastError() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}
