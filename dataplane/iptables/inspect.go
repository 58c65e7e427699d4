// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
)

var _ dataplane.Inspector = (*Reader)(nil)

// Inspect implements dataplane.Inspector.
func (r *Reader) Inspect(at dataplane.FrontendKey) (*dataplane.Inspection, error) {
	in := &dataplane.Inspection{Dataplane: "iptables"}
	in.Rules = rulesOf(nil)
	for _, t := range r.tools {
		if t.v6 != at.Address.Is6() {
			continue
		}
		nat, filter, err := t.rulesFor(at)
		if err != nil {
			return nil, err
		}
		in.Rules = rulesOf(nat)
		if err := inspectFrontend(in, nat, at); err != nil {
			return nil, fmt.Errorf("read %s: %w", command(t.flavour, t.v6, ""), err)
		}
		if in.Frontend != nil {
			return in, ownBackends(in.Frontend)
		}
		if in.RefusedPort = refusedPort(filter, at.Address); in.RefusedPort != "" {
			return in, nil
		}
	}
	return in, nil
}

// rulesFor are at least those that packets to a destination meet. Of legacy
// tables the kernel gives all or nothing.
func (t *tool) rulesFor(at dataplane.FrontendKey) (nat, filter *savedTable, err error) {
	if t.flavour == Legacy {
		saved, err := t.save(context.Background())
		return saved["nat"], saved["filter"], err
	}
	if nat, err = t.follow("nat", at, chainServices, chainMark, chainUplink); err != nil {
		return nil, nil, err
	}
	filter, err = t.follow("filter", at, chainServices)
	return nat, filter, err
}

// Flows implements dataplane.Inspector.
func (r *Reader) Flows(to dataplane.FrontendKey) (_ []dataplane.ConntrackRow, err error) {
	if r.conntrack == nil {
		if r.conntrack, err = netfilter.Open(); err != nil {
			return nil, err
		}
	}
	return r.conntrack.Flows(func(k dataplane.FrontendKey) (name, portName string, ok bool) { return "", "", k == to })
}

// rulesOf reads the chains that are always there. nat may be nil.
func rulesOf(nat *savedTable) dataplane.Rules {
	const prerouting = "netfilter nat PREROUTING (" + chainServices + ")"
	r := dataplane.Rules{
		Hooks:          dataplane.Hooks{Packet: "netfilter", Pod: prerouting, Uplink: prerouting, Node: "netfilter nat OUTPUT (" + chainServices + ")"},
		LoopbackServed: true,
		Masquerade:     dataplane.MasqueradeRules{ByDevice: true, Loopback: true},
	}
	for _, rule := range nat.rulesIn(chainMark) {
		if option(rule, "-g") == chainUplink {
			r.InternalSources = append(r.InternalSources, sourceRange(rule)...)
		}
	}
	for _, rule := range nat.rulesIn(chainUplink) {
		device := cmp.Or(option(rule, "-i"), "+")
		if name, ok := strings.CutSuffix(device, "+"); ok {
			device = name + "*"
		}
		r.Uplinks = append(r.Uplinks, device)
	}
	return r
}

func (t *savedTable) rulesIn(chain string) []string {
	if t == nil || t.chains[chain] == nil {
		return nil
	}
	return t.chains[chain].rules
}

// sourceRange is the source that a rule matches, none where it does not parse.
// A rule that matches every source has no -s.
func sourceRange(rule string) []netip.Prefix {
	s := option(rule, "-s")
	if s == "" {
		return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return nil
	}
	return []netip.Prefix{p}
}

