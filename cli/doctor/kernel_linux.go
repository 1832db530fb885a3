package doctor

import (
	"context"
	"fmt"

	"portcullis.dev/portcullis/guest/guard"
)

// Kernel asks the running kernel; tests play one.
type Kernel struct {
	Abilities func(context.Context) ([]guard.Ability, error)
	Inspect   func(context.Context) (guard.Status, error)
}

// ThisKernel is the one that runs.
var ThisKernel = Kernel{guard.Abilities, guard.Inspect}

// GuestKernel looks at what the kernel can, and at the guard in this network namespace. That takes CAP_NET_ADMIN; it changes
// nothing.
func GuestKernel(ctx context.Context, k Kernel) []Finding {
	abilities, err := k.Abilities(ctx)
	if err != nil {
		return []Finding{
			{"kernel", Unknown, err.Error(), "each option that the guard's rules need", "run it as root in the guest"},
			k.guard(ctx),
		}
	}
	var findings []Finding
	for _, a := range abilities {
		f := Finding{Check: a.Option, Result: OK, Found: "the kernel loads such rules", Wanted: "for rules with the words " + a.Words}
		if a.Err != nil {
			f.Result, f.Found = Missing, a.Err.Error()
			f.Get = fmt.Sprintf("build the guest's kernel with %s=y, or with =m and the module in the image", a.Option)
		}
		findings = append(findings, f)
	}
	return append(findings, k.guard(ctx))
}

func (k Kernel) guard(ctx context.Context) Finding {
	f := Finding{Check: "guard's state", Wanted: "closed or mesh, in the namespace of the pod's network"}
	s, err := k.Inspect(ctx)
	switch {
	case err != nil:
		f.Result, f.Found, f.Get = Unknown, err.Error(), "run it as root in the guest"
	case !s.Acceptable():
		f.Result, f.Found = Missing, string(s.State)
		f.Get = "podvm-guard close; what passed until now is unknown. A pod without a servicemesh annotation is open once it has its credentials"
	default:
		f.Result, f.Found = OK, string(s.State)
	}
	return f
}

// ThisGuest is Guest and GuestKernel of this machine.
func ThisGuest(ctx context.Context, m *Machine) []Finding {
	return append(GuestKernel(ctx, ThisKernel), Guest(m)...)
}
