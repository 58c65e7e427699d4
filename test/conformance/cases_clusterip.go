// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
)

var clusterIPCases = []Case{
	{
		ID: "clusterip-spreads", Clause: "new connections to a ClusterIP are spread evenly over the Backends, local and remote",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().to(on("a", "b", "d")...)
			s.apply(web)
			s.ask(web.atClusterIP()).spreads(240, "a", "b", "d")
		},
	},
	{
		ID: "clusterip-keeps-source", Clause: "a Backend sees a pod that used a ClusterIP with the pod's own address",
		Clients: pods,
		Steps: func(s *Story) {
			web := s.service()
			for _, backend := range []string{"a", "c", "d"} {
				s.apply(web.to(on(backend)...))
				s.ask(web.atClusterIP()).seenAs(s.addressOf(s.client)).reaches(backend)
			}
		},
	},
	{
		ID: "clusterip-from-node", Clause: "a process of the node reaches a ClusterIP and is seen with an address of the node",
		Clients: []string{"host1"},
		Steps: func(s *Story) {
			web := s.service()
			for _, backend := range []string{"a", "c", "d"} {
				s.apply(web.to(on(backend)...))
				s.ask(web.atClusterIP()).seenAs(s.ofNode(0)...).reaches(backend)
			}
		},
	},
	{
		ID: "clusterip-hairpin", Clause: "a pod reaches itself through its own Service",
		Clients: []string{"client", "bypass"},
		Steps: func(s *Story) {
			web := s.service().to(on(s.client)...)
			s.apply(web)
			s.ask(web.atClusterIP()).reaches(s.client)
			s.apply(web.to(on(s.client, "b")...))
			s.ask(web.atClusterIP()).reaches(s.client, "b")
		},
	},
	{
		ID: "clusterip-hostnetwork-backend", Clause: "a Backend may be a process of this node or of another one",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().to(on("host1")...)
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("host1")
			s.apply(web.to(on("host2")...))
			s.ask(web.atClusterIP()).reaches("host2")
		},
	},
	{
		ID: "clusterip-from-beyond", Clause: "a ClusterIP that is routed to a node is served for clients beyond the cluster too",
		Clients: beyond,
		Steps: func(s *Story) {
			web := s.service().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("a", "d")
		},
	},
	{
		ID: "clusterip-multiport", Clause: "each port of a Service goes to its own port of the Backends",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().port("second", s.protocol, 8081).to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atClusterIP()).servedAt(8080).reaches("a", "d")
			s.ask(web.atPort("second")).servedAt(8081).reaches("a", "d")
		},
	},
	{
		ID: "clusterip-two-protocols", Clause: "TCP and UDP on one port number are two ports",
		Protocols: tcpOnly, Clients: near,
		Steps: func(s *Story) {
			dns := s.service().port("other", "UDP", 8081).to(on("a")...)
			dns.Spec.Ports[1].Port = dns.Spec.Ports[0].Port
			s.apply(dns)
			s.ask(dns.atClusterIP()).over("TCP").servedAt(8080).reaches("a")
			s.ask(dns.atClusterIP()).over("UDP").servedAt(8081).reaches("a")
		},
	},
	{
		ID: "clusterip-named-port-differs", Clause: "a named target port may be another number on each endpoint",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().to(one("a"), one("b").atPort(8081), one("d").atPort(9090))
			s.apply(web)
			want := map[string]uint16{"a": 8080, "b": 8081, "d": 9090}
			q := s.ask(web.atClusterIP())
			for _, o := range q.reaches("a", "b", "d") {
				if o.Local.Port() != want[o.Backend] {
					q.fail("each endpoint's own port", o.answer)
				}
			}
		},
	},
	{
		ID: "clusterip-dual-stack", Clause: "a dual-stack Service has a Frontend of each family, each with Backends of its own family",
		Families: ipv4Only, Clients: near,
		Steps: func(s *Story) {
			web := s.service().families(IPv6, IPv4).to(on("a", "d")...)
			s.apply(web)
			s.ask(web.at(web.clusterIP(IPv4))).reaches("a", "d")
			s.ask(web.at(web.clusterIP(IPv6))).reaches("a", "d")
		},
	},
	{
		ID: "clusterip-mapped-socket", Clause: "an IPv6 socket reaches an IPv4 ClusterIP by its IPv4-mapped address",
		Families: ipv4Only, Clients: near,
		Steps: func(s *Story) {
			web := s.service().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atClusterIP()).with(func(r *request) { r.Mapped = true }).reaches("a", "d")
			if s.protocol == "UDP" {
				s.ask(web.atClusterIP()).with(func(r *request) { r.Mapped, r.Unconnected = true, true }).reaches("a", "d")
			}
		},
	},
	{
		ID: "clusterip-sctp", Clause: "SCTP Services are served",
		Protocols: sctpOnly, Clients: []string{"client", "bypass"},
		Steps: func(s *Story) {
			web := s.service().to(on("a", "d")...)
			web.Spec.Ports[0].Port = 8080
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("a", "d")
		},
	},
	{
		ID: "clusterip-sctp-other-port", Clause: "SCTP Services with another target port are served, checksums intact",
		Protocols: sctpOnly, Clients: []string{"client", "bypass"},
		Steps: func(s *Story) {
			web := s.service().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("a", "d")
		},
	},
	{
		ID: "clusterip-many-slices", Clause: "endpoints of all slices count, those in two slices once",
		Clients: []string{"client", "bypass"},
		Steps: func(s *Story) {
			web := s.service().to(on("a", "b")...)
			web.extraSlices = [][]endpoint{on("a"), on("a", "d")}
			s.apply(web)
			s.ask(web.atClusterIP()).spreads(240, "a", "b", "d")
		},
	},
}

// ofNode are all addresses of a node in the variant's family.
func (s *Story) ofNode(i int) (out []netip.Addr) {
	for _, a := range s.bench.lab.nodes[i].Addresses {
		if a.Is6() == (s.family == IPv6) {
			out = append(out, a)
		}
	}
	return out
}

// atPort is the ClusterIP with a named port of the Service.
func (svc *service) atPort(name string) netip.AddrPort {
	for _, p := range svc.Spec.Ports {
		if p.Name == name {
			return netip.AddrPortFrom(svc.clusterIP(svc.story.family), uint16(p.Port))
		}
	}
	svc.story.t.Fatalf("the case names port %q, which its Service has not", name)
	return netip.AddrPort{}
}
