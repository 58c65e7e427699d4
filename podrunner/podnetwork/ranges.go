// SPDX-License-Identifier: Apache-2.0

package podnetwork

import (
	"net/netip"
	"slices"
)

// addresses is a range of them, both ends included.
type addresses struct {
	first, last netip.Addr
}

// inside is where traffic of Pods keeps its source: all nodes and all Pods.
func inside(nodes []Node, own, cluster []netip.Prefix) (out []netip.Prefix) {
	out = append(append(out, own...), cluster...)
	for _, n := range nodes {
		out = append(out, n.PodCIDRs...)
		for _, a := range n.Addresses {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// merge makes prefixes of a family ranges that are sorted and apart.
func merge(prefixes []netip.Prefix, is4 bool) (out []addresses) {
	for _, p := range prefixes {
		if p.IsValid() && p.Addr().Is4() == is4 {
			out = append(out, addresses{p.Masked().Addr(), last(p)})
		}
	}
	slices.SortFunc(out, func(a, b addresses) int { return a.first.Compare(b.first) })
	n := 0
	for _, r := range out {
		if n > 0 && (r.first.Compare(out[n-1].last) <= 0 || out[n-1].last.Next() == r.first) {
			if r.last.Compare(out[n-1].last) > 0 {
				out[n-1].last = r.last
			}
			continue
		}
		out[n] = r
		n++
	}
	return out[:n]
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
