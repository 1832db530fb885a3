package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/tests/netlab"
)

// The workloads' ports in shop.yaml.
const (
	shopPort    = 8080
	metricsPort = 7890
)

// goods is what a workload answers. It must never cross the wire in clear where a mesh was asked for
func goods(name string) string { return "confidential goods of " + name }

// expectation is what a row wants of an outcome.
type expectation struct {
	text string
	met  func(outcome) bool
}

func answers(text string) expectation {
	return expectation{"answer: " + text, func(o outcome) bool { return strings.Contains(o.answer, text) }}
}

var (
	noByte = expectation{"not one byte", func(o outcome) bool { return o.silent }}
	// a mesh port refuses plain HTTP with a TLS alert or without a word
	noPlaintext = expectation{"no plaintext", func(o outcome) bool { return o.silent || o.refused != "" }}
	refusal     = expectation{"refused by TLS", func(o outcome) bool { return o.refused != "" }}
)

// overBoth makes a check over IPv4 and IPv6 at once and adds a row for each.
func (d *demo) overBoth(check string, want expectation, addrs []netip.Addr, probe func(netip.Addr) outcome) {
	seen := make([]outcome, len(addrs))
	var wg sync.WaitGroup
	for i, a := range addrs {
		wg.Go(func() { seen[i] = probe(a) })
	}
	wg.Wait()
	for i, a := range addrs {
		d.table.Add(check, family(a), want.text, seen[i].String(), want.met(seen[i]))
	}
}

// checkReport looks whether the page that verify wrote shows each pod as a member of the mesh, by its policy.
func (d *demo) checkReport() error {
	page, err := os.ReadFile(d.path("report.html"))
	if err != nil {
		return err
	}
	shown := 0
	for name, template := range d.shop.templates {
		document, err := initdata.Decode(template.Annotations[initdata.Annotation])
		if err != nil {
			return fmt.Errorf("initdata of %s: %w", name, err)
		}
		row := fmt.Sprintf("<bdi>%s</bdi>", name)
		policy := fmt.Sprintf("policy <code>%.12s…</code>", initdata.Digest(document))
		if strings.Contains(string(page), row) && strings.Contains(string(page), policy) {
			shown++
		}
	}
	saw := fmt.Sprintf("%d of %d", shown, len(d.shop.templates))
	if strings.Contains(string(page), "Not part of this mesh") {
		saw += ", and strangers"
	}
	want := fmt.Sprintf("%d of %[1]d", len(d.shop.templates))
	d.table.Add("report.html shows the shop's pods by their policies", "-", want, saw, saw == want)
	return nil
}

// checkGate lets a host start a workload without its mesh: listening is all that the workload can do.
func (d *demo) checkGate(ctx context.Context) error {
	pod, err := d.boot(ctx, d.shop, "billing", bootOptions{name: "billing-early", hidden: true})
	if err != nil {
		return err
	}
	defer pod.VM.PowerOff()
	if err := pod.Start(ctx, "billing"); err != nil {
		return err
	}
	if err := d.awaitInside(ctx, pod, goods("billing")); err != nil {
		return err
	}
	if d.broke == "early-gate" {
		if err := openByForce(pod.VM); err != nil {
			return err
		}
	}
	probe := func(a netip.Addr) outcome { return get(ctx, d.owner, netip.AddrPortFrom(a, shopPort), "/", nil) }
	d.overBoth("billing runs, its mesh proxy was never started", noByte, pod.VM.Addresses(), probe)
	// The control: the same probe does get through when the guard is away, so silence was the guard's doing.
	if d.broke != "control" {
		if err := openByForce(pod.VM); err != nil {
			return err
		}
	}
	d.overBoth("control: the same with the guard removed by force", answers(goods("billing")), pod.VM.Addresses(), probe)

	catalog, err := d.boot(ctx, d.shop, "catalog", bootOptions{})
	if err != nil {
		return err
	}
	if err := catalog.Start(ctx, "catalog"); err != nil {
		return err
	}
	if err := d.awaitInside(ctx, catalog, goods("catalog")); err != nil {
		return err
	}
	if d.broke == "no-mesh-gate" {
		if err := openByForce(catalog.VM); err != nil {
			return err
		}
	}
	d.overBoth("catalog has no mesh; before its Initializer", noByte, catalog.VM.Addresses(), probe)
	if d.broke != "no-mesh-initializer" {
		if err := catalog.Start(ctx, "contrast-initializer"); err != nil {
			return err
		}
	}
	d.overBoth("catalog after its Initializer (--no-mesh)", answers(goods("catalog")), catalog.VM.Addresses(), probe)
	return nil
}

