package nspawn_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const units = "usr/lib/systemd/system/"

// What is looked at by name: systemd-analyze looks for a unit's program only then.
var named = []string{
	"kata-containers.target", "kata-agent.service", "podvm-guard.service", "podvm-initdata.service", "podvm-attest.service",
	"podvm-attest.socket", "podvm-initializer.path", "podvm-initializer.service", "podvm-meshproxy.service", "var.mount",
}

// analyze runs the image's own version of systemd-analyze, which is not in the image, over its root with some files changed: a text, or
// "" for a file that is gone, or "-> TARGET" for a link.
func analyze(t *testing.T, changes map[string]string, arguments ...string) (said string, code int) {
	t.Helper()
	r := root(t, "plain")
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		cache = filepath.Join(os.Getenv("HOME"), ".cache")
	}
	tools, err := filepath.Glob(filepath.Join(cache, "portcullis/image/tools-*/.whole"))
	if err != nil || len(tools) == 0 {
		t.Fatalf("no root with the image's tools below %s: make test-image makes it (%v)", cache, err)
	}
	upper := t.TempDir()
	for name, text := range changes {
		path := filepath.Join(upper, "u", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		target, link := strings.CutPrefix(text, "-> ")
		switch {
		case text == "":
			err = exec.Command("mknod", path, "c", "0", "0").Run() // overlayfs' whiteout
		case link:
			err = os.Symlink(target, path)
		default:
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"u", "w"} {
		if err := os.MkdirAll(filepath.Join(upper, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "bash", "-euc", `
		mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/u,workdir=$2/w" "$3/work"
		mount -t proc proc "$3/proc"
		root=$3
		shift 3
		exec chroot "$root" systemd-analyze "$@"`, "-", r.Dir, upper, filepath.Dir(tools[len(tools)-1])}, arguments...)...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(out), "/work/", "/"), cmd.ProcessState.ExitCode()
}

func verify(t *testing.T, changes map[string]string) string {
	t.Helper()
	said, code := analyze(t, changes, append([]string{"verify", "--man=no", "--root=/work"}, named...)...)
	if code != 0 {
		said += fmt.Sprintf("exit code %d\n", code)
	}
	return said
}

func TestSystemdHasNothingAgainstTheImage(t *testing.T) {
	if said := verify(t, nil); said != "" {
		t.Errorf("systemd-analyze verify:\n%s", said)
	}
}

// What systemd-analyze notices, and, so that nobody relies on it, what it does not: the facts of units/ notice those.
func TestSystemdAnalyzeNoticesMutations(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join("../../../units", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	guard, initdata, agent := read("podvm-guard.service"), read("podvm-initdata.service"), read("kata-agent.service.d/10-podvm-guard.conf")
	for _, c := range []struct {
		name    string
		changes map[string]string
		says    string // empty: nothing
	}{
		{"guard missing", map[string]string{units + "podvm-guard.service": ""}, "podvm-guard.service not found"},
		{"guard masked", map[string]string{units + "podvm-guard.service": "-> /dev/null"}, "is masked"},
		{"guard's program missing", map[string]string{"usr/sbin/podvm-guard": ""}, "is not executable"},
		{"misspelt FailureAction", map[string]string{units + "podvm-guard.service": strings.ReplaceAll(guard, "poweroff-force", "power-off")}, "Failed to parse"},
		{"cycle", map[string]string{units + "podvm-guard.service": strings.Replace(guard, "[Unit]\n", "[Unit]\nRequires=kata-containers.target\nAfter=kata-containers.target\n", 1)}, "ordering cycle"},
		{"initdata service missing", map[string]string{units + "podvm-initdata.service": ""}, "podvm-initdata.service not found"},
		{"initdata's program missing", map[string]string{"usr/sbin/podvm-initdata": ""}, "is not executable"},
		{"misspelt directive", map[string]string{units + "podvm-initdata.service": strings.ReplaceAll(initdata, "DevicePolicy", "DevicesPolicy")}, "Unknown key"},
		{"mesh proxy's program missing", map[string]string{"usr/sbin/podvm-meshproxy": ""}, "is not executable"},
		{"agent's program missing", map[string]string{"usr/bin/kata-agent": ""}, "is not executable"},
		{"a unit that is nowhere", map[string]string{units + "podvm-initializer.service": strings.Replace(read("podvm-initializer.service"), "[Unit]\n", "[Unit]\nRequires=network-manager.service\n", 1)}, "network-manager.service not found"},
		{"Wants= for Requires= (the facts notice)", map[string]string{units + "kata-agent.service.d/10-podvm-guard.conf": strings.ReplaceAll(agent, "Requires=", "Wants=")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			said := verify(t, c.changes)
			t.Logf("%s", strings.TrimSpace(said))
			if c.says == "" && said != "" || !strings.Contains(said, c.says) {
				t.Errorf("it says:\n%s\nwant %q", said, c.says)
			}
		})
	}
}

var exposure = regexp.MustCompile(`(?m)^\W*Overall exposure level for (\S+): ([0-9.]+)`)

func TestServicesOfTheImageCouldDoLittleElse(t *testing.T) {
	for service, limit := range map[string]float64{
		"podvm-guard.service": 1.2, "podvm-attest.service": 1.0, "podvm-initdata.service": 1.5, "podvm-initializer.service": 2.0, "podvm-meshproxy.service": 4.1,
	} {
		said, _ := analyze(t, nil, "security", "--offline=true", "--no-pager", "--root=/work", service)
		m := exposure.FindStringSubmatch(said)
		if m == nil {
			t.Fatal(said)
		}
		got, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: exposure %.1f", service, got)
		if got >= limit {
			t.Errorf("%s: exposure %.1f, want below %.1f", service, got, limit)
		}
	}
}
