package confine

import "golang.org/x/sys/unix"

const machine = unix.AUDIT_ARCH_X86_64

// machineSystemCalls are those that newer machines never had.
var machineSystemCalls = []uint32{
	unix.SYS_ARCH_PRCTL, // a thread's own segment registers
	unix.SYS_EPOLL_WAIT, unix.SYS_POLL, unix.SYS_SELECT, unix.SYS_PIPE, unix.SYS_DUP2, unix.SYS_TIME, unix.SYS_GETRLIMIT,
	unix.SYS_OPEN, unix.SYS_ACCESS, unix.SYS_STAT, unix.SYS_LSTAT, unix.SYS_NEWFSTATAT, unix.SYS_READLINK, unix.SYS_GETDENTS,
	unix.SYS_UNLINK, unix.SYS_CHMOD,
}
