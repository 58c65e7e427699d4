// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"context"
	"errors"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// object is a ConfigMap or a Secret.
type object interface {
	runtime.Object
	metav1.Object
}

// lean drops what nobody reads and what is often most of an object.
func lean(o object) object {
	o.SetManagedFields(nil)
	if a := o.GetAnnotations(); a != nil {
		delete(a, corev1.LastAppliedConfigAnnotation)
	}
	return o
}

// inKubeletWords makes `configmaps "x" not found` `configmap "x" not found`, as
// it is known from Pods' status; other errors stay.
func inKubeletWords(err error, k Key) error {
	if !apierrors.IsNotFound(err) {
		return err
	}
	return notFound(k)
}

func notFound(k Key) error {
	resource := "configmap"
	if k.Kind == KindSecret {
		resource = "secret"
	}
	return apierrors.NewNotFound(corev1.Resource(resource), k.Name)
}

// entry is what is known of one object that Pods use.
type entry struct {
	api *API
	key Key
	ctx context.Context
	end context.CancelFunc
	// asking lets one ask at a time, where the object is not watched.
	asking sync.Mutex

	mu       sync.Mutex
	watching bool
	first    chan struct{} // closed when there is a first answer
	answered bool
	object   object // the last answer: an object, or
	err      error  // that there is none, or why it is not known
	at       time.Time
}

func newEntry(a *API, k Key) *entry {
	e := &entry{api: a, key: k, first: make(chan struct{})}
	e.ctx, e.end = context.WithCancel(context.Background())
	return e
}

func (e *entry) stop() { e.end() }

// watch begins to watch the object, once.
func (e *entry) watch() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.watching {
		return
	}
	e.watching = true
	// What was asked for before is no answer any more: the watch's is.
	if e.answered {
		e.answered, e.object, e.err, e.first = false, nil, nil, make(chan struct{})
	}
	e.api.running.Go(e.run)
}

// get returns the last answer where the object is watched, else a fresh one.
func (e *entry) get(ctx context.Context) (object, error) {
	e.mu.Lock()
	watching, first := e.watching, e.first
	e.mu.Unlock()
	if !watching {
		return e.ask(ctx)
	}
	select {
	case <-first:
	case <-e.ctx.Done():
		return nil, errors.New("the object is not used any more")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.object, e.err
}

// ask asks the API server. While that is away, its last answer serves.
func (e *entry) ask(ctx context.Context) (object, error) {
	e.asking.Lock()
	defer e.asking.Unlock()
	now := e.api.o.Now()
	e.mu.Lock()
	o, err, fresh := e.object, e.err, e.answered && now.Sub(e.at) < e.api.o.MaxAge
	e.mu.Unlock()
	if fresh {
		return o, err
	}
	got, err := e.api.fetch(ctx, e.key)
	switch {
	case err == nil, apierrors.IsNotFound(err):
		e.mu.Lock()
		defer e.mu.Unlock()
		if !e.watching {
			e.object, e.err, e.at, e.answered = got, err, now, true
		}
	case o != nil && unreachable(err):
		return o, nil
	}
	return got, err
}

// unreachable says that an error is none of the object's.
func unreachable(err error) bool {
	return !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) && !apierrors.IsInvalid(err)
}

// set takes an answer of the watch: an object, or nil and why there is none.
// An error that says nothing of the object does not replace what is known.
func (e *entry) set(o object, err error) {
	e.mu.Lock()
	known := e.answered && (e.object != nil || apierrors.IsNotFound(e.err))
	if o == nil && !apierrors.IsNotFound(err) && known {
		e.mu.Unlock()
		return
	}
	changed := e.answered && (o == nil) != (e.object == nil) ||
		o != nil && e.object != nil && o.GetResourceVersion() != e.object.GetResourceVersion()
	e.object, e.err, e.at = o, err, e.api.o.Now()
	if !e.answered {
		e.answered = true
		close(e.first)
	}
	e.mu.Unlock()
	if changed && e.ctx.Err() == nil {
		e.api.listeners.changed(e.key)
	}
}
