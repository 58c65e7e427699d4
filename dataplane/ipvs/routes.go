// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// deviceName is of the dummy device that the addresses of Services are routed
// to, as local ones. It has no address itself: IPVS sees what is delivered
// locally, a process of the node speaks to a Service from the node's address
// and not from the Service's, and nobody takes 10,000 addresses for the node's.
const deviceName = "fairlead-ipvs"

const (
	localTable = 255 // RT_TABLE_LOCAL
	scopeHost  = 254 // RT_SCOPE_HOST
	// routeProtocol is RTPROT_STATIC: administrators' tools leave it alone.
	routeProtocol = unix.RTPROT_STATIC
)

// routes are those of the device, in the network namespace it was opened in.
type routes struct {
	handle  *netlink.Handle
	remover *nl.SocketHandle // what routes are removed by
	port    uint32           // its netlink port: whose changes are our own
	index   int
	mtu     int // of IPv4 routes
	primary map[*family]netip.Addr
}

func openRoutes() (*routes, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE) // to nothing
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	r := &routes{handle: h, remover: &nl.SocketHandle{Socket: s}, primary: map[*family]netip.Addr{}}
	if r.port, err = s.GetPid(); err != nil {
		r.close()
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return r, nil
}

func (r *routes) close() {
	r.handle.Close()
	r.remover.Close()
}

// isUp reports whether the device is there and up.
func (r *routes) isUp() bool {
	l, err := r.handle.LinkByIndex(r.index)
	return err == nil && l.Attrs().Flags&net.FlagUp != 0
}

// device makes the device where it is missing, and sets it up.
func (r *routes) device() (made bool, err error) {
	l, err := r.handle.LinkByName(deviceName)
	if isNoLink(err) {
		made = true
		if err = r.handle.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: deviceName}}); err == nil {
			l, err = r.handle.LinkByName(deviceName)
		}
	}
	if err != nil {
		return made, fmt.Errorf("make device %s: %w", deviceName, err)
	}
	r.index = l.Attrs().Index
	if r.mtu, err = r.narrowest(); err != nil {
		return made, err
	}
	if l.Attrs().Flags&net.FlagUp != 0 {
		return made, nil
	}
	// No link-local address: nothing is ever sent from this device.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+deviceName+"/addr_gen_mode", []byte("1"), 0o644)
	if err := r.handle.LinkSetUp(l); err != nil {
		return made, fmt.Errorf("set device %s up: %w", deviceName, err)
	}
	return true, nil
}

// narrowest is the smallest MTU of the node's devices, at least IPv6's. A local
// route has loopback's, and a datagram that a process of the node sends by it is
// marked as not to be fragmented: IPVS then refuses what does not fit the way
// to the Backend.
func (r *routes) narrowest() (mtu int, err error) {
	links, err := r.handle.LinkList()
	if err != nil {
		return 0, fmt.Errorf("list devices: %w", err)
	}
	mtu = 1500
	for _, l := range links {
		if a := l.Attrs(); a.Flags&net.FlagUp != 0 && a.Flags&net.FlagLoopback == 0 && a.Index != r.index && a.MTU > 0 {
			mtu = min(mtu, a.MTU)
		}
	}
	return max(mtu, 1280), nil
}

func isNoLink(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

// route is what delivers an address locally. Who connects to it speaks from
// the primary address.
func (r *routes) route(a netip.Addr) *netlink.Route {
	out := &netlink.Route{
		LinkIndex: r.index, Table: localTable, Type: unix.RTN_LOCAL, Scope: scopeHost, Protocol: routeProtocol,
		Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
	}
	if p := r.primary[familyOf(a)]; p.IsValid() {
		out.Src = p.AsSlice()
	}
	if a.Is6() {
		out.Scope = 0
	} else {
		out.MTU = r.mtu
	}
	return out
}

// list are the addresses that are routed, and whether each is as it should be.
func (r *routes) list() (map[netip.Addr]bool, error) {
	out := map[netip.Addr]bool{}
	for _, f := range families {
		list, err := r.ours(f)
		if err != nil {
			return nil, fmt.Errorf("list routes of device %s: %w", deviceName, err)
		}
		for _, route := range list {
			if route.Dst == nil {
				continue
			}
			a, ok := netip.AddrFromSlice(route.Dst.IP)
			if !ok || a.IsLinkLocalUnicast() {
				continue
			}
			if f == ipv4 {
				a = a.Unmap()
			}
			src, _ := netip.AddrFromSlice(route.Src)
			out[a] = src.Unmap() == r.primary[f] && (f != ipv4 || route.MTU == r.mtu)
		}
	}
	return out, nil
}

// ours are the local routes of the device; asked for again while they change.
func (r *routes) ours(f *family) (list []netlink.Route, err error) {
	filter := &netlink.Route{LinkIndex: r.index, Table: localTable, Type: unix.RTN_LOCAL}
	for range 8 {
		list, err = r.handle.RouteListFiltered(int(f.protocol), filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

// add routes an address, in place of a route of ours that it may have. Others'
// routes to the same address, such as that of an interface, stay.
func (r *routes) add(a netip.Addr, replace bool) error {
	if replace {
		if err := r.remove(a); err != nil {
			return err
		}
	}
	if err := r.handle.RouteAppend(r.route(a)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("route %s to device %s: %w", a, deviceName, err)
	}
	return nil
}

// remove goes by a socket of its own: word of it comes late, when the address may
// be routed again, and is to be known from that of another program.
func (r *routes) remove(a netip.Addr) error {
	route := r.route(a)
	m := nl.NewRtDelMsg()
	m.Family, m.Dst_len = uint8(familyOf(a).protocol), uint8(a.BitLen())
	m.Table, m.Type, m.Scope, m.Protocol = localTable, unix.RTN_LOCAL, uint8(route.Scope), routeProtocol
	request := nl.NewNetlinkRequest(unix.RTM_DELROUTE, unix.NLM_F_ACK)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: r.remover}
	request.AddData(m)
	request.AddData(nl.NewRtAttr(unix.RTA_DST, a.AsSlice()))
	request.AddData(nl.NewRtAttr(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(r.index))))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove route of %s: %w", a, err)
	}
	return nil
}
