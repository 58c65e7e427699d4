// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"io/fs"
	"math/bits"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nfnetlink"
)

// readRules reads what decides beside Frontends: which sources are internal is
// in the rules, which devices lead out in a set.
func (l *look) readRules(in *dataplane.Inspection) error {
	const prerouting = "netfilter nat prerouting (table fairlead)"
	in.Rules = dataplane.Rules{
		Hooks:          dataplane.Hooks{Packet: "netfilter", Pod: prerouting, Uplink: prerouting, Node: "netfilter nat output (table fairlead)"},
		LoopbackServed: true,
		Masquerade:     dataplane.MasqueradeRules{ByDevice: true, Loopback: true, LoopbackLost: true},
	}
	err := l.kernel.listElements(l.family, setUplinks, func(e *element) {
		in.Rules.Uplinks = append(in.Rules.Uplinks, cString(e.key))
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	slices.Sort(in.Rules.Uplinks)
	err = l.kernel.list(unix.NFT_MSG_GETRULE, l.family.proto, func(m *messages) {
		m.text(unix.NFTA_RULE_TABLE, l.family.table)
		m.text(unix.NFTA_RULE_CHAIN, chainScope)
	}, func(attrs []byte) {
		if cString(attribute(attrs, unix.NFTA_RULE_CHAIN)) != chainScope || cString(attribute(attrs, unix.NFTA_RULE_TABLE)) != l.family.table {
			return
		}
		if p, ok := l.family.sourceOf(attribute(attrs, unix.NFTA_RULE_EXPRESSIONS)); ok {
			in.Rules.InternalSources = append(in.Rules.InternalSources, p)
		}
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

// sourceOf is the prefix that a rule's source must be in, as fromPrefix makes
// such a rule; ok is false where it asks for something else.
func (f *family) sourceOf(expressions []byte) (p netip.Prefix, ok bool) {
	var address []byte
	length, step := f.addressBytes*8, 0
	for _, e := range nfnetlink.Attributes(expressions) {
		name, data := cString(attribute(e, unix.NFTA_EXPR_NAME)), attribute(e, unix.NFTA_EXPR_DATA)
		switch {
		case step == 0 && name == "payload" && nfnetlink.Uint32(attribute(data, unix.NFTA_PAYLOAD_OFFSET)) == f.offsetSource &&
			nfnetlink.Uint32(attribute(data, unix.NFTA_PAYLOAD_BASE)) == unix.NFT_PAYLOAD_NETWORK_HEADER:
			step = 1
		case step == 1 && name == "bitwise":
			length = 0
			for _, b := range attribute(attribute(data, unix.NFTA_BITWISE_MASK), unix.NFTA_DATA_VALUE) {
				length += bits.OnesCount8(b)
			}
		case step == 1 && name == "cmp":
			address = attribute(attribute(data, unix.NFTA_CMP_DATA), unix.NFTA_DATA_VALUE)
			step = 2
		case step < 2:
			return p, false
		}
	}
	a, ok := netip.AddrFromSlice(address)
	return netip.PrefixFrom(a, length), ok && len(address) == f.addressBytes
}
