package units_test

import (
	"strings"
	"testing"
)

// A mutation is one thing wrong with an image.
type mutation struct {
	name   string
	of     placement
	make   func(*image)
	facts  string // what the parsed units must be faulted for
	verify string // what systemd-analyze verify must say; empty: it need not notice
	// The exposure of this service must exceed its limit.
	exposed string
	// What a boot must come to; empty: it is not tried. See boot_test.go.
	boot outcome
	// What the pod is told in that boot when it asks for evidence; empty: evidence is served.
	evidence string
}

var mutations = []mutation{
	{
		name: "guard missing", of: kata, boot: noAgent,
		make:  func(im *image) { delete(im.files, guard) },
		facts: guard + " is missing", verify: "Unit podvm-guard.service not found",
	},
	{
		name: "guard masked", of: kata, boot: noAgent,
		make:  func(im *image) { delete(im.files, guard); im.links[guard] = "/dev/null" },
		facts: "masked", verify: "Unit podvm-guard.service is masked",
	},
	{
		name: "guard's program missing", of: kata, boot: powerOff,
		make:   func(im *image) { delete(im.programs, guardProgram) },
		verify: "is not executable",
	},
	{
		name: "cycle through kata-containers.target", of: kata, boot: noAgent,
		make: func(im *image) {
			im.add(guard, "Unit", "Requires=kata-containers.target\nAfter=kata-containers.target")
		},
		facts: "Unit.Requires=kata-containers.target is no fact", verify: "ordering cycle",
	},
	{
		name: "cycle through kata-containers.target, only wanted", of: kata,
		make: func(im *image) {
			im.add(guard, "Unit", "Wants=kata-containers.target\nAfter=kata-containers.target")
		},
		facts: "Unit.After is", verify: "ordering cycle",
	},
	{
		name: "misspelt value of FailureAction", of: kata,
		make:  func(im *image) { im.set(guard, "Unit", "FailureAction", "power-off") },
		facts: `Unit.FailureAction is "power-off"`, verify: "Failed to parse",
	},
	{
		name: "misspelt name of FailureAction", of: kata,
		make:  func(im *image) { im.drop(guard, "FailureAction"); im.add(guard, "Unit", "FailurAction=poweroff-force") },
		facts: "Unit.FailurAction=poweroff-force is no fact", verify: "Unknown key",
	},
	{
		name: "Wants= for Requires= in the drop-in", of: kata, boot: closed, // the link still requires it
		make:  func(im *image) { im.want(agentDropIn) },
		facts: `Unit.Requires is ""`,
	},
	{
		name: "Wants= for Requires= everywhere, and a guard that fails quietly", of: kata, boot: opened,
		make: func(im *image) {
			im.bare()
			im.want(agentDropIn)
			delete(im.links, agentLink)
			im.drop(guard, "FailureAction")
			im.drop(guard, "AmbientCapabilities")
		},
		facts: `Unit.Requires is ""`,
	},
	{
		name: "WantedBy=multi-user.target", of: kata,
		make: func(im *image) {
			im.drop(guard, "RequiredBy")
			im.add(guard, "Install", "WantedBy=multi-user.target")
			delete(im.links, agentLink)
			im.links["multi-user.target.wants/"+guard] = "../" + guard
		},
		facts: "Install.WantedBy=multi-user.target is no fact",
	},
	{
		name: "WantedBy=multi-user.target, and no drop-in", of: kata, boot: opened,
		make: func(im *image) {
			im.drop(guard, "RequiredBy")
			im.add(guard, "Install", "WantedBy=multi-user.target")
			delete(im.links, agentLink)
			im.links["multi-user.target.wants/"+guard] = "../" + guard
			im.bare()
			delete(im.files, agentDropIn)
		},
		facts: agentDropIn + " is missing",
	},
	{
		name: "missing After= in the drop-in", of: kata, boot: closed, // the guard still says Before=
		make:  func(im *image) { im.drop(agentDropIn, "After") },
		facts: `Unit.After is ""`,
	},
	{
		name: "missing Before= in the guard", of: kata,
		make:  func(im *image) { im.drop(guard, "Before") },
		facts: `Unit.Before is ""`,
	},
	{
		name: "lost link", of: kata, boot: closed, // the drop-in still requires it
		make:  func(im *image) { delete(im.links, agentLink) },
		facts: "link " + agentLink,
	},
	{
		name: "lost drop-in", of: kata, boot: closed, // the link still requires it
		make:  func(im *image) { delete(im.files, agentDropIn) },
		facts: agentDropIn + " is missing",
	},
	{
		name: "lost link and drop-in", of: kata, boot: opened,
		make:  func(im *image) { im.bare(); delete(im.links, agentLink); delete(im.files, agentDropIn) },
		facts: "link " + agentLink,
	},
	{
		name: "lost link and drop-in, and initdata", of: kata, boot: closed, // which requires the gate as well
		make:  func(im *image) { delete(im.links, agentLink); delete(im.files, agentDropIn) },
		facts: "link " + agentLink,
	},
	{
		name: "dropped capability", of: kata, boot: powerOff,
		make:  func(im *image) { im.drop(guard, "AmbientCapabilities") },
		facts: "Service.AmbientCapabilities",
	},
	{
		name: "extra capability", of: kata, boot: closed,
		make:  func(im *image) { im.set(guard, "Service", "CapabilityBoundingSet", "CAP_NET_ADMIN CAP_SYS_MODULE") },
		facts: "Service.CapabilityBoundingSet",
	},
	{
		name: "every capability", of: kata, exposed: guard,
		make:  func(im *image) { im.drop(guard, "CapabilityBoundingSet") },
		facts: "Service.CapabilityBoundingSet",
	},
	{
		name: "every family of sockets", of: kata, exposed: guard,
		make:  func(im *image) { im.drop(guard, "RestrictAddressFamilies") },
		facts: "Service.RestrictAddressFamilies",
	},
	{
		name: "root", of: kata, exposed: guard,
		make:  func(im *image) { im.drop(guard, "DynamicUser") },
		facts: "Service.DynamicUser",
	},
	{
		name: "tunables of the network read-only", of: kata, boot: powerOff,
		make:  func(im *image) { im.drop(guard, "ReadWritePaths") },
		facts: "Service.ReadWritePaths",
	},
	{
		name: "user namespace of its own", of: kata, boot: powerOff,
		make:  func(im *image) { im.add(guard, "Service", "PrivateUsers=yes") },
		facts: "Service.PrivateUsers",
	},
	{
		name: "network of its own", of: kata, boot: opened,
		make:  func(im *image) { im.add(guard, "Service", "PrivateNetwork=yes") },
		facts: "Service.PrivateNetwork",
	},
	{
		name: "failure ignored", of: kata, boot: opened,
		make: func(im *image) {
			im.set(guard, "Service", "ExecStart", "-/usr/sbin/podvm-guard close")
			im.drop(guard, "AmbientCapabilities")
		},
		facts: "Service.ExecStart",
	},
	{
		name: "guard under a condition", of: kata, boot: noAgent,
		make:  func(im *image) { im.add(guard, "Unit", "ConditionPathExists=/etc/guarded") },
		facts: "Unit.ConditionPathExists=/etc/guarded is no fact",
	},
	{
		name: "guard under a condition, and no BindsTo", of: kata, boot: opened,
		make: func(im *image) {
			im.add(guard, "Unit", "ConditionPathExists=/etc/guarded")
			im.drop(agentDropIn, "BindsTo")
		},
		facts: `Unit.BindsTo is ""`,
	},
	{
		name: "gate lifted after it closed", of: kata,
		make:  func(im *image) { im.add(guard, "Service", "ExecStartPost=/bin/true") },
		facts: "Service.ExecStartPost=/bin/true is no fact",
	},
	{
		name: "guard that never ends", of: kata, boot: powerOff,
		make: func(im *image) {
			im.programs[guardProgram] = "#!/bin/sh\nexec sleep infinity\n"
			im.set(guard, "Service", "TimeoutStartSec", "1")
		},
		facts: "Service.TimeoutStartSec",
	},
	{
		name: "no NetworkNamespacePath", of: peerPods, boot: opened,
		make:  func(im *image) { im.drop(guard, "NetworkNamespacePath") },
		facts: "Service.NetworkNamespacePath",
	},
	{
		name: "no BindsTo", of: peerPods,
		make:  func(im *image) { im.drop(guard, "BindsTo") },
		facts: "Unit.BindsTo",
	},
	{
		name: "not after the namespace", of: peerPods,
		make:  func(im *image) { im.drop(guard, "After") },
		facts: "Unit.After",
	},
	{
		name: "podns missing", of: peerPods, boot: powerOff,
		make: func(im *image) {
			im.set(guard, "Service", "NetworkNamespacePath", "/run/netns/other")
		},
		facts: "Service.NetworkNamespacePath",
	},
	{
		name: "cycle through network-pre.target", of: peerPods,
		make:  func(im *image) { im.set(guard, "Unit", "Before", "sysinit.target "+agent+" "+forwarder) },
		facts: "Unit.Before", verify: "ordering cycle",
	},
	{
		name: "forwarder's drop-in lost", of: peerPods, boot: closed, // the link still requires it
		make:  func(im *image) { delete(im.files, forwarderDropIn) },
		facts: forwarderDropIn + " is missing",
	},
	{
		name: "dropped capability", of: peerPods, boot: powerOff,
		make:  func(im *image) { im.drop(guard, "AmbientCapabilities") },
		facts: "Service.AmbientCapabilities",
	},
	{
		name: "guard missing", of: peerPods, boot: noAgent,
		make:  func(im *image) { delete(im.files, guard) },
		facts: guard + " is missing", verify: "not found",
	},
	{
		name: "guard masked", of: peerPods, boot: noAgent,
		make:  func(im *image) { delete(im.files, guard); im.links[guard] = "/dev/null" },
		facts: "masked", verify: "masked",
	},
	{
		name: "guard masked, and no BindsTo", of: peerPods, // systemd 252 starts the agent, sometimes; 257 does not
		make: func(im *image) {
			delete(im.files, guard)
			im.links[guard] = "/dev/null"
			im.drop(agentDropIn, "BindsTo")
		},
		facts: `Unit.BindsTo is ""`, verify: "masked",
	},
	{
		name: "socket for evidence in the machine's network", of: peerPods, boot: closed,
		make:  func(im *image) { im.drop(attestSocket, "NetworkNamespacePath") },
		facts: attestSocket + ": Socket.NetworkNamespacePath", evidence: nobody,
	},
	{
		name: "socket for evidence not enabled", of: kata, boot: closed,
		make:  func(im *image) { delete(im.links, attestLink) },
		facts: "link " + attestLink, evidence: nobody,
	},
	{
		name: "socket for evidence with the defaults", of: peerPods,
		make:  func(im *image) { im.drop(attestSocket, "DefaultDependencies") },
		facts: attestSocket + ": Unit.DefaultDependencies", verify: "ordering cycle",
	},
	{
		name: "agent requires the socket for evidence", of: kata,
		make: func(im *image) {
			im.drop(attestSocket, "WantedBy")
			im.add(attestSocket, "Install", "RequiredBy="+agent)
		},
		facts: attestSocket + ": Install.RequiredBy",
	},
	{
		name: "no place for requests for evidence", of: kata, boot: closed,
		make:  func(im *image) { im.drop(attest, "ReadWritePaths") },
		facts: attest + ": Service.ReadWritePaths", evidence: readOnly,
	},
	{
		name: "every capability for evidence", of: kata, exposed: attest,
		make:  func(im *image) { im.drop(attest, "CapabilityBoundingSet") },
		facts: attest + ": Service.CapabilityBoundingSet",
	},
	{
		name: "a network for evidence", of: kata, exposed: attest,
		make:  func(im *image) { im.drop(attest, "PrivateNetwork") },
		facts: attest + ": Service.PrivateNetwork",
	},
	{
		name: "initdata refused", of: kata, boot: powerOff,
		make: func(im *image) { im.programs[initdataProgram] = "#!/bin/sh\nexit 1\n" },
	},
	{
		name: "initdata's program missing", of: kata, boot: powerOff,
		make:   func(im *image) { delete(im.programs, initdataProgram) },
		verify: "is not executable",
	},
	{
		name: "initdata masked", of: kata, boot: noAgent,
		make:  func(im *image) { delete(im.files, initdata); im.links[initdata] = "/dev/null" },
		facts: "masked", verify: "Unit podvm-initdata.service is masked",
	},
	{
		name: "initdata missing", of: kata, boot: noAgent,
		make:  func(im *image) { delete(im.files, initdata) },
		facts: initdata + " is missing", verify: "Unit podvm-initdata.service not found",
	},
	{
		name: "initdata's refusal ignored", of: kata, boot: closed, // the gate is down all the same; what follows is not the pod's
		make: func(im *image) {
			im.programs[initdataProgram] = "#!/bin/sh\nexit 1\n"
			im.set(initdata, "Service", "ExecStart", "-/usr/sbin/podvm-initdata")
		},
		facts: initdata + ": Service.ExecStart",
	},
	{
		name: "initdata refused, and only wanted", of: kata, boot: closed,
		make: func(im *image) {
			im.programs[initdataProgram] = "#!/bin/sh\nexit 1\n"
			im.drop(initdata, "FailureAction")
			delete(im.links, initdataLink)
			im.drop(initdataDropIn, "Requires")
			im.drop(initdataDropIn, "BindsTo")
			im.add(initdataDropIn, "Unit", "Wants="+initdata)
		},
		facts: initdataDropIn + `: Unit.Requires is ""`,
	},
	{
		name: "initdata's drop-in lost, and a refusal", of: kata, boot: powerOff, // the link still requires it
		make: func(im *image) {
			im.programs[initdataProgram] = "#!/bin/sh\nexit 1\n"
			delete(im.files, initdataDropIn)
		},
		facts: initdataDropIn + " is missing",
	},
	{
		name: "every device for initdata", of: kata, exposed: initdata,
		make:  func(im *image) { im.drop(initdata, "DevicePolicy"); im.drop(initdata, "DeviceAllow") },
		facts: initdata + ": Service.DevicePolicy",
	},
	{
		name: "every capability for initdata", of: kata, exposed: initdata,
		make:  func(im *image) { im.drop(initdata, "CapabilityBoundingSet") },
		facts: initdata + ": Service.CapabilityBoundingSet",
	},
	{
		name: "the mesh waits for no path", of: kata,
		make:  func(im *image) { im.set(wait, "Path", "PathExists", "/run") },
		facts: wait + ": Path.PathExists",
	},
	{
		name: "the agent requires the mesh", of: kata,
		make: func(im *image) {
			im.drop(wait, "WantedBy")
			im.add(wait, "Install", "RequiredBy="+agent)
		},
		facts: wait + ": Install.RequiredBy",
	},
	{
		name: "the mesh waits for a network that nothing brings", of: kata,
		make: func(im *image) {
			im.add(credentials, "Unit", "Requires=network-online.target\nAfter=network-online.target")
		},
		facts: credentials + ": Unit.After", verify: "network-online.target not found",
	},
	{
		name: "a failed mesh turns the podVM off", of: kata,
		make:  func(im *image) { im.add(proxy, "Unit", "FailureAction=poweroff-force") },
		facts: proxy + ": Unit.FailureAction=poweroff-force is no fact",
	},
	{
		name: "the mesh's configuration from a file of the host's", of: kata,
		make:  func(im *image) { im.add(proxy, "Service", "EnvironmentFile=-/run/environment") },
		facts: proxy + ": Service.EnvironmentFile",
	},
	{
		name: "every capability for the mesh proxy", of: kata, exposed: proxy,
		make:  func(im *image) { im.drop(proxy, "CapabilityBoundingSet") },
		facts: proxy + ": Service.CapabilityBoundingSet",
	},
	{
		name: "every capability for the Initializer", of: kata, exposed: credentials,
		make:  func(im *image) { im.drop(credentials, "CapabilityBoundingSet") },
		facts: credentials + ": Service.CapabilityBoundingSet",
	},
	{
		name: "podns cannot be made", of: peerPods, boot: noAgent,
		make: func(im *image) { im.set("netns@.service", "Service", "ExecStartPre", "/bin/false") },
	},
	{
		name: "guard missing", of: alone, boot: silent,
		make:  func(im *image) { delete(im.files, guard) },
		facts: guard + " is missing", verify: "Unit podvm-guard.service not found",
	},
	{
		name: "guard masked", of: alone, boot: silent,
		make:  func(im *image) { delete(im.files, guard); im.links[guard] = "/dev/null" },
		facts: "masked", verify: "Unit podvm-guard.service is masked",
	},
	{
		name: "guard's program missing", of: alone, boot: powerOff,
		make:   func(im *image) { delete(im.programs, guardProgram) },
		verify: "is not executable",
	},
	{
		name: "guard under a condition", of: alone, boot: silent,
		make:  func(im *image) { im.add(guard, "Unit", "ConditionPathExists=/etc/guarded") },
		facts: "Unit.ConditionPathExists=/etc/guarded is no fact",
	},
	{
		name: "guard missing, and only wanted", of: alone, boot: silent, // the Coordinator opens no guard that is not there
		make: func(im *image) {
			delete(im.files, guard)
			im.drop(coordinator, "Requires")
			im.drop(coordinator, "BindsTo")
			im.add(coordinator, "Unit", "Wants="+guard)
		},
		facts: coordinator + `: Unit.Requires is ""`,
	},
	{
		name: "Coordinator not after the guard", of: alone,
		make:  func(im *image) { im.drop(coordinator, "After") },
		facts: coordinator + `: Unit.After is ""`,
	},
	{
		name: "Coordinator before any network", of: alone,
		make:  func(im *image) { im.add(coordinator, "Unit", "Before=sysinit.target") },
		facts: coordinator + ": Unit.Before=sysinit.target is no fact", verify: "ordering cycle",
	},
	{
		name: "Coordinator not enabled", of: alone, boot: silent,
		make:  func(im *image) { delete(im.links, coordinatorLink) },
		facts: "link " + coordinatorLink,
	},
	{
		name: "Coordinator without a guard", of: alone, boot: silent, // its port stays closed
		make: func(im *image) {
			im.set(coordinator, "Service", "ExecStart", "/usr/sbin/portcullis-coordinator --systemd --no-guard")
		},
		facts: coordinator + ": Service.ExecStart",
	},
	{
		name: "Coordinator without evidence", of: alone, boot: silent,
		make:  func(im *image) { delete(im.files, attestSocket) },
		facts: attestSocket + " is missing",
	},
	{
		name: "Coordinator without its capability", of: alone, boot: silent,
		make:  func(im *image) { im.drop(coordinator, "AmbientCapabilities") },
		facts: coordinator + ": Service.AmbientCapabilities",
	},
	{
		name: "Coordinator in a user namespace", of: alone, boot: silent,
		make:  func(im *image) { im.add(coordinator, "Service", "PrivateUsers=yes") },
		facts: coordinator + ": Service.PrivateUsers",
	},
	{
		name: "Coordinator in a network of its own", of: alone, boot: silent,
		make:  func(im *image) { im.add(coordinator, "Service", "PrivateNetwork=yes") },
		facts: coordinator + ": Service.PrivateNetwork",
	},
	{
		name: "Coordinator without a state directory", of: alone, boot: silent,
		make:  func(im *image) { im.drop(coordinator, "StateDirectory") },
		facts: coordinator + ": Service.StateDirectory",
	},
	{
		name: "Coordinator as root", of: alone, exposed: coordinator,
		make:  func(im *image) { im.drop(coordinator, "DynamicUser") },
		facts: coordinator + ": Service.DynamicUser",
	},
	{
		name: "every capability for the Coordinator", of: alone, exposed: coordinator,
		make:  func(im *image) { im.drop(coordinator, "CapabilityBoundingSet") },
		facts: coordinator + ": Service.CapabilityBoundingSet",
	},
	{
		name: "every device for the Coordinator", of: alone, exposed: coordinator,
		make:  func(im *image) { im.drop(coordinator, "PrivateDevices") },
		facts: coordinator + ": Service.PrivateDevices",
	},
	{
		name: "the seed may be swapped out", of: alone,
		make:  func(im *image) { im.drop(coordinator, "MemorySwapMax") },
		facts: coordinator + ": Service.MemorySwapMax",
	},
}

