package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"portcullis.dev/portcullis/tests/netlab"
)

// A variant is a way to connect two pods.
type variant struct {
	name string
	// plain has no proxies.
	plain bool
	// boot is what the pods run before they have a network; prepare is done to each afterwards, once.
	boot      [][]string
	binaries  []string
	authority func() (authority, error)
	prepare   func(*pod, identity) error
	// proxy is the container that a pod's proxy runs in, but for what is the same in all.
	proxy func(p *pod) *netlab.Container
	// ready says whether a pod's proxy is, through the files of its process.
	ready func(ctx context.Context, root string) error
	// envoyAlone is an Envoy that makes handshakes and never connects to the application.
	envoyAlone func(p *pod) *netlab.Container
	// callerTLS12 is what a caller outside must speak so that it costs what the proxy on the other side would.
	callerTLS12 bool

	client, server, alone *pod
}

// A pod is a podVM with, perhaps, a proxy in it.
type pod struct {
	*netlab.PodVM
	variant   *variant
	log       *netlab.Log
	container *netlab.Container
	proxy     int           // process id of the proxy's first process
	envoy     int           // of its Envoy, which may be the same
	readyTook time.Duration // from executing the proxy
}

const (
	self    = "/opt/netlab" // this program, inside a pod
	volumes = "/run/volumes/"
	// of an Envoy without a mesh proxy
	adminSocket = envoyIn + "/admin/admin.sock"

	// egress addresses of the client's proxy, which lead to the server's ports
	egressAnswer = "127.137.0.1:8080"
	egressSink   = "127.137.0.1:8081"

	nameOfServer = "web"
	nameOfClient = "client"

	// callerIdentity is a file in the client's pod, for callers that speak TLS themselves.
	callerIdentity = volumes + "caller/identity"

	patience = 30 * time.Second
)

// boot boots the variant's pods and starts the application in them.
func (v *variant) start(lab *netlab.Lab, dns *netlab.DNS) (err error) {
	for _, place := range []struct {
		name string
		pod  **pod
	}{{"client", &v.client}, {"server", &v.server}, {"alone", &v.alone}} {
		if place.pod == &v.alone && v.envoyAlone == nil {
			continue
		}
		p := &pod{variant: v, log: &netlab.Log{}}
		if p.PodVM, err = lab.Boot(netlab.BootSpec{
			Name: place.name, Binaries: v.binaries, Boot: v.boot, Resolver: netlab.Resolver, Log: p.log,
		}); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
		*place.pod = p
		if err := p.settle(); err != nil {
			return fmt.Errorf("%s: %s: %w", v.name, place.name, err)
		}
	}
	dns.Set(v.serverName(), v.server.IPv4)
	if !v.plain {
		if err := v.identify(); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return v.server.startApp()
}

// An identity is what a pod proves itself with, in PEM.
type identity struct{ chain, key, ca []byte }

// An authority gives identities to names.
type authority func(names ...string) (identity, error)

// identify gives each pod its identity and whatever files it needs.
func (v *variant) identify() error {
	issue, err := v.authority()
	if err != nil {
		return err
	}
	for _, p := range v.pods() {
		names := []string{nameOfServer, v.serverName()}
		if p == v.client {
			names = []string{nameOfClient}
		}
		id, err := issue(names...)
		if err != nil {
			return err
		}
		if err := v.prepare(p, id); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		if p != v.client {
			continue
		}
		text := slices.Concat(id.chain, id.key, []byte(identityMark), id.ca)
		if err := p.put("caller", map[string][]byte{"identity": text}); err != nil {
			return err
		}
	}
	return nil
}

// identityMark stands before the CA in an identity that is one file.
const identityMark = "\n# under\n"

func (v *variant) pods() []*pod {
	return slices.DeleteFunc([]*pod{v.client, v.server, v.alone}, func(p *pod) bool { return p == nil })
}

// serverName is the name of the server in the lab's DNS.
func (v *variant) serverName() string {
	if v.server == nil {
		return ""
	}
	_, number, _ := strings.Cut(v.server.IPv4.String(), "10.137.0.")
	return "web" + number
}

// settle lets a pod live through more connections than pods see, in the same way for all: ports come back after a second.
func (p *pod) settle() error {
	return p.Do(func() error {
		for name, value := range map[string]string{
			"ipv4/tcp_tw_reuse":        "1",
			"ipv4/tcp_max_tw_buckets":  "4096",
			"ipv4/ip_local_port_range": "16000 65535",
		} {
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *pod) startApp() error {
	c := &netlab.Container{Name: "app", Command: []string{self, roleApp}, User: 1000, ReadOnlyRoot: true, Log: p.log}
	if err := p.Start(c); err != nil {
		return err
	}
	return p.await("the application", func() error {
		if !strings.Contains(p.log.String(), "serving") {
			return fmt.Errorf("it does not serve: %s", p.log)
		}
		return nil
	})
}

// await repeats f until it succeeds.
func (p *pod) await(what string, f func() error) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: waited in vain for %s of %s: %w\n%s", p.variant.name, what, p.Name, err, p.log)
		}
	}
}

// up starts the proxies, one after the other, so that each has the machine to itself.
func (v *variant) up(ctx context.Context) error {
	if v.plain {
		return nil
	}
	for _, p := range []*pod{v.server, v.client} {
		if err := p.startProxy(ctx, anyCPU, v.proxy(p), v.ready); err != nil {
			return err
		}
	}
	return nil
}

// startProxy starts a proxy and notes how long it took until it was ready.
func (p *pod) startProxy(ctx context.Context, cpu int, c *netlab.Container, ready func(context.Context, string) error) error {
	out := &netlab.Log{}
	c.Log = io.MultiWriter(out, p.log)
	c.Command = append([]string{self, roleExec, strconv.Itoa(cpu)}, c.Command...)
	if err := p.Start(c); err != nil {
		return err
	}
	p.container = c
	var began time.Duration
	if err := p.await("its start", func() (err error) {
		line, rest, found := strings.Cut(out.String(), "\n")
		if !found && rest == "" {
			return fmt.Errorf("it has not started: %q", out)
		}
		n, err := strconv.ParseInt(strings.TrimPrefix(line, executed), 10, 64)
		began = time.Duration(n)
		return err
	}); err != nil {
		return err
	}
	if err := p.findProxy(); err != nil {
		return err
	}
	root := fmt.Sprintf("/proc/%d/root", p.proxy)
	deadline := time.Now().Add(patience)
	for {
		err := ready(ctx, root)
		if err == nil {
			break
		}
		select {
		case <-c.Done():
			return fmt.Errorf("%s: the proxy of %s ended:\n%s", p.variant.name, p.Name, out)
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: the proxy of %s is not ready: %w\n%s", p.variant.name, p.Name, err, out)
		}
		time.Sleep(time.Millisecond)
	}
	now, err := monotonic()
	if err != nil {
		return err
	}
	p.readyTook = now - began
	return p.findEnvoy()
}

// findProxy finds the container's first process: nsenter forks for the PID namespace, and it is its only child.
func (p *pod) findProxy() error {
	return p.await("its process", func() error {
		found, err := p.Processes(nameOf(p.container.Command[3]))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("there are %d of %s (%w)", len(found), p.container.Command[3], err)
		}
		p.proxy = found[0].Pid
		return nil
	})
}

