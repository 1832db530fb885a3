package main

import (
	"flag"
	"fmt"

	"portcullis.dev/portcullis/cmd/internal/command"
	"portcullis.dev/portcullis/guest/initdata"
)

// fromPod sets what a pod's measured initdata says, by the flags that generate gives the Initializer as a container. Nobody may
// say the same otherwise: there would be two opinions. It returns why there is nothing to do, if that is so.
func fromPod(flags *flag.FlagSet, dir string) (elsewhere string, err error) {
	flags.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "coordinator", "coordinator-pin", "no-mesh", "egress-policy":
			err = &command.UsageError{Err: fmt.Errorf("--%s is given, but with --pod the pod's initdata says it", f.Name)}
		}
	})
	if err != nil {
		return "", err
	}
	pod, err := initdata.ReadPod(dir)
	if err != nil {
		return "", err
	}
	if elsewhere := pod.Elsewhere(); elsewhere != "" {
		return elsewhere, nil
	}
	set := func(name, value string) {
		if err == nil && value != "" {
			err = flags.Set(name, value)
		}
	}
	set("coordinator", pod.Config.CoordinatorHost)
	set("coordinator-pin", pod.Pin)
	if pod.Config.Mesh == nil {
		set("no-mesh", "true") // and the guard is open in the initdata, or it would be Elsewhere
	} else {
		set("egress-policy", pod.Config.Mesh.EgressPolicy)
	}
	return "", err
}
