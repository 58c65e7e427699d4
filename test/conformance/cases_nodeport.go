// SPDX-License-Identifier: Apache-2.0

package conformance

import "net/netip"

var nodePortCases = []Case{
	{
		ID: "nodeport-cluster", Clause: "with externalTrafficPolicy Cluster a node port reaches every Backend, which sees the node's address",
		Clients: []string{"outside", "far"},
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "c", "d")...)
			s.apply(web)
			s.ask(web.atNodePort()).seenAs(s.ofNode(0)...).reaches("a", "c", "d")
		},
	},
	{
		ID: "nodeport-from-cluster", Clause: "node ports work from pods and nodes of the cluster, local Backend or not",
		Clients: []string{"client", "bypass", "host1", "pod2", "host2"},
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atNodePort()).reaches("a", "d")
		},
	},
	{
		ID: "nodeport-every-address", Clause: "a node port is open on every address of the node",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			for _, a := range s.ofNode(0) {
				s.ask(web.atNodePortOf(a)).reaches("a", "d")
			}
		},
	},
	{
		ID: "nodeport-loopback", Clause: "a process of the node reaches node ports on loopback",
		Clients: []string{"host1"},
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atNodePortOf(s.loopback())).reaches("a", "d")
		},
	},
	{
		ID: "nodeport-not-on-pods-loopback", Clause: "a pod's loopback is the pod's own",
		Clients: pods,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atNodePortOf(s.loopback())).refusedAtOnce()
		},
	},
	{
		ID: "nodeport-hairpin", Clause: "a pod reaches itself through a node port",
		Clients: pods,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on(s.client)...)
			s.apply(web)
			s.ask(web.atNodePort()).reaches(s.client)
		},
	},
	{
		ID: "nodeport-hostnetwork-backend", Clause: "a node port reaches Backends that are processes of nodes",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("host1")...)
			s.apply(web)
			s.ask(web.atNodePort()).reaches("host1")
			s.apply(web.to(on("host2")...))
			s.ask(web.atNodePort()).reaches("host2")
		},
	},
	{
		ID: "nodeport-two-protocols", Clause: "TCP and UDP on one node port are two Frontends",
		Protocols: tcpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			dns := s.service().port("other", "UDP", 8081).nodePort().to(on("a")...)
			dns.Spec.Ports[1].NodePort = dns.Spec.Ports[0].NodePort
			s.apply(dns)
			s.ask(dns.atNodePort()).over("TCP").servedAt(8080).reaches("a")
			s.ask(dns.atNodePort()).over("UDP").servedAt(8081).reaches("a")
		},
	},
	{
		ID: "nodeport-sctp", Clause: "SCTP node ports are served, checksums intact, masqueraded or not",
		Protocols: sctpOnly, Clients: beyond,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atNodePort()).reaches("a", "d")
			s.apply(web.externalLocal())
			s.ask(web.atNodePort()).reaches(s.localIfOutside("a", "d")...)
		},
	},
	{
		ID: "nodeport-dual-stack", Clause: "a dual-stack Service has its node port in both families",
		Families: ipv4Only, Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().families(IPv4, IPv6).nodePort().to(on("a", "d")...)
			s.apply(web)
			n := s.bench.lab.nodes[0]
			s.ask(web.atNodePortOf(n.PrimaryIPv4)).reaches("a", "d")
			s.ask(web.atNodePortOf(n.PrimaryIPv6)).reaches("a", "d")
		},
	},
	{
		ID: "nodeport-many-at-once", Clause: "two hundred connections at once through a node port are kept apart",
		Clients: beyond,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "b", "d")...)
			s.apply(web)
			s.ask(web.atNodePort()).with(func(r *request) { r.Times, r.Parallel, r.Hold = 200, 200, true }).reaches("a", "b", "d")
		},
	},
	{
		ID: "nodeport-source-port-collision", Clause: "two clients with the same source port get masquerade ports of their own",
		Clients: []string{"outside"},
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a")...)
			s.apply(web)
			port := s.freshPort().Port()
			var held []*heldConnection
			for _, who := range []string{"outside", "outside2", "far"} {
				from := netip.AddrPortFrom(s.addressOf(who), port)
				held = append(held, s.ask(web.atNodePort()).by(who).from(from).seenAs(s.ofNode(0)...).open())
			}
			for _, h := range held {
				h.stays()
			}
		},
	},
	{
		ID: "nodeport-does-not-shadow", Clause: "what is no node port still reaches the node's own processes",
		Clients: anywhere,
		Steps: func(s *Story) {
			s.apply(s.service().nodePort().to(on("a")...))
			s.ask(netip.AddrPortFrom(s.node1(), 8080)).reaches("host1")
		},
	},
	{
		ID: "hostport", Clause: "a Pod's hostPort on this node leads to the Pod, and ends with it",
		Clients: anywhere,
		Steps: func(s *Story) {
			pod, at := s.hostPortPod("a")
			s.applyPod(pod)
			s.ask(at).reaches("a")
			s.removePod(pod)
			s.ask(at).unanswered()
		},
	},
}

func (s *Story) loopback() netip.Addr {
	if s.family == IPv6 {
		return netip.IPv6Loopback()
	}
	return netip.MustParseAddr("127.0.0.1")
}

// localIfOutside leaves the Backends of node1 where the policy Local holds for
// the variant's client: it does not for clients of the cluster.
func (s *Story) localIfOutside(backends ...string) (out []string) {
	for _, b := range backends {
		if s.client != "outside" || s.member(b).node.index == 1 {
			out = append(out, b)
		}
	}
	return out
}
