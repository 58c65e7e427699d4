// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"net/netip"
	"slices"

	"fairlead.dev/bpf/packetmodel"
)

// disputed says whether a frame is left out of the comparison with the model,
// since the programs are known to do otherwise: they send an ICMP error on
// whose source is no host's. It goes when the fixture that is marked so passes.
func disputed(frame []byte) bool {
	var source netip.Addr
	protocol := frame[23]
	switch {
	case frame[12] == 0x08:
		source = netip.AddrFrom4([4]byte(frame[26:30]))
		if protocol != icmp4 {
			return false
		}
	case frame[12] == 0x86: // whatever comes before ICMP
		source = netip.AddrFrom16([16]byte(frame[22:38]))
	}
	return source.IsUnspecified() || source.IsLoopback() || source.IsMulticast() || source.Is4() && source.As4()[0] >= 240
}

// evictable leaves out flows of which the programs would put the other half
// back with the wrong direction closed (the other fixture that is marked).
func (d *duel) evictable() []packetmodel.Tuple {
	return slices.DeleteFunc(d.flows(), func(t packetmodel.Tuple) bool {
		f := d.model.Flows[t]
		return f.Closing != f.PeerClose
	})
}
