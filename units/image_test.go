// Package units_test proves what the units promise: that the agent, and so every container, starts behind a closed gate or
// not at all, and so a Coordinator that is a service of its machine.
//
// systemd itself does not check that. systemd-analyze verify is content with Wants= for Requires=, with a guard that runs
// after the agent, and with one that hangs off a target that kata never boots. So one image, as units/README.md tells an
// image builder to bake it, is looked at in four ways: its units are parsed and compared with a table of facts;
// systemd-analyze verifies it; systemd-analyze judges what the services could do; and a real systemd boots it. What each way
// is good for, a table of mutations shows: the same image with one thing wrong, and who must notice.
package units_test

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A placement is a kind of podVM that the guard is made for.
type placement struct {
	name string
	// The files of this folder that go into the image, by their names there.
	own map[string]string
	// Folders of stand-ins for the units of others: what upstream's say about their order, and no more.
	upstream []string
	// Units of systemd's own that are needed here alone.
	standard []string
	// Whether it has a disk, at /var/lib.
	state bool
	// What boots.
	target string
	// What must not start without the guard: `systemctl enable` links it to these.
	behind []string
	// How others' units are enabled.
	links map[string]string
	facts []fact
}

const (
	guard           = "podvm-guard.service"
	attest          = "podvm-attest.service"
	attestSocket    = "podvm-attest.socket"
	agent           = "kata-agent.service"
	forwarder       = "agent-protocol-forwarder.service"
	agentDropIn     = agent + ".d/10-podvm-guard.conf"
	initdata        = "podvm-initdata.service"
	initdataDropIn  = agent + ".d/20-podvm-initdata.conf"
	initdataLink    = agent + ".requires/" + initdata
	wait            = "podvm-initializer.path"
	credentials     = "podvm-initializer.service"
	proxy           = "podvm-meshproxy.service"
	waitLink        = agent + ".wants/" + wait
	forwarderDropIn = forwarder + ".d/10-podvm-guard.conf"
	agentLink       = agent + ".requires/" + guard
	forwarderLink   = forwarder + ".requires/" + guard
	attestLink      = agent + ".wants/" + attestSocket
	coordinator     = "portcullis-coordinator.service"
	coordinatorLink = "multi-user.target.wants/" + coordinator

	unitFolder      = "usr/lib/systemd/system"
	guardProgram    = "usr/sbin/podvm-guard"
	attestProgram   = "usr/sbin/podvm-attest"
	initdataProgram = "usr/sbin/podvm-initdata"

	coordinatorProgram = "usr/sbin/portcullis-coordinator"
)

// What is ours and runs: each is looked at by name.
func (im *image) ours() []string {
	ours := []string{guard, attest, attestSocket}
	if _, ok := im.own[initdata]; ok {
		ours = append(ours, initdata, wait, credentials, proxy)
	}
	if _, ok := im.own[coordinator]; ok {
		ours = append(ours, coordinator)
	}
	return ours
}

// installed are those of them that are enabled. Where there is no agent, the Coordinator pulls in whatever it needs.
func (im *image) installed() []string {
	if _, ok := im.own[coordinator]; ok {
		return []string{coordinator}
	}
	return slices.DeleteFunc(im.ours(), func(name string) bool {
		return slices.Contains([]string{attest, credentials, proxy}, name)
	})
}

var kata = placement{
	name: "kata",
	own: map[string]string{
		guard: guard, agentDropIn: agentDropIn, attest: attest, attestSocket: attestSocket,
		initdata: initdata, initdataDropIn: initdataDropIn, wait: wait, credentials: credentials, proxy: proxy,
	},
	upstream: []string{"kata", "systemd"},
	target:   "kata-containers.target",
	behind:   []string{agent},
	facts:    kataFacts,
}

var peerPods = placement{
	name: "peer pods",
	own: map[string]string{
		guard: "peerpods/" + guard, agentDropIn: agentDropIn, forwarderDropIn: "peerpods/" + forwarderDropIn,
		attest: attest, attestSocket: "peerpods/" + attestSocket,
	},
	upstream: []string{"peerpods", "systemd"},
	target:   "multi-user.target",
	behind:   []string{agent, forwarder},
	links: map[string]string{
		"multi-user.target.wants/" + agent:                  "../" + agent,
		"multi-user.target.wants/" + forwarder:              "../" + forwarder,
		"multi-user.target.wants/process-user-data.service": "../process-user-data.service",
		"local-fs.target.wants/tmp.mount":                   "../tmp.mount",
	},
	facts: peerPodsFacts,
}

// A confidential VM without pods, of which the Coordinator is a service.
var alone = placement{
	name:     "coordinator",
	own:      map[string]string{guard: guard, attest: attest, attestSocket: attestSocket, coordinator: coordinator},
	upstream: []string{"systemd"},
	standard: []string{"network-online.target"},
	state:    true,
	target:   "multi-user.target",
	links:    map[string]string{"local-fs.target.wants/tmp.mount": "../tmp.mount"},
	facts:    coordinatorFacts,
}

var placements = []placement{kata, peerPods, alone}

// An image is what matters here of a podVM image.
type image struct {
	placement
	files    map[string]string // below /usr/lib/systemd/system
	links    map[string]string // there as well
	programs map[string]string // below /
}