// openByForce is what no part of Portcullis does and no host can: root in the guest deletes the guard's table.
func openByForce(vm *netlab.PodVM) error {
	out, err := vm.Command("nft", "delete", "table", "inet", "podvm_guard").CombinedOutput()
	if err != nil && !strings.Contains(string(out), "No such file") {
		return fmt.Errorf("nft delete table: %w: %s", err, out)
	}
	return nil
}

// awaitInside returns when the workload answers inside its own podVM: the gate is for outside.
func (d *demo) awaitInside(ctx context.Context, pod *netlab.Pod, text string) error {
	return until(ctx, func() error {
		o := get(ctx, pod.VM.Host, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), shopPort), "/", nil)
		if !strings.Contains(o.answer, text) {
			return fmt.Errorf("%s inside its podVM: %s", pod.VM.Name, o)
		}
		return nil
	})
}

func (d *demo) checkMesh(ctx context.Context) error {
	roots, err := d.meshCA()
	if err != nil {
		return err
	}
	web, billing, cart := d.pods["web"].VM, d.pods["billing"].VM, d.pods["cart"].VM
	at := func(port uint16, path string, config *tls.Config) func(netip.Addr) outcome {
		return func(a netip.Addr) outcome { return get(ctx, d.owner, netip.AddrPortFrom(a, port), path, config) }
	}
	outside := client(roots, "web-svc", nil)
	if d.broke == "trust" {
		outside.RootCAs = x509.NewCertPool()
	}

	d.overBoth("web:8080 (#false), no client certificate, mesh CA trusted", answers(goods("web")), web.Addresses(), at(shopPort, "/", outside))
	d.overBoth("web:8080 (#false) through portcullis connect", answers(goods("web")), web.Addresses(), func(a netip.Addr) outcome {
		return d.connect(ctx, netip.AddrPortFrom(a, shopPort), "web-svc")
	})
	d.overBoth("web:7890 (#true), plain HTTP", answers("shop_requests_total"), web.Addresses(), at(metricsPort, "/metrics", nil))
	d.overBoth("web:8080, plain HTTP", noPlaintext, web.Addresses(), at(shopPort, "/", nil))
	d.overBoth("billing:8080 (mTLS), plain HTTP", noPlaintext, billing.Addresses(), at(shopPort, "/", nil))
	d.overBoth("cart:8080 (mTLS), plain HTTP", noPlaintext, cart.Addresses(), at(shopPort, "/", nil))
	d.overBoth("billing:8080 (mTLS), no client certificate", refusal, billing.Addresses(), at(shopPort, "", client(roots, "billing-svc", nil)))
	d.overBoth("cart:8080 (mTLS), no client certificate", refusal, cart.Addresses(), at(shopPort, "", client(roots, "cart-svc", nil)))

	for _, v6 := range []bool{false, true} {
		d.dns.Answer(!v6, v6)
		for _, backend := range []string{"billing", "cart"} {
			if err := d.checkCall(ctx, backend, v6, outside); err != nil {
				return err
			}
		}
	}

	// What a workload does that was lied to, or broken into: it calls somebody without its mesh proxy.
	past := func(from *netlab.PodVM) func(netip.Addr) outcome {
		return func(a netip.Addr) outcome { return get(ctx, from.Host, netip.AddrPortFrom(a, shopPort), "/", nil) }
	}
	catalog, free := d.pods["catalog"].VM, billing
	if d.broke == "lock-control" {
		free = web
	}
	d.overBoth("web (egress policy closed) -> catalog, past its mesh proxy", noByte, catalog.Addresses(), past(web))
	d.overBoth("control: billing (no egress policy) -> catalog", answers(goods("catalog")), catalog.Addresses(), past(free))
	return nil
}

