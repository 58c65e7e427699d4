// SPDX-License-Identifier: Apache-2.0

package conformance

import "net/netip"

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
		ID: "path-one-port-two-flows", Clause: "a client that used a Service may speak to its Backend directly from the same source port, and the reverse",
		Clients: []string{"bypass", "outside", "pod2"},
		Steps: func(s *Story) {
			web := s.service().nodePort().externalLocal().to(on("a")...)
			s.apply(web)
			from := s.freshPort()
			service := func() { s.ask(s.entry(web)).from(from).with(once).reaches("a") }
			direct := func() { s.ask(s.direct("a")).from(from).with(once).seenAs(from.Addr()).reaches("a") }
			for range 2 {
				service()
				direct()
			}
		},
	},
	{
		ID: "path-two-flows-at-once", Clause: "a connection through a Service and one to its Backend directly, from the same source port, are kept apart",
		Clients: []string{"bypass", "outside", "pod2"},
		Steps:   func(s *Story) { s.twoFlows(netip.AddrPortFrom(s.addressOf(s.client), ephemeralPort)) },
	},
	{
		ID: "path-two-flows-chosen-port", Clause: "the same where the client chose its source port itself, below those the kernel chooses",
		Clients: []string{"bypass", "outside", "pod2"},
		Steps:   func(s *Story) { s.twoFlows(s.freshPort()) },
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

func once(r *request) { r.Times = 1 }

// ephemeralPort is one that the kernel may choose for a client.
const ephemeralPort = 60999

// twoFlows holds a connection to a Backend and one through its Service, both
// from one address and port.
func (s *Story) twoFlows(from netip.AddrPort) {
	s.t.Helper()
	web := s.service().nodePort().externalLocal().to(on("a")...)
	s.apply(web)
	direct := s.ask(s.direct("a")).from(from).open()
	service := s.ask(s.entry(web)).from(from).open()
	for range 2 {
		direct.stays()
		service.stays()
	}
}
