// SPDX-License-Identifier: Apache-2.0

package podstatus

import (
	corev1 "k8s.io/api/core/v1"
)

// over words what a Pod that is over leaves open, as the kubelet does before an
// object may go (since 1.27): a container that should have run and has not ended
// counts as lost, and a Pod that did not succeed has failed.
func (in *Input) over(s *corev1.PodStatus) {
	if in.begun(s) {
		lose(s.ContainerStatuses)
	}
	lose(attempted(s.InitContainerStatuses))
}

// begun: its regular containers' turn had come.
func (in *Input) begun(s *corev1.PodStatus) bool {
	n := len(s.InitContainerStatuses)
	if n == 0 || in.regularCreated() {
		return true
	}
	for i := range s.ContainerStatuses {
		if c := &s.ContainerStatuses[i]; c.State.Waiting == nil || c.LastTerminationState.Terminated != nil {
			return true
		}
	}
	last := ended(&s.InitContainerStatuses[n-1])
	return last != nil && last.ExitCode == 0
}

// attempted are the init containers up to the last that began, at least the first.
func attempted(all []corev1.ContainerStatus) []corev1.ContainerStatus {
	for i := len(all) - 1; i > 0; i-- {
		if all[i].State.Waiting == nil || all[i].LastTerminationState.Terminated != nil {
			return all[:i+1]
		}
	}
	return all[:min(1, len(all))]
}

func lose(all []corev1.ContainerStatus) {
	for i := range all {
		if all[i].State.Terminated == nil {
			all[i].State = corev1.ContainerState{Terminated: lost(all[i].ContainerID)}
		}
	}
}

// lost is how a container ended that the runtime says no more of.
func lost(id string) *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{
		ExitCode: 137, Reason: reasonStatusUnknown, ContainerID: id, Message: "The container could not be located when the pod was terminated",
	}
}
