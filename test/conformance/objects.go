// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// service is a Service of a case with its endpoints, before it is applied.
// It has addresses and ports that no other Service of the run has.
type service struct {
	*corev1.Service
	story     *Story
	number    int
	targets   map[string]int32 // port name: the endpoints' port
	endpoints []endpoint
	// extraSlices are further EndpointSlices, as the case made them.
	extraSlices [][]endpoint
}

// mainPort is the name of the port that every service has.
const mainPort = "main"

// service makes a ClusterIP Service of the variant's family with one port of
// the variant's protocol.
func (s *Story) service() *service {
	s.bench.numbers++
	n := s.bench.numbers
	name := fmt.Sprintf("s%d-%s", n, s.kase.ID)
	svc := &service{story: s, number: n, targets: map[string]int32{mainPort: 8080}, Service: &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "conformance", Name: name, UID: types.UID(name),
			// API times are whole seconds: the order is the Services' numbers.
			CreationTimestamp: metav1.NewTime(time.Unix(1_700_000_000+int64(n), 0))},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP},
	}}
	svc.families(s.family)
	svc.Spec.Ports = []corev1.ServicePort{svc.newPort(mainPort, s.protocol, 0)}
	return svc
}

func (svc *service) newPort(name, protocol string, offset int) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Protocol: corev1.Protocol(protocol),
		Port: int32(3000 + svc.number + offset*5000), TargetPort: intstr.FromString(name)}
}

// families gives the Service its ClusterIPs.
func (svc *service) families(families ...Family) *service {
	svc.Spec.ClusterIPs, svc.Spec.IPFamilies = nil, nil
	for _, f := range families {
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, svc.clusterIP(f).String())
		svc.Spec.IPFamilies = append(svc.Spec.IPFamilies, f.api())
	}
	svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
	return svc
}

func (f Family) api() corev1.IPFamily {
	if f == IPv6 {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

func (svc *service) clusterIP(f Family) netip.Addr {
	return within(ServiceCIDRs[f.index()], 256+svc.number)
}

// external is an address routed to node1 that no node has.
func (svc *service) external(f Family) netip.Addr {
	return within(externalCIDRs[f.index()], 1+svc.number%250)
}

func (f Family) index() int {
	if f == IPv6 {
		return 1
	}
	return 0
}

// within is the n-th address of a range, n up to 65535.
func within(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-2] += byte(n >> 8)
	b[len(b)-1] += byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// to returns endpoints that the Service is to have, in place of what it had.
func (svc *service) to(endpoints ...endpoint) *service {
	svc.endpoints = endpoints
	return svc
}

// nodePort makes it a NodePort Service.
func (svc *service) nodePort() *service {
	svc.Spec.Type = corev1.ServiceTypeNodePort
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	for i := range svc.Spec.Ports {
		svc.Spec.Ports[i].NodePort = int32(30000 + (svc.number+i*1300)%2768)
	}
	return svc
}

// loadBalancer makes it a LoadBalancer Service with an ingress address.
func (svc *service) loadBalancer(mode corev1.LoadBalancerIPMode) *service {
	svc.nodePort().Spec.Type = corev1.ServiceTypeLoadBalancer
	for _, f := range svc.Spec.IPFamilies {
		a := svc.external(familyFrom(f)).String()
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a, IPMode: &mode})
	}
	return svc
}

func familyFrom(f corev1.IPFamily) Family {
	if f == corev1.IPv6Protocol {
		return IPv6
	}
	return IPv4
}

// externalIP gives it an external address.
func (svc *service) externalIP() *service {
	svc.Spec.ExternalIPs = []string{svc.external(svc.story.family).String()}
	return svc
}

func (svc *service) externalLocal() *service {
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	return svc
}

func (svc *service) internalLocal() *service {
	local := corev1.ServiceInternalTrafficPolicyLocal
	svc.Spec.InternalTrafficPolicy = &local
	return svc
}

// sticky sets sessionAffinity ClientIP with a timeout in seconds.
func (svc *service) sticky(seconds int32) *service {
	svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	return svc
}

// port adds a port with the endpoints' port for it.
func (svc *service) port(name, protocol string, target int32) *service {
	svc.Spec.Ports = append(svc.Spec.Ports, svc.newPort(name, protocol, len(svc.Spec.Ports)))
	svc.targets[name] = target
	if svc.Spec.Type != corev1.ServiceTypeClusterIP {
		svc.nodePort()
	}
	return svc
}

// The Service's Frontends, as clients address them.

