package guard

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dialer opens connections that the egress lock lets out, and looks names up over such connections. It takes CAP_NET_RAW.
func Dialer() *net.Dialer {
	byName := &net.Resolver{PreferGo: true, Dial: (&net.Dialer{Control: markEgress}).DialContext}
	return &net.Dialer{Control: markEgress, Resolver: byName}
}

func markEgress(_, _ string, raw syscall.RawConn) (err error) {
	err = errors.Join(raw.Control(func(socket uintptr) {
		err = unix.SetsockoptInt(int(socket), unix.SOL_SOCKET, unix.SO_MARK, MarkEgress)
	}), err)
	if err != nil {
		return fmt.Errorf("mark a socket for the egress lock (CAP_NET_RAW): %w", err)
	}
	return nil
}
