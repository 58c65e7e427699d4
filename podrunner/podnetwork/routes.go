// SPDX-License-Identifier: Apache-2.0

package podnetwork

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the routes that are made here (rtm_protocol, in what `ip
// route` shows as "proto 143"): they have no name. /etc/iproute2/rt_protos and
// the kernel know of no other use.
const routeProtocol = 143

// route is one to a range of Pods; without a gateway it says that there is
// nothing: the range's own node has a route to each of its Pods, and what is
// sent to others must not wander.
type route struct {
	to  netip.Prefix
	via netip.Addr
}

// wantedRoutes are those to the ranges of the nodes, and what is wrong with
// them: no way in of the family, a range that is not one, or that another has.
func wantedRoutes(name string, nodes []Node, own []netip.Prefix) (routes []route, problems []string) {
	taken := map[netip.Prefix]string{}
	for _, p := range own {
		taken[p] = name
		routes = append(routes, route{to: p})
	}
	for _, node := range nodes {
		if node.Name == name {
			continue
		}
		for _, p := range node.PodCIDRs {
			i := slices.IndexFunc(node.Addresses, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() })
			other := overlapping(taken, p)
			switch {
			case !p.IsValid() || p != p.Masked() || p.Bits() == 0:
				problems = append(problems, fmt.Sprintf("node %s: its range of Pods %s is no network", node.Name, p))
			case other != "":
				problems = append(problems, fmt.Sprintf("node %s: its range of Pods %s is also node %s's", node.Name, p, other))
			case i < 0:
				problems = append(problems, fmt.Sprintf("node %s: it has no address to reach its range %s by", node.Name, p))
			default:
				taken[p] = node.Name
				routes = append(routes, route{p, node.Addresses[i]})
			}
		}
	}
	return routes, problems
}

func overlapping(taken map[netip.Prefix]string, p netip.Prefix) string {
	if other, ok := taken[p]; ok {
		return other
	}
	for q, other := range taken {
		if q.Overlaps(p) {
			return other
		}
	}
	return ""
}

// syncRoutes makes the kernel's routes those that are wanted; with remove it
// takes those away that are not.
func (n *Network) syncRoutes(nodes []Node, own []netip.Prefix, remove bool) (problems []string) {
	wanted, problems := wantedRoutes(n.o.NodeName, nodes, own)
	have, err := kernelRoutes(n.handle)
	if err != nil {
		return append(problems, err.Error())
	}
	for _, r := range wanted {
		old, ours := have[r.to]
		delete(have, r.to)
		if ours && old == r {
			continue
		}
		if err := n.setRoute(r, ours); err != nil {
			problems = append(problems, err.Error())
		}
	}
	if !remove {
		return problems
	}
	for _, r := range have {
		if err := n.handle.RouteDel(r.message()); err != nil && !errors.Is(err, unix.ESRCH) {
			problems = append(problems, fmt.Sprintf("remove the route to %s: %v", r.to, err))
		}
	}
	return problems
}

// setRoute adds a route, or changes one of ours. One of others' is left alone.
func (n *Network) setRoute(r route, ours bool) error {
	m := r.message()
	var err error
	if ours {
		err = n.handle.RouteReplace(m)
	} else {
		err = n.handle.RouteAdd(m)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("route to %s: there is one that is not fairlead's; remove it", r.to)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("route to %s by %s: %w: nodes must be in one subnet for host-gw", r.to, r.via, err)
	}
	return fmt.Errorf("route to %s by %s: %w", r.to, r.via, err)
}

func (r route) message() *netlink.Route {
	m := &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN,
		Dst: &net.IPNet{IP: r.to.Addr().AsSlice(), Mask: net.CIDRMask(r.to.Bits(), r.to.Addr().BitLen())}}
	if r.via.IsValid() {
		m.Gw = r.via.AsSlice()
	} else {
		m.Type = unix.RTN_UNREACHABLE
	}
	return m
}

// kernelRoutes are the routes that were made here.
func kernelRoutes(h *netlink.Handle) (map[netip.Prefix]route, error) {
	out := map[netip.Prefix]route{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := h.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list the kernel's routes: %w", err)
		}
		for _, m := range list {
			if m.Dst == nil {
				continue
			}
			a, ok := netip.AddrFromSlice(m.Dst.IP)
			bits, _ := m.Dst.Mask.Size()
			if !ok {
				continue
			}
			if family == netlink.FAMILY_V4 {
				a = a.Unmap()
			}
			r := route{to: netip.PrefixFrom(a, bits)}
			if via, ok := netip.AddrFromSlice(m.Gw); ok {
				r.via = via
				if family == netlink.FAMILY_V4 {
					r.via = via.Unmap()
				}
			}
			out[r.to] = r
		}
	}
	return out, nil
}

func removeRoutes(Options) (removed []string, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open the kernel's routes: %w", err)
	}
	defer h.Close()
	have, err := kernelRoutes(h)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, r := range have {
		if err := h.RouteDel(r.message()); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the route to %s: %w", r.to, err))
			continue
		}
		removed = append(removed, "route to "+r.to.String())
	}
	slices.Sort(removed)
	return removed, errors.Join(errs...)
}
