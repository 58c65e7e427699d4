// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/cri"
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
	g.until("the node rests", patience, func() bool { return g.lists() > 6 })
	want("other", "32Mi")
	// Upkeep comes once a minute, and would find out: it must not be needed.
	g.until("p: resized as soon as there is room", upkeep/4, func() bool {
		s := g.status(p)
		return s.ContainerStatuses[0].AllocatedResources.Memory().String() == "192Mi" && condition(&s, corev1.PodResizePending) == ""
	})
}

// waiting is a worker of a Pod, without its loop, that the Runner knows.
func (g *rig) waiting(name, memory string) *worker {
	p := parsePod(g.t, `
metadata: {name: `+name+`, uid: u-`+name+`}
spec: {containers: [{name: c, image: IMAGE, resources: {requests: {memory: `+memory+`}}}]}`)
	w := g.r.newWorker(p.UID, types.NamespacedName{Namespace: p.Namespace, Name: name})
	w.set(p, true)
	<-w.waker
	w.inbox.listed = new(cri.Listed)
	w.wanted, w.pod = p, p
	w.admitted.Store(p)
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	g.r.workers[p.UID] = w
	return w
}

func TestWhoIsToldOfRoomFindsIt(t *testing.T) {
	var looks atomic.Value // what is looked at while a Pod ends
	looks.Store(func() {})
	g := newRig(t, func(o *Options) {
		facts := o.Facts
		o.Admit, o.Facts = room, func() podspec.Facts { looks.Load().(func())(); return facts() }
	})
	g.until("it runs", patience, func() bool { return g.r.Runtime() != nil })
	p, other := g.waiting("p", "128Mi"), g.waiting("other", "128Mi")
	p.deferred.Store(true)
	looks.Store(func() {
		if len(p.waker) > 0 && len(g.r.others(p.uid)) > 0 {
			t.Error("a Pod that waits for room was told of some, and the one that ended still takes it")
		}
	})
	if _, done := other.end(t.Context()); done || len(p.waker) != 1 || len(g.r.others(p.uid)) > 0 {
		t.Errorf("after the end: done %v, told %d times, others %v", done, len(p.waker), g.r.others(p.uid))
	}
	looks.Store(func() {})
	g.forgetWorkers(p, other)
}

func TestRoomThatComesWhileItIsLookedForIsHeardOf(t *testing.T) {
	var other *worker
	g := newRig(t, func(o *Options) {
		o.Admit = func(p *corev1.Pod, others []*corev1.Pod) *podspec.Refused {
			why := room(p, others)
			if len(others) > 0 { // it ends when its room was counted
				other.admitted.Store(nil)
				other.r.roomFreed()
			}
			return why
		}
	})
	g.until("it runs", patience, func() bool { return g.r.Runtime() != nil })
	p := g.waiting("p", "64Mi")
	other = g.waiting("other", "128Mi")
	p.wanted = p.pod.DeepCopy()
	p.wanted.Spec.Containers[0].Resources.Requests[corev1.ResourceMemory] = resource.MustParse("192Mi")
	if p.grant(); !p.deferred.Load() || len(p.waker) != 1 {
		t.Errorf("it waits: %v, and is to look again: %v", p.deferred.Load(), len(p.waker) == 1)
	}
	g.forgetWorkers(p, other)
}

// forgetWorkers takes out what has no loop to end it.
func (g *rig) forgetWorkers(workers ...*worker) {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	for _, w := range workers {
		delete(g.r.workers, w.uid)
	}
}
