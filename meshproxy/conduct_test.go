package meshproxy_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/netlab"
)

// patience is for what must happen in the end, on however slow a machine.
const patience = 20 * time.Second

func dialFrom(from *netlab.Host, addr netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return from.Dial(ctx, "tcp", addr.String())
}

// patch changes what Envoy is told, behind the supervisor's back, and has Envoy started anew with it: so a test sees what
// holds when a part is missing, or need not wait for an hour.
func (p *pod) patch(change func(*bootstrapv3.Bootstrap)) {
	p.t.Helper()
	file, before := p.run_+"/envoy/bootstrap.pb", p.envoy()
	raw, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	b := &bootstrapv3.Bootstrap{}
	if err := proto.Unmarshal(raw, b); err != nil {
		p.t.Fatal(err)
	}
	change(b)
	if err := b.ValidateAll(); err != nil {
		p.t.Fatal(err)
	}
	if raw, err = proto.Marshal(b); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(file, raw, 0); err != nil { // in place, so that owner and mode stay
		p.t.Fatal(err)
	}
	syscall.Kill(before, syscall.SIGKILL)
	p.await("another Envoy", func() error {
		if p.envoy() == before {
			return errors.New("the same Envoy is ready")
		}
		return p.ready()
	})
}

// proxies are all TCP proxies of a bootstrap that lead to an application or a peer.
func proxies(t testing.TB, b *bootstrapv3.Bootstrap, change func(chain *listenerv3.FilterChain, p *tcpproxyv3.TcpProxy)) {
	t.Helper()
	n := 0
	for _, l := range b.StaticResources.Listeners {
		for _, c := range append(l.FilterChains, l.DefaultFilterChain) {
			if c == nil {
				continue
			}
			f := c.Filters[len(c.Filters)-1]
			p := &tcpproxyv3.TcpProxy{}
			if err := f.GetTypedConfig().UnmarshalTo(p); err != nil {
				t.Fatal(err)
			}
			change(c, p)
			f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed(t, p)}
			n++
		}
	}
	if n == 0 {
		t.Fatal("the bootstrap has no TCP proxy")
	}
}

