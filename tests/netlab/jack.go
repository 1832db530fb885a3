package netlab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Jack is a place on the switch for a virtual machine: a tap device of the lab's own network, and what the machine is to be
// called there. Whoever runs the machine gives it the addresses.
type Jack struct {
	// Device is the tap's name, for the machine's monitor.
	Device     string
	MAC        net.HardwareAddr
	IPv4, IPv6 netip.Addr
}

// NewJack makes a tap device and joins it to the switch.
func (l *Lab) NewJack() (*Jack, error) {
	l.mu.Lock()
	n := l.next
	l.next++
	l.mu.Unlock()
	j := &Jack{
		Device: fmt.Sprintf("tap%d", n), MAC: net.HardwareAddr{0x02, 0, 0, 0, 1, byte(n)},
		IPv4: numbered(Gateway4, n), IPv6: numbered(Gateway6, n),
	}
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: j.Device}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_ONE_QUEUE | netlink.TUNTAP_VNET_HDR, // as qemu opens it
	}
	if err := netlink.LinkAdd(tap); err != nil {
		return nil, fmt.Errorf("make tap device %s: %w", j.Device, err)
	}
	if err := netlink.LinkSetMaster(tap, l.bridge); err != nil {
		return nil, fmt.Errorf("join %s to the switch: %w", j.Device, err)
	}
	return j, linkUp(j.Device)
}

// Addresses are IPv4 and IPv6, in that order.
func (j *Jack) Addresses() []netip.Addr { return []netip.Addr{j.IPv4, j.IPv6} }

// Prefixes are the addresses with the lengths of the lab's networks.
func (j *Jack) Prefixes() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(j.IPv4, 24), netip.PrefixFrom(j.IPv6, 64)}
}

// Remove takes the device away. A machine that has it open loses its network.
func (j *Jack) Remove() error {
	link, err := netlink.LinkByName(j.Device)
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

// Neighbour is what h knows of an address on its network: the link-layer address, or nil where nobody has answered for it.
// It tells a machine that drops what it is sent from one that is not there.
func (h *Host) Neighbour(a netip.Addr) (mac net.HardwareAddr, err error) {
	err = h.Do(func() error {
		family := netlink.FAMILY_V4
		if a.Is6() {
			family = netlink.FAMILY_V6
		}
		known, err := netlink.NeighList(0, family)
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", h.Name, err)
		}
		for _, n := range known {
			if n.IP.Equal(a.AsSlice()) && len(n.HardwareAddr) > 0 && n.State&(netlink.NUD_REACHABLE|netlink.NUD_STALE|netlink.NUD_DELAY|netlink.NUD_PROBE) != 0 {
				mac = n.HardwareAddr
			}
		}
		return nil
	})
	return mac, err
}
