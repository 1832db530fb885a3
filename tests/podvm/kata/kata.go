// Package kata is the runtime's side of a podVM: what Kata's runtime asks of the agent in the guest to start a pod, over the agent's own
// protocol (ttrpc), and what tests ask of the stand-in agent besides.
package kata

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// The services of an agent.
const (
	Health       = "grpc.Health"
	AgentService = "grpc.AgentService"
	TestService  = "portcullis.test.Evidence" // the stand-in's alone
)

// The guest's folders that both sides of the protocol know.
const (
	Sandbox    = "/run/kata-containers/sandbox"
	ResolvConf = Sandbox + "/resolv.conf"
	Ephemeral  = Sandbox + "/ephemeral" // where volumes in memory are mounted, by their names
)

// Evidence is what the stand-in agent says of its machine.
type Evidence struct {
	// Units has properties of the units that were asked for, as systemctl show prints them.
	Units map[string]map[string]string
	// Uptime is what the guest's clock since its start says, in seconds.
	Uptime float64
	// CommandLine is the kernel's.
	CommandLine string
	// Guard is what podvm-guard status --json prints.
	Guard struct {
		State string
		Drops uint64
	}
	// Anonymous is the anonymous memory of each of these units' processes together, in KiB.
	Anonymous map[string]int
	// Total and Available are the machine's memory, in KiB.
	Total, Available int
	// Addresses are those of every interface, with their prefixes.
	Addresses []string
	// Pod names the files of /run/podvm; empty where it is not there.
	Pod []string
	// Credentials names what systemd took over from the machine's host.
	Credentials []string
	// Volume names the files of the pod's volume for credentials.
	Volume []string
	// Journal has the last lines of the units that were asked for.
	Journal []string
	// Containers are what StartContainer started.
	Containers map[string]Container
}

// Container is a process that stands for a container's.
type Container struct {
	Running bool
	Output  string // the end of it
}

// Agent is an agent that answers.
type Agent struct{ client *ttrpc.Client }

// Dial speaks to the agent at the other end of a connection, which is the Agent's from then on.
func Dial(conn net.Conn) *Agent { return &Agent{ttrpc.NewClient(conn)} }

// Close ends the connection.
func (a *Agent) Close() error { return a.client.Close() }

func (a *Agent) call(ctx context.Context, service, method string, request, response proto.Message) error {
	if err := a.client.Call(ctx, service, method, request, response); err != nil {
		return fmt.Errorf("%s/%s: %w", service, method, err)
	}
	return nil
}

// Do calls a method of AgentService that answers with nothing.
func (a *Agent) Do(ctx context.Context, method string, request proto.Message) error {
	return a.call(ctx, AgentService, method, request, new(emptypb.Empty))
}

// Check asks whether the agent serves.
func (a *Agent) Check(ctx context.Context) error {
	var r HealthCheckResponse
	if err := a.call(ctx, Health, "Check", new(CheckRequest), &r); err != nil {
		return err
	}
	if r.GetStatus() != HealthCheckResponse_SERVING {
		return fmt.Errorf("the agent is %v", r.GetStatus())
	}
	return nil
}

// Show asks the stand-in agent for Evidence, with properties of these units.
func (a *Agent) Show(ctx context.Context, units ...string) (e Evidence, err error) {
	var r ShowResponse
	if err := a.call(ctx, TestService, "Show", &ShowRequest{Units: units}, &r); err != nil {
		return e, err
	}
	return e, json.Unmarshal(r.GetJson(), &e)
}

// Interface gives the NIC of that MAC address its addresses.
func (a *Agent) Interface(ctx context.Context, mac net.HardwareAddr, addresses ...netip.Prefix) error {
	i := &Interface{HwAddr: mac.String(), Mtu: 1500}
	for _, p := range addresses {
		family := int32(0)
		if p.Addr().Is6() {
			family = 1
		}
		i.IPAddresses = append(i.IPAddresses, &IPAddress{Family: family, Address: p.Addr().String(), Mask: strconv.Itoa(p.Bits())})
	}
	return a.Do(ctx, "UpdateInterface", &UpdateInterfaceRequest{Interface: i})
}

// Pod is a pod as a runtime has it from kubelet.
type Pod struct {
	Name string
	MAC  net.HardwareAddr
	// Addresses of its NIC; Gateway is its default route, if valid.
	Addresses []netip.Prefix
	Gateway   netip.Addr
	// Servers are the lines of its resolv.conf.
	Servers []string
	// Volumes are names of volumes in memory.
	Volumes []string
}

// Start starts a pod's sandbox, as Kata's runtime does: the network first, then the sandbox.
func (a *Agent) Start(ctx context.Context, p Pod) error {
	if err := a.Interface(ctx, p.MAC, p.Addresses...); err != nil {
		return err
	}
	routes := &Routes{}
	if p.Gateway.IsValid() {
		routes.Routes = append(routes.Routes, &Route{Gateway: p.Gateway.String(), Device: p.MAC.String()})
	}
	if err := a.Do(ctx, "UpdateRoutes", &UpdateRoutesRequest{Routes: routes}); err != nil {
		return err
	}
	return a.Do(ctx, "CreateSandbox", &CreateSandboxRequest{Hostname: p.Name, Dns: p.Servers, SandboxId: p.Name})
}

// Run creates and starts a container of the arguments, with volumes in memory of the names mounted at these places. The arguments are a
// program of the guest's and its words: no image is pulled.
func (a *Agent) Run(ctx context.Context, name string, volumes map[string]string, args ...string) error {
	spec := &Spec{Version: "1.0.2", Process: &Process{User: &User{}, Args: args, Env: []string{"PATH=/usr/sbin:/usr/bin"}}}
	request := &CreateContainerRequest{ContainerId: name, ExecId: name, OCI: spec}
	for volume, at := range volumes {
		source := path.Join(Ephemeral, volume)
		request.Storages = append(request.Storages, &Storage{
			Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: source,
		})
		spec.Mounts = append(spec.Mounts, &Mount{Destination: at, Source: source, Type: "bind", Options: []string{"rbind", "ro"}})
	}
	if err := a.Do(ctx, "CreateContainer", request); err != nil {
		return err
	}
	return a.Do(ctx, "StartContainer", &StartContainerRequest{ContainerId: name})
}

// Kill sends a signal to a container's process.
func (a *Agent) Kill(ctx context.Context, name string, signal uint32) error {
	return a.Do(ctx, "SignalProcess", &SignalProcessRequest{ContainerId: name, ExecId: name, Signal: signal})
}

// Policy is a policy that lets the stand-in agent obey these requests, by Kata's names without "Request". It reads policies in the
// simplest way: a line "default NAMERequest := true" allows that request, and nothing else does.
func Policy(requests ...string) string {
	var b strings.Builder
	b.WriteString("package agent_policy\n\n")
	for _, r := range requests {
		fmt.Fprintf(&b, "default %sRequest := true\n", r)
	}
	return b.String()
}

// AllowPods is a Policy that lets a runtime start pods.
func AllowPods() string {
	return Policy("UpdateInterface", "UpdateRoutes", "CreateSandbox", "CreateContainer", "StartContainer", "SignalProcess", "DestroySandbox")
}