// checkCall has web call a backend through both mesh proxies, over the address family that DNS tells of.
func (d *demo) checkCall(ctx context.Context, backend string, v6 bool, outside *tls.Config) error {
	web, vm := d.pods["web"].VM, d.pods[backend].VM
	from, to := web.IPv4, vm.IPv4
	if v6 {
		from, to = web.IPv6, vm.IPv6
	}
	want := answers(goods(backend))
	var seen outcome
	mark, handshakes := d.wire.Mark(), 0
	// Envoy learns of a change of DNS within a second or two.
	bounded, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	err := until(bounded, func() error {
		seen = get(ctx, d.owner, netip.AddrPortFrom(web.IPv4, shopPort), "/ask/"+backend, outside)
		if err := d.wire.Sync(ctx, d.owner); err != nil {
			return errors.Join(errGiveUp, err)
		}
		handshakes = d.wire.SentTLS(mark, from, to, shopPort)
		if want.met(seen) && handshakes > 0 {
			return nil
		}
		if d.broke != "" && !want.met(seen) && seen.answer == "" {
			return errGiveUp
		}
		return fmt.Errorf("%s, %d TLS handshakes from %s to %s", seen, handshakes, from, to)
	})
	if ctx.Err() != nil {
		return err
	}
	leaked := d.wire.Saw(mark, goods(backend))
	if d.broke == "wire" {
		get(ctx, d.owner, netip.AddrPortFrom(d.pods["catalog"].VM.IPv4, shopPort), "/", nil)
		if err := d.wire.Sync(ctx, d.owner); err != nil {
			return err
		}
		leaked = d.wire.Saw(mark, goods("catalog"))
	}
	d.table.Add("web -> "+backend+" through 127.137.0.x", family(to), want.text, seen.String(), err == nil)
	saw := fmt.Sprintf("%d TLS records, clear text: %t", handshakes, leaked)
	d.table.Add("the same, seen on the wire", family(to), "TLS handshake, no clear text", saw, handshakes > 0 && !leaked)
	return nil
}

// checkStrangers brings in two podVMs that no honest manifest admits.
func (d *demo) checkStrangers(ctx context.Context) error {
	return errors.Join(d.checkOtherMesh(ctx), d.checkWrongMeasurement(ctx))
}

// checkOtherMesh: a host runs a Coordinator of its own, on genuine hardware, with the very same manifest but its own
// owner's key, and leads a pod to it. The pod's certificate then names cart-svc, under another mesh CA.
func (d *demo) checkOtherMesh(ctx context.Context) error {
	other, err := d.deploy(ctx, "other")
	if err != nil {
		return err
	}
	coordinator, err := d.boot(ctx, other, "coordinator", bootOptions{name: "coordinator-b", hidden: true})
	if err != nil {
		return err
	}
	if err := coordinator.Run(ctx); err != nil {
		return err
	}
	if err := d.awaitCoordinator(ctx, coordinator); err != nil {
		return err
	}
	if err := d.setManifest(ctx, other, coordinator.VM); err != nil {
		return err
	}
	if d.broke != "other-mesh" {
		d.dns.Set("coordinator", coordinator.VM.IPv4, coordinator.VM.IPv6)
	}
	stranger, err := d.boot(ctx, other, "cart", bootOptions{name: "stranger", hidden: true})
	if err != nil {
		return err
	}
	err = stranger.Start(ctx, "contrast-initializer")
	honest := d.pods["coordinator"].VM
	d.dns.Set("coordinator", honest.IPv4, honest.IPv6)
	if err != nil {
		return err
	}
	cert, err := credentials(stranger.VM)
	if err != nil {
		return err
	}
	roots, err := d.meshCA()
	if err != nil {
		return err
	}
	d.overBoth("billing:8080, certificate for cart-svc of another Coordinator", refusal, d.pods["billing"].VM.Addresses(),
		func(a netip.Addr) outcome {
			return get(ctx, stranger.VM.Host, netip.AddrPortFrom(a, shopPort), "", client(roots, "billing-svc", cert))
		})
	// The control: with a certificate of this mesh the same connection is let in.
	own, err := credentials(d.pods["cart"].VM)
	if err != nil {
		return err
	}
	d.overBoth("control: billing:8080, certificate for cart-svc of this mesh", answers(goods("billing")), d.pods["billing"].VM.Addresses(),
		func(a netip.Addr) outcome {
			return get(ctx, stranger.VM.Host, netip.AddrPortFrom(a, shopPort), "/", client(roots, "billing-svc", own))
		})
	return nil
}

