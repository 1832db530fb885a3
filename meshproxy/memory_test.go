package meshproxy

import (
	"testing"
	"testing/fstest"
)

func TestHeapIsHalfOfTheLeastLimit(t *testing.T) {
	const meminfo = "MemFree: 1 kB\nMemTotal:        2097152 kB\n" // 2 GiB
	for name, tt := range map[string]struct {
		files map[string]string
		want  int64 // MiB; zero is an error
	}{
		"a guest without control groups": {map[string]string{"proc/meminfo": meminfo}, 1024},
		"a container that sees itself as the root": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "268435456\n",
		}, 128},
		"a service": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/system.slice/mesh.service\n",
			"sys/fs/cgroup/system.slice/mesh.service/memory.max": "134217728\n", "sys/fs/cgroup/system.slice/memory.max": "max\n",
		}, 64},
		"a limit further up": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/pod/container\n",
			"sys/fs/cgroup/pod/container/memory.max": "max\n", "sys/fs/cgroup/pod/memory.max": "536870912\n",
		}, 256},
		"version 1": {map[string]string{
			"proc/meminfo":     meminfo,
			"proc/self/cgroup": "9:name=systemd:/x\n4:cpu,memory:/pod\n2:cpuset:/y\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n", "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "134217728\n",
		}, 64},
		"a limit above what the guest has": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "8589934592\n",
		}, 1024},
		"too little": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "33554432\n",
		}, 0},
		"no limit that is a number": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "much\n",
		}, 0},
		"no group that is one": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "much\n"}, 0},
		"no total":             {map[string]string{"proc/meminfo": "MemFree: 1 kB\n"}, 0},
		"no meminfo":           {map[string]string{}, 0},
	} {
		root := fstest.MapFS{}
		for name, content := range tt.files {
			root[name] = &fstest.MapFile{Data: []byte(content)}
		}
		got, err := maxHeap(root)
		if got != tt.want<<20 || (err == nil) != (tt.want > 0) {
			t.Errorf("%s: %d MiB, %v; want %d", name, got>>20, err, tt.want)
		}
	}
}
