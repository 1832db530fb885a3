package units_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
)

// A fact is one thing that an image must say for the gate to be down before the agent, or else to stay dark.
type fact struct {
	file    string // below /usr/lib/systemd/system
	setting string // Section.Directive; empty: file is a link
	want    string // its value, where it repeats one line each; empty: it must not be there; of a link, its target
	why     string
}

// nothing is the value of a directive that is there and empty.
const nothing = "(nothing)"

var kataFacts = slices.Concat(machineFacts, serviceFacts, behindTheGuard(agentDropIn, agentLink), attestFacts, attestLinkFacts,
	initdataFacts, guestFacts)

// Where the gate is the machine's.
var machineFacts = []fact{
	{guard, "Unit.DefaultDependencies", "no", "they would order the guard after basic.target and stop it at shutdown"},
	{guard, "Unit.After", "systemd-modules-load.service", "anything more could wait for the agent, or for a network"},
	{guard, "Unit.Wants", "network-pre.target", "else that target may not be part of the boot"},
	{guard, "Unit.Before", "network-pre.target sysinit.target kata-agent.service", "before interfaces, sockets, containers"},
	{guard, "Unit.FailureAction", "poweroff-force", "a podVM without a gate must not run"},
	{guard, "Install.RequiredBy", agent, "kata boots kata-containers.target: nothing hangs off multi-user.target"},
	{guard, "Service.NetworkNamespacePath", "", "the gate is the machine's network's"},
	{attestSocket, "Unit.After", guard, "what is served is for pods behind the gate"},
	{attestSocket, "Unit.Before", agent, "before any container asks"},
	{attestSocket, "Socket.NetworkNamespacePath", "", "containers share the machine's network"},
}

var peerPodsFacts = slices.Concat([]fact{
	{guard, "Unit.DefaultDependencies", "no", "they would stop the guard at shutdown"},
	{guard, "Unit.BindsTo", "netns@podns.service", "a namespace that is made anew gets a gate anew"},
	{guard, "Unit.After", "netns@podns.service systemd-modules-load.service", "the namespace must be there"},
	{guard, "Unit.Before", "kata-agent.service agent-protocol-forwarder.service", "before containers, and before podns's interface"},
	{guard, "Unit.FailureAction", "poweroff-force", "a podVM without a gate must not run"},
	{guard, "Install.RequiredBy", agent + " " + forwarder, "neither starts without the gate"},
	{guard, "Service.NetworkNamespacePath", "/run/netns/podns", "the gate is podns's, never the root namespace's"},
	{attestSocket, "Unit.DefaultDependencies", "no", "they would order the socket before basic.target, which podns is after"},
	{attestSocket, "Unit.BindsTo", "netns@podns.service", "a namespace that is made anew gets a socket anew"},
	{attestSocket, "Unit.Requires", "sysinit.target", "as by default"},
	{attestSocket, "Unit.Conflicts", "shutdown.target", "as by default"},
	{attestSocket, "Unit.After", "netns@podns.service " + guard + "\nsysinit.target", "the namespace must be there, and its gate"},
	{attestSocket, "Unit.Before", agent + "\nshutdown.target", "before any container asks"},
	{attestSocket, "Socket.NetworkNamespacePath", "/run/netns/podns", "containers see abstract sockets of podns alone"},
}, serviceFacts, behindTheGuard(agentDropIn, agentLink), behindTheGuard(forwarderDropIn, forwarderLink), attestFacts,
	attestLinkFacts)

// The edge from the other side, twice.
func behindTheGuard(dropIn, link string) []fact {
	return []fact{
		{dropIn, "Unit.Requires", guard, "Wants= would let the agent start after a guard that failed"},
		{dropIn, "Unit.BindsTo", guard, "a guard that is masked or was skipped is not active, and that is what counts"},
		{dropIn, "Unit.After", guard, "Requires= alone starts both at once"},
		{link, "", "../" + guard, "this pulls the guard into the boot, even where the drop-in was lost"},
	}
}

