// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/podstatus"
)

// grant makes the Pod that is run of the Pod that is wanted: the same, but where
// its resources changed and there is no room for that, with those that it had.
// The conditions say so (KEP-1287).
func (w *worker) grant() {
	old := w.pod
	if old == nil || w.admitted.Load() == nil || sameResources(old, w.wanted) {
		w.pod = w.wanted
		if w.admitted.Load() != nil {
			w.admitted.Store(w.pod)
		}
		w.setCondition(corev1.PodResizePending, "", "")
		w.deferred.Store(false)
		return
	}
	w.r.admitMu.Lock()
	defer w.r.admitMu.Unlock()
	w.deferred.Store(true) // before room is counted, so that what comes meanwhile is heard of
	why := w.r.o.Admit(w.wanted, w.r.others(w.uid))
	fixed := podspec.QOS(old) != podspec.QOS(w.wanted) // the cgroup is in the class's
	if fixed {
		why = &podspec.Refused{Message: "Pod QOS Class may not change as a result of resizing"}
	}
	if why == nil {
		w.pod = w.wanted
		w.admitted.Store(w.pod)
		w.deferred.Store(false)
		w.setCondition(corev1.PodResizePending, "", "")
		w.setCondition(corev1.PodResizeInProgress, "", "")
		w.r.roomFreed() // perhaps: it may ask for less
		return
	}
	reason, event := corev1.PodReasonDeferred, "ResizeDeferred"
	if fixed || w.r.o.Admit(w.wanted, nil) != nil {
		reason, event = corev1.PodReasonInfeasible, "ResizeInfeasible"
	}
	w.pod = withResources(w.wanted, old)
	w.admitted.Store(w.pod)
	w.deferred.Store(reason == corev1.PodReasonDeferred)
	if !slices.ContainsFunc(w.resizing, func(c corev1.PodCondition) bool { return c.Reason == reason && c.Message == why.Message }) {
		w.r.event(w.pod, "", corev1.EventTypeWarning, event, why.Message)
	}
	w.setCondition(corev1.PodResizePending, reason, why.Message)
}

func sameResources(a, b *corev1.Pod) bool {
	each := func(p *corev1.Pod) (all []corev1.ResourceRequirements) {
		for _, cs := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range cs {
				all = append(all, cs[i].Resources)
			}
		}
		return all
	}
	return equality.Semantic.DeepEqual(each(a), each(b)) && equality.Semantic.DeepEqual(a.Spec.Resources, b.Spec.Resources)
}

// withResources is the Pod with the resources of another version of it.
func withResources(p, from *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	for _, cs := range [][2][]corev1.Container{{p.Spec.InitContainers, from.Spec.InitContainers}, {p.Spec.Containers, from.Spec.Containers}} {
		for i := range min(len(cs[0]), len(cs[1])) {
			if cs[0][i].Name == cs[1][i].Name {
				cs[0][i].Resources = *cs[1][i].Resources.DeepCopy()
			}
		}
	}
	p.Spec.Resources = from.Spec.Resources.DeepCopy()
	return p
}

// setCondition of a resize; reason "Error" and the like with what went wrong, ""
// takes PodResizePending away, and of PodResizeInProgress only the error.
func (w *worker) setCondition(t corev1.PodConditionType, reason, message string) {
	w.resizing = slices.DeleteFunc(slices.Clone(w.resizing), func(c corev1.PodCondition) bool { return c.Type == t })
	if t == corev1.PodResizePending && reason == "" {
		return
	}
	w.resizing = append(w.resizing, corev1.PodCondition{Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message})
}

// resized says whether a running container has other resources than its spec,
// and whether its policy wants a restart for that.
func (w *worker) resized(spec *corev1.Container, c *podstatus.Container) (update, restart bool) {
	had := w.applied[c.ID]
	if had == nil {
		had = c.Given
	}
	if had == nil {
		return false, false
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if same(had.Requests, spec.Resources.Requests, name) && same(had.Limits, spec.Resources.Limits, name) {
			continue
		}
		update = true
		for _, p := range spec.ResizePolicy {
			if p.ResourceName == name && p.RestartPolicy == corev1.RestartContainer {
				restart = true
			}
		}
	}
	return update, restart
}

func same(a, b corev1.ResourceList, name corev1.ResourceName) bool {
	x, xok := a[name]
	y, yok := b[name]
	return xok == yok && x.Cmp(y) == 0
}

// resize gives a running container the resources of its spec. The Pod's cgroup
// holds the more of both until the container's is changed.
func (w *worker) resize(ctx context.Context, spec *corev1.Container) {
	c := w.observed.NewestActive(spec.Name)
	if c == nil || c.State != podstatus.Running {
		return
	}
	f := w.facts()
	parent := podspec.CgroupParent(w.pod, f)
	want := podspec.PodResources(w.pod, f)
	err := w.r.cgroups.ensure(w.pod, parent, w.wider(want, f))
	if err == nil {
		err = w.r.client.UpdateResources(ctx, c.ID, podspec.Resources(w.pod, spec, f))
	}
	if err == nil {
		err = w.r.cgroups.ensure(w.pod, parent, want)
	}
	w.applied[c.ID] = spec.Resources.DeepCopy() // not tried again with the same
	if err != nil {
		w.setCondition(corev1.PodResizeInProgress, corev1.PodReasonError, cri.Message(err))
		w.r.event(w.pod, fieldPath(spec.Name, regular), corev1.EventTypeWarning, "ResizeError", cri.Message(err))
		w.r.log.Warn("resize a container", "pod", w.key, "container", spec.Name, "error", err)
		return
	}
	if seen, _, err := w.r.client.Container(ctx, c.ID, c.SandboxID); err == nil {
		w.sawContainer(seen)
	}
	w.resizing = slices.DeleteFunc(slices.Clone(w.resizing), func(c corev1.PodCondition) bool { return c.Type == corev1.PodResizeInProgress })
	w.r.event(w.pod, fieldPath(spec.Name, regular), corev1.EventTypeNormal, "ResizeCompleted", "Pod resize completed")
}

// wider are limits under which the containers fit as they are and as they will
// be.
func (w *worker) wider(want *runtimeapi.LinuxContainerResources, f *podspec.Facts) *runtimeapi.LinuxContainerResources {
	if want == nil {
		return nil
	}
	before := w.pod.DeepCopy()
	for _, cs := range [][]corev1.Container{before.Spec.InitContainers, before.Spec.Containers} {
		for i := range cs {
			if c := w.observed.NewestActive(cs[i].Name); c != nil && w.applied[c.ID] != nil {
				cs[i].Resources = *w.applied[c.ID]
			}
		}
	}
	had := podspec.PodResources(before, f)
	if had == nil {
		return want
	}
	return &runtimeapi.LinuxContainerResources{
		CpuPeriod: want.CpuPeriod, CpuShares: max(want.CpuShares, had.CpuShares),
		CpuQuota:           more(want.CpuQuota, had.CpuQuota),
		MemoryLimitInBytes: more(want.MemoryLimitInBytes, had.MemoryLimitInBytes),
	}
}

// more of two limits, of which 0 and less is none.
func more(a, b int64) int64 {
	if a <= 0 || b <= 0 {
		return 0
	}
	return max(a, b)
}
