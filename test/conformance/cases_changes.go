// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

var changeCases = []Case{
	{
		ID: "change-type", Clause: "a Service can change between ClusterIP, NodePort, LoadBalancer and ExternalName in every direction",
		Clients: []string{"client", "outside"},
		Steps: func(s *Story) {
			web := s.service()
			base := web.Spec.DeepCopy()
			types := []corev1.ServiceType{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}
			// A walk over the complete graph of types: each direction once.
			for _, i := range []int{0, 1, 2, 3, 0, 2, 0, 3, 1, 3, 2, 1, 0} {
				web.become(types[i], base)
				s.apply(web.to(on("a")...))
				s.checkType(web)
			}
		},
	},
	{
		ID: "change-ports", Clause: "ports can be added, moved and removed",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().to(on("a", "d")...)
			s.apply(web)
			old := web.atClusterIP()
			s.apply(web.port("second", s.protocol, 8081))
			s.ask(old).servedAt(8080).reaches("a", "d")
			s.ask(web.atPort("second")).servedAt(8081).reaches("a", "d")
			web.Spec.Ports[0].Port++
			s.apply(web)
			s.ask(old).refusedAtOnce()
			s.ask(web.atClusterIP()).servedAt(8080).reaches("a", "d")
			web.Spec.Ports = web.Spec.Ports[1:]
			s.apply(web)
			s.ask(netip.AddrPortFrom(old.Addr(), old.Port()+1)).refusedAtOnce()
			s.ask(web.atPort("second")).servedAt(8081).reaches("a", "d")
		},
	},
	{
		ID: "change-target-port", Clause: "a new target port takes new connections at once",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			s.ask(s.entry(web)).servedAt(8080).reaches("a", "d")
			web.targets[mainPort] = 9090
			s.apply(web)
			s.ask(s.entry(web)).servedAt(9090).reaches("a", "d")
		},
	},
	{
		ID: "change-node-port", Clause: "a node port that changed is served, and the one of before no more",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a")...)
			s.apply(web)
			old := web.atNodePort()
			s.ask(old).reaches("a")
			web.Spec.Ports[0].NodePort += 3000
			s.apply(web)
			s.ask(old).unanswered()
			s.ask(web.atNodePort()).reaches("a")
		},
	},
	{
		ID: "recreated", Clause: "a Service that is deleted is not served, and is again when it comes back with the same address",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().to(on("a")...)
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("a")
			s.remove(web)
			s.ask(web.atClusterIP()).unanswered()
			s.apply(web.to(on("b", "d")...))
			s.ask(web.atClusterIP()).reaches("b", "d")
		},
	},
	{
		ID: "address-reused", Clause: "another Service that takes over an address gets its traffic, and no affinity or flow of the one before",
		Clients: anywhere,
		Steps: func(s *Story) {
			first := s.service().nodePort().sticky(600).to(on("a")...)
			s.apply(first)
			s.ask(s.entry(first)).reaches("a")
			second := s.service().nodePort().sticky(600).to(on("b")...)
			second.Spec = *first.Spec.DeepCopy()
			s.remove(first)
			s.apply(second)
			s.ask(s.entry(first)).times(12).reaches("b")
		},
	},
}

// become gives the Service a type, from its first spec.
func (svc *service) become(t corev1.ServiceType, base *corev1.ServiceSpec) {
	svc.Spec = *base.DeepCopy()
	svc.Status = corev1.ServiceStatus{}
	switch t {
	case corev1.ServiceTypeNodePort:
		svc.nodePort()
	case corev1.ServiceTypeLoadBalancer:
		svc.loadBalancer(vip)
	case corev1.ServiceTypeExternalName:
		svc.Spec.Type, svc.Spec.ExternalName = t, "elsewhere.example"
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs, svc.Spec.IPFamilies = "", nil, nil
	}
}

// checkType asks at every address the Service may have.
func (s *Story) checkType(web *service) {
	s.t.Helper()
	t := web.Spec.Type
	nodePort := web.atNodePort()
	if nodePort.Port() == 0 {
		copied := *web
		copied.Service = web.Service.DeepCopy()
		nodePort = copied.nodePort().atNodePort()
	}
	expect := func(to netip.AddrPort, served bool) {
		s.t.Helper()
		if served {
			s.ask(to).reaches("a")
		} else {
			s.ask(to).unanswered()
		}
	}
	expect(web.atClusterIP(), t != corev1.ServiceTypeExternalName)
	expect(nodePort, t == corev1.ServiceTypeNodePort || t == corev1.ServiceTypeLoadBalancer)
	expect(web.atExternal(), t == corev1.ServiceTypeLoadBalancer)
}