// bare takes the initdata service out, behind which the agent would still be behind the gate.
func (im *image) bare() {
	delete(im.files, initdata)
	delete(im.files, initdataDropIn)
	delete(im.links, initdataLink)
}

// want weakens a drop-in: the guard is wanted, no longer required.
func (im *image) want(dropIn string) {
	im.drop(dropIn, "Requires")
	im.drop(dropIn, "BindsTo")
	im.add(dropIn, "Unit", "Wants="+guard)
}

func TestEveryMutationIsCaught(t *testing.T) {
	for _, m := range mutations {
		t.Run(m.of.name+"/"+m.name, func(t *testing.T) {
			im := bake(t, m.of)
			m.make(im)
			if m.facts == "" && m.verify == "" && m.boot == "" {
				t.Error("nothing is said to catch it")
			}
			if got := strings.Join(im.faults(), "\n"); !strings.Contains(got, m.facts) {
				t.Errorf("the parsed units are faulted for:\n%s\nwant: %s", got, m.facts)
			}
			if m.verify == "" && m.exposed == "" {
				return
			}
			needSystemd(t)
			if m.verify != "" {
				if got := im.verify(t); !strings.Contains(got, m.verify) {
					t.Errorf("systemd-analyze verify says:\n%s\nwant: %s", got, m.verify)
				}
			}
			if m.exposed != "" {
				if got, limit := im.exposure(t, m.exposed), exposureLimits[m.exposed]; got < limit {
					t.Errorf("systemd-analyze security: exposure %.1f, want at least %.1f", got, limit)
				}
			}
		})
	}
}
