// Package cluster runs a real kube-apiserver over a real etcd, on loopback, for tests of what Portcullis asks of Kubernetes.
//
// There is no node in it and no controller: what is tested is what the API server decides, which is admission, schema, RBAC and who
// wins a race. tools/cluster.sh builds the binaries, once. Where they are not, a test that needs them is skipped and
// says so, unless PORTCULLIS_CLUSTER names their folder, as `make test-cluster` does: then it fails. PORTCULLIS_CLUSTER=off skips it
// also where they are, as `make test` does, lest everything runs twice.
package cluster

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// Env names the folder of etcd, kube-apiserver and kubectl, and says that tests must find them there; or it is off.
const (
	Env = "PORTCULLIS_CLUSTER"
	off = "off"
)

// patience is how long anything may take on a machine that is busy with other things.
const patience = 2 * time.Minute

// Cluster is a running API server.
type Cluster struct {
	binaries, dir      string
	etcdPort, peerPort int
	port               int
	adminToken         string
	etcd, apiserver    *process
	kubeconfig         string
	namespaces         int
}

var shared struct {
	sync.Mutex
	cluster *Cluster
}

// Main is TestMain's body: it runs a package's tests and then stops the cluster that they shared.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for a TestMain that has more to do.
func Run(m *testing.M) int {
	code := m.Run()
	if c := shared.cluster; c != nil {
		c.stop()
	}
	return code
}

// Shared is the cluster of the package's tests, whose TestMain is Main. It starts with the first one that asks.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	binaries, wanted, err := find()
	switch {
	case err != nil && wanted:
		t.Fatal(err)
	case err != nil:
		t.Skipf("SKIPPED: NOT TESTED AGAINST A REAL API SERVER: %v; `make test-cluster` runs it", err)
	}
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		c, err := start(binaries)
		if err != nil {
			t.Fatalf("start the test cluster: %v", err)
		}
		shared.cluster = c
	}
	return shared.cluster
}

// find is the folder of the binaries, and says whether somebody wants them to be there.
func find() (dir string, wanted bool, err error) {
	switch dir, wanted = os.LookupEnv(Env); {
	case dir == off:
		return "", false, fmt.Errorf("%s=%s", Env, off)
	case !wanted:
		if dir, err = cached(); err != nil {
			return "", false, err
		}
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || !info.Mode().IsRegular() {
			return "", wanted, fmt.Errorf("there is no %s in %q", name, dir)
		}
	}
	return dir, wanted, nil
}

// cached is where tools/cluster.sh puts the binaries that this source tree pins.
func cached() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	_, file, _, _ := runtime.Caller(0) // with -trimpath this is no path, and nothing is found
	digest := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(file), "kube", name))
		if err != nil {
			return "", fmt.Errorf("find the pins of the test cluster: %w", err)
		}
		digest.Write(text)
	}
	return filepath.Join(cache, "portcullis", "cluster-"+hex.EncodeToString(digest.Sum(nil))[:16]), nil
}

