package meshproxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

// through is a client in one pod and a server in another, with a mesh between them.
func through(t *testing.T, handle func(*net.TCPConn)) (caller, web *pod, dial func() *net.TCPConn) {
	t.Helper()
	m := newMesh(t)
	caller, web = newPod(t, "caller"), newPod(t, "web")
	m.write(web.contrast, m.issue(time.Hour, "web"))
	m.write(caller.contrast, m.issue(time.Hour, "caller"))
	if handle != nil {
		web.serve(8080, handle)
	}
	web.startReady("--ingress", "web#8080#mtls#caller")
	caller.startReady("--ingress", "CLOSED", "--egress", fmt.Sprintf("web#127.137.0.1:11001#%s:8080#web", web.IPv4))
	return caller, web, func() *net.TCPConn {
		t.Helper()
		c, err := dialFrom(caller.Host, netip.MustParseAddrPort("127.137.0.1:11001"))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
		return c.(*net.TCPConn)
	}
}

// Who stops sending first goes on receiving, and nothing is lost, in each order.
func TestHalfCloseLosesNothing(t *testing.T) {
	t.Parallel()
	const size = 3 << 20 // more than all buffers on the way
	data := noise(size)
	type result struct {
		order string
		got   []byte
		err   error
	}
	results := make(chan result, 1)
	// The first line says what the server is to do.
	_, _, dial := through(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		order, err := r.ReadString('\n')
		if err != nil {
			return
		}
		c.SetDeadline(time.Now().Add(patience))
		var got []byte
		receive := func() { got, err = io.ReadAll(r) }
		send := func() {
			c.Write(data)
			c.CloseWrite()
		}
		switch order {
		case "client ends first\n", "client says nothing\n":
			receive()
			send()
		case "server ends first\n":
			send()
			receive()
		case "server says nothing\n":
			c.CloseWrite()
			receive()
		case "both at once\n":
			var wg sync.WaitGroup
			wg.Go(send)
			receive()
			wg.Wait()
		}
		results <- result{order, got, err}
	})
	for _, tt := range []struct {
		order              string
		toServer, toClient []byte
		clientFirst        bool
	}{
		{"client ends first", data, data, true},
		{"client says nothing", nil, data, true},
		{"server ends first", data, data, false},
		{"server says nothing", data, nil, false},
		{"both at once", data, data, true},
	} {
		c := dial()
		io.WriteString(c, tt.order+"\n")
		var got []byte
		var err error
		send := func() {
			c.Write(tt.toServer)
			c.CloseWrite()
		}
		switch {
		case tt.order == "both at once":
			var wg sync.WaitGroup
			wg.Go(send)
			got, err = io.ReadAll(c)
			wg.Wait()
		case tt.clientFirst:
			send()
			got, err = io.ReadAll(c)
		default:
			got, err = io.ReadAll(c)
			send()
		}
		if err != nil || !bytes.Equal(got, tt.toClient) {
			t.Errorf("%s: the client received %d bytes (%v), want the %d that were sent", tt.order, len(got), err, len(tt.toClient))
		}
		r := <-results
		if r.err != nil || !bytes.Equal(r.got, tt.toServer) {
			t.Errorf("%s: the server received %d bytes (%v), want the %d that were sent", tt.order, len(r.got), r.err, len(tt.toServer))
		}
		c.Close()
	}
}

