// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

var _ dataplane.Inspector = (*Reader)(nil)

// Inspect implements dataplane.Inspector. It reads the whole table.
func (r *Reader) Inspect(at dataplane.FrontendKey) (*dataplane.Inspection, error) {
	all, err := r.table.elements()
	if err != nil {
		return nil, err
	}
	servers, err := r.kernel.servers()
	if err != nil {
		return nil, err
	}
	in := &dataplane.Inspection{Dataplane: "ipvs"}
	if in.Rules, err = r.rules(all, familyOf(at.Address)); err != nil {
		return nil, err
	}
	holds := decode(all)
	i := slices.IndexFunc(holds.frontends, func(f found) bool { return f.FrontendKey == at })
	if i < 0 {
		if holds.vips[at.Address] {
			in.RefusedPort = "the address is Services' alone"
		}
		return in, nil
	}
	read := &holds.frontends[i]
	name := holds.names[read.port]
	v, key := familyOf(at.Address).suffix, string(frontendKey(at))
	_, masqueraded := all[elementKey{set: "masquerade" + v, key: key}]
	in.Service = name.service
	in.Frontend = &dataplane.Frontend{
		FrontendKey: at, Kind: read.kind, PortName: name.port, AffinitySeconds: read.affinitySeconds, MasqueradeExternal: masqueraded,
		SourceRanges: rangesOf(all, v, key),
	}
	sets := map[dataplane.Scope]*dataplane.BackendSet{dataplane.Internal: &in.Frontend.Internal, dataplane.External: &in.Frontend.External}
	scheduler := ""
	for scope, set := range sets {
		if _, dropped := all[elementKey{set: "dropped-" + scopeNames[scope] + v, key: key}]; dropped {
			set.OnEmpty = dataplane.Drop
		}
		mark := read.marks[scope]
		set.Backends = members(holds.members[mark], servers[mark])
		if s := servers[mark]; s != nil {
			scheduler = s.scheduler
		}
	}
	in.Unread = []dataplane.Unread{{Part: dataplane.UnreadDraining,
		Why: "not readable from ipvs: draining Backends, which only keep the flows they have"}}
	if scheduler != "rr" && scheduler != "wrr" && scheduler != "" {
		in.Unread = append(in.Unread, dataplane.Unread{Part: dataplane.UnreadShares,
			Why: "not readable from ipvs: what the scheduler " + scheduler + " will choose; shares are what an even choice gives"})
	}
	return in, nil
}

// Flows implements dataplane.Inspector. IPVS leaves its flows to conntrack.
func (r *Reader) Flows(to dataplane.FrontendKey) ([]dataplane.ConntrackRow, error) {
	return r.conntrack.Flows(func(k dataplane.FrontendKey) (name, portName string, ok bool) { return "", "", k == to })
}

// members are the Backends that both the table and IPVS have.
func members(flagged map[netip.AddrPort]uint32, s *server) (out []dataplane.Backend) {
	if s == nil {
		return nil
	}
	for a, flags := range flagged {
		if _, ok := s.weights[a]; !ok {
			continue
		}
		b := dataplane.Backend{Address: a.Addr(), Port: a.Port(), Local: flags&memberLocal != 0, HostNetwork: flags&memberHostNetwork != 0}
		if flags&memberTerminating != 0 {
			b.State = dataplane.Terminating
		}
		out = append(out, b)
	}
	slices.SortFunc(out, dataplane.CompareBackends)
	return out
}

