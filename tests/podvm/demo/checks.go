package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"portcullis.dev/portcullis/tests/podvm/kata"
	"portcullis.dev/portcullis/tests/podvm/order"
)

const proxy, initializer = "podvm-meshproxy.service", "podvm-initializer.service"

func (d *demo) awaitMesh(ctx context.Context) error {
	for _, g := range d.guests {
		var e kata.Evidence
		var asked time.Time
		err := until(ctx, 5*time.Minute, func() (err error) {
			asked = time.Now()
			if e, err = g.agent.Show(ctx, proxy, initializer, "podvm-attest.service"); err != nil {
				return err
			}
			if state := e.Units[proxy]["ActiveState"] + "/" + e.Units[proxy]["SubState"]; state != "active/running" {
				return fmt.Errorf("%s of %s is %s: %s", proxy, g.name, state, e.Units[proxy]["StatusText"])
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%w\n%s", err, strings.Join(e.Journal, "\n"))
		}
		// The guest's clock since its start, as the lab's: it was looked at after it was asked for, so this is not too late.
		ready := asked.Add(order.At(e, proxy, order.Active) - time.Duration(e.Uptime*float64(time.Second)))
		say("%s: ready %.1f s after power-on, %.1f s by the guest's clock: %s", g.name, ready.Sub(g.Began).Seconds(),
			order.At(e, proxy, order.Active).Seconds(), e.Units[initializer]["StatusText"])
		d.table.Add(g.name+": the gate", "-", "mesh", e.Guard.State, e.Guard.State == "mesh")
		// The gate is lifted a moment before systemd hears of it.
		knocks := g.watch.Stop()
		before := knocks.Before(ready.Add(-moment))
		answered := before.Answered()
		d.table.Add(g.name+": knocks from power-on until a second before the mesh was ready", "both", "0 answered",
			fmt.Sprintf("%d answered of %s", len(answered), before), len(answered) == 0 && len(before.Timeouts()) > 0)
		bytes := 0
		for _, k := range knocks {
			if k.Bytes != "" {
				bytes++
			}
		}
		d.table.Add(g.name+": plaintext knocks from power-on to now", "both", "0 got a byte", fmt.Sprintf("%d of %d", bytes, len(knocks)), bytes == 0)
	}
	return nil
}

const moment = time.Second

func (d *demo) checkCalls(ctx context.Context) error {
	b, w := d.guests[0], d.guests[1]
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(d.path("verified/mesh-ca.pem"))
	if err != nil {
		return err
	}
	roots.AppendCertsFromPEM(pem)

	// web's workload speaks plain HTTP to its own Envoy; what comes back is billing's answer.
	mark := d.wire.Mark()
	var said string
	err = until(ctx, time.Minute, func() error {
		e, err := w.agent.Show(ctx)
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(e.Containers["caller"].Output), "\n")
		if said = lines[len(lines)-1]; !strings.Contains(said, goods) {
			return errors.New(said)
		}
		return nil
	})
	d.table.Add("web -> billing through 127.137.0.1", "-", "200 OK "+goods, said, err == nil)
	if err := until(ctx, 10*time.Second, func() error {
		if d.wire.SentTLS(mark, w.IPv4, b.IPv4, 8080)+d.wire.SentTLS(mark, w.IPv6, b.IPv6, 8080) == 0 {
			return errors.New("no TLS handshake on the wire")
		}
		return nil
	}); err != nil {
		return err
	}
	if err := d.wire.Sync(ctx, d.owner); err != nil {
		return err
	}
	leaked := d.wire.Saw(mark, goods)
	d.table.Add("the same, seen on the wire", "-", "TLS, no clear text", fmt.Sprintf("TLS, clear text: %t", leaked), !leaked)

	for _, a := range b.Addresses() {
		plain := d.get(ctx, a, nil)
		d.table.Add("billing:8080 (mTLS), plain HTTP", family(a), "not one byte of HTTP", plain, !strings.Contains(plain, "HTTP/1") && !strings.Contains(plain, goods))
		stranger := d.get(ctx, a, &tls.Config{RootCAs: roots, ServerName: "billing-svc"})
		d.table.Add("billing:8080 (mTLS), no client certificate", family(a), "TLS alert", stranger, strings.Contains(stranger, "certificate required"))
	}
	for _, a := range w.Addresses() {
		said := d.get(ctx, a, &tls.Config{RootCAs: roots, ServerName: "web-svc"})
		d.table.Add("web:8080 (#false), TLS under the mesh CA", family(a), "the shop is open", said, strings.Contains(said, "the shop is open"))
	}

	// A workload that goes past its mesh proxy: web's pod is closed but for its egress entries.
	past := fmt.Sprintf("http://%s:%d", d.owner.IPv4, 80)
	listener, err := d.owner.Listen("tcp", net.JoinHostPort(d.owner.IPv4.String(), "80"))
	if err != nil {
		return err
	}
	defer listener.Close()
	arrived := make(chan struct{}, 16)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			arrived <- struct{}{}
			conn.Close()
		}
	}()
	if err := w.agent.Run(ctx, "past", nil, "/usr/bin/kata-agent", "fetch", past); err != nil {
		return err
	}
	err = until(ctx, 30*time.Second, func() error {
		e, err := w.agent.Show(ctx)
		if err != nil {
			return err
		}
		if said = strings.TrimSpace(e.Containers["past"].Output); said == "" {
			return errors.New("nothing yet")
		}
		return nil
	})
	said = strings.Split(said, "\n")[0]
	d.table.Add("web (egress policy closed), past its mesh proxy", "IPv4", "an error, and nobody called", fmt.Sprintf("%s; %d calls", said, len(arrived)),
		err == nil && strings.HasPrefix(said, "error:") && len(arrived) == 0)
	// The control: billing has no egress policy.
	if err := b.agent.Run(ctx, "past", nil, "/usr/bin/kata-agent", "fetch", past); err != nil {
		return err
	}
	select {
	case <-arrived:
		d.table.Add("control: billing (no egress policy), the same", "IPv4", "somebody called", "1 call", true)
	case <-time.After(30 * time.Second):
		d.table.Add("control: billing (no egress policy), the same", "IPv4", "somebody called", "nobody", false)
	}

	// The workload's own copy of its credentials, in the volume that generate asked for.
	e, err := b.agent.Show(ctx)
	if err != nil {
		return err
	}
	d.table.Add("billing: /contrast of its container", "-", "key.pem among it", strings.Join(e.Volume, " "), slices.Contains(e.Volume, "key.pem"))
	return nil
}

