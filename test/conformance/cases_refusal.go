// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

var refusalCases = []Case{
	{
		ID: "refused-no-backends", Clause: "a Service without endpoints refuses at once",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service()
			s.apply(web)
			s.ask(web.atClusterIP()).refusedAtOnce()
		},
	},
	{
		ID: "refused-no-backends-nodeport", Clause: "a NodePort of a Service without endpoints refuses at once, whatever its policy",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a")...)
			s.apply(web)
			s.ask(web.atNodePort()).reaches("a")
			s.apply(web.to())
			s.ask(web.atNodePort()).refusedAtOnce()
			s.apply(web.externalLocal())
			s.ask(web.atNodePort()).refusedAtOnce()
		},
	},
	{
		ID: "refused-no-backends-external", Clause: "an external address of a Service without endpoints refuses at once",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().externalIP()
			s.apply(web)
			s.ask(web.atExternal()).refusedAtOnce()
		},
	},
	{
		ID: "refused-unready", Clause: "endpoints that are not ready get no connection",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().to(one("a").notReady())
			s.apply(web)
			s.ask(web.atClusterIP()).refusedAtOnce()
			s.apply(web.to(one("a").notReady(), one("b")))
			s.ask(web.atClusterIP()).reaches("b")
		},
	},
	{
		ID: "refused-unknown-port", Clause: "a port that the Service does not have is refused at its ClusterIP, not routed",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().to(on("a")...)
			s.apply(web)
			s.ask(netip.AddrPortFrom(web.atClusterIP().Addr(), 1234)).refusedAtOnce()
		},
	},
	{
		ID: "refused-unknown-protocol", Clause: "the other protocol on a Service's port is refused at its ClusterIP",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().to(on("a")...)
			s.apply(web)
			other := map[string]string{"TCP": "UDP", "UDP": "TCP"}[s.protocol]
			s.ask(web.atClusterIP()).over(other).refusedAtOnce()
		},
	},
	{
		ID: "refused-unconnected", Clause: "sendto to a Service without endpoints fails at once where the socket hooks see it",
		Protocols: udpOnly, Clients: hooked,
		Steps: func(s *Story) {
			web := s.service()
			s.apply(web)
			s.ask(web.atClusterIP()).with(func(r *request) { r.Unconnected = true }).refusedAtOnce()
		},
	},
	{
		ID: "refused-by-backend", Clause: "a Backend's own refusal reaches the client, as coming from the Service",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(one("a").atPort(9))
			s.apply(web)
			s.ask(web.atNodePort()).refusedAtOnce()
			if s.client != "outside" && s.client != "pod2" {
				s.ask(web.atClusterIP()).refusedAtOnce()
			}
			s.apply(web.to(one("d").atPort(9)))
			s.ask(web.atNodePort()).refusedAtOnce()
		},
	},
	{
		ID: "ignored-labels", Clause: "Services labelled for another proxy, or headless, are not served",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().to(on("a")...)
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("a")
			for _, label := range []string{"service.kubernetes.io/service-proxy-name", corev1.IsHeadlessService} {
				web.Labels = map[string]string{label: "other"}
				s.apply(web)
				s.ask(web.atClusterIP()).unanswered()
			}
			web.Labels = nil
			s.apply(web)
			s.ask(web.atClusterIP()).reaches("a")
		},
	},
}
