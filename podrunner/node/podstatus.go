// SPDX-License-Identifier: Apache-2.0

package node

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// ownConditions are those that a node's agent writes; all others of a Pod
// (readiness gates, a scheduler's, a controller's) stay as they are.
var ownConditions = []corev1.PodConditionType{
	corev1.PodScheduled, corev1.PodReady, corev1.PodInitialized, corev1.ContainersReady,
	corev1.PodReadyToStartContainers, corev1.PodResizeInProgress, corev1.PodResizePending,
	corev1.DisruptionTarget, // shared: it is written where the agent has one, and else stays
}

// mergePodStatus is the status that is to be written: what the node found, and
// of what the API server has all that is not the node's to say. A phase that is
// final stays.
func mergePodStatus(old, found *corev1.PodStatus) *corev1.PodStatus {
	s := found.DeepCopy()
	s.Conditions = mergeConditions(old.Conditions, found.Conditions)
	s.ResourceClaimStatuses = old.ResourceClaimStatuses
	s.ExtendedResourceClaimStatus = old.ExtendedResourceClaimStatus
	s.NodeAllocatableResourceClaimStatuses = old.NodeAllocatableResourceClaimStatuses
	s.NominatedNodeName = old.NominatedNodeName
	if old.StartTime != nil {
		s.StartTime = old.StartTime
	}
	if old.QOSClass != "" {
		s.QOSClass = old.QOSClass
	}
	if final(old.Phase) {
		s.Phase, s.Reason, s.Message = old.Phase, old.Reason, old.Message
	}
	if final(s.Phase) {
		neverReady(s)
	}
	return s
}

func final(p corev1.PodPhase) bool { return p == corev1.PodSucceeded || p == corev1.PodFailed }

func mergeConditions(old, found []corev1.PodCondition) (out []corev1.PodCondition) {
	for _, c := range old {
		// The scheduler wrote PodScheduled first; DisruptionTarget is shared.
		keep := !slices.Contains(ownConditions, c.Type) || c.Type == corev1.PodScheduled || c.Type == corev1.DisruptionTarget
		if keep && podCondition(found, c.Type) == nil {
			out = append(out, c)
		}
	}
	for _, c := range found {
		was := podCondition(old, c.Type)
		switch {
		case !slices.Contains(ownConditions, c.Type):
			if was != nil {
				c = *was // read from the API server, perhaps before it changed there
			} else {
				continue
			}
		case was != nil && was.Status == c.Status && !was.LastTransitionTime.IsZero():
			c.LastTransitionTime = was.LastTransitionTime
		}
		out = append(out, c)
	}
	return out
}

// neverReady corrects a status that was found ready before its Pod ended: no
// endpoint may lead to it.
func neverReady(s *corev1.PodStatus) {
	for i := range s.Conditions {
		c := &s.Conditions[i]
		if (c.Type == corev1.PodReady || c.Type == corev1.ContainersReady) && c.Status == corev1.ConditionTrue {
			c.Status, c.Message = corev1.ConditionFalse, ""
			c.Reason = "PodCompleted"
			if s.Phase == corev1.PodFailed {
				c.Reason = "PodFailed"
			}
		}
	}
}

func podCondition(conditions []corev1.PodCondition, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range conditions {
		if conditions[i].Type == kind {
			return &conditions[i]
		}
	}
	return nil
}
