// Command guard measures how long it takes from starting a program to a guard that stands, beside the two programs that
// people load rules with today, in one interleaved run, each time in a network namespace of its own. See
// docs/performance.md for figures.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

const help = `guard measures how fast the guard is loaded, beside nft -f and iptables-restore.

  go run ./tests/bench/guard [--rounds N] [--podvm-guard PATH]

Each figure is the time from starting the program to its end, in a fresh network namespace. podvm-guard also forbids
mid-stream pickup, flushes conntrack, and reads back and compares what the kernel has; the others do not.
`

// raiseArgument makes this program the smallest one that raises a guard: what the mesh proxy does, without the mesh proxy.
const raiseArgument = "raise-5000-ports"

func main() {
	if len(os.Args) == 2 && os.Args[1] == raiseArgument {
		exitOn(guard.Raise(context.Background(), manyPorts()))
		return
	}
	netlab.Enter()
	exitOn(run(os.Args[1:]))
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "guard: %v\n", err)
		os.Exit(1)
	}
}

// manyPorts are 5,000 ports of which no two are neighbours, so that each is an interval of its own.
func manyPorts() (p guard.Ports) {
	for port := uint16(20000); port < 30000; port += 2 {
		p.PlaintextTCP = append(p.PlaintextTCP, port)
	}
	return p
}

// A candidate is a way to bring rules about: programs that run one after the other.
type candidate struct {
	name     string
	armed    bool // it finds the closed table, as the mesh proxy does
	commands [][]string
	times    []time.Duration
}

func run(args []string) error {
	flags := flag.NewFlagSet("guard", flag.ExitOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), help) }
	rounds := flags.Int("rounds", 50, "")
	podvmGuard := flags.String("podvm-guard", "bin/podvm-guard", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	program, err := filepath.Abs(*podvmGuard)
	if err == nil {
		_, err = os.Stat(program)
	}
	if err != nil {
		return fmt.Errorf("%w (make build makes it; --podvm-guard says where it is)", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/run", "bench")
	if err != nil {
		return err
	}
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		exitOn(os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	closed, err := asText(func(ctx context.Context) error { return guard.Arm(ctx) })
	if err != nil {
		return err
	}
	mesh, err := asText(func(ctx context.Context) error {
		return errors.Join(guard.Arm(ctx), guard.Raise(ctx, manyPorts()))
	})
	if err != nil {
		return err
	}
	boot := []*candidate{
		{name: "podvm-guard close", commands: [][]string{{program, "close"}}},
		{name: "nft -f", commands: [][]string{{"nft", "-f", file("closed.nft", strings.TrimPrefix(closed, replacing))}}},
		{name: "nft -f, replacing the table", commands: [][]string{{"nft", "-f", file("replace.nft", closed)}}},
		{name: "iptables-restore, IPv4 only", commands: [][]string{{"iptables-restore", file("closed.v4", iptables)}}},
		{name: "iptables-restore and ip6tables-restore", commands: [][]string{
			{"iptables-restore", file("closed.v4", iptables)}, {"ip6tables-restore", file("closed.v6", ip6tables)},
		}},
	}
	many := []*candidate{
		{name: "guard.Raise", armed: true, commands: [][]string{{self, raiseArgument}}},
		{name: "nft -f", armed: true, commands: [][]string{{"nft", "-f", file("mesh.nft", mesh)}}},
	}
	for _, version := range [][]string{{"uname", "-r"}, {"nft", "--version"}, {"iptables-restore", "--version"}} {
		out, err := exec.Command(version[0], version[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w", strings.Join(version, " "), err)
		}
		fmt.Print(string(out))
	}
	for _, table := range []struct {
		title      string
		candidates []*candidate
	}{{"Closing the gate at boot", boot}, {"Raising it with 5,000 listed ports", many}} {
		for range *rounds {
			for _, c := range table.candidates { // interleaved: what disturbs one disturbs all
				if err := c.measure(); err != nil {
					return err
				}
			}
		}
		report(table.title, table.candidates)
	}
	return nil
}

const replacing = "add table inet podvm_guard\ndelete table inet podvm_guard\n"

// asText is what nft prints of the table that enter makes, so that nft is given exactly the same rules, in a file that
// replaces the table as the guard does.
func asText(enter func(context.Context) error) (text string, err error) {
	err = inFreshNetwork(func() error {
		if err := enter(context.Background()); err != nil {
			return err
		}
		out, err := exec.Command("nft", "-s", "list", "table", "inet", "podvm_guard").Output()
		text = replacing + string(out)
		return err
	})
	return text, err
}

func (c *candidate) measure() error {
	return inFreshNetwork(func() error {
		if c.armed {
			if err := guard.Arm(context.Background()); err != nil {
				return err
			}
		}
		began := time.Now()
		for _, argv := range c.commands {
			cmd := exec.Command(argv[0], argv[1:]...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, stderr.String())
			}
		}
		c.times = append(c.times, time.Since(began))
		return nil
	})
}

// inFreshNetwork runs f on a thread of its own; the thread and its network namespace end with it.
func inFreshNetwork(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func report(title string, candidates []*candidate) {
	fmt.Printf("\n%s (median of %d)\n", title, len(candidates[0].times))
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "PROGRAM\tMEDIAN\tBEST\t90 %\tMEDIAN / NFT -F\n")
	of := func(c *candidate, share float64) time.Duration {
		sorted := slices.Sorted(slices.Values(c.times))
		return sorted[int(share*float64(len(sorted)-1))]
	}
	nft := of(candidates[1], 0.5)
	for _, c := range candidates {
		fmt.Fprintf(w, "%s\t%.1f ms\t%.1f ms\t%.1f ms\t%.2f\n", c.name,
			ms(of(c, 0.5)), ms(of(c, 0)), ms(of(c, 0.9)), float64(of(c, 0.5))/float64(nft))
	}
	w.Flush()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// The closed state as iptables can say it, one address family at a time.
const (
	iptables = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp ! --tcp-flags SYN,ACK SYN -m conntrack --ctdir REPLY --ctstate ESTABLISHED -j ACCEPT
-A INPUT ! -p tcp -m conntrack --ctdir REPLY --ctstate ESTABLISHED -j ACCEPT
-A INPUT -p icmp -m conntrack --ctstate RELATED -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -p tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP
COMMIT
`
	ip6tables = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp ! --tcp-flags SYN,ACK SYN -m conntrack --ctdir REPLY --ctstate ESTABLISHED -j ACCEPT
-A INPUT ! -p tcp -m conntrack --ctdir REPLY --ctstate ESTABLISHED -j ACCEPT
-A INPUT -p ipv6-icmp -m conntrack --ctstate RELATED -j ACCEPT
-A INPUT -p ipv6-icmp --icmpv6-type 130 -j ACCEPT
-A INPUT -p ipv6-icmp --icmpv6-type 134 -j ACCEPT
-A INPUT -p ipv6-icmp --icmpv6-type 135 -j ACCEPT
-A INPUT -p ipv6-icmp --icmpv6-type 136 -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -p tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP
COMMIT
`
)
