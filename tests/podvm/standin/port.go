package main

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// portName is the virtio port that tests speak through to a virtual machine's agent.
const portName = "portcullis.agent"

// port is a listener with one connection: the virtio port, when it has appeared.
type port struct {
	once sync.Once
	gone chan struct{}
}

func newPort() net.Listener { return &port{gone: make(chan struct{})} }

func (p *port) Accept() (net.Conn, error) {
	var conn net.Conn
	p.once.Do(func() { conn = p.open() })
	if conn != nil {
		return conn, nil
	}
	<-p.gone
	return nil, net.ErrClosed
}

func (p *port) open() net.Conn {
	for {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) == portName {
				if f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0); err == nil {
					return &portConn{f}
				}
			}
		}
		select {
		case <-p.gone:
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *port) Close() error   { close(p.gone); return nil }
func (p *port) Addr() net.Addr { return &net.UnixAddr{Name: portName, Net: "unix"} }

// portConn reads nothing, at once, while nobody is at the other end (Linux, drivers/char/virtio_console.c).
type portConn struct{ *os.File }

func (c *portConn) Read(b []byte) (int, error) {
	for {
		n, err := c.File.Read(b)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (c *portConn) LocalAddr() net.Addr              { return &net.UnixAddr{Name: portName, Net: "unix"} }
func (c *portConn) RemoteAddr() net.Addr             { return c.LocalAddr() }
func (c *portConn) SetDeadline(time.Time) error      { return nil }
func (c *portConn) SetReadDeadline(time.Time) error  { return nil }
func (c *portConn) SetWriteDeadline(time.Time) error { return nil }
