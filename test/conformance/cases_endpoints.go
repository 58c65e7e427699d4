// SPDX-License-Identifier: Apache-2.0

package conformance

import "net/netip"

var endpointCases = []Case{
	{
		ID: "terminating-gets-no-new", Clause: "terminating endpoints get no new connection while an active one exists",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(one("a").leaving(), one("b"), one("d").leaving())
			s.apply(web)
			s.ask(s.entry(web)).times(24).reaches("b")
		},
	},
	{
		ID: "terminating-fallback", Clause: "where all endpoints are terminating, those that still serve get the connections",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(one("a").leaving(), one("b").dying(), one("d").leaving())
			s.apply(web)
			s.ask(s.entry(web)).reaches("a", "d")
			s.apply(web.to(one("a").dying(), one("d").dying()))
			s.ask(s.entry(web)).refusedAtOnce()
		},
	},
	{
		ID: "terminating-keeps-established", Clause: "connections to an endpoint that becomes terminating stay",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort()
			for _, backend := range []string{"a", "d"} {
				s.apply(web.to(on(backend)...))
				h := s.ask(s.entry(web)).open()
				s.apply(web.to(one(backend).leaving(), one("b")))
				h.stays()
				s.ask(s.entry(web)).times(12).reaches("b")
				h.stays()
			}
		},
	},
	{
		ID: "publish-not-ready", Clause: "with publishNotReadyAddresses, the API says ready of every endpoint, and terminating ones count",
		Clients: []string{"client", "bypass"},
		Steps: func(s *Story) {
			unready := one("d").dying()
			unready.ready = true
			web := s.service().to(one("a"), unready)
			web.Spec.PublishNotReadyAddresses = true
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("a", "d")
		},
	},
	{
		ID: "endpoints-change", Clause: "new connections go to the endpoints of now as soon as a change is applied",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort()
			for _, now := range [][]string{{"a"}, {"b"}, {"a", "b", "c"}, {"d"}, {"c", "d"}, {"a"}} {
				s.apply(web.to(on(now...)...))
				s.ask(s.entry(web)).reaches(now...)
			}
			s.apply(web.to())
			s.ask(s.entry(web)).refusedAtOnce()
			s.apply(web.to(on("b")...))
			s.ask(s.entry(web)).reaches("b")
		},
	},
	{
		ID: "established-survives-changes", Clause: "a connection to a healthy endpoint does not notice changes of its Service",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a")...)
			s.apply(web)
			h := s.ask(s.entry(web)).open()
			for _, others := range [][]string{{"b"}, {"b", "c", "d"}, {"d"}} {
				s.apply(web.to(on(append(others, "a")...)...))
				h.stays()
			}
			s.apply(web.sticky(600))
			h.stays()
		},
	},
}

// entry is where the variant's client enters a NodePort Service: by its
// ClusterIP, or from beyond the node by the node port of node1.
func (s *Story) entry(svc *service) netip.AddrPort {
	if s.client == "outside" || s.client == "pod2" {
		return svc.atNodePort()
	}
	return svc.atClusterIP()
}
