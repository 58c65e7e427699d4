// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"strconv"
)

// addressDepth bounds the digits of an address that are looked at: addresses
// that share their last sixteen are in one chain.
const addressDepth = 16

// newAddressTree looks at the last digit of an address first: addresses of one
// range differ there, and in no particular way.
func newAddressTree(name string, v6 bool) *tree[netip.Addr] {
	depth := 8
	if v6 {
		depth = addressDepth
	}
	return newTree(name, depth, addressDigit, netip.Addr.Compare)
}

func addressDigit(a netip.Addr, level int) int {
	b := a.AsSlice()
	octet := b[len(b)-1-level/2]
	if level%2 == 1 {
		octet >>= 4
	}
	return int(octet & 15)
}

// digitMatch matches one digit of the destination, by a mask that is no prefix.
func digitMatch(level, digit int, v6 bool) string {
	value, mask := make([]byte, 4), make([]byte, 4)
	if v6 {
		value, mask = make([]byte, 16), make([]byte, 16)
	}
	i, shift := len(value)-1-level/2, level%2*4
	value[i], mask[i] = byte(digit<<shift), 15<<shift
	v, _ := netip.AddrFromSlice(value)
	m, _ := netip.AddrFromSlice(mask)
	return "-d " + text(v) + "/" + text(m)
}

// text is an address as the C library prints it: dotted where IPv4 would be
// embedded (RFC 4291, 2.5.5).
func text(a netip.Addr) string {
	if a.Is6() {
		if b := a.As16(); [12]byte(b[:12]) == [12]byte{} && (b[12] != 0 || b[13] != 0) {
			return "::" + netip.AddrFrom4([4]byte(b[12:])).String()
		}
	}
	return a.String()
}

// destination and source match one address, as iptables-save prints it.
func destination(a netip.Addr) string { return "-d " + text(a) + "/" + strconv.Itoa(a.BitLen()) }

// source matches a prefix; one of length 0 is no match at all.
func source(p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return "-s " + text(p.Addr()) + "/" + strconv.Itoa(p.Bits())
}