// What the guard runs, and what must be true of its sandbox for closing to work, and for nothing else to.
var serviceFacts = []fact{
	{guard, "Service.Type", "oneshot", "others count as started before the gate is down"},
	{guard, "Service.RemainAfterExit", "yes", "an agent that restarts finds its requirement met"},
	{guard, "Service.ExecStart", "/usr/sbin/podvm-guard close", `a leading "-" would make a failure a success`},
	{guard, "Service.TimeoutStartSec", "90", "a host that stalls the guard for ever gets no podVM"},
	{guard, "Service.DynamicUser", "yes", "not root"},
	{guard, "Service.AmbientCapabilities", "CAP_NET_ADMIN", "a user who is not root has no other way to it"},
	{guard, "Service.CapabilityBoundingSet", "CAP_NET_ADMIN", "nothing more"},
	{guard, "Service.RestrictAddressFamilies", "AF_NETLINK", "nothing more"},
	{guard, "Service.NoNewPrivileges", "yes", "nothing more, ever"},
	{guard, "Service.ProtectSystem", "strict", "it writes no file"},
	{guard, "Service.ReadWritePaths", "/proc/sys/net", "but one tunable"},
	{guard, "Service.SystemCallFilter", "@system-service\n~@privileged @resources", "nothing more"},
	{guard, "Service.PrivateTmp", "", "said, it makes the guard wait for /tmp with systemd 257, too"},
	{guard, "Service.ProcSubset", "", "would hide /proc/sys"},
	{guard, "Service.PrivateUsers", "", "the capability would not count for the network"},
	{guard, "Service.PrivateNetwork", "", "it would close another network"},
	{guard, "Service.SuccessExitStatus", "", "a failed guard is a failed guard"},
	{guard, "Service.Restart", "", "the first failure powers off"},
	{guard, "Service.EnvironmentFile", "", "no file of the host's"},
	{guard, "Service.ExecStop", "", "nothing lifts the gate"},
}

var attestLinkFacts = []fact{
	{attestLink, "", "../" + attestSocket, "this pulls the socket into the boot"},
}

// What serves evidence to the pod, and can do nothing else.
var attestFacts = []fact{
	{attestSocket, "Socket.ListenStream", "@podvm-attest", "the name that clients know"},
	{attestSocket, "Socket.Service", "", "it starts the service of its own name"},
	{attestSocket, "Socket.Accept", "", "one process keeps the pace of all requests"},
	{attestSocket, "Install.WantedBy", agent, "a pod without evidence has a closed gate, and so the agent need not wait for it"},
	{attest, "Unit.Requires", attestSocket, "it has no other socket"},
	{attest, "Unit.After", attestSocket + "\nsys-kernel-config.mount", "it looks for configfs when it starts"},
	{attest, "Service.ExecStart", "/usr/sbin/podvm-attest", "whatever the hardware is"},
	{attest, "Service.User", "root", "the kernel gives evidence to nobody else"},
	{attest, "Service.CapabilityBoundingSet", nothing, "root without any capability"},
	{attest, "Service.AmbientCapabilities", "", "none"},
	{attest, "Service.PrivateNetwork", "yes", "it speaks to nobody but through systemd's socket"},
	{attest, "Service.RestrictAddressFamilies", "AF_UNIX", "nothing more"},
	{attest, "Service.DevicePolicy", "closed", "no other device"},
	{attest, "Service.DeviceAllow", "/dev/sev-guest rw", "for kernels before 6.7"},
	{attest, "Service.PrivateDevices", "", "would hide that one as well"},
	{attest, "Service.ProtectSystem", "strict", "it writes no file"},
	{attest, "Service.ProtectKernelTunables", "yes", "nor a tunable"},
	{attest, "Service.ReadWritePaths", "-/sys/kernel/config/tsm", "but its requests"},
	{attest, "Service.NoNewPrivileges", "yes", "nothing more, ever"},
	{attest, "Service.SystemCallFilter", "@system-service\n~@privileged @resources", "nothing more"},
	{attest, "Service.EnvironmentFile", "", "no file of the host's"},
}

