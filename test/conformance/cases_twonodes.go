// SPDX-License-Identifier: Apache-2.0

package conformance

import "net/netip"

var twoNodeCases = []Case{
	{
		ID: "two-nodes-clusterip", Clause: "pods and processes of every node reach a ClusterIP; pods are seen as themselves",
		Clients: []string{"client", "bypass", "pod2", "host2"}, BothNodes: true,
		Steps: func(s *Story) {
			web := s.service().to(on("a", "d")...)
			s.apply(web)
			q := s.ask(web.atClusterIP())
			if s.client != "host2" {
				q.seenAs(s.addressOf(s.client))
			}
			q.reaches("a", "d")
		},
	},
	{
		ID: "two-nodes-nodeport", Clause: "a node port is open on every node, to Backends on every node, for every client",
		Clients: []string{"client", "bypass", "host1", "pod2", "host2", "outside"}, BothNodes: true,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atNodePortOf(s.node1())).reaches("a", "d")
			s.ask(web.atNodePortOf(s.node2())).reaches("a", "d")
		},
	},
	{
		ID: "two-nodes-external-local", Clause: "with externalTrafficPolicy Local each node serves its own Backends and keeps the client's address",
		Clients: []string{"outside"}, BothNodes: true,
		Steps: func(s *Story) {
			web := s.service().nodePort().externalLocal().to(on("a", "b", "d")...)
			s.apply(web)
			s.ask(web.atNodePortOf(s.node1())).seenAs(s.addressOf("outside")).reaches("a", "b")
			s.ask(web.atNodePortOf(s.node2())).seenAs(s.addressOf("outside")).reaches("d")
		},
	},
	{
		ID: "two-nodes-hostnetwork-backend", Clause: "a node port of one node reaches a process of the other, and the answer comes back",
		Clients: []string{"outside", "client", "bypass", "pod2"}, BothNodes: true,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("host1", "host2")...)
			s.apply(web)
			s.ask(web.atNodePortOf(s.node1())).reaches("host1", "host2")
			s.ask(web.atNodePortOf(s.node2())).reaches("host1", "host2")
		},
	},
	{
		ID: "two-nodes-backend-removed", Clause: "the nodes agree when a Backend is removed",
		Clients: []string{"client", "bypass", "pod2", "outside"}, BothNodes: true,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atNodePortOf(s.node2())).reaches("a", "d")
			s.apply(web.to(on("d")...))
			s.ask(web.atNodePortOf(s.node1())).times(12).reaches("d")
			s.ask(web.atNodePortOf(s.node2())).times(12).reaches("d")
		},
	},
}

// direct is a member's own server.
func (s *Story) direct(name string) netip.AddrPort {
	return netip.AddrPortFrom(s.addressOf(name), 8080)
}
