package main

import (
	"flag"

	"portcullis.dev/portcullis/guest/initdata"
)

// fromPod sets what a pod's measured initdata says, by the flags that generate gives the mesh proxy as a container. Nobody may
// say the same otherwise: there would be two opinions. It returns why there is nothing to do, if that is so.
func fromPod(flags *flag.FlagSet, dir string) (elsewhere string, err error) {
	flags.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "ingress", "egress", "admin-port", "egress-policy", "probes", "access-log":
			err = usage("--%s is given, but with --pod the pod's initdata says it", f.Name)
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
	mesh := pod.Config.Mesh
	if mesh == nil {
		return "the pod's initdata says that it is not in the mesh", nil
	}
	for _, value := range []struct{ flag, text string }{
		{"ingress", mesh.Ingress},
		{"egress", mesh.Egress},
		{"admin-port", mesh.AdminPort},
		{"egress-policy", mesh.EgressPolicy},
		{"probes", mesh.Probes},
		{"access-log", mesh.AccessLog},
	} {
		if value.text == "" && value.flag == "access-log" {
			continue // a boolean
		}
		if err := flags.Set(value.flag, value.text); err != nil {
			return "", err
		}
	}
	return "", nil
}