// A connection that one side resets ends on the other, whether or not bytes are on the way.
func TestResetEndsTheOtherSide(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	resetNow := make(chan struct{})
	caller, web, dial := through(t, func(c *net.TCPConn) {
		how := make([]byte, 1)
		if _, err := io.ReadFull(c, how); err != nil {
			return
		}
		io.WriteString(c, "!")
		switch how[0] {
		case 'r': // wait for a reset
			_, err := io.Copy(io.Discard, c)
			ended <- err
		case 'w': // write until the reset
			for b := noise(64 << 10); ; {
				if _, err := c.Write(b); err != nil {
					ended <- err
					return
				}
			}
		case 'R':
			<-resetNow
			c.SetLinger(0)
		}
	})
	await := func(name string, c <-chan error) {
		t.Helper()
		select {
		case err := <-c:
			t.Logf("%s: the other side sees %v", name, err)
		case <-time.After(patience):
			t.Errorf("%s: the other side does not see it", name)
		}
	}
	open := func(how string) *net.TCPConn {
		c := dial()
		io.WriteString(c, how)
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := sockets(t, web.envoy()) + sockets(t, caller.envoy())
	for name, how := range map[string]string{"the client resets": "r", "the client resets with unread bytes": "w"} {
		c := open(how)
		c.SetLinger(0)
		c.Close()
		await(name, ended)
	}
	for _, name := range []string{"the server resets", "the server resets while the client writes"} {
		c := open("R")
		end := make(chan error, 1)
		go func() {
			if name == "the server resets" {
				_, err := io.Copy(io.Discard, c)
				end <- err
				return
			}
			for b := noise(64 << 10); ; {
				if _, err := c.Write(b); err != nil {
					end <- err
					return
				}
			}
		}()
		resetNow <- struct{}{}
		await(name, end)
	}
	web.await("Envoy to forget the connections", func() error {
		if n := sockets(t, web.envoy()) + sockets(t, caller.envoy()); n > before {
			return fmt.Errorf("%d sockets, %d before", n, before)
		}
		return nil
	})
}

// A connection becomes no older than the certificate that it began with.
func TestMaximumAge(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
	certificate := m.issue(time.Hour, "web")
	m.write(p.contrast, certificate)
	ended := make(chan error, 1)
	p.serve(8081, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	p.startReady("--egress", "out#127.137.0.1:11001#web:8080")
	p.patch(func(b *bootstrapv3.Bootstrap) {
		lifetime := certificate.Leaf.NotAfter.Sub(certificate.Leaf.NotBefore)
		proxies(t, b, func(c *listenerv3.FilterChain, p *tcpproxyv3.TcpProxy) {
			if c.Name == "black-hole" {
				return
			}
			age, jitter := p.MaxDownstreamConnectionDuration.AsDuration(), p.MaxDownstreamConnectionDurationJitterPercentage.GetValue()
			if most := time.Duration(float64(age) * (1 + jitter/100)); age < lifetime*9/10 || most > lifetime+time.Second || jitter < 1 {
				t.Errorf("chain %s: connections end after %v to %v, want at most the certificate's %v, with a jitter", c.Name, age, most, lifetime)
			}
			p.MaxDownstreamConnectionDuration = durationpb.New(2 * time.Second)
		})
	})
	began := time.Now()
	conn, err := openTLS(peer, p.at(p.IPv4, 8081), m.client(m.issue(time.Hour, "api")))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// It is never idle.
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if _, err := conn.Write([]byte("!")); err != nil {
				return
			}
		}
	}()
	conn.SetReadDeadline(began.Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection that should be too old: %v", err)
	}
	if age := time.Since(began); age < 2*time.Second {
		t.Errorf("it ended after %v", age)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the application does not see the end")
	}
}

// Who was about to be served when the signal came is served: the drain waits for handshakes too.
func TestDrainWaitsForHandshakes(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.serveFirst(8080)
	p.startReady("--admin-port", "9901")
	raw, err := dialFrom(peer, p.at(p.IPv4, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	p.await("Envoy to accept the connection", func() error {
		metrics, err := scrape(p)
		if err != nil {
			return err
		}
		if n, err := value(metrics, "connections_active", `listener="ingress"`); err != nil || n != 1 {
			return fmt.Errorf("it counts %v, %w", n, err)
		}
		return nil
	})
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.await("not ready", func() error {
		if err := p.ready(); exitCode(err) != 3 {
			return fmt.Errorf("ready exits with %v", err)
		}
		return nil
	})
	conn := tls.Client(raw, m.client(m.issue(time.Hour, "api")))
	if got, err := readGreetingIn(conn, patience); got != greeting {
		t.Errorf("a handshake that ends during the drain: got %q, %v", got, err)
	}
	conn.Close()
	select {
	case err := <-p.exited:
		if err != nil {
			t.Errorf("the mesh proxy exits with %v, want 0", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the mesh proxy does not end with its last connection")
	}
}

func TestSecondSignalEndsTheDrain(t *testing.T) {
	t.Parallel()
	for _, second := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(second.String(), func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
			m.write(p.contrast, m.issue(time.Hour, "web"))
			p.serveFirst(8080)
			p.startReady("--ingress", "metrics#7890#true", "--drain", "10m")
			conn, err := openTLS(peer, p.at(p.IPv4, 8080), m.client(m.issue(time.Hour, "api")))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got, err := readGreetingIn(conn, patience); got != greeting {
				t.Fatal(got, err)
			}
			envoy := p.envoy()
			p.cmd.Process.Signal(syscall.SIGTERM)
			p.await("not ready", func() error {
				if err := p.ready(); exitCode(err) != 3 {
					return fmt.Errorf("ready exits with %v", err)
				}
				return nil
			})
			io.WriteString(conn, greeting)
			if got, err := readGreetingIn(conn, patience); got != greeting {
				t.Fatalf("while it drains: %q, %v", got, err)
			}
			p.cmd.Process.Signal(second)
			began := time.Now()
			select {
			case err := <-p.exited:
				if err != nil {
					t.Errorf("the mesh proxy exits with %v, want 0", err)
				}
			case <-time.After(patience):
				t.Fatal("the mesh proxy goes on draining")
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", envoy)); err == nil { // a zombie would be there too
				t.Error("its Envoy is still there")
			}
			if s := p.guardState(); s != guard.Closed {
				t.Errorf("it left the guard %s", s)
			}
		})
	}
}
