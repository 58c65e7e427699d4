// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// handlerCalls is a Handler that writes down what it is told, and whether two calls
// overlapped.
type handlerCalls struct {
	mu      sync.Mutex
	lines   []string
	inside  atomic.Int32
	overlap atomic.Bool
}

func (c *handlerCalls) add(line string) {
	if c.inside.Add(1) > 1 {
		c.overlap.Store(true)
	}
	defer c.inside.Add(-1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, line)
}

func (c *handlerCalls) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := c.lines
	c.lines = nil
	return lines
}

func (c *handlerCalls) OnService(key types.NamespacedName, s *corev1.Service) {
	c.add(fmt.Sprintf("service %s deleted=%v", key, s == nil))
}

func (c *handlerCalls) OnEndpointSlice(key types.NamespacedName, s *discoveryv1.EndpointSlice) {
	c.add(fmt.Sprintf("slice %s deleted=%v", key, s == nil))
}

func (c *handlerCalls) OnNode(name string, n *corev1.Node) {
	c.add(fmt.Sprintf("node %s deleted=%v", name, n == nil))
}

func (c *handlerCalls) OnPod(key types.NamespacedName, p *corev1.Pod) {
	c.add(fmt.Sprintf("pod %s deleted=%v", key, p == nil))
}

func (c *handlerCalls) OnSynced() { c.add("synced") }

func newTestStream(h Handler) *stream {
	k := serviceKind(groupClient{})
	return &stream{
		kind:    k,
		keys:    newKeyset(),
		health:  newHealth(slog.New(slog.DiscardHandler), []kind{k}),
		deliver: &delivery{handler: h, unsynced: 1},
	}
}

func streamedService(name, version string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, ResourceVersion: version}}
}

// bookmark ends the initial events of a streamed list.
func bookmark(version string) watch.Event {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{ResourceVersion: version}}
	s.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	return watch.Event{Type: watch.Bookmark, Object: s}
}

// feed gives the stream a watch with these events, which then ends.
func feed(t *testing.T, s *stream, events ...watch.Event) error {
	t.Helper()
	w := watch.NewFakeWithChanSize(len(events), false)
	for _, e := range events {
		w.Action(e.Type, e.Object)
	}
	w.Stop()
	_, err := s.follow(context.Background(), w, s.version == "")
	return err
}

func TestAStreamDeliversUpdatesAtOnceAndDeletionsAfterTheList(t *testing.T) {
	h := &handlerCalls{}
	s := newTestStream(h)
	added := func(name, version string) watch.Event {
		return watch.Event{Type: watch.Added, Object: streamedService(name, version)}
	}

	if err := feed(t, s, added("a", "1"), added("b", "2"), bookmark("5"),
		watch.Event{Type: watch.Modified, Object: streamedService("a", "6")},
		watch.Event{Type: watch.Deleted, Object: streamedService("unknown", "7")}); err != nil {
		t.Fatal(err)
	}
	want := []string{"service ns/a deleted=false", "service ns/b deleted=false", "synced", "service ns/a deleted=false"}
	if diff := cmp.Diff(want, h.take()); diff != "" {
		t.Errorf("first list (-want +got):\n%s", diff)
	}
	if s.version != "7" {
		t.Errorf("the stream would resume at version %q, want 7", s.version)
	}

	s.version = ""
	if err := feed(t, s, added("a", "6")); err == nil {
		t.Error("a list that is cut off is no error")
	}
	if diff := cmp.Diff([]string{"service ns/a deleted=false"}, h.take()); diff != "" {
		t.Errorf("list cut off: nothing may be deleted (-want +got):\n%s", diff)
	}
	if s.version != "" {
		t.Errorf("the stream would resume an incomplete list at %q", s.version)
	}

	if err := feed(t, s, added("a", "6"), added("c", "8"), bookmark("9")); err != nil {
		t.Fatal(err)
	}
	want = []string{"service ns/a deleted=false", "service ns/c deleted=false", "service ns/b deleted=true"}
	if diff := cmp.Diff(want, h.take()); diff != "" {
		t.Errorf("second list (-want +got):\n%s", diff)
	}
}

