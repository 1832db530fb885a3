package confine

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// Capabilities is a set of them: bit n stands for capability n of linux/capability.h.
type Capabilities uint64

// NetAdmin is the guard's: nftables, and marks on sockets.
const NetAdmin Capabilities = 1 << unix.CAP_NET_ADMIN

// Start is what it takes to start a program as another user with CAP_NET_RAW, and to end it.
const Start Capabilities = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_KILL | 1<<unix.CAP_NET_RAW

// Self takes from this process what the supervisor of a confined program never needs, and joins the group of the program's
// user, so that as a file's owner it can give the file to that group, without CAP_CHOWN.
//
// On every thread NetAdmin alone is in effect afterwards. A thread can bring Start back into effect for itself (Become);
// nothing else comes back, nor by executing a file. Go can take a capability from all threads or from the calling one, but
// not from all except one, so the other threads keep Start within reach, although out of effect.
//
// Other processes cannot read its memory, where the pod's key is, and it leaves no core behind. It stays root in name: the
// credentials belong to root, who is an ordinary owner without CAP_DAC_OVERRIDE.
func Self(group uint32) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hide the process's memory: %w", err)
	}
	// For the program that it starts. One byte, not none: a kernel that pipes cores to a program pays no heed to a limit of
	// zero, and takes one for the core of that program, which it never writes (fs/coredump.c).
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}); err != nil {
		return fmt.Errorf("forbid cores: %w", err)
	}
	if err := syscall.Setgroups([]int{int(group)}); err != nil {
		return fmt.Errorf("join group %d (CAP_SETGID): %w", group, err)
	}
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("set no_new_privs: %w", errno)
	}
	return setCapabilities(NetAdmin|Start, NetAdmin, psx.Syscall3)
}

// Become makes c all that the calling thread can ever do, and brings it into effect, as far as the thread has it. The
// goroutine must be locked to its thread.
func Become(c Capabilities) error { return setCapabilities(c, c, unix.RawSyscall) }

// setCapabilities puts on the calling thread, or on all, what there is of permitted and of effective.
func setCapabilities(permitted, effective Capabilities, set func(trap, a, b, c uintptr) (_, _ uintptr, _ syscall.Errno)) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now, next [2]unix.CapUserData // 32 capabilities each
	if err := unix.Capget(&header, &now[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for i := range next {
		shift := 32 * i
		next[i].Permitted = now[i].Permitted & uint32(permitted>>shift)
		next[i].Effective = next[i].Permitted & uint32(effective>>shift)
	}
	_, _, errno := set(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&next[0])), 0)
	if errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}
