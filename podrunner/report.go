// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/podstatus"
	"fairlead.dev/podrunner/probe"
)

// report words the Pod's status, and tells it where it is another than before.
func (w *worker) report() {
	if w.wanted == nil {
		return // nobody asks for an orphan's
	}
	status := w.makeStatus()
	w.mu.Lock()
	w.shown.pod = w.pod
	w.shown.containers = w.observed.Containers
	w.shown.sandbox = ""
	if s := w.observed.Active(); s != nil && s.Ready {
		w.shown.sandbox = s.ID
	}
	same := equality.Semantic.DeepEqual(&status, &w.status) && w.shown.status.Phase != ""
	if !same {
		w.shown.status = status
	}
	w.mu.Unlock()
	if same {
		return
	}
	w.status = status
	w.r.o.Status.SetPodStatus(w.key, w.uid, *status.DeepCopy())
}

func (w *worker) makeStatus() corev1.PodStatus {
	f := w.r.o.Facts()
	if w.rejected {
		return corev1.PodStatus{
			Phase: corev1.PodFailed, Reason: w.failed.Reason, Message: w.failed.Message, ObservedGeneration: w.pod.Generation,
			QOSClass: podspec.QOS(w.pod), StartTime: w.status.StartTime, Conditions: w.status.Conditions,
		}
	}
	return podstatus.Make(&podstatus.Input{
		Pod: w.pod, Observed: &w.observed, Waiting: w.waiting, Previous: w.status, Terminal: w.terminal,
		Failed: w.failed, Extra: w.extraConditions(), HostIPs: f.HostIPs, Runtime: w.r.client.Name(), Now: time.Now().Truncate(time.Second),
		Probed: func(c *corev1.Container, id string) podstatus.Probed {
			return podstatus.Probed{
				Started: c.StartupProbe == nil || w.r.prober.Result(w.uid, id, probe.Startup) == probe.Success,
				Ready: !slices.Contains(w.ended, id) &&
					(c.ReadinessProbe == nil || w.r.prober.Result(w.uid, id, probe.Readiness) == probe.Success),
			}
		},
	})
}

// extraConditions of a resize, and what an eviction says.
func (w *worker) extraConditions() []corev1.PodCondition {
	extra := slices.Clone(w.resizing)
	if w.failed != nil && w.grace != nil {
		extra = append(extra, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonTerminationByKubelet, Message: w.failed.Message,
		})
	}
	return extra
}

// probe tells the prober what runs. Of a Pod that is being deleted only
// readiness is asked.
func (w *worker) probe() {
	if w.pod == nil || w.terminal {
		return
	}
	var targets []probe.Target
	add := func(specs []corev1.Container, sidecarsOnly bool) {
		for i := range specs {
			c := &specs[i]
			if sidecarsOnly && !podstatus.IsSidecar(c) || c.StartupProbe == nil && c.ReadinessProbe == nil && c.LivenessProbe == nil {
				continue
			}
			if o := w.observed.NewestActive(c.Name); o != nil && o.State == podstatus.Running {
				targets = append(targets, w.targets(c, o)...)
			}
		}
	}
	add(w.pod.Spec.Containers, false)
	add(w.pod.Spec.InitContainers, true)
	if len(targets) > 0 || w.probing {
		w.r.prober.Set(w.uid, targets)
	}
	w.probing = len(targets) > 0
}

func (w *worker) targets(c *corev1.Container, o *podstatus.Container) (targets []probe.Target) {
	base := probe.Target{Pod: w.uid, Container: c, ContainerID: o.ID, Host: w.host(), Started: o.Started}
	for _, k := range []probe.Kind{probe.Startup, probe.Readiness, probe.Liveness} {
		if k != probe.Readiness && (w.lost || w.pod.DeletionTimestamp != nil) {
			continue
		}
		t := base
		t.Kind, t.Initial = k, w.knownResult(k, o)
		targets = append(targets, t)
	}
	return targets
}

// probed says whether each probe that matters to readiness was asked since it is
// known here.
func (w *worker) probed() bool {
	asked := func(specs []corev1.Container) bool {
		for i := range specs {
			c := &specs[i]
			o := w.observed.NewestActive(c.Name)
			if o == nil || o.State != podstatus.Running {
				continue
			}
			if c.StartupProbe != nil && w.r.prober.Result(w.uid, o.ID, probe.Startup) != probe.Success {
				if !w.r.prober.Asked(w.uid, o.ID, probe.Startup) {
					return false
				}
				continue // before it has started nothing else is asked
			}
			if c.ReadinessProbe != nil && !w.r.prober.Asked(w.uid, o.ID, probe.Readiness) {
				return false
			}
		}
		return true
	}
	return asked(w.pod.Spec.Containers) && asked(w.pod.Spec.InitContainers)
}

// settled: the Pod did not run when the agent began, or its probes have told.
func (w *worker) settled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inbox.listed == nil || w.inbox.removed || w.shown.probed || w.shown.status.Phase == corev1.PodFailed || w.shown.status.Phase == corev1.PodSucceeded
}

// knownResult is what the status that the Pod came with says of the container,
// where it is the same one: a restart of the agent makes none unready.
func (w *worker) knownResult(k probe.Kind, o *podstatus.Container) probe.Result {
	for _, all := range [][]corev1.ContainerStatus{w.status.ContainerStatuses, w.status.InitContainerStatuses} {
		for i := range all {
			s := &all[i]
			if s.Name != o.Name || s.ContainerID != w.r.client.Name()+"://"+o.ID {
				continue
			}
			if k == probe.Startup && s.Started != nil && *s.Started || k == probe.Readiness && s.Ready {
				return probe.Success
			}
		}
	}
	return probe.Unknown
}

// unhealthy makes an Event of a probe that failed.
func (r *Runner) unhealthy(t *probe.Target, reason, message string) {
	r.mu.Lock()
	w := r.workers[t.Pod]
	r.mu.Unlock()
	if w == nil {
		return
	}
	w.mu.Lock()
	pod := w.shown.pod
	w.mu.Unlock()
	if pod != nil {
		r.event(pod, w.pathOfIn(pod, t.Container.Name), corev1.EventTypeWarning, reason, message)
	}
}
