// SPDX-License-Identifier: Apache-2.0

package conformance

var policyCases = []Case{
	{
		ID: "external-local", Clause: "with externalTrafficPolicy Local external clients reach this node's Backends only, which see the client's address",
		Clients: []string{"outside", "far"},
		Steps: func(s *Story) {
			web := s.service().nodePort().externalLocal().to(on("a", "c", "d")...)
			s.apply(web)
			s.ask(web.atNodePort()).seenAs(s.addressOf(s.client)).reaches("a", "c")
		},
	},
	{
		ID: "external-local-none-here", Clause: "with externalTrafficPolicy Local and no Backend here, external clients hear nothing",
		Clients: []string{"outside", "far"},
		Steps: func(s *Story) {
			web := s.service().nodePort().externalLocal().to(on("d", "e")...)
			s.apply(web)
			s.ask(web.atNodePort()).dropped()
			s.apply(web.to(on("a", "d")...))
			s.ask(web.atNodePort()).reaches("a")
		},
	},
	{
		ID: "external-local-from-cluster", Clause: "clients of the cluster use external addresses with policy Cluster",
		Clients: []string{"client", "bypass", "host1", "pod2"},
		Steps: func(s *Story) {
			web := s.service().loadBalancer(vip).externalLocal().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atNodePort()).reaches("a", "d")
			s.ask(web.atExternal()).reaches("a", "d")
			s.apply(web.to(on("d")...))
			s.ask(web.atNodePort()).reaches("d")
			s.ask(web.atExternal()).reaches("d")
		},
	},
	{
		ID: "external-local-pods-seen", Clause: "pods of this node are seen as themselves through external addresses of policy Local",
		Clients: pods,
		Steps: func(s *Story) {
			web := s.service().nodePort().externalLocal().to(on("a")...)
			s.apply(web)
			s.ask(web.atNodePort()).seenAs(s.addressOf(s.client)).reaches("a")
		},
	},
	{
		ID: "external-local-terminating", Clause: "with policy Local, terminating Backends of this node are the fallback, not other nodes",
		Clients: []string{"outside"},
		Steps: func(s *Story) {
			web := s.service().nodePort().externalLocal().to(one("a").leaving(), one("d"))
			s.apply(web)
			s.ask(web.atNodePort()).reaches("a")
			s.apply(web.to(one("a").leaving(), one("b"), one("d")))
			s.ask(web.atNodePort()).times(12).reaches("b")
		},
	},
	{
		ID: "external-policy-change", Clause: "externalTrafficPolicy can be changed live",
		Clients: []string{"outside"},
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atNodePort()).seenAs(s.ofNode(0)...).reaches("a", "d")
			s.apply(web.externalLocal())
			s.ask(web.atNodePort()).seenAs(s.addressOf("outside")).reaches("a")
			s.apply(web.nodePort())
			s.ask(web.atNodePort()).seenAs(s.ofNode(0)...).reaches("a", "d")
		},
	},
	{
		ID: "internal-local", Clause: "with internalTrafficPolicy Local clients of this node reach this node's Backends only",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().internalLocal().to(on("a", "c", "d")...)
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("a", "c")
			s.apply(web.to(on("d")...))
			s.ask(web.atClusterIP()).unanswered()
			s.apply(web.to(on("host1", "host2")...))
			s.ask(web.atClusterIP()).reaches("host1")
		},
	},
	{
		ID: "internal-local-external-cluster", Clause: "internalTrafficPolicy Local says nothing about external addresses",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().internalLocal().nodePort().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atNodePort()).reaches("a", "d")
		},
	},
	{
		ID: "internal-local-terminating", Clause: "with internalTrafficPolicy Local, terminating Backends of this node are the fallback",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().internalLocal().to(one("a").leaving(), one("d"))
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("a")
		},
	},
}
