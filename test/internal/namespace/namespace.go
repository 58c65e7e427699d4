// SPDX-License-Identifier: Apache-2.0

// Package namespace makes network namespaces for tests, wires them together and
// runs functions in them.
package namespace

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

// Namespace is a network namespace without a name in the file system: it ends
// when the last process and the last file of it do, however the test ends.
type Namespace struct {
	// Links are asked and changed through it.
	Links *netlink.Handle

	file netns.NsHandle
}

// New makes one with loopback up and the sysctls set, whose names are such as
// "ipv4/ip_forward".
func New(sysctls map[string]string) (*Namespace, error) {
	n := &Namespace{file: netns.None()}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		var err error
		if n.file, err = netns.Get(); err != nil {
			return fmt.Errorf("open the new network namespace: %w", err)
		}
		return WriteSysctls(sysctls)
	})
	if err == nil {
		if n.Links, err = netlink.NewHandleAt(n.file, unix.NETLINK_ROUTE); err != nil {
			err = fmt.Errorf("netlink in the new network namespace: %w", err)
		}
	}
	if err == nil {
		err = n.Up("lo")
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Path leads to the namespace as long as this process runs, for nsenter and
// setns.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.file)) }

// Close lets go of it.
func (n *Namespace) Close() {
	if n.Links != nil {
		n.Links.Close()
	}
	if n.file.IsOpen() {
		n.file.Close()
	}
}

// Do runs f on a thread in the namespace, which ends with it; what f starts is
// born there.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.file); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread of its own, so that what f does to its thread
// can't leak.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with it
		done <- f()
	}()
	return <-done
}

// WriteSysctls writes those of the thread's network namespace.
func WriteSysctls(values map[string]string) error {
	for key, value := range values {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0o644); err != nil {
			return fmt.Errorf("sysctl net/%s = %s: %w", key, value, err)
		}
	}
	return nil
}

// Wire makes a veth pair between two namespaces, up, with an MTU in bytes; 0 is
// the kernel's default.
func Wire(a *Namespace, aName string, b *Namespace, bName string, mtu int) error {
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: aName, MTU: mtu})
	veth.PeerName, veth.PeerNamespace, veth.PeerMTU = bName, netlink.NsFd(int(b.file)), uint32(mtu)
	if err := a.Links.LinkAdd(veth); err != nil {
		return fmt.Errorf("make veth %s - %s: %w", aName, bName, err)
	}
	if err := a.Up(aName); err != nil {
		return err
	}
	return b.Up(bName)
}

// Up sets a link up.
func (n *Namespace) Up(link string) error {
	l, err := n.Links.LinkByName(link)
	if err == nil {
		err = n.Links.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", link, err)
	}
	return nil
}

// Address gives a link an address that is usable at once.
func (n *Namespace) Address(link string, p netip.Prefix) error {
	l, err := n.Links.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := n.Links.AddrAdd(l, a); err != nil {
		return fmt.Errorf("add %s to %s: %w", p, link, err)
	}
	return nil
}

// Route adds a route; a zero via means on the link.
func (n *Namespace) Route(to netip.Prefix, via netip.Addr, link string) error {
	l, err := n.Links.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(to)}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := n.Links.RouteAdd(r); err != nil {
		return fmt.Errorf("add route %s via %s dev %s: %w", to, via, link, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
