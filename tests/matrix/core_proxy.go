package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"portcullis.dev/portcullis/guest/guard"
)

// What a peer tries in most states. The mesh state lets in what is named plaintext, so these are apart.
var (
	unnamed = []Attempt{TCP(portApp), TCP(portNoClientAuth), UDP(portApp)}
	named   = []Attempt{TCP(portPlaintext), UDP(portPlaintextUDP)}
	// own is what the pod itself does.
	own = []Attempt{PodTCP(), PodUDP(), PodDNS()}
)

func with(lists ...[]Attempt) []Attempt {
	var out []Attempt
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

const (
	lifeOfProxy   = "The life of the mesh proxy"
	noticesApps   = "applications count connections and datagrams; peer and wire look for their secrets"
	controlDirect = "the same connections and datagrams get the secrets once the guard's table is deleted"
)

// proxyRows are about the mesh proxy: not there yet, there, and gone in every way.
func proxyRows() []Row {
	rows := []Row{
		{
			Name:     "proxy-never-started",
			MustNot:  "a workload that started first is reached in a podVM whose mesh proxy never starts",
			Weakness: everythingComesIn,
			Blocked:  with(unnamed, named, []Attempt{Handshake(portApp)}),
			Works:    own,
		},
		{
			Name:     "proxy-starting",
			MustNot:  "a peer is let in while Envoy is being started",
			Weakness: everythingComesIn,
			Enter:    func(l *Lab) { l.startHalfway() },
			Blocked:  with(unnamed, named, []Attempt{Handshake(portApp)}),
			Works:    own,
		},
		{
			Name:     "proxy-listening-not-lifted",
			MustNot:  "a peer is let in when Envoy listens but nobody has checked yet that it is LIVE",
			Weakness: everythingComesIn,
			Enter: func(l *Lab) {
				l.startHalfway()
				l.Stop("meshproxy")
				l.Signal("envoy", syscall.SIGCONT)
				l.Await("Envoy to listen", func() bool {
					listens, err := l.Pod.Listens(guard.PortIngress)
					return err == nil && listens
				})
			},
			Blocked: with(unnamed, named, []Attempt{Handshake(portApp)}),
			Works:   own,
			Run: func(l *Lab) {
				l.Signal("meshproxy", syscall.SIGCONT)
				l.proxy.AwaitReady(1)
				l.Works(MutualTLS(portApp))
			},
		},
		{
			Name:     "proxy-live",
			MustNot:  "with a LIVE Envoy, anything but TLS of a mesh member reaches a port that is not named; what is named does not work",
			Weakness: everythingComesIn,
			Enter:    func(l *Lab) { l.StartReady() },
			Blocked:  unnamed,
			Works: with(own, named, []Attempt{
				MutualTLS(portApp), MutualTLS(portNoClientAuth), StrangersTLS(portNoClientAuth), PodLoopback(portApp),
			}),
			Run: func(l *Lab) { l.Blocked(StrangersTLS(portApp)) },
		},
		{
			Name:     "proxy-killed",
			MustNot:  "mesh proxy and Envoy are killed, the mesh state stays, and a peer reaches an application past them",
			Weakness: everythingComesIn,
			Enter:    func(l *Lab) { l.StartReady(); l.KillProxy() },
			Blocked:  with(unnamed, []Attempt{Handshake(portApp)}),
			Works:    own,
		},
		{
			Name:     "envoy-killed-unnoticed",
			MustNot:  "Envoy is killed while its supervisor is stopped and cannot notice, and a peer gets past it",
			Weakness: everythingComesIn,
			Enter: func(l *Lab) {
				l.StartReady()
				l.Stop("meshproxy")
				l.Signal("envoy", syscall.SIGKILL)
				l.awaitNoListener(guard.PortIngress)
			},
			Blocked: with(unnamed, []Attempt{Handshake(portApp)}),
			Works:   own,
			Run: func(l *Lab) {
				l.Signal("meshproxy", syscall.SIGCONT)
				l.proxy.AwaitReady(2)
				l.Works(MutualTLS(portApp))
			},
		},
		{
			Name:     "proxy-stopped",
			MustNot:  "Envoy and its supervisor are stopped (SIGSTOP), and a peer whose connection the kernel accepts gets a byte",
			Weakness: everythingComesIn,
			Enter: func(l *Lab) {
				l.StartReady()
				l.Stop("meshproxy")
				l.Stop("envoy")
			},
			Blocked: unnamed,
			Works:   own,
			Run: func(l *Lab) {
				l.Signal("envoy", syscall.SIGCONT)
				l.Signal("meshproxy", syscall.SIGCONT)
				l.Works(MutualTLS(portApp))
			},
		},
		{
			Name:     "proxy-restarting",
			MustNot:  "Envoy dies again and again, and in one of the moments between a peer reaches an application",
			Notices:  "peers connect all the time, some hundred times a second; " + noticesApps,
			Weakness: everythingComesIn,
			Run: func(l *Lab) {
				p := l.StartReady()
				stop := l.storm(portApp)
				for n := 2; n <= 4; n++ {
					l.Signal("envoy", syscall.SIGKILL)
					p.AwaitReady(n)
				}
				stop()
				l.Works(MutualTLS(portApp))
				l.RemoveGuard()
				l.Control(TCP(portApp))
			},
		},
		{
			Name:     "squatted-before-start",
			MustNot:  "an ordinary user takes the proxy's port before it starts, and the gate is lifted for the squatter",
			Weakness: everythingComesIn,
			Enter: func(l *Lab) {
				l.squat(false, guard.PortIngress)
				p := l.StartProxy()
				l.Await("the mesh proxy to give up", func() bool {
					select {
					case <-p.container.Done():
						return true
					default:
						return false
					}
				})
			},
			Blocked: with(unnamed, named, []Attempt{squatted}),
			Works:   own,
		},
		{
			Name:     "squatted-by-user",
			MustNot:  "Envoy is dead, an unprivileged process listens on its ports, and a peer speaks with it or past it",
			Weakness: everythingComesIn,
			Enter: func(l *Lab) {
				l.StartReady()
				l.KillProxy()
				l.squat(false, guard.PortIngress, guard.PortIngressNoClientAuth)
			},
			Blocked: with(unnamed, []Attempt{squatted}),
			Works:   own,
		},
		{
			Name: "squatted-by-root-without-mark",
			MustNot: "Envoy is dead, a root process with NET_RAW listens on its ports, transparent but without Envoy's mark, " +
				"and a peer speaks with it",
			Control: "a transparent listener with the mark does get the same peer's connections; " +
				"without the guard the squatter answers who dials it",
			Weakness: marksDoNotMatter,
			Enter: func(l *Lab) {
				l.StartReady()
				l.KillProxy()
				l.squat(true, guard.PortIngress, guard.PortIngressNoClientAuth)
			},
			Blocked: with(unnamed, []Attempt{squatted}),
			Works:   own,
			Run: func(l *Lab) {
				l.unsquat()
				stop := l.standIn(guard.PortIngress, guard.MarkIngress)
				l.Control(standInAnswers)
				stop()
				l.squat(true, guard.PortIngress, guard.PortIngressNoClientAuth) // for the control without the guard
			},
		},
	}
	for i := range rows {
		rows[i].Group = lifeOfProxy
		if rows[i].Notices == "" {
			rows[i].Notices = noticesApps
		}
		if rows[i].Control == "" {
			rows[i].Control = controlDirect
		}
	}
	return rows
}

// startHalfway starts a mesh proxy and stops its Envoy before it listens.
func (l *Lab) startHalfway(flags ...string) {
	for range 10 {
		l.StartProxy(flags...)
		l.Await("an Envoy", func() bool { return l.Runs("envoy") })
		l.Stop("envoy")
		listens, err := l.Pod.Listens(guard.PortIngress)
		l.must(err)
		if !listens {
			return
		}
		l.KillProxy() // it was faster
	}
	l.Brokenf("no Envoy could be stopped before it listened")
}

// squatted connects to the application's port and to the proxy's, and wants a squatter's greeting.
var squatted = Attempt{"a connection to a squatter", func(l *Lab, wait Wait) string {
	var all sync.WaitGroup
	var mu sync.Mutex
	got := ""
	for _, port := range []uint16{portApp, portNoClientAuth, guard.PortIngress, guard.PortIngressNoClientAuth} {
		all.Go(func() {
			if l.reads(netip.AddrPortFrom(l.PodAddr(), port), squatterSecret, wait) {
				mu.Lock()
				defer mu.Unlock()
				got = fmt.Sprintf("the squatter's greeting at port %d", port)
			}
		})
	}
	all.Wait()
	return got
}}

// reads connects from the peer and says whether it is greeted with text.
func (l *Lab) reads(to netip.AddrPort, text string, wait Wait) bool {
	deadline := time.Now().Add(wait)
	c, err := dial(l.Peer, "tcp", to, wait)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(deadline)
	b := make([]byte, len(text))
	_, err = io.ReadFull(c, b)
	return err == nil && bytes.Equal(b, []byte(text))
}

const standInSecret = "greeting-of-the-stand-in"

// standIn plays Envoy's listener, transparent and with its mark, where a row is about TCP and not about Envoy. It greets and
// closes each connection at once.
func (l *Lab) standIn(port uint16, mark int) (stop func()) {
	var stopped func()
	l.must(l.Pod.Do(func() error {
		ln, err := listenMarked(fmt.Sprint(port), true, mark)
		if err != nil {
			return err
		}
		stopped = func() { ln.Close() }
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, standInSecret)
				c.Close()
			}
		}()
		return nil
	}))
	l.cleanup(stopped)
	return stopped
}

