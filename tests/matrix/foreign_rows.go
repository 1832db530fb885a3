package main

import (
	"net/netip"
	"slices"
)

// foreignRows are about rules that somebody else loads in the pod: a container with CAP_NET_ADMIN, a tool of the image. None
// of them may open the gate. (Who wants to can delete the guard's table instead; that is seen, and another row.)
func foreignRows() []Row { return slices.Concat(iptablesRows(), nftRows(), detourRows()) }

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
