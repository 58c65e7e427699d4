// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/podspec"
)

// room is a node of 256 MiB.
func room(p *corev1.Pod, others []*corev1.Pod) *podspec.Refused {
	total := resource.Quantity{}
	for _, o := range append(others, p) {
		for i := range o.Spec.Containers {
			total.Add(*o.Spec.Containers[i].Resources.Requests.Memory())
		}
	}
	if total.Value() > 256<<20 {
		return &podspec.Refused{Reason: "OutOfmemory", Message: "no room"}
	}
	return nil
}

func TestAResizeThatWaitsForRoomHearsOfAnotherPodThatShrinks(t *testing.T) {
	g := newRig(t, func(o *Options) { o.Admit = room })
	want := func(name, memory string) types.NamespacedName {
		p := parsePod(t, `
metadata: {name: `+name+`, uid: u-`+name+`}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: IMAGE, args: [sleep], resources: {requests: {memory: `+memory+`}, limits: {memory: 1Gi}}}]}`)
		g.want(p)
		return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
	}
	p, other := want("p", "64Mi"), want("other", "128Mi")
	g.await(p, "ready", ready)
	g.await(other, "ready", ready)
	want("p", "192Mi")
	g.await(p, "deferred", func(s *corev1.PodStatus) bool { return condition(s, corev1.PodResizePending) == corev1.ConditionTrue })
	// Nothing else is to have it look again: lists that tell news, the first upkeep.
	g.until("the node rests", patience, func() bool {
		g.r.mu.Lock()
		defer g.r.mu.Unlock()
		return g.r.lists > 6
	})
	want("other", "32Mi")
	// Upkeep comes once a minute, and would find out: it must not be needed.
	g.until("p: resized as soon as there is room", upkeep/4, func() bool {
		s := g.status(p)
		return s.ContainerStatuses[0].AllocatedResources.Memory().String() == "192Mi" && condition(&s, corev1.PodResizePending) == ""
	})
}
