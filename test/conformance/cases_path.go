// SPDX-License-Identifier: Apache-2.0

package conformance

var pathCases = []Case{
	{
		ID: "path-fragments", Clause: "datagrams larger than the MTU pass in both directions",
		Protocols: udpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort()
			for _, backend := range []string{"a", "d", "host1"} {
				s.apply(web.to(on(backend)...))
				q := s.ask(s.entry(web)).with(func(r *request) { r.Times, r.Size, r.ReplySize = 8, 4000, 4000 })
				q.reaches(backend)
			}
		},
	},
	{
		ID: "path-mtu-to-client", Clause: "ICMP errors about a path too narrow for answers reach the Backend (path MTU discovery)",
		Protocols: tcpOnly, Clients: []string{"far"},
		Steps: func(s *Story) {
			web := s.service().nodePort()
			for _, backend := range []string{"a", "d"} {
				s.apply(web.to(on(backend)...))
				s.ask(web.atNodePort()).with(bulk(1 << 20)).reaches(backend)
			}
			s.apply(web.externalLocal().to(on("b")...))
			s.ask(web.atNodePort()).with(bulk(1 << 20)).reaches("b")
		},
	},
	{
		ID: "path-mtu-to-backend", Clause: "ICMP errors about a path too narrow for requests reach the client (path MTU discovery)",
		Protocols: tcpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("narrow")...)
			s.apply(web)
			s.ask(s.entry(web)).with(bulk(1 << 20)).reaches("narrow")
		},
	},
	{
		ID: "path-ipv6-extension-headers", Clause: "IPv6 packets with extension headers before their TCP or UDP header are served",
		Families: ipv6Only, Clients: []string{"bypass", "outside", "pod2"},
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			for _, options := range []string{"hopopts", "dstopts"} {
				s.ask(s.entry(web)).with(func(r *request) { r.Options = options }).reaches("a", "d")
			}
		},
	},
	{
		ID: "path-ipv4-options", Clause: "IPv4 packets with options are served",
		Families: ipv4Only, Clients: []string{"bypass", "outside", "pod2"},
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			s.ask(s.entry(web)).with(func(r *request) { r.Options = "nop" }).reaches("a", "d")
		},
	},
	{
		ID: "path-not-a-service", Clause: "traffic between pods, nodes and clients that is for no Service passes as it was",
		Clients: anywhere,
		Steps: func(s *Story) {
			s.apply(s.service().nodePort().to(on("a", "d")...))
			for _, name := range []string{"a", "d"} {
				q := s.ask(s.direct(name))
				if s.client != "host1" {
					q.seenAs(s.addressOf(s.client))
				}
				q.reaches(name)
			}
		},
	},
}
