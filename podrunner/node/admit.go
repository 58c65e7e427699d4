// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// Refusal is why a Pod is not admitted to the node: it fails with this reason
// and message in its status.
type Refusal struct {
	Reason, Message string
}

// Admit says whether a Pod can run on the node beside the others, which are the
// Pods here that have not ended; nil: it can. Reasons, messages and their order
// are the kubelet's (pkg/kubelet/lifecycle/predicate.go). Unlike the kubelet it
// does not end other Pods to make room for a critical one.
func Admit(pod *corev1.Pod, others []*corev1.Pod, node *corev1.Node) *Refusal {
	for _, check := range []func(*corev1.Pod, []*corev1.Pod, *corev1.Node) *Refusal{
		admitOS, admitGroups, admitResources, admitAffinity, admitName, admitPorts, admitTaints,
	} {
		if r := check(pod, others, node); r != nil {
			return r
		}
	}
	return nil
}

func admitOS(pod *corev1.Pod, _ []*corev1.Pod, _ *corev1.Node) *Refusal {
	if os, ok := pod.Labels[corev1.LabelOSStable]; ok && os != runtime.GOOS {
		return &Refusal{"PodOSSelectorNodeLabelDoesNotMatch", "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"}
	}
	if pod.Spec.OS != nil && string(pod.Spec.OS.Name) != runtime.GOOS {
		return &Refusal{"PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"}
	}
	return nil
}

func admitGroups(pod *corev1.Pod, _ []*corev1.Pod, node *corev1.Node) *Refusal {
	c := pod.Spec.SecurityContext
	if c == nil || c.SupplementalGroupsPolicy == nil || *c.SupplementalGroupsPolicy != corev1.SupplementalGroupsPolicyStrict {
		return nil
	}
	if f := node.Status.Features; f != nil && f.SupplementalGroupsPolicy != nil && *f.SupplementalGroupsPolicy {
		return nil
	}
	return &Refusal{"SupplementalGroupsPolicyNotSupported", "SupplementalGroupsPolicy=Strict is not supported in this node"}
}

func admitResources(pod *corev1.Pod, others []*corev1.Pod, node *corev1.Node) *Refusal {
	allocatable := node.Status.Allocatable
	if n, most := int64(len(others)), allocatable.Pods().Value(); n+1 > most {
		return outOf(corev1.ResourcePods, 1, n, most)
	}
	wanted := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	used := map[corev1.ResourceName]int64{}
	for _, o := range others {
		// What a resize has not yet changed counts as the larger of both.
		for name, q := range resourcehelper.PodRequests(o, resourcehelper.PodResourcesOptions{UseStatusResources: true}) {
			used[name] += amount(name, q)
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(wanted), compareResources) {
		have, known := allocatable[name]
		if !known && isExtended(name) {
			continue // it may be the cluster's and not the node's
		}
		if w, most := amount(name, wanted[name]), amount(name, have); w > 0 && w > most-used[name] {
			return outOf(name, w, used[name], most)
		}
	}
	return nil
}

// amount is a quantity as the messages have it: cpu in thousandths.
func amount(name corev1.ResourceName, q resource.Quantity) int64 {
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// isExtended says whether the resource is one that others bring: its name has a
// domain, and not Kubernetes' own.
func isExtended(name corev1.ResourceName) bool {
	domain, _, ok := strings.Cut(string(name), "/")
	return ok && domain != "kubernetes.io" && !strings.HasSuffix(domain, ".kubernetes.io")
}

func outOf(name corev1.ResourceName, requested, used, capacity int64) *Refusal {
	return &Refusal{"OutOf" + string(name), fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d",
		name, requested, used, capacity)}
}

// compareResources is the order in which resources are looked at.
func compareResources(a, b corev1.ResourceName) int {
	order := func(n corev1.ResourceName) int {
		i := slices.Index([]corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}, n)
		if i < 0 {
			return 3
		}
		return i
	}
	return cmp.Or(cmp.Compare(order(a), order(b)), cmp.Compare(a, b))
}

func admitAffinity(pod *corev1.Pod, _ []*corev1.Pod, node *corev1.Node) *Refusal {
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); ok && err == nil {
		return nil
	}
	return failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")
}

func admitName(pod *corev1.Pod, _ []*corev1.Pod, node *corev1.Node) *Refusal {
	if pod.Spec.NodeName == "" || pod.Spec.NodeName == node.Name {
		return nil
	}
	return failed("NodeName", "node(s) didn't match the requested node name")
}

func admitPorts(pod *corev1.Pod, others []*corev1.Pod, _ *corev1.Node) *Refusal {
	wanted := hostPorts(pod)
	if len(wanted) == 0 {
		return nil
	}
	for _, o := range others {
		for _, used := range hostPorts(o) {
			if slices.ContainsFunc(wanted, used.conflicts) {
				return failed("NodePorts", "node(s) didn't have free ports for the requested pod ports")
			}
		}
	}
	return nil
}

func admitTaints(pod *corev1.Pod, _ []*corev1.Pod, node *corev1.Node) *Refusal {
	// Of the API server's Pods; those of a directory have no scheduler to obey.
	if source, ok := pod.Annotations["kubernetes.io/config.source"]; ok && source != "api" {
		return nil
	}
	noExecute := func(t *corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute }
	if _, untolerated := corev1helpers.FindMatchingUntoleratedTaint(klog.Background(), node.Spec.Taints, pod.Spec.Tolerations, noExecute, true); untolerated {
		return failed("TaintToleration", "node(s) had taints that the pod didn't tolerate")
	}
	return nil
}

func failed(predicate, why string) *Refusal {
	return &Refusal{predicate, fmt.Sprintf("Predicate %s failed: %s", predicate, why)}
}

// hostPort is a port of the node that a Pod takes.
type hostPort struct {
	ip       string // empty: all addresses
	protocol corev1.Protocol
	port     int32
}

func (p hostPort) conflicts(q hostPort) bool {
	return p.port == q.port && p.protocol == q.protocol && (p.ip == "" || q.ip == "" || p.ip == q.ip)
}

func hostPorts(pod *corev1.Pod) (out []hostPort) {
	containers := slices.Clone(pod.Spec.Containers)
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, p := range c.Ports {
			if p.HostPort <= 0 {
				continue
			}
			h := hostPort{p.HostIP, p.Protocol, p.HostPort}
			if h.ip == "0.0.0.0" || h.ip == "::" {
				h.ip = ""
			}
			h.protocol = cmp.Or(h.protocol, corev1.ProtocolTCP)
			out = append(out, h)
		}
	}
	return out
}