// What verifies the pod's initdata, before the agent and behind the gate.
var initdataFacts = []fact{
	{initdata, "Unit.DefaultDependencies", "no", "they would stop it at shutdown, before the agent"},
	{initdata, "Unit.Requires", guard, "what the host attached is read behind the gate"},
	{
		initdata, "Unit.After", guard + "\nsystemd-modules-load.service sys-kernel-config.mount systemd-tmpfiles-setup-dev.service\n" +
			attestSocket, "anything more could wait for the agent, or for a network",
	},
	{initdata, "Unit.Before", agent, "before containers"},
	{initdata, "Unit.FailureAction", "poweroff-force", "a podVM with another initdata than its own must not run"},
	{initdata, "Install.RequiredBy", agent, "kata boots kata-containers.target: nothing hangs off multi-user.target"},
	{initdata, "Service.Type", "oneshot", "others count as started before the initdata is verified"},
	{initdata, "Service.RemainAfterExit", "yes", "an agent that restarts finds its requirement met"},
	{initdata, "Service.ExecStart", "/usr/sbin/podvm-initdata", `a leading "-" would make a failure a success`},
	{initdata, "Service.TimeoutStartSec", "90", "a host whose disk never answers gets no podVM"},
	{initdata, "Service.User", "root", "disks and the hardware are nobody else's"},
	{initdata, "Service.CapabilityBoundingSet", nothing, "root without any capability"},
	{initdata, "Service.AmbientCapabilities", "", "none"},
	{initdata, "Service.DevicePolicy", "closed", "no other device"},
	{initdata, "Service.DeviceAllow", "block-* r\n/dev/sev-guest rw\n/dev/tdx_guest rw", "it writes to no disk"},
	{initdata, "Service.PrivateDevices", "", "would hide the disks"},
	{initdata, "Service.PrivateNetwork", "", "would hide a pretended TEE"},
	{initdata, "Service.RestrictAddressFamilies", "AF_UNIX", "it speaks to no network"},
	{initdata, "Service.ProtectSystem", "strict", "it writes no file"},
	{initdata, "Service.ProtectKernelTunables", "yes", "nor a tunable"},
	{initdata, "Service.ReadWritePaths", "-/sys/kernel/config/tsm\n/run", "but its requests, and what it verified"},
	{initdata, "Service.NoNewPrivileges", "yes", "nothing more, ever"},
	{initdata, "Service.SystemCallFilter", "@system-service\n~@privileged @resources", "nothing more"},
	{initdata, "Service.EnvironmentFile", "", "no file of the host's"},
	{initdata, "Service.Environment", "", "nor a variable"},
	{initdata, "Service.SuccessExitStatus", "", "a refusal is a refusal"},
	{initdata, "Service.Restart", "", "the first failure powers off"},
	{initdataLink, "", "../" + initdata, "this pulls it into the boot, even where the drop-in was lost"},
	{initdataDropIn, "Unit.Requires", initdata, "Wants= would let the agent start after a refusal"},
	{initdataDropIn, "Unit.BindsTo", initdata, "one that is masked or was skipped is not active, and that is what counts"},
	{initdataDropIn, "Unit.After", initdata, "Requires= alone starts both at once"},
	{initdataDropIn, "Service.Environment", "KATA_AGENT_POLICY_FILE=/run/podvm/policy.rego", "the agent's policy is the verified one"},
}