// get makes one connection and asks for a page, in plaintext or over TLS, and says in a line what came of it.
func (d *demo) get(ctx context.Context, a netip.Addr, config *tls.Config) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := d.owner.Dial(ctx, "tcp", netip.AddrPortFrom(a, 8080).String())
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	if config != nil {
		c := tls.Client(conn, config)
		if err := c.HandshakeContext(ctx); err != nil {
			return "tls: " + err.Error()
		}
		conn = c
	}
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")); err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(io.LimitReader(conn, 4096))
	if len(b) == 0 {
		return fmt.Sprint(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\r\n")
	return lines[0] + " ... " + lines[len(lines)-1]
}

func family(a netip.Addr) string {
	if a.Is6() {
		return "IPv6"
	}
	return "IPv4"
}

// memoryLimit is what all parts of the mesh may hold in a guest, of which nothing can be read again from the image.
const memoryLimit = 25 << 10 // KiB

func (d *demo) checkMemory(ctx context.Context) error {
	parts := []string{"podvm-guard.service", "podvm-initdata.service", "podvm-attest.service", initializer, proxy}
	for _, g := range d.guests {
		e, err := g.agent.Show(ctx, parts...)
		if err != nil {
			return err
		}
		sum := 0
		var each []string
		for _, p := range parts {
			if kib := e.Anonymous[p]; kib > 0 {
				sum += kib
				each = append(each, fmt.Sprintf("%s %.1f", strings.TrimSuffix(p, ".service"), float64(kib)/1024))
			}
		}
		say("%s: %s MiB; the machine uses %d of %d MiB", g.name, strings.Join(each, ", "), (e.Total-e.Available)>>10, e.Total>>10)
		d.table.Add(g.name+": anonymous memory of the mesh", "-", "at most 25 MiB", fmt.Sprintf("%.1f MiB", float64(sum)/1024), 0 < sum && sum <= memoryLimit)
	}
	return nil
}
