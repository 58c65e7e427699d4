// SPDX-License-Identifier: Apache-2.0

package conformance

import corev1 "k8s.io/api/core/v1"

var topologyCases = []Case{
	{
		ID: "hints-zone", Clause: "EndpointSlice hints keep traffic in the node's zone, where every endpoint has one and some are for it",
		Clients: near,
		Steps: func(s *Story) {
			close := corev1.ServiceTrafficDistributionPreferSameZone
			web := s.service().to(one("a").forZones(zone), one("b").forZones("zone-2"), one("d").forZones(zone, "zone-2"))
			web.Spec.TrafficDistribution = &close
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("a", "d")
			s.apply(web.to(one("a").forZones(zone), one("b"), one("d").forZones(zone)))
			s.ask(web.atClusterIP()).reaches("a", "b", "d")
			s.apply(web.to(one("a").forZones("zone-2"), one("d").forZones("zone-3")))
			s.ask(web.atClusterIP()).reaches("a", "d")
		},
	},
	{
		ID: "hints-node", Clause: "hints for nodes keep traffic on the node (KEP-3015)",
		Clients: near,
		Steps: func(s *Story) {
			same := corev1.ServiceTrafficDistributionPreferSameNode
			web := s.service().to(one("a").forNodes("node1"), one("b").forNodes("node2"), one("d").forNodes("node2"))
			web.Spec.TrafficDistribution = &same
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("a")
			s.apply(web.to(one("b").forNodes("node2"), one("d").forNodes("node2")))
			s.ask(web.atClusterIP()).reaches("b", "d")
		},
	},
	{
		ID: "hints-keep-established", Clause: "a hint that moves new connections elsewhere leaves the established ones",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().to(on("d")...)
			s.apply(web)
			h := s.ask(web.atClusterIP()).open()
			s.apply(web.to(one("a").forZones(zone), one("d").forZones("zone-2")))
			s.ask(web.atClusterIP()).times(12).reaches("a")
			h.stays()
		},
	},
}
