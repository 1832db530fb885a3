package meshproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/meshproxy/envoy"
)

// Under the egress lock Envoy's own DNS queries stay in the guest: its resolver (c-ares) has no way to mark its sockets. To
// admit them by Envoy's user id would admit every process that can take that id. So Envoy asks the supervisor, on
// loopback, and the supervisor's queries are marked. Everybody in the pod can ask it too, so it answers for the names of
// the egress entries and for no other: what goes out is a name from the configuration, and nothing that a workload chose.

const (
	lookupTimeout = 4 * time.Second // less than what c-ares waits
	nameTTL       = 5 * time.Second
	// mostLookups bounds how many run at a time. Who asks beyond that asks again.
	mostLookups = 16
	// mostAddresses of a family are told: as many as fit into 512 bytes beside the longest name (RFC 1035, section 4.2.1).
	mostAddresses = 8
)

type nameServer struct {
	names  map[string]bool // in lower case
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	busy   chan struct{}
}

func newNameServer(entries []config.Egress) *nameServer {
	s := &nameServer{
		names: map[string]bool{}, busy: make(chan struct{}, mostLookups),
		lookup: guard.Dialer().Resolver.LookupNetIP,
	}
	for _, e := range entries {
		if e.Remote.Name != "" {
			s.names[strings.ToLower(e.Remote.Name)] = true
		}
	}
	return s
}

func listenNames() (net.PacketConn, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(envoy.Resolver))
	if err != nil {
		return nil, fmt.Errorf("answer for the names of egress entries: %w", err)
	}
	return c, nil
}

// serve answers until ctx is done.
func (s *nameServer) serve(ctx context.Context, c net.PacketConn) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	query := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(query)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("answer for the names of egress entries: %w", err)
		}
		select {
		case s.busy <- struct{}{}:
		default:
			continue
		}
		q := append([]byte(nil), query[:n]...)
		go func() {
			defer func() { <-s.busy }()
			ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
			defer cancel()
			if answer, err := s.answer(ctx, q); err == nil {
				c.WriteTo(answer, from)
			}
		}()
	}
}

// answer fails for what is no question.
func (s *nameServer) answer(ctx context.Context, query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	if header.Response {
		return nil, errors.New("an answer")
	}
	m := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: header.ID, Response: true, RecursionDesired: header.RecursionDesired, RecursionAvailable: true,
		},
		Questions: []dnsmessage.Question{q},
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if !s.names[name] {
		m.RCode = dnsmessage.RCodeNameError
		return m.Pack()
	}
	addrs, err := s.lookup(ctx, "ip", name)
	if dnsErr, ok := errors.AsType[*net.DNSError](err); ok && dnsErr.IsNotFound {
		m.RCode = dnsmessage.RCodeNameError
	} else if err != nil {
		m.RCode = dnsmessage.RCodeServerFailure
	}
	h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET, TTL: uint32(nameTTL.Seconds())}
	for _, a := range addrs {
		a = a.Unmap()
		switch {
		case len(m.Answers) == mostAddresses || q.Class != dnsmessage.ClassINET:
		case a.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	return m.Pack()
}
