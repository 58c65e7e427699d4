// SPDX-License-Identifier: Apache-2.0

package podstatus

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Reasons of conditions, as the kubelet's.
const (
	reasonUnknownStatuses  = "UnknownContainerStatuses"
	reasonCompleted        = "PodCompleted"
	reasonFailed           = "PodFailed"
	reasonNotReady         = "ContainersNotReady"
	reasonNotInitialized   = "ContainersNotInitialized"
	reasonGatesNotReady    = "ReadinessGatesNotReady"
	reasonSandboxNotReady  = "PodSandboxNotReady"
	messageNoSandbox       = "no pod sandbox exists"
	messageSandboxes       = "multiple pod sandboxes are ready and need to be reconciled"
	messageSandboxNotReady = "pod sandbox is not ready"
	messageNetworkMode     = "network namespace mode changed and sandbox needs to be recreated"
	messageNoAddress       = "pod sandbox has no IP address"
)

// SandboxLacks says why the Pod needs a new sandbox; "" where it has a good one.
func SandboxLacks(pod *corev1.Pod, o *Observed) string {
	s := o.Active()
	if s == nil {
		return messageNoSandbox
	}
	ready := 0
	for i := range o.Sandboxes {
		if o.Sandboxes[i].Ready {
			ready++
		}
	}
	switch {
	case ready > 1:
		return messageSandboxes
	case !s.Ready:
		return messageSandboxNotReady
	case s.HostNetwork != pod.Spec.HostNetwork:
		return messageNetworkMode
	case !s.HostNetwork && len(s.IPs) == 0:
		return messageNoAddress
	}
	return ""
}

// ownConditions are those that a runner of Pods keeps; all others are left.
var ownConditions = []corev1.PodConditionType{
	corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled,
	corev1.PodResizePending, corev1.PodResizeInProgress,
}

func (in *Input) conditions(s *corev1.PodStatus) []corev1.PodCondition {
	var all []corev1.PodCondition
	for _, c := range in.Pod.Status.Conditions {
		if !slices.Contains(ownConditions, c.Type) {
			all = append(all, c)
		}
	}
	for _, c := range in.Extra {
		all = slices.DeleteFunc(all, func(o corev1.PodCondition) bool { return o.Type == c.Type })
		all = append(all, c)
	}
	ready := in.containersReady(s)
	all = append(all, in.readyToStart(), in.initialized(s), in.ready(ready, all), ready,
		corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue})
	for i := range all {
		in.stamp(&all[i])
	}
	return all
}

// stamp keeps the time of a condition that did not change.
func (in *Input) stamp(c *corev1.PodCondition) {
	if !slices.Contains(ownConditions, c.Type) {
		return
	}
	c.ObservedGeneration = in.Pod.Generation
	for i := range in.Previous.Conditions {
		if old := &in.Previous.Conditions[i]; old.Type == c.Type {
			c.LastProbeTime = old.LastProbeTime
			if old.Status == c.Status && !old.LastTransitionTime.IsZero() {
				c.LastTransitionTime = old.LastTransitionTime
				return
			}
		}
	}
	c.LastTransitionTime.Time = in.Now
}

func (in *Input) readyToStart() corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue}
	if why := SandboxLacks(in.Pod, in.Observed); why != "" {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, reasonSandboxNotReady, why
	}
	return c
}

func (in *Input) initialized(s *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	var unknown, incomplete []string
	for i := range in.Pod.Spec.InitContainers {
		spec := &in.Pod.Spec.InitContainers[i]
		status := find(s.InitContainerStatuses, spec.Name)
		switch {
		case status == nil:
			unknown = append(unknown, spec.Name)
		case IsSidecar(spec) && (status.Started == nil || !*status.Started), !IsSidecar(spec) && !status.Ready:
			incomplete = append(incomplete, spec.Name)
		}
	}
	switch {
	case s.Phase == corev1.PodSucceeded && len(unknown) == 0:
		c.Reason = reasonCompleted
		return c
	case in.anyStarted(s.ContainerStatuses):
		return c
	}
	c.Message = lists("containers with unknown status", unknown, "containers with incomplete status", incomplete)
	if c.Message != "" {
		c.Status, c.Reason = corev1.ConditionFalse, reasonNotInitialized
	}
	return c
}

// anyStarted says whether a regular container runs or ran.
func (in *Input) anyStarted(statuses []corev1.ContainerStatus) bool {
	for i := range statuses {
		s := &statuses[i]
		if (s.Started != nil && *s.Started) || s.State.Terminated != nil || s.State.Running != nil || s.LastTerminationState.Terminated != nil {
			return true
		}
	}
	return false
}

func (in *Input) containersReady(s *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionFalse}
	var unknown, unready []string
	look := func(name string, statuses []corev1.ContainerStatus) {
		switch status := find(statuses, name); {
		case status == nil:
			unknown = append(unknown, name)
		case !status.Ready:
			unready = append(unready, name)
		}
	}
	for i := range in.Pod.Spec.InitContainers {
		if spec := &in.Pod.Spec.InitContainers[i]; IsSidecar(spec) {
			look(spec.Name, s.InitContainerStatuses)
		}
	}
	for i := range in.Pod.Spec.Containers {
		look(in.Pod.Spec.Containers[i].Name, s.ContainerStatuses)
	}
	switch {
	case s.Phase == corev1.PodSucceeded && len(unknown) == 0:
		c.Reason = reasonCompleted
		return c
	case s.Phase == corev1.PodFailed, in.Failed != nil:
		c.Reason = reasonFailed
		return c
	}
	c.Message = lists("containers with unknown status", unknown, "containers with unready status", unready)
	if c.Message != "" {
		c.Reason = reasonNotReady
		return c
	}
	c.Status = corev1.ConditionTrue
	return c
}

func (in *Input) ready(containers corev1.PodCondition, all []corev1.PodCondition) corev1.PodCondition {
	c := containers
	c.Type = corev1.PodReady
	if c.Status != corev1.ConditionTrue {
		return c
	}
	var lack []string
	for _, gate := range in.Pod.Spec.ReadinessGates {
		i := slices.IndexFunc(all, func(c corev1.PodCondition) bool { return c.Type == gate.ConditionType })
		switch {
		case i < 0:
			lack = append(lack, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", string(gate.ConditionType)))
		case all[i].Status != corev1.ConditionTrue:
			lack = append(lack, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", string(gate.ConditionType), all[i].Status))
		}
	}
	if lack != nil {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, reasonGatesNotReady, strings.Join(lack, ", ")
	}
	return c
}

// lists words two lists of names as the kubelet does.
func lists(a string, as []string, b string, bs []string) string {
	var parts []string
	if len(as) > 0 {
		parts = append(parts, fmt.Sprintf("%s: %s", a, as))
	}
	if len(bs) > 0 {
		parts = append(parts, fmt.Sprintf("%s: %s", b, bs))
	}
	return strings.Join(parts, ", ")
}
