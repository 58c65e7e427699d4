// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead.dev/dataplane"
)

const (
	labelServiceProxyName = "service.kubernetes.io/service-proxy-name"
	labelHeadless         = corev1.IsHeadlessService

	// The bounds of sessionAffinityConfig.clientIP.timeoutSeconds, in seconds.
	defaultAffinitySeconds = 10800
	maxAffinitySeconds     = 86400
)

// service is what compile keeps of a Service.
type service struct {
	// rank is creationTimestamp in seconds since 1970, the least for none.
	rank int64
	// clusterIPs has at most one a family; the invalid Addr is none. A family
	// without one has no Frontends of any kind.
	clusterIPs [2]netip.Addr
	// externalIPs and ingress are sorted and of the families of clusterIPs.
	externalIPs, ingress []netip.Addr
	// sourceRanges by family, masked and sorted; empty allows all.
	sourceRanges [2][]netip.Prefix
	ports        []servicePort

	internalLocal, externalLocal bool
	affinitySeconds              uint32
	// healthCheckPort is set where a health check is to be served.
	healthCheckPort uint16
}

type servicePort struct {
	name     unique.Handle[string]
	protocol dataplane.Protocol
	port     uint16
	// nodePort is 0 for none.
	nodePort uint16
}

// isOthers reports whether an object's labels give it to another proxy, or to
// none at all.
func isOthers(labels map[string]string) bool {
	_, otherProxy := labels[labelServiceProxyName]
	_, headless := labels[labelHeadless]
	return otherProxy || headless
}

// parseService returns nil for a Service that is none of ours.
func parseService(s *corev1.Service) (*service, []string) {
	if isOthers(s.Labels) || s.Spec.Type == corev1.ServiceTypeExternalName ||
		s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil, nil
	}
	p := serviceParser{in: s, out: &service{rank: s.CreationTimestamp.Unix()}}
	p.clusterIPs()
	p.ports()
	p.externalIPs()
	p.loadBalancer()
	p.policies()
	p.affinity()
	return p.out, p.reasons
}

type serviceParser struct {
	in      *corev1.Service
	out     *service
	reasons []string
}

func (p *serviceParser) problem(format string, args ...any) {
	p.reasons = append(p.reasons, fmt.Sprintf(format, args...))
}

func (p *serviceParser) clusterIPs() {
	ips := p.in.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{p.in.Spec.ClusterIP}
	}
	for _, s := range ips {
		a, err := parseAddr(s)
		switch {
		case err != nil:
			p.problem("clusterIP %v; it is ignored", err)
		case p.out.clusterIPs[familyOf(a)].IsValid():
			p.problem("clusterIP %s is the second of its family; it is ignored", a)
		default:
			p.out.clusterIPs[familyOf(a)] = a
		}
	}
}

func (p *serviceParser) hasFamily(a netip.Addr) bool { return p.out.clusterIPs[familyOf(a)].IsValid() }

// exposesNodePorts: the types that have nodePorts.
func exposesNodePorts(t corev1.ServiceType) bool {
	return t == corev1.ServiceTypeNodePort || t == corev1.ServiceTypeLoadBalancer
}

func (p *serviceParser) ports() {
	p.out.ports = make([]servicePort, 0, len(p.in.Spec.Ports))
	for i := range p.in.Spec.Ports {
		in := &p.in.Spec.Ports[i]
		proto, err := parseProtocol(string(in.Protocol))
		if err != nil {
			p.problem("port %q: %v; it is ignored", clip(in.Name), err)
			continue
		}
		port, ok := parsePort(in.Port)
		if !ok {
			p.problem("port %q: number %d is not in 1 to 65535; it is ignored", clip(in.Name), in.Port)
			continue
		}
		out := servicePort{name: unique.Make(in.Name), protocol: proto, port: port}
		if in.NodePort != 0 && exposesNodePorts(p.in.Spec.Type) {
			if out.nodePort, ok = parsePort(in.NodePort); !ok {
				p.problem("port %q: nodePort %d is not in 1 to 65535; it is ignored", clip(in.Name), in.NodePort)
				out.nodePort = 0
			}
		}
		p.out.ports = append(p.out.ports, out)
	}
}

func (p *serviceParser) externalIPs() {
	for _, s := range p.in.Spec.ExternalIPs {
		if strings.TrimSpace(s) == "" {
			continue
		}
		a, err := parseAddr(s)
		switch {
		case err != nil:
			p.problem("externalIP %v; it is ignored", err)
		case a.IsLinkLocalUnicast():
			p.problem("externalIP %s is link-local; it is ignored", a)
		case !p.hasFamily(a):
			p.problem("externalIP %s is of a family that the Service has no clusterIP of; it is ignored", a)
		default:
			p.out.externalIPs = append(p.out.externalIPs, a)
		}
	}
	p.out.externalIPs = sortedAddrs(p.out.externalIPs)
}

