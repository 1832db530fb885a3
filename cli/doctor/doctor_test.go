package doctor_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/cli/doctor"
	"portcullis.dev/portcullis/guest/guard"
)

var now = time.Date(2026, time.December, 1, 0, 0, 0, 0, time.UTC)

// files of a machine on which nothing is missing.
var complete = map[string]string{
	"/sys/kernel/config/tsm/report/":                                      "",
	"/dev/sev-guest":                                                      "",
	"/sys/fs/cgroup/cgroup.controllers":                                   "cpu memory",
	"/sys/kernel/security/lsm":                                            "capability,landlock,yama\n",
	"/usr/sbin/podvm-guard":                                               "",
	"/usr/sbin/podvm-attest":                                              "",
	"/usr/lib/systemd/system/podvm-guard.service":                         "",
	"/usr/lib/systemd/system/kata-agent.service.d/10-podvm-guard.conf":    "",
	"/etc/systemd/system/kata-agent.service.requires/podvm-guard.service": "",
	"/proc/self/ns/user":                                                  "",
	"/proc/sys/user/max_user_namespaces":                                  "1000\n",
	"/proc/sys/kernel/apparmor_restrict_unprivileged_userns":              "0\n",
	"/bin/genpolicy":                                                      "program",
	"/bin/kubectl":                                                        "program",
	"/bin/go":                                                             "program",
	"/bin/nft":                                                            "program",
	"/bin/newuidmap":                                                      "program",
	"/bin/envoy":                                                          "program",
	"/cache/":                                                             "",
}

type machine struct {
	*doctor.Machine
	t *testing.T
}

func newMachine(t *testing.T) machine {
	t.Helper()
	m := machine{&doctor.Machine{
		Root: t.TempDir(), UID: 1000, Now: now, Released: now.Add(-24 * time.Hour),
		Version: func(string, ...string) (string, error) {
			return "envoy  version: 0ab1/1.40.0/Clean/RELEASE/BoringSSL", nil
		},
	}, t}
	m.Path, m.Cache = []string{m.in("/bin")}, m.in("/cache/portcullis/collateral")
	for name, text := range complete {
		m.write(name, text)
	}
	return m
}

func (m machine) in(name string) string { return filepath.Join(m.Root, name) }

func (m machine) write(name, text string) {
	m.t.Helper()
	folder, mode := filepath.Dir(m.in(name)), os.FileMode(0o644)
	if strings.HasSuffix(name, "/") {
		folder = m.in(name)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		m.t.Fatal(err)
	}
	if strings.HasSuffix(name, "/") {
		return
	}
	if text == "program" {
		mode = 0o755
	}
	if err := os.WriteFile(m.in(name), []byte(text), mode); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) without(names ...string) {
	m.t.Helper()
	for _, name := range names {
		if err := os.RemoveAll(m.in(name)); err != nil {
			m.t.Fatal(err)
		}
	}
}

func look(m machine) []doctor.Finding {
	return slices.Concat(doctor.OwnersMachine(m.Machine), doctor.SourceTree(m.Machine), doctor.Guest(m.Machine))
}

func TestAMachineThatHasEverythingIsFine(t *testing.T) {
	findings := look(newMachine(t))
	for _, f := range findings {
		if f.Result != doctor.OK || f.Get != "" || f.Found == "" || f.Wanted == "" {
			t.Errorf("%+v", f)
		}
	}
	if got := doctor.Worst(findings); got != doctor.OK {
		t.Errorf("it comes to %q", got)
	}
}

