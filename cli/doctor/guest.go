package doctor

import (
	"fmt"
	"strings"
)

// Guest looks at a podVM from inside: at its image, and at what the hardware offers. What only the running kernel can say,
// GuestKernel adds.
func Guest(m *Machine) []Finding {
	return []Finding{
		m.clock(), m.tee(), m.cgroups(),
		m.guardProgram(), m.guardUnit(),
		m.edge("agent's drop-in", "kata-agent.service.d/10-podvm-guard.conf"),
		m.edge("agent's link", "kata-agent.service.requires/podvm-guard.service"),
		m.file("evidence for the pod", "/usr/sbin/podvm-attest", Missing),
		m.landlock(),
		m.envoy(testedEnvoy+", where the mesh proxy is in the image", Optional),
	}
}

// The sources of evidence that Linux has.
var sources = []struct{ path, what string }{
	{"/sys/kernel/config/tsm/report", "configfs-tsm"},
	{"/dev/sev-guest", "SEV-SNP device"},
	{"/dev/tdx_guest", "TDX device"},
}

func (m *Machine) tee() Finding {
	f := Finding{Check: "TEE", Result: OK, Wanted: "configfs-tsm, or the device of SEV-SNP"}
	var found []string
	usable := false
	for _, s := range sources {
		if m.exists(s.path) {
			found = append(found, s.what)
			usable = usable || s.path != "/dev/tdx_guest"
		}
	}
	f.Found = strings.Join(found, ", ")
	switch {
	case len(found) == 0:
		f.Result, f.Found = Missing, "none of /sys/kernel/config/tsm/report, /dev/sev-guest, /dev/tdx_guest"
		f.Get = "is this a confidential guest? The kernel needs CONFIG_TSM_REPORTS and SEV_GUEST or TDX_GUEST_DRIVER, and configfs mounted"
	case !usable:
		f.Result = Missing
		f.Get = "TDX gives evidence through configfs-tsm: Linux 6.7 with CONFIG_TSM_REPORTS, and configfs mounted"
	}
	return f
}

func (m *Machine) cgroups() Finding {
	f := Finding{Check: "cgroup v2", Result: OK, Found: "/sys/fs/cgroup", Wanted: "for the egress lock"}
	if !m.exists("/sys/fs/cgroup/cgroup.controllers") {
		f.Result, f.Found = Missing, "/sys/fs/cgroup is not cgroup v2"
		f.Get = "boot with systemd.unified_cgroup_hierarchy=1; pods with servicemesh-egress-policy: closed do not start without"
	}
	return f
}

func (m *Machine) landlock() Finding {
	f := Finding{Check: "Landlock", Result: OK, Found: m.text("/sys/kernel/security/lsm"), Wanted: "to confine Envoy further"}
	if !strings.Contains(","+f.Found+",", ",landlock,") {
		f.Result, f.Get = Optional, "CONFIG_SECURITY_LANDLOCK, and landlock in lsm="
		if f.Found == "" {
			f.Found = "/sys/kernel/security/lsm cannot be read"
		}
	}
	return f
}

func (m *Machine) guardProgram() Finding { return m.file("guard", "/usr/sbin/podvm-guard", Missing) }

func (m *Machine) file(check, path string, otherwise Result) Finding {
	f := Finding{Check: check, Result: OK, Found: path, Wanted: path}
	if !m.exists(path) {
		f.Result, f.Found, f.Get = otherwise, "it is not there", "units/README.md says which file goes where"
	}
	return f
}

// unitFolders are where systemd looks, the first first.
var unitFolders = []string{"/etc/systemd/system", "/usr/lib/systemd/system"}

func (m *Machine) unit(name string) string {
	for _, folder := range unitFolders {
		if path := folder + "/" + name; m.exists(path) {
			return path
		}
	}
	return ""
}

func (m *Machine) guardUnit() Finding {
	f := Finding{Check: "guard's unit", Result: OK, Found: m.unit("podvm-guard.service"), Wanted: "podvm-guard.service"}
	if f.Found == "" {
		f.Result, f.Found, f.Get = Missing, "it is not there", "units/README.md says which file goes where"
	}
	return f
}

// edge is one of the two that keep the agent from starting while the gate is not down.
func (m *Machine) edge(check, name string) Finding {
	f := Finding{Check: check, Result: OK, Found: m.unit(name), Wanted: name}
	if f.Found == "" {
		f.Result, f.Found = Missing, "it is not there"
		f.Get = fmt.Sprintf("without %s and the other edge the agent starts with the gate open: units/README.md", name)
	}
	return f
}
