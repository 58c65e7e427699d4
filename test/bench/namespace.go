// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace without a name in the file system: it ends
// with the last process and file of it, however the run ends.
type namespace struct {
	file netns.NsHandle
	nl   *netlink.Handle
}

// sysctls of every namespace: addresses are usable at once, the nodes forward.
var sysctls = map[string]string{
	"ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0",
	"ipv6/conf/all/disable_ipv6": "0", "ipv6/conf/default/disable_ipv6": "0",
	"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/default/forwarding": "1",
	"core/somaxconn": "65535", "ipv4/tcp_max_syn_backlog": "65535",
}

func newNamespace() (*namespace, error) {
	n := &namespace{file: netns.None()}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		for key, value := range sysctls {
			if err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0o644); err != nil {
				return fmt.Errorf("sysctl net/%s = %s: %w", key, value, err)
			}
		}
		var err error
		n.file, err = netns.Get()
		return err
	})
	if err == nil {
		n.nl, err = netlink.NewHandleAt(n.file)
	}
	if err == nil {
		err = n.up("lo")
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// path leads to the namespace as long as this process runs.
func (n *namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.file)) }

func (n *namespace) close() {
	if n.nl != nil {
		n.nl.Close()
	}
	if n.file.IsOpen() {
		n.file.Close()
	}
}

// do runs f on a thread in the namespace; what it starts is born there.
func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.file); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// wire makes a veth pair between two namespaces, up.
func wire(a *namespace, aName string, b *namespace, bName string) error {
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: aName})
	veth.PeerName, veth.PeerNamespace = bName, netlink.NsFd(int(b.file))
	if err := a.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("make veth %s - %s: %w", aName, bName, err)
	}
	if err := a.up(aName); err != nil {
		return err
	}
	return b.up(bName)
}

func (n *namespace) up(link string) error {
	l, err := n.nl.LinkByName(link)
	if err == nil {
		err = n.nl.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", link, err)
	}
	return nil
}

func (n *namespace) address(link string, a netip.Addr) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	na := &netlink.Addr{IPNet: ipNet(host(a))}
	if a.Is6() {
		na.Flags = unix.IFA_F_NODAD
	}
	if err := n.nl.AddrAdd(l, na); err != nil {
		return fmt.Errorf("add %s to %s: %w", a, link, err)
	}
	return nil
}

// route adds a route; a zero via means on the link.
func (n *namespace) route(to netip.Prefix, via netip.Addr, link string) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(to)}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := n.nl.RouteAdd(r); err != nil {
		return fmt.Errorf("add route %s via %s dev %s: %w", to, via, link, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