// The mesh as services of the image: nothing waits for them, nothing they do opens the gate or turns the podVM off, and nothing keeps
// them from being started again.
var guestFacts = []fact{
	{waitLink, "", "../" + wait, "this pulls it into the boot"},
	{wait, "Path.PathExists", "/run/kata-containers/sandbox/resolv.conf", "Kata's agent writes it when the network is there"},
	{wait, "Path.Unit", "", "it starts the service of its own name"},
	{wait, "Install.WantedBy", agent, "kata boots kata-containers.target, and a pod without a mesh has a closed gate"},

	{credentials, "Unit.Requires", initdata + " " + guard, "what it is to do stands in the verified initdata"},
	{credentials, "Unit.After", initdata + " " + guard + " " + attestSocket, "anything more could wait for a network that the agent brings"},
	{credentials, "Unit.Wants", proxy, "this starts the mesh proxy"},
	{credentials, "Unit.StartLimitIntervalSec", "0", "started again for ever"},
	{credentials, "Service.Type", "notify", "ready is: there are credentials"},
	{
		credentials, "Service.ExecStart",
		"/usr/sbin/podvm-initializer --pod /run/podvm --dir /run/contrast --volume /run/kata-containers/sandbox/ephemeral/contrast-secrets",
		"the initdata, and nothing else, says what it does",
	},
	{credentials, "Service.TimeoutStartSec", "infinity", "it waits for a Coordinator for ever"},
	{credentials, "Service.WatchdogSec", "15min", "a loop that stands still is started again"},
	{credentials, "Service.RemainAfterExit", "yes", "the path is still there when it ended well, and would start it again"},
	{credentials, "Service.Restart", "on-failure", "nobody is there to start it"},
	{credentials, "Service.User", "root", "the credentials are root's"},
	{credentials, "Service.RuntimeDirectory", "contrast", "in memory"},
	{credentials, "Service.RuntimeDirectoryMode", "0700", "the key is in it"},
	{credentials, "Service.RuntimeDirectoryPreserve", "yes", "the mesh proxy reads it while this one is started again"},
	{credentials, "Service.BindReadOnlyPaths", "/run/kata-containers/sandbox/resolv.conf:/etc/resolv.conf", "the image's is empty"},
	{credentials, "Service.ReadWritePaths", "/run/kata-containers/sandbox", "it writes into the pod's volume, and nowhere else"},
	{credentials, "Service.CapabilityBoundingSet", "CAP_NET_ADMIN CAP_NET_RAW", "the guard, and marks"},
	{credentials, "Service.ProtectSystem", "strict", "it writes no other file"},
	{credentials, "Service.NoNewPrivileges", "yes", "nothing more, ever"},
	{credentials, "Service.EnvironmentFile", "", "no file of the host's"},
	{credentials, "Service.PrivateNetwork", "", "it speaks to the Coordinator"},

	{proxy, "Unit.Requires", initdata + " " + guard, "what it is to do stands in the verified initdata"},
	{proxy, "Unit.After", initdata + " " + guard + " " + credentials, "it reads credentials when it starts"},
	{proxy, "Unit.StartLimitIntervalSec", "0", "started again for ever"},
	{proxy, "Service.Type", "notify", "ready is: the gate is lifted for an Envoy that lives"},
	{
		proxy, "Service.ExecStart", "/usr/sbin/podvm-meshproxy --pod /run/podvm --credentials /run/contrast --envoy /usr/lib/podvm/envoy",
		"the initdata, and nothing else, says what it does",
	},
	{proxy, "Service.ExecStopPost", "", "podvm-guard close would take the egress lock away"},
	{proxy, "Service.TimeoutStartSec", "infinity", "it waits for the Initializer"},
	{proxy, "Service.WatchdogSec", "3min", "a loop that stands still is started again"},
	{proxy, "Service.RemainAfterExit", "yes", "it ended well where the initdata wants nothing of it"},
	{proxy, "Service.Restart", "on-failure", "nobody is there to start it"},
	{proxy, "Service.KillMode", "mixed", "it drains before its Envoy ends"},
	{proxy, "Service.TimeoutStopSec", "30", "it drains for 20 s"},
	{proxy, "Service.User", "root", "the credentials are root's"},
	{proxy, "Service.RuntimeDirectory", "portcullis", "in memory"},
	{proxy, "Service.BindReadOnlyPaths", "/run/kata-containers/sandbox/resolv.conf:/etc/resolv.conf", "the image's is empty"},
	{proxy, "Service.ReadWritePaths", "/proc/sys/net", "it writes nowhere but into its own folder, and one tunable"},
	{proxy, "Service.CapabilityBoundingSet", "CAP_NET_ADMIN CAP_NET_RAW CAP_SETUID CAP_SETGID CAP_KILL", "the guard, and an Envoy that is apart"},
	{proxy, "Service.ProtectSystem", "strict", "it writes no other file"},
	{proxy, "Service.NoNewPrivileges", "", "it could start no Envoy; it sets this itself"},
	{proxy, "Service.EnvironmentFile", "", "no file of the host's"},
	{proxy, "Service.PrivateNetwork", "", "it is the pod's network"},
}

