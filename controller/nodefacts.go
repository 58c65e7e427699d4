// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/controller/compile"
)

// taintToBeDeleted is what the cluster autoscaler puts on a node that it is
// about to remove (KEP-3836).
const taintToBeDeleted = "ToBeDeletedByClusterAutoscaler"

// nodeObject is what the Node object says.
type nodeObject struct {
	zone        string
	internalIPs []netip.Addr
	addresses   []netip.Addr // all of status.addresses
	podCIDRs    []netip.Prefix
	// leaving: the node is being deleted, so load balancers are to avoid it.
	leaving bool
}

// parseNode takes what is needed of a Node. A Node that is gone is leaving; its
// last facts stay true for the traffic that still comes, so they are kept.
func parseNode(n *corev1.Node, last nodeObject) nodeObject {
	if n == nil {
		last.leaving = true
		return last
	}
	o := nodeObject{zone: n.Labels[corev1.LabelTopologyZone], leaving: n.DeletionTimestamp != nil}
	for _, t := range n.Spec.Taints {
		o.leaving = o.leaving || t.Key == taintToBeDeleted
	}
	for _, a := range n.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		if err != nil {
			continue // a host name
		}
		ip = ip.Unmap().WithZone("")
		o.addresses = append(o.addresses, ip)
		if a.Type == corev1.NodeInternalIP {
			o.internalIPs = append(o.internalIPs, ip)
		}
	}
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	for _, s := range cidrs {
		if p, err := netip.ParsePrefix(s); err == nil {
			o.podCIDRs = append(o.podCIDRs, p.Masked())
		}
	}
	return o
}

// factRules are the options that node facts are derived with.
type factRules struct {
	name         string
	nodeIPs      []netip.Addr
	nodePort     nodePortAddresses
	clusterCIDRs []netip.Prefix
	serviceCIDRs []netip.Prefix
}

// facts derives the node's facts from its addresses and its Node object.
func (r factRules) facts(h hostAddresses, o nodeObject) compile.NodeFacts {
	f := compile.NodeFacts{
		Name: r.name, Zone: o.zone,
		PrimaryIPv4:  r.primary(h, o, h.default4, netip.Addr.Is4),
		PrimaryIPv6:  r.primary(h, o, h.default6, netip.Addr.Is6),
		ServiceCIDRs: sortedPrefixes(r.serviceCIDRs),
		// Addresses given by --bind-address are the node's as much.
		StatusAddresses: slices.Concat(o.addresses, r.nodeIPs),
	}
	f.InternalSources = sortedPrefixes(r.clusterCIDRs)
	if len(r.clusterCIDRs) == 0 {
		f.InternalSources = sortedPrefixes(o.podCIDRs)
	}
	for _, a := range h.all {
		// A link-local IPv6 address means nothing without its link. IPv4 ones
		// are used as ordinary addresses of one node (node-local DNS).
		if !a.IsLoopback() && (a.Is4() || !a.IsLinkLocalUnicast()) {
			f.Addresses = append(f.Addresses, a.Addr)
		}
		// An agent such as node-local DNS may hold a Service's address.
		if r.isServiceAddress(a.Addr) {
			continue
		}
		if (a.Is4() || !a.IsLinkLocalUnicast()) && r.nodePort.choose(a.Addr, f.PrimaryIPv4, f.PrimaryIPv6) {
			f.NodePortAddresses = append(f.NodePortAddresses, a.Addr)
		}
	}
	return f
}

// primary is the address of one family that the node is known by: the Node
// object's InternalIP, else --bind-address, else the source of the default
// route, else the first global address; always one that is on this host.
func (r factRules) primary(h hostAddresses, o nodeObject, byRoute netip.Addr, family func(netip.Addr) bool) netip.Addr {
	named := slices.Concat(o.internalIPs, r.nodeIPs, []netip.Addr{byRoute})
	for _, a := range named {
		if family(a) && h.has(a) {
			return a
		}
	}
	for _, a := range h.all {
		if family(a.Addr) && !a.deprecated && a.IsGlobalUnicast() && !r.isServiceAddress(a.Addr) {
			return a.Addr
		}
	}
	return netip.Addr{}
}

func (h hostAddresses) has(a netip.Addr) bool {
	return slices.ContainsFunc(h.all, func(o hostAddress) bool { return o.Addr == a })
}

func (r factRules) isServiceAddress(a netip.Addr) bool {
	return slices.ContainsFunc(r.serviceCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

func sortedPrefixes(ps []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(ps))
	for _, p := range ps {
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out)
}