// Each row breaks what one check looks at, and the check sees it.
func TestEachCheckSeesWhatIsMissing(t *testing.T) {
	for _, c := range []struct {
		breaks string
		how    func(m machine)
		check  string
		result doctor.Result
		get    string
	}{
		{"the clock", func(m machine) { m.Now = m.Released.Add(-time.Second) }, "clock", doctor.Missing, "set the clock"},
		{"genpolicy", func(m machine) { m.without("/bin/genpolicy") }, "genpolicy", doctor.Optional, "--policy FILE"},
		{"genpolicy is no program", func(m machine) {
			m.without("/bin/genpolicy")
			m.write("/bin/genpolicy", "text")
		}, "genpolicy", doctor.Optional, "Kata"},
		{"kubectl", func(m machine) { m.without("/bin/kubectl") }, "kubectl", doctor.Optional, "kubernetes.io"},
		{"no home", func(m machine) { m.Cache = "" }, "cache of collateral", doctor.Optional, "HOME"},
		{"the cache is a file", func(m machine) {
			m.without("/cache")
			m.write("/cache", "")
		}, "cache of collateral", doctor.Optional, "--collateral-dir"},
		{"go", func(m machine) { m.without("/bin/go") }, "go", doctor.Missing, "go.dev"},
		{"nft", func(m machine) { m.without("/bin/nft") }, "nft", doctor.Missing, "apt-get install nftables"},
		{"newuidmap", func(m machine) { m.without("/bin/newuidmap") }, "namespaces", doctor.Missing, "apt-get install uidmap"},
		{"AppArmor", func(m machine) {
			m.write("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
		}, "namespaces", doctor.Missing, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"Debian's switch", func(m machine) {
			m.write("/proc/sys/kernel/unprivileged_userns_clone", "0\n")
		}, "namespaces", doctor.Missing, "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"no user namespaces", func(m machine) { m.without("/proc/self/ns/user") }, "namespaces", doctor.Missing, "run as root"},
		{"none left", func(m machine) { m.write("/proc/sys/user/max_user_namespaces", "0") }, "namespaces", doctor.Missing, "run as root"},
		{"Envoy", func(m machine) { m.without("/bin/envoy") }, "Envoy", doctor.Missing, "make envoy"},
		{"an old Envoy", func(m machine) {
			m.Version = func(string, ...string) (string, error) { return "envoy version: 0ab1/1.30.1/Clean", nil }
		}, "Envoy", doctor.Missing, "only 1.40.0 was tried"},
		{"an Envoy that does not run", func(m machine) {
			m.Version = func(string, ...string) (string, error) { return "", errors.New("exec format error") }
		}, "Envoy", doctor.Missing, "make envoy"},
		{"the TEE", func(m machine) { m.without("/dev/sev-guest", "/sys/kernel/config") }, "TEE", doctor.Missing, "CONFIG_TSM_REPORTS"},
		{"TDX on an old kernel", func(m machine) {
			m.without("/dev/sev-guest", "/sys/kernel/config")
			m.write("/dev/tdx_guest", "")
		}, "TEE", doctor.Missing, "Linux 6.7"},
		{"cgroups", func(m machine) { m.without("/sys/fs/cgroup/cgroup.controllers") }, "cgroup v2", doctor.Missing, "unified_cgroup_hierarchy"},
		{"Landlock", func(m machine) { m.write("/sys/kernel/security/lsm", "capability,nolandlock") }, "Landlock", doctor.Optional, "CONFIG_SECURITY_LANDLOCK"},
		{"securityfs", func(m machine) { m.without("/sys/kernel/security/lsm") }, "Landlock", doctor.Optional, "CONFIG_SECURITY_LANDLOCK"},
		{"the guard", func(m machine) { m.without("/usr/sbin/podvm-guard") }, "guard", doctor.Missing, "units/README.md"},
		{"its unit", func(m machine) { m.without("/usr/lib/systemd/system/podvm-guard.service") }, "guard's unit", doctor.Missing, "units/README.md"},
		{"the drop-in", func(m machine) {
			m.without("/usr/lib/systemd/system/kata-agent.service.d")
		}, "agent's drop-in", doctor.Missing, "the agent starts with the gate open"},
		{"the link", func(m machine) {
			m.without("/etc/systemd/system/kata-agent.service.requires")
		}, "agent's link", doctor.Missing, "the agent starts with the gate open"},
		{"podvm-attest", func(m machine) { m.without("/usr/sbin/podvm-attest") }, "evidence for the pod", doctor.Missing, "units/README.md"},
	} {
		t.Run(c.breaks, func(t *testing.T) {
			m := newMachine(t)
			c.how(m)
			findings := look(m)
			i := slices.IndexFunc(findings, func(f doctor.Finding) bool { return f.Check == c.check })
			if i < 0 {
				t.Fatalf("nothing is called %q", c.check)
			}
			if f := findings[i]; f.Result != c.result || !strings.Contains(f.Get, c.get) || f.Found == "" {
				t.Errorf("got %+v, want %s and %q", f, c.result, c.get)
			}
			for _, f := range findings {
				if f.Check != c.check && f.Result != doctor.OK {
					t.Errorf("another check fails: %+v", f)
				}
			}
			want := doctor.OK
			if c.result == doctor.Missing {
				want = doctor.Missing
			}
			if got := doctor.Worst(findings); got != want {
				t.Errorf("it comes to %q, want %q", got, want)
			}
		})
	}
}

func TestRootNeedsNoUserNamespaces(t *testing.T) {
	m := newMachine(t)
	m.UID = 0
	m.without("/proc/self/ns/user", "/bin/newuidmap")
	if got := doctor.Worst(doctor.SourceTree(m.Machine)); got != doctor.OK {
		t.Errorf("it comes to %q", got)
	}
}

func TestClocksAreCompared(t *testing.T) {
	for there, want := range map[time.Time]doctor.Result{
		now: doctor.OK, now.Add(5 * time.Minute): doctor.OK, now.Add(-5 * time.Minute): doctor.OK,
		now.Add(6 * time.Minute): doctor.Missing, now.Add(-6 * time.Minute): doctor.Missing, {}: doctor.Unknown,
	} {
		f := doctor.ClockSkew(now, there)
		if f.Result != want || (f.Get == "") != (want == doctor.OK) {
			t.Errorf("%v beside %v: %+v, want %q", now, there, f, want)
		}
	}
}

func TestTheKernelAndTheGuardAreLookedAt(t *testing.T) {
	can := func(missing string) func(context.Context) ([]guard.Ability, error) {
		return func(context.Context) ([]guard.Ability, error) {
			all := []guard.Ability{{Option: "CONFIG_NFT_CT", Words: "ct"}, {Option: "CONFIG_NFT_TPROXY", Words: "tproxy"}}
			for i := range all {
				if all[i].Option == missing {
					all[i].Err = &guard.MissingAbilityError{Option: missing, Err: errors.New("no such file")}
				}
			}
			return all, nil
		}
	}
	is := func(s guard.State, err error) func(context.Context) (guard.Status, error) {
		return func(context.Context) (guard.Status, error) { return guard.Status{State: s}, err }
	}
	forbidden := func(context.Context) ([]guard.Ability, error) { return nil, errors.New("takes CAP_NET_ADMIN") }
	for name, c := range map[string]struct {
		kernel doctor.Kernel
		check  string
		want   doctor.Result
		get    string
	}{
		"everything": {doctor.Kernel{Abilities: can(""), Inspect: is(guard.Closed, nil)}, "CONFIG_NFT_TPROXY", doctor.OK, ""},
		"no tproxy": {
			doctor.Kernel{Abilities: can("CONFIG_NFT_TPROXY"), Inspect: is(guard.Closed, nil)},
			"CONFIG_NFT_TPROXY", doctor.Missing,
			"CONFIG_NFT_TPROXY=y",
		},
		"no root":        {doctor.Kernel{Abilities: forbidden, Inspect: is(guard.Closed, nil)}, "kernel", doctor.Unknown, "root"},
		"open":           {doctor.Kernel{Abilities: can(""), Inspect: is(guard.Opened, nil)}, "guard's state", doctor.Missing, "podvm-guard close"},
		"foreign":        {doctor.Kernel{Abilities: can(""), Inspect: is(guard.Foreign, nil)}, "guard's state", doctor.Missing, "podvm-guard close"},
		"no state":       {doctor.Kernel{Abilities: can(""), Inspect: is("", nil)}, "guard's state", doctor.Missing, "podvm-guard close"},
		"cannot be read": {doctor.Kernel{Abilities: can(""), Inspect: is("", errors.New("EPERM"))}, "guard's state", doctor.Unknown, "root"},
	} {
		t.Run(name, func(t *testing.T) {
			findings := doctor.GuestKernel(t.Context(), c.kernel)
			i := slices.IndexFunc(findings, func(f doctor.Finding) bool { return f.Check == c.check })
			if i < 0 {
				t.Fatalf("nothing is called %q in %+v", c.check, findings)
			}
			if f := findings[i]; f.Result != c.want || !strings.Contains(f.Get, c.get) {
				t.Errorf("got %+v, want %s and %q", f, c.want, c.get)
			}
			if got := doctor.Worst(findings); got != c.want {
				t.Errorf("it comes to %q, want %q", got, c.want)
			}
		})
	}
}
