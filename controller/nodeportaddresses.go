// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"net/netip"
)

// nodePortAddresses is a parsed --nodeport-addresses.
type nodePortAddresses struct {
	prefixes []netip.Prefix
	primary  bool
}

// ParseNodePortAddresses checks a --nodeport-addresses value: CIDRs and the
// words primary, localhost and all, which may be combined.
func ParseNodePortAddresses(words []string) error {
	_, err := parseNodePortAddresses(words)
	return err
}

func parseNodePortAddresses(words []string) (nodePortAddresses, error) {
	var n nodePortAddresses
	for _, w := range words {
		switch w {
		case "primary":
			n.primary = true
		case "localhost":
			n.prefixes = append(n.prefixes, netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
		case "all":
			n.prefixes = append(n.prefixes, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
		default:
			p, err := netip.ParsePrefix(w)
			if err != nil || p.Addr().Is4In6() {
				return nodePortAddresses{}, fmt.Errorf("--nodeport-addresses %q: want a CIDR, primary, localhost or all", w)
			}
			n.prefixes = append(n.prefixes, p.Masked())
		}
	}
	return n, nil
}

// isDefault: nothing was asked for, so every address of the node counts.
func (n nodePortAddresses) isDefault() bool { return !n.primary && len(n.prefixes) == 0 }

// choose reports whether a, an address of this node (loopback ones too), takes
// NodePort traffic. Link-local addresses do only where a CIDR names them: "all"
// and the default cannot mean an address that exists on every link.
func (n nodePortAddresses) choose(a, primary4, primary6 netip.Addr) bool {
	if n.isDefault() {
		return !a.IsLinkLocalUnicast()
	}
	if n.primary && (a == primary4 || a == primary6) {
		return true
	}
	for _, p := range n.prefixes {
		if p.Contains(a) && (!a.IsLinkLocalUnicast() || p.Bits() > 0) {
			return true
		}
	}
	return false
}
