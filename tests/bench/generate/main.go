// Command generate measures what injecting costs: many documents of many files, beside a loop that reads the same files with
// the YAML library and writes them again, which is the least that a tool does that re-emits what it reads. Both are processes
// of their own that read files and write others, taking turns; medians are compared.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"

	"portcullis.dev/portcullis/generate"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

var ways = map[string]func(in, out string) error{
	"inject":       inject,
	"inject again": inject,
	"remove":       remove,
	"re-emit":      reemit,
}

func run() error {
	documents := flag.Int("documents", 10_000, "how many documents")
	files := flag.Int("files", 100, "in how many files")
	rounds := flag.Int("rounds", 5, "how many rounds")
	only := flag.Int("share", 0, "percentage of confidential pods (default: 25, then 100)")
	way := flag.String("way", "", "do one thing, in a process of its own: "+strings.Join(slices.Collect(keys(ways)), ", "))
	flag.Parse()
	if *way != "" {
		if flag.NArg() != 2 || ways[*way] == nil {
			return errors.New("usage: generate --way WAY IN OUT")
		}
		return ways[*way](flag.Arg(0), flag.Arg(1))
	}
	shares := []int{25, 100}
	if *only > 0 {
		shares = []int{*only}
	}
	work, err := os.MkdirTemp("", "portcullis-bench-generate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	for _, share := range shares {
		if err := compare(work, *documents, *files, *rounds, share); err != nil {
			return err
		}
	}
	return nil
}

func keys[V any](m map[string]V) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// cost is what one process took.
type cost struct {
	wall, cpu time.Duration
	rss       int64
}

func compare(work string, documents, files, rounds, share int) error {
	in := filepath.Join(work, fmt.Sprint("in-", share))
	size, err := makeFiles(in, documents, files, share)
	if err != nil {
		return err
	}
	injected := filepath.Join(work, fmt.Sprint("injected-", share))
	if _, err := measure("inject", in, injected); err != nil {
		return err
	}
	order := []string{"re-emit", "inject", "inject again", "remove"}
	costs := make(map[string][]cost)
	for range rounds {
		for _, way := range order {
			from := in
			if way == "inject again" || way == "remove" {
				from = injected
			}
			out := filepath.Join(work, "out")
			c, err := measure(way, from, out)
			if err != nil {
				return err
			}
			costs[way] = append(costs[way], c)
			if err := os.RemoveAll(out); err != nil {
				return err
			}
		}
	}
	fmt.Printf("\n%d documents in %d files, %.0f MB, %d %% of them confidential pods (median of %d)\n", documents, files,
		float64(size)/1e6, share, rounds)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WAY\tTIME\tCPU\tMEMORY\tTIME / RE-EMIT\tCPU / RE-EMIT")
	base := median(costs["re-emit"])
	for _, way := range order {
		m := median(costs[way])
		fmt.Fprintf(w, "%s\t%.1f s\t%.1f s\t%d MB\t%.2f\t%.2f\n", way, m.wall.Seconds(), m.cpu.Seconds(), m.rss>>20,
			m.wall.Seconds()/base.wall.Seconds(), m.cpu.Seconds()/base.cpu.Seconds())
	}
	return w.Flush()
}

func median(costs []cost) cost {
	middle := func(of func(cost) int64) int64 {
		var all []int64
		for _, c := range costs {
			all = append(all, of(c))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	return cost{
		time.Duration(middle(func(c cost) int64 { return int64(c.wall) })),
		time.Duration(middle(func(c cost) int64 { return int64(c.cpu) })),
		middle(func(c cost) int64 { return c.rss }),
	}
}

func measure(way, in, out string) (cost, error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return cost{}, err
	}
	cmd := exec.Command("/proc/self/exe", "--way", way, in, out)
	cmd.Stderr = os.Stderr
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return cost{}, fmt.Errorf("%s: %w", way, err)
	}
	wall := time.Since(start)
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return cost{}, errors.New("no resource usage")
	}
	return cost{wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), usage.Maxrss << 10}, nil
}

func inject(in, out string) error {
	files, err := readFiles(in)
	if err != nil {
		return err
	}
	result, err := generate.Inject(context.Background(), files, options())
	if err != nil {
		return err
	}
	return writeFiles(result, out)
}

func remove(in, out string) error {
	files, err := readFiles(in)
	if err != nil {
		return err
	}
	result, err := generate.Remove(files, options())
	if err != nil {
		return err
	}
	return writeFiles(result, out)
}

