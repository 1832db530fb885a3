package cluster

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// process is a program whose output goes to a file.
type process struct {
	name, log string
	process   *os.Process
	done      chan struct{} // closed when it has ended
}

func startProcess(log, path string, args ...string) (*process, error) {
	output, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that panics leaves nothing behind
	p := &process{name: filepath.Base(path), log: log, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the signal comes when the thread that forked ends, so that thread waits here
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.process = cmd.Process
		started <- nil
		_ = cmd.Wait() // it is ended from outside, or await tells of it
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return p, nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// wait waits a moment for the process to do something else than ending.
func (p *process) wait(moment time.Duration, deadline time.Time) error {
	if time.Now().After(deadline) {
		return fmt.Errorf("%s is not ready after %v: %s", p.name, patience, p.tail())
	}
	timer := time.NewTimer(moment)
	defer timer.Stop()
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %s", p.name, p.tail())
	case <-timer.C:
		return nil
	}
}

// await waits until url answers 200.
func (p *process) await(client *http.Client, url string) error {
	for deadline := time.Now().Add(patience); ; {
		if answer, err := client.Get(url); err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return nil
			}
		}
		if err := p.wait(100*time.Millisecond, deadline); err != nil {
			return err
		}
	}
}

func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

func (p *process) kill() {
	if err := p.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(err) // a process of our own
	}
	<-p.done
}

// stop gives it time to end in order, and no more.
func (p *process) stop() {
	if err := p.process.Signal(syscall.SIGTERM); err == nil {
		timer := time.NewTimer(20 * time.Second)
		defer timer.Stop()
		select {
		case <-p.done:
			return
		case <-timer.C:
		}
	}
	p.kill()
}
