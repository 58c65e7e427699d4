// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/explain"
)

// table is the node's routing table, asked once for each address and device.
type table struct {
	handle  *netlink.Handle
	ways    map[netip.Addr]explain.Way
	devices map[int]*device
}

// device is one that a route leads to.
type device struct {
	name string
	// addresses are its IPv4 ones.
	addresses []netlink.Addr
}

func newTable(h *netlink.Handle) *table {
	return &table{handle: h, ways: map[netip.Addr]explain.Way{}, devices: map[int]*device{}}
}

func (t *table) device(index int) (*device, error) {
	if d := t.devices[index]; d != nil {
		return d, nil
	}
	l, err := t.handle.LinkByIndex(index)
	if err != nil {
		return nil, fmt.Errorf("find device %d: %w", index, err)
	}
	d := &device{name: l.Attrs().Name}
	if d.addresses, err = t.handle.AddrList(l, netlink.FAMILY_V4); err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", d.name, err)
	}
	t.devices[index] = d
	return d, nil
}

// noRoute are what the kernel says where there is no way.
var noRoute = map[unix.Errno]string{
	unix.ENETUNREACH:  "no route to it",
	unix.EHOSTUNREACH: "its route is unreachable",
	unix.EACCES:       "its route is prohibited",
	unix.EINVAL:       "its route is a blackhole",
}

// to is the way to an address.
func (t *table) to(a netip.Addr) (explain.Way, error) {
	if w, ok := t.ways[a]; ok {
		return w, nil
	}
	w, err := t.ask(a)
	if err != nil {
		return w, fmt.Errorf("ask the routing table for %s: %w", a, err)
	}
	t.ways[a] = w
	return w, nil
}

func (t *table) ask(a netip.Addr) (w explain.Way, err error) {
	routes, err := t.handle.RouteGet(net.IP(a.AsSlice()))
	var errno unix.Errno
	if errors.As(err, &errno) && noRoute[errno] != "" {
		w.Unreachable = noRoute[errno]
		return w, nil
	}
	if err != nil || len(routes) == 0 {
		return w, err
	}
	r := routes[0]
	w.Local = r.Type == unix.RTN_LOCAL
	w.Via, w.Source = address(r.Gw), address(r.Src)
	if r.Type == unix.RTN_UNREACHABLE || r.Type == unix.RTN_BLACKHOLE || r.Type == unix.RTN_PROHIBIT {
		w.Unreachable = "its route leads nowhere"
		return w, nil
	}
	d, err := t.device(r.LinkIndex)
	if err != nil {
		return w, err
	}
	w.Device, w.Leaves = d.name, d.leaves(a, w)
	return w, nil
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// leaves is the address that masquerading takes (nf_nat_masquerade.c). For IPv6
// the kernel chooses as for its own packets. For IPv4 it is inet_select_addr():
// of the device's primary global addresses the one in the network of the next hop, else
// the first; a route's preferred source does not count.
func (d *device) leaves(to netip.Addr, w explain.Way) (first netip.Addr) {
	if to.Is6() {
		return w.Source
	}
	hop := to
	if w.Via.IsValid() {
		hop = w.Via
	}
	for _, a := range d.addresses {
		if a.Flags&unix.IFA_F_SECONDARY != 0 || a.Scope != unix.RT_SCOPE_UNIVERSE {
			continue
		}
		if a.Contains(net.IP(hop.AsSlice())) {
			return address(a.IP)
		}
		if !first.IsValid() {
			first = address(a.IP)
		}
	}
	return first
}
