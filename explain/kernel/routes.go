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

// table is the node's routing table, asked once for each address.
type table struct {
	handle *netlink.Handle
	ways   map[netip.Addr]explain.Way
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
	l, err := t.handle.LinkByIndex(r.LinkIndex)
	if err != nil {
		return w, fmt.Errorf("find device %d: %w", r.LinkIndex, err)
	}
	w.Device = l.Attrs().Name
	if w.Leaves, err = t.leaves(l, a, w); err != nil {
		return w, fmt.Errorf("list addresses of %s: %w", w.Device, err)
	}
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
func (t *table) leaves(l netlink.Link, to netip.Addr, w explain.Way) (netip.Addr, error) {
	if to.Is6() {
		return w.Source, nil
	}
	all, err := t.handle.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, err
	}
	hop := to
	if w.Via.IsValid() {
		hop = w.Via
	}
	var first netip.Addr
	for _, a := range all {
		if a.Flags&unix.IFA_F_SECONDARY != 0 || a.Scope != unix.RT_SCOPE_UNIVERSE {
			continue
		}
		if a.Contains(net.IP(hop.AsSlice())) {
			return address(a.IP), nil
		}
		if !first.IsValid() {
			first = address(a.IP)
		}
	}
	return first, nil
}