// checkWrongMeasurement: the host launches another image with the right policy.
func (d *demo) checkWrongMeasurement(ctx context.Context) error {
	o := bootOptions{name: "impostor", measurement: strings.Repeat("5a", 48), hidden: true}
	if d.broke == "measurement" {
		o.measurement = ""
	}
	pod, err := d.boot(ctx, d.shop, "billing", o)
	if err != nil {
		return err
	}
	if err := pod.Start(ctx, "billing"); err != nil {
		return err
	}
	// The Initializer never gives up, so its start-up probe never succeeds: it is left to try until it was refused.
	starting, stop := context.WithCancel(ctx)
	defer stop()
	started := make(chan error, 1)
	go func() { started <- pod.Start(starting, "contrast-initializer") }()
	var line string
	err = until(ctx, func() error {
		select {
		case err := <-started:
			return errors.Join(errGiveUp, err)
		default:
		}
		b, err := os.ReadFile(d.path("logs/coordinator.coordinator.log"))
		if err != nil {
			return err
		}
		for l := range strings.Lines(string(b)) {
			if strings.Contains(l, `"field":"MEASUREMENT"`) {
				line = l
				return nil
			}
		}
		return errors.New("the Coordinator has not refused the impostor yet")
	})
	if ctx.Err() != nil {
		return err
	}
	stop()
	saw := "no such line"
	if line != "" {
		saw = `"field":"MEASUREMENT","got":"5a5a..."`
	}
	d.table.Add("podVM with another measurement, in the Coordinator's log", "-", "refused, field MEASUREMENT", saw,
		strings.Contains(line, strings.Repeat("5a", 48)))
	if d.broke == "measurement" {
		if err := openByForce(pod.VM); err != nil {
			return err
		}
	}
	_, err = credentials(pod.VM)
	saw = "no certificate"
	if err == nil {
		saw = "a certificate"
	}
	d.table.Add("podVM with another measurement, in its /contrast", "-", "no certificate", saw, err != nil)
	d.overBoth("podVM with another measurement, from outside", noByte, pod.VM.Addresses(), func(a netip.Addr) outcome {
		return get(ctx, d.owner, netip.AddrPortFrom(a, shopPort), "/", nil)
	})
	return nil
}

// checkFailure kills web's Envoy while its supervisor is stopped, so that nothing can react: the rules alone must hold.
func (d *demo) checkFailure(ctx context.Context) error {
	roots, err := d.meshCA()
	if err != nil {
		return err
	}
	pod := d.pods["billing"]
	cert, err := credentials(d.pods["cart"].VM)
	if err != nil {
		return err
	}
	mtls := func(a netip.Addr) outcome {
		return get(ctx, d.owner, netip.AddrPortFrom(a, shopPort), "/", client(roots, "billing-svc", cert))
	}
	plain := func(a netip.Addr) outcome { return get(ctx, d.owner, netip.AddrPortFrom(a, shopPort), "/", nil) }
	proxy := pod.Container("contrast-service-mesh")
	if err := proxy.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	envoys, err := pod.VM.Processes("envoy")
	if err != nil {
		return err
	}
	if len(envoys) != 1 {
		return fmt.Errorf("billing runs %d Envoys, want 1", len(envoys))
	}
	if d.broke != "envoy-alive" {
		if err := d.kill(ctx, pod.VM, envoys[0]); err != nil {
			return err
		}
	} else if err := proxy.Signal(syscall.SIGCONT); err != nil {
		return err
	}
	if d.broke == "envoy-killed" {
		if err := openByForce(pod.VM); err != nil {
			return err
		}
	}
	d.overBoth("billing:8080, Envoy killed, plain HTTP", noByte, pod.VM.Addresses(), plain)
	d.overBoth("billing:8080, Envoy killed, mTLS", noByte, pod.VM.Addresses(), mtls)
	if d.broke == "envoy-killed" {
		return nil
	}
	patience := 20 * time.Second
	if d.broke == "supervisor" {
		patience = time.Second
	} else if err := proxy.Signal(syscall.SIGCONT); err != nil {
		return err
	}
	want := answers(goods("billing"))
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.overBoth("billing:8080, supervisor runs again, mTLS", want, pod.VM.Addresses(), func(a netip.Addr) (o outcome) {
		until(bounded, func() error {
			if o = mtls(a); !want.met(o) {
				return errors.New(o.String())
			}
			return nil
		})
		return o
	})
	return nil
}

