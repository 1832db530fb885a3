package confine

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The filter is a list of what is allowed. A list of what is forbidden would have to know every system call that there will
// be; this one was taken from traces of Envoy through all of its life, and the families were filled up for other versions of
// it and other C libraries. What is not on it answers ENOSYS, as on a kernel that does not know it: libraries have a way to
// do without for that, and an Envoy that tries something new goes on instead of dying for it. What is on it with other
// arguments answers EPERM. The process is killed for what no honest program does: another machine's system calls, and to
// execute a program.

// systemCalls are allowed with any arguments.
var systemCalls = append([]uint32{
	// sockets, once there is one
	unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_RECVFROM, unix.SYS_SENDTO, unix.SYS_ACCEPT4, unix.SYS_ACCEPT, unix.SYS_CONNECT,
	unix.SYS_SHUTDOWN, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT,
	unix.SYS_RECVMSG, unix.SYS_SENDMSG, unix.SYS_RECVMMSG, unix.SYS_SENDMMSG, unix.SYS_BIND, unix.SYS_LISTEN,
	// waiting
	unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_CREATE1, unix.SYS_EVENTFD2, unix.SYS_PPOLL,
	unix.SYS_PSELECT6,
	// memory
	unix.SYS_BRK, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_MPROTECT, unix.SYS_MADVISE, unix.SYS_MINCORE,
	// threads and time
	unix.SYS_FUTEX, unix.SYS_SET_ROBUST_LIST, unix.SYS_SET_TID_ADDRESS, unix.SYS_RSEQ, unix.SYS_MEMBARRIER, unix.SYS_GETTID,
	unix.SYS_GETCPU, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SCHED_GETPARAM, unix.SYS_SCHED_GETSCHEDULER,
	unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP,
	unix.SYS_RESTART_SYSCALL, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	// what the process is and where
	unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
	unix.SYS_GETRUSAGE, unix.SYS_SYSINFO, unix.SYS_UNAME, unix.SYS_GETRANDOM, unix.SYS_GETCWD,
	// files, which Landlock and their owners guard
	unix.SYS_OPENAT, unix.SYS_CLOSE, unix.SYS_READ, unix.SYS_PREAD64, unix.SYS_WRITE, unix.SYS_PWRITE64,
	unix.SYS_LSEEK, unix.SYS_FSTAT, unix.SYS_STATX, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2,
	unix.SYS_READLINKAT, unix.SYS_GETDENTS64, unix.SYS_UNLINKAT, unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCNTL,
	unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_PIPE2, unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH, unix.SYS_INOTIFY_RM_WATCH,
}, machineSystemCalls...)

// conditions are allowed with some arguments.
func conditions(path uint64) map[uint32]code {
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
		unix.CLONE_NEWPID | unix.CLONE_NEWNET
	return map[uint32]code{
		unix.SYS_SOCKET: sockets(),
		// Threads, but no processes and no namespaces. clone3 hides its flags from a filter, so it is not on the list;
		// libraries then take clone.
		unix.SYS_CLONE: join(low(0), mask(unix.CLONE_THREAD|namespaces), when(unix.CLONE_THREAD, allow), deny),
		// Signals to itself, such as abort's.
		unix.SYS_TGKILL: join(low(0), when(uint32(os.Getpid()), allow), deny),
		// A name for a thread, and one for memory; above all no PR_SET_PTRACER and no PR_SET_MM.
		unix.SYS_PRCTL: join(low(0), when(unix.PR_SET_NAME, allow), when(unix.PR_SET_VMA, allow), deny),
		// Limits are read and not set.
		unix.SYS_PRLIMIT64: join(low(2), unless(0, deny), high(2), unless(0, deny), allow),
		// The program itself, once: by a path at an address that nobody knows any more when the process has become it.
		unix.SYS_EXECVE: join(low(0), unless(uint32(path), kill), high(0), unless(uint32(path>>32), kill), allow),
	}
}

