// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

const (
	// answerTimeout bounds the silence before a watch is accepted, and between
	// two objects of a streamed list. Priority and fairness may queue a
	// request for many seconds.
	answerTimeout = 30 * time.Second
	// watchTimeoutMin: the server ends a watch after this or up to twice as
	// long, so that the load spreads over API servers; as client-go does.
	watchTimeoutMin = 5 * time.Minute
	// A watch that ends before this without an event was never a watch.
	shortestWatch = time.Second
	// pageSize is the number of objects per request where the server does not
	// stream lists.
	pageSize = 500
)

// stream follows one kind. Objects are handed on as they are decoded, one by
// one, also during a list, and then forgotten.
type stream struct {
	kind    kind
	keys    *keyset
	health  *health
	deliver *delivery
	backoff backoff

	// version is the resource version up to which all changes were delivered;
	// "" asks for a list.
	version string
	// noStreamedList: the server lists, but does not stream lists (KEP-3157).
	noStreamedList bool
	listedOnce     bool
}

// run follows the kind until ctx ends.
func (s *stream) run(ctx context.Context) {
	for ctx.Err() == nil {
		started := time.Now()
		established, err := s.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		if isExpired(err) && s.version != "" {
			s.version = ""
		} else if err != nil && !established {
			s.health.down(s.kind, err)
		}
		s.wait(ctx, s.backoff.next(time.Since(started), err != nil), err)
	}
}

// wait pauses before the next attempt: longer where the server asks for it,
// shorter where another stream sees that the server is back.
func (s *stream) wait(ctx context.Context, pause time.Duration, err error) {
	recovery := s.health.recovery()
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		pause = max(pause, time.Duration(min(seconds, 60))*time.Second)
		recovery = nil
	}
	select {
	case <-ctx.Done():
	case <-recovery:
	case <-time.After(pause):
	}
}

// connect lists where need be, and watches until the connection ends.
// established says that the state was up to date for a while.
func (s *stream) connect(ctx context.Context) (established bool, err error) {
	listing := s.version == ""
	if listing && s.noStreamedList {
		if err := s.listPages(ctx); err != nil {
			return false, err
		}
		listing = false
		s.noStreamedList = false // for the next list; the server may be another one
	}
	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := s.openWatch(watchCtx, cancel, listing)
	if err != nil {
		if listing && (apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)) {
			s.noStreamedList = true // older than Kubernetes 1.32, or switched off
			return s.connect(ctx)
		}
		return false, err
	}
	defer w.Stop()
	return s.follow(watchCtx, w, listing)
}

func (s *stream) request(options metav1.ListOptions) *rest.Request {
	return s.kind.client.Get().Resource(s.kind.resource).
		VersionedParams(&options, s.kind.client.params).
		MaxRetries(0) // run retries, and health tells
}

