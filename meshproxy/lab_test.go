package meshproxy_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy"
	"portcullis.dev/portcullis/meshproxy/internal/testenvoy"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret/secrettest"
	"portcullis.dev/portcullis/tests/netlab"
)

func TestMain(m *testing.M) {
	meshproxy.Launch() // for tests that run a mesh proxy in their own process
	netlab.Main(m)
}

const envoyUser = 1337

// programs are the real ones, where Envoy's user can execute them: the cache folder is below a home that is closed to it.
var programs = sync.OnceValues(func() (string, error) {
	dir := "/run/programs"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir+"/meshproxy", "portcullis.dev/portcullis/cmd/meshproxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

func program(t testing.TB) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return dir + "/meshproxy"
}

var envoyOnce sync.Once

func envoyProgram(t testing.TB) string {
	t.Helper()
	dir, source := filepath.Dir(program(t)), testenvoy.Path(t)
	envoyOnce.Do(func() {
		if out, err := exec.Command("install", "-m", "0755", source, dir+"/envoy").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	})
	return dir + "/envoy"
}

// mesh is a Coordinator's authority, without the Coordinator.
type mesh struct {
	t  testing.TB
	ca *pki.MeshCA
}

func newMesh(t testing.TB) *mesh {
	t.Helper()
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, err := pki.NewRootCA(seed.RootKey(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var hash [32]byte
	rand.Read(hash[:])
	ca, err := pki.NewMeshCA(root, seed.RootKey(), hash, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &mesh{t, ca}
}

// secrets are the keys of all pods; no mesh proxy's log has any.
var secrets secrettest.Set

// issue makes a certificate and its key.
func (m *mesh) issue(validity time.Duration, names ...string) tls.Certificate {
	m.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	secrets.AddKey("a mesh certificate's key", key)
	var sans []pki.SAN
	for _, n := range names {
		san, err := pki.ParseSAN(n)
		if err != nil {
			m.t.Fatal(err)
		}
		sans = append(sans, san)
	}
	claims := attestation.Claims{Platform: attestation.Simulated, PolicyHash: attestation.PolicyHash{1}}
	leaf, err := m.ca.Issue(&key.PublicKey, sans, claims, validity, time.Now())
	if err != nil {
		m.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, m.ca.Intermediate.Raw}, PrivateKey: key, Leaf: leaf}
}

// write stores a certificate as the Initializer does: a new version, then one rename. Other CAs stand behind m's own in the
// trust file.
func (m *mesh) write(dir string, c tls.Certificate, others ...*x509.Certificate) {
	m.t.Helper()
	key, err := pki.EncodePrivateKey(c.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		m.t.Fatal(err)
	}
	m.writeFiles(dir, map[string][]byte{
		"certChain.pem": pki.EncodeCertificates(c.Leaf, m.ca.Intermediate),
		"key.pem":       key.Reveal(),
		"mesh-ca.pem":   pki.EncodeCertificates(append([]*x509.Certificate{m.ca.Certificate}, others...)...),
	})
}

func (m *mesh) writeFiles(dir string, files map[string][]byte) {
	m.t.Helper()
	version, err := os.MkdirTemp(dir, "..v")
	if err != nil {
		m.t.Fatal(err)
	}
	if err := os.Mkdir(version+"/tls-config", 0o755); err != nil {
		m.t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(version+"/tls-config/"+name, content, 0o400); err != nil {
			m.t.Fatal(err)
		}
	}
	os.Remove(dir + "/..next")
	if err := os.Symlink(filepath.Base(version), dir+"/..next"); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(dir+"/..next", dir+"/..data"); err != nil {
		m.t.Fatal(err)
	}
	os.Symlink("..data/tls-config", dir+"/tls-config")
}

// client is the TLS configuration of a peer that shows certificates and believes m.
func (m *mesh) client(certificates ...tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(m.ca.Certificate)
	return &tls.Config{RootCAs: roots, Certificates: certificates, ServerName: "web"}
}

// pod is a pretended podVM: a guard that was armed at boot, and room for the mesh proxy's files.
type pod struct {
	*netlab.Host
	t              testing.TB
	contrast, run_ string
	log            *netlab.Log
	cmd            *exec.Cmd
	exited         chan error
}

func newPod(t testing.TB, name string) *pod {
	t.Helper()
	p := &pod{Host: netlab.NewHost(t, name), t: t, log: &netlab.Log{}}
	if err := p.Do(func() error { return guard.Arm(context.Background()) }); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/run", name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p.contrast, p.run_ = dir+"/contrast", dir+"/run"
	for d, mode := range map[string]os.FileMode{p.contrast: 0o755, p.run_: 0o777} { // as kubelet makes an emptyDir
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, mode); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// command is the mesh proxy with the capabilities that its container has, and no others.
func (p *pod) command(args ...string) *exec.Cmd {
	return p.Command("setpriv", append([]string{
		"--bounding-set=-all,+net_admin,+net_raw,+setuid,+setgid,+kill", "--inh-caps=-all", program(p.t),
	}, args...)...)
}

func (p *pod) flags(args ...string) []string {
	return append([]string{"--run-dir", p.run_, "--credentials", p.contrast, "--envoy", envoyProgram(p.t)}, args...)
}

// start starts the mesh proxy and does not wait.
func (p *pod) start(args ...string) {
	p.t.Helper()
	p.launch(p.command(p.flags(args...)...))
}

func (p *pod) launch(cmd *exec.Cmd) {
	p.t.Helper()
	exited := make(chan error, 1)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() { exited <- cmd.Wait() }()
	p.cmd, p.exited = cmd, exited
	p.t.Cleanup(func() {
		cmd.Process.Kill()
		for _, secret := range secrets.Find([]byte(p.log.String())) {
			p.t.Errorf("the log of %s has %s", p.Name, secret)
		}
		if p.t.Failed() {
			p.t.Logf("log of %s:\n%s", p.Name, p.log)
		}
	})
}

func (p *pod) ready() error {
	out, err := p.command("ready", "--run-dir", p.run_).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func (p *pod) startReady(args ...string) {
	p.t.Helper()
	p.start(args...)
	p.awaitReady()
}

func (p *pod) awaitReady() {
	p.t.Helper()
	p.await("ready", func() error {
		select {
		case err := <-p.exited:
			p.t.Fatalf("the mesh proxy ended: %v\n%s", err, p.log)
		default:
		}
		return p.ready()
	})
}

func (p *pod) await(what string, f func() error) {
	p.t.Helper()
	await(p.t, what, f)
}

// await repeats f until it succeeds.
func await(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (p *pod) guardState() guard.State {
	p.t.Helper()
	var s guard.Status
	if err := p.Do(func() (err error) { s, err = guard.Inspect(context.Background()); return err }); err != nil {
		p.t.Fatal(err)
	}
	return s.State
}

// envoy is the process id of the pod's Envoy: the one child of the supervisor while it is ready. The log names it too,
// but arrives through a pipe, at times after the answer that all is ready.
func (p *pod) envoy() (pid int) {
	p.t.Helper()
	p.await("one Envoy", func() error {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.cmd.Process.Pid))
		var children []string
		for _, file := range files {
			b, _ := os.ReadFile(file)
			children = append(children, strings.Fields(string(b))...)
		}
		if len(children) != 1 {
			return fmt.Errorf("the supervisor's children are %q", children)
		}
		var err error
		pid, err = strconv.Atoi(children[0])
		return err
	})
	return pid
}

// app is an application that listens on every address of the pod.
type app struct {
	listener net.Listener
	accepted atomic.Int32
}

const greeting = "220 hello\n"

// serveFirst is a server-first protocol, such as SMTP: it greets, then echoes.
func (p *pod) serveFirst(port int) *app {
	p.t.Helper()
	l, err := p.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { l.Close() })
	a := &app{listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.accepted.Add(1)
			go func() {
				defer c.Close()
				io.WriteString(c, greeting)
				io.Copy(c, c)
			}()
		}
	}()
	return a
}

// dialTimeout is long enough for everything here, and short enough to wait for what a guard drops.
const dialTimeout = 700 * time.Millisecond

// plaintext connects and reads what it gets without sending anything.
func plaintext(from *netlab.Host, addr netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", addr.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return readGreeting(conn)
}

// overTLS connects, shakes hands and reads.
func overTLS(from *netlab.Host, addr netip.AddrPort, config *tls.Config) (string, tls.ConnectionState, error) {
	return overTLSIn(from, addr, config, dialTimeout)
}

func overTLSIn(
	from *netlab.Host, addr netip.AddrPort, config *tls.Config, timeout time.Duration,
) (string, tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	raw, err := from.Dial(ctx, "tcp", addr.String())
	if err != nil {
		return "", tls.ConnectionState{}, err
	}
	defer raw.Close()
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return "", conn.ConnectionState(), err
	}
	got, err := readGreetingIn(conn, timeout)
	return got, conn.ConnectionState(), err
}

func readGreeting(conn net.Conn) (string, error) { return readGreetingIn(conn, dialTimeout) }

func readGreetingIn(conn net.Conn, d time.Duration) (string, error) {
	conn.SetReadDeadline(time.Now().Add(d))
	got := make([]byte, len(greeting))
	n, err := io.ReadFull(conn, got)
	return string(got[:n]), err
}

func (p *pod) at(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		if e.Sys().(syscall.WaitStatus).Signaled() {
			return -1
		}
		return e.ExitCode()
	}
	return -2
}
