// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The underlay is a bridge in the network namespace of the tests, where the
// control plane and the clients outside of the cluster are.
const underlayName = "underlay"

var (
	underlayIPv4 = net.IPv4(172, 30, 0, 1)
	underlayIPv6 = net.ParseIP("fd00:30::1")
)

// External and load balancer addresses are from here. Outside they are routed
// to the first node.
const (
	externalIPv4 = "198.51.100.0/24"
	externalIPv6 = "2001:db8:100::/112"
)

func makeUnderlay() error {
	for key, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0",
	} {
		if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0o644); err != nil {
			return fmt.Errorf("sysctl %s: %w", key, err)
		}
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: underlayName}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make the underlay: %w", err)
	}
	for _, a := range []*net.IPNet{{IP: underlayIPv4, Mask: net.CIDRMask(24, 32)}, {IP: underlayIPv6, Mask: net.CIDRMask(64, 128)}} {
		if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: a, Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("give the underlay %s: %w", a, err)
		}
	}
	return netlink.LinkSetUp(bridge)
}

// route sends what is for the range to a node.
func route(cidr string, via *node) error {
	_, dst, err := net.ParseCIDR(cidr)
	if err != nil {
		return err
	}
	gw := via.ipv4
	if dst.IP.To4() == nil {
		gw = via.ipv6
	}
	l, err := netlink.LinkByName(underlayName)
	if err == nil {
		err = netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: gw})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("route %s to %s", cidr, via.name), err)
	}
	return nil
}

func lockForever() { runtime.LockOSThread() }
