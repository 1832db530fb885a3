package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"portcullis.dev/portcullis/tests/podvm/kata"
)

// policy is the text that allows requests.
type policy string

func readPolicy() (policy, error) {
	b, err := os.ReadFile(cmp.Or(os.Getenv("KATA_AGENT_POLICY_FILE"), "/etc/kata-opa/default-policy.rego"))
	return policy(b), err
}

func (p policy) allows(request string) bool {
	return regexp.MustCompile(`(?m)^default ` + regexp.QuoteMeta(request) + `Request := true$`).MatchString(string(p))
}

// sandbox is the pod.
type sandbox struct {
	policy policy

	mu         sync.Mutex
	containers map[string]*container
}

type container struct {
	spec    *kata.Spec
	process *exec.Cmd
	running bool
	output  tail
}

func newSandbox(p policy) *sandbox { return &sandbox{policy: p, containers: map[string]*container{}} }

func (s *sandbox) register(server *ttrpc.Server) {
	server.Register(kata.Health, map[string]ttrpc.Method{
		"Check": method(func(*kata.CheckRequest) (proto.Message, error) {
			return &kata.HealthCheckResponse{Status: kata.HealthCheckResponse_SERVING}, nil
		}),
		"Version": method(func(*kata.CheckRequest) (proto.Message, error) {
			return &kata.VersionCheckResponse{GrpcVersion: "0.0.1", AgentVersion: "stand-in"}, nil
		}),
	})
	server.Register(kata.AgentService, map[string]ttrpc.Method{
		"UpdateInterface": guarded(s, "UpdateInterface", func(r *kata.UpdateInterfaceRequest) error { return updateInterface(r.GetInterface()) }),
		"UpdateRoutes":    guarded(s, "UpdateRoutes", func(r *kata.UpdateRoutesRequest) error { return updateRoutes(r.GetRoutes()) }),
		"CreateSandbox":   guarded(s, "CreateSandbox", createSandbox),
		"CreateContainer": guarded(s, "CreateContainer", s.create),
		"StartContainer":  guarded(s, "StartContainer", s.start),
		"SignalProcess":   guarded(s, "SignalProcess", s.signal),
		"DestroySandbox":  guarded(s, "DestroySandbox", func(*kata.DestroySandboxRequest) error { return nil }),
	})
	server.Register(kata.TestService, map[string]ttrpc.Method{
		"Show": method(func(r *kata.ShowRequest) (proto.Message, error) {
			b, err := json.Marshal(s.show(r.GetUnits()))
			return &kata.ShowResponse{Json: b}, err
		}),
	})
}

// method is a function as ttrpc wants it.
func method[R any, P interface {
	*R
	proto.Message
}](f func(P) (proto.Message, error)) ttrpc.Method {
	return func(_ context.Context, unmarshal func(any) error) (any, error) {
		request := P(new(R))
		if err := unmarshal(request); err != nil {
			return nil, err
		}
		return f(request)
	}
}

// guarded is a method that the policy must allow.
func guarded[R any, P interface {
	*R
	proto.Message
}](s *sandbox, name string, f func(P) error) ttrpc.Method {
	return method(func(r P) (proto.Message, error) {
		if !s.policy.allows(name) {
			log.Printf("%s is blocked by policy", name)
			return nil, status.Errorf(codes.PermissionDenied, "%sRequest is blocked by policy", name)
		}
		if err := f(r); err != nil {
			log.Printf("%s: %v", name, err)
			return nil, status.Errorf(codes.Internal, "%v", err)
		}
		return new(emptypb.Empty), nil
	})
}

// named waits for the NIC of a MAC address: udev may be loading its driver.
func named(mac string) (netlink.Link, error) {
	want, err := net.ParseMAC(mac)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		links, err := netlink.LinkList()
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			if bytes.Equal(l.Attrs().HardwareAddr, want) {
				return l, nil
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no interface has the address %s", mac)
		}
	}
}

