package guard

import (
	"context"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A Lock is the egress lock: the closed and the mesh state with an output chain that lets nothing leave but loopback,
// answers to what was admitted, and sockets with the mark MarkEgress. So a workload cannot send plaintext out, whatever the
// host does to /etc/hosts, to DNS, to routes and to addresses: what it calls on loopback becomes mutual TLS, and everything
// else stays inside.
//
// The gate for what leaves is a mark, not Envoy's user id. Setting SO_MARK takes CAP_NET_RAW (or CAP_NET_ADMIN), and a
// process that has it can send frames by a packet socket, past every rule of this table; so the mark opens no way that is
// not open already, and the lock holds for workloads without CAP_NET_RAW, root among them. A user id would be one way more:
// CAP_SETUID, which containers have unless it is dropped, or an image that runs as that id.
type Lock struct {
	// DNS admits port 53 for every process of the guest, to any address: that is a way out, for what asks in plaintext.
	DNS bool
}

// Egress is what the guest itself may open.
type Egress struct {
	Locked bool `json:"locked"`
	DNS    bool `json:"dns,omitempty"`   // the lock admits port 53
	Agent  bool `json:"agent,omitempty"` // the lock admits kata-agent, which pulls images
}

// String is for people.
func (e Egress) String() string {
	switch {
	case !e.Locked:
		return "free"
	case e.DNS && e.Agent:
		return "locked but for DNS and kata-agent"
	case e.DNS:
		return "locked but for DNS"
	case e.Agent:
		return "locked but for kata-agent"
	}
	return "locked"
}

// Arm is Arm with the lock.
func (l Lock) Arm(ctx context.Context) error { return arm(ctx, l.egress()) }

// Close is Close with the lock.
func (l Lock) Close(ctx context.Context) error { return lower(ctx, l.egress()) }

// Raise is Raise with the lock.
func (l Lock) Raise(ctx context.Context, p Ports) error { return raise(ctx, p, l.egress()) }

// markInside is the conntrack mark of connections that began on loopback.
const markInside = 0x55

const portDNS = 53

// egress is what an output chain admits. The zero value is the lock, with no exception.
type egress struct {
	free  bool   // everything; there is no lock
	dns   bool   // port 53
	agent uint64 // sockets of the cgroup with this number; zero: of none
}

func (l Lock) egress() egress { return egress{dns: l.DNS, agent: agentCgroupID()} }

func (e egress) public() Egress { return Egress{Locked: !e.free, DNS: e.dns, Agent: e.agent != 0} }

// agentCgroup is where systemd puts the agent of Kata's unit.
const agentCgroup = "system.slice/kata-agent.service"

// proxyCgroup is where systemd puts the mesh proxy that is a service of the podVM's image, and its Envoy.
const proxyCgroup = "system.slice/podvm-meshproxy.service"

// cgroupRoot is a variable for tests.
var cgroupRoot = "/sys/fs/cgroup"

func agentCgroupID() uint64 { return cgroupID(agentCgroup) }

func proxyCgroupID() uint64 { return cgroupID(proxyCgroup) }

// cgroupID is zero when this process sees no such cgroup: then there is no such service, or nothing to know it by.
func cgroupID(path string) uint64 {
	var fs unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0
	}
	var stat unix.Stat_t
	if err := unix.Stat(filepath.Join(cgroupRoot, path), &stat); err != nil {
		return 0
	}
	return stat.Ino
}

// egress says which lock the live table has, if it has one: the parts that may vary. All of the table is compared
// afterwards.
func (l *listing) egress() egress {
	keys := map[string]bool{}
	for _, line := range l.lines {
		keys[line.key] = true
	}
	// A lock is told by its chain, an exception by its rule.
	has := func(c chain) bool {
		lines := table{chains: []chain{c}}.listing().lines
		return keys[lines[len(lines)-1].key]
	}
	if !has(baseChain("output", atOutput, policyDrop)) {
		return egress{free: true}
	}
	admits := func(e egress) bool { return has(baseChain("output", atOutput, policyDrop, e.exceptions())) }
	e := egress{dns: admits(egress{dns: true})}
	if id := agentCgroupID(); id != 0 && admits(egress{agent: id}) {
		e.agent = id
	}
	return e
}