// sockets are TCP, UDP and Unix sockets, and the netlink family from which getifaddrs(3) reads a machine's own addresses: it
// takes CAP_NET_ADMIN to change anything there. CAP_NET_RAW would give packet sockets and raw IP sockets as well.
func sockets() code {
	const kind = 0xf // the rest of the argument is flags
	internet := join(
		low(1), mask(kind),
		when(unix.SOCK_STREAM, join(low(2), when(unix.IPPROTO_IP, allow), when(unix.IPPROTO_TCP, allow), deny)),
		when(unix.SOCK_DGRAM, join(low(2), when(unix.IPPROTO_IP, allow), when(unix.IPPROTO_UDP, allow), deny)),
		deny,
	)
	return join(
		low(0),
		when(unix.AF_INET, internet),
		when(unix.AF_INET6, internet),
		when(unix.AF_UNIX, allow),
		when(unix.AF_NETLINK, join(low(2), when(unix.NETLINK_ROUTE, allow), deny)),
		deny,
	)
}

// filter is the whole program. The execution of a program whose path is at that address is allowed.
func filter(path uint64) code {
	const (
		numberOffset, machineOffset = 0, 4 // in struct seccomp_data
		// x32's system calls have this bit in their number, and the machine of the others (seccomp(2)).
		x32 = 0x40000000
	)
	f := join(
		load(machineOffset), unless(machine, kill),
		load(numberOffset), code{bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32, SkipTrue: 1}}, kill,
	)
	for _, number := range systemCalls {
		f = join(f, when(number, allow))
	}
	conditional := conditions(path)
	for _, number := range slices.Sorted(maps.Keys(conditional)) {
		f = join(f, when(number, conditional[number]))
	}
	return join(f, answer(unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)))
}

// code is a piece of a filter: it looks at one value at a time, the last that was loaded.
type code []bpf.Instruction

var (
	allow = answer(unix.SECCOMP_RET_ALLOW)
	deny  = answer(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))
	kill  = answer(unix.SECCOMP_RET_KILL_PROCESS)
)

func answer(action uint32) code { return code{bpf.RetConstant{Val: action}} }

func join(parts ...code) code { return slices.Concat(parts...) }

func load(offset uint32) code { return code{bpf.LoadAbsolute{Off: offset, Size: 4}} }

// low and high are the halves of an argument. Most are 32 bits wide, and what is in the high half then is an accident.
func low(argument uint32) code  { return load(16 + 8*argument) }
func high(argument uint32) code { return load(16 + 8*argument + 4) }

func mask(bits uint32) code { return code{bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: bits}} }

// when runs then, which ends in an answer, if the value is equal; unless, if it is not.
func when(value uint32, then code) code {
	return join(code{bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: uint8(len(then))}}, then)
}

func unless(value uint32, then code) code {
	return join(code{bpf.JumpIf{Cond: bpf.JumpEqual, Val: value, SkipTrue: uint8(len(then))}}, then)
}

// hide copies a path to where nobody finds it again: somewhere in memory at a place that the kernel chose.
func hide(path string) (unsafe.Pointer, error) {
	const room = 64 << 20 // of which a page or two are ever touched
	memory, err := unix.Mmap(-1, 0, room, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("get memory: %w", err)
	}
	var random [8]byte
	rand.Read(random[:])
	at := binary.NativeEndian.Uint64(random[:]) % uint64(room-len(path))
	copy(memory[at:], path)
	return unsafe.Pointer(&memory[at]), nil
}

// filterSystemCalls puts the filter on the calling thread, where the kernel has filters.
func filterSystemCalls(path uint64) error {
	if !hasSeccomp() {
		return nil
	}
	raw, err := bpf.Assemble(filter(path))
	if err != nil {
		return err
	}
	instructions := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		instructions[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]}
	// Kernels before 5.16 slow a filtered process down against side channels between what it runs and itself, which matters
	// to a browser with foreign scripts in it and not to Envoy.
	return seccomp(unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, unsafe.Pointer(&program))
}

func hasSeccomp() bool {
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	return seccomp(unix.SECCOMP_GET_ACTION_AVAIL, 0, unsafe.Pointer(&action)) == nil
}

func seccomp(operation, flags uintptr, argument unsafe.Pointer) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, operation, flags, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}
