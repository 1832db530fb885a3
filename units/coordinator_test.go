package units_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const (
	authority        = "portcullis-coordinator.service"
	authorityLink    = "multi-user.target.wants/" + authority
	authorityProgram = "usr/sbin/portcullis-coordinator"
)

// A machine whose Coordinator is a service. It has no agent.
var coordinatorVM = placement{
	name:     "coordinator",
	own:      map[string]string{guard: guard, attest: attest, attestSocket: attestSocket, authority: authority},
	upstream: []string{"systemd"},
	target:   "multi-user.target",
	links: map[string]string{
		authorityLink:                     "../" + authority,
		"local-fs.target.wants/tmp.mount": "../tmp.mount",
		"local-fs.target.wants/var.mount": "../var.mount",
	},
	facts: []fact{
		{authorityLink, "", "../" + authority, "it starts at boot"},
		{authority, "Unit.Requires", guard, "this pulls the guard into the boot"},
		{authority, "Unit.BindsTo", guard, "a guard that is masked or was skipped is not active, and that is what counts"},
		{authority, "Unit.After", guard + "\n" + attestSocket, "the gate first, for it opens its own port in it"},
		{authority, "Unit.Wants", attestSocket, "evidence"},
		{authority, "Unit.StartLimitIntervalSec", "0", "started again for ever"},
		{authority, "Install.WantedBy", "multi-user.target", "it starts at boot"},
		{
			authority, "Service.ExecStart", "/usr/sbin/portcullis-coordinator --tee socket --audit-log /var/lib/portcullis/audit.log",
			"with its guard, and on the record",
		},
		{authority, "Service.ExecStopPost", "", "the guard's own unit stays"},
		{authority, "Service.Restart", "on-failure", "nobody is there to start it"},
		{authority, "Service.DynamicUser", "yes", "not root"},
		{authority, "Service.AmbientCapabilities", "CAP_NET_ADMIN", "a user who is not root has no other way to it"},
		{authority, "Service.CapabilityBoundingSet", "CAP_NET_ADMIN", "nothing more"},
		{authority, "Service.StateDirectory", "portcullis", "history and audit log stay"},
		{authority, "Service.StateDirectoryMode", "0700", "and are its own"},
		{authority, "Service.ReadWritePaths", "/proc/sys/net", "but one tunable"},
		{authority, "Service.ProtectSystem", "strict", "it writes no other file"},
		{authority, "Service.NoNewPrivileges", "yes", "nothing more, ever"},
		{authority, "Service.SystemCallFilter", "@system-service\n~@privileged @resources", "nothing more"},
		{authority, "Service.PrivateNetwork", "", "it serves"},
		{authority, "Service.EnvironmentFile", "", "no file of the host's"},
	},
}

// bakeCoordinator makes the image, with an observer that ends its boot.
func bakeCoordinator(t *testing.T) *image {
	im := bake(t, coordinatorVM)
	delete(im.links, attestLink)                                                          // there is no agent to want it
	im.files["var.mount"] = readFile(t, "../image/tree/usr/lib/systemd/system/var.mount") // for what it keeps
	im.programs[authorityProgram] = "#!/bin/sh\nexit 1\n"
	im.files["observer.service"] = strings.Replace(observer, "After=kata-agent.service agent-protocol-forwarder.service", "After=multi-user.target", 1)
	im.links["multi-user.target.wants/observer.service"] = "../observer.service"
	im.programs["usr/bin/observe"] = coordinatorObserver
	return im
}

// The facts of the guard and of podvm-attest are those of other placements.
func (im *image) coordinatorFaults() []string {
	return slices.DeleteFunc(im.faults(), func(fault string) bool { return !strings.Contains(fault, authority) })
}

func TestTheCoordinatorsUnit(t *testing.T) {
	needSystemd(t)
	if faults := bakeCoordinator(t).coordinatorFaults(); len(faults) > 0 {
		t.Error(strings.Join(faults, "\n"))
	}
	if complaints := bakeCoordinator(t).verify(t); complaints != "" {
		t.Errorf("systemd-analyze verify:\n%s", complaints)
	}
	const limit = 1.9
	if got := bakeCoordinator(t).exposure(t, authority); got >= limit {
		t.Errorf("exposure %.1f, want below %.1f", got, limit)
	} else {
		t.Logf("exposure %.1f", got)
	}
	im := bakeCoordinator(t)
	im.set(authority, "Service", "CapabilityBoundingSet", "CAP_NET_ADMIN CAP_SYS_ADMIN")
	if got := im.exposure(t, authority); got < limit {
		t.Errorf("with CAP_SYS_ADMIN the exposure is %.1f", got)
	}
	for name, spoil := range map[string]func(*image){
		"no edge to the guard":  func(im *image) { im.drop(authority, "Requires") },
		"before the guard":      func(im *image) { im.set(authority, "Unit", "After", attestSocket) },
		"a guard that may fail": func(im *image) { im.drop(authority, "BindsTo") },
		"without a guard": func(im *image) {
			im.set(authority, "Service", "ExecStart", "/usr/sbin/portcullis-coordinator --no-guard")
		},
		"as root":         func(im *image) { im.drop(authority, "DynamicUser") },
		"a condition":     func(im *image) { im.add(authority, "Unit", "ConditionPathExists=/run/x") },
		"a line after it": func(im *image) { im.add(authority, "Service", "ExecStartPost=/usr/sbin/nft flush ruleset") },
	} {
		im := bakeCoordinator(t)
		spoil(im)
		if len(im.coordinatorFaults()) == 0 {
			t.Errorf("%s: no fact is missed", name)
		}
	}
}