func (p *pod) findEnvoy() error {
	found, err := p.Processes("envoy")
	if err != nil || len(found) != 1 {
		return fmt.Errorf("%s: the pod %s runs %d Envoys (%w)", p.variant.name, p.Name, len(found), err)
	}
	p.envoy = found[0].Pid
	return nil
}

func nameOf(path string) string { return path[strings.LastIndex(path, "/")+1:] }

// down ends the proxies.
func (v *variant) down() error {
	for _, p := range v.pods() {
		if err := p.stopProxy(); err != nil {
			return err
		}
	}
	return nil
}

func (p *pod) stopProxy() error {
	if p.container == nil {
		return nil
	}
	if err := p.container.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.container.Done():
	case <-time.After(patience):
		return fmt.Errorf("%s: the proxy of %s does not end", p.variant.name, p.Name)
	}
	p.container, p.proxy, p.envoy = nil, 0, 0
	return nil
}

// call runs a caller in the pod.
func (p *pod) call(cpu int, args ...string) (r result, err error) {
	cmd := p.Command(self, append([]string{roleExec, strconv.Itoa(cpu), self, roleCall}, args...)...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return r, fmt.Errorf("%s: %s: %w: %s", p.variant.name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return r, r.decode(&out)
}

// decode reads what a caller prints after what roleExec has.
func (r *result) decode(out io.Reader) error {
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		return fmt.Errorf("read a caller's result: %w", err)
	}
	if err := json.NewDecoder(lines).Decode(r); err != nil {
		return fmt.Errorf("read a caller's result: %w", err)
	}
	return nil
}

// target is where a caller in the client's pod connects to for one of the application's ports.
func (v *variant) target(port uint16) string {
	switch {
	case v.plain:
		return netip.AddrPortFrom(v.server.IPv4, port).String()
	case port == portSink:
		return egressSink
	default:
		return egressAnswer
	}
}

// put writes files into a volume of the pod, which it makes.
func (p *pod) put(volume string, files map[string][]byte) error {
	path, err := p.Volume(volume)
	if err != nil || len(files) == 0 {
		return err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o400, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	cmd := p.Command("tar", "-x", "-C", path)
	cmd.Stdin = &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("write into %s: %w: %s", volume, err, out)
	}
	return nil
}

// askAdmin asks the Envoy whose admin socket it is.
func askAdmin(ctx context.Context, socket, path string) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}
