package service

import "golang.org/x/sys/unix"

// SmallPages keeps this process, and every program that it starts, from getting huge pages for memory of which it uses little. It is called
// first thing in a program that waits most of the time: on a kernel with transparent huge pages, a heap of 2 MiB takes 4 MiB or more, and
// a guest's memory is encrypted, and paid for.
func SmallPages() {
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0) // a kernel without huge pages has none to refuse
}