// coordinatorObserver asks the Coordinator and the guard, and ends the boot.
const coordinatorObserver = `#!/bin/sh
exec >/evidence/started 2>&1
for try in $(seq 100); do
	curl --silent --output /dev/null --max-time 1 http://127.0.0.1:1313/readyz && break
	systemctl is-active --quiet portcullis-coordinator.service || break
	sleep 0.1
done
echo ready=$(curl --silent --output /dev/null --max-time 1 --write-out '%{http_code}' http://127.0.0.1:1313/readyz)
echo unit=$(systemctl is-active portcullis-coordinator.service)
echo user=$(stat --format %u /proc/$(systemctl show --value --property MainPID portcullis-coordinator.service))
echo guard=$(podvm-guard status --json | tr -d '\n ')
for unit in podvm-guard.service:ExecMainExit network-pre.target:ActiveEnter portcullis-coordinator.service:ExecMainStart; do
	echo $unit=$(systemctl show --value --property ${unit#*:}TimestampMonotonic ${unit%:*})
done
echo files=$(ls /var/lib/portcullis/ | paste -sd,)
mv /evidence/started /evidence/complete
exec systemctl poweroff --force --force
`

// The real Coordinator, started by systemd behind the real guard, serves, as a user of its own, with its own port open in the gate and
// no other. Without its guard the machine goes off, or it does not start.
func TestTheCoordinatorServesBehindItsGate(t *testing.T) {
	needSystemd(t)
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: this needs root on the machine: systemd as PID 1 wants a cgroup of its own, and a root of overlays")
	}
	programs := map[string]string{}
	for program, name := range map[string]string{guardProgram: "podvm-guard", attestProgram: "podvm-attest", authorityProgram: "coordinator"} {
		programs[program] = build(t, name)
	}
	for name, test := range map[string]struct {
		spoil func(*image)
		check func(t *testing.T, notes map[string]string, status syscall.WaitStatus)
	}{
		"as baked": {func(*image) {}, func(t *testing.T, notes map[string]string, _ syscall.WaitStatus) {
			var status struct {
				State string
				Ports json.RawMessage
			}
			if err := json.Unmarshal([]byte(notes["guard"]), &status); err != nil || status.State != "mesh" || !strings.Contains(notes["guard"], "[1313]") {
				t.Errorf("the gate is %s: %v", notes["guard"], err)
			}
			for what, want := range map[string]string{"ready": "200", "unit": "active", "files": "audit.log,coordinator.db"} {
				if notes[what] != want {
					t.Errorf("%s is %q, want %q", what, notes[what], want)
				}
			}
			if notes["user"] == "" || notes["user"] == "0" {
				t.Errorf("its user is %q", notes["user"])
			}
			b := boot{notes: notes}
			if down := b.time(t, guard+":ExecMainExit"); down > b.time(t, "network-pre.target:ActiveEnter") || down > b.time(t, authority+":ExecMainStart") {
				t.Error("the gate was down after the network, or after the Coordinator")
			}
		}},
		"a guard that fails": {func(im *image) { im.programs[guardProgram] = "#!/bin/sh\nexit 1\n" }, func(t *testing.T, notes map[string]string, status syscall.WaitStatus) {
			if len(notes) > 0 || !status.Signaled() || status.Signal() != syscall.SIGINT {
				t.Errorf("the machine did not go off: %v", notes)
			}
		}},
		"a guard that is masked": {func(im *image) { delete(im.files, guard); im.links[guard] = "/dev/null" }, func(t *testing.T, notes map[string]string, _ syscall.WaitStatus) {
			if notes["unit"] == "active" || notes["ready"] != "000" {
				t.Errorf("it serves: %v", notes)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			im := bakeCoordinator(t)
			for program, content := range programs {
				im.programs[program] = content
			}
			test.spoil(im)
			status, _, console, evidence := im.live(t)
			notes := readNotes(t, evidence)
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("the notes:\n%v\nthe console:\n%s", notes, console)
				}
			})
			test.check(t, notes, status)
		})
	}
}