func updateInterface(i *kata.Interface) error {
	link, err := named(i.GetHwAddr())
	if err != nil {
		return err
	}
	for _, a := range i.GetIPAddresses() {
		address, err := netip.ParseAddr(a.GetAddress())
		if err != nil {
			return err
		}
		bits, err := strconv.Atoi(a.GetMask())
		if err != nil {
			return err
		}
		network := &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(bits, address.BitLen())}
		// Kata's runtime knows that nobody else has the address.
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: network, Flags: syscall.IFA_F_NODAD}); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

func updateRoutes(routes *kata.Routes) error {
	for _, r := range routes.GetRoutes() {
		link, err := named(r.GetDevice())
		if err != nil {
			return err
		}
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(r.GetGateway())}); err != nil {
			return err
		}
	}
	return nil
}

func createSandbox(r *kata.CreateSandboxRequest) error {
	if err := os.MkdirAll(kata.Ephemeral, 0o755); err != nil {
		return err
	}
	if err := mountAll(r.GetStorages()); err != nil {
		return err
	}
	if len(r.GetDns()) == 0 {
		return nil
	}
	// Kata's agent writes the file, and binds it over the guest's own.
	if err := os.WriteFile(kata.ResolvConf, []byte(strings.Join(r.GetDns(), "\n")+"\n"), 0o644); err != nil {
		return err
	}
	return syscall.Mount(kata.ResolvConf, "/etc/resolv.conf", "", syscall.MS_BIND, "")
}

// mountAll mounts volumes in memory, each once.
func mountAll(storages []*kata.Storage) error {
	for _, s := range storages {
		at := filepath.Clean(s.GetMountPoint())
		if s.GetDriver() != "ephemeral" || filepath.Dir(at) != kata.Ephemeral {
			return fmt.Errorf("a storage %q on %s: only ephemeral ones below %s are made here", s.GetDriver(), at, kata.Ephemeral)
		}
		if _, err := os.Stat(at); err == nil {
			continue
		}
		if err := errors.Join(os.MkdirAll(at, 0o777), syscall.Mount("tmpfs", at, "tmpfs", 0, "mode=0777")); err != nil {
			return err
		}
	}
	return nil
}

func (s *sandbox) create(r *kata.CreateContainerRequest) error {
	if err := mountAll(r.GetStorages()); err != nil {
		return err
	}
	if len(r.GetOCI().GetProcess().GetArgs()) == 0 {
		return errors.New("no process")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[r.GetContainerId()] != nil {
		return errors.New("there is one of that name")
	}
	s.containers[r.GetContainerId()] = &container{spec: r.GetOCI()}
	return nil
}

func (s *sandbox) start(r *kata.StartContainerRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[r.GetContainerId()]
	if c == nil || c.process != nil {
		return errors.New("no container of that name waits for its start")
	}
	spec, err := proto.Marshal(c.spec)
	if err != nil {
		return err
	}
	c.process = exec.Command("/proc/self/exe", append([]string{"container", fmt.Sprintf("%x", spec)}, c.spec.GetProcess().GetArgs()...)...)
	c.process.Env = c.spec.GetProcess().GetEnv()
	c.process.Stdout, c.process.Stderr = &c.output, &c.output
	// Not in the agent's own cgroup, as none of Kata's containers is: what the agent may send, they may not.
	cgroup := filepath.Join("/sys/fs/cgroup/k8s.io", r.GetContainerId())
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return err
	}
	folder, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer folder.Close()
	c.process.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS, UseCgroupFD: true, CgroupFD: int(folder.Fd()),
	}
	if err := c.process.Start(); err != nil {
		return err
	}
	c.running = true
	go func() {
		err := c.process.Wait()
		fmt.Fprintln(&c.output, "ended:", err)
		s.mu.Lock()
		defer s.mu.Unlock()
		c.running = false
	}()
	return nil
}

func (s *sandbox) signal(r *kata.SignalProcessRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[r.GetContainerId()]
	if c == nil || !c.running {
		return errors.New("no container of that name runs")
	}
	return c.process.Process.Signal(syscall.Signal(r.GetSignal()))
}

// tail is the end of what was written.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	t.b = t.b[max(0, len(t.b)-16<<10):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
