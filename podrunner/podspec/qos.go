// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// QOS returns a Pod's quality of service class: the one its status says, else
// Guaranteed where all containers' cpu and memory requests are their limits,
// BestEffort where there are none, Burstable otherwise.
func QOS(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	if resourcehelper.IsPodLevelResourcesSet(pod) {
		return classOf(pod.Spec.Resources)
	}
	var class corev1.PodQOSClass
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := classOf(&list[i].Resources)
			if class != "" && c != class {
				return corev1.PodQOSBurstable
			}
			class = c
		}
	}
	if class == "" {
		return corev1.PodQOSBestEffort
	}
	return class
}

func classOf(r *corev1.ResourceRequirements) corev1.PodQOSClass {
	none, equal := 0, 0
	for _, n := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		request, limit := r.Requests[n], r.Limits[n]
		switch {
		case request.IsZero() && limit.IsZero():
			none++
		case request.Cmp(limit) == 0:
			equal++
		}
	}
	switch {
	case none == 2:
		return corev1.PodQOSBestEffort
	case equal == 2:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// OOM score adjustments (proc(5) oom_score_adj) by class: what is killed
// last, and what first.
const (
	oomGuaranteed = -997
	oomBestEffort = 1000
	oomLeast      = 1000 + oomGuaranteed // of a Burstable container
)

// OOMScoreAdj returns a container's oom_score_adj. A Burstable container's
// falls with the share of the node's memory that it asks for, so that who
// uses more than that is killed first (kubernetes.io/docs "Node-pressure
// Eviction: Node out of memory behavior"; KEP-2837 for Pod-level requests).
func OOMScoreAdj(pod *corev1.Pod, c *corev1.Container, f *Facts) int64 {
	const systemCritical = 2_000_000_000
	if pod.Spec.PriorityClassName == "system-node-critical" && pod.Spec.Priority != nil && *pod.Spec.Priority >= systemCritical {
		return oomGuaranteed
	}
	switch QOS(pod) {
	case corev1.PodQOSGuaranteed:
		return oomGuaranteed
	case corev1.PodQOSBestEffort:
		return oomBestEffort
	}
	share := unassignedMemory(pod)
	request := c.Resources.Requests.Memory().Value() + share
	if restartable(c) && isInit(pod, c) { // a sidecar is not killed before who needs it
		request = max(request, leastMemory(pod)+share)
	}
	score := int64(oomBestEffort)
	if f.MemoryCapacity > 0 {
		score -= 1000 * request / f.MemoryCapacity
	}
	return min(max(score, oomLeast), oomBestEffort-1)
}

// unassignedMemory is the container's share of what the Pod asks for beyond
// its containers.
func unassignedMemory(pod *corev1.Pod) int64 {
	if !resourcehelper.IsPodLevelRequestsSet(pod) {
		return 0
	}
	sum := resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})
	left := pod.Spec.Resources.Requests.Memory().Value() - sum.Memory().Value()
	return max(left, 0) / int64(max(len(pod.Spec.Containers)+len(pod.Spec.InitContainers), 1))
}

func leastMemory(pod *corev1.Pod) int64 {
	least := int64(math.MaxInt64)
	for i := range pod.Spec.Containers {
		least = min(least, pod.Spec.Containers[i].Resources.Requests.Memory().Value())
	}
	if least == math.MaxInt64 {
		return 0
	}
	return least
}

func restartable(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func isInit(pod *corev1.Pod, c *corev1.Container) bool {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == c.Name {
			return true
		}
	}
	return false
}
