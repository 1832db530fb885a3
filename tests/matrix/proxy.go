package main

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret/secrettest"
	"portcullis.dev/portcullis/tests/netlab"
)

// A Proxy is the real mesh proxy, with the real Envoy, as a container of the pod.
type Proxy struct {
	lab       *Lab
	container *netlab.Container
	log       *netlab.Log
	trust     *x509.CertPool
	member    tls.Certificate // of another pod in the mesh
	secrets   secrettest.Set  // no row's log has any
}

// proxyCapabilities are what `portcullis generate` gives the mesh proxy's container.
var proxyCapabilities = []string{"NET_ADMIN", "NET_RAW", "SETUID", "SETGID", "KILL"}

// StartProxy starts the mesh proxy with the lab's configuration and does not wait. args come after, and win.
func (l *Lab) StartProxy(args ...string) *Proxy {
	p := &Proxy{lab: l, log: &netlab.Log{}}
	files, err := p.issue()
	l.must(err)
	credentials, err := l.Pod.Volume("contrast")
	l.must(err)
	run, err := l.Pod.Volume("meshproxy")
	l.must(err)
	unpack := l.Pod.Command("tar", "-x", "-C", credentials)
	unpack.Stdin = bytes.NewReader(files)
	l.output(unpack)
	p.container = &netlab.Container{
		Name:    "meshproxy",
		Command: append([]string{"meshproxy", "--ingress", meshIngress, "--drain", "1s"}, args...),
		Mounts: []netlab.Mount{
			{Volume: credentials, Target: "/contrast", ReadOnly: true},
			{Volume: run, Target: "/run/portcullis"},
		},
		Capabilities: proxyCapabilities, NoNewPrivileges: true, ReadOnlyRoot: true,
		Log: io.MultiWriter(p.log, l.podLog),
	}
	l.must(l.Pod.Start(p.container))
	l.cleanup(func() {
		running, _ := l.Pod.Processes("meshproxy")
		for _, p := range running {
			send(p, syscall.SIGKILL) // a stopped container would keep the podVM from ending
		}
		for _, secret := range p.secrets.Find([]byte(l.podLog.String())) {
			l.Failf("the pod's log has %s", secret)
		}
	})
	l.proxy = p
	return p
}

// StartReady starts the mesh proxy and waits until it has lifted the guard for a live Envoy.
func (l *Lab) StartReady(args ...string) *Proxy {
	p := l.StartProxy(args...)
	p.AwaitReady(1)
	return p
}

// AwaitReady waits until the proxy has lifted the guard for the n-th time.
func (p *Proxy) AwaitReady(n int) {
	p.lab.Await("a ready mesh proxy", func() bool {
		select {
		case <-p.container.Done():
			return true // Brokenf below
		default:
			return strings.Count(p.log.String(), `"msg":"ready"`) >= n
		}
	})
	select {
	case <-p.container.Done():
		p.lab.Brokenf("the mesh proxy ended:\n%s", p.log)
	default:
	}
	p.lab.AwaitStage(guard.Mesh)
}

// Signal sends a signal to the processes of a name, "meshproxy" or "envoy"; there must be one.
func (l *Lab) Signal(name string, sig syscall.Signal) {
	running, err := l.Pod.Processes(name)
	l.must(err)
	if len(running) == 0 {
		l.Brokenf("signal %v: the pod runs no %s", sig, name)
	}
	for _, p := range running {
		send(p, sig)
	}
}