// A Coordinator as a service of its machine: behind a gate that nothing else pulls in, started again for ever, and with nothing of root's.
var coordinatorFacts = slices.Concat(machineFacts, serviceFacts, attestFacts, []fact{
	{coordinatorLink, "", "../" + coordinator, "this pulls it into the boot, and the guard with it"},
	{coordinator, "Install.WantedBy", "multi-user.target", "which such a machine boots"},
	{coordinator, "Unit.Requires", guard, "no agent pulls the guard into the boot"},
	{coordinator, "Unit.BindsTo", guard, "a guard that was skipped is not active, and that is what counts"},
	{
		coordinator, "Unit.After", guard + "\n" + attestSocket + "\nnetwork-online.target",
		"Requires= alone starts both at once; it looks for evidence when it starts; ready is reachable",
	},
	{coordinator, "Unit.Wants", attestSocket + "\nnetwork-online.target", "else neither may be part of the boot"},
	{coordinator, "Unit.StartLimitIntervalSec", "0", "started again for ever"},
	{coordinator, "Service.Type", "notify", "ready is: it listens, and the gate lets its port in"},
	{
		coordinator, "Service.ExecStart", "/usr/sbin/portcullis-coordinator --systemd --tee socket --db /var/lib/portcullis/coordinator.db" +
			" --audit-log /var/lib/portcullis/audit.log --collateral-dir /var/lib/portcullis/collateral",
		"no --no-guard, no pretended TEE, and everything that is kept below the state directory",
	},
	{coordinator, "Service.ExecStopPost", "", "podvm-guard close would break the machine's own connections"},
	{coordinator, "Service.TimeoutStartSec", "5min", "it reads a large history first"},
	{coordinator, "Service.Restart", "on-failure", "owners can recover only one that runs"},
	{coordinator, "Service.StateDirectory", "portcullis", "the history outlives the machine's life"},
	{coordinator, "Service.StateDirectoryMode", "0700", "nobody else's"},
	{coordinator, "Service.DynamicUser", "yes", "not root"},
	{coordinator, "Service.User", "", "a user of its own"},
	{coordinator, "Service.AmbientCapabilities", "CAP_NET_ADMIN", "a user who is not root has no other way to it"},
	{coordinator, "Service.CapabilityBoundingSet", "CAP_NET_ADMIN", "nothing more"},
	{coordinator, "Service.RestrictAddressFamilies", "AF_UNIX AF_NETLINK AF_INET AF_INET6", "nothing more"},
	{coordinator, "Service.PrivateDevices", "yes", "evidence comes through the socket"},
	{coordinator, "Service.PrivateUsers", "", "the capability would not count for the network"},
	{coordinator, "Service.PrivateNetwork", "", "it would serve another network, without a guard"},
	{coordinator, "Service.ProcSubset", "", "would hide /proc/sys"},
	{coordinator, "Service.ProtectSystem", "strict", "it writes its state"},
	{coordinator, "Service.ReadWritePaths", "/proc/sys/net", "and one tunable"},
	{coordinator, "Service.MemorySwapMax", "0", "the seed is in its memory, and the disk is the host's"},
	{coordinator, "Service.LimitCORE", "1", "the seed is in its memory, and the disk is the host's"},
	{coordinator, "Service.MemoryDenyWriteExecute", "yes", "nothing more, ever"},
	{coordinator, "Service.NoNewPrivileges", "yes", "nothing more, ever"},
	{coordinator, "Service.SystemCallFilter", "@system-service\n~@privileged @resources", "nothing more"},
	{coordinator, "Service.EnvironmentFile", "", "no file of the host's"},
	{coordinator, "Service.Environment", "", "nor a variable"},
})

