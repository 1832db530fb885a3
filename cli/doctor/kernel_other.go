//go:build !linux

package doctor

import (
	"context"
	"runtime"
)

// ThisGuest says that this is none.
func ThisGuest(context.Context, *Machine) []Finding {
	return []Finding{{"kernel", Missing, runtime.GOOS, "linux", "a podVM runs Linux"}}
}
