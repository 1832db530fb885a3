package doctor

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// testedEnvoy is the release that the mesh proxy's configuration was written for.
const testedEnvoy = "1.40.0"

var envoyVersion = regexp.MustCompile(`[0-9]+\.[0-9]+\.[0-9]+`)

// OwnersMachine looks at the machine of a workload owner or a data owner: one that portcullis itself runs on.
func OwnersMachine(m *Machine) []Finding {
	return []Finding{
		m.clock(),
		m.program("genpolicy", "for generate --genpolicy",
			"it comes with Kata Containers; without it, generate --policy FILE takes a policy that you wrote", Optional),
		m.program("kubectl", "to apply what generate wrote", "kubernetes.io/docs/tasks/tools", Optional),
		m.cache(),
	}
}

// cache is the check that what vendors publish can be kept between two runs.
func (m *Machine) cache() Finding {
	f := Finding{Check: "cache of collateral", Result: OK, Wanted: "a folder that can be written to"}
	if m.Cache == "" {
		f.Result, f.Found, f.Get = Optional, "this user has no cache folder", "set HOME or XDG_CACHE_HOME; or --collateral-dir DIR; without it, each run asks AMD and Intel"
		return f
	}
	// What is there, or the nearest folder that it would be made in.
	folder := m.Cache
	for folder != filepath.Dir(folder) {
		if _, err := os.Stat(folder); err == nil {
			break
		}
		folder = filepath.Dir(folder)
	}
	f.Found = m.Cache
	probe, err := os.CreateTemp(folder, ".portcullis-doctor-*")
	if err != nil {
		f.Result, f.Found = Optional, m.Cache+": "+because(err)
		f.Get = "make it writable, or --collateral-dir DIR; without it, each run asks AMD and Intel"
		return f
	}
	_ = probe.Close()
	_ = os.Remove(probe.Name())
	return f
}

// SourceTree looks at what make demo needs, on a machine with the sources.
func SourceTree(m *Machine) []Finding {
	return []Finding{
		m.program("go", "1.26, to build", "go.dev/dl", Missing),
		m.program("nft", "to show rules", "apt-get install nftables", Missing),
		m.namespaces(),
		m.envoy(testedEnvoy, Missing),
	}
}

// forbidden are the settings that forbid user namespaces to ordinary users, with what they must be.
var forbidden = []struct{ file, allowed string }{
	{"/proc/sys/kernel/unprivileged_userns_clone", "1"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"},
}

// namespaces is the check that pretended podVMs can be made.
func (m *Machine) namespaces() Finding {
	f := Finding{Check: "namespaces", Result: OK, Found: "root", Wanted: "root, or user namespaces with newuidmap"}
	if m.UID == 0 {
		return f
	}
	f.Found = "user namespaces are allowed"
	var wrong, get []string
	for _, s := range forbidden {
		if now := m.text(s.file); now != "" && now != s.allowed {
			wrong = append(wrong, s.file+" is "+now)
			get = append(get, "sysctl -w "+strings.ReplaceAll(strings.TrimPrefix(s.file, "/proc/sys/"), "/", ".")+"="+s.allowed)
		}
	}
	if now := m.text("/proc/sys/user/max_user_namespaces"); now == "0" || !m.exists("/proc/self/ns/user") {
		wrong, get = append(wrong, "the kernel makes no user namespaces"), append(get, "run as root")
	}
	if m.find("newuidmap") == "" {
		wrong, get = append(wrong, "newuidmap is not in PATH"), append(get, "apt-get install uidmap")
	}
	if len(wrong) > 0 {
		f.Result, f.Found, f.Get = Missing, strings.Join(wrong, "; "), strings.Join(get, "; ")+"; or run as root"
	}
	return f
}