// rangesOf are the source ranges of a Frontend.
func rangesOf(all elements, suffix, key string) (out []netip.Prefix) {
	for k, v := range all {
		if k.set != "allowed"+suffix || !strings.HasPrefix(k.key, key) || len(v.keyEnd) != len(k.key) {
			continue
		}
		first, ok := netip.AddrFromSlice([]byte(k.key[len(key):]))
		last, _ := netip.AddrFromSlice([]byte(v.keyEnd[len(key):]))
		if ok {
			out = append(out, prefixesOf(first, last)...)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out
}

// prefixesOf are the prefixes that make up the addresses from first to last.
func prefixesOf(first, last netip.Addr) (out []netip.Prefix) {
	for first.IsValid() && first.Compare(last) <= 0 {
		length := first.BitLen()
		for length > 0 {
			wider := netip.PrefixFrom(first, length-1)
			if wider.Masked().Addr() != first || lastOf(wider).Compare(last) > 0 {
				break
			}
			length--
		}
		p := netip.PrefixFrom(first, length)
		out = append(out, p)
		first = lastOf(p).Next()
	}
	return out
}

// rules reads what decides beside Frontends.
func (r *Reader) rules(all elements, f *family) (dataplane.Rules, error) {
	const input = "IPVS at LOCAL_IN, by the mark of table " + tableName
	out := dataplane.Rules{
		Hooks:          dataplane.Hooks{Packet: "ipvs", Pod: input, Uplink: input, Node: "IPVS at LOCAL_OUT, by the mark of table " + tableName},
		LoopbackServed: true,
		EmptyFirst:     true, // see ruleset.after
		Masquerade:     dataplane.MasqueradeRules{NodeAsPrimary: true},
	}
	for k := range all {
		if k.set == "uplinks" {
			name, _, _ := strings.Cut(k.key, "\x00")
			out.Uplinks = append(out.Uplinks, name)
		}
	}
	slices.Sort(out.Uplinks)
	var err error
	if out.InternalSources, err = r.internalPrefixes(f); err != nil {
		return out, err
	}
	primary, err := r.table.masqueradeAddress(f)
	if f == ipv4 {
		out.Masquerade.IPv4 = primary
	} else {
		out.Masquerade.IPv6 = primary
	}
	return out, err
}

// internalPrefixes are the ranges of internal-sources.
func (r *Reader) internalPrefixes(f *family) (out []netip.Prefix, err error) {
	starts, ends := []netip.Addr{}, map[netip.Addr]bool{}
	err = r.table.readSet("internal-sources"+f.suffix, func(e nftables.SetElement) {
		a, ok := netip.AddrFromSlice(e.Key)
		switch {
		case ok && e.IntervalEnd:
			ends[a] = true
		case ok:
			starts = append(starts, a)
		}
	})
	slices.SortFunc(starts, netip.Addr.Compare)
	highest := lastOf(netip.PrefixFrom(zeroOf(f), 0))
	for _, first := range starts {
		last := highest
		for end := range ends { // exclusive; the next one after first
			if first.Less(end) && end.Compare(last) <= 0 {
				last = end.Prev()
			}
		}
		out = append(out, prefixesOf(first, last)...)
	}
	return out, err
}

func zeroOf(f *family) netip.Addr {
	if f == ipv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// masqueradeAddress is what the rules put in place of sources, invalid where
// they don't: the value of the first of them that has one.
func (t *table) masqueradeAddress(f *family) (address netip.Addr, err error) {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(tableName), 0)},
		{Type: unix.NFTA_RULE_CHAIN, Data: append([]byte("masquerade"+f.suffix), 0)},
	})
	if err != nil {
		return address, err
	}
	list, err := t.lister.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if err != nil {
		return address, fmt.Errorf("list rules: %w", err)
	}
	for _, m := range list {
		if len(m.Data) < 4 || address.IsValid() {
			continue
		}
		if address, err = immediateIn(m.Data[4:], "masquerade"+f.suffix); err != nil {
			return address, fmt.Errorf("read rules of chain masquerade%s: %w", f.suffix, err)
		}
	}
	return address, nil
}

// immediateIn finds the address that a rule loads, if it is one of the chain.
func immediateIn(rule []byte, chain string) (address netip.Addr, err error) {
	ad, err := netlink.NewAttributeDecoder(rule)
	if err != nil {
		return address, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_CHAIN:
			if ad.String() != chain {
				return netip.Addr{}, nil
			}
		case unix.NFTA_RULE_EXPRESSIONS:
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					if a := immediate(list.Bytes()); a.IsValid() {
						address = a
					}
				}
				return nil
			})
		}
	}
	return address, ad.Err()
}

// immediate is the address that an expression loads.
func immediate(expression []byte) (a netip.Addr) {
	value := func(b []byte, kind uint16) []byte {
		ad, err := netlink.NewAttributeDecoder(b)
		for err == nil && ad.Next() {
			if ad.Type() == kind {
				return ad.Bytes()
			}
		}
		return nil
	}
	if name := value(expression, unix.NFTA_EXPR_NAME); !bytes.Equal(name, []byte("immediate\x00")) {
		return a
	}
	data := value(value(expression, unix.NFTA_EXPR_DATA), unix.NFTA_IMMEDIATE_DATA)
	a, _ = netip.AddrFromSlice(value(data, unix.NFTA_DATA_VALUE))
	return a
}
