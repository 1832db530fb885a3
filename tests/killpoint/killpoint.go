// Package killpoint runs a program and kills it right before a change that it is about to make to one file. Nothing that
// is shipped imports it.
//
// A test that kills at random hits the same few moments again and again. This one stops the process at every system call
// by ptrace, counts those that change the file or make it durable, over all threads, and sends SIGKILL before the n-th
// takes effect: with n from 1 up, between every two writes. Those to files whose names go on behind a dot (file.new) count too, as
// does every link that the program makes. What was written and not yet made durable is told apart, so that a test can
// also make the disk that a power failure leaves (Result.Disks).
package killpoint

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Call is a system call that changes the file or, with Sync, makes the changes before it durable.
type Call struct {
	Name string
	// Offset and Data are what was written where. Data is nil until the call has returned.
	Offset int64
	Data   []byte
	// Size is the file's new length, of ftruncate and fallocate.
	Size int64
	Sync bool

	elsewhere bool // not the file itself
}

func (c Call) String() string {
	switch {
	case c.Sync, c.Name == "linkat":
		return c.Name
	case c.Size > 0:
		return fmt.Sprintf("%s to %d bytes", c.Name, c.Size)
	default:
		return fmt.Sprintf("%s at %#x", c.Name, c.Offset)
	}
}

// Result is how a process ended.
type Result struct {
	// Status is as wait(2) has it.
	Status unix.WaitStatus
	// Calls are the file's changes since KillBefore, the one before which the process was killed included.
	Calls []Call
	// Durable is what the file held when it was last made durable, Unsynced the changes since, in their order.
	Durable  []byte
	Unsynced []Call
}

// Process is a program that is traced.
type Process struct {
	pid   int
	file  string
	done  chan struct{}
	loose int // changes of other files that are not durable yet

	mu     sync.Mutex
	armed  bool
	at     int
	result Result
	err    error
}

// New makes a process that watches what a program does to the file.
func New(file string) *Process { return &Process{file: file, done: make(chan struct{})} }

// Start starts cmd, whose standard streams must be files or nil. Wait must be called then.
func (p *Process) Start(cmd *exec.Cmd) error {
	if data, err := os.ReadFile(p.file); err == nil {
		p.result.Durable = data
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	started := make(chan error, 1)
	go func() {
		// A process has one tracer, which is a thread. It ends with this goroutine, so whatever went wrong ends the process.
		runtime.LockOSThread()
		defer close(p.done)
		cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.err = p.trace()
		_ = cmd.Process.Release() // trace has waited for it
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s under ptrace: %w", cmd.Path, err)
	}
	return nil
}

// KillBefore begins to count, and kills the process before the n-th change from now on, which may be before Start. With 0 it
// counts only.
func (p *Process) KillBefore(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.at, p.result.Calls = true, n, nil
}

// Kill kills the process now.
func (p *Process) Kill() { _ = unix.Kill(p.pid, unix.SIGKILL) }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.done }

// Wait waits for the process to end.
func (p *Process) Wait() (*Result, error) {
	<-p.done
	return &p.result, p.err
}

// syscallStop is what PTRACE_O_TRACESYSGOOD makes of the stops at system calls.
const syscallStop = unix.SIGTRAP | 0x80

func (p *Process) trace() error {
	var status unix.WaitStatus
	if _, err := unix.Wait4(p.pid, &status, 0, nil); err != nil {
		return fmt.Errorf("wait for the program's start: %w", err)
	}
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(p.pid, options); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	running := make(map[int]*Call) // by thread: what it is in the middle of
	for tid, signal := p.pid, 0; ; {
		if err := unix.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, unix.ESRCH) { // killed meanwhile
			return fmt.Errorf("go on after a stop: %w", err)
		}
		var err error
		for {
			// WNOTHREAD: what other threads of the test wait for is not ours.
			if tid, err = unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("wait for a stop: %w", err)
		}
		signal = 0
		switch {
		case (status.Exited() || status.Signaled()) && tid == p.pid:
			p.result.Status = status
			return nil
		case !status.Stopped():
			delete(running, tid)
		case status.StopSignal() == syscallStop:
			if err := p.stop(tid, running); err != nil && !errors.Is(err, unix.ESRCH) {
				p.Kill()
				return err
			}
		case status.StopSignal() == unix.SIGSTOP, status.StopSignal() == unix.SIGTRAP: // a new thread, or word of it
		default:
			signal = int(status.StopSignal())
		}
	}
}

// syscallInfo is struct ptrace_syscall_info (ptrace(2)).
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	_    uint32
	_    [2]uint64
	data [8]uint64 // at entry: number and arguments; at exit: the result
}

const (
	ptraceGetSyscallInfo = 0x420e
	opEntry, opExit      = 1, 2
)

