package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

// Inside a pod the program plays processes that are none of ours. Its first argument says which.
const roleListen = "matrix-role-listen"

// role plays a part, where the program was started for that inside a pod. It must come before netlab.Enter.
func role() bool {
	if len(os.Args) != 4 || os.Args[1] != roleListen {
		return false
	}
	fmt.Println(listen(os.Args[2], os.Args[3] == "transparent"))
	os.Exit(1)
	return true
}

// A squatter listens on every port that is named and greets whoever connects with squatterSecret.
const squatterSecret = "secret-of-a-squatter"

// squat starts a process in the pod that listens where the mesh proxy would: as a user of its own without any capability,
// or as root, transparent, with whatever mark its socket has from birth.
func (l *Lab) squat(asRoot bool, ports ...uint16) {
	for _, port := range ports {
		c := &netlab.Container{
			Name:    fmt.Sprintf("squatter-%d", port),
			Command: []string{"/opt/netlab", roleListen, strconv.Itoa(int(port)), "plain"},
			User:    1000, NoNewPrivileges: true, ReadOnlyRoot: true, Log: l.podLog,
		}
		if asRoot {
			c.User, c.Command[3], c.Capabilities = 0, "transparent", netlab.DefaultCapabilities
		}
		l.must(l.Pod.Start(c))
		l.squatters = append(l.squatters, c)
		l.Await("a squatter on a port", func() bool {
			select {
			case <-c.Done():
				l.Brokenf("a squatter ended:\n%s", l.podLog)
			default:
			}
			listens, err := l.Pod.Listens(port)
			return err == nil && listens
		})
	}
}

// unsquat ends the squatters.
func (l *Lab) unsquat() {
	for _, c := range l.squatters {
		l.must(c.Signal(syscall.SIGKILL))
		<-c.Done()
	}
	l.squatters = nil
	l.awaitNoListener(guard.PortIngress)
}

func listen(port string, transparent bool) error {
	l, err := listenMarked(port, transparent, 0)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			fmt.Fprintln(c, squatterSecret)
			c.Read(make([]byte, 1))
			c.Close()
		}()
	}
}

// listenMarked listens as Envoy does: both families, IP_TRANSPARENT, and a mark that is set before the socket is bound.
func listenMarked(port string, transparent bool, mark int) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		controlled := raw.Control(func(fd uintptr) {
			if transparent {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			}
			if err == nil && mark != 0 {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
			}
		})
		if controlled != nil {
			return controlled
		}
		return err
	}}
	return config.Listen(context.Background(), "tcp", "[::]:"+port)
}
