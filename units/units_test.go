// Package units_test asserts what systemd itself does not check: that the exact edges are there which keep the agent from
// running without the gate. systemd-analyze verify is content with Wants= for Requires=, and with a misspelt action.
package units_test

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/google/go-cmp/cmp"
)

// A directive that repeats has its values in order.
type directives map[string][]string

// The sections that say when a unit runs are asserted whole: one directive more could skip the guard (a Condition), stop it
// (Conflicts, PartOf) or hang it off a target that kata never boots (WantedBy=multi-user.target).
func TestGuardRunsBeforeTheAgentOrPowersOff(t *testing.T) {
	sections := load(t, "podvm-guard.service")
	delete(sections["Unit"], "Description")
	for section, want := range map[string]directives{
		"Unit": {
			"DefaultDependencies": {"no"},
			"After":               {"systemd-modules-load.service"},
			"Wants":               {"network-pre.target"},
			"Before":              {"network-pre.target kata-agent.service"},
			"FailureAction":       {"poweroff-force"},
		},
		"Install": {"RequiredBy": {"kata-agent.service"}},
	} {
		if diff := cmp.Diff(want, sections[section]); diff != "" {
			t.Errorf("[%s] (-want +got):\n%s", section, diff)
		}
	}
}

// What the guard runs, and what must be true of its sandbox for closing to work at all.
func TestGuardService(t *testing.T) {
	service := load(t, "podvm-guard.service")["Service"]
	want := directives{
		"Type":                    {"oneshot"},
		"RemainAfterExit":         {"yes"},
		"TimeoutStartSec":         {"90"},
		"AmbientCapabilities":     {"CAP_NET_ADMIN"},
		"CapabilityBoundingSet":   {"CAP_NET_ADMIN"},
		"RestrictAddressFamilies": {"AF_NETLINK"},
		"DynamicUser":             {"yes"},
		"NoNewPrivileges":         {"yes"},
		"ProtectSystem":           {"strict"},
		"ReadWritePaths":          {"/proc/sys/net"},
		"ProcSubset":              nil, // would hide /proc/sys
		"PrivateUsers":            nil, // the capability would not count for the machine's network
		"PrivateNetwork":          nil, // it would close another network
		"NetworkNamespacePath":    nil,
		"SuccessExitStatus":       nil, // a failed guard is a failed guard
		"Restart":                 nil,
		"EnvironmentFile":         nil,
	}
	for name, want := range want {
		if diff := cmp.Diff(want, service[name]); diff != "" {
			t.Errorf("%s= (-want +got):\n%s", name, diff)
		}
	}
	commands := directives{}
	for name, values := range service {
		if strings.HasPrefix(name, "Exec") {
			commands[name] = values
		}
	}
	// Without a leading "-", which would make a failure a success, and with no ExecStop: nothing lifts the gate.
	if diff := cmp.Diff(directives{"ExecStart": {"/usr/sbin/podvm-guard close"}}, commands); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
}

func TestAgentsDropInRepeatsTheEdge(t *testing.T) {
	want := map[string]directives{"Unit": {"Requires": {"podvm-guard.service"}, "After": {"podvm-guard.service"}}}
	if diff := cmp.Diff(want, load(t, "kata-agent.service.d/10-podvm-guard.conf")); diff != "" {
		t.Errorf("drop-in (-want +got):\n%s", diff)
	}
}

// systemd only warns about a directive it does not know, in a log that nobody reads. So the names are checked against what
// has been seen to be understood, by systemd-analyze verify and security.
func TestNoDirectiveIsMisspelt(t *testing.T) {
	known := strings.Fields(`
		Description DefaultDependencies After Wants Before Requires FailureAction RequiredBy
		Type RemainAfterExit ExecStart TimeoutStartSec DynamicUser AmbientCapabilities CapabilityBoundingSet
		RestrictAddressFamilies ProtectKernelTunables ReadWritePaths ProtectProc ProtectSystem ProtectHome PrivateTmp
		PrivateDevices PrivateIPC ProtectClock ProtectControlGroups ProtectHostname ProtectKernelLogs ProtectKernelModules
		NoNewPrivileges RestrictNamespaces RestrictRealtime RestrictSUIDSGID LockPersonality MemoryDenyWriteExecute RemoveIPC
		SystemCallArchitectures SystemCallFilter SystemCallErrorNumber IPAddressDeny UMask StandardInput`)
	for _, file := range []string{"podvm-guard.service", "kata-agent.service.d/10-podvm-guard.conf"} {
		for section, list := range load(t, file) {
			for name := range maps.Keys(list) {
				if !slices.Contains(known, name) {
					t.Errorf("%s, [%s]: %s= is not a directive that was seen to work", file, section, name)
				}
			}
		}
	}
}

func load(t *testing.T, file string) map[string]directives {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	options, err := unit.DeserializeOptions(f)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	out := map[string]directives{}
	for _, o := range options {
		if out[o.Section] == nil {
			out[o.Section] = directives{}
		}
		out[o.Section][o.Name] = append(out[o.Section][o.Name], o.Value)
	}
	return out
}
