// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hostAddresses are the addresses of the agent's network namespace.
type hostAddresses struct {
	// all has every usable address, loopback and link-local ones too, sorted.
	all []hostAddress
	// default4 and default6 are what the kernel takes as source towards the
	// default route, invalid where there is none.
	default4, default6 netip.Addr
}

type hostAddress struct {
	netip.Addr
	// deprecated: it still takes traffic, but nothing new is to be sent from it.
	deprecated bool
}

func (h hostAddresses) equal(o hostAddresses) bool {
	return h.default4 == o.default4 && h.default6 == o.default6 && slices.Equal(h.all, o.all)
}

// serviceLinks are interfaces on which IPVS proxies put Service addresses, which
// are not the node's own.
var serviceLinks = []string{"kube-ipvs0", "fairlead-ipvs", "fairlead-ipvs0"}

// nodeWatch reads the addresses of one network namespace and is told about
// changes: the namespace of the thread that opened it.
type nodeWatch struct {
	handle *netlink.Handle
	// events is a netlink socket that hears of addresses, links and routes. It
	// is only a doorbell: what rang is read again as a whole, so a lost message
	// costs nothing.
	events *os.File
	log    *slog.Logger
}

func openNodeWatch(log *slog.Logger) (*nodeWatch, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for the node's addresses: %w", err)
	}
	events, err := openAddressEvents()
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("subscribe to the node's addresses: %w", err)
	}
	return &nodeWatch{handle: h, events: events, log: log}, nil
}

func openAddressEvents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	groups := uint32(unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

func (w *nodeWatch) close() {
	w.events.Close()
	w.handle.Close()
}

// run calls changed after each change of the addresses until ctx ends. Bursts
// are one call.
func (w *nodeWatch) run(ctx context.Context, last hostAddresses, changed func(hostAddresses)) {
	rung := make(chan struct{}, 1)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		w.listen(ctx, rung)
	}()
	defer func() {
		w.events.Close() // ends the Read
		<-heard
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-rung:
		}
		host, err := w.list()
		if err != nil {
			w.log.Warn("cannot read the node's addresses: keeping the last ones, trying again", "error", err)
			if !sleep(ctx, time.Second) {
				return
			}
			ring(rung)
			continue
		}
		if !host.equal(last) {
			last = host
			changed(host)
		}
	}
}

// listen rings for each message that may concern the facts. A socket that
// overflowed rings too.
func (w *nodeWatch) listen(ctx context.Context, rung chan struct{}) {
	buf := make([]byte, 64<<10)
	for {
		n, err := w.events.Read(buf)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS):
			ring(rung)
		case err != nil:
			w.log.Warn("netlink socket failed: reading the node's addresses once a second", "error", err)
			for sleep(ctx, time.Second) {
				ring(rung)
			}
			return
		case concernsAddresses(buf[:n]):
			ring(rung)
		}
	}
}

// concernsAddresses reports whether a datagram of netlink messages (struct
// nlmsghdr, then for routes struct rtmsg) is about an address or a default
// route. Other routes come and go with every pod.
func concernsAddresses(b []byte) bool {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return true // not understood: look
		}
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			// rtm_dst_len is the second byte of struct rtmsg.
			if size >= unix.NLMSG_HDRLEN+2 && b[unix.NLMSG_HDRLEN+1] == 0 {
				return true
			}
		default:
			return true
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return false
}

func (w *nodeWatch) list() (hostAddresses, error) {
	var h hostAddresses
	addrs, err := w.handle.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return h, fmt.Errorf("list addresses: %w", err)
	}
	if err != nil { // changed while it was read: once more, and then an event follows
		if addrs, err = w.handle.AddrList(nil, netlink.FAMILY_ALL); err != nil && len(addrs) == 0 {
			return h, fmt.Errorf("list addresses: %w", err)
		}
	}
	skip := w.serviceLinkIndexes()
	for _, a := range addrs {
		if addr, ok := usable(a); ok && !slices.Contains(skip, a.LinkIndex) {
			h.all = append(h.all, addr)
		}
	}
	slices.SortFunc(h.all, func(a, b hostAddress) int { return a.Compare(b.Addr) })
	h.all = slices.CompactFunc(h.all, func(a, b hostAddress) bool { return a.Addr == b.Addr })
	// Documentation addresses (RFC 5737, RFC 3849), which only a default route
	// covers. Nothing is sent.
	h.default4 = w.sourceTowards("192.0.2.1")
	h.default6 = w.sourceTowards("2001:db8::1")
	return h, nil
}

// usable leaves out what no packet can be for: an IPv6 address that is not yet,
// or will not be, assigned (RFC 4862 section 5.4).
func usable(a netlink.Addr) (hostAddress, bool) {
	if a.IPNet == nil || (a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0) || a.Flags&unix.IFA_F_DADFAILED != 0 {
		return hostAddress{}, false
	}
	addr, ok := netip.AddrFromSlice(a.IP)
	return hostAddress{Addr: addr.Unmap(), deprecated: a.Flags&unix.IFA_F_DEPRECATED != 0}, ok
}

func (w *nodeWatch) serviceLinkIndexes() []int {
	var indexes []int
	for _, name := range serviceLinks {
		if l, err := w.handle.LinkByName(name); err == nil {
			indexes = append(indexes, l.Attrs().Index)
		}
	}
	return indexes
}

func (w *nodeWatch) sourceTowards(ip string) netip.Addr {
	routes, err := w.handle.RouteGet(net.ParseIP(ip))
	if err != nil || len(routes) == 0 {
		return netip.Addr{}
	}
	src, _ := netip.AddrFromSlice(routes[0].Src)
	src = src.Unmap()
	if src.IsLoopback() || src.IsLinkLocalUnicast() {
		return netip.Addr{}
	}
	return src
}

// ring fills a channel of one slot.
func ring(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep reports whether it slept through.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
