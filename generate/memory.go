package generate

import (
	"math"
	"runtime/debug"
)

// BoundMemory sets the soft memory limit of a process that does nothing but one run over files, unless somebody set one. A run
// holds the files twice, as they are and as they become; without a limit garbage would double that again.
func BoundMemory(files []File) {
	if debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return
	}
	limit := int64(40 << 20)
	for _, f := range files {
		limit += int64(len(f.Text)) * 9 / 4
	}
	debug.SetMemoryLimit(limit)
}
