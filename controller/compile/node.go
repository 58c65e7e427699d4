// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"slices"

	"fairlead.dev/dataplane"
)

// NodeFacts is what compile knows of this node. The lists may be in any order.
type NodeFacts struct {
	// Name is what EndpointSlices call this node; Zone is its
	// topology.kubernetes.io/zone label, empty where unknown.
	Name, Zone string
	// Addresses are all addresses of the node, without loopback ones.
	Addresses []netip.Addr
	// StatusAddresses are those of the Node object. They and the primary ones
	// can never be claimed by a Service. An address that the node merely holds
	// can: load balancers such as kube-vip put their VIPs on an interface.
	StatusAddresses []netip.Addr
	// NodePortAddresses are where NodePort Frontends are made, already chosen.
	// 127.0.0.1 and ::1 may be among them, for the node's own processes.
	NodePortAddresses []netip.Addr
	// PrimaryIPv4 and PrimaryIPv6 are invalid where the node lacks the family.
	PrimaryIPv4, PrimaryIPv6 netip.Addr
	// InternalSources and ServiceCIDRs go to the Table as they are.
	InternalSources, ServiceCIDRs []netip.Prefix
}

// nodeView is NodeFacts in the form that compiling asks questions of.
type nodeView struct {
	name, zone string
	// table is what Dataplanes get.
	table dataplane.Node
	// own are Addresses without link-local IPv6 ones, which come and go with
	// every pod's interface and which neither a Frontend nor a Backend may
	// have, and the primary ones. Sorted.
	own []netip.Addr
	// reserved are the addresses that no Service may claim, sorted.
	reserved []netip.Addr
	// nodePort and hostPort are where NodePorts and hostPorts without a hostIP
	// arrive, by family, sorted.
	nodePort, hostPort [2][]netip.Addr
}

func newNodeView(f NodeFacts) nodeView {
	v := nodeView{name: f.Name, zone: f.Zone, table: dataplane.Node{
		Addresses:   sortedAddrs(f.Addresses),
		PrimaryIPv4: f.PrimaryIPv4, PrimaryIPv6: f.PrimaryIPv6,
		InternalSources: sortedPrefixes(f.InternalSources),
		ServiceCIDRs:    sortedPrefixes(f.ServiceCIDRs),
	}}
	v.own = sortedAddrs(append(slices.DeleteFunc(slices.Clone(v.table.Addresses), isLinkLocal6),
		f.PrimaryIPv4, f.PrimaryIPv6))
	v.reserved = sortedAddrs(append(slices.Clone(f.StatusAddresses), f.PrimaryIPv4, f.PrimaryIPv6))
	nodePort := slices.DeleteFunc(sortedAddrs(f.NodePortAddresses), netip.Addr.IsUnspecified)
	v.nodePort = byFamily(nodePort)
	v.hostPort = byFamily(sortedAddrs(slices.Concat(nodePort, v.own)))
	return v
}

// sameForServices reports whether every Service compiles to the same on both.
func (n *nodeView) sameForServices(o *nodeView) bool {
	same := n.name == o.name && n.zone == o.zone && slices.Equal(n.own, o.own) && slices.Equal(n.reserved, o.reserved) &&
		slices.Equal(n.table.ServiceCIDRs, o.table.ServiceCIDRs)
	for _, f := range families {
		same = same && slices.Equal(n.nodePort[f], o.nodePort[f]) && slices.Equal(n.hostPort[f], o.hostPort[f])
	}
	return same
}

// isOwn reports whether a is an address of this node.
func (n *nodeView) isOwn(a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(n.own, a, netip.Addr.Compare)
	return found
}

func isLinkLocal6(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }

// refuses says why a Service may not claim a, or "". The node's addresses and
// loopback belong to the node, whatever a Service says. A ClusterIP of the
// Service range is still the Service's.
func (n *nodeView) refuses(a netip.Addr, k dataplane.Kind) string {
	if why := unusable(a); why != "" {
		return why
	}
	if _, found := slices.BinarySearchFunc(n.reserved, a, netip.Addr.Compare); !found {
		return ""
	}
	inRange := func(p netip.Prefix) bool { return p.Contains(a) }
	if k == dataplane.ClusterIP && slices.ContainsFunc(n.table.ServiceCIDRs, inRange) {
		return ""
	}
	return "an address of this node"
}

// sortedAddrs unmaps, sorts and leaves out what is invalid or twice.
func sortedAddrs(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if a.IsValid() {
			out = append(out, a.WithZone("").Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func sortedPrefixes(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		if p.IsValid() {
			out = append(out, p.Masked())
		}
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Compact(out)
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func byFamily(addrs []netip.Addr) (out [2][]netip.Addr) {
	for _, a := range addrs {
		out[familyOf(a)] = append(out[familyOf(a)], a)
	}
	return out
}
