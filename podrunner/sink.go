// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// StatusSink takes the status of Pods. Its methods must not block, and may be
// called from several goroutines, for one Pod from one at a time.
type StatusSink interface {
	// SetPodStatus is called whenever the status is another than before. The
	// status is the callee's.
	SetPodStatus(key types.NamespacedName, uid types.UID, status corev1.PodStatus)
	// PodFinished is called when nothing of a Pod is left on this node that was
	// being deleted, or whose object is gone already: now the object may go.
	// The last status was reported before.
	PodFinished(key types.NamespacedName, uid types.UID)
}

// EventSink takes what the kubelet makes Events of: a part of client-go's
// record.EventRecorder. It must not block.
type EventSink interface {
	// Event is about a *corev1.ObjectReference to a Pod, or to a container by its
	// FieldPath. eventType is Normal or Warning.
	Event(object runtime.Object, eventType, reason, message string)
}

type noEvents struct{}

func (noEvents) Event(runtime.Object, string, string, string) {}

func fieldPath(name string, r role) string {
	return [...]string{"spec.containers{", "spec.initContainers{", "spec.ephemeralContainers{"}[r] + name + "}"
}

// event is about the Pod, or with fieldPath about a container of it.
func (r *Runner) event(pod *corev1.Pod, fieldPath, eventType, reason, message string) {
	r.o.Events.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		ResourceVersion: pod.ResourceVersion, FieldPath: fieldPath,
	}, eventType, reason, message)
}
