// SPDX-License-Identifier: Apache-2.0

package node

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The words are the kubelet's (pkg/kubelet/nodestatus/setters.go): alerts and
// scripts look for them.

func memoryCondition(pressure bool) corev1.NodeCondition {
	return pressureCondition(corev1.NodeMemoryPressure, pressure,
		"KubeletHasInsufficientMemory", "kubelet has insufficient memory available",
		"KubeletHasSufficientMemory", "kubelet has sufficient memory available")
}

func diskCondition(pressure bool) corev1.NodeCondition {
	return pressureCondition(corev1.NodeDiskPressure, pressure,
		"KubeletHasDiskPressure", "kubelet has disk pressure",
		"KubeletHasNoDiskPressure", "kubelet has no disk pressure")
}

func pidCondition(pressure bool) corev1.NodeCondition {
	return pressureCondition(corev1.NodePIDPressure, pressure,
		"KubeletHasInsufficientPID", "kubelet has insufficient PID available",
		"KubeletHasSufficientPID", "kubelet has sufficient PID available")
}

func pressureCondition(kind corev1.NodeConditionType, pressure bool, badReason, bad, goodReason, good string) corev1.NodeCondition {
	if pressure {
		return corev1.NodeCondition{Type: kind, Status: corev1.ConditionTrue, Reason: badReason, Message: bad}
	}
	return corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: goodReason, Message: good}
}

func readyCondition(troubles []string) corev1.NodeCondition {
	switch len(troubles) {
	case 0:
		return corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	case 1:
		return corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady", Message: troubles[0]}
	}
	return corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady", Message: "[" + strings.Join(troubles, ", ") + "]"}
}

// setCondition puts a condition in its place; its transition is now, unless its
// status stayed.
func setCondition(s *corev1.NodeStatus, c corev1.NodeCondition, now metav1.Time) {
	c.LastHeartbeatTime, c.LastTransitionTime = now, now
	old := condition(s.Conditions, c.Type)
	if old == nil {
		s.Conditions = append(s.Conditions, c)
		return
	}
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	*old = c
}

func condition(conditions []corev1.NodeCondition, kind corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range conditions {
		if conditions[i].Type == kind {
			return &conditions[i]
		}
	}
	return nil
}

// conditionEvent is the reason of the Event about a condition that changed.
func conditionEvent(c corev1.NodeCondition) string {
	words := map[corev1.NodeConditionType][2]string{
		corev1.NodeReady:          {"NodeReady", "NodeNotReady"},
		corev1.NodeMemoryPressure: {"NodeHasInsufficientMemory", "NodeHasSufficientMemory"},
		corev1.NodeDiskPressure:   {"NodeHasDiskPressure", "NodeHasNoDiskPressure"},
		corev1.NodePIDPressure:    {"NodeHasInsufficientPID", "NodeHasSufficientPID"},
	}[c.Type]
	if c.Status == corev1.ConditionTrue {
		return words[0]
	}
	return words[1]
}
