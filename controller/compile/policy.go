// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"slices"
)

// AddressPolicy says which addresses of one kind Services may claim: those that
// whoever writes the Service chooses freely, and with them whose traffic it
// gets (CVE-2020-8554). The zero value allows all. What belongs to the node is
// refused before any policy is asked.
type AddressPolicy struct {
	// Deny refuses every address.
	Deny bool
	// Only are the ranges that are allowed, masked. Empty: all.
	Only []netip.Prefix
}

// allows reports whether a Service may claim a.
func (p AddressPolicy) allows(a netip.Addr) bool {
	if p.Deny {
		return false
	}
	return len(p.Only) == 0 || slices.ContainsFunc(p.Only, func(r netip.Prefix) bool { return r.Contains(a) })
}
