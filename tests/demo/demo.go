package main

import (
	"bytes"
	"context"
	"crypto/sha512"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/tests/netlab"
	"portcullis.dev/portcullis/tests/table"
)

//go:embed shop.yaml
var shopYAML []byte

//go:embed policy.rego
var policyRego []byte

// images are the entry points that the real images have.
var images = netlab.Images{
	"portcullis.dev/initializer:v0.1.0": {Entrypoint: []string{"initializer"}},
	"portcullis.dev/meshproxy:v0.1.0":   {Entrypoint: []string{"meshproxy"}},
	"portcullis.dev/coordinator:v0.1.0": {Entrypoint: []string{"coordinator"}},
	"portcullis.dev/demo-shop:v0.1.0":   {Entrypoint: []string{"shop"}},
}

// demo is the lab with everything in it.
type demo struct {
	out   string // artefacts: out/shop.yaml, out/manifest.json, out/logs/...
	roots string // the folder of unpacked images, or none
	broke string // the sabotage that was asked for

	lab   *netlab.Lab
	dns   *netlab.DNS
	wire  *netlab.Wire
	owner *netlab.Host // where the owners' command line runs

	shop  deployment
	pods  map[string]*netlab.Pod
	table table.Table
}

// deployment is one injected YAML with its manifest.
type deployment struct {
	dir       string
	templates map[string]corev1.PodTemplateSpec // by the name of the workload
	services  map[string]*corev1.Service
}

// binaries are what the podVM's image and the container images carry.
var binaries = []string{"podvm-guard", "initializer", "meshproxy", "coordinator", "shop"}

func newDemo(out, broke string) (*demo, error) {
	d := &demo{out: out, broke: broke, pods: map[string]*netlab.Pod{}}
	for _, b := range binaries {
		if _, err := os.Stat(binary(b)); err != nil {
			return nil, fmt.Errorf("%w: run make demo, which builds it", err)
		}
	}
	if _, err := os.Stat(envoyPath()); err != nil {
		return nil, fmt.Errorf("no Envoy: %w: run make demo, which fetches it, or set PORTCULLIS_ENVOY", err)
	}
	if err := os.MkdirAll(filepath.Join(out, "logs"), 0o755); err != nil {
		return nil, err
	}
	var err error
	if d.lab, err = netlab.New(); err != nil {
		return nil, err
	}
	if d.dns, err = d.lab.ServeDNS(); err != nil {
		return nil, err
	}
	d.dns.Answer(true, false) // IPv4 first; the IPv6 checks turn it round
	if d.wire, err = d.lab.Tap(); err != nil {
		return nil, err
	}
	d.owner, err = d.lab.NewHost("owner")
	return d, err
}

func envoyPath() string {
	if p := os.Getenv("PORTCULLIS_ENVOY"); p != "" {
		return p
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "envoy"
	}
	return filepath.Join(cache, "portcullis/envoy-1.40.0/envoy")
}

