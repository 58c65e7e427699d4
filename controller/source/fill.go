// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// fill gives a Service, as its manifest has it, what an API server would have
// given it: families, ClusterIPs, node ports. The same manifest gets the same
// again. What the Service has no use for any more is taken back.
func (a *allocator) fill(s *corev1.Service) error {
	key := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	if g := a.grants[key]; g != nil {
		g.gone = time.Time{}
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		a.release(key)
		return nil
	}
	if err := a.fillFamilies(s); err != nil {
		return err
	}
	if err := a.fillClusterIPs(key, s); err != nil {
		return err
	}
	return a.fillNodePorts(key, s)
}

// fillFamilies settles ipFamilyPolicy and ipFamilies (KEP-563).
func (a *allocator) fillFamilies(s *corev1.Service) error {
	sp := &s.Spec
	anyFamily := isHeadless(s) && len(sp.Selector) == 0
	if sp.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		if anyFamily {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		sp.IPFamilyPolicy = &policy
	}
	for i, ip := range sp.ClusterIPs {
		if v, err := netip.ParseAddr(ip); err == nil && i >= len(sp.IPFamilies) {
			sp.IPFamilies = append(sp.IPFamilies, familyOf(v))
		}
	}
	if len(sp.IPFamilies) == 0 {
		if len(a.ranges) == 0 {
			return errors.New("wants a ClusterIP: set --service-cidr or spec.clusterIP")
		}
		sp.IPFamilies = []corev1.IPFamily{familyOf(a.ranges[0].Addr())}
	}
	other := corev1.IPv6Protocol
	if sp.IPFamilies[0] == corev1.IPv6Protocol {
		other = corev1.IPv4Protocol
	}
	_, haveOther := a.rangeOf(other)
	if len(sp.IPFamilies) > 1 || *sp.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack {
		return nil
	}
	if haveOther || anyFamily || *sp.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack {
		sp.IPFamilies = append(sp.IPFamilies, other)
	}
	return nil
}

func (a *allocator) fillClusterIPs(key types.NamespacedName, s *corev1.Service) error {
	sp := &s.Spec
	explicit := len(sp.ClusterIPs) // those come first, in the order of ipFamilies
	if isHeadless(s) {
		explicit = len(sp.IPFamilies)
	}
	if g := a.grants[key]; g != nil {
		for _, v := range slices.Clone(g.addrs) {
			if i := slices.Index(sp.IPFamilies, familyOf(v)); i < explicit {
				a.dropAddr(key, v)
			}
		}
	}
	for i := explicit; i < len(sp.IPFamilies); i++ {
		v, err := a.addr(key, sp.IPFamilies[i])
		if err != nil {
			return err
		}
		sp.ClusterIPs = append(sp.ClusterIPs, v.String())
	}
	sp.ClusterIP = ""
	if len(sp.ClusterIPs) > 0 {
		sp.ClusterIP = sp.ClusterIPs[0]
	}
	return nil
}

func (a *allocator) fillNodePorts(key types.NamespacedName, s *corev1.Service) error {
	sp := &s.Spec
	wanted := map[string]bool{}
	allocate := sp.Type == corev1.ServiceTypeNodePort ||
		sp.Type == corev1.ServiceTypeLoadBalancer && (sp.AllocateLoadBalancerNodePorts == nil || *sp.AllocateLoadBalancerNodePorts)
	if allocate {
		for i := range sp.Ports {
			if p := &sp.Ports[i]; p.NodePort == 0 && siblingNodePort(sp.Ports, p) == 0 {
				wanted[portName(sp.Ports, p)] = true
			}
		}
	}
	a.dropPortsBut(key, wanted, wantsHealthCheck(s) && sp.HealthCheckNodePort == 0)
	for i := range sp.Ports {
		p := &sp.Ports[i]
		if !allocate || p.NodePort != 0 {
			continue
		}
		if p.NodePort = siblingNodePort(sp.Ports, p); p.NodePort != 0 {
			continue
		}
		v, err := a.port(key, portName(sp.Ports, p))
		if err != nil {
			return err
		}
		p.NodePort = v
	}
	if !wantsHealthCheck(s) || sp.HealthCheckNodePort != 0 {
		return nil
	}
	v, err := a.port(key, "")
	if err != nil {
		return err
	}
	sp.HealthCheckNodePort = v
	return nil
}

// siblingNodePort gives the node port of another port of the same number and a
// different protocol: as in an API server, the two share it.
func siblingNodePort(ports []corev1.ServicePort, p *corev1.ServicePort) int32 {
	for i := range ports {
		if o := &ports[i]; o.Port == p.Port && o.Protocol != p.Protocol && o.NodePort != 0 {
			return o.NodePort
		}
	}
	return 0
}

// portName names a node port in a grant, by the first port of the number.
func portName(ports []corev1.ServicePort, p *corev1.ServicePort) string {
	for i := range ports {
		if o := &ports[i]; o.Port == p.Port {
			return fmt.Sprintf("%s/%d", o.Protocol, o.Port)
		}
	}
	return ""
}

// dropPortsBut takes back the node ports that are not wanted.
func (a *allocator) dropPortsBut(key types.NamespacedName, wanted map[string]bool, healthCheck bool) {
	g := a.grants[key]
	if g == nil {
		return
	}
	for name, v := range g.nodePorts {
		if !wanted[name] {
			a.dropPort(key, v)
		}
	}
	if g.healthCheck != 0 && !healthCheck {
		a.dropPort(key, g.healthCheck)
	}
}
