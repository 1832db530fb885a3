// Package service tells systemd how a service of the podVM fares: see sd_notify(3).
package service

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// A Notifier tells whoever started this process. The zero value tells nobody: in a container the environment, where systemd's
// socket stands, is the host's to set.
type Notifier struct{ tell bool }

// Systemd tells systemd, which is the guest's own.
func Systemd() Notifier { return Notifier{tell: true} }

// Ready says that what the service is for is there, and in a line what that is. What waited for it goes on.
func (n Notifier) Ready(status string) { n.notify(daemon.SdNotifyReady + "\nSTATUS=" + status) }

// Status says in a line what the service is doing, or waits for.
func (n Notifier) Status(status string) { n.notify("STATUS=" + status) }

// Alive says that the service's own loop turns. systemd starts a service again that is silent for its WatchdogSec=.
func (n Notifier) Alive() { n.notify(daemon.SdNotifyWatchdog) }

func (n Notifier) notify(state string) {
	if n.tell {
		_, _ = daemon.SdNotify(false, state) // nobody listens: then nobody waits
	}
}

// Done is Ready for a service that ends at once. It returns when systemd has read it: what a process said that is gone by then may
// be nobody's.
func (n Notifier) Done(status string) error {
	n.Ready(status)
	if !n.tell {
		return nil
	}
	return barrier(os.Getenv("NOTIFY_SOCKET"))
}

// barrier sends systemd a pipe's end, which it closes when it comes to it (sd_notify_barrier(3)).
func barrier(socket string) error {
	if socket == "" {
		return nil
	}
	fault := func(err error) error { return fmt.Errorf("wait for systemd to read what was said: %w", err) }
	read, write, err := os.Pipe()
	if err != nil {
		return fault(err)
	}
	defer read.Close()
	defer write.Close()
	// Not through package net, which refuses control messages on a connected datagram socket.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fault(err)
	}
	defer unix.Close(fd)
	// A name that begins with "@" is an abstract one, as systemd writes it and as package unix reads it.
	if err := unix.Sendmsg(fd, []byte("BARRIER=1"), unix.UnixRights(int(write.Fd())), &unix.SockaddrUnix{Name: socket}, 0); err != nil {
		return fault(err)
	}
	write.Close()
	if err := read.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return fault(err)
	}
	if _, err := read.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fault(err)
	}
	return nil
}
