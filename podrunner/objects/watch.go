// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
)

// errEnded is the end of a watch in good order: the API server ends each one
// after some minutes.
var errEnded = errors.New("the watch ended")

// run keeps an entry current until it is stopped. An object that says it will
// never change is not watched.
func (e *entry) run() {
	pause := e.api.o.BackoffMin
	for e.ctx.Err() == nil {
		began := time.Now()
		immutable, err := e.follow()
		if immutable || e.ctx.Err() != nil {
			return
		}
		if time.Since(began) > e.api.o.BackoffMax {
			pause = e.api.o.BackoffMin
		}
		if errors.Is(err, errEnded) {
			if pause == e.api.o.BackoffMin && time.Since(began) > pause {
				continue
			}
		} else {
			e.api.o.Logger.Warn("cannot watch an object of a Pod", "kind", e.key.Kind, "object", e.key.NamespacedName.String(), "err", err)
			e.set(nil, err)
		}
		select {
		case <-e.ctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		}
		pause = min(2*pause, e.api.o.BackoffMax)
	}
}

// follow lists the object and follows its changes until the watch ends.
func (e *entry) follow() (immutable bool, err error) {
	o, version, err := e.list()
	if err != nil {
		return false, fmt.Errorf("get: %w", inKubeletWords(err, e.key))
	}
	if o == nil {
		e.set(nil, notFound(e.key))
	} else if e.set(o, nil); isImmutable(o) {
		return true, nil
	}
	w, err := e.startWatch(version)
	if err != nil {
		return false, fmt.Errorf("watch: %w", err)
	}
	defer w.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return false, e.ctx.Err()
		case event, ok := <-w.ResultChan():
			if !ok {
				return false, errEnded
			}
			if immutable, err := e.take(event); immutable || err != nil {
				return immutable, err
			}
		}
	}
}

func (e *entry) take(event watch.Event) (immutable bool, err error) {
	if event.Type == watch.Error {
		err := apierrors.FromObject(event.Object)
		if apierrors.IsGone(err) || apierrors.IsResourceExpired(err) {
			return false, errEnded // list again
		}
		return false, fmt.Errorf("watch: %w", err)
	}
	o, ok := event.Object.(object)
	if !ok || o.GetName() != e.key.Name || o.GetNamespace() != e.key.Namespace {
		return false, nil
	}
	switch event.Type {
	case watch.Added, watch.Modified:
		e.set(lean(o), nil)
		return isImmutable(o), nil
	case watch.Deleted:
		e.set(nil, notFound(e.key))
	}
	return false, nil
}

// byName selects one object: the Node authorizer allows no more.
func (e *entry) byName() metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, e.key.Name).String()}
}

// list returns the object, nil where there is none, and the version to watch
// from.
func (e *entry) list() (o object, version string, err error) {
	found := func(o object) object {
		if o.GetName() != e.key.Name {
			return nil
		}
		return lean(o)
	}
	if e.key.Kind == KindSecret {
		l, err := e.api.o.Client.Secrets(e.key.Namespace).List(e.ctx, e.byName())
		if err != nil {
			return nil, "", err
		}
		for i := range l.Items {
			if o = found(&l.Items[i]); o != nil {
				break
			}
		}
		return o, l.ResourceVersion, nil
	}
	l, err := e.api.o.Client.ConfigMaps(e.key.Namespace).List(e.ctx, e.byName())
	if err != nil {
		return nil, "", err
	}
	for i := range l.Items {
		if o = found(&l.Items[i]); o != nil {
			break
		}
	}
	return o, l.ResourceVersion, nil
}

func (e *entry) startWatch(version string) (watch.Interface, error) {
	o := e.byName()
	o.ResourceVersion = version
	// Spread, so that a node's watches do not all end at once.
	seconds := int64(300 + rand.N(300))
	o.TimeoutSeconds = &seconds
	if e.key.Kind == KindSecret {
		return e.api.o.Client.Secrets(e.key.Namespace).Watch(e.ctx, o)
	}
	return e.api.o.Client.ConfigMaps(e.key.Namespace).Watch(e.ctx, o)
}

func isImmutable(o object) bool {
	switch o := o.(type) {
	case *corev1.Secret:
		return o.Immutable != nil && *o.Immutable
	case *corev1.ConfigMap:
		return o.Immutable != nil && *o.Immutable
	}
	return false
}
