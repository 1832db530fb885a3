package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

// A conntrack helper reads what FTP, TFTP, IRC or SIP say, and expects the connection that they speak of: its first packet is
// then RELATED instead of NEW. Whoever accepts RELATED lets a peer in wherever it talks the pod into an announcement.
func helperRows() []Row {
	var rows []Row
	for _, by := range []struct {
		suffix string
		load   func(l *Lab)
	}{
		{"nft", func(l *Lab) {
			l.nft(`table inet helpers
delete table inet helpers
table inet helpers {
	ct helper ftp { type "ftp" protocol tcp; }
	ct helper irc { type "irc" protocol tcp; }
	ct helper tftp { type "tftp" protocol udp; }
	chain in { type filter hook prerouting priority -190; tcp dport 2121 ct helper set "ftp"; }
	chain out {
		type filter hook output priority -190;
		tcp dport 21 ct helper set "ftp"; tcp dport 6667 ct helper set "irc"; udp dport 69 ct helper set "tftp";
	}
}`)
		}},
		{"iptables-legacy", func(l *Lab) { l.iptables(legacy, helperRules) }},
		{"iptables-nft", func(l *Lab) { l.iptables(viaNFT, helperRules) }},
	} {
		rows = append(rows, Row{
			Name:    "ct-helper-" + by.suffix,
			MustNot: "a connection that a conntrack helper (FTP active and passive, TFTP, IRC) expects gets in as RELATED",
			Notices: "conntrack is seen to expect the connection to the application; the application counts, the wire is watched for its secret",
			Control: "under rules that drop everything but ESTABLISHED and RELATED, the same connection does get in",
			Run: func(l *Lab) {
				if by.suffix == "nft" {
					l.helpers(by.load, with(announced, []Attempt{announcedIRC}))
					return
				}
				l.helpers(by.load, announced)
			},
		})
	}
	return grouped("Conntrack helpers", rows)
}

const helperRules = `*raw
-A PREROUTING -p tcp --dport 2121 -j CT --helper ftp
-A OUTPUT -p tcp --dport 21 -j CT --helper ftp
-A OUTPUT -p udp --dport 69 -j CT --helper tftp
COMMIT`

// portFTP is where the pod's FTP server listens; the configuration names it.
const portFTP uint16 = 2121

func (l *Lab) helpers(load func(*Lab), attempts []Attempt) {
	load(l)
	outgoing := slices.DeleteFunc(slices.Clone(attempts), func(a Attempt) bool { return a.Name == announcedPassive.Name })
	one := func(a []Attempt) { // one at a time: an expectation is used up by what comes first
		for _, a := range a {
			l.Blocked(a)
		}
	}
	one(in("closed", outgoing))
	l.Raise(guard.Ports{PlaintextTCP: []uint16{portPlaintext, portFTP}})
	one(in("mesh", attempts))
	l.RemoveGuard()
	l.nft(`table inet naive { chain in {
	type filter hook input priority 0; policy drop; iiftype loopback accept; ct state established,related accept; tcp dport 2121 accept;
	icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept;
}; }`)
	for _, a := range attempts {
		l.Control(a)
	}
}

var (
	announcedPassive = Attempt{"the connection that the pod's FTP server announced", func(l *Lab, wait Wait) string {
		return l.announcePassive(wait)
	}}
	announcedActive = Attempt{"the connection that the pod's FTP client announced", func(l *Lab, wait Wait) string {
		return l.announce(21, map[Family]string{
			IPv4: fmt.Sprintf("PORT %s\r\n", commas(l.Pod.IPv4, portApp)),
			IPv6: fmt.Sprintf("EPRT |2|%s|%d|\r\n", l.Pod.IPv6, portApp),
		}[l.Family], wait)
	}}
	announcedTFTP = Attempt{"the datagram that the pod's TFTP request announced", func(l *Lab, wait Wait) string {
		from, to := addrPort(l.PodAddr(), portApp), addrPort(l.PeerAddr(), 69)
		l.must(l.Pod.Do(func() error { return sendRaw(Datagram(from, to, []byte("\x00\x01file\x00octet\x00"))) }))
		l.expects("udp", portApp)
		return l.AskUDP(l.Peer, addrPort(l.PodAddr(), portApp), l.App("udp", portApp), wait)
	}}
	announcedIRC = Attempt{"the connection that the pod's IRC client announced", func(l *Lab, wait Wait) string {
		if l.Family == IPv6 {
			return announcedActive.Try(l, wait) // the kernel's IRC helper knows IPv4 only
		}
		a := l.Pod.IPv4.As4()
		number := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
		return l.announce(6667, fmt.Sprintf("PRIVMSG peer :\x01DCC SEND file %d %d 100\x01\r\n", number, portApp), wait)
	}}
	announced = []Attempt{announcedPassive, announcedActive, announcedTFTP}
)

// announce has the pod say something to a port of the peer, and then connects from the peer to the application.
func (l *Lab) announce(port uint16, text string, wait Wait) string {
	server, err := l.Peer.Listen("tcp", net.JoinHostPort("", fmt.Sprint(port)))
	l.must(err)
	defer server.Close()
	go answerLines(server, "220 go on\r\n")
	return l.converse(l.Pod.Host, addrPort(l.PeerAddr(), port), text, wait)
}

// announcePassive has a server on a named port of the pod say where it waits for the peer's second connection.
func (l *Lab) announcePassive(wait Wait) string {
	server, err := l.Pod.Listen("tcp", net.JoinHostPort("", fmt.Sprint(portFTP)))
	l.must(err)
	defer server.Close()
	go answerLines(server, "220 go on\r\n", map[Family]string{
		IPv4: fmt.Sprintf("227 Entering Passive Mode (%s)\r\n", commas(l.Pod.IPv4, portApp)),
		IPv6: fmt.Sprintf("229 Entering Extended Passive Mode (|||%d|)\r\n", portApp),
	}[l.Family])
	return l.converse(l.Peer, addrPort(l.PodAddr(), portFTP), "PASV\r\n", wait)
}

// answerLines answers each line of a client with the next of its own. FTP's helper reads a line only after one that it saw end.
func answerLines(server net.Listener, lines ...string) {
	c, err := server.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for _, line := range lines {
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		io.WriteString(c, line)
	}
	io.Copy(io.Discard, in)
}

// converse says hello and then text, and when conntrack expects a connection to the application, makes it.
func (l *Lab) converse(from *netlab.Host, to netip.AddrPort, text string, wait Wait) string {
	c, err := dial(from, "tcp", to, patience)
	l.must(err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "USER me\r\n")
	_, err = c.Read(make([]byte, 100))
	l.must(err)
	io.WriteString(c, text)
	l.expects("tcp", portApp)
	return l.AskTCP(l.Peer, addrPort(l.PodAddr(), portApp), l.App("tcp", portApp), wait)
}

// commas is an address and port as FTP writes them (RFC 959 section 4.1.2).
func commas(a netip.Addr, port uint16) string {
	return fmt.Sprintf("%s,%d,%d", strings.ReplaceAll(a.String(), ".", ","), port>>8, port&0xff)
}

// expects waits until conntrack expects a connection to a port of the pod.
func (l *Lab) expects(network string, port uint16) {
	l.Await("an expectation of conntrack's", func() bool {
		for line := range strings.Lines(l.InPod("cat /proc/net/nf_conntrack_expect")) {
			if strings.Contains(line, fmt.Sprintf("dport=%d", port)) && strings.Contains(line, map[string]string{"tcp": "proto=6", "udp": "proto=17"}[network]) {
				return true
			}
		}
		return false
	})
}
