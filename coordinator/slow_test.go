package coordinator_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/coordinator/store"
	"portcullis.dev/portcullis/tests/netlab"
)

// pipes is a listener in memory, for time that passes at once.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (*pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.conns <- server
	return client
}

// Whoever is slow is sent away, in the time that is meant for it, and holds nobody up meanwhile.
func TestSlowClientsAreSentAway(t *testing.T) {
	world(t) // its certificates are of the real time
	path := filepath.Join(t.TempDir(), "coordinator.db")
	const head = "POST " + api.PathAttest + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
	synctest.Test(t, func(t *testing.T) {
		s, err := store.OpenBolt(path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		c, err := coordinator.New(t.Context(), coordinator.Config{
			Store: s, Issuer: world(t).Machine(measurement, coordPolicy), AllowSimulatedTEE: true, Log: jsonLog(&netlab.Log{}),
		})
		if err != nil {
			t.Fatal(err)
		}
		listener := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- c.Serve(ctx, listener) }()

		var writing sync.WaitGroup
		// others are answered while somebody is slow
		others := func(t *testing.T) {
			conn := listener.dial()
			defer conn.Close()
			go io.WriteString(conn, "GET "+api.PathHealth+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("beside a slow client: %v, %v", resp, err)
				return
			}
			_, _ = io.ReadAll(resp.Body)
		}
		for name, test := range map[string]struct {
			write func(conn net.Conn)
			reads bool // the client reads at once; otherwise only after everything should be over
			after time.Duration
			code  string
		}{
			"says nothing":           {func(net.Conn) {}, true, 5 * time.Second, ""},
			"never ends its headers": {func(c net.Conn) { io.WriteString(c, head) }, true, 5 * time.Second, ""},
			"sends its headers byte by byte": {func(c net.Conn) {
				for _, b := range []byte(head) {
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			}, true, 5 * time.Second, ""},
			"never ends its body": {func(c net.Conn) { io.WriteString(c, head+"\r\n{\"nonce\":") }, true, 15 * time.Second, string(api.CodeBadRequest)},
			"sends its body byte by byte": {func(c net.Conn) {
				io.WriteString(c, head+"\r\n")
				for {
					if _, err := c.Write([]byte(" ")); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			}, true, 15 * time.Second, string(api.CodeBadRequest)},
			"does not read its answer": {func(c net.Conn) {
				io.WriteString(c, "GET "+api.PathHealth+" HTTP/1.1\r\nHost: x\r\n\r\n")
			}, false, time.Minute, ""},
			"has nothing more to ask": {func(c net.Conn) {
				io.WriteString(c, "GET "+api.PathHealth+" HTTP/1.1\r\nHost: x\r\n\r\n")
			}, true, 30 * time.Second, `"state":"no-manifest"`},
		} {
			// a bubble has no subtests
			conn := listener.dial()
			began := time.Now()
			writing.Go(func() { test.write(conn) })
			synctest.Wait()
			others(t)
			if !test.reads {
				time.Sleep(test.after + time.Second)
				began = began.Add(time.Second)
			}
			answer, err := io.ReadAll(conn)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(began); took < test.after-time.Second || took > test.after+time.Second {
				t.Errorf("who %s was sent away after %v, want %v", name, took, test.after)
			}
			if !strings.Contains(string(answer), test.code) || (test.code == "" && strings.Contains(string(answer), "200 OK")) {
				t.Errorf("who %s was told %q, want %q", name, answer, test.code)
			}
			conn.Close()
		}
		writing.Wait() // the slowest one finds out a second after it was sent away
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