func (p *serviceParser) loadBalancer() {
	if p.in.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	for i := range p.in.Status.LoadBalancer.Ingress {
		in := &p.in.Status.LoadBalancer.Ingress[i]
		if in.IP == "" || in.IPMode != nil && *in.IPMode != corev1.LoadBalancerIPModeVIP {
			continue
		}
		a, err := parseAddr(in.IP)
		if err != nil {
			p.problem("load balancer ingress %v; it is ignored", err)
		} else if p.hasFamily(a) {
			p.out.ingress = append(p.out.ingress, a)
		}
	}
	p.out.ingress = sortedAddrs(p.out.ingress)
	p.sourceRanges()
}

// sourceRanges reads the field or, where that is empty, the annotation that
// came before it. A range that does not parse is left out, as kube-proxy has
// it: a typo beside a good range then limits more, alone it limits nothing.
func (p *serviceParser) sourceRanges() {
	in := p.in.Spec.LoadBalancerSourceRanges
	if len(in) == 0 {
		in = strings.Split(p.in.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey], ",")
	}
	var all [2]bool
	for _, s := range in {
		s = strings.TrimSpace(s)
		if s == "" {
			continue
		}
		r, err := parsePrefix(s)
		if err != nil {
			p.problem("loadBalancerSourceRanges: %v; it is ignored", err)
			continue
		}
		f := familyOf(r.Addr())
		all[f] = all[f] || r.Bits() == 0
		p.out.sourceRanges[f] = append(p.out.sourceRanges[f], r)
	}
	for _, f := range families {
		if all[f] {
			p.out.sourceRanges[f] = nil
		}
		p.out.sourceRanges[f] = sortedPrefixes(p.out.sourceRanges[f])
	}
}

func (p *serviceParser) policies() {
	spec := &p.in.Spec
	if t := spec.InternalTrafficPolicy; t != nil {
		p.out.internalLocal = *t == corev1.ServiceInternalTrafficPolicyLocal
		if !p.out.internalLocal && *t != corev1.ServiceInternalTrafficPolicyCluster {
			p.problem("internalTrafficPolicy %q is not known; Cluster is used", clip(string(*t)))
		}
	}
	p.out.externalLocal = spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	switch spec.ExternalTrafficPolicy {
	case "", corev1.ServiceExternalTrafficPolicyLocal, corev1.ServiceExternalTrafficPolicyCluster:
	default:
		p.problem("externalTrafficPolicy %q is not known; Cluster is used", clip(string(spec.ExternalTrafficPolicy)))
	}
	if !p.out.externalLocal || spec.Type != corev1.ServiceTypeLoadBalancer || spec.HealthCheckNodePort == 0 {
		return
	}
	port, ok := parsePort(spec.HealthCheckNodePort)
	if !ok {
		p.problem("healthCheckNodePort %d is not in 1 to 65535; it is ignored", spec.HealthCheckNodePort)
		return
	}
	p.out.healthCheckPort = port
}

func (p *serviceParser) affinity() {
	switch p.in.Spec.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
		return
	case corev1.ServiceAffinityClientIP:
	default:
		p.problem("sessionAffinity %q is not known; None is used", clip(string(p.in.Spec.SessionAffinity)))
		return
	}
	p.out.affinitySeconds = defaultAffinitySeconds
	c := p.in.Spec.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return
	}
	t := *c.ClientIP.TimeoutSeconds
	if t < 1 || t > maxAffinitySeconds {
		p.problem("sessionAffinity timeoutSeconds %d is not in 1 to %d; %d is used", t, maxAffinitySeconds, defaultAffinitySeconds)
		return
	}
	p.out.affinitySeconds = uint32(t)
}

// allowedSources are the source ranges of a LoadBalancer Frontend. A load
// balancer's address is often held by the node too: a request from the node
// then comes from that address, so it is allowed where the node is.
func (s *service) allowedSources(vip netip.Addr, n *nodeView) []netip.Prefix {
	ranges := s.sourceRanges[familyOf(vip)]
	self := netip.PrefixFrom(vip, vip.BitLen())
	if slices.Contains(ranges, self) || !slices.ContainsFunc(ranges, func(r netip.Prefix) bool {
		return slices.ContainsFunc(n.own, r.Contains)
	}) {
		return ranges
	}
	return sortedPrefixes(append(slices.Clone(ranges), self))
}

// serviceOf is the Service whose endpoints a slice holds, "" for none.
func serviceOf(s *discoveryv1.EndpointSlice) string { return s.Labels[discoveryv1.LabelServiceName] }
