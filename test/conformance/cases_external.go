// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const vip = corev1.LoadBalancerIPModeVIP

var externalCases = []Case{
	{
		ID: "externalip", Clause: "an external IP that no node has is served where it is routed to",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().externalIP().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atExternal()).reaches("a", "d")
		},
	},
	{
		ID: "externalip-local", Clause: "externalTrafficPolicy Local holds for external IPs: source kept, Backends of this node only",
		Clients: []string{"outside"},
		Steps: func(s *Story) {
			web := s.service().externalIP().nodePort().externalLocal().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atExternal()).seenAs(s.addressOf("outside")).reaches("a")
		},
	},
	{
		ID: "externalip-sctp", Clause: "SCTP Services are served beyond the cluster, masqueraded or not",
		Protocols: sctpOnly, Clients: beyond,
		Steps: func(s *Story) {
			web := s.service().externalIP().nodePort().to(on("a", "d")...)
			web.Spec.Ports[0].Port = 8080
			s.apply(web)
			s.ask(web.atExternal()).reaches("a", "d")
			s.apply(web.externalLocal())
			s.ask(web.atExternal()).reaches(s.localIfOutside("a", "d")...)
		},
	},
	{
		ID: "externalip-conflict", Clause: "of two Services that claim one address and port, the older has it; the other gets it afterwards",
		Clients: []string{"client", "outside"},
		Steps: func(s *Story) {
			older, newer := s.service().externalIP().to(on("a")...), s.service().to(on("b")...)
			newer.Spec.ExternalIPs, newer.Spec.Ports[0].Port = older.Spec.ExternalIPs, older.Spec.Ports[0].Port
			s.apply(newer)
			s.ask(older.atExternal()).reaches("b")
			s.apply(older)
			s.ask(older.atExternal()).reaches("a")
			s.reports(newer)
			s.remove(older)
			s.ask(older.atExternal()).reaches("b")
		},
	},
	{
		ID: "loadbalancer-vip", Clause: "a load balancer's address of ipMode VIP is served",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().loadBalancer(vip).to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atExternal()).reaches("a", "d")
			s.ask(web.atNodePort()).reaches("a", "d")
		},
	},
	{
		ID: "loadbalancer-local", Clause: "externalTrafficPolicy Local holds for a load balancer's address",
		Clients: []string{"outside"},
		Steps: func(s *Story) {
			web := s.service().loadBalancer(vip).externalLocal().to(on("a", "d")...)
			s.apply(web)
			s.ask(web.atExternal()).seenAs(s.addressOf("outside")).reaches("a")
			s.apply(web.to(on("d")...))
			s.ask(web.atExternal()).dropped()
		},
	},
	{
		ID: "loadbalancer-ipmode-proxy", Clause: "a load balancer's address of ipMode Proxy is left to the load balancer",
		Clients: near,
		Steps: func(s *Story) {
			web := s.service().loadBalancer(corev1.LoadBalancerIPModeProxy).to(on("a")...)
			s.apply(web)
			s.ask(web.atExternal()).unanswered()
			s.ask(web.atNodePort()).reaches("a")
		},
	},
	{
		ID: "loadbalancer-two-protocols", Clause: "a load balancer's address serves TCP and UDP on one port",
		Protocols: tcpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			dns := s.service().port("other", "UDP", 8081).loadBalancer(vip).to(on("a")...)
			dns.Spec.Ports[1].Port = dns.Spec.Ports[0].Port
			s.apply(dns)
			s.ask(dns.atExternal()).over("TCP").servedAt(8080).reaches("a")
			s.ask(dns.atExternal()).over("UDP").servedAt(8081).reaches("a")
		},
	},
	{
		ID: "source-ranges", Clause: "loadBalancerSourceRanges lets its clients pass and drops the others",
		Clients: []string{"outside", "client", "bypass"},
		Steps: func(s *Story) {
			web := s.service().loadBalancer(vip).to(on("a", "d")...)
			web.Spec.LoadBalancerSourceRanges = []string{hostPrefix(s.addressOf(s.client))}
			s.apply(web)
			s.ask(web.atExternal()).reaches("a", "d")
			web.Spec.LoadBalancerSourceRanges = []string{hostPrefix(s.addressOf("outside2"))}
			s.apply(web)
			s.ask(web.atExternal()).dropped()
			web.Spec.LoadBalancerSourceRanges = nil
			s.apply(web)
			s.ask(web.atExternal()).reaches("a", "d")
		},
	},
	{
		ID: "source-ranges-node", Clause: "a node that its loadBalancerSourceRanges name may use its load balancers' addresses",
		Clients: []string{"host1"},
		Steps: func(s *Story) {
			web := s.service().loadBalancer(vip).to(on("a", "d")...)
			web.Spec.LoadBalancerSourceRanges = []string{hostPrefix(s.node1())}
			s.apply(web)
			s.ask(web.atExternal()).reaches("a", "d")
		},
	},
	{
		ID: "source-ranges-not-elsewhere", Clause: "loadBalancerSourceRanges is about the load balancer's address only",
		Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().loadBalancer(vip).to(on("a", "d")...)
			web.Spec.LoadBalancerSourceRanges = []string{hostPrefix(s.addressOf("outside2"))}
			s.apply(web)
			s.ask(s.entry(web)).reaches("a", "d")
			s.ask(web.atNodePort()).reaches("a", "d")
		},
	},
}

func hostPrefix(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

// reports expects that node1 has a Problem about the Service.
func (s *Story) reports(svc *service) {
	s.t.Helper()
	for _, p := range s.agents[0].problems {
		if strings.Contains(p.Object, svc.Name) {
			return
		}
	}
	s.t.Fatalf("clause: %s\nwant: a Problem that names %s\nseen: %v", s.kase.Clause, svc.Name, s.agents[0].problems)
}

// hostPortPod is a Pod of node1 with a hostPort, and where that is.
func (s *Story) hostPortPod(member string) (*corev1.Pod, netip.AddrPort) {
	s.bench.numbers++
	port := int32(20000 + s.bench.numbers)
	address, node := s.place(s.family, member)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "conformance", Name: "hostport-" + member, UID: types.UID("hostport-" + member),
			CreationTimestamp: metav1.Unix(1_700_000_000, 0)},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{
			{HostPort: port, ContainerPort: 8080, Protocol: corev1.Protocol(s.protocol)}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address.String(), PodIPs: []corev1.PodIP{{IP: address.String()}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	return pod, netip.AddrPortFrom(s.node1(), uint16(port))
}

func (s *Story) removePod(p *corev1.Pod) {
	s.t.Helper()
	now := newObjects()
	now.pods[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = nil
	s.give(now)
}