// faults compares the image with its facts. [Unit] and [Install], and what is executed, are compared whole: one directive more
// could skip the guard (a Condition), stop it (Conflicts, PartOf), or lift the gate again.
func (im *image) faults() (faults []string) {
	units := map[string]map[string]string{}
	for name := range im.own {
		if target, ok := im.links[name]; ok {
			faults = append(faults, fmt.Sprintf("%s is a link to %s: masked", name, target))
			continue
		}
		text, ok := im.files[name]
		if !ok {
			faults = append(faults, name+" is missing")
			continue
		}
		settings, err := parse(text)
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		units[name] = settings
	}
	known := map[string]bool{}
	for _, f := range im.facts {
		known[f.file+f.setting] = true
		got, is := im.links[f.file], "link "+f.file
		if f.setting != "" {
			settings, ok := units[f.file]
			if !ok {
				continue // said already
			}
			got, is = settings[f.setting], f.file+": "+f.setting
		}
		if got != f.want {
			faults = append(faults, fmt.Sprintf("%s is %q, want %q: %s", is, got, f.want, f.why))
		}
	}
	for name, settings := range units {
		for setting, value := range settings {
			section, directive, _ := strings.Cut(setting, ".")
			whole := section != "Service" || strings.HasPrefix(directive, "Exec")
			if whole && !known[name+setting] && directive != "Description" {
				faults = append(faults, fmt.Sprintf("%s: %s=%s is no fact", name, setting, value))
			}
		}
	}
	slices.Sort(faults)
	return faults
}

// parse returns a unit's settings as Section.Directive, the values of one that repeats a line each.
func parse(text string) (map[string]string, error) {
	options, err := unit.DeserializeOptions(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	settings := map[string]string{}
	for _, o := range options {
		setting := o.Section + "." + o.Name
		o.Value = cmp.Or(o.Value, nothing)
		if before, ok := settings[setting]; ok {
			o.Value = before + "\n" + o.Value
		}
		settings[setting] = o.Value
	}
	return settings, nil
}

func TestUnitsSayWhatMustBeTrue(t *testing.T) {
	for _, p := range placements {
		for _, fault := range bake(t, p).faults() {
			t.Errorf("%s: %s", p.name, fault)
		}
	}
}

// Each fact is taken from the image in turn, or put in where it is that something is absent.
func TestEveryFactIsMissed(t *testing.T) {
	for _, p := range placements {
		for _, f := range p.facts {
			im := bake(t, p)
			section, directive, _ := strings.Cut(f.setting, ".")
			switch {
			case f.setting == "":
				delete(im.links, f.file)
			case f.want == "":
				im.add(f.file, section, directive+"=anything")
			default:
				im.drop(f.file, directive)
			}
			wanted := func(fault string) bool {
				return strings.Contains(fault, f.file) && strings.Contains(fault, f.setting) && strings.Contains(fault, f.why)
			}
			if got := im.faults(); len(got) != 1 || !wanted(got[0]) {
				t.Errorf("%s without its fact about %s %s: %q", p.name, f.file, f.setting, got)
			}
		}
	}
}

// The two guards differ in where they stand, not in what they may do.
func TestGuardsAreConfinedAlike(t *testing.T) {
	var confined []map[string]string
	for _, p := range []placement{kata, peerPods} {
		settings, err := parse(bake(t, p).files[guard])
		if err != nil {
			t.Fatal(err)
		}
		maps.DeleteFunc(settings, func(setting, _ string) bool {
			return !strings.HasPrefix(setting, "Service.") || setting == "Service.NetworkNamespacePath"
		})
		confined = append(confined, settings)
	}
	if !maps.Equal(confined[0], confined[1]) {
		t.Errorf("[Service] differs:\n%v\n%v", confined[0], confined[1])
	}
}

// drop takes every line of a directive out of a file of the image.
func (im *image) drop(file, directive string) {
	var kept []string
	for line := range strings.Lines(im.files[file]) {
		if !strings.HasPrefix(line, directive+"=") {
			kept = append(kept, line)
		}
	}
	im.files[file] = strings.Join(kept, "")
}

// add puts a line into a section of a file of the image.
func (im *image) add(file, section, line string) {
	im.files[file] = strings.Replace(im.files[file], "["+section+"]\n", "["+section+"]\n"+line+"\n", 1)
}

// set gives a directive another value.
func (im *image) set(file, section, directive, value string) {
	im.drop(file, directive)
	im.add(file, section, directive+"="+value)
}
