// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/tools/reference"

	"fairlead.dev/podrunner/apiclient"
)

// NewEvents records Events at the API server in the name of the node's kubelet:
// like ones are counted in one, and what one object has too many of is dropped.
// stop ends it; what was not yet sent is lost.
func NewEvents(client apiclient.Interface, node string) (_ record.EventRecorder, stop func()) {
	b := record.NewBroadcaster()
	b.StartRecordingToSink(eventSink{client})
	return b.NewRecorder(scheme, corev1.EventSource{Component: "kubelet", Host: node}), b.Shutdown
}

// scheme has the kinds that Events are about.
var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		panic(err) // of generated types
	}
	return s
}()

// eventSink writes Events, each in its namespace.
type eventSink struct{ client apiclient.Interface }

var _ record.EventSink = eventSink{}

func (s eventSink) Create(e *corev1.Event) (*corev1.Event, error) {
	return s.client.Events(e.Namespace).Create(context.Background(), e, metav1.CreateOptions{})
}

func (s eventSink) Update(e *corev1.Event) (*corev1.Event, error) {
	return s.client.Events(e.Namespace).Update(context.Background(), e, metav1.UpdateOptions{})
}

func (s eventSink) Patch(old *corev1.Event, data []byte) (*corev1.Event, error) {
	return s.client.Events(old.Namespace).Patch(context.Background(), old.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{})
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
	ref, err := reference.GetReference(scheme, object)
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