var standInAnswers = Attempt{"a connection to a marked listener", func(l *Lab, wait Wait) string {
	if l.reads(netip.AddrPortFrom(l.PodAddr(), portApp), standInSecret, wait) {
		return "its greeting"
	}
	return ""
}}

// storm connects to a port of the pod from the peer all the time, and sends it datagrams, until it is told to stop. The
// application there must not be reached.
func (l *Lab) storm(port uint16) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	to := netip.AddrPortFrom(l.PodAddr(), port)
	tcp, udp := l.App("tcp", port), l.App("udp", port)
	var tried atomic.Int64
	tcpBefore, udpBefore := tcp.From(l.Peer), udp.From(l.Peer)
	for range 8 {
		all.Go(func() {
			for ctx.Err() == nil {
				tried.Add(1)
				c, err := dial(l.Peer, "tcp", to, 40*time.Millisecond)
				if err != nil {
					continue
				}
				c.SetDeadline(time.Now().Add(40 * time.Millisecond))
				io.WriteString(c, "storm\n")
				got, _ := io.ReadAll(io.LimitReader(c, int64(len(tcp.Secret))))
				c.Close()
				if strings.HasPrefix(string(got), tcp.Secret[:6]) {
					l.Failf("in the storm a connection got %q", got)
				}
			}
		})
	}
	all.Go(func() {
		c, err := dial(l.Peer, "udp", to, patience)
		if err != nil {
			return
		}
		defer c.Close()
		for ctx.Err() == nil {
			tried.Add(1)
			io.WriteString(c, "storm\n")
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			c.Read(make([]byte, 100))
		}
	})
	return func() {
		cancel()
		all.Wait()
		l.Notef("%d connections and datagrams tried in the storm", tried.Load())
		if tried.Load() < 100 {
			l.Brokenf("a storm of %d is none", tried.Load())
		}
		if n := tcp.From(l.Peer) - tcpBefore; n > 0 {
			l.Failf("in the storm the application took %d connections", n)
		}
		if n := udp.From(l.Peer) - udpBefore; n > 0 {
			l.Failf("in the storm the application got %d datagrams", n)
		}
	}
}
