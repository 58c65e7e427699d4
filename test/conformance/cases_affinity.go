// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
	"slices"
	"time"
)

var affinityCases = []Case{
	{
		ID: "affinity-sticks", Clause: "with sessionAffinity ClientIP all connections of a client go to one Backend",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().sticky(600).to(on("a", "b", "d")...)
			s.apply(web)
			first := s.ask(s.entry(web)).reachesOneOf("a", "b", "d")
			s.ask(s.entry(web)).times(24).reaches(first)
		},
	},
	{
		ID: "affinity-by-client", Clause: "sessionAffinity is each client's own",
		Clients: []string{"outside"},
		Steps: func(s *Story) {
			web := s.service().nodePort().sticky(600).to(on("a", "d")...)
			s.apply(web)
			homes := s.homes(web)
			s.spreadOut(homes)
			if again := s.homes(web); !slices.Equal(homes, again) {
				s.t.Fatalf("clause: %s\nwant: the Backends of before, %v\nseen: %v", s.kase.Clause, homes, again)
			}
		},
	},
	{
		ID: "affinity-one-client-both-paths", Clause: "a client has one affinity, whether the socket hooks see its sockets or not",
		Clients: []string{"client", "client-unhooked"},
		Steps: func(s *Story) {
			other := map[string]string{"client": "client-unhooked", "client-unhooked": "client"}[s.client]
			web := s.service().sticky(600).to(on("a", "b", "c", "d")...)
			s.apply(web)
			// The hooks learn a pod's address from its traffic.
			s.ask(netip.AddrPortFrom(s.addressOf("a"), 8080)).reaches("a")
			for range 3 {
				first := s.ask(web.atClusterIP()).reachesOneOf("a", "b", "c", "d")
				s.ask(web.atClusterIP()).by(other).times(12).reaches(first)
				s.remove(web)
				s.apply(web)
			}
		},
	},
	{
		ID: "affinity-expires", Clause: "affinity is kept by use and ends when it was not used for its timeout",
		Protocols: tcpOnly, Clients: []string{"outside"},
		Steps: func(s *Story) {
			web := s.service().nodePort().sticky(2).to(on("a", "d")...)
			s.apply(web)
			homes := s.homes(web)
			for range 2 {
				time.Sleep(1100 * time.Millisecond)
				if again := s.homes(web); !slices.Equal(homes, again) {
					s.t.Fatalf("clause: %s\nwant: kept by use every second, %v\nseen: %v", s.kase.Clause, homes, again)
				}
			}
			time.Sleep(3100 * time.Millisecond)
			// A client more, or Backends taken in turns would come back as before.
			s.ask(web.atNodePort()).reachesOneOf("a", "d")
			if again := s.homes(web); slices.Equal(homes, again) {
				s.t.Fatalf("clause: %s\nwant: other Backends after 3 s without use\nseen: the same for %d clients", s.kase.Clause, len(again))
			}
		},
	},
	{
		ID: "affinity-expires-near", Clause: "affinity of pods and nodes ends after its timeout too",
		Families: ipv4Only, Protocols: tcpOnly, Clients: near,
		Steps: func(s *Story) {
			// One client, so many Services: by chance all stay in one of 4096.
			var before, after []string
			var webs []*service
			for range 12 {
				webs = append(webs, s.service().sticky(1).to(on("a", "d")...))
			}
			s.apply(webs...)
			for _, web := range webs {
				before = append(before, s.ask(web.atClusterIP()).reachesOneOf("a", "d"))
			}
			time.Sleep(2100 * time.Millisecond)
			for _, web := range webs {
				after = append(after, s.ask(web.atClusterIP()).reachesOneOf("a", "d"))
			}
			if slices.Equal(before, after) {
				s.t.Fatalf("clause: %s\nwant: other Backends after 2 s without use\nseen: the same for 12 Services", s.kase.Clause)
			}
		},
	},
	{
		ID: "affinity-switched", Clause: "sessionAffinity can be switched on and off live",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "b", "d")...)
			s.apply(web)
			s.ask(s.entry(web)).reaches("a", "b", "d")
			s.apply(web.sticky(600))
			first := s.ask(s.entry(web)).reachesOneOf("a", "b", "d")
			s.ask(s.entry(web)).times(24).reaches(first)
			web.Spec.SessionAffinity, web.Spec.SessionAffinityConfig = "None", nil
			s.apply(web)
			s.ask(s.entry(web)).reaches("a", "b", "d")
		},
	},
	{
		ID: "affinity-backend-gone", Clause: "a client whose Backend is removed or terminating gets another, and stays there",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().sticky(600).to(on("a", "d")...)
			s.apply(web)
			first := s.ask(s.entry(web)).reachesOneOf("a", "d")
			other := map[string]string{"a": "d", "d": "a"}[first]
			s.apply(web.to(one(first).leaving(), one(other)))
			s.ask(s.entry(web)).times(12).reaches(other)
			s.apply(web.to(on(first, other)...))
			s.ask(s.entry(web)).times(12).reaches(other)
			s.apply(web.to(on(first)...))
			s.ask(s.entry(web)).times(12).reaches(first)
		},
	},
}

// homes asks with each address of the client "outside" and returns which
// Backend answered each, for three connections each.
func (s *Story) homes(svc *service) (out []string) {
	s.t.Helper()
	for i := range extraClients {
		from := netip.AddrPortFrom(extraClient(i).of(s.family == IPv6), 0)
		q := s.ask(svc.atNodePort()).from(from)
		q.r.Times = 3
		got := q.check(q.do())
		if len(got) != 1 {
			q.fail("one Backend for each client", got)
		}
		for name := range got {
			out = append(out, name)
		}
	}
	return out
}

// spreadOut expects more than one Backend among the clients' homes.
func (s *Story) spreadOut(homes []string) {
	s.t.Helper()
	if first := homes[0]; !slices.ContainsFunc(homes, func(h string) bool { return h != first }) {
		s.t.Fatalf("clause: %s\nwant: %d clients spread over the Backends\nseen: all at %s", s.kase.Clause, len(homes), first)
	}
}