func start(binaries string) (_ *Cluster, err error) {
	dir, err := os.MkdirTemp("", "portcullis-cluster-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{binaries: binaries, dir: dir, adminToken: rand.Text()}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	c.etcdPort, c.peerPort, c.port = ports[0], ports[1], ports[2]
	if err := c.writeFiles(); err != nil {
		return nil, err
	}
	if err := c.startEtcd(); err != nil {
		return nil, err
	}
	if err := c.startAPIServer(); err != nil {
		return nil, err
	}
	return c, c.writeKubeconfig()
}

func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // after all were found, lest one is found twice
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *Cluster) writeFiles() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(c.path("sa.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
		os.WriteFile(c.path("sa.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o600),
		os.WriteFile(c.path("tokens.csv"), []byte(c.adminToken+",admin,1,system:masters\n"), 0o600),
	)
}

func (c *Cluster) startEtcd() (err error) {
	client, peer := "http://127.0.0.1:"+strconv.Itoa(c.etcdPort), "http://127.0.0.1:"+strconv.Itoa(c.peerPort)
	c.etcd, err = startProcess(c.path("etcd.log"), filepath.Join(c.binaries, "etcd"),
		"--name=test", "--data-dir="+c.path("etcd"), "--log-level=warn",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=test="+peer,
		"--unsafe-no-fsync") // a process that is killed loses nothing by that; only a machine would
	if err != nil {
		return err
	}
	return c.etcd.await(http.DefaultClient, client+"/health")
}

func (c *Cluster) startAPIServer() (err error) {
	c.apiserver, err = startProcess(c.path("apiserver.log"), filepath.Join(c.binaries, "kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:"+strconv.Itoa(c.etcdPort),
		"--bind-address=127.0.0.1", "--advertise-address=192.0.2.1", // of a documentation network: nobody is told, and loopback is refused
		"--secure-port="+strconv.Itoa(c.port), "--cert-dir="+c.path("certs"),
		"--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file="+c.path("sa.key"), "--service-account-key-file="+c.path("sa.pub"),
		"--authorization-mode=RBAC", "--token-auth-file="+c.path("tokens.csv"),
		"--disable-admission-plugins=ServiceAccount", // no controller makes the accounts' objects
		"--allow-privileged=true", "--profiling=false")
	if err != nil {
		return err
	}
	// The certificate is made by the first start; until it is there, nothing answers.
	deadline := time.Now().Add(patience)
	for {
		if _, err := os.Stat(c.certificate()); err == nil {
			break
		}
		if err := c.apiserver.wait(100*time.Millisecond, deadline); err != nil {
			return err
		}
	}
	client, err := rest.HTTPClientFor(c.Admin())
	if err != nil {
		return err
	}
	return c.apiserver.await(client, c.url()+"/readyz")
}

func (c *Cluster) url() string         { return "https://127.0.0.1:" + strconv.Itoa(c.port) }
func (c *Cluster) certificate() string { return c.path("certs/apiserver.crt") }

// Admin is a client that may do anything.
func (c *Cluster) Admin() *rest.Config { return c.with(c.adminToken) }

func (c *Cluster) with(token string) *rest.Config {
	return &rest.Config{Host: c.url(), BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAFile: c.certificate()}}
}

// ServiceAccount is a client that is what a pod of that service account is, by a token that the API server signs. It may do what
// the account's roles allow.
func (c *Cluster) ServiceAccount(t testing.TB, namespace, name string) *rest.Config {
	t.Helper()
	return c.with(strings.TrimSpace(c.MustKubectl(t, "", "-n", namespace, "create", "token", name, "--duration=1h")))
}

// Namespace makes a namespace of its own for a test.
func (c *Cluster) Namespace(t testing.TB) string {
	t.Helper()
	shared.Lock()
	c.namespaces++
	name := "test-" + strconv.Itoa(c.namespaces)
	shared.Unlock()
	c.MustKubectl(t, "", "create", "namespace", name)
	return name
}

// Kubeconfig is a file for kubectl, and for whatever reads KUBECONFIG.
func (c *Cluster) Kubeconfig() string { return c.kubeconfig }

func (c *Cluster) writeKubeconfig() error {
	c.kubeconfig = c.path("kubeconfig")
	return os.WriteFile(c.kubeconfig, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: admin, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: admin, namespace: default}}]
`, c.url(), c.certificate(), c.adminToken), 0o600)
}

// Kubectl runs kubectl as the administrator.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.binaries, "kubectl"), args...)
	cmd.Env = []string{"KUBECONFIG=" + c.kubeconfig, "HOME=" + c.dir, "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), errs.String(), err
}

// MustKubectl is Kubectl where it must work, and without a warning.
func (c *Cluster) MustKubectl(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	stdout, stderr, err := c.Kubectl(t.Context(), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	if stderr != "" {
		t.Fatalf("kubectl %s says %s", strings.Join(args, " "), stderr)
	}
	return stdout
}

// KillAPIServer kills the API server as a crash would. It may be called while requests are in it.
func (c *Cluster) KillAPIServer() { c.apiserver.kill() }

// KillEtcd kills etcd alike.
func (c *Cluster) KillEtcd() { c.etcd.kill() }

// Restart starts whichever was killed, on the same port and data, and waits until it answers.
func (c *Cluster) Restart() error {
	if c.etcd.ended() {
		if err := c.startEtcd(); err != nil {
			return fmt.Errorf("start etcd again: %w", err)
		}
	}
	if c.apiserver.ended() {
		if err := c.startAPIServer(); err != nil {
			return fmt.Errorf("start the API server again: %w", err)
		}
	}
	// It answers 200 before etcd's return is noticed, too: only a read tells.
	client, err := rest.HTTPClientFor(c.Admin())
	if err != nil {
		return err
	}
	return c.apiserver.await(client, c.url()+"/api/v1/namespaces/default")
}

func (c *Cluster) stop() {
	for _, p := range []*process{c.apiserver, c.etcd} {
		if p != nil {
			p.stop()
		}
	}
	os.RemoveAll(c.dir)
}
