// SPDX-License-Identifier: Apache-2.0

package dataplanetest

import (
	"fmt"
	"net/netip"
	"slices"

	"fairlead.dev/dataplane"
)

// Backends are Active ones at addresses with ports, in their order in a set.
func Backends(at ...string) []dataplane.Backend {
	out := make([]dataplane.Backend, len(at))
	for i, a := range at {
		ap := netip.MustParseAddrPort(a)
		out[i] = dataplane.Backend{Address: ap.Addr(), Port: ap.Port()}
	}
	slices.SortFunc(out, dataplane.CompareBackends)
	return out
}

// ClusterIP is a Service in "default" with one Frontend, whose port is "http".
func ClusterIP(name, at string, p dataplane.Protocol, backends ...dataplane.Backend) *dataplane.Service {
	ap := netip.MustParseAddrPort(at)
	set := dataplane.BackendSet{Backends: backends}
	return &dataplane.Service{Name: dataplane.ServiceName{Namespace: "default", Name: name}, Frontends: []dataplane.Frontend{{
		FrontendKey: dataplane.FrontendKey{Address: ap.Addr(), Port: ap.Port(), Protocol: p},
		Kind:        dataplane.ClusterIP, PortName: "http", Internal: set, External: set, MasqueradeExternal: true,
	}}}
}

// Table is a Table of Services, for a node of which nothing is known.
func Table(services ...*dataplane.Service) *dataplane.Table {
	t := &dataplane.Table{Services: map[dataplane.ServiceName]*dataplane.Service{}}
	for _, s := range services {
		t.Services[s.Name] = s
	}
	return t
}

// Synthetic is a Table of n Services with m Backends each.
func Synthetic(n, m int) *dataplane.Table {
	t := Table()
	for i := range n {
		bs := make([]dataplane.Backend, m)
		for k := range bs {
			bs[k] = dataplane.Backend{Address: netip.AddrFrom4([4]byte{10, 128 + byte(k), byte(i >> 8), byte(i)}), Port: 8080}
		}
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80)
		s := ClusterIP(fmt.Sprintf("s%05d", i), at.String(), dataplane.TCP, bs...)
		t.Services[s.Name] = s
	}
	return t
}

// Node is a node with addresses of both families, prefixes of pods of which one
// lies in another, and prefixes of Services.
func Node() dataplane.Node {
	return dataplane.Node{
		Addresses:   []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")},
		PrimaryIPv4: netip.MustParseAddr("192.0.2.11"), PrimaryIPv6: netip.MustParseAddr("2001:db8::11"),
		InternalSources: prefixes("10.244.0.0/16", "10.244.1.0/24", "fd00:10:244::/48"),
		ServiceCIDRs:    prefixes("10.96.0.0/16", "fd00:10:96::/112"),
	}
}

func prefixes(of ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(of))
	for i, p := range of {
		out[i] = netip.MustParsePrefix(p)
	}
	return out
}
