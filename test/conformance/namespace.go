// SPDX-License-Identifier: Apache-2.0

package conformance

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
// when the last process and the last file of it do, however the test ends.
type namespace struct {
	file netns.NsHandle
	nl   *netlink.Handle
}

// newNamespace makes one with loopback up and the sysctls set.
func newNamespace(sysctls map[string]string) (*namespace, error) {
	n := &namespace{file: netns.None()}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		var err error
		if n.file, err = netns.Get(); err != nil {
			return fmt.Errorf("open the new network namespace: %w", err)
		}
		return writeSysctls(sysctls)
	})
	if err != nil {
		n.close()
		return nil, err
	}
	if n.nl, err = netlink.NewHandleAt(n.file, unix.NETLINK_ROUTE); err != nil {
		n.close()
		return nil, fmt.Errorf("netlink in the new network namespace: %w", err)
	}
	lo, err := n.nl.LinkByName("lo")
	if err == nil {
		err = n.nl.LinkSetUp(lo)
	}
	if err != nil {
		n.close()
		return nil, fmt.Errorf("set lo up: %w", err)
	}
	return n, nil
}

// path leads to the namespace as long as the test runs, for nsenter and setns.
func (n *namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.file)) }

func (n *namespace) close() {
	if n.nl != nil {
		n.nl.Close()
	}
	if n.file.IsOpen() {
		n.file.Close()
	}
}

// do runs f on a thread in the namespace.
func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.file); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread of its own, which ends with it, so that what f
// does to its thread can't leak.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// resident is a thread that stays in a namespace and runs one function after
// another there.
type resident struct {
	work chan func()
}

func newResident(n *namespace) (*resident, error) {
	r := &resident{work: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(n.file)
		ready <- err
		if err != nil {
			return
		}
		for f := range r.work {
			f()
		}
	}()
	return r, <-ready
}

func (r *resident) do(f func() error) error {
	done := make(chan error, 1)
	r.work <- func() { done <- f() }
	return <-done
}

func (r *resident) close() { close(r.work) }

// writeSysctls writes keys such as "ipv4/ip_forward" of the thread's namespace.
func writeSysctls(values map[string]string) error {
	for key, value := range values {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0o644); err != nil {
			return fmt.Errorf("sysctl net/%s = %s: %w", key, value, err)
		}
	}
	return nil
}

// wire makes a veth pair between two namespaces, up, with an MTU in bytes.
func wire(a *namespace, aName string, b *namespace, bName string, mtu int) error {
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: aName, MTU: mtu})
	veth.PeerName, veth.PeerNamespace, veth.PeerMTU = bName, netlink.NsFd(int(b.file)), uint32(mtu)
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

// address gives a link an address that is usable at once.
func (n *namespace) address(link string, p netip.Prefix) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := n.nl.AddrAdd(l, a); err != nil {
		return fmt.Errorf("add %s to %s: %w", p, link, err)
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