// stop looks at a system call that thread tid begins or has finished.
func (p *Process) stop(tid int, running map[int]*Call) error {
	var info syscallInfo
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(tid), unsafe.Sizeof(info),
		uintptr(unsafe.Pointer(&info)), 0, 0); errno != 0 {
		return fmt.Errorf("read a system call: %w", errno)
	}
	switch info.op {
	case opEntry:
		call, err := p.change(info.data[0], info.data[1:])
		if call == nil {
			return err
		}
		running[tid] = call
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.armed {
			return nil
		}
		p.result.Calls = append(p.result.Calls, *call)
		if len(p.result.Calls) == p.at {
			p.Kill() // a system call that has not begun does not begin any more
			delete(running, tid)
		}
	case opExit:
		call := running[tid]
		delete(running, tid)
		if call == nil || int64(info.data[0]) < 0 {
			return nil
		}
		return p.changed(call)
	}
	return nil
}

// change says what a system call does to the file, nil for nothing.
func (p *Process) change(number uint64, args []uint64) (*Call, error) {
	var c Call
	switch number {
	case unix.SYS_PWRITE64:
		c = Call{Name: "pwrite64", Offset: int64(args[3]), Data: make([]byte, args[2])}
	case unix.SYS_FTRUNCATE:
		c = Call{Name: "ftruncate", Size: int64(args[1])}
	case unix.SYS_FALLOCATE:
		c = Call{Name: "fallocate", Size: int64(args[2] + args[3])}
	case unix.SYS_LINKAT:
		return &Call{Name: "linkat", elsewhere: true}, nil
	case unix.SYS_FSYNC:
		c = Call{Name: "fsync", Sync: true}
	case unix.SYS_FDATASYNC:
		c = Call{Name: "fdatasync", Sync: true}
	case unix.SYS_WRITE, unix.SYS_WRITEV, unix.SYS_PWRITEV, unix.SYS_PWRITEV2, unix.SYS_SYNC_FILE_RANGE:
	default:
		return nil, nil
	}
	name := p.name(args[0])
	c.elsewhere = name != p.file
	switch {
	case c.elsewhere && !strings.HasPrefix(name, p.file+"."):
		return nil, nil
	case c.Name == "":
		return nil, fmt.Errorf("the program changes %s by system call %d, which package killpoint does not know", p.file, number)
	}
	return &c, nil
}

func (p *Process) name(fd uint64) string {
	name, err := os.Readlink("/proc/" + strconv.Itoa(p.pid) + "/fd/" + strconv.FormatUint(fd, 10))
	if err != nil {
		return ""
	}
	return name
}

// changed keeps what a system call has done.
func (p *Process) changed(c *Call) error {
	switch {
	case c.Name == "linkat":
		// What was made durable under another name stays so under this one.
		if data, err := os.ReadFile(p.file); err == nil && p.loose == 0 && p.result.Durable == nil {
			p.result.Durable = data
		}
		return nil
	case c.elsewhere && c.Sync:
		p.loose = 0
		return nil
	case c.elsewhere:
		p.loose++
		return nil
	}
	data, err := os.ReadFile(p.file)
	if err != nil {
		return err
	}
	switch {
	case c.Sync:
		p.result.Durable, p.result.Unsynced = data, nil
		return nil
	case c.Data != nil:
		copy(c.Data, data[c.Offset:])
	}
	p.result.Unsynced = append(p.result.Unsynced, *c)
	return nil
}

// sector is what a disk writes as a whole.
const sector = 512

// Disks are what a power failure may leave of the file: what is durable, with every choice of the changes since, in full;
// and with all of them but half of one, by sectors. Changes of one page are not told apart further, and lies of a disk about what
// it made durable are not among them.
func (r *Result) Disks() [][]byte {
	var disks [][]byte
	n := min(len(r.Unsynced), 6)
	for choice := range 1 << n {
		disk := append([]byte(nil), r.Durable...)
		for i, c := range r.Unsynced {
			if i >= n || choice&(1<<i) != 0 {
				disk = c.apply(disk)
			}
		}
		disks = append(disks, disk)
	}
	for torn, c := range r.Unsynced {
		if len(c.Data) <= sector {
			continue
		}
		disk := append([]byte(nil), r.Durable...)
		for i, other := range r.Unsynced {
			if i == torn {
				other.Data = other.Data[:(len(other.Data)/2+sector-1)/sector*sector]
			}
			disk = other.apply(disk)
		}
		disks = append(disks, disk)
	}
	return disks
}

func (c Call) apply(disk []byte) []byte {
	end := max(c.Offset+int64(len(c.Data)), c.Size)
	if missing := end - int64(len(disk)); missing > 0 {
		disk = append(disk, make([]byte, missing)...)
	}
	if c.Name == "ftruncate" {
		disk = disk[:c.Size]
	}
	copy(disk[c.Offset:], c.Data)
	return disk
}