// The pretended machine's measurement: a digest of what its image carries, so that another guard is another measurement.
func measurement() (string, error) {
	h := sha512.New384()
	for _, b := range binaries {
		f, err := os.Open(binary(b))
		if err != nil {
			return "", err
		}
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (d *demo) generate(ctx context.Context) error {
	if err := d.ownerRuns(ctx, binary("simtee"), "init", d.path("tee")); err != nil {
		return err
	}
	root, err := os.ReadFile(d.path("tee/root.pem"))
	if err != nil {
		return err
	}
	m, err := measurement()
	if err != nil {
		return err
	}
	references, err := json.MarshalIndent(map[string]any{"Simulated": []any{map[string]any{
		"RootCA": string(root), "Measurement": m,
		"MinimumTCB": map[string]int{"BootLoader": 0, "TEE": 0, "SNP": 0, "Microcode": 0},
	}}}, "", "  ")
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"shop.in.yaml": sabotageYAML(shopYAML, d.broke), "policy.rego": policyRego, "reference-values.json": references,
	} {
		if err := os.WriteFile(d.path(name), content, 0o644); err != nil {
			return err
		}
	}
	d.shop, err = d.deploy(ctx, "mesh")
	if err != nil {
		return err
	}
	say("%d pods injected; %s", len(d.shop.templates), "mesh/shop.yaml and mesh/manifest.json written")
	return nil
}

// deploy generates the shop into a folder of its own, with an owner's key of its own, and reads what came out.
func (d *demo) deploy(ctx context.Context, dir string) (deployment, error) {
	dep := deployment{
		dir: d.path(dir), templates: map[string]corev1.PodTemplateSpec{}, services: map[string]*corev1.Service{},
	}
	if err := os.MkdirAll(dep.dir, 0o755); err != nil {
		return dep, err
	}
	out := filepath.Join(dep.dir, "shop.yaml")
	err := d.ownerRuns(ctx, binary("portcullis"), "generate", "-o", out,
		"--manifest", filepath.Join(dep.dir, "manifest.json"), "--workload-owner-key", filepath.Join(dep.dir, "workload-owner.pem"),
		"--policy", d.path("policy.rego"), "--reference-values", d.path("reference-values.json"), d.path("shop.in.yaml"))
	if err != nil {
		return dep, err
	}
	injected, err := os.ReadFile(out)
	if err != nil {
		return dep, err
	}
	return dep, dep.read(injected)
}

func (dep *deployment) read(injected []byte) error {
	for doc := range bytes.SplitSeq(injected, []byte("\n---")) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			return err
		}
		switch kind.Kind {
		case "":
		case "Service":
			s := new(corev1.Service)
			if err := yaml.UnmarshalStrict(doc, s); err != nil {
				return err
			}
			dep.services[s.Name] = s
		case "Deployment":
			var w appsv1.Deployment
			if err := yaml.UnmarshalStrict(doc, &w); err != nil {
				return err
			}
			dep.templates[w.Name] = w.Spec.Template
		case "Pod":
			var p corev1.Pod
			if err := yaml.UnmarshalStrict(doc, &p); err != nil {
				return err
			}
			dep.templates[p.Name] = corev1.PodTemplateSpec{ObjectMeta: p.ObjectMeta, Spec: p.Spec}
		default:
			return fmt.Errorf("the demo does not know objects of kind %s", kind.Kind)
		}
	}
	return nil
}

// bootOptions are what a hostile host may choose.
type bootOptions struct {
	name        string // of the podVM; the workload's by default
	measurement string // the honest one by default
	hidden      bool   // no DNS name leads to it
}

// boot makes the podVM of a workload's pod: guard first, then its TEE's evidence, then the network. No container runs yet.
func (d *demo) boot(ctx context.Context, dep deployment, workload string, o bootOptions) (*netlab.Pod, error) {
	template, ok := dep.templates[workload]
	if !ok {
		return nil, fmt.Errorf("%s has no workload %s", dep.dir, workload)
	}
	if o.name == "" {
		o.name = workload
	}
	if o.measurement == "" {
		m, err := measurement()
		if err != nil {
			return nil, err
		}
		o.measurement = m
	}
	document, err := initdata.Decode(template.Annotations["io.katacontainers.config.hypervisor.cc_init_data"])
	if err != nil {
		return nil, fmt.Errorf("initdata of %s: %w", workload, err)
	}
	log, err := d.logFile(o.name, "podvm")
	if err != nil {
		return nil, err
	}
	files := []string{envoyPath()}
	for _, b := range binaries {
		files = append(files, binary(b))
	}
	vm, err := d.lab.Boot(netlab.BootSpec{
		Name: o.name, Binaries: files, Boot: [][]string{{"podvm-guard", "close"}}, Resolver: netlab.Resolver, Log: log,
		Images: d.roots,
	})
	if err != nil {
		return nil, err
	}
	if err := d.serveEvidence(vm, document, o.measurement, log); err != nil {
		return nil, err
	}
	if !o.hidden {
		for name, s := range dep.services {
			if labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(template.Labels)) {
				if lie, ok := map[string]string{"billing-svc": "cart-svc", "cart-svc": "billing-svc"}[name]; ok && d.broke == "dns" {
					name = lie
				}
				d.dns.Set(name, vm.IPv4, vm.IPv6)
			}
		}
	}
	pod := netlab.NewPod(vm, template.Spec, images, func(container string) io.Writer {
		f, err := d.logFile(o.name, container)
		if err != nil {
			return io.Discard
		}
		return f
	})
	d.pods[o.name] = pod
	return pod, ctx.Err()
}

// serveEvidence starts the podVM's pretended TEE: it lives outside the guest, and answers inside the guest's network only.
func (d *demo) serveEvidence(vm *netlab.PodVM, document []byte, measurement string, log io.Writer) error {
	cmd := vm.Host.Command(binary("simtee"), "serve", "--world", d.path("tee"),
		"--host-data", initdata.Digest(document).String(), "--measurement", measurement)
	cmd.Stderr = log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if n, err := stdout.Read(make([]byte, 1)); n != 1 {
		return fmt.Errorf("the pretended TEE of %s did not start: %w", vm.Name, err)
	}
	go func() {
		io.Copy(log, stdout)
		cmd.Wait()
	}()
	return nil
}

