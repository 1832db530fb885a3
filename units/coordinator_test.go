package units_test

import (
	"maps"
	"slices"
	"testing"
)

// What becomes of a machine whose service the Coordinator is.
const (
	serves outcome = "the Coordinator serves, and its port is the only one"
	silent outcome = "the Coordinator cannot be reached"
)

// visitor looks at a Coordinator from another machine when systemd knows what became of it, and ends the boot.
const visitor = `[Unit]
Description=Visitor of the Coordinator
DefaultDependencies=no
After=podvm-guard.service portcullis-coordinator.service

[Service]
ExecStart=/usr/bin/visit
`

// visitorProgram's other machine is a network namespace. Where the Coordinator is there, it touches the guard, kills the
// Coordinator, and stops it, and looks again after each.
const visitorProgram = `#!/bin/sh
exec >/evidence/visited 2>&1
unit=portcullis-coordinator.service
property() { systemctl show --value --property $1 $unit; }
active() { [ "$(property ActiveState)" = active ]; }
# What has failed once fails again.
settled() { active || [ "$(property ActiveState)" != activating ] || [ "$(property NRestarts)" -ge 1 ]; }
until settled; do sleep 0.1; done

for each in podvm-guard.service portcullis-coordinator.service network-pre.target sysinit.target; do
	for time in ExecMainExit ExecMainStart ActiveEnter; do
		echo $each.$time=$(systemctl show --value --property ${time}TimestampMonotonic $each)
	done
done

ip link set lo up
ip netns add outside
ip link add inside type veth peer name outside netns outside
ip address add 192.0.2.1/24 dev inside
ip link set inside up
ip -n outside address add 192.0.2.2/24 dev outside
ip -n outside link set outside up
look() {
	echo $1.state=$(property ActiveState)
	echo $1.guard=$(podvm-guard status | sed -n 's/^state: *\([a-z]*\).*/\1/p; s/^ports: *//p')
	echo $1.healthz=$(ip netns exec outside get http://192.0.2.1:1313/healthz)
}
python3 -m http.server 8080 &
until get http://127.0.0.1:8080/; do sleep 0.1; done
echo other=$(ip netns exec outside get http://192.0.2.1:8080/)
look started
if ip netns exec outside get http://192.0.2.1:1313/healthz; then
	echo status=$(property StatusText)
	echo folder=$(stat --format=%a /var/lib/portcullis/)
	for line in Uid CapEff CapBnd NoNewPrivs; do echo $line=$(sed -n "s/^$line:[[:space:]]*//p" /proc/$(property MainPID)/status); done
	podvm-guard close
	until podvm-guard status | grep --quiet '^state: *mesh'; do sleep 0.1; done
	look touched
	echo touched.restarts=$(property NRestarts)
	systemctl kill --signal=KILL $unit
	until [ "$(property NRestarts)" -ge 1 ] && active; do sleep 0.1; done
	look killed
	systemctl stop $unit
	look stopped
fi
mv /evidence/visited /evidence/complete
exec systemctl poweroff --force --force
`

// getter prints the status of an HTTP response, or why there is none.
const getter = `#!/usr/bin/python3
import sys, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=1).status)
except OSError as e:
    sys.exit(print(getattr(e, 'reason', e)) or 1)
`

// visit boots the image until the visitor has seen it.
func (im *image) visit(t *testing.T) *boot {
	t.Helper()
	im.files["visitor.service"] = visitor
	im.programs["usr/bin/visit"], im.programs["usr/bin/get"] = visitorProgram, getter
	im.links[im.target+".wants/visitor.service"] = "../visitor.service"
	l := im.live(t)
	b := &boot{of: im.placement, took: l.took, console: l.console, notes: l.read("complete")}
	_, complete := l.notes["complete"]
	_, begun := l.notes["visited"]
	switch {
	case complete && b.notes["started.healthz"] == "200":
		b.outcome = serves
	case complete:
		b.outcome = silent
	case l.off && !begun:
		b.outcome = powerOff
	default:
		t.Fatalf("the visitor did not come to its end:\n%s\n%s", l.notes["visited"], l.console)
	}
	return b
}

// checkVisit compares what the visitor saw of a Coordinator that serves.
func (b *boot) checkVisit(t *testing.T) {
	t.Helper()
	const (
		away    = "timed out"
		open    = "mesh plaintext TCP 1313"
		netOnly = "0000000000001000" // 1 << CAP_NET_ADMIN
	)
	want := map[string]string{
		"started.state": "active", "started.guard": open, "started.healthz": "200",
		"status": "listens on [::]:1313, behind the guard",
		"folder": "700", "CapEff": netOnly, "CapBnd": netOnly, "NoNewPrivs": "1",
		"touched.state": "active", "touched.guard": open, "touched.healthz": "200",
		"touched.restarts": "0", // a restart loses the seed
		"killed.state":     "active", "killed.guard": open, "killed.healthz": "200",
		"stopped.state": "inactive", "stopped.guard": "closed", "stopped.healthz": away,
		"other": away,
	}
	for _, note := range slices.Sorted(maps.Keys(want)) {
		if got := b.notes[note]; got != want[note] {
			t.Errorf("%s: %q, want %q", note, got, want[note])
		}
	}
	if uid := b.notes["Uid"]; uid == "" || uid[0] == '0' {
		t.Errorf("the Coordinator's users are %q, want none to be root", uid)
	}
}