func options() generate.Options {
	return generate.Options{
		RuntimeClasses: generate.RuntimeClasses, Namespace: "default",
		Images: generate.Images{Initializer: "portcullis.dev/initializer:1", Meshproxy: "portcullis.dev/meshproxy:1"},
		Policy: generate.FixedPolicy("package agent_policy\n" + strings.Repeat("# a rule of the agent's policy\n", 20)),
	}
}

func readFiles(in string) ([]generate.File, error) {
	paths, err := filepath.Glob(filepath.Join(in, "*.yaml"))
	if err != nil {
		return nil, err
	}
	files := make([]generate.File, len(paths))
	for i, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		files[i] = generate.File{Name: path, Text: text}
	}
	generate.BoundMemory(files) // as the command does
	return files, nil
}

// writeFiles writes as the other way does. The command makes sure that they are on the disk, which is the disk's speed.
func writeFiles(result *generate.Result, out string) error {
	for _, f := range result.Files {
		if err := os.WriteFile(filepath.Join(out, filepath.Base(f.Name)), f.Text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func reemit(in, out string) error {
	paths, err := filepath.Glob(filepath.Join(in, "*.yaml"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		decoder, encoder := yaml.NewDecoder(bytes.NewReader(text)), yaml.NewEncoder(&b)
		encoder.SetIndent(2)
		for {
			var document yaml.Node
			err := decoder.Decode(&document)
			if errors.Is(err, io.EOF) {
				break
			}
			if err == nil {
				err = encoder.Encode(&document)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		if err := encoder.Close(); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, filepath.Base(path)), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// makeFiles writes documents of some 10 KB, as a chart of many services is rendered to.
func makeFiles(folder string, documents, files, share int) (size int64, err error) {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return 0, err
	}
	random := rand.New(rand.NewPCG(1, uint64(share)))
	for file := range files {
		var b bytes.Buffer
		for n := file * documents / files; n < (file+1)*documents/files; n++ {
			b.WriteString("---\n")
			switch kind := random.IntN(100); {
			case kind < share:
				writePods(&b, random, n, "kata-qemu-snp")
			case kind < share+25:
				writePods(&b, random, n, "")
			case kind < share+40:
				fmt.Fprintf(&b, service, n, n)
			default:
				writeConfig(&b, random, n)
			}
		}
		size += int64(b.Len())
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("%03d.yaml", file)), b.Bytes(), 0o644); err != nil {
			return 0, err
		}
	}
	return size, nil
}

const service = `apiVersion: v1
kind: Service
metadata:
  name: service-%d
spec:
  selector:
    app.kubernetes.io/instance: app-%d
  ports:
    - name: http
      port: 80
      targetPort: http
`

func writePods(b *bytes.Buffer, random *rand.Rand, n int, class string) {
	fmt.Fprintf(b, "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: app-%d\n  labels: &labels\n    app.kubernetes.io/instance: app-%d\n", n, n)
	if class != "" {
		b.WriteString("  annotations:\n    # the mesh\n    contrast.edgeless.systems/servicemesh-ingress: web#8080#false\n")
	}
	fmt.Fprintf(b, "spec:\n  replicas: 3\n  selector:\n    matchLabels:\n      app.kubernetes.io/instance: app-%d\n  template:\n    metadata:\n      labels: *labels\n    spec:\n", n)
	if class != "" {
		fmt.Fprintf(b, "      runtimeClassName: %s\n", class)
	}
	b.WriteString("      containers:\n")
	for c := range 4 {
		fmt.Fprintf(b, "        - name: c%d\n          image: registry.example/team/app-%d:%d.%d.%d # pinned by the release\n          args:\n            - --listen=:8080\n            - --log-level=info\n          env:\n",
			c, n, random.IntN(9), random.IntN(9), random.IntN(9))
		for v := range 25 {
			fmt.Fprintf(b, "            - name: SETTING_%d\n              value: %q\n", v, fmt.Sprintf("value-%d-%d", v, random.IntN(1<<30)))
		}
		b.WriteString("          ports:\n            - containerPort: 8080\n              name: http\n          readinessProbe:\n            httpGet:\n              path: /healthz\n              port: 8080\n            periodSeconds: 5\n          resources:\n            limits: {cpu: 500m, memory: 256Mi}\n")
	}
	b.WriteString("      volumes:\n        - name: cache\n          emptyDir: {}\n")
}

func writeConfig(b *bytes.Buffer, random *rand.Rand, n int) {
	fmt.Fprintf(b, "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: config-%d\ndata:\n", n)
	for k := range 8 {
		fmt.Fprintf(b, "  file-%d.json: |\n", k)
		for l := range 42 {
			line, _ := json.Marshal(map[string]int{"line": l, "value": random.IntN(1 << 40)})
			fmt.Fprintf(b, "    %s,\n", line)
		}
	}
}
