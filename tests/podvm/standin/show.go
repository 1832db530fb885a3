package main

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"portcullis.dev/portcullis/tests/podvm/kata"
)

// show looks at the machine. What cannot be seen is missing in what it returns.
func (s *sandbox) show(units []string) kata.Evidence {
	e := kata.Evidence{
		Units: map[string]map[string]string{}, Anonymous: map[string]int{}, Containers: map[string]kata.Container{},
		CommandLine: read("/proc/cmdline"), Total: number(read("/proc/meminfo"), "MemTotal"), Available: number(read("/proc/meminfo"), "MemAvailable"),
		Pod: names("/run/podvm"), Credentials: names("/run/credentials/@system"),
		Volume: names(filepath.Join(kata.Ephemeral, "contrast-secrets", "tls-config")),
	}
	for _, unit := range units {
		properties := map[string]string{}
		for line := range strings.Lines(output("systemctl", "show", unit)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			properties[name] = value
		}
		e.Units[unit] = properties
		processes := read(filepath.Join("/sys/fs/cgroup", properties["ControlGroup"], "cgroup.procs"))
		for pid := range strings.FieldsSeq(processes) {
			e.Anonymous[unit] += number(read("/proc/"+pid+"/status"), "RssAnon")
		}
		if strings.HasSuffix(unit, ".service") {
			for line := range strings.Lines(output("journalctl", "--no-pager", "--output=short-monotonic", "--lines=60", "--unit="+unit)) {
				e.Journal = append(e.Journal, strings.TrimSpace(line))
			}
		}
	}
	if uptime, _, ok := strings.Cut(read("/proc/uptime"), " "); ok {
		e.Uptime, _ = strconv.ParseFloat(uptime, 64)
	}
	_ = json.Unmarshal([]byte(output("podvm-guard", "status", "--json")), &e.Guard)
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		e.Addresses = append(e.Addresses, a.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, c := range s.containers {
		e.Containers[name] = kata.Container{Running: c.running, Output: c.output.String()}
	}
	return e
}

func output(program string, args ...string) string {
	out, _ := exec.Command(program, args...).Output()
	return string(out)
}

func read(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

func names(dir string) (found []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found
}

// number is the value of a field as /proc writes them: "Name:   12 kB".
func number(text, field string) int {
	m := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+)`).FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}
