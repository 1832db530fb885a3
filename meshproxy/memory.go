package meshproxy

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// leastMemory is what an idle proxy and a few hundred connections need.
const leastMemory = 64 << 20

// maxHeap is how much memory Envoy's heap may take: half of what this container or service, or else the guest, may have. The
// other half is for the supervisor, for Envoy's code, and for the kernel's buffers of all connections.
func maxHeap(root fs.FS) (int64, error) {
	limit, err := memoryMax(root)
	if err != nil {
		return 0, fmt.Errorf("find out how much memory there is: %w", err)
	}
	if limit < leastMemory {
		return 0, &hinted{
			fmt.Errorf("the mesh proxy may have %d MiB of memory, want at least %d", limit>>20, leastMemory>>20),
			"raise the container's memory limit, or the service's MemoryMax",
		}
	}
	return limit / 2, nil
}

// memoryMax is the least of the guest's memory and the limits of this process's control group and those above it, of either
// version (cgroups(7)). A container may see its own group as the root.
func memoryMax(root fs.FS) (int64, error) {
	least, err := guestMemory(root)
	if err != nil {
		return 0, err
	}
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for line := range strings.Lines(string(groups)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // hierarchy:controllers:path
		if len(fields) != 3 {
			return 0, fmt.Errorf("/proc/self/cgroup: %q", line)
		}
		mount, file := "sys/fs/cgroup", "memory.max"
		if fields[1] != "" {
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		}
		if fields[1] != "" && !strings.Contains(","+fields[1]+",", ",memory,") {
			continue
		}
		for dir := path.Join("/", fields[2]); ; dir = path.Dir(dir) {
			limit, err := groupLimit(root, path.Join(mount, dir, file))
			if err != nil {
				return 0, err
			}
			least = min(least, limit)
			if dir == "/" {
				break
			}
		}
	}
	return least, nil
}

const unlimited = 1<<63 - 1

// groupLimit is unlimited where the group has no such file, as the root of a machine has none.
func groupLimit(root fs.FS, file string) (int64, error) {
	b, err := fs.ReadFile(root, file)
	text := strings.TrimSpace(string(b))
	switch {
	case errors.Is(err, fs.ErrNotExist) || text == "max":
		return unlimited, nil
	case err != nil:
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("/%s: %q is no limit", file, text)
	}
	return n, nil
}

func guestMemory(root fs.FS) (int64, error) {
	b, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if total, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(total), " kB"), 10, 64)
			if err != nil || kib <= 0 {
				return 0, fmt.Errorf("/proc/meminfo: %q", line)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo: it has no MemTotal")
}
