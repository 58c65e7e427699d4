// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// pollEvery is how often it is looked whether somebody flushed IPVS, which
	// tells nobody.
	pollEvery = 300 * time.Millisecond
	// watchBytes hold the events of a rule set that another program writes.
	watchBytes = 4 << 20
)

// watch tells when something else touched the table, the device or IPVS.
type watch struct {
	d       *Dataplane
	drifted chan struct{}
	rules   *nl.NetlinkSocket // events of nftables
	links   *nl.NetlinkSocket // and of devices and routes
}

func openWatch(d *Dataplane) (*watch, error) {
	w := &watch{d: d, drifted: make(chan struct{}, 1)}
	var err error
	if w.rules, err = nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES); err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	if err := withoutPort(w.rules.GetFd(), d.table.port); err != nil {
		return nil, errors.Join(fmt.Errorf("watch nftables: %w", err), w.close())
	}
	w.links, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch devices: %w", err), w.close())
	}
	if err := withoutPort(w.links.GetFd(), d.routes.port); err != nil {
		return nil, errors.Join(fmt.Errorf("watch routes: %w", err), w.close())
	}
	for _, s := range []*nl.NetlinkSocket{w.rules, w.links} {
		_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBytes)
	}
	return w, nil
}

// withoutPort filters out events that the socket of a port caused: those of
// our own changes. A netlink message has the port at byte 12, in host
// byte order, which a filter reads as network byte order.
func withoutPort(fd int, port uint32) error {
	if nl.NativeEndian() == binary.LittleEndian {
		port = bits.ReverseBytes32(port)
	}
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 12},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: port, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

func (w *watch) close() error {
	for _, s := range []*nl.NetlinkSocket{w.rules, w.links} {
		if s != nil {
			s.Close()
		}
	}
	return nil
}

func (w *watch) signal() {
	select {
	case w.drifted <- struct{}{}:
	default:
	}
}

// run follows events, and polls, until ctx is done.
func (w *watch) run(ctx context.Context) {
	done := make(chan struct{}, 2)
	follow := func(s *nl.NetlinkSocket, changed func(syscall.NetlinkMessage) bool) {
		defer func() { done <- struct{}{} }()
		for ctx.Err() == nil {
			list, _, err := s.Receive()
			drift := errors.Is(err, unix.ENOBUFS) // events were lost
			for _, m := range list {
				drift = changed(m) || drift
			}
			if drift && ctx.Err() == nil {
				w.signal()
			}
		}
	}
	timeout := unix.NsecToTimeval(pollEvery.Nanoseconds())
	for _, s := range []*nl.NetlinkSocket{w.rules, w.links} {
		// So that it is noticed that ctx is done.
		_ = s.SetReceiveTimeout(&timeout)
	}
	go follow(w.rules, aboutTable)
	go follow(w.links, w.aboutDevice)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			w.poll()
		}
	}
	<-done
	<-done
}

// aboutTable reports whether an nftables event is about our table: the name of
// the table is the first attribute of all of them.
func aboutTable(m syscall.NetlinkMessage) bool {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 || m.Data[0] != unix.NFPROTO_INET {
		return false
	}
	attributes, err := nl.ParseRouteAttr(m.Data[4:])
	if err != nil {
		return false
	}
	kind := m.Header.Type & 0xff
	if kind == unix.NFT_MSG_NEWGEN {
		return false
	}
	for _, a := range attributes {
		if a.Attr.Type == unix.NFTA_TABLE_NAME {
			return nl.BytesToString(a.Value) == tableName
		}
	}
	return false
}

// aboutDevice reports whether our device is gone or down, or lost a route that it
// should have. Word of a device that was down for a moment is of the past.
func (w *watch) aboutDevice(m syscall.NetlinkMessage) bool {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	if !w.d.synced {
		return false
	}
	switch m.Header.Type {
	case unix.RTM_DELLINK, unix.RTM_NEWLINK:
		if len(m.Data) < unix.SizeofIfInfomsg {
			return false
		}
		index, flags := int32(binary.NativeEndian.Uint32(m.Data[4:])), binary.NativeEndian.Uint32(m.Data[8:])
		down := m.Header.Type == unix.RTM_DELLINK || flags&unix.IFF_UP == 0
		return int(index) == w.d.routes.index && down && !w.d.routes.isUp()
	case unix.RTM_DELROUTE:
		return w.lostRoute(m.Data)
	}
	return false
}

func (w *watch) lostRoute(data []byte) bool {
	if len(data) < unix.SizeofRtMsg {
		return false
	}
	attributes, err := nl.ParseRouteAttr(data[unix.SizeofRtMsg:])
	if err != nil {
		return false
	}
	ours, wanted := false, false
	for _, a := range attributes {
		switch a.Attr.Type {
		case unix.RTA_OIF:
			ours = len(a.Value) >= 4 && int(binary.NativeEndian.Uint32(a.Value)) == w.d.routes.index
		case unix.RTA_DST:
			if to, ok := netip.AddrFromSlice(a.Value); ok {
				wanted = w.d.vipUses[to] > 0
			}
		}
	}
	return ours && wanted
}

// poll looks for the one virtual server that is always there.
func (w *watch) poll() {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	if !w.d.synced {
		return
	}
	if there, err := w.d.kernel.present(w.d.options.marks().sentinel(), ipv4); err == nil && !there {
		w.signal()
	}
}
