package netlab

import (
	"net"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS answers for names as a cluster's DNS does, on the lab's own addresses (Gateway4 and Gateway6, port 53). A name that
// was set is known in all its cluster forms: NAME, NAME.default, NAME.default.svc, NAME.default.svc.cluster.local.
type DNS struct {
	mu      sync.Mutex
	records map[string][]netip.Addr
	mute    map[dnsmessage.Type]bool
	conns   []net.PacketConn
}

// Resolver is the /etc/resolv.conf of a pod that asks the lab's DNS.
const Resolver = "nameserver 10.137.0.1\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"

// ServeDNS starts a DNS server that knows no name.
func (l *Lab) ServeDNS() (*DNS, error) {
	d := &DNS{records: map[string][]netip.Addr{}, mute: map[dnsmessage.Type]bool{}}
	for _, addr := range []netip.Addr{Gateway4, Gateway6} {
		c, err := net.ListenPacket("udp", netip.AddrPortFrom(addr, 53).String())
		if err != nil {
			d.Close()
			return nil, err
		}
		d.conns = append(d.conns, c)
		go d.serve(c)
	}
	return d, nil
}

// Set makes name stand for addrs, in place of what it stood for.
func (d *DNS) Set(name string, addrs ...netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, suffix := range []string{".", ".default.", ".default.svc.", ".default.svc.cluster.local."} {
		d.records[name+suffix] = addrs
	}
}

// Answer chooses which address families are told about; both are, at first.
func (d *DNS) Answer(ipv4, ipv6 bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mute[dnsmessage.TypeA], d.mute[dnsmessage.TypeAAAA] = !ipv4, !ipv6
}

// Close stops the server.
func (d *DNS) Close() {
	for _, c := range d.conns {
		c.Close()
	}
}

func (d *DNS) serve(c net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, peer, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer, err := d.answer(buf[:n]); err == nil {
			c.WriteTo(answer, peer)
		}
	}
}

func (d *DNS) answer(query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	addrs, known := d.records[strings.ToLower(q.Name.String())]
	muted := d.mute[q.Type]
	d.mu.Unlock()

	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionDesired: header.RecursionDesired},
		Questions: []dnsmessage.Question{q},
	}
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range addrs {
		// A short life, so that a change is seen soon.
		h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET, TTL: 1}
		switch {
		case muted:
		case q.Type == dnsmessage.TypeA && a.Is4():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	return m.Pack()
}
