package meshproxy_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

// soak says that `make soak` runs these tests at their full size. Otherwise they are a hundredth of it, or what that is worth.
var soak = os.Getenv("PORTCULLIS_SOAK") != ""

func scaled(full, small int) int {
	if soak {
		return full
	}
	return small
}

// listenerPort is where the shop pod calls the web pod.
const listenerPort = 11001

// pair is a pod that serves and a pod that calls it, each with its mesh proxy, and a peer without one.
type pair struct {
	mesh      *mesh
	web, shop *pod
	peer      *netlab.Host
}

func newPair(t testing.TB) *pair {
	t.Helper()
	p := &pair{mesh: newMesh(t), web: newPod(t, "web"), shop: newPod(t, "shop"), peer: netlab.NewHost(t, "peer")}
	p.mesh.write(p.web.contrast, p.mesh.issue(time.Hour, "web"))
	p.mesh.write(p.shop.contrast, p.mesh.issue(time.Hour, "shop"))
	p.web.startReady()
	p.shop.startReady("--egress", fmt.Sprintf("web#127.0.0.1:%d#%s:8080#web", listenerPort, p.web.IPv4))
	return p
}

// call is a connection from the shop's workload, through both proxies.
func (p *pair) call(ctx context.Context) (net.Conn, error) {
	return p.shop.Dial(ctx, "tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), listenerPort).String())
}

// serve accepts connections in the web pod, each for its own handler.
func (p *pair) serve(t testing.TB, handle func(*net.TCPConn)) {
	t.Helper()
	l, err := p.web.Listen("tcp", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
}

// Both pods change their certificates again and again while connections are made and used. None may fail, and none may
// be cut; each new certificate must be seen by a peer.
func TestRotationUnderLoad(t *testing.T) {
	connections, rotations := scaled(10_000, 500), scaled(20, 3)
	p := newPair(t)
	p.web.serveFirst(8080)
	outside := p.mesh.client(p.mesh.issue(time.Hour, "outside"))
	trip := func(dial func(context.Context) (net.Conn, error)) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		c, err := dial(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		line := rand.Text() + "\n"
		if _, err := io.WriteString(c, line); err != nil {
			return err
		}
		got := make([]byte, len(greeting)+len(line))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if string(got) != greeting+line {
			return fmt.Errorf("got %q, want the greeting and %q", got, line)
		}
		return nil
	}
	// One connection is older than all rotations, and goes on.
	old, err := p.call(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if got, err := readGreeting(old); got != greeting {
		t.Fatalf("got %q, %v", got, err)
	}

	var made, failed atomic.Int64
	rotated := make(chan struct{})
	var load sync.WaitGroup
	for i := range 8 {
		dial := p.call
		if i%2 == 1 {
			dial = func(ctx context.Context) (net.Conn, error) {
				raw, err := p.peer.Dial(ctx, "tcp", p.web.at(p.web.IPv6, 8080).String())
				if err != nil {
					return nil, err
				}
				return tls.Client(raw, outside), nil
			}
		}
		load.Go(func() {
			for {
				select {
				case <-rotated:
					if made.Load() >= int64(connections) {
						return
					}
				default:
				}
				if made.Add(1); t.Context().Err() != nil {
					return
				}
				if err := trip(dial); err != nil {
					failed.Add(1)
					t.Errorf("connection of client %d: %v", i, err)
					return
				}
			}
		})
	}
	for n := range rotations {
		next := p.mesh.issue(time.Hour, "web")
		p.mesh.write(p.web.contrast, next)
		p.mesh.write(p.shop.contrast, p.mesh.issue(time.Hour, "shop"))
		await(t, "the next certificate", func() error {
			_, state, err := overTLS(p.peer, p.web.at(p.web.IPv4, 8080), outside)
			if err != nil {
				return err
			}
			if got := state.PeerCertificates[0].SerialNumber; got.Cmp(next.Leaf.SerialNumber) != 0 {
				return fmt.Errorf("the certificate is %x", got)
			}
			if got := len(p.shop.log.Entries("new credentials are in force")); got <= n {
				return fmt.Errorf("the shop has had %d", got)
			}
			return nil
		})
	}
	close(rotated)
	load.Wait()
	const late = "late word\n"
	io.WriteString(old, late)
	if got, err := readGreeting(old); got != late {
		t.Errorf("the connection from before got %q, %v", got, err)
	}
	for _, pod := range []*pod{p.web, p.shop} {
		if n := len(pod.log.Entries("new credentials are in force")); n < rotations {
			t.Errorf("%s put %d credentials in force, want %d", pod.Name, n, rotations)
		}
		if n := len(pod.log.Entries("ready")); n != 1 {
			t.Errorf("%s started Envoy %d times", pod.Name, n)
		}
	}
	t.Logf("%d connections, %d failed, over %d rotations of both pods", made.Load(), failed.Load(), rotations)
}

// A workload may hold thousands of connections. What one costs is measured from inside; all must still carry bytes.
func TestManyIdleConnections(t *testing.T) {
	connections := scaled(8_000, 400)
	p := newPair(t)
	var accepted atomic.Int64
	p.serve(t, func(c *net.TCPConn) {
		accepted.Add(1)
		io.Copy(struct{ io.Writer }{c}, c) // not by splice, whose pipes are two more descriptors each
	})
	outside := p.mesh.client(p.mesh.issue(time.Hour, "outside"))
	open := func() (net.Conn, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		raw, err := p.peer.Dial(ctx, "tcp", p.web.at(p.web.IPv4, 8080).String())
		if err != nil {
			return nil, err
		}
		c := tls.Client(raw, outside)
		return c, c.HandshakeContext(ctx)
	}
	warm, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer warm.Close()
	before := anonymous(t, p.web.envoy())
	conns := make([]net.Conn, connections)
	var next atomic.Int64
	var openers sync.WaitGroup
	for range 4 {
		openers.Go(func() {
			for i := next.Add(1) - 1; i < int64(connections) && !t.Failed(); i = next.Add(1) - 1 {
				c, err := open()
				if err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
				conns[i] = c
			}
		})
	}
	openers.Wait()
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	if t.Failed() {
		return
	}
	await(t, "all connections to reach the application", func() error {
		if n := accepted.Load(); n < int64(connections) {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
	after := anonymous(t, p.web.envoy())
	t.Logf("%d idle connections: Envoy has %d KiB of anonymous memory, before %d: %.1f KiB each",
		connections, after>>10, before>>10, float64(after-before)/float64(connections)/1024)
	if each := (after - before) / int64(connections); each > 64<<10 {
		t.Errorf("an idle connection costs %d octets", each)
	}
	for i := 0; i < connections; i += max(1, connections/100) {
		conns[i].SetDeadline(time.Now().Add(10 * time.Second))
		got := make([]byte, 5)
		if io.WriteString(conns[i], "still"); true {
			if _, err := io.ReadFull(conns[i], got); err != nil || string(got) != "still" {
				t.Errorf("connection %d carries %q, %v", i, got, err)
			}
		}
	}
	if err := p.web.ready(); err != nil {
		t.Error(err)
	}
}

// anonymous is the memory of a process that no file is behind, in octets.
func anonymous(t testing.TB, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "RssAnon:"); found {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("/proc says nothing of anonymous memory")
	return 0
}

// A large transfer each way at the same time arrives as it was sent, to the last octet, half-closes included.
func TestLargeTransferBothWays(t *testing.T) {
	size := int64(scaled(1<<30, 1<<24))
	p := newPair(t)
	type half struct {
		sum []byte
		n   int64
		err error
	}
	send := func(c *net.TCPConn) (h half) {
		sum := sha256.New()
		h.n, h.err = io.Copy(io.MultiWriter(c, sum), io.LimitReader(mathrand.NewChaCha8(seed()), size))
		c.CloseWrite()
		h.sum = sum.Sum(nil)
		return h
	}
	receive := func(c *net.TCPConn) (h half) {
		var sum hash.Hash = sha256.New()
		h.n, h.err = io.Copy(sum, c)
		h.sum = sum.Sum(nil)
		return h
	}
	bothWays := func(c *net.TCPConn) (sent, received half) {
		var all sync.WaitGroup
		all.Go(func() { sent = send(c) })
		all.Go(func() { received = receive(c) })
		all.Wait()
		return sent, received
	}
	type ends struct{ sent, received half }
	there := make(chan ends, 1)
	p.serve(t, func(c *net.TCPConn) {
		s, r := bothWays(c)
		there <- ends{s, r}
	})
	c, err := p.call(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, r := bothWays(c.(*net.TCPConn))
	far := <-there
	for name, h := range map[string]half{"sent": s, "received": r, "sent there": far.sent, "received there": far.received} {
		if h.err != nil || h.n != size {
			t.Errorf("%s: %d octets of %d, %v", name, h.n, size, h.err)
		}
	}
	if string(s.sum) != string(far.received.sum) || string(r.sum) != string(far.sent.sum) {
		t.Error("what arrived is not what was sent")
	}
}

func seed() (s [32]byte) {
	rand.Read(s[:])
	return s
}

// Everything at once: Envoys die, certificates change, the guard is taken away, peers are slow, peers try plaintext. What
// arrives is whole or cut short, never wrong; and nothing of the application is on the wire in clear.
func TestChaos(t *testing.T) {
	duration := time.Duration(scaled(60, 5)) * time.Second
	p := newPair(t)
	const secret = "SECRET-OF-THE-APPLICATION "
	var over atomic.Bool
	greeted := func(c *net.TCPConn) {
		if !over.Load() && strings.HasPrefix(c.RemoteAddr().String(), p.peer.IPv4.String()) {
			t.Error("a peer's own connection reached the application")
		}
		io.WriteString(c, secret)
		io.Copy(c, c)
	}
	p.serve(t, greeted)
	wire := netlab.Tap(t)
	ctx, stop := context.WithTimeout(t.Context(), duration)
	defer stop()
	var whole, cut, refused, plain atomic.Int64
	var all sync.WaitGroup
	every := func(pause time.Duration, f func() error) {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := f(); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause/2 + mathrand.N(pause)):
				}
			}
		})
	}
	for i := range 6 {
		slow := i%3 == 0
		every(time.Millisecond, func() error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			c, err := p.call(ctx)
			if err != nil {
				refused.Add(1)
				return nil
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			want := secret + strings.Repeat(rand.Text(), 100)
			go io.WriteString(c, want[len(secret):])
			got, chunk := make([]byte, 0, len(want)), make([]byte, 512)
			for len(got) < len(want) {
				n, err := c.Read(chunk)
				if got = append(got, chunk[:n]...); err != nil {
					break
				}
				if slow {
					time.Sleep(20 * time.Millisecond)
				}
			}
			switch {
			case !strings.HasPrefix(want, string(got)):
				return fmt.Errorf("a connection carried %q, want a beginning of %q", got, want)
			case len(got) < len(want):
				cut.Add(1)
			default:
				whole.Add(1)
			}
			return nil
		})
	}
	// Peers without a certificate.
	for _, addr := range p.web.Addresses() {
		every(5*time.Millisecond, func() error {
			plain.Add(1)
			if got, _ := plaintext(p.peer, p.web.at(addr, 8080)); got != "" {
				return fmt.Errorf("%s answered %q in plaintext", addr, got)
			}
			return nil
		})
	}
	// A peer that begins a handshake and does not go on.
	every(50*time.Millisecond, func() error {
		if c, err := p.peer.Dial(ctx, "tcp", p.web.at(p.web.IPv4, 8080).String()); err == nil {
			c.Write([]byte{0x16, 3, 1})
			go func() { <-ctx.Done(); c.Close() }()
		}
		return nil
	})
	// Envoys die, the one and the other.
	kills := 0
	every(3*time.Second, func() error {
		pod := []*pod{p.web, p.shop}[kills%2]
		kills++
		syscall.Kill(pod.envoy(), syscall.SIGKILL)
		return nil
	})
	rotations := 0
	every(time.Second, func() error {
		rotations++
		p.mesh.write(p.web.contrast, p.mesh.issue(time.Hour, "web"))
		p.mesh.write(p.shop.contrast, p.mesh.issue(time.Hour, "shop"))
		return nil
	})
	// Somebody else in the guest changes the rules, in ways that let nothing in by themselves.
	every(2*time.Second, func() error {
		return p.web.Do(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if err := guard.Close(ctx); err != nil && !errors.Is(err, guard.ErrNoGuard) {
				return err
			}
			return nil
		})
	})
	all.Go(func() {
		for ctx.Err() == nil {
			mark := wire.Mark()
			time.Sleep(200 * time.Millisecond)
			if wire.Saw(mark, strings.TrimSpace(secret)) {
				t.Error("the application's secret is on the wire in clear")
				return
			}
			wire.Forget()
		}
	})
	all.Wait()
	await(t, "the mesh to work again", func() error {
		c, err := p.call(t.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Second))
		got := make([]byte, len(secret))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != secret {
			return fmt.Errorf("got %q, %w", got, err)
		}
		return nil
	})
	if whole.Load() == 0 || plain.Load() == 0 || cut.Load() == 0 {
		t.Errorf("%d connections were whole and %d cut, %d tried in plaintext: this was no chaos", whole.Load(), cut.Load(), plain.Load())
	}
	// The lab could have shown it: without proxy and guard the same plaintext gets the secret, and the wire carries it.
	over.Store(true)
	p.web.cmd.Process.Kill()
	<-p.web.exited
	if err := p.web.Do(func() error { return guard.Open(context.Background()) }); err != nil {
		t.Fatal(err)
	}
	mark := wire.Mark()
	await(t, "plaintext without a guard", func() error {
		if got, err := plaintext(p.peer, p.web.at(p.web.IPv4, 8080)); !strings.HasPrefix(secret, got) || got == "" {
			return fmt.Errorf("got %q, %w", got, err)
		}
		if !wire.Saw(mark, strings.TrimSpace(secret)) {
			return errors.New("the wire did not show it")
		}
		return nil
	})
	t.Logf("%v: %d connections whole, %d cut, %d refused; %d tried in plaintext; %d Envoys killed, %d rotations",
		duration, whole.Load(), cut.Load(), refused.Load(), plain.Load(), kills, rotations)
}
