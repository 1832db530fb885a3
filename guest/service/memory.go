package service

import (
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Frugal is for a program that is in every podVM and waits most of the time: a guest's memory is encrypted, and paid for. It is called first
// thing. The program, and every program that it starts, gets no huge pages for memory of which it uses little; and Go's heap is
// collected before it has doubled, and before the 4 MiB that it may grow to otherwise.
func Frugal() {
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0) // a kernel without huge pages has none to refuse
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(20)
	}
}