func isExpired(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

// openWatch sends the watch request and returns when it is accepted.
func (s *stream) openWatch(ctx context.Context, cancel func(), listing bool) (watch.Interface, error) {
	timeout := int64((watchTimeoutMin + rand.N(watchTimeoutMin)).Seconds())
	options := metav1.ListOptions{
		Watch:               true,
		LabelSelector:       s.kind.labelSelector,
		FieldSelector:       s.kind.fieldSelector,
		AllowWatchBookmarks: true,
		TimeoutSeconds:      &timeout,
		ResourceVersion:     s.version,
	}
	if listing {
		// Version "" is the most recent one: a list never goes back in time.
		yes := true
		options.SendInitialEvents = &yes
		options.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
	}
	late := time.AfterFunc(answerTimeout, cancel)
	ctx, transportErr := recordErrors(ctx)
	w, err := s.request(options).Watch(ctx)
	switch {
	case !late.Stop():
		if w != nil {
			w.Stop()
		}
		return nil, fmt.Errorf("no answer within %v", answerTimeout)
	case err == nil && *transportErr != nil:
		w.Stop()
		return nil, *transportErr
	}
	return w, err
}

// follow delivers events until the watch ends. The initial events of a
// streamed list end with a bookmark; only then is it known what vanished.
func (s *stream) follow(ctx context.Context, w watch.Interface, listing bool) (established bool, err error) {
	quiet := time.NewTimer(shortestWatch)
	defer quiet.Stop()
	if listing {
		s.keys.begin()
		quiet.Reset(answerTimeout)
	}
	started, events := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return !listing, ctx.Err()
		case <-quiet.C:
			if listing {
				s.noStreamedList = true
				return false, fmt.Errorf("the streamed list stopped for %v", answerTimeout)
			}
			s.health.up(s.kind) // accepted, not closed at once: nothing to report
		case e, ok := <-w.ResultChan():
			if !ok {
				return s.ended(listing, events > 0 || time.Since(started) > shortestWatch)
			}
			version, listEnd, err := s.apply(e)
			if err != nil {
				return !listing && events > 0, err
			}
			events++
			switch {
			case listing && listEnd:
				listing = false
				s.finishList(version)
			case listing:
				quiet.Reset(answerTimeout)
				continue
			}
			s.version = version
			s.health.up(s.kind)
		}
	}
}

// ended judges a watch that the server closed without an error.
func (s *stream) ended(listing, lasted bool) (established bool, err error) {
	switch {
	case listing:
		// A server that knows nothing of streamed lists ends like this, too.
		s.noStreamedList = true
		return false, errors.New("the streamed list was cut off")
	case !lasted:
		return false, errors.New("the server closed the watch at once")
	}
	return true, nil
}

// apply delivers one event. listEnd says that it ended the initial events.
func (s *stream) apply(e watch.Event) (version string, listEnd bool, err error) {
	if e.Type == watch.Error {
		return "", false, apierrors.FromObject(e.Object)
	}
	m, err := meta.Accessor(e.Object)
	if err != nil {
		return "", false, fmt.Errorf("watch event %s: %w", e.Type, err)
	}
	switch e.Type {
	case watch.Added, watch.Modified:
		err = s.put(m, e.Object)
	case watch.Deleted:
		s.drop(keyOf(m))
	case watch.Bookmark:
		listEnd = m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"
	}
	return m.GetResourceVersion(), listEnd, err
}

// listPages is the list for servers that do not stream it.
func (s *stream) listPages(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 4*answerTimeout)
	defer cancel()
	s.keys.begin()
	options := metav1.ListOptions{LabelSelector: s.kind.labelSelector, FieldSelector: s.kind.fieldSelector, Limit: pageSize}
	for {
		list := s.kind.newList()
		if err := s.request(options).Do(ctx).Into(list); err != nil {
			return err
		}
		m, err := meta.ListAccessor(list)
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		err = meta.EachListItem(list, func(o runtime.Object) error {
			m, err := meta.Accessor(o)
			if err != nil {
				return err
			}
			return s.put(m, o)
		})
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		if options.Continue = m.GetContinue(); options.Continue == "" {
			s.finishList(m.GetResourceVersion())
			return nil
		}
	}
}

// finishList deletes what the list did not have.
func (s *stream) finishList(version string) {
	for _, key := range s.keys.finish() {
		s.deliver.do(func(h Handler) { s.kind.handle(h, key, nil) })
	}
	s.version = version
	if !s.listedOnce {
		s.listedOnce = true
		s.deliver.listed()
	}
}

func (s *stream) put(m metav1.Object, o runtime.Object) error {
	key, ok := keyOf(m), false
	s.deliver.do(func(h Handler) { ok = s.kind.handle(h, key, o) })
	if !ok {
		return fmt.Errorf("the server sent a %T", o)
	}
	s.keys.add(key)
	return nil
}

func (s *stream) drop(key types.NamespacedName) {
	if s.keys.remove(key) {
		s.deliver.do(func(h Handler) { s.kind.handle(h, key, nil) })
	}
}

func keyOf(m metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()}
}