// send also wakes the nsenter that started a container: it stops itself when its child is stopped, and would never reap it.
func send(p *os.Process, sig syscall.Signal) {
	p.Signal(sig)
	if sig != syscall.SIGCONT && sig != syscall.SIGKILL {
		return
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
	_, after, _ := strings.Cut(string(b), ") ") // pid (comm) state ppid
	fields := strings.Fields(after)
	if err != nil || len(fields) < 2 {
		return
	}
	parent, err := strconv.Atoi(fields[1])
	comm, readErr := os.ReadFile("/proc/" + fields[1] + "/comm")
	if err == nil && readErr == nil && string(comm) == "nsenter\n" {
		syscall.Kill(parent, syscall.SIGCONT)
	}
}

// Stop stops the processes of a name as SIGSTOP does, and waits until the kernel says so.
func (l *Lab) Stop(name string) {
	l.Signal(name, syscall.SIGSTOP)
	l.Await("a stopped "+name, func() bool {
		running, err := l.Pod.Processes(name)
		l.must(err)
		for _, p := range running {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
			_, after, _ := strings.Cut(string(b), ") ")
			if err != nil || !strings.HasPrefix(after, "T") {
				return false
			}
		}
		return true
	})
}

// Runs says whether the pod runs a program of that name.
func (l *Lab) Runs(name string) bool {
	running, err := l.Pod.Processes(name)
	l.must(err)
	return len(running) > 0
}

// KillProxy kills every mesh proxy and Envoy of the pod as SIGKILL does, and waits until they and their sockets are gone. The
// guard stays as they left it.
func (l *Lab) KillProxy() {
	for _, name := range []string{"meshproxy", "envoy"} {
		l.Await("no "+name, func() bool {
			running, err := l.Pod.Processes(name)
			for _, p := range running {
				send(p, syscall.SIGKILL)
			}
			return err == nil && len(running) == 0
		})
	}
}

func (l *Lab) awaitNoListener(port uint16) {
	l.Await("the end of a listener", func() bool {
		listens, err := l.Pod.Listens(port)
		return err == nil && !listens
	})
}

// client is the TLS configuration of a peer that believes in the proxy's mesh; with member it shows a certificate of it.
func (p *Proxy) client(member bool) *tls.Config {
	c := &tls.Config{RootCAs: p.trust, ServerName: "web", MinVersion: tls.VersionTLS13}
	if member {
		c.Certificates = []tls.Certificate{p.member}
	}
	return c
}

// issue plays Coordinator and Initializer: a mesh CA, the pod's credentials as a tar of /contrast, and a member's.
func (p *Proxy) issue() ([]byte, error) {
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		return nil, err
	}
	root, err := pki.NewRootCA(seed.RootKey(), time.Now())
	if err != nil {
		return nil, err
	}
	var hash [32]byte
	rand.Read(hash[:])
	ca, err := pki.NewMeshCA(root, seed.RootKey(), hash, time.Now())
	if err != nil {
		return nil, err
	}
	p.trust = x509.NewCertPool()
	p.trust.AddCert(ca.Certificate)
	if _, p.member, err = leaf(ca, "member"); err != nil {
		return nil, err
	}
	key, own, err := leaf(ca, "web")
	if err != nil {
		return nil, err
	}
	p.secrets.AddKey("the mesh certificate's key", key)
	pem, err := pki.EncodePrivateKey(key)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tls-config/", Mode: 0o755})
	for name, content := range map[string][]byte{
		"certChain.pem": pki.EncodeCertificates(own.Leaf, ca.Intermediate),
		"mesh-ca.pem":   pki.EncodeCertificates(ca.Certificate),
		"key.pem":       pem.Reveal(),
	} {
		if err := w.WriteHeader(&tar.Header{Name: "tls-config/" + name, Mode: 0o400, Size: int64(len(content))}); err != nil {
			return nil, err
		}
		w.Write(content)
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func leaf(ca *pki.MeshCA, name string) (*ecdsa.PrivateKey, tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	san, err := pki.ParseSAN(name)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	claims := attestation.Claims{Platform: attestation.Simulated, PolicyHash: attestation.PolicyHash{1}}
	cert, err := ca.Issue(&key.PublicKey, []pki.SAN{san}, claims, time.Hour, time.Now())
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	return key, tls.Certificate{Certificate: [][]byte{cert.Raw, ca.Intermediate.Raw}, PrivateKey: key, Leaf: cert}, nil
}
