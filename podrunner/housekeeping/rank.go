// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	schedulinghelper "k8s.io/component-helpers/scheduling/corev1"
)

// candidate is a Pod that may be evicted for a resource that is short.
type candidate struct {
	pod      *corev1.Pod
	used     usage
	over     int64 // by how much it uses more of the resource than it asked for
	exceeds  bool
	priority int32
}

func newCandidate(p *corev1.Pod, u usage, r corev1.ResourceName, counted where) candidate {
	used := u.disk(counted)
	switch r {
	case corev1.ResourceMemory:
		used = u.memory()
	case inodes:
		used = u.inodes()
	}
	requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	request := requests[r]
	c := candidate{pod: p, used: u, over: used - request.Value(), priority: schedulinghelper.PodPriority(p)}
	c.exceeds = c.over > 0
	return c
}

// rank puts the one first that goes first ("Node-pressure Eviction: Pod
// selection for kubelet eviction"): those that use more than they asked for,
// of those the least important, of those the one that is over the most.
func rank(cs []candidate) {
	first := func(b bool) int {
		if b {
			return 0
		}
		return 1
	}
	slices.SortFunc(cs, func(a, b candidate) int {
		return cmp.Or(
			cmp.Compare(first(a.exceeds), first(b.exceeds)),
			cmp.Compare(a.priority, b.priority),
			cmp.Compare(b.over, a.over),
			cmp.Compare(a.pod.UID, b.pod.UID),
		)
	})
}

// message is what the Pod's status says, in the kubelet's words.
func (c *candidate) message(s *shortage) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %s. ", s.resource)
	fmt.Fprintf(&b, "Threshold quantity: %s, available: %s. ", s.quantity(s.threshold), s.quantity(s.available))
	if r := c.pod.Spec.Resources; s.resource == corev1.ResourceMemory && r != nil {
		if request, ok := r.Requests[s.resource]; ok {
			fmt.Fprintf(&b, "Pod %s was using %s, request is %s, has larger consumption of %s. ",
				c.pod.Name, bytesOf(c.used.memory()), request.String(), s.resource)
		}
	}
	for _, list := range [][]corev1.Container{c.pod.Spec.Containers, c.pod.Spec.InitContainers} {
		for i := range list {
			used, runs := c.used.containers[list[i].Name]
			request := list[i].Resources.Requests[s.resource]
			bytes := bytesOf(used.layer + used.logs)
			if s.resource == corev1.ResourceMemory {
				bytes = bytesOf(used.memory)
			}
			if runs && s.resource != inodes && bytes.Cmp(request) > 0 {
				fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %s. ",
					list[i].Name, bytes, request.String(), s.resource)
			}
		}
	}
	return b.String()
}
