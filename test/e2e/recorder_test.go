// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"fairlead.dev/controller/source"
)

// recorder is a source.Handler that remembers each call.
type recorder struct {
	inside   atomic.Int32
	overlaps atomic.Int32

	mu     sync.Mutex
	events []event
	synced []int // length of events at each OnSynced
}

// event is one call of the Handler.
type event struct {
	at      time.Time
	what    string // "service ns/name", "slice ns/name", "node name", "pod ns/name"
	deleted bool
	mark    string // the object's "mark" annotation
}

func (r *recorder) record(what string, deleted bool, annotations map[string]string) {
	if r.inside.Add(1) != 1 {
		r.overlaps.Add(1)
	}
	defer r.inside.Add(-1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event{time.Now(), what, deleted, annotations["mark"]})
}

func (r *recorder) OnService(key types.NamespacedName, s *corev1.Service) {
	r.record("service "+key.String(), s == nil, annotationsOf(s))
}

func (r *recorder) OnEndpointSlice(key types.NamespacedName, s *discoveryv1.EndpointSlice) {
	r.record("slice "+key.String(), s == nil, annotationsOf(s))
}

func (r *recorder) OnNode(name string, n *corev1.Node) {
	r.record("node "+name, n == nil, annotationsOf(n))
}

func (r *recorder) OnPod(key types.NamespacedName, p *corev1.Pod) {
	r.record("pod "+key.String(), p == nil, annotationsOf(p))
}

func (r *recorder) OnSynced() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced = append(r.synced, len(r.events))
}

func annotationsOf[T any, P interface {
	*T
	GetAnnotations() map[string]string
}](o P) map[string]string {
	if o == nil {
		return nil
	}
	return o.GetAnnotations()
}

// of returns the events of one object, from the given index on.
func (r *recorder) of(what string, from int) []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []event
	for _, e := range r.events[from:] {
		if e.what == what {
			found = append(found, e)
		}
	}
	return found
}

// last returns the last event of one object.
func (r *recorder) last(what string) (event, bool) {
	events := r.of(what, 0)
	if len(events) == 0 {
		return event{}, false
	}
	return events[len(events)-1], true
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

// present returns how many objects whose name begins so were delivered and not
// deleted.
func (r *recorder) present(prefix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	alive := make(map[string]bool)
	for _, e := range r.events {
		if strings.HasPrefix(e.what, prefix) {
			alive[e.what] = !e.deleted
		}
	}
	n := 0
	for _, a := range alive {
		if a {
			n++
		}
	}
	return n
}

// deletions returns the objects of the prefix that were delivered as deleted.
func (r *recorder) deletions(prefix string, from int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []string
	for _, e := range r.events[from:] {
		if e.deleted && strings.HasPrefix(e.what, prefix) {
			found = append(found, e.what)
		}
	}
	return found
}

// isSynced is a condition for eventually.
func (r *recorder) isSynced() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.synced) == 0 {
		return "OnSynced was not called"
	}
	return ""
}

// waitFor waits for an object's event with this mark, or its deletion.
func (r *recorder) waitFor(t *testing.T, what string, deleted bool, mark string) event {
	t.Helper()
	var got event
	eventually(t, deliveryBound, func() string {
		e, ok := r.last(what)
		if !ok || e.deleted != deleted || e.mark != mark {
			return fmt.Sprintf("%s: want deleted=%v mark=%q, last seen %+v", what, deleted, mark, e)
		}
		got = e
		return ""
	})
	return got
}

// running is a Source at work.
type running struct {
	*recorder
	source *source.APIServer
	stop   func() // ends it and waits
}

// runSource starts an API-server Source for the cluster's node with this
// connection; it ends with the test.
func runSource(t *testing.T, c *cluster, config *rest.Config, change func(*source.APIServerOptions)) *running {
	t.Helper()
	o := source.APIServerOptions{
		Config:     config,
		NodeName:   c.node,
		Logger:     slog.New(slog.NewTextHandler(t.Output(), nil)),
		BackoffMax: 2 * time.Second,
	}
	if change != nil {
		change(&o)
	}
	s, err := source.NewAPIServer(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{recorder: &recorder{}, source: s}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, r.recorder) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run returned %v, want nil when its context ends", err)
			}
		case <-time.After(2 * time.Second):
			t.Error("Run did not return within 2 s of the end of its context")
		}
		if n := r.overlaps.Load(); n != 0 {
			t.Errorf("%d Handler calls overlapped", n)
		}
	})
	t.Cleanup(r.stop)
	return r
}