// bake makes the image that units/README.md describes.
func bake(t *testing.T, p placement) *image {
	t.Helper()
	im := &image{placement: p, files: map[string]string{}, links: map[string]string{}, programs: map[string]string{
		guardProgram:                       "#!/bin/sh\nexit 1\n", // a boot has the real one
		attestProgram:                      "#!/bin/sh\nexit 1\n", // nobody asks
		initdataProgram:                    "#!/bin/sh\nexit 0\n", // it has tests of its own
		"usr/sbin/podvm-initializer":       "#!/bin/sh\nexit 1\n", // nobody makes a sandbox
		"usr/sbin/podvm-meshproxy":         "#!/bin/sh\nexit 1\n",
		"usr/bin/kata-agent":               standInAgent,
		"usr/bin/agent-protocol-forwarder": "#!/bin/sh\nexec sleep infinity\n",
		"usr/bin/ask":                      asker,
		coordinatorProgram:                 "#!/bin/sh\nexit 1\n", // a boot has the real one
	}}
	for name, source := range p.own {
		im.files[name] = readFile(t, source)
	}
	for _, folder := range p.upstream {
		folder = filepath.Join("testdata/upstream", folder)
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			im.files[e.Name()] = readFile(t, filepath.Join(folder, e.Name()))
		}
	}
	maps.Copy(im.links, p.links)
	for _, unit := range p.behind {
		im.links[unit+".requires/"+guard] = "../" + guard
	}
	if len(p.behind) > 0 {
		im.links[attestLink] = "../" + attestSocket
	}
	if _, ok := p.own[coordinator]; ok {
		im.links[coordinatorLink] = "../" + coordinator
	}
	if _, ok := p.own[initdata]; ok {
		im.links[initdataLink] = "../" + initdata
		im.links[waitLink] = "../" + wait
	}
	return im
}

// write makes the image's tree in dir. What systemd ships comes from this machine: the standard units and the tools that
// judge them are of one version then, whichever it is. (systemd-analyze complains about units that are newer than itself.)
func (im *image) write(t *testing.T, dir string) {
	t.Helper()
	units := filepath.Join(dir, unitFolder)
	standard := systemdUnits(t)
	for _, name := range slices.Concat(standardUnits, im.standard) {
		writeFile(t, filepath.Join(units, name), readFile(t, filepath.Join(standard, name)), 0o644)
	}
	for name, text := range im.files {
		writeFile(t, filepath.Join(units, name), text, 0o644)
	}
	links := maps.Clone(im.links)
	maps.Copy(links, standardLinks)
	for name, target := range links {
		path := filepath.Join(units, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range im.programs {
		writeFile(t, filepath.Join(dir, name), text, 0o755)
	}
}

// What the targets, and a boot, need of systemd's own.
var standardUnits = strings.Fields(`
	basic.target sysinit.target sockets.target timers.target paths.target slices.target local-fs.target local-fs-pre.target
	swap.target network-pre.target network.target multi-user.target shutdown.target umount.target final.target
	poweroff.target systemd-poweroff.service rescue.target rescue.service emergency.target emergency.service
	systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket
	systemd-modules-load.service systemd-remount-fs.service systemd-tmpfiles-setup.service`)

var standardLinks = map[string]string{
	"sysinit.target.wants/systemd-journald.service":        "../systemd-journald.service",
	"sysinit.target.wants/systemd-modules-load.service":    "../systemd-modules-load.service",
	"sysinit.target.wants/systemd-tmpfiles-setup.service":  "../systemd-tmpfiles-setup.service",
	"sockets.target.wants/systemd-journald.socket":         "../systemd-journald.socket",
	"sockets.target.wants/systemd-journald-dev-log.socket": "../systemd-journald-dev-log.socket",
}

// systemdUnits is the folder of this machine's standard units.
func systemdUnits(t *testing.T) string {
	t.Helper()
	needSystemd(t)
	out, err := exec.Command("systemd-analyze", "unit-paths").Output()
	if err != nil {
		t.Fatalf("systemd-analyze unit-paths: %v", err)
	}
	for dir := range strings.Lines(string(out)) {
		dir = strings.TrimSpace(dir)
		if _, err := os.Stat(filepath.Join(dir, "sysinit.target")); err == nil {
			return dir
		}
	}
	t.Fatalf("no folder of systemd-analyze unit-paths has sysinit.target:\n%s", out)
	return ""
}

func needSystemd(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"systemd-analyze", "systemctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: this needs %s; run as root: apt-get install systemd", tool)
		}
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeFile(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode)); err != nil {
		t.Fatal(err)
	}
}

// What the image links by hand is what `systemctl enable` makes of the [Install] section.
func TestEnableMakesTheLinks(t *testing.T) {
	for _, p := range placements {
		t.Run(p.name, func(t *testing.T) {
			im := bake(t, p)
			for _, unit := range p.behind {
				delete(im.links, unit+".requires/"+guard)
			}
			delete(im.links, attestLink)
			delete(im.links, initdataLink)
			delete(im.links, waitLink)
			delete(im.links, coordinatorLink)
			dir := t.TempDir()
			im.write(t, dir)
			if out, err := exec.Command("systemctl", append([]string{"--root=" + dir, "enable"}, im.installed()...)...).CombinedOutput(); err != nil {
				t.Fatalf("systemctl enable: %v: %s", err, out)
			}
			made, err := filepath.Glob(filepath.Join(dir, "etc/systemd/system/*/*"))
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{}
			for _, unit := range p.behind {
				want[unit+".requires/"+guard] = guard
			}
			if p.name == kata.name {
				want[initdataLink], want[waitLink] = initdata, wait
			}
			if len(p.behind) > 0 {
				want[attestLink] = attestSocket
			} else {
				want[coordinatorLink] = coordinator
			}
			if len(made) != len(want) {
				t.Errorf("systemctl enable made %q, want %q", made, want)
			}
			for link, unit := range want {
				got, err := os.Readlink(filepath.Join(dir, "etc/systemd/system", link))
				if err != nil || got != "/"+unitFolder+"/"+unit {
					t.Errorf("link %s: %q, %v; want /%s/%s", link, got, err, unitFolder, unit)
				}
			}
		})
	}
}
