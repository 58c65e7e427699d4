// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// managedBy is in the label that says who made an EndpointSlice.
const managedBy = "fairlead.dev/directory"

// slicesOfPods makes the EndpointSlices that an API server's EndpointSlice
// controller would make for a Service of these Pods, keyed by name: one for
// each family and each set of port numbers. The names hold a "~", which no name
// in a manifest can. The Pods match the Service's selector and run on node.
func slicesOfPods(s *corev1.Service, pods []*corev1.Pod, node string) map[string]*discoveryv1.EndpointSlice {
	out := map[string]*discoveryv1.EndpointSlice{}
	for _, p := range pods {
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		ports := endpointPorts(s, p)
		for _, family := range s.Spec.IPFamilies {
			addresses := podAddresses(p, family)
			if len(addresses) == 0 {
				continue
			}
			name := s.Name + "~" + strings.ToLower(string(family)) + "~" + portsID(ports)
			if out[name] == nil {
				out[name] = &discoveryv1.EndpointSlice{
					ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: name,
						Labels: map[string]string{discoveryv1.LabelServiceName: s.Name, discoveryv1.LabelManagedBy: managedBy}},
					AddressType: discoveryv1.AddressType(family), Ports: ports,
				}
			}
			out[name].Endpoints = append(out[name].Endpoints, endpointOf(s, p, addresses, node))
		}
	}
	return out
}

func endpointOf(s *corev1.Service, p *corev1.Pod, addresses []string, node string) discoveryv1.Endpoint {
	serving := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
	terminating := p.DeletionTimestamp != nil
	ready := s.Spec.PublishNotReadyAddresses || serving && !terminating
	return discoveryv1.Endpoint{
		Addresses: addresses, NodeName: &node,
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
}

func podAddresses(p *corev1.Pod, family corev1.IPFamily) (out []string) {
	ips := p.Status.PodIPs
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip.IP); err == nil && familyOf(a) == family {
			out = append(out, ip.IP)
		}
	}
	return out
}

// endpointPorts gives the ports of the Service as this Pod has them; a named
// port that it has not is left out.
func endpointPorts(s *corev1.Service, p *corev1.Pod) []discoveryv1.EndpointPort {
	var out []discoveryv1.EndpointPort
	for i := range s.Spec.Ports {
		sp := s.Spec.Ports[i]
		if number := targetPort(&sp, p); number != 0 {
			out = append(out, discoveryv1.EndpointPort{Name: &sp.Name, Protocol: &sp.Protocol, Port: &number, AppProtocol: sp.AppProtocol})
		}
	}
	return out
}

// targetPort gives 0 where the Pod has no such port. Ports of init containers
// count where those are restarted for ever (KEP-753).
func targetPort(sp *corev1.ServicePort, p *corev1.Pod) int32 {
	if sp.TargetPort.Type == intstr.Int {
		return sp.TargetPort.IntVal
	}
	sidecars := slices.DeleteFunc(slices.Clone(p.Spec.InitContainers), func(c corev1.Container) bool {
		return c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways
	})
	for _, c := range slices.Concat(p.Spec.Containers, sidecars) {
		for _, port := range c.Ports {
			if port.Name == sp.TargetPort.StrVal && port.Protocol == sp.Protocol {
				return port.ContainerPort
			}
		}
	}
	return 0
}

// portsID is the same for the same ports.
func portsID(ports []discoveryv1.EndpointPort) string {
	h := fnv.New32a()
	for _, p := range ports {
		fmt.Fprintf(h, "%s/%s/%d ", *p.Name, *p.Protocol, *p.Port)
	}
	return fmt.Sprintf("%08x", h.Sum32())
}

// selector is a Service's selector, sorted by key. (A map of one entry takes
// ten times the memory, and there are as many as there are Services.)
type selector []label

type label struct{ key, value string }

func selectorOf(m map[string]string) selector {
	s := make(selector, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s = append(s, label{k, m[k]})
	}
	return s
}

// selects reports whether labels are what is asked for; no selector asks for
// none.
func (s selector) selects(labels map[string]string) bool {
	for _, l := range s {
		if have, ok := labels[l.key]; !ok || have != l.value {
			return false
		}
	}
	return len(s) > 0
}

// sortedPods gives the Pods of a namespace that a selector selects, by name.
func sortedPods[K comparable](pods map[K]*corev1.Pod, namespace string, s selector) []*corev1.Pod {
	return slices.SortedFunc(func(yield func(*corev1.Pod) bool) {
		for p := range maps.Values(pods) {
			if p.Namespace == namespace && s.selects(p.Labels) && !yield(p) {
				return
			}
		}
	}, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
}
