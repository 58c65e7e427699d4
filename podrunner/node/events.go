// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/tools/reference"
)

// NewEvents records Events at the API server in the name of the node's kubelet:
// like ones are counted in one, and what one object has too many of is dropped.
// stop ends it; what was not yet sent is lost.
func NewEvents(client kubernetes.Interface, node string) (_ record.EventRecorder, stop func()) {
	b := record.NewBroadcaster()
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: node}), b.Shutdown
}

// EventList keeps the last Events where there is no API server. An Event that
// was seen before is counted.
type EventList struct {
	max int

	mu     sync.Mutex
	events []corev1.Event // the one that was seen last is last
}

var _ record.EventRecorder = (*EventList)(nil)

// NewEventList keeps at most max Events.
func NewEventList(max int) *EventList { return &EventList{max: max} }

// Events are those that are kept, the last one first.
func (l *EventList) Events() []corev1.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.events)
	slices.Reverse(out)
	return out
}

// Event implements record.EventRecorder.
func (l *EventList) Event(object runtime.Object, kind, reason, message string) {
	ref, err := reference.GetReference(scheme.Scheme, object)
	if err != nil {
		return // an object without a kind or name cannot be listed either
	}
	l.add(*ref, kind, reason, message)
}

// Eventf implements record.EventRecorder.
func (l *EventList) Eventf(object runtime.Object, kind, reason, format string, args ...any) {
	l.Event(object, kind, reason, fmt.Sprintf(format, args...))
}

// AnnotatedEventf implements record.EventRecorder; annotations are not kept.
func (l *EventList) AnnotatedEventf(object runtime.Object, _ map[string]string, kind, reason, format string, args ...any) {
	l.Eventf(object, kind, reason, format, args...)
}

func (l *EventList) add(object corev1.ObjectReference, kind, reason, message string) {
	now := time.Now()
	e := corev1.Event{InvolvedObject: object, Type: kind, Reason: reason, Message: message, Count: 1}
	e.InvolvedObject.ResourceVersion = ""
	e.Namespace, e.FirstTimestamp.Time = object.Namespace, now
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.events {
		old := &l.events[i]
		if old.InvolvedObject == e.InvolvedObject && old.Type == kind && old.Reason == reason && old.Message == message {
			e.Count, e.FirstTimestamp = old.Count+1, old.FirstTimestamp
			l.events = slices.Delete(l.events, i, i+1)
			break
		}
	}
	e.LastTimestamp.Time = now
	l.events = append(l.events, e)
	if over := len(l.events) - l.max; over > 0 {
		l.events = slices.Delete(l.events, 0, over)
	}
}