// kill kills Envoy and returns when its listener is gone: the kernel takes a moment to close what a killed process had open.
func (d *demo) kill(ctx context.Context, vm *netlab.PodVM, envoy *os.Process) error {
	if err := envoy.Kill(); err != nil {
		return err
	}
	return until(ctx, func() error {
		listens, err := vm.Listens(guard.PortIngress)
		if err == nil && listens {
			err = errors.New("the listener of the killed Envoy is still there")
		}
		return err
	})
}

// connect asks a workload through the port that portcullis connect opens on the data owner's machine.
func (d *demo) connect(ctx context.Context, to netip.AddrPort, identity string) outcome {
	if d.broke == "trust" {
		identity = "cart-svc"
	}
	cmd := d.owner.Command(binary("portcullis"), "connect", "--json",
		"--mesh-ca", filepath.Join(d.shop.dir, "verified/mesh-ca.pem"), "--identity", identity, to.String())
	var refused strings.Builder
	cmd.Stderr = &refused
	out, err := cmd.StdoutPipe()
	if err != nil {
		return outcome{text: err.Error()}
	}
	if err := cmd.Start(); err != nil {
		return outcome{text: err.Error()}
	}
	var opened struct{ Local netip.AddrPort }
	err = json.NewDecoder(out).Decode(&opened)
	o := outcome{}
	if err == nil {
		o = get(ctx, d.owner, opened.Local, "/", nil)
	}
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait()
	if err != nil {
		cause, _, _ := strings.Cut(refused.String(), "\n") // a hint follows
		return outcome{text: cause}
	}
	return o
}

// meshCA is what the data owner pinned: portcullis verify wrote it.
func (d *demo) meshCA() (*x509.CertPool, error) {
	b, err := os.ReadFile(filepath.Join(d.shop.dir, "verified/mesh-ca.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b) {
		return nil, errors.New("mesh-ca.pem has no certificate")
	}
	return roots, nil
}

// credentials reads a pod's mesh credentials, as a process of the pod could.
func credentials(vm *netlab.PodVM) (*tls.Certificate, error) {
	var files [2][]byte
	for i, name := range []string{"certChain.pem", "key.pem"} {
		b, err := vm.Command("cat", "/run/volumes/contrast-secrets/tls-config/"+name).Output()
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", name, vm.Name, err)
		}
		files[i] = b
	}
	cert, err := tls.X509KeyPair(files[0], files[1])
	return &cert, err
}

func (d *demo) healthy(ctx context.Context, vm *netlab.PodVM) error {
	o := get(ctx, d.owner, netip.AddrPortFrom(vm.IPv4, api.Port), api.PathHealth, nil)
	if o.answer == "" {
		return fmt.Errorf("the Coordinator's %s: %s", api.PathHealth, o)
	}
	return nil
}

var errGiveUp = errors.New("given up")

// until calls f again and again until it succeeds, gives up, or ctx ends; the error is f's last.
func until(ctx context.Context, f func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil || errors.Is(err, errGiveUp) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