func (d *demo) startCoordinator(ctx context.Context) error {
	pod, err := d.boot(ctx, d.shop, "coordinator", bootOptions{})
	if err != nil {
		return err
	}
	if err := pod.Run(ctx); err != nil {
		return err
	}
	return d.awaitCoordinator(ctx, pod)
}

// awaitCoordinator returns when the Coordinator answers.
func (d *demo) awaitCoordinator(ctx context.Context, pod *netlab.Pod) error {
	container := pod.Container("coordinator")
	return until(ctx, func() error {
		select {
		case <-container.Done():
			return errors.Join(errGiveUp, fmt.Errorf("the Coordinator exited with %d", container.ExitCode()))
		default:
		}
		return d.healthy(ctx, pod.VM)
	})
}

func (d *demo) set(ctx context.Context) error {
	return d.setManifest(ctx, d.shop, d.pods["coordinator"].VM)
}

func (d *demo) setManifest(ctx context.Context, dep deployment, vm *netlab.PodVM) error {
	return d.ownerRuns(ctx, binary("portcullis"), "set", "--coordinator", fmt.Sprintf("%s:%d", vm.IPv4, api.Port),
		"--workload-owner-key", filepath.Join(dep.dir, "workload-owner.pem"), "--manifest", filepath.Join(dep.dir, "manifest.json"))
}

func (d *demo) verify(ctx context.Context) error {
	yaml := filepath.Join(d.shop.dir, "shop.yaml")
	if d.broke == "report" {
		yaml = d.path("shop.in.yaml")
	}
	err := d.ownerRuns(ctx, binary("portcullis"), "verify", "--coordinator", fmt.Sprintf("[%s]:%d", d.pods["coordinator"].VM.IPv6, api.Port),
		"--manifest", filepath.Join(d.shop.dir, "manifest.json"), "--output", filepath.Join(d.shop.dir, "verified"),
		"--html", d.path("report.html"), "--yaml", yaml)
	if err != nil {
		return err
	}
	return d.checkReport()
}

func (d *demo) startPods(ctx context.Context) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, name := range []string{"billing", "cart", "web"} {
		wg.Go(func() {
			mu.Lock()
			pod, err := d.boot(ctx, d.shop, name, bootOptions{})
			mu.Unlock()
			if err == nil {
				err = pod.Run(ctx)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			say("%s is ready at %s and %s", name, pod.VM.IPv4, pod.VM.IPv6)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return d.sayMemory("web", "meshproxy", "envoy")
}

// sayMemory says what a pod's idle processes hold, of which the program's own file is shared and can be read again.
func (d *demo) sayMemory(pod string, programs ...string) error {
	for _, name := range programs {
		found, err := d.pods[pod].VM.Processes(name)
		if err != nil || len(found) != 1 {
			return fmt.Errorf("%s runs %d processes %s: %w", pod, len(found), name, err)
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", found[0].Pid))
		if err != nil {
			return err
		}
		var kib [2]int
		for i, field := range []string{"VmRSS:", "RssAnon:"} {
			_, rest, _ := strings.Cut(string(b), field)
			if _, err := fmt.Sscan(rest, &kib[i]); err != nil {
				return fmt.Errorf("%s of %s: %w", field, name, err)
			}
		}
		say("%s in %s: %.1f MiB resident, %.1f MiB of it anonymous", name, pod, float64(kib[0])/1024, float64(kib[1])/1024)
	}
	return nil
}

// ownerRuns runs a command on the owner's machine and shows its output.
func (d *demo) ownerRuns(ctx context.Context, name string, args ...string) error {
	say("$ %s %s", filepath.Base(name), strings.ReplaceAll(strings.Join(args, " "), d.out+"/", ""))
	cmd := d.owner.Command(name, args...)
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(strings.TrimSpace(string(out))) {
		say("%s", strings.TrimRight(strings.ReplaceAll(line, d.out+"/", ""), "\n"))
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", filepath.Base(name), args[0], err)
	}
	return ctx.Err()
}

func (d *demo) path(name string) string { return filepath.Join(d.out, name) }

func (d *demo) logFile(vm, container string) (*os.File, error) {
	return os.OpenFile(filepath.Join(d.out, "logs", vm+"."+container+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}