// inspectFrontend follows the rules from a destination to the sets.
func inspectFrontend(in *dataplane.Inspection, nat *savedTable, at dataplane.FrontendKey) error {
	targets, err := leaves(nat)
	if err != nil {
		return err
	}
	target, ok := targets[at]
	if !ok {
		return nil
	}
	ports, err := kernelPorts(nat)
	if err != nil {
		return err
	}
	chain := prefixPort + strings.TrimPrefix(strings.TrimPrefix(target, prefixRanges), prefixPort)
	p := ports[chain]
	if p == nil {
		return fmt.Errorf("chain %s, where %s leads, is missing", chain, at)
	}
	f := &dataplane.Frontend{FrontendKey: at, PortName: p.portName, AffinitySeconds: p.affinity}
	if f.Kind, err = kindNamed(p.kind); err != nil {
		return fmt.Errorf("chain %s: %w", chain, err)
	}
	if in.Service, err = dataplane.ParseServiceName(p.service); err != nil {
		return fmt.Errorf("chain %s: %w", chain, err)
	}
	if f.Internal, err = p.backends(nat, p.internal); err != nil {
		return err
	}
	if f.External, err = p.backends(nat, p.external); err != nil {
		return err
	}
	if strings.HasPrefix(target, prefixRanges) {
		for _, rule := range nat.rulesIn(target) {
			for _, s := range sourceRange(rule) {
				if s.Addr().Is6() == at.Address.Is6() {
					f.SourceRanges = append(f.SourceRanges, s)
				}
			}
		}
	}
	in.Frontend = f
	in.Unread = []dataplane.Unread{{Part: dataplane.UnreadDraining,
		Why: "not readable from iptables: draining Backends, which only keep the flows they have"}}
	said := slices.ContainsFunc(nat.rulesIn(chain), func(rule string) bool {
		f.MasqueradeExternal = f.MasqueradeExternal || option(rule, "-j") == chainMark
		return option(rule, "-j") == chainMark || option(rule, "-j") == chainInternal
	})
	if !said {
		in.Unread = append(in.Unread, dataplane.Unread{Part: dataplane.UnreadMasquerade,
			Why: "not readable from iptables: whether external clients are masked, of a Frontend without Backends"})
	}
	return nil
}

func kindNamed(name string) (dataplane.Kind, error) {
	for k := dataplane.ClusterIP; k <= dataplane.HostPort; k++ {
		if k.String() == name {
			return k, nil
		}
	}
	return 0, fmt.Errorf("kind %q of a Frontend is not known", name)
}

// backends reads the set of a scope.
func (p *kernelPort) backends(nat *savedTable, name string) (out dataplane.BackendSet, err error) {
	if name == "!drop" {
		out.OnEmpty = dataplane.Drop
	}
	rows, err := backendsOf(nat, p.set(name))
	for _, row := range rows {
		b := dataplane.Backend{Address: row.Address, Port: row.Port, Local: row.Local}
		if row.State == dataplane.Terminating.String() {
			b.State = dataplane.Terminating
		}
		out.Backends = append(out.Backends, b)
	}
	slices.SortFunc(out.Backends, dataplane.CompareBackends)
	return out, err
}

// refusedPort is why ports that no Frontend has are refused.
func refusedPort(filter *savedTable, a netip.Addr) string {
	for _, rule := range filter.rulesIn(chainServices) {
		if option(rule, "-j") != chainUnknown {
			continue
		}
		if p, err := netip.ParsePrefix(option(rule, "-d")); err == nil && p.Contains(a) {
			return fmt.Sprintf("the address is in %s, a range of ClusterIPs", p)
		}
	}
	for name := range filter.chains {
		if name != treeAddresses && !strings.HasPrefix(name, treeAddresses+"-") {
			continue
		}
		for _, rule := range filter.rulesIn(name) {
			if claimed, err := address(option(rule, "-d")); err == nil && claimed == a && option(rule, "-j") == chainUnknown {
				return "the address is a ClusterIP"
			}
		}
	}
	return ""
}

// ownBackends marks Backends with an address of this network namespace: rules
// need not say which those are.
func ownBackends(f *dataplane.Frontend) error {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	own := map[netip.Addr]bool{}
	for _, a := range all {
		ip, _ := netip.AddrFromSlice(a.IP)
		own[ip.Unmap()] = true
	}
	for _, set := range []*dataplane.BackendSet{&f.Internal, &f.External} {
		for i := range set.Backends {
			set.Backends[i].HostNetwork = own[set.Backends[i].Address]
		}
	}
	return nil
}