func packed(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// serve runs an application.
func (p *pod) serve(port int, handle func(*net.TCPConn)) net.Listener {
	p.t.Helper()
	var l net.Listener
	// A listener that was closed lives until its last Accept has returned.
	p.await("a free port", func() (err error) { l, err = p.Listen("tcp", ":"+strconv.Itoa(port)); return err })
	p.t.Cleanup(func() { l.Close() })
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
	return l
}

// sockets is how many a process has open.
func sockets(t testing.TB, pid int) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if to, err := os.Readlink(dir + "/" + f.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// clientHello is the first thing that a client with config says.
func clientHello(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		defer theirs.Close()
		tls.Client(theirs, config).Handshake()
	}()
	var hello bytes.Buffer
	record := make([]byte, 5)
	if _, err := io.ReadFull(io.TeeReader(ours, &hello), record); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(&hello, ours, int64(record[3])<<8|int64(record[4])); err != nil {
		t.Fatal(err)
	}
	return hello.Bytes()
}

// aBitLonger than Envoy's time-out for handshakes of 10 s.
const aBitLonger = 10*time.Second + 5*time.Second

func TestHandshakeFloodKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	a := p.serveFirst(8080)
	p.startReady()
	const flood = 3000
	config := m.client(m.issue(time.Hour, "api"))
	hello := clientHello(t, config)
	envoy := p.envoy()
	idle := sockets(t, envoy)
	begin := func() []net.Conn {
		conns := make([]net.Conn, 0, flood)
		if err := peer.Do(func() error {
			for i := range flood {
				c, err := net.DialTimeout("tcp", p.at(p.Addresses()[i%2], 8080).String(), patience)
				if err != nil {
					return fmt.Errorf("connection %d: %w", i, err)
				}
				conns = append(conns, c)
				c.Write(hello[:len(hello)*(i%3)/2]) // nothing, a half, all
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return conns
	}
	before := int(anonymous(t, envoy))
	var first int
	for round := range 2 {
		conns := begin()
		p.await("the flood to arrive", func() error {
			if n := sockets(t, envoy) - idle; n < flood {
				return fmt.Errorf("%d connections", n)
			}
			return nil
		})
		var slowest time.Duration
		for i := range 50 {
			began := time.Now()
			if got, err := speakFirst(peer, p.at(p.Addresses()[i%2], 8080), config, ""); got != greeting {
				t.Fatalf("in the flood a peer gets %q, %v", got, err)
			}
			slowest = max(slowest, time.Since(began))
		}
		held := int(anonymous(t, envoy))
		t.Logf("round %d: %d half-open handshakes hold %d KiB each; the slowest of 50 peers took %v",
			round, flood, (held-before)/flood>>10, slowest)
		if each := (held - before) / flood; each > 64<<10 {
			t.Errorf("a half-open handshake holds %d bytes", each)
		}
		if round == 0 {
			first = held
		} else if held > first+first/4 {
			t.Errorf("after another flood Envoy holds %d bytes, %d after the first", held, first)
		}
		// All are cut off, and nothing is left of them.
		deadline := time.Now().Add(aBitLonger)
		for _, c := range conns {
			c.SetReadDeadline(deadline)
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("a half-open handshake is still there after its time")
			}
			c.Close()
		}
		p.await("the flood to ebb", func() error {
			if n := sockets(t, envoy) - idle; n > 10 {
				return fmt.Errorf("%d connections", n)
			}
			return nil
		})
	}
	if n := a.accepted.Load(); n != 100 {
		t.Errorf("the application saw %d connections, want those of 100 peers", n)
	}
	if p.envoy() != envoy {
		t.Error("Envoy was restarted")
	}
}

// dripping writes byte by byte.
type dripping struct{ net.Conn }

func (d dripping) Write(b []byte) (int, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := range b {
		<-tick.C
		if _, err := d.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

func TestSlowHandshakesAreCutOff(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	a := p.serveFirst(8080)
	b := p.serveFirst(8081)
	// A server that says nothing, for the way out.
	silent, err := peer.Listen("tcp", ":9000")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p.startReady("--ingress", "web#8081#false", "--egress", fmt.Sprintf("out#127.137.0.1:11001#%s:9000#any", peer.IPv4))
	config := m.client(m.issue(time.Hour, "api"))
	hello := clientHello(t, config)
	var wg sync.WaitGroup
	cut := func(name string, from *netlab.Host, addr netip.AddrPort, atLeast, atMost time.Duration, use func(net.Conn) error) {
		wg.Go(func() {
			conn, err := dialFrom(from, addr)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			defer conn.Close()
			began := time.Now()
			conn.SetDeadline(began.Add(patience))
			err = use(conn)
			if took := time.Since(began); err == nil || errors.Is(err, os.ErrDeadlineExceeded) || took < atLeast || took > atMost {
				t.Errorf("%s, to %s: it ended with %v after %v, want an end after %v to %v", name, addr, err, took, atLeast, atMost)
			}
		})
	}
	untilEnd := func(c net.Conn) error {
		if _, err := io.Copy(io.Discard, c); err != nil {
			return err
		}
		return io.EOF
	}
	for _, port := range []uint16{8080, 8081} {
		addr := p.at(p.Addresses()[port-8080], port)
		ways := map[string]func(net.Conn) error{
			"silence": untilEnd,
			"half a ClientHello": func(c net.Conn) error {
				c.Write(hello[:100])
				return untilEnd(c)
			},
			"a ClientHello and no more": func(c net.Conn) error {
				c.Write(hello)
				return untilEnd(c)
			},
			"byte by byte": func(c net.Conn) error { return tls.Client(dripping{c}, config).Handshake() },
		}
		for name, use := range ways {
			cut(name, peer, addr, 9*time.Second, aBitLonger, use)
		}
	}
	cut("a peer that does not answer", p.Host, netip.MustParseAddrPort("127.137.0.1:11001"), 4*time.Second, 9*time.Second, untilEnd)
	wg.Wait()
	if n := a.accepted.Load() + b.accepted.Load(); n != 0 {
		t.Errorf("the application saw %d connections", n)
	}
}

func TestIdleConnectionsEnd(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	ended := make(chan error, 1)
	p.serveFirst(8080)
	p.serve(8081, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	p.startReady()
	p.patch(func(b *bootstrapv3.Bootstrap) {
		proxies(t, b, func(_ *listenerv3.FilterChain, p *tcpproxyv3.TcpProxy) {
			if p.IdleTimeout.AsDuration() != time.Hour {
				t.Errorf("a proxy's idle time-out is %v, want 1h", p.IdleTimeout.AsDuration())
			}
			p.IdleTimeout = durationpb.New(time.Second)
		})
	})
	config := m.client(m.issue(time.Hour, "api"))
	busy, err := openTLS(peer, p.at(p.IPv4, 8080), config)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	idle, err := openTLS(peer, p.at(p.IPv6, 8081), config)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	done := make(chan error, 1)
	began := time.Now()
	go func() {
		idle.SetReadDeadline(time.Now().Add(patience))
		_, err := idle.Read(make([]byte, 1))
		done <- err
	}()
	// It echoes for longer than the time-out.
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	if got, err := readGreetingIn(busy, patience); got != greeting {
		t.Fatal(got, err)
	}
	for time.Since(began) < 3*time.Second {
		<-tick.C
		if _, err := io.WriteString(busy, greeting); err != nil {
			t.Fatalf("a busy connection ended: %v", err)
		}
		if got, err := readGreetingIn(busy, patience); got != greeting {
			t.Fatalf("a busy connection answers %q, %v", got, err)
		}
	}
	if err := <-done; err != io.EOF {
		t.Errorf("the idle connection's peer sees %v, want the end of its stream", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the idle connection's application sees %v, want the end of its stream", err)
	}
}

// noise is the same n bytes each time, and nothing that repeats early.
func noise(n int) []byte {
	b := make([]byte, n)
	mathrand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestFlappingApplication(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.startReady()
	config := m.client(m.issue(time.Hour, "api"))
	handle := func(c *net.TCPConn) { io.WriteString(c, greeting) }
	for round := range 10 {
		addr := p.at(p.Addresses()[round%2], 8080)
		// Not there: the peer's connection ends, cleanly, and soon.
		began := time.Now()
		if got, err := speakFirst(peer, addr, config, ""); got != "" || err != io.EOF {
			t.Errorf("round %d, no application: got %q, %v, want the end of the stream", round, got, err)
		}
		if took := time.Since(began); took > dialTimeout {
			t.Errorf("round %d, no application: it took %v to hear of it", round, took)
		}
		// There: at once.
		l := p.serve(8080, handle)
		for range 3 {
			if got, err := speakFirst(peer, addr, config, ""); got != greeting {
				t.Errorf("round %d, the application is back: got %q, %v", round, got, err)
			}
		}
		l.Close()
		// Resetting what it accepts.
		l = p.serve(8080, func(c *net.TCPConn) { c.SetLinger(0) })
		if got, err := speakFirst(peer, addr, config, ""); got != "" || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("round %d, the application resets: got %q, %v", round, got, err)
		}
		l.Close()
	}
}

// load makes connections, one after the other in each of its lines, until it is stopped, and counts those that failed.
type load struct {
	stop       context.CancelFunc
	wg         sync.WaitGroup
	done, lost atomic.Int64
	mu         sync.Mutex
	errors     map[string]int
}

func startLoad(lines int, once func() error) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{stop: stop, errors: map[string]int{}}
	for range lines {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				if err := once(); err != nil {
					l.lost.Add(1)
					l.mu.Lock()
					l.errors[err.Error()]++
					l.mu.Unlock()
				}
				l.done.Add(1)
			}
		})
	}
	return l
}

func (l *load) end() {
	l.stop()
	l.wg.Wait()
}

func TestReloadUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	m, stranger := newMesh(t), newMesh(t)
	peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
	serving := m.issue(time.Hour, "web")
	m.write(p.contrast, serving)
	p.serveFirst(8080)
	p.startReady("--ingress", "web#8080#mtls#api")
	config := m.client(m.issue(time.Hour, "api"))
	var turn atomic.Int64
	l := startLoad(2, func() error {
		got, err := speakFirst(peer, p.at(p.Addresses()[turn.Add(1)%2], 8080), config, greeting)
		if got != greeting {
			return fmt.Errorf("got %q, %w", got, err)
		}
		return nil
	})
	serial := func() (string, error) {
		c, err := openTLS(peer, p.at(p.IPv4, 8080), config)
		if err != nil {
			return "", err
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
	}
	refused := func() int { return len(p.log.Entries("new credentials are refused; the old ones stay in force")) }
	key, err := pki.EncodePrivateKey(serving.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	chain, ca := pki.EncodeCertificates(serving.Leaf, m.ca.Intermediate), pki.EncodeCertificates(m.ca.Certificate)
	files := func(chain, key, ca []byte) func() {
		return func() {
			m.writeFiles(p.contrast, map[string][]byte{"certChain.pem": chain, "key.pem": key, "mesh-ca.pem": ca})
		}
	}
	flipped := bytes.Clone(serving.Leaf.Raw)
	flipped[len(flipped)-1] ^= 1
	for _, broken := range []struct {
		name  string
		write func()
	}{
		{"a certificate that is cut off", files(chain[:len(chain)/3], key.Reveal(), ca)},
		{"a certificate whose signature is wrong", files(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: flipped}), key.Reveal(), ca)},
		{"an empty key", files(chain, nil, ca)},
		{"no mesh CA", files(chain, key.Reveal(), nil)},
		{"a mesh CA that is no certificate", files(chain, key.Reveal(), []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))},
		{"another mesh CA", func() { stranger.write(p.contrast, stranger.issue(time.Hour, "web")) }},
	} {
		before := refused()
		broken.write()
		p.await("a refusal of "+broken.name, func() error {
			if refused() == before {
				return errors.New("nothing was refused")
			}
			return nil
		})
		if got, err := serial(); got != serving.Leaf.SerialNumber.String() {
			t.Errorf("after %s the certificate is %s (%v), want the one before", broken.name, got, err)
		}
	}
	for range 3 {
		serving = m.issue(time.Hour, "web")
		m.write(p.contrast, serving)
		p.await("a new certificate", func() error {
			got, err := serial()
			if got != serving.Leaf.SerialNumber.String() {
				return fmt.Errorf("the certificate is %s, %w", got, err)
			}
			return nil
		})
	}
	l.end()
	t.Logf("%d connections, %d lost", l.done.Load(), l.lost.Load())
	if l.lost.Load() != 0 || l.done.Load() < 100 {
		t.Errorf("of %d connections %d were lost: %v", l.done.Load(), l.lost.Load(), l.errors)
	}
}

