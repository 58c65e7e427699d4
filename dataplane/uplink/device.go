// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// Device is a network device of the namespace.
type Device struct {
	Index int
	Name  string
	// Link is the kind of its link layer: "ether" where it has Ethernet
	// headers, "none" for tun and WireGuard.
	Link string
	// Uplink: it leads out of the node.
	Uplink bool
}

// tunnels lead to other nodes, so they are uplinks like a physical device.
var tunnels = map[string]bool{
	"vxlan": true, "geneve": true, "gretap": true, "ip6gretap": true,
	"ipip": true, "sit": true, "ip6tnl": true, "gre": true, "ip6gre": true, "wireguard": true, "ppp": true,
}

// tunnel reports whether a device carries packets to other nodes in others. A
// tun device does (flannel's udp, VPNs), a tap device is a virtual machine's.
func tunnel(l netlink.Link) bool {
	return tunnels[l.Type()] || l.Type() == "tuntap" && l.Attrs().EncapType == "none"
}

// classify lists the devices but loopback ones, by index.
func (u *Uplinks) classify(primary []netip.Addr) ([]Device, error) {
	links, err := whole(u.route.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	outward := map[int]bool{}
	if len(u.patterns) == 0 {
		if outward, err = u.outward(primary); err != nil {
			return nil, err
		}
	}
	var devices []Device
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 {
			continue
		}
		d := Device{Index: a.Index, Name: a.Name, Link: a.EncapType}
		if len(u.patterns) > 0 {
			d.Uplink = named(u.patterns, a.Name)
		} else {
			d.Uplink = outward[a.Index] || tunnel(l) || l.Type() == "device"
		}
		devices = append(devices, d)
	}
	slices.SortFunc(devices, func(a, b Device) int { return cmp.Compare(a.Index, b.Index) })
	return devices, nil
}

// outward gives the devices with a default route or the node's own address.
func (u *Uplinks) outward(primary []netip.Addr) (map[int]bool, error) {
	out := map[int]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} { // of both at once netlink finds no default route
		routes, err := whole(func() ([]netlink.Route, error) {
			return u.route.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			out[r.LinkIndex] = true
			for _, hop := range r.MultiPath {
				out[hop.LinkIndex] = true
			}
		}
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return u.route.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		for _, p := range primary {
			// A /32 or /128 on a pod's veth (CNI ptp) does not lead out.
			if ones, bits := a.Mask.Size(); ok && p.IsValid() && p == ip.Unmap() && ones < bits {
				out[a.LinkIndex] = true
			}
		}
	}
	return out, nil
}

// whole asks again where the answer is of two moments, since something changed
// while it was given.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 8 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
