// SPDX-License-Identifier: Apache-2.0

package node

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
)

// PodEvents makes Events of what happens to Pods and their containers.
type PodEvents struct {
	Recorder record.EventRecorder
}

// Event records one about a Pod, or about a part of it ("spec.containers{web}").
func (e PodEvents) Event(pod *corev1.Pod, fieldPath, eventType, reason, message string) {
	e.Recorder.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		ResourceVersion: pod.ResourceVersion, FieldPath: fieldPath,
	}, eventType, reason, message)
}