func TestDrainUnderLoadFinishesTransfers(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	data := noise(1 << 20)
	// Each transfer takes two seconds.
	p.serve(8080, func(c *net.TCPConn) {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for part := range slices.Chunk(data, len(data)/100) {
			<-tick.C
			if _, err := c.Write(part); err != nil {
				return
			}
		}
	})
	p.startReady("--drain", "15s")
	config := m.client(m.issue(time.Hour, "api"))
	const transfers = 30
	var begun, done sync.WaitGroup
	var whole atomic.Int32
	begun.Add(transfers)
	for i := range transfers {
		done.Go(func() {
			c, err := openTLS(peer, p.at(p.Addresses()[i%2], 8080), config)
			if err != nil {
				begun.Done()
				t.Errorf("transfer %d: %v", i, err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			first := make([]byte, 1)
			_, err = io.ReadFull(c, first)
			begun.Done()
			rest, err2 := io.ReadAll(c)
			if got := append(first, rest...); err != nil || err2 != nil || !bytes.Equal(got, data) {
				t.Errorf("transfer %d: %d of %d bytes (%v, %v)", i, len(got), len(data), err, err2)
				return
			}
			whole.Add(1)
		})
	}
	begun.Wait()
	// Others knock all the time: they are served wholly, or not at all.
	l := startLoad(1, func() error {
		got, _, err := overTLS(peer, p.at(p.IPv4, 8080), config)
		if got != "" && got != string(data[:len(greeting)]) {
			return fmt.Errorf("got %q, %w", got, err)
		}
		return nil
	})
	p.cmd.Process.Signal(syscall.SIGTERM)
	done.Wait()
	select {
	case err := <-p.exited:
		if err != nil {
			t.Errorf("the mesh proxy exits with %v, want 0", err)
		}
	case <-time.After(patience):
		t.Error("the mesh proxy does not end")
	}
	l.end()
	if l.lost.Load() != 0 {
		t.Errorf("of %d who came during the drain %d got something else: %v", l.done.Load(), l.lost.Load(), l.errors)
	}
	if s := p.guardState(); s != guard.Closed {
		t.Errorf("it left the guard %s", s)
	}
	if whole.Load() != transfers {
		t.Errorf("%d of %d transfers finished", whole.Load(), transfers)
	}
}

// Envoy takes as many connections as its descriptors are good for. More are closed at once; the others do not notice.
func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	peer, p := netlab.NewHost(t, "peer"), newPod(t, "web")
	m.write(p.contrast, m.issue(time.Hour, "web"))
	p.serveFirst(8080)
	const files, most = 640, 192 // two files each, but for 256
	cmd := p.command(p.flags()...)
	cmd.Args = append([]string{cmd.Args[0], cmd.Args[1], "prlimit", fmt.Sprintf("--nofile=%d", files)}, cmd.Args[2:]...)
	p.launch(cmd)
	p.awaitReady()
	config := m.client(m.issue(time.Hour, "api"))
	var held []*tls.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	more := func() error {
		c, err := openTLS(peer, p.at(p.Addresses()[len(held)%2], 8080), config)
		if err != nil {
			return err
		}
		if got, err := readGreetingIn(c, patience); got != greeting {
			c.Close()
			return fmt.Errorf("got %q, %w", got, err)
		}
		held = append(held, c)
		return nil
	}
	unharmed := func() {
		t.Helper()
		for i, c := range held {
			io.WriteString(c, greeting)
			if got, err := readGreetingIn(c, patience); got != greeting {
				t.Fatalf("connection %d of %d answers %q, %v", i, len(held), got, err)
			}
		}
	}
	for range most {
		if err := more(); err != nil {
			t.Fatalf("connection %d: %v", len(held), err)
		}
	}
	for i := range 100 {
		began := time.Now()
		if err := more(); err == nil || time.Since(began) > dialTimeout {
			t.Fatalf("connection %d too many: %v after %v", i, err, time.Since(began))
		}
	}
	unharmed()
	if err := p.ready(); err != nil {
		t.Error(err)
	}
	const gone = 20
	for _, c := range held[:gone] {
		c.Close()
	}
	held = held[gone:]
	for range gone {
		p.await("room for another", more)
	}
	unharmed()
	if err := more(); err == nil {
		t.Error("the limit is gone")
	}
}