func (svc *service) atClusterIP() netip.AddrPort { return svc.at(svc.clusterIP(svc.story.family)) }
func (svc *service) atExternal() netip.AddrPort  { return svc.at(svc.external(svc.story.family)) }

// at is an address with the Service's main port.
func (svc *service) at(a netip.Addr) netip.AddrPort {
	return netip.AddrPortFrom(a, uint16(svc.Spec.Ports[0].Port))
}

// atNodePort is the node port at an address of node1.
func (svc *service) atNodePort() netip.AddrPort { return svc.atNodePortOf(svc.story.node1()) }

func (svc *service) atNodePortOf(a netip.Addr) netip.AddrPort {
	return netip.AddrPortFrom(a, uint16(svc.Spec.Ports[0].NodePort))
}

// endpoint is one endpoint: a member of the lab, in some condition.
type endpoint struct {
	member                      string
	ready, serving, terminating bool
	port                        int32 // in place of the Service's target, 0: that
	zone                        string
	hintZones, hintNodes        []string
}

// on makes ready endpoints.
func on(members ...string) (out []endpoint) {
	for _, m := range members {
		out = append(out, endpoint{member: m, ready: true, serving: true})
	}
	return out
}

func one(member string) endpoint { return on(member)[0] }

func (e endpoint) notReady() endpoint      { e.ready, e.serving = false, false; return e }
func (e endpoint) leaving() endpoint       { e.ready, e.terminating = false, true; return e }
func (e endpoint) dying() endpoint         { e.ready, e.serving, e.terminating = false, false, true; return e }
func (e endpoint) atPort(p int32) endpoint { e.port = p; return e }
func (e endpoint) forZones(z ...string) endpoint {
	e.hintZones = z
	return e
}
func (e endpoint) forNodes(n ...string) endpoint {
	e.hintNodes = n
	return e
}

// render makes the API objects.
func (svc *service) render(o objects) {
	key := types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
	o.services[key] = svc.Service.DeepCopy()
	sets := append([][]endpoint{svc.endpoints}, svc.extraSlices...)
	for _, f := range svc.Spec.IPFamilies {
		for i, set := range sets {
			// A slice has one list of ports: endpoints with others get their own.
			byPort := map[int32][]endpoint{}
			for _, e := range set {
				byPort[e.port] = append(byPort[e.port], e)
			}
			for port, endpoints := range byPort {
				slice := svc.slice(familyFrom(f), fmt.Sprintf("%d-%d", i, port), port, endpoints)
				o.slices[types.NamespacedName{Namespace: slice.Namespace, Name: slice.Name}] = slice
			}
		}
	}
}

func (svc *service) slice(f Family, suffix string, override int32, endpoints []endpoint) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name + "-" + string(f) + "-" + suffix,
			Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}},
		AddressType: discoveryv1.AddressType(f.api()),
	}
	for _, p := range svc.Spec.Ports {
		target := cmp.Or(override, svc.targets[p.Name])
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &target, Protocol: &p.Protocol})
	}
	for _, e := range endpoints {
		slice.Endpoints = append(slice.Endpoints, svc.story.apiEndpoint(f, e))
	}
	return slice
}

func (s *Story) apiEndpoint(f Family, e endpoint) discoveryv1.Endpoint {
	address, node := s.place(f, e.member)
	out := discoveryv1.Endpoint{
		Addresses:  []string{address.String()},
		NodeName:   &node,
		Conditions: discoveryv1.EndpointConditions{Ready: &e.ready, Serving: &e.serving, Terminating: &e.terminating},
	}
	if e.zone != "" {
		out.Zone = &e.zone
	}
	if len(e.hintZones)+len(e.hintNodes) > 0 {
		out.Hints = &discoveryv1.EndpointHints{}
	}
	for _, z := range e.hintZones {
		out.Hints.ForZones = append(out.Hints.ForZones, discoveryv1.ForZone{Name: z})
	}
	for _, n := range e.hintNodes {
		out.Hints.ForNodes = append(out.Hints.ForNodes, discoveryv1.ForNode{Name: n})
	}
	return out
}

// place is where a member is; pods without a process are of the plan only.
func (s *Story) place(f Family, member string) (netip.Addr, string) {
	if m := s.bench.lab.members[member]; m != nil && m.node != nil {
		return m.of(f == IPv6), m.node.Name
	}
	i := slices.IndexFunc(podPlans, func(p podPlan) bool { return p.name == member })
	if i < 0 {
		s.t.Fatalf("the case names %q, which is no pod and no node", member)
	}
	n := s.bench.lab.nodes[podPlans[i].node]
	return n.pod(podPlans[i].last).of(f == IPv6), n.Name
}
