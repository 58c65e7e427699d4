// SPDX-License-Identifier: Apache-2.0

package podstatus

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// IsSidecar: an init container that is kept running (KEP-753).
func IsSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// ShouldRestart says whether a container of the Pod that ended with the code
// runs again: by the first of its own rules that matches (KEP-5307), its own
// policy, or the Pod's. init: it is an init container, which does not run again
// once it succeeded.
func ShouldRestart(pod *corev1.Pod, c *corev1.Container, init bool, code int32) bool {
	for _, r := range c.RestartPolicyRules {
		if r.ExitCodes == nil || r.Action != corev1.ContainerRestartRuleActionRestart {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, code)
		if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return true
		}
	}
	if c.RestartPolicy != nil {
		switch *c.RestartPolicy {
		case corev1.ContainerRestartPolicyAlways:
			return true
		case corev1.ContainerRestartPolicyNever:
			return false
		case corev1.ContainerRestartPolicyOnFailure:
			return code != 0
		}
	}
	switch pod.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0
	}
	return !init || code != 0
}

// tally is how many of a Pod's containers are in which state, as far as its
// phase depends on it.
type tally struct {
	pendingInit, pendingSidecars       int
	failedInit                         bool
	unknown, running, waiting          int
	stopped, stoppedForGood, succeeded int
	terminal, initialized              bool
}

// phase of a Pod with these container statuses. terminal: nothing is restarted
// any more. initialized: one of its containers started in the active sandbox.
func phase(pod *corev1.Pod, inits, containers []corev1.ContainerStatus, terminal, initialized bool) corev1.PodPhase {
	t := tally{terminal: terminal, initialized: initialized}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		s := find(inits, c.Name)
		if IsSidecar(c) {
			t.sidecar(s)
		} else {
			t.init(pod, c, s)
		}
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		t.container(pod, c, find(containers, c.Name))
	}
	p := t.phase()
	if terminal && p != corev1.PodSucceeded {
		return corev1.PodFailed
	}
	return p
}

func find(all []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}

// ended is how a container last ended, nil where it did not or runs again.
func ended(s *corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	if s.State.Terminated != nil {
		return s.State.Terminated
	}
	if s.State.Waiting != nil {
		return s.LastTerminationState.Terminated
	}
	return nil
}

func (t *tally) init(pod *corev1.Pod, c *corev1.Container, s *corev1.ContainerStatus) {
	if s == nil || ended(s) == nil {
		t.pendingInit++
		return
	}
	if code := ended(s).ExitCode; code != 0 && !ShouldRestart(pod, c, true, code) {
		t.failedInit = true
	}
}

func (t *tally) sidecar(s *corev1.ContainerStatus) {
	switch {
	case s == nil:
		t.unknown++
	case s.State.Running != nil:
		if s.Started == nil || !*s.Started {
			t.pendingSidecars++
		}
		t.running++
	case ended(s) != nil: // says nothing about the Pod
	case s.State.Waiting != nil:
		t.pendingSidecars++
		t.waiting++
	default:
		t.pendingSidecars++
		t.unknown++
	}
}

func (t *tally) container(pod *corev1.Pod, c *corev1.Container, s *corev1.ContainerStatus) {
	switch {
	case s == nil:
		t.unknown++
	case s.State.Running != nil:
		t.running++
	case ended(s) != nil:
		t.stopped++
		if !ShouldRestart(pod, c, false, ended(s).ExitCode) {
			t.stoppedForGood++
		}
		if s.State.Terminated != nil && ended(s).ExitCode == 0 {
			t.succeeded++
		}
	case s.State.Waiting != nil:
		t.waiting++
	default:
		t.unknown++
	}
}

func (t *tally) phase() corev1.PodPhase {
	switch {
	case t.failedInit:
		return corev1.PodFailed
	case t.pendingInit > 0, t.pendingSidecars > 0 && !t.initialized, t.waiting > 0:
		return corev1.PodPending
	case t.running > 0 && t.unknown == 0:
		return corev1.PodRunning
	case t.running > 0 || t.stopped == 0 || t.unknown > 0:
		return corev1.PodPending
	case !t.terminal && t.stopped != t.stoppedForGood:
		return corev1.PodRunning // some are about to be restarted
	case t.stopped == t.succeeded:
		return corev1.PodSucceeded
	}
	return corev1.PodFailed
}
