// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"strings"

	utilnet "k8s.io/utils/net"

	"fairlead.dev/dataplane"
)

// family separates what IPv4 and IPv6 have each.
type family uint8

const (
	v4 family = iota
	v6
)

var families = [...]family{v4, v6}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return v4
	}
	return v6
}

// parseAddr takes what API servers ever accepted: old objects may have octets
// with leading zeros, which are read as decimal (KEP-4858 and before).
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		old, ok := netip.AddrFromSlice(utilnet.ParseIPSloppy(s))
		if !ok {
			return netip.Addr{}, fmt.Errorf("%q is not an IP address", clip(s))
		}
		a = old
	}
	if a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q has a zone", clip(s))
	}
	return a.Unmap(), nil
}

// parsePrefix is parseAddr for CIDRs. The result is masked.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		_, old, oldErr := utilnet.ParseCIDRSloppy(s)
		if oldErr != nil {
			return netip.Prefix{}, fmt.Errorf("%q is not a CIDR", clip(s))
		}
		a, _ := netip.AddrFromSlice(old.IP)
		bits, _ := old.Mask.Size()
		p = netip.PrefixFrom(a, bits)
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q mixes IPv4 and IPv6", clip(s))
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// unusable says why an address can be neither a Frontend's nor a Backend's,
// or "".
func unusable(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "unspecified"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "a multicast or broadcast address"
	}
	return ""
}

// parsePort takes a port number of the API: 1 to 65535.
func parsePort(p int32) (uint16, bool) { return uint16(p), p >= 1 && p <= 65535 }

// parseProtocol takes the API's spelling; "" is its default, TCP.
func parseProtocol(p string) (dataplane.Protocol, error) {
	if p == "" {
		return dataplane.TCP, nil
	}
	proto, err := dataplane.ParseProtocol(p)
	if err != nil {
		return 0, fmt.Errorf("protocol %q: want TCP, UDP or SCTP", clip(p))
	}
	return proto, nil
}

// clip keeps an absurd value from filling a message.
func clip(s string) string {
	const limit = 64
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "..."
}