func TestAStreamReportsAnObjectOfAnotherType(t *testing.T) {
	h := &handlerCalls{}
	s := newTestStream(h)
	err := feed(t, s, watch.Event{Type: watch.Added, Object: &corev1.Secret{}})
	if err == nil {
		t.Error("a Secret among the Services is no error")
	}
	if lines := h.take(); len(lines) != 0 {
		t.Errorf("delivered: %v", lines)
	}
}

func TestAnExpiredVersionIsRecognized(t *testing.T) {
	s := newTestStream(&handlerCalls{})
	s.version = "5"
	gone := apierrors.NewResourceExpired("too old resource version: 5 (9)").Status()
	err := feed(t, s, watch.Event{Type: watch.Error, Object: &gone})
	if !isExpired(err) {
		t.Errorf("isExpired(%v) is false", err)
	}
	if isExpired(errors.New("connection refused")) || isExpired(nil) {
		t.Error("isExpired is true for anything")
	}
}

func TestHandlerCallsOfSeveralStreamsDoNotOverlap(t *testing.T) {
	h := &handlerCalls{}
	d := &delivery{handler: h, unsynced: 4}
	var wg sync.WaitGroup
	for range 4 {
		s := newTestStream(h)
		s.deliver = d
		wg.Go(func() {
			events := []watch.Event{}
			for i := range 500 {
				events = append(events, watch.Event{Type: watch.Added, Object: streamedService(fmt.Sprint("s", i), "1")})
			}
			if err := feed(t, s, append(events, bookmark("1"))...); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if h.overlap.Load() {
		t.Error("two Handler calls overlapped")
	}
	lines := h.take()
	if len(lines) != 2001 || lines[2000] != "synced" {
		t.Errorf("%d calls, the last is %q; want 2001 that end with synced", len(lines), lines[len(lines)-1])
	}
}

func TestHealthIsConnectedWhenEveryKindIs(t *testing.T) {
	services, slices := kind{resource: "services"}, kind{resource: "endpointslices", group: "discovery.k8s.io"}
	h := newHealth(slog.New(slog.DiscardHandler), []kind{services, slices})
	if s := h.state(); s.Connected || len(s.Problems) != 0 {
		t.Errorf("at the start: %+v, want disconnected without problems", s)
	}
	started := h.state().Since
	time.Sleep(time.Millisecond)
	h.up(services)
	if h.state().Connected {
		t.Error("connected with one of two kinds")
	}
	h.up(slices)
	if s := h.state(); !s.Connected || !s.Since.After(started) {
		t.Errorf("with both kinds: %+v", s)
	}
	recovery := h.recovery()
	h.down(slices, apierrors.NewForbidden(discoveryv1.Resource("endpointslices"), "", errors.New("no")))
	want := []string{`endpointslices: endpointslices.discovery.k8s.io is forbidden: no; grant the verbs list and watch ` +
		`on "endpointslices" in API group "discovery.k8s.io" in the agent's ClusterRole`}
	if s := h.state(); s.Connected || cmp.Diff(want, s.Problems) != "" {
		t.Errorf("after a refusal: %+v, want the problem %q", s, want)
	}
	h.up(services) // was up all the time: no news
	select {
	case <-recovery:
		t.Error("recovery without any")
	default:
	}
	h.up(slices)
	select {
	case <-recovery:
	default:
		t.Error("the others were not told of the recovery")
	}
	if s := h.state(); !s.Connected || len(s.Problems) != 0 {
		t.Errorf("after the recovery: %+v", s)
	}
}

func TestATransportErrorIsNotLost(t *testing.T) {
	want := errors.New("i/o timeout")
	ctx, got := recordErrors(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1/", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = errorRecorder{failing{want}}.RoundTrip(req)
	if !errors.Is(*got, want) {
		t.Errorf("recorded %v, want %v", *got, want)
	}
}

type failing struct{ err error }

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }
