package netlab

import (
	"context"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Images says what a registry would, by the images' names.
type Images map[string]Image

// Image is an entry point, and the folder of BootSpec.Images that has its files, or none if they are the podVM's own.
type Image struct {
	Entrypoint []string
	Folder     string
}

// Pod runs a pod's containers in a podVM as a kubelet and a container runtime would. Containers that end are not restarted.
type Pod struct {
	VM *PodVM

	spec    corev1.PodSpec
	images  Images
	log     func(container string) io.Writer
	running map[string]*Container
}

// NewPod prepares a pod; nothing of it runs yet. log gives each container's output a place.
func NewPod(vm *PodVM, spec corev1.PodSpec, images Images, log func(container string) io.Writer) *Pod {
	return &Pod{VM: vm, spec: spec, images: images, log: log, running: map[string]*Container{}}
}

// Run starts the pod in the order of its specification: each init container to its end or, where it is a native sidecar
// (restartPolicy Always), to the success of its start-up probe; then the containers.
func (p *Pod) Run(ctx context.Context) error {
	for _, c := range p.spec.InitContainers {
		if err := p.Start(ctx, c.Name); err != nil {
			return err
		}
		if isSidecar(c) {
			continue
		}
		run := p.running[c.Name]
		select {
		case <-run.Done():
		case <-ctx.Done():
			return fmt.Errorf("init container %s of %s did not end: %w", c.Name, p.VM.Name, ctx.Err())
		}
		if code := run.ExitCode(); code != 0 {
			return fmt.Errorf("init container %s of %s exited with %d", c.Name, p.VM.Name, code)
		}
	}
	for _, c := range p.spec.Containers {
		if err := p.Start(ctx, c.Name); err != nil {
			return err
		}
	}
	return nil
}

// Start starts one container, whatever its place in the order, and waits for its start-up probe where it has one.
func (p *Pod) Start(ctx context.Context, name string) error {
	i := slices.IndexFunc(p.all(), func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		return fmt.Errorf("pod %s has no container %s", p.VM.Name, name)
	}
	c := p.all()[i]
	run, err := p.container(c)
	if err != nil {
		return err
	}
	if err := p.VM.Start(run); err != nil {
		return err
	}
	p.running[name] = run
	return p.startupProbe(ctx, c, run)
}

// Container is the running container of that name, or nil.
func (p *Pod) Container(name string) *Container { return p.running[name] }

func (p *Pod) all() []corev1.Container {
	return slices.Concat(p.spec.InitContainers, p.spec.Containers)
}

func isSidecar(c corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func (p *Pod) startupProbe(ctx context.Context, c corev1.Container, run *Container) error {
	if c.StartupProbe == nil {
		return nil
	}
	if c.StartupProbe.Exec == nil {
		return fmt.Errorf("container %s: the lab knows start-up probes of kind exec only", c.Name)
	}
	// Asked more often than a kubelet would (its least period is a second), so that a lab does not wait for nothing.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := p.VM.Exec(run, c.StartupProbe.Exec.Command)
		if err == nil {
			return nil
		}
		select {
		case <-run.Done():
			return fmt.Errorf("container %s of %s exited with %d", c.Name, p.VM.Name, run.ExitCode())
		case <-ctx.Done():
			return fmt.Errorf("start-up probe of %s of %s did not succeed: %s", c.Name, p.VM.Name, out)
		case <-tick.C:
		}
	}
}

func (p *Pod) container(c corev1.Container) (*Container, error) {
	image, ok := p.images[c.Image]
	if !ok {
		return nil, fmt.Errorf("container %s: no image %s here", c.Name, c.Image)
	}
	entrypoint := image.Entrypoint
	if len(c.Command) > 0 {
		entrypoint = c.Command
	}
	run := &Container{
		Name: c.Name, Image: image.Folder, Command: slices.Concat(entrypoint, c.Args),
		Capabilities: DefaultCapabilities, Log: p.log(c.Name),
	}
	for _, e := range c.Env {
		if e.ValueFrom != nil {
			return nil, fmt.Errorf("container %s: the lab knows environment variables with values only, not %s", c.Name, e.Name)
		}
		run.Env = append(run.Env, e.Name+"="+e.Value)
	}
	if s := p.spec.SecurityContext; s != nil && s.RunAsUser != nil {
		run.User = int(*s.RunAsUser)
	}
	if s := c.SecurityContext; s != nil {
		if s.RunAsUser != nil {
			run.User = int(*s.RunAsUser)
		}
		run.ReadOnlyRoot = s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem
		run.NoNewPrivileges = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
		if s.Capabilities != nil {
			run.Capabilities = capabilities(*s.Capabilities)
		}
	}
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 || p.spec.Volumes[i].EmptyDir == nil {
			return nil, fmt.Errorf("container %s: volume %s is not an emptyDir of this pod", c.Name, m.Name)
		}
		dir, err := p.VM.Volume(m.Name)
		if err != nil {
			return nil, err
		}
		run.Mounts = append(run.Mounts, Mount{Volume: path.Join(dir, m.SubPath), Target: m.MountPath, ReadOnly: m.ReadOnly})
	}
	return run, nil
}

func capabilities(c corev1.Capabilities) []string {
	have := map[string]bool{}
	if !slices.Contains(c.Drop, "ALL") {
		for _, n := range DefaultCapabilities {
			have[n] = true
		}
	}
	for _, n := range c.Drop {
		delete(have, string(n))
	}
	for _, n := range c.Add {
		have[string(n)] = true
	}
	return slices.Sorted(maps.Keys(have))
}
